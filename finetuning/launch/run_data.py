"""The data of a run, on the launching machine: one data set or a mixture, and what the run has to know of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetuning.config.llama import LlamaConfig
from finetuning.config.mixture import Entry, read_mixture
from finetuning.config.run import MixedSource, Run, read_run
from finetuning.config.settings import RunConfig
from finetuning.data.batches.order import samples_of_step
from finetuning.data.batches.source_order import SourceOrder
from finetuning.data.tokens.configure import Dataset, check_files, configure_dataset, find_megatron
from finetuning.data.tokens.mixture import configure_mixture
from finetuning.data.tokens.tokenized import MixedSplit, Split
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.fetch_data import Located, locate_data
from finetuning.plan.workload import Workload, workload_of

SURVEYED_SAMPLES = 4096  # whose lengths tell what a step takes
# Those that decide about the tokens.
SAMPLE_SETTINGS = (
    "seq_length",
    "prompt_template",
    "system_prompt",
    "truncation",
    "skip_bad_samples",
    "train_on",
    "columns",
)


@dataclass(frozen=True)
class RunData:
    """The data set of a run, and where it is from."""

    dataset: Dataset
    given: dict[str, str]  # source of a mixture -> its path as it was given
    origins: dict[str, str | None]  # source (of one data set: "") -> where it was fetched from


def find_dataset(
    config: RunConfig,
    token: str | None,
    model_path: Path | None,
    model: LlamaConfig | None,
    tokens_dir: Path,
    experiment_dir: Path,
    problems: list[str],
) -> RunData | None:
    """The data set, or None with its problems added; without a readable model the files are checked all the same."""
    try:
        entries = read_mixture(config.dataset_path)
        pins = _fetched_before(experiment_dir)
        located = {
            entry.name: locate_data(entry.path, token, tokens_dir, pins)
            for entry in entries or [Entry("", config.dataset_path)]
        }
        here = [entry._replace(path=located[entry.name].path) for entry in entries]
        if model_path is None or model is None:
            problems += _check_files(config, here, located)
            return None
        how = {name: getattr(config, name) for name in SAMPLE_SETTINGS}
        if entries:
            dataset = configure_mixture(here, model_path, tokens_dir, **how)
        else:
            dataset = configure_dataset(located[""].path, model_path, tokens_dir, **how)
        origins = {name: each.origin for name, each in located.items()}
        return RunData(dataset, {entry.name: entry.path for entry in entries}, origins)
    except InputError as error:
        problems += error.problems
    except OSError as error:
        problems.append(file_problem(error, config.dataset_path))
    return None


def mixture_of(data: RunData) -> tuple[MixedSource, ...]:
    return tuple(
        MixedSource(
            source.entry.name,
            data.given[source.entry.name],
            source.part,
            {name: str(each.path.resolve()) for name, each in source.dataset.sources.items()},
            data.origins[source.entry.name],
            source.entry.prompt_template,
            source.entry.system_prompt,
            source.entry.columns,
        )
        for source in data.dataset.mixture
    )


def samples_of_epoch(split: Split) -> int:
    return split.shares.epoch if split.shares is not None else len(split)


def mean_sample(split: Split) -> float:
    """Tokens of a sample, in the mean of what a step trains."""
    if not isinstance(split, MixedSplit):
        return split.num_tokens / len(split)
    parts = split.shares.parts
    means = [source.num_tokens / len(source) for source in split.sources]
    return sum(part * mean for part, mean in zip(parts, means, strict=True)) / sum(parts)


def work_of(split: Split, config: RunConfig) -> Workload:
    """What a step trains, in the mean of the first ones."""
    drawn = samples_of_step(0, max(config.global_batch_size, SURVEYED_SAMPLES), len(split), config.seed, split.shares)
    return workload_of(split.lengths[drawn], int(split.answer_tokens[drawn].sum()), config.global_batch_size)


def unused_source(run: Run) -> str | None:
    """Of a mixture, a source that has no sample in the whole run."""
    if not run.mixture:
        return None
    counts = SourceOrder(tuple(source.part for source in run.mixture)).counts(run.max_steps * run.config.global_batch_size)
    unused = [source.name for source, count in zip(run.mixture, counts, strict=True) if count == 0]
    if not unused:
        return None
    return t(
        "--dataset_path: {names} would have no sample in {steps} step{steps:s} of {batch}; give it a larger share",
        names=", ".join(unused),
        steps=run.max_steps,
        batch=run.config.global_batch_size,
    )


def mixture_in_words(dataset: Dataset) -> str | None:
    """What the order of a mixture depends on; None: there is one source, as in all runs of earlier versions."""
    parts = [f"{source.entry.name} {source.part}" for source in dataset.mixture]
    return ", ".join(parts) or None


def template_of(dataset: Dataset) -> str:
    """The fingerprint of what is written around the texts; of each source of a mixture, where they differ."""
    datasets = [source.dataset for source in dataset.mixture] or [dataset]
    return "+".join(dict.fromkeys(each.prompt_format.fingerprint for each in datasets))


def file_problem(error: OSError, given: str) -> str:
    """`given` stands in for the file's name, which an error in the middle of a file does not know."""
    return t("{file}: cannot be read or written: {reason}", file=error.filename or given, reason=error.strerror or error)


def _fetched_before(experiment_dir: Path) -> dict[str, str]:
    """What an experiment that goes on has fetched; nothing where it begins, or its run.yaml is damaged and made anew."""
    try:
        return read_run(experiment_dir / "run.yaml").origins
    except (FileNotFoundError, InputError):
        return {}


def _check_files(config: RunConfig, entries: Sequence[Entry], located: Mapping[str, Located]) -> list[str]:
    if not entries:
        return check_files(Path(located[""].path), config.columns)
    return [
        f"{entry.name}: {problem}"
        for entry in entries
        if not find_megatron(Path(entry.path))
        for problem in check_files(Path(entry.path), entry.columns if entry.columns is not None else config.columns)
    ]
