"""What `--dataset_path` names: one data set, or several of which each step has its share (a mixture).

In: the flag's text, `a:0.7,b:0.3`, a YAML file, or a list in the file of `--config`. Out: an `Entry` for each source; none
where it is a single data set. A path that is there wins over every other reading. What lies at the paths, others find out.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import as_schema, parse_yaml, read_yaml
from finetuning.i18n import t

YAML_SUFFIXES = (".yaml", ".yml")
MAX_MIXTURE_BYTES = 2**18
WEIGHTED = re.compile(r"(?P<path>.+?):(?P<weight>\d+\.?\d*|\.\d+)(?:,|$)")
NOT_IN_NAMES = re.compile(r"[^\w.\-]+")  # a name is part of a column of metrics.csv
DATA_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".bin", ".idx")
COUNTS = ("weight", "samples", "epochs")


class Entry(NamedTuple):
    """One source of a mixture, as it was asked for: by `weight`, or by a number of samples or epochs in each epoch."""

    name: str  # of its columns in metrics.csv
    path: str
    weight: Fraction | None = None
    samples: int | None = None
    epochs: Fraction | None = None
    prompt_template: str | None = None  # these three: None: as the flags say
    system_prompt: str | None = None
    columns: str | None = None


@dataclass(frozen=True)
class Division:
    """How the samples of a mixture are divided."""

    parts: tuple[int, ...]  # of each sum(parts) samples, how many are of each source
    epoch: int  # samples of an epoch


def read_mixture(text: str) -> list[Entry]:
    """The sources that `--dataset_path` names; none: it is one data set.

    Raises:
        InputError: it is no mixture and cannot be a path, or an entry of it is wrong; all problems at once.
    """
    path = Path(text)
    if path.suffix in YAML_SUFFIXES and path.is_file():
        return _from_list(read_yaml(path, object, max_bytes=MAX_MIXTURE_BYTES), path, path.parent)
    if is_here(text):
        return []
    if text.startswith("["):
        return _from_list(parse_yaml(text, Path("--dataset_path")), Path("--dataset_path"), Path())
    if "," in text:
        return _from_text(text)
    single = WEIGHTED.fullmatch(text)
    if single is not None and is_here(single["path"]):
        raise InputError(
            t("--dataset_path {text}: a weight has no effect on one data set; give {path}", text=text, path=single["path"])
        )
    return []


def as_text(entries: list[Any]) -> str:
    """A list of a YAML file of settings as the flag's text."""
    return json.dumps(entries, ensure_ascii=False)


def is_here(text: str) -> bool:
    """Whether a file or folder of this name is here, or Megatron data with this prefix."""
    return Path(text).exists() or (bool(text) and Path(f"{text}.idx").is_file())


def divide(entries: Sequence[Entry], sizes: Sequence[int]) -> Division:
    """
    By weights, an epoch ends before a source would have to repeat a sample; by samples and epochs, it has all that were asked.

    Example: weights 0.7 and 0.3, 100 and 30 samples -> parts 7 and 3, epochs of 100 samples: 70 and all 30.
    """
    if entries[0].weight is not None:
        weights = [entry.weight or Fraction(0) for entry in entries]
        parts = _whole(weights)
        epoch = min(size * sum(parts) // part for size, part in zip(sizes, parts, strict=True))
        return Division(parts, max(1, epoch))
    counts = [
        entry.samples or max(1, round((entry.epochs or Fraction(0)) * size)) for entry, size in zip(entries, sizes, strict=True)
    ]
    return Division(_whole([Fraction(count) for count in counts]), sum(counts))


def _whole(numbers: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers that are to each other as these."""
    denominator = math.lcm(*(number.denominator for number in numbers))
    whole = [int(number * denominator) for number in numbers]
    divisor = math.gcd(*whole)
    return tuple(number // divisor for number in whole)


def _from_text(text: str) -> list[Entry]:
    found: list[tuple[str, str]] = []
    position, problems = 0, []
    while position < len(text):
        entry = WEIGHTED.match(text, position)
        if entry is None:
            problems.append(
                t(
                    "--dataset_path {text}: there is no such file or folder, and as a mixture {entry!r} lacks its weight: "
                    "PATH:WEIGHT,PATH:WEIGHT",
                    text=text,
                    entry=text[position:],
                )
            )
            break
        whole = entry[0].removesuffix(",")
        if is_here(whole):
            problems.append(
                t(
                    "--dataset_path {text}: {entry!r} is itself a path here, and so has no weight; name the sources in a YAML "
                    "file, where each path stands by itself",
                    text=text,
                    entry=whole,
                )
            )
        found.append((_at_home(entry["path"]), entry["weight"]))
        position = entry.end()
    if problems:
        raise InputError(problems)
    names = _names([path for path, _ in found])
    entries = [Entry(name, path, Fraction(weight)) for name, (path, weight) in zip(names, found, strict=True)]
    return _checked(entries, f"--dataset_path {text}")


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of a YAML list."""

    path: str
    weight: int | float | None = None
    samples: int | None = None
    epochs: int | float | None = None
    name: str | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    columns: str | None = None


def _from_list(value: object, file: Path, folder: Path) -> list[Entry]:
    """Paths are those seen from `folder`."""
    if not isinstance(value, list) or not value:
        raise InputError(t("{file}: a mixture is a list of sources, each with its path and weight", file=file))
    problems: list[str] = []
    given: list[_Given] = []
    for number, entry in enumerate(value, 1):
        try:
            given.append(as_schema(entry, _Given, Path(t("{file}, source {number}", file=file, number=number))))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    problems = [problem for entry in given if (problem := _in_two_places(folder, entry.path))]
    if problems:
        raise InputError(problems)
    names = _names([entry.path for entry in given])
    entries = [
        Entry(
            entry.name if entry.name is not None else name,
            _seen_from(folder, entry.path),
            None if entry.weight is None else _exact(entry.weight),
            entry.samples,
            None if entry.epochs is None else _exact(entry.epochs),
            entry.prompt_template,
            entry.system_prompt,
            entry.columns,
        )
        for entry, name in zip(given, names, strict=True)
    ]
    return _checked(entries, str(file))


def _checked(entries: list[Entry], where: str) -> list[Entry]:
    problems = []
    for entry in entries:
        counts = [(name, getattr(entry, name)) for name in COUNTS if getattr(entry, name) is not None]
        if len(counts) != 1:
            problems.append(
                t("{where}: source {name} needs one of weight, samples and epochs, and no other", where=where, name=entry.name)
            )
        problems += [
            t("{where}: source {name}: {count} must be greater than 0", where=where, name=entry.name, count=count)
            for count, value in counts
            if value <= 0
        ]
        if NOT_IN_NAMES.search(entry.name) or not entry.name:
            problems.append(
                t(
                    "{where}: the name {name!r} of a source may have letters, digits, '.', '-' and '_' only",
                    where=where,
                    name=entry.name,
                )
            )
    weighted = [entry.name for entry in entries if entry.weight is not None]
    if weighted and len(weighted) < len(entries):
        problems.append(
            t(
                "{where}: {names} with a weight and others without; give all sources weights, or none",
                where=where,
                names=", ".join(weighted),
            )
        )
    for what in ("path", "name"):
        values = [getattr(entry, what) for entry in entries]
        problems += [
            t("{where}: {value} stands twice; each source needs its own {what}", where=where, value=value, what=what)
            for value in dict.fromkeys(values)
            if values.count(value) > 1
        ]
    if problems:
        raise InputError(problems)
    return entries


def _exact(number: float) -> Fraction:
    """As it was written: 0.7 is seven tenths. Not a number and infinity are 0, which is refused."""
    return Fraction(str(number)) if math.isfinite(number) else Fraction(0)


def _seen_from(folder: Path, path: str) -> str:
    """A path of a YAML file; what is not here stays as it is, for it may be a name on the hub or an address."""
    path = _at_home(path)
    if Path(path).is_absolute() or "://" in path:
        return path
    beside = str(folder / path)
    return beside if is_here(beside) or path.startswith(".") else path


def _in_two_places(folder: Path, path: str) -> str | None:
    beside = folder / path
    if not (is_here(str(beside)) and is_here(path)) or beside.resolve() == Path(path).resolve():
        return None
    return t(
        "{path} is there twice, as {first} and as {second}; give the whole path",
        path=path,
        first=beside,
        second=Path(path).resolve(),
    )


def _at_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _names(paths: Sequence[str]) -> list[str]:
    """A short name for each: the last part of its path; where several are the same, with the part before, or a number."""
    short = [_name(path, 1) for path in paths]
    longer = [_name(path, 2) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
    return [f"{name}_{longer[:place].count(name) + 1}" if longer.count(name) > 1 else name for place, name in enumerate(longer)]


def _name(path: str, parts: int) -> str:
    last = path.rstrip("/").split("://")[-1].split("/")[-parts:]
    suffix = next((suffix for suffix in DATA_SUFFIXES if last[-1].endswith(suffix)), "")
    last[-1] = last[-1].removesuffix(suffix)
    return NOT_IN_NAMES.sub("_", "_".join(last)).strip("_") or "data"
