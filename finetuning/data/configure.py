"""The data set of a run: which files, which split, which prompt format, and everything that is wrong with it.

`configure_dataset` is the specification's name. It reads and tokenises on the launching machine, before anything is
started; the workers only see the arrays it leaves behind (`finetuning.data.tokenized`).
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetuning.data.jsonl import Sample, read_samples
from finetuning.data.template import PromptFormat, check_against_chat_template, load_prompt_format
from finetuning.data.tokenized import TokenizedSplit, open_split, write_split
from finetuning.errors import InputError
from finetuning.i18n import t

SPLITS = ("training", "validation", "test")
LISTED_PROBLEMS = 20
SPLIT_SEED = 98_1_1  # of the 98/1/1 split of a raw file; fixed, so that it never depends on the run


@dataclass(frozen=True)
class Source:
    """The JSONL file of one split, and which of its good lines belong to it (None: all)."""

    path: Path
    lines: frozenset[int] | None = None


@dataclass(frozen=True)
class Dataset:
    """A checked, tokenised data set."""

    folder: Path  # of the arrays, one folder a split
    sources: dict[str, Source]
    prompt_format: PromptFormat
    splits: dict[str, TokenizedSplit]
    was_split: bool  # a raw file was split 98/1/1
    fingerprint: str  # of the files' bytes and the split
    example: Sample  # the first training sample


def configure_dataset(
    dataset_path: str | Path, model_path: str | Path, tokens_dir: str | Path, *, seq_length: int,
    prompt_template: str | None = None, system_prompt: str | None = None,
) -> Dataset:  # fmt: skip
    """Finds, checks and tokenises the data set of a run.

    Args:
        dataset_path: folder with training.jsonl (and validation.jsonl, test.jsonl), or with one raw .jsonl, which is
            split 98/1/1; or the path of that raw file.
        model_path: local model folder in Hugging Face format; only its tokenizer is read.
        tokens_dir: where the arrays go, in a sub-folder named by content; reused when it is there.
        seq_length: longest sample, in tokens.
        prompt_template: text with {input} and {output}; None: the tokenizer's chat template.
        system_prompt: system message of the chat template.

    Raises:
        InputError: listing the problems, at most LISTED_PROBLEMS lines of each file.
    """
    sources, samples, was_split = read_dataset(Path(dataset_path))
    prompt_format = load_prompt_format(Path(model_path), prompt_template, system_prompt)
    if prompt_template is None:
        check_against_chat_template(prompt_format, Path(model_path), system_prompt, samples["training"])
    fingerprint = _fingerprint(sources)
    key = hashlib.sha256(f"{fingerprint} {prompt_format.fingerprint} {seq_length}".encode()).hexdigest()[:16]
    folder = Path(tokens_dir) / key
    if not folder.is_dir():
        _tokenize(folder, sources, samples, prompt_format, seq_length)
    splits = {name: open_split(folder / name) for name in sources}
    return Dataset(folder, sources, prompt_format, splits, was_split, fingerprint, samples["training"][0])


def read_dataset(path: Path) -> tuple[dict[str, Source], dict[str, list[Sample]], bool]:
    """Source and samples of each split, and whether a raw file was split.

    Raises:
        InputError: listing the problems, at most LISTED_PROBLEMS lines of each file.
    """
    sources, was_split = find_sources(path)
    samples: dict[str, list[Sample]] = {}
    problems: list[str] = []
    for file in dict.fromkeys(source.path for source in sources.values()):
        found, wrong = read_samples(file)
        problems += _shorten(wrong, file)
        if not found and not wrong:
            problems.append(t("{path}: holds no samples", path=file))
        if was_split and not problems:
            sources = _split_lines(file, [sample.line for sample in found])
        for name, source in sources.items():
            if source.path == file:
                samples[name] = [sample for sample in found if source.lines is None or sample.line in source.lines]
    if problems:
        raise InputError(problems)
    return sources, samples, was_split


def find_sources(path: Path) -> tuple[dict[str, Source], bool]:
    """The file of each split, and whether they are still to be split from one raw file."""
    if path.is_file():
        return {name: Source(path) for name in SPLITS}, True
    if not path.is_dir():
        raise InputError(t("--dataset_path {path}: there is no such folder", path=path))
    named = {name: Source(path / f"{name}.jsonl") for name in SPLITS if (path / f"{name}.jsonl").is_file()}
    if "training" in named:
        return named, False
    raw = sorted(file for file in path.glob("*.jsonl") if file.stem not in SPLITS)
    if len(raw) == 1 and not named:
        return {name: Source(raw[0]) for name in SPLITS}, True
    found = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or t("nothing")
    raise InputError(
        t("--dataset_path {path}: needs training.jsonl (and validation.jsonl, test.jsonl), or exactly one other .jsonl "
          "file to be split 98/1/1; found {found}", path=path, found=found)
    )  # fmt: skip


def _split_lines(path: Path, lines: list[int]) -> dict[str, Source]:
    """98/1/1 by a fixed shuffle of the good lines; at least one sample each for validation and test."""
    if len(lines) < 3:
        raise InputError(t("{path}: {count} samples cannot be split into training, validation and test; 3 are needed",
                           path=path, count=len(lines)))  # fmt: skip
    words = np.random.PCG64(SPLIT_SEED).random_raw(len(lines))
    shuffled = [lines[index] for index in np.argsort(words, kind="stable")]
    held_out = max(1, round(len(lines) * 0.01))
    return {
        "training": Source(path, frozenset(shuffled[2 * held_out :])),
        "validation": Source(path, frozenset(shuffled[:held_out])),
        "test": Source(path, frozenset(shuffled[held_out : 2 * held_out])),
    }


def _tokenize(
    folder: Path, sources: dict[str, Source], samples: dict[str, list[Sample]], prompt_format: PromptFormat, seq_length: int
) -> None:
    """Writes the arrays of all splits; the folder appears only when they are complete."""
    temporary = folder.with_name(folder.name + ".incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    problems: list[str] = []
    for name, source in sources.items():
        tokenized, too_long = [], []
        for sample in samples[name]:
            tokens, prompt_length = prompt_format.encode(sample.input, sample.output)
            if len(tokens) > seq_length:
                too_long.append(
                    t("{file}:{line}: {tokens} tokens ({prompt} of them prompt) do not fit --seq_length {seq_length}; "
                      "the answer would be cut; shorten it or give --seq_length {needed} or more",
                      file=source.path.name, line=sample.line, tokens=len(tokens), prompt=prompt_length,
                      seq_length=seq_length, needed=len(tokens))
                )  # fmt: skip
            trained = [position >= prompt_length for position in range(len(tokens))]
            tokenized.append((tokens, trained, sample.line))
        problems += _shorten(too_long, source.path)
        write_split(temporary / name, tokenized)
    if problems:
        shutil.rmtree(temporary)
        raise InputError(problems)
    temporary.rename(folder)


def _fingerprint(sources: dict[str, Source]) -> str:
    digest = hashlib.sha256()
    for name, source in sources.items():
        with source.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name} {content} {sorted(source.lines or [])}\n".encode())
    return digest.hexdigest()[:16]


def _shorten(problems: list[str], path: Path) -> list[str]:
    if len(problems) <= LISTED_PROBLEMS:
        return problems
    rest = len(problems) - LISTED_PROBLEMS
    return [*problems[:LISTED_PROBLEMS], t("{file}: and {rest} more lines like these", file=path.name, rest=rest)]
