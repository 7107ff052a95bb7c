"""A resolved run, and the file `run.yaml` that the workers read.

`Run` adds to what the user asked for (`RunConfig`) what follows from it on the launching machine: folders, step counts, where
weights come from, how it computes. Imports no torch.
"""

import dataclasses
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from finetuning.config.learning_rate import EARLIER
from finetuning.config.llama import read_llama_config
from finetuning.config.read_settings import config_from_dict
from finetuning.config.resolve import strategy_of_earlier
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.files.atomic import PRIVATE, write_text
from finetuning.files.documents import as_schema, read_yaml
from finetuning.i18n import t

# Of earlier versions: they changed no result but its rounding (docs/log.md, 2026-11-28).
RETIRED_SETTINGS = {"tensor_overlap", "prefetch_blocks"}
RETIRED_SCHEDULE = "zero_bubble"


@dataclass(frozen=True)
class MixedSource:
    """One source of a mixture, as it was found."""

    name: str  # of its columns in metrics.csv
    path: str
    part: int  # of the sum of all parts, how many samples are from here
    sources: dict[str, str]  # split -> JSONL file it was read from
    origin: str | None = None  # where it was fetched from, `org/name@COMMIT` or an address
    prompt_template: str | None = None
    system_prompt: str | None = None
    columns: str | None = None


@dataclass(frozen=True)
class Run:
    """A resolved run: the configuration and what the launching machine found out. Written to `run.yaml`."""

    config: RunConfig
    experiment_dir: str
    device: str  # cuda | cpu
    model_path: str  # local folder in Hugging Face format: config, weights, tokenizer
    tokens_dir: str  # tokenized samples, memory-mapped by every worker
    sources: dict[str, str]  # split -> JSONL file it was read from
    strategy: Strategy  # how it computes: what every "auto" became
    max_steps: int
    warmup_steps: int
    val_check_interval: int
    save_every_n_steps: int | None  # None: as often as costs little, see `training.save_rule`
    end_token_ids: tuple[int, ...]  # any of them ends a generated answer
    initial_weights: str | None  # a checkpoint whose weights are the start (--restore_config)
    identity: dict[str, Any]  # what must not change unnoticed between two launches of one experiment
    prompt_date: date = date(2024, 7, 26)  # which chat templates are told that ask for it; runs of before knew this one only
    learning_rate: float = EARLIER["lora"]  # the peak: given, by the rule, or that of the experiment so far
    nemo_model: str | None = None  # folder or archive that the base weights are read from, instead of model_path
    data_origin: str | None = None  # where the data were fetched from, `org/name@COMMIT` or an address; None: they were here
    mixture: tuple[MixedSource, ...] = ()  # of several; `sources` are then those of the first that has the split

    @property
    def origins(self) -> dict[str, str]:
        """What was fetched: as it was asked for -> where it is from."""
        given = {source.path: source.origin for source in self.mixture} or {self.config.dataset_path: self.data_origin}
        return {path: origin for path, origin in given.items() if origin is not None}

    @property
    def has_text(self) -> bool:
        """Whether any of the data are texts; Megatron's are tokens already."""
        return any(not file.endswith(".bin") for file in self.all_files)

    def files_of(self, split: str) -> dict[str, tuple[str, str | None]]:
        """Source of a mixture ("": there is one source) -> its file of a split, and its --columns."""
        if not self.mixture:
            return {"": (self.sources[split], self.config.columns)} if split in self.sources else {}
        return {each.name: (each.sources[split], each.columns) for each in self.mixture if split in each.sources}

    @property
    def all_files(self) -> list[str]:
        """Every file that samples are read from."""
        files = [file for source in self.mixture for file in source.sources.values()] or list(self.sources.values())
        return list(dict.fromkeys(files))


def write_run(run: Run, path: Path) -> None:
    """Writes `run.yaml`; `read_run` gives back an equal `Run`."""
    text = yaml.safe_dump(_plain(dataclasses.asdict(run)), allow_unicode=True, sort_keys=False, width=120)
    write_text(path, text, mode=PRIVATE)


def read_run(path: Path) -> Run:
    """What `write_run` wrote, also of earlier versions.

    Raises:
        InputError: the file is damaged, or of a version that knows other settings.
    """
    values = read_yaml(path, dict[str, Any])
    if not isinstance(values.get("config"), dict):
        raise InputError(t("{file}: not the settings of a run: {error}", file=path, error=t("no {name}", name="config")))
    for name in RETIRED_SETTINGS & values["config"].keys():
        del values["config"][name]
    if values["config"].get("pipeline_schedule") == RETIRED_SCHEDULE:
        values["config"]["pipeline_schedule"] = "1f1b"
    try:
        config = config_from_dict(values["config"], str(path))
    except InputError as error:  # some of its sentences name the flag alone
        named = (f"{path}: {problem.removeprefix(f'{path}: ')}" for problem in error.problems)
        raise InputError(list(named)) from None
    try:
        values.setdefault("learning_rate", config.lr if config.lr is not None else EARLIER[config.peft])
        if "strategy" not in values:  # of before there were strategies
            model = read_llama_config(Path(values["model_path"]))
            values["strategy"] = dataclasses.asdict(strategy_of_earlier(config, model, values, values["device"]))
    except (KeyError, TypeError) as error:
        raise InputError(t("{file}: not the settings of a run: {error}", file=path, error=error)) from None
    return as_schema({**values, "config": dataclasses.asdict(config)}, Run, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
