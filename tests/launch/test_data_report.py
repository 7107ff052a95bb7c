"""What an experiment's data folder says is what the run does, and is there whole, or as it was before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.make_tiny_model import make_tiny_model
from finetuning.config.settings import RunConfig
from finetuning.data.batches.global_batch import GlobalBatches
from finetuning.errors import NoRoom
from finetuning.launch.data_report import write_data_report
from finetuning.launch.prepare import prepare
from tests.disks import fill

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep") / "model"
    make_tiny_model(folder, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, vocab_size=512)
    return folder


@pytest.mark.parametrize(("stages", "ranks"), [(4, 2), (1, 2)])
def test_the_report_states_the_packing_of_the_run(
    settings: Callable[..., RunConfig], four_layers: Path, tmp_path: Path, stages: int, ranks: int
) -> None:
    config = settings(hf_model_id=str(four_layers), num_gpus=stages * ranks, pipeline_model_parallel_size=stages)
    prepared = prepare(config, None, tmp_path / "experiment", tmp_path / "tokens", with_weights=True)
    write_data_report(prepared, tmp_path / "data")
    run = prepared.run
    batches = list(
        GlobalBatches(  # as a worker makes them, which writes `fill` and `imbalance` of each into metrics.csv
            prepared.dataset.splits["training"],
            start_step=0,
            max_steps=run.max_steps,
            seed=config.seed,
            global_batch_size=config.global_batch_size,
            data_rank=0,
            data_parallel_size=config.data_parallel_size,
            plan=run.strategy.packs,
        )
    )
    assert {len(batch.micro_batches) % stages for batch in batches} == {0}
    packing = json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))["packing"]
    fill = sum(batch.tokens for batch in batches) / sum(batch.computed for batch in batches)
    assert packing["steps_per_epoch"] == run.max_steps == len(batches)
    assert packing["fill"] == pytest.approx(fill, rel=1e-12)
    assert packing["imbalance"] == pytest.approx(sum(batch.imbalance for batch in batches) / len(batches), rel=1e-12)
    assert f"<b>{fill:.1%}</b>" in (tmp_path / "data" / "report.html").read_text(encoding="utf-8")


def test_on_a_full_disk_the_report_of_before_is_untouched(
    settings: Callable[..., RunConfig], tmp_path: Path, small_disk: Path
) -> None:
    prepared = prepare(settings(), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=True)
    folder = small_disk / "data"
    write_data_report(prepared, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert before.keys() == {"report.json", "report.html", "findings.jsonl", "preview.txt"}
    fill(small_disk)
    with pytest.raises(NoRoom, match=f"^{folder}: no room left"):
        write_data_report(prepared, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
