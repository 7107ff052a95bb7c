"""Who gets what: layers of stages, parts of rows, dimensions of weights. One process."""

import pytest
import torch

from finetuning.config.degrees import Degrees
from finetuning.config.stages import assign_layers, stage_indices
from finetuning.config.strategy import ContextPlan, PackPlan, plan_context
from finetuning.data.batches.global_batch import MicroBatch, plan_rows
from finetuning.model.attention import make_documents
from finetuning.parallel.context import PieceDocuments, cut_row, local_places
from finetuning.parallel.tensor import tensor_dim
from tests.config.test_memory import LLAMA31_8B

pytestmark = pytest.mark.unit

EXCHANGE, GATHERED = ContextPlan(2, repeat=1), ContextPlan(2, repeat=None)


def row(length: int, lengths: list[int]) -> MicroBatch:
    places = torch.arange(length)[None]
    return MicroBatch(places, places, places, make_documents(lengths), length)


def test_layers_of_the_8b_make_room_for_its_head() -> None:
    assert assign_layers(LLAMA31_8B, 1) == (range(32),)
    assert assign_layers(LLAMA31_8B, 2) == (range(17), range(17, 32))


@pytest.mark.parametrize("num_stages", [2, 3, 4, 8, 16, 32])
def test_stages_hold_every_layer_once_and_none_is_empty(num_stages: int) -> None:
    stages = assign_layers(LLAMA31_8B, num_stages)
    assert len(stages) == num_stages
    assert [layer for stage in stages for layer in stage] == list(range(32))
    assert all(stages)


def test_stages_run_in_a_row_in_a_loop_or_in_a_v() -> None:
    assert [stage_indices("1f1b", 2, rank) for rank in (0, 1)] == [[0], [1]]
    assert [stage_indices("interleaved", 2, rank) for rank in (0, 1)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("cp", "tp", "expected"),
    [
        (2, 1, ContextPlan(2, 1)),
        (8, 2, ContextPlan(8, 2)),
        (4, 8, ContextPlan(4, 4)),
        (8, 8, ContextPlan(8, None)),
        (3, 1, ContextPlan(3, None)),
    ],
)
def test_heads_of_the_8b_are_spread_repeated_or_gathered(cp: int, tp: int, expected: ContextPlan) -> None:
    assert plan_context(LLAMA31_8B, cp, tp) == expected


def test_for_the_exchange_a_row_is_cut_in_order_and_documents_stay_those_of_the_row() -> None:
    whole = row(8, [3, 5])
    assert [cut_row(whole, EXCHANGE, rank).tokens.tolist() for rank in (0, 1)] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert cut_row(whole, EXCHANGE, 1).documents is whole.documents
    assert cut_row(whole, EXCHANGE, 1).num_targets == 4


def test_for_gathered_keys_a_row_is_cut_in_a_zigzag_with_the_documents_of_each_piece() -> None:
    whole = row(8, [3, 5])
    parts = [cut_row(whole, GATHERED, rank) for rank in (0, 1)]
    assert [part.tokens.tolist() for part in parts] == [[[0, 1, 6, 7]], [[2, 3, 4, 5]]]
    documents = parts[1].documents
    assert isinstance(documents, PieceDocuments)
    # Piece 2 3: the last query of document 0 1 2 and the first of 3 …; piece 4 5: the second and third of 3 …
    assert documents.extent.tolist() == [[2, 1, 3, 0, 4], [1, 2, 3, 3, 6]]
    assert documents.query_boundaries.tolist() == [[0, 1, 2], [0, 2, 0]]
    assert documents.key_boundaries.tolist() == [[0, 3, 4], [0, 3, 0]]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_zigzag_gives_every_process_the_same_attention_work(size: int) -> None:
    """Of one long document, where it matters: pairs of a query and a key that it sees."""
    plan, length = ContextPlan(size, repeat=None), 48 * size
    work = []
    for rank in range(size):
        documents = cut_row(row(length, [length]), plan, rank).documents
        assert isinstance(documents, PieceDocuments)
        ends = zip(documents.query_boundaries[:, 1].tolist(), documents.key_boundaries[:, 1].tolist(), strict=True)
        work.append(sum(keys - queries + seen for queries, keys in ends for seen in range(1, queries + 1)))
    assert len(set(work)) == 1
    assert sum(work) == length * (length + 1) // 2


@pytest.mark.parametrize("plan", [EXCHANGE, GATHERED], ids=["exchange", "gathered"])
def test_a_place_of_a_row_is_found_in_exactly_one_part(plan: ContextPlan) -> None:
    whole, places = row(8, [3, 5]), torch.tensor([0, 2, 5, 7])
    found = torch.zeros(4, dtype=torch.int64)
    for rank in (0, 1):
        local, here = local_places(places, 8, plan, rank)
        found += cut_row(whole, plan, rank).tokens[0][local] * here
    assert torch.equal(found, places)


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("model.embed_tokens.weight", 0),
        ("lm_head.weight", 0),
        ("model.norm.weight", None),
        ("model.layers.3.self_attn.q_proj.weight", 0),
        ("model.layers.3.self_attn.q_proj.lora_A.weight", None),
        ("model.layers.3.self_attn.q_proj.lora_B.weight", 0),
        ("model.layers.3.mlp.down_proj.weight", 1),
        ("model.layers.3.mlp.down_proj.lora_A.weight", 1),
        ("model.layers.3.mlp.down_proj.lora_B.weight", None),
        ("model.layers.3.input_layernorm.weight", None),
        ("model.layers.3.mlp.down_proj.weight.exp_avg", 1),
    ],
)
def test_a_name_says_how_tensor_parallel_cuts_its_weight(name: str, dim: int | None) -> None:
    assert tensor_dim(name) == dim


def test_a_layout_is_named_by_its_axes() -> None:
    assert str(Degrees(pp=2, dp_replicate=2, dp_shard=2, cp=2, tp=4)) == "TP 4 × CP 2 × PP 2 × DP 4"
    assert str(Degrees()) == "DP 1"


def test_rows_are_as_long_and_as_many_as_the_layout_asks_for() -> None:
    plan = PackPlan(capacity=10, granularity=4, attention_cost=0.0, multiple=6, packs_multiple=4, same_length=True)
    assert plan.padded(3) == 6
    assert plan.padded(10) == 12  # the capacity, made divisible
    assert plan.pack_lengths([3, 10]) == [12, 12]
    lengths = torch.tensor([5, 4, 3]).numpy()
    assert [len(rows) for rows in plan_rows(lengths, 1, plan)] == [4]
