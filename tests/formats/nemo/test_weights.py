"""Checkpoints of the real megatron-core in, ours out, compared by their logits."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from finetuning.config.degrees import Degrees
from finetuning.config.llama import LlamaConfig, read_llama_config, write_llama_config
from finetuning.config.rope import RopeScaling
from finetuning.config.run import read_run
from finetuning.config.strategy import Strategy, spread
from finetuning.data.batches.order import samples_of_step
from finetuning.data.tokens.tokenized import open_split
from finetuning.errors import InputError
from finetuning.formats.huggingface.write import export_hugging_face, stored_dtypes
from finetuning.formats.load_sharded import load_source
from finetuning.formats.nemo.checkpoint import nemo_source, open_nemo
from finetuning.formats.nemo.write import export_nemo
from finetuning.formats.stored_model import open_model
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import build_model
from finetuning.training.metrics import read_metrics
from tests.closeness import ROUNDING, assert_near
from tests.commands import finetune
from tests.formats.nemo.megatron_core import run_megatron
from tests.models import CPU, whole_logits
from tests.processes import run_processes
from tests.references import load_reference, summed_loss

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]

TOKENS = torch.from_numpy(np.random.default_rng(2).integers(0, 512, 32))
UNTIED = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    dtype="float32",
)
# Without grouped queries and RoPE scaling, with a head dimension of its own.
TIED = dataclasses.replace(
    UNTIED, num_attention_heads=2, num_key_value_heads=2, head_dim=24, rope_scaling=None, tie_word_embeddings=True
)
# Both round to bfloat16 between operations, in other places: 2^-8 of the largest logits, over four layers.
BFLOAT16_TOLERANCE = 0.06


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with checkpoints that megatron-core wrote in several layouts, and its logits: NAME.pt; read only."""
    folder = tmp_path_factory.mktemp("megatron")

    def job(do: str, to: str, config: LlamaConfig, tp: int = 1, pp: int = 1, **more: Any) -> dict[str, Any]:
        asked = {"logits": folder / f"{to}.pt", "tokens": TOKENS.tolist()} if do == "make" else {}
        return {"do": do, "to": folder / to, "shape": dataclasses.asdict(config), "tp": tp, "pp": pp} | asked | more

    padded = {"rows": 640, "layers_apart": True, "with_arguments": True}
    run_megatron(
        [
            job("make", "untied", UNTIED, optimizer=True, with_arguments=True),
            job("make", "tied", TIED, **padded),
            job("make", "bfloat16", UNTIED, dtype="bfloat16", prefix="module.", optimizer=True),
            {"from": folder / "untied", **job("reshard", "untied-tp2", UNTIED, tp=2, with_arguments=True)},
            {"from": folder / "tied", **job("reshard", "tied-pp2", TIED, pp=2, **padded)},
            {
                "from": folder / "untied",
                **job("reshard", "untied-tp2-pp2", UNTIED, 2, 2, with_arguments=True, one_shard_each=True),
            },
        ],
        folder,
    )
    return folder


def our_logits(folder: Path, config: LlamaConfig | None, degrees: Degrees, dtype: str = "float32") -> Tensor:
    source = nemo_source(open_nemo(folder, folder), config)
    strategy = Strategy(lora_rank=2, lora_targets=("q_proj",), compute_dtype=dtype, sharding="step")
    model = build_model(source.config, Layout("cpu", degrees), CPU, spread(strategy, source.config, degrees))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # the adapters too, so that the model is its base
    load_source(source, model)
    return whole_logits(model, TOKENS)


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("untied", Degrees()),
        ("untied", Degrees(tp=2)),
        ("untied", Degrees(pp=2)),
        ("untied", Degrees(cp=2)),
        ("untied", Degrees(dp_shard=3)),
        ("untied-tp2", Degrees()),
        ("untied-tp2", Degrees(pp=2)),
        ("untied-tp2-pp2", Degrees()),
        ("untied-tp2-pp2", Degrees(tp=2, dp_shard=2)),
        ("tied", Degrees()),
        ("tied", Degrees(pp=2)),
        ("tied-pp2", Degrees()),
        ("tied-pp2", Degrees(tp=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"tp{value.tp}-pp{value.pp}-cp{value.cp}-dp{value.dp_shard}",
)
def test_every_layout_reads_every_saved_layout_and_computes_megatrons_logits(made: Path, name: str, degrees: Degrees) -> None:
    expected = torch.load(made / f"{name.partition('-')[0]}.pt")[:, :512]
    size = degrees.tp * degrees.pp * degrees.cp * degrees.dp_shard
    for found in run_processes(size, our_logits, made / name, None, degrees):
        assert_near(found, expected, limit=2 * ROUNDING)  # both are rounded


def test_bfloat16_weights_with_optimizer_states_and_no_settings_take_the_configuration_that_is_given(made: Path) -> None:
    checkpoint = open_nemo(made / "bfloat16", made)
    assert (checkpoint.own_config(), checkpoint.dtype, checkpoint.step) == (None, "bfloat16", 7)
    assert {nemo_source(checkpoint, UNTIED).dtype(name) for name in nemo_source(checkpoint, UNTIED).shapes()} == {
        torch.bfloat16
    }
    (found,) = run_processes(1, our_logits, made / "bfloat16", UNTIED, Degrees(), "bfloat16")
    expected = torch.load(made / "bfloat16.pt")
    torch.testing.assert_close(found.float(), expected, atol=BFLOAT16_TOLERANCE, rtol=0)


def test_the_configuration_is_read_from_megatrons_arguments(made: Path) -> None:
    for name, config in (("untied-tp2", UNTIED), ("tied-pp2", TIED)):
        assert open_nemo(made / name, made).own_config() == config


def test_any_rows_are_read_as_parts_of_the_whole(made: Path) -> None:
    source = nemo_source(open_nemo(made / "untied-tp2-pp2", made), None)
    for name in source.shapes():
        whole = source.read(name)
        assert whole.shape == source.shapes()[name]
        for start, stop in ((0, 1), (3, 5), (15, 49), (30, None)):
            assert torch.equal(source.read(name, start, stop), whole[start:stop]), name


def test_all_saved_layouts_hold_the_same_numbers(made: Path) -> None:
    for first, *others in (["untied", "untied-tp2", "untied-tp2-pp2"], ["tied", "tied-pp2"]):
        expected = nemo_source(open_nemo(made / first, made), None)
        for other in others:
            found = nemo_source(open_nemo(made / other, made), None)
            assert all(torch.equal(found.read(name), expected.read(name)) for name in expected.shapes())


@pytest.mark.parametrize("name", ["tiny_model", "tiny_tied_model"])
def test_the_export_comes_back_bit_for_bit(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    exported(folder, tmp_path / "out")
    back, first = open_model(tmp_path / "out"), open_model(folder)
    assert back.weights().config == first.weights().config
    assert back.base_folder != folder and (back.tokenizer_folder / "tokenizer.json").is_file()
    for weight in first.weights().shapes():
        assert torch.equal(back.weights().read(weight), first.weights().read(weight)), weight


@pytest.mark.parametrize("name", ["tiny_model", "tiny_tied_model"])
def test_a_model_that_comes_back_from_nemo_has_an_equal_configuration(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    exported(folder, tmp_path / "nemo")
    export_hugging_face(open_model(tmp_path / "nemo"), tmp_path / "back", None, lambda done, total: None)
    first, back = (json.loads((path / "config.json").read_text(encoding="utf-8")) for path in (folder, tmp_path / "back"))
    assert back == first

    # NeMo's own checkpoints have no config.json: what the tokenizer's files say is written down.
    (tmp_path / "nemo" / "context" / "nemo_tokenizer" / "config.json").unlink()
    export_hugging_face(open_model(tmp_path / "nemo"), tmp_path / "other", None, lambda done, total: None)
    other = transformers.AutoConfig.from_pretrained(tmp_path / "other")
    assert (other.bos_token_id, other.eos_token_id) == (first["bos_token_id"], first["eos_token_id"])


def test_a_configuration_inside_that_contradicts_nemo_s_settings_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    exported(tiny_model, tmp_path / "nemo")
    file = tmp_path / "nemo" / "context" / "nemo_tokenizer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"rms_norm_eps": 1e-6}), encoding="utf-8")
    with pytest.raises(InputError, match=r"rms_norm_eps is 1e-05 in the checkpoint and 1e-06 in config\.json"):
        open_model(tmp_path / "nemo")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_codes_are_refused(tiny_model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    exported(tiny_model, tmp_path / "nemo")
    metadata_file = tmp_path / "nemo" / "weights" / ".metadata"
    metadata = pickle.loads(metadata_file.read_bytes())
    for name, entry in metadata.state_dict_metadata.items():
        if "linear_fc2.weight" in name:
            entry.properties.dtype = dtype
    metadata_file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=r"linear_fc2\.weight is stored as (int8|float8_e4m3fn) \(1 of "):
        open_model(tmp_path / "nemo")


def test_megatron_core_loads_the_export_and_computes_the_logits_of_transformers(
    tiny_model: Path, tiny_tied_model: Path, tmp_path: Path
) -> None:
    jobs = []
    for name, folder in (("untied", tiny_model), ("tied", tiny_tied_model)):
        exported(folder, tmp_path / name)
        shape = dataclasses.asdict(read_llama_config(folder))
        for tp in (1, 2):
            jobs.append(
                {
                    "do": "logits",
                    "from": tmp_path / name / "weights",
                    "prefix": "module.",
                    "shape": shape,
                    "tp": tp,
                    "pp": 1,
                    "tokens": TOKENS.tolist(),
                    "logits": tmp_path / f"{name}{tp}.pt",
                }
            )
    run_megatron(jobs, tmp_path)
    for name, folder in (("untied", tiny_model), ("tied", tiny_tied_model)):
        model = load_reference(folder).eval()
        with torch.no_grad():
            expected = model(input_ids=TOKENS[None]).logits[0]
        for tp in (1, 2):
            assert_near(torch.load(tmp_path / f"{name}{tp}.pt"), expected)


def test_the_command_trains_from_a_checkpoint_of_megatron_in_another_layout(
    made: Path, tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Saved by one process with optimizer states, trained tensor parallel; the first loss is transformers' own."""
    described = tmp_path / "described"
    shutil.copytree(tiny_model, described, ignore=shutil.ignore_patterns("*.safetensors"))
    write_llama_config(UNTIED, described)
    data = tmp_path / "data"  # without validation and test, to be short
    data.mkdir()
    shutil.copy(tiny_dataset / "training.jsonl", data)
    flags = [
        "--experiment",
        "nemo",
        "--nemo_model",
        str(made / "untied"),
        "--hf_model_id",
        str(described),
        "--dataset_path",
        str(data),
        "--num_gpus",
        "2",
        "-T",
        "2",
        "--global_batch_size",
        "4",
        "--seq_length",
        "256",
        "--max_steps",
        "2",
        "--num_sample_answers",
        "0",
        "--save_every_n_steps",
        "0",
    ]
    code, output = finetune(tmp_path, *flags).finish()
    assert code == 0, output
    experiment = tmp_path / "experiments" / "nemo"
    rows, run = read_metrics(experiment / "metrics.csv"), read_run(experiment / "run.yaml")
    export_hugging_face(open_model(made / "untied", described), tmp_path / "whole", None, lambda done, total: None)
    reference, split = load_reference(tmp_path / "whole").eval(), open_split(Path(run.tokens_dir) / "training")
    samples = samples_of_step(0, 4, len(split), run.config.seed).tolist()
    with torch.no_grad():
        total = sum(summed_loss(reference, split, sample).item() for sample in samples)
    answer_tokens = sum(int(split.sample(sample)[1].sum()) for sample in samples)
    assert float(rows[0]["train_loss"]) == pytest.approx(total / answer_tokens, rel=ROUNDING)
    trained = transformers.AutoModelForCausalLM.from_pretrained(experiment / "export", dtype=torch.float32)
    assert not torch.equal(trained.lm_head.weight, reference.lm_head.weight)


def exported(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    model = open_model(folder)
    export_nemo(model, target, stored_dtypes(model), lambda done, total: None)
