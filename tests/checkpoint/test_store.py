"""Checkpoints: complete or not there, exact, and readable by another number of processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader

from finetuning.checkpoint.files import (
    INFO_FILE,
    Checkpoint,
    checkpoint_name,
    find_checkpoints,
    find_weights,
    open_checkpoint,
    weights_name,
)
from finetuning.checkpoint.store import (
    load_checkpoint,
    load_weights,
    prune,
    record_val_loss,
    save_checkpoint,
)
from finetuning.config.settings import LORA_TARGETS
from finetuning.config.strategy import FUSED, PackPlan, Strategy
from finetuning.data.batches.global_batch import make_step_batch
from finetuning.data.tokens.tokenized import open_split
from finetuning.files.atomic import point_to, remove_incomplete
from finetuning.parallel.parallelize import ParallelLlama
from finetuning.training.optimizer import build_optimizer, gradient_scaler, optimizer_state
from finetuning.training.step import train_step
from tests.models import build, whole, whole_logits, whole_parameters
from tests.processes import run_processes
from tests.references import random_split

LORA = Strategy(lora_rank=3, lora_alpha=12.0, lora_targets=LORA_TARGETS)
SPLIT = Strategy(compute_dtype="bfloat16", optimizer_states="bf16", blocks=FUSED, sharding="step")
PLAN = PackPlan(capacity=64, granularity=8, attention_cost=0.01)
LENGTHS, ANSWERS = [40, 30, 20, 12], [10, 9, 8, 7]


def make_optimizer(model: ParallelLlama) -> torch.optim.Optimizer:
    return build_optimizer(
        model,
        learning_rate=1e-2,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.1,
        fused=False,
        states="8bit" if model.strategy.split_master else "fp32",
    )


def take_steps(model: ParallelLlama, optimizer: torch.optim.Optimizer, split_folder: Path, count: int) -> list[float]:
    split = open_split(split_folder)
    batch = make_step_batch(split, np.arange(len(split)), 0, dist.get_rank(), dist.get_world_size(), PLAN)
    losses = []
    for _ in range(count):
        losses.append(
            train_step(model, batch, optimizer.step, scale=gradient_scaler(optimizer), clip_grad=1.0, stop=False).loss
        )
        optimizer.zero_grad()
    return losses


def everything(model: ParallelLlama, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    # In float32, which holds every dtype of a state exactly: gloo gathers neither int16 nor float8.
    moments = {name: whole(value.float()).clone() for name, value in optimizer_state(model, optimizer).items()}
    return {"weights": whole_parameters(model), "moments": moments, "random": torch.get_rng_state()}


def train_and_save(model_folder: Path, strategy: Strategy, split_folder: Path, path: Path) -> dict[str, Any]:
    model = build(model_folder, strategy)
    optimizer = make_optimizer(model)
    take_steps(model, optimizer, split_folder, 2)
    torch.manual_seed(100 + dist.get_rank())
    save_checkpoint(path, model, optimizer_state(model, optimizer), {"step": 2, "val_loss": None, "note": "三"})
    return everything(model, optimizer) | {"later": take_steps(model, optimizer, split_folder, 2)}


def load_and_train(model_folder: Path, strategy: Strategy, split_folder: Path, path: Path) -> dict[str, Any]:
    model = build(model_folder, strategy, seed=99)  # other adapters than those that were saved
    optimizer = make_optimizer(model)
    torch.manual_seed(7)
    info = load_checkpoint(path, model, optimizer_state(model, optimizer))
    return everything(model, optimizer) | {"info": info, "later": take_steps(model, optimizer, split_folder, 2)}


def save_while_gathered(model_folder: Path, path: Path) -> str:
    model = build(model_folder)
    optimizer = make_optimizer(model)
    with torch.no_grad():
        whole_logits(model, torch.tensor([1, 2, 3]))  # no backward: the root stays gathered
    try:
        save_checkpoint(path, model, optimizer_state(model, optimizer), {"step": 1})
    except AssertionError as error:
        return str(error)
    return "saved"


def only_weights(model_folder: Path, strategy: Strategy, path: Path) -> dict[str, Tensor]:
    model = build(model_folder, strategy, seed=99)
    load_weights(path, model)
    return whole_parameters(model)


def assert_bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module", params=[Strategy(), LORA, SPLIT], ids=["full", "lora", "split"])
def saved(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of two processes: its path, and what they had in memory when they wrote it."""
    folder = tmp_path_factory.mktemp("saved")
    random_split(folder / "split", LENGTHS, ANSWERS)
    path = folder / checkpoint_name(2)
    ranks = run_processes(2, train_and_save, tiny_model, request.param, folder / "split", path)
    return {"path": path, "ranks": ranks, "strategy": request.param, "split": folder / "split"}


@pytest.mark.dist
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_what_two_processes_saved_any_number_loads_exactly(saved: dict[str, Any], tiny_model: Path, world_size: int) -> None:
    before = saved["ranks"][0]
    loaded = run_processes(world_size, load_and_train, tiny_model, saved["strategy"], saved["split"], saved["path"])
    for rank in loaded:
        assert_bit_equal(rank["weights"], before["weights"])
        assert_bit_equal(rank["moments"], before["moments"])
        assert (rank["info"]["step"], rank["info"]["note"]) == (2, "三")
    if world_size == 2:
        assert [rank["later"] for rank in loaded] == [rank["later"] for rank in saved["ranks"]]
    else:  # other sums: of float32, or of products rounded to bfloat16
        tolerance = 1e-3 if saved["strategy"].split_master else 1e-4
        assert loaded[0]["later"] == pytest.approx(before["later"], rel=tolerance)


@pytest.mark.dist
def test_gathered_copies_are_never_saved(tiny_model: Path, tmp_path: Path) -> None:
    message = run_processes(2, save_while_gathered, tiny_model, tmp_path / checkpoint_name(1))[0]
    assert message == "model.norm.weight is a gathered copy, not the parameter that is trained"


@pytest.mark.dist
def test_the_moments_are_those_of_two_steps(saved: dict[str, Any]) -> None:
    moments = saved["ranks"][0]["moments"]
    steps = {name: value for name, value in moments.items() if name.endswith(".step")}
    assert steps and all(value == 2.0 for value in steps.values())
    assert all(value.abs().max() > 0 for name, value in moments.items() if name.endswith(".exp_avg"))


@pytest.mark.dist
def test_each_rank_gets_its_own_random_state_back_and_a_new_rank_keeps_its_own(saved: dict[str, Any], tiny_model: Path) -> None:
    states = [rank["random"] for rank in saved["ranks"]]
    assert not torch.equal(*states)
    loaded = run_processes(4, load_and_train, tiny_model, saved["strategy"], saved["split"], saved["path"])
    torch.manual_seed(7)
    expected = [*states, torch.get_rng_state(), torch.get_rng_state()]
    assert all(torch.equal(rank["random"], state) for rank, state in zip(loaded, expected, strict=True))


@pytest.mark.dist
def test_the_weights_alone_can_be_the_start_of_another_run(saved: dict[str, Any], tiny_model: Path) -> None:
    found = run_processes(1, only_weights, tiny_model, saved["strategy"], saved["path"])[0]
    assert_bit_equal(found, saved["ranks"][0]["weights"])


@pytest.mark.dist
def test_a_checkpoint_of_adapters_does_not_hold_the_frozen_weights(saved: dict[str, Any]) -> None:
    stored = {name for name in FileSystemReader(saved["path"]).read_metadata().state_dict_metadata if name.startswith("model.")}
    weights = {f"model.{name}" for name in saved["ranks"][0]["weights"]}
    adapters = {name for name in weights if ".lora_" in name}
    assert stored == (adapters or weights)


@pytest.fixture
def make_checkpoint(saved: dict[str, Any], tmp_path: Path) -> Any:
    """A function from step and validation loss to a complete checkpoint (of real files) in `tmp_path`."""

    def make(step: int, val_loss: float | None = None) -> Path:
        path = tmp_path / checkpoint_name(step)
        shutil.copytree(saved["path"], path)
        info = json.loads((path / INFO_FILE).read_text(encoding="utf-8")) | {"step": step, "val_loss": val_loss}
        (path / INFO_FILE).write_text(json.dumps(info), encoding="utf-8")
        return path

    return make


def steps_in(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(folder)[0]]


@pytest.mark.dist
def test_a_save_ends_with_latest_pointing_to_it_and_nothing_unfinished(saved: dict[str, Any]) -> None:
    folder = saved["path"].parent
    assert (folder / "latest").readlink() == Path(saved["path"].name)
    assert not list(folder.glob(".*"))
    assert not find_checkpoints(folder)[1]


@pytest.mark.dist
def test_a_folder_without_its_info_or_with_a_missing_or_shorter_file_is_not_a_checkpoint(make_checkpoint: Any) -> None:
    for damage, message in (
        (lambda path: (path / INFO_FILE).unlink(), f"no readable {INFO_FILE}"),
        (lambda path: (path / INFO_FILE).write_text('{"step": 1, '), f"no readable {INFO_FILE}"),
        (lambda path: (path / "__1_0.distcp").unlink(), "__1_0.distcp is missing or has the wrong size"),
        (lambda path: (path / ".metadata").unlink(), ".metadata is missing or has the wrong size"),
        (lambda path: (path / "__0_0.distcp").write_bytes(b"half"), "__0_0.distcp is missing or has the wrong size"),
    ):
        path = make_checkpoint(1)
        assert isinstance(open_checkpoint(path), Checkpoint)
        damage(path)
        found = open_checkpoint(path)
        assert isinstance(found, str) and message in found and str(path) in found
        assert find_checkpoints(path.parent) == ([], [found])
        shutil.rmtree(path)


@pytest.mark.dist
def test_an_interrupted_save_or_deletion_is_passed_over_and_cleared_away(make_checkpoint: Any, tmp_path: Path) -> None:
    make_checkpoint(2)
    make_checkpoint(1).rename(tmp_path / ".deleted-step=000001")
    make_checkpoint(4).rename(tmp_path / ".incomplete-step=000004")
    assert find_checkpoints(tmp_path)[1] == []
    assert steps_in(tmp_path) == [2]
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step=000002"]


@pytest.mark.dist
def test_the_newest_and_the_best_by_validation_loss_are_kept(make_checkpoint: Any, tmp_path: Path) -> None:
    for step, val_loss in ((2, 3.0), (4, 1.5), (6, 2.0), (8, None), (10, 2.5)):
        make_checkpoint(step, val_loss)
    prune(tmp_path, keep_last=2)
    assert steps_in(tmp_path) == [4, 8, 10]
    assert (tmp_path / "best").readlink() == Path("step=000004")
    prune(tmp_path, keep_last=1)
    assert steps_in(tmp_path) == [4, 10]


@pytest.mark.dist
def test_the_best_may_hold_weights_only_and_no_other_of_those_is_kept(make_checkpoint: Any, tmp_path: Path) -> None:
    for step, val_loss in ((2, 3.0), (4, 1.5), (6, 2.0), (8, 1.0), (10, 2.5)):
        path = make_checkpoint(step, val_loss)
        if step in (4, 8):
            path.rename(tmp_path / weights_name(step))
    prune(tmp_path, keep_last=1)
    assert steps_in(tmp_path) == [10]
    assert (tmp_path / "best").readlink() == Path("best-step=000008")
    assert [checkpoint.step for checkpoint in find_weights(tmp_path)] == [8]
    make_checkpoint(12, 0.5)
    prune(tmp_path, keep_last=1)
    assert (steps_in(tmp_path), find_weights(tmp_path)) == ([12], [])
    assert (tmp_path / "best").readlink() == Path("step=000012")


@pytest.mark.dist
def test_a_loss_that_is_not_a_number_is_never_the_best(make_checkpoint: Any, tmp_path: Path) -> None:
    for step, val_loss in ((2, float("nan")), (4, 2.0), (6, 2.0), (8, float("inf"))):
        make_checkpoint(step, val_loss)
    prune(tmp_path, keep_last=1)
    assert (tmp_path / "best").readlink() == Path("step=000004")
    assert steps_in(tmp_path) == [4, 8]


@pytest.mark.dist
def test_without_any_validation_loss_only_the_newest_are_kept(make_checkpoint: Any, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        make_checkpoint(step)
    prune(tmp_path, keep_last=5)
    assert steps_in(tmp_path) == [2, 4, 6]
    prune(tmp_path, keep_last=2)
    assert steps_in(tmp_path) == [4, 6]
    assert not (tmp_path / "best").is_symlink()


@pytest.mark.dist
def test_steps_are_ordered_as_numbers(make_checkpoint: Any, tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 2):
        make_checkpoint(step)
    assert steps_in(tmp_path) == [2, 999_999, 1_000_000]


@pytest.mark.dist
def test_a_validation_loss_that_comes_later_is_recorded(make_checkpoint: Any, tmp_path: Path) -> None:
    make_checkpoint(2, 3.0)
    late = open_checkpoint(make_checkpoint(4))
    assert isinstance(late, Checkpoint)
    record_val_loss(late, 1.0)
    found = open_checkpoint(late.path)
    assert isinstance(found, Checkpoint) and found.val_loss == 1.0
    prune(tmp_path, keep_last=2)
    assert (tmp_path / "best").readlink() == Path("step=000004")


@pytest.mark.unit
def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        point_to(tmp_path / "latest", name)
        assert (tmp_path / "latest").readlink() == Path(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]
