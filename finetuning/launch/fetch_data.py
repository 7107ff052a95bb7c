"""Data that are not here: from the Hugging Face hub by name, or from an object store by address.

In: what `--dataset_path` names. Out: a local folder with a file a split, fetched once and kept beside the tokens, until what it
was fetched from changes. What is here is used as it stands. A token or key is used on the launching machine and nowhere else.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from finetuning.config.mixture import is_here
from finetuning.data.reading.json_array import read_json_array
from finetuning.data.reading.sources import ARRAY_START, SUFFIXES, stem_of
from finetuning.data.tokens.configure import build_once
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.launch.hub_data import DATASET_NAME, data_on_hub, download
from finetuning.on_demand import needed_for

FETCHED = "data-"  # begins the names of the folders
ADDRESS = re.compile(r"(?P<protocol>[a-z][a-z0-9+]*)://.+")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
JSON = ".json"  # lines, or one array
KINDS = (*SUFFIXES, JSON)
RAW = "raw"  # the only file where none says which split it is
# Words of the name of a file, or of the folders that it is in.
SPLIT_WORDS = {
    "training": ("training", "train"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


class Located(NamedTuple):
    path: str  # of this machine
    origin: str | None  # where it was fetched from: `org/name@COMMIT`, or an address; None: it was here


def locate_data(path: str, token: str | None, folder: Path, pins: Mapping[str, str]) -> Located:
    """
    Args:
        path: a path, a name on the hub with `:config` and `@revision` after it, or an address.
        folder: where fetched data are kept.
        pins: what an experiment that goes on has fetched before, path -> origin: its commit stays.

    Raises:
        InputError: there is no such data set or object, no access to it, or nobody answers.
    """
    if is_here(path):
        return Located(path, None)
    if ADDRESS.fullmatch(path):
        return _from_store(path, folder)
    named = DATASET_NAME.fullmatch(path)
    if named is None or Path(path).parent.is_dir() or stem_of(Path(path)) is not None:
        return Located(path, None)  # whose absence is told where it is read
    name, revision, before = named["name"], named["revision"], pins.get(path, "")
    if revision is None and before.startswith(f"{name}@"):
        revision = before.rpartition("@")[2]
    data = data_on_hub(name, revision, token)
    files = data.files_of(named["config"])
    splits = _by_words(files) if isinstance(files, list) else _only_data(files)
    if not splits:
        raise InputError(_no_data_files(path, data.files))
    origin = f"{name}@{data.commit}"

    def build(temporary: Path) -> None:
        snapshot = download(data, [file for files in splits.values() for file in files], token)
        _assemble({split: [snapshot / file for file in files] for split, files in splits.items()}, temporary, path)

    target = folder / f"{FETCHED}{_digest(origin, splits)}"
    build_once(target, build)
    return Located(str(target), origin)


def _from_store(address: str, folder: Path) -> Located:
    protocol = address.partition("://")[0]
    with needed_for(t("data at {address}", address=address)):
        import fsspec
    try:
        store, place = fsspec.url_to_fs(address)
        found = [place] if store.isfile(place) else store.find(place, maxdepth=1) if store.isdir(place) else []
        states = {file: str(store.checksum(file)) for file in sorted(found) if file.endswith(KINDS)}
    except ImportError:
        raise InputError(
            t(
                "--dataset_path {path}: {protocol}:// needs a package: pip install {package}",
                path=address,
                protocol=protocol,
                package=PACKAGES.get(protocol, "fsspec"),
            )
        ) from None
    except ValueError as error:  # no such protocol
        raise InputError(t("--dataset_path {path}: {error}", path=address, error=error)) from None
    except OSError as error:
        raise InputError(_unreachable(address, error)) from None
    if not states:
        raise InputError(_no_data_files(address, sorted(Path(file).name for file in found)))

    def build(temporary: Path) -> None:
        scratch = temporary / ".fetched"
        scratch.mkdir(parents=True)
        for file in states:
            try:
                store.get_file(file, str(scratch / Path(file).name))
            except OSError as error:
                raise InputError(_unreachable(address, error)) from None
        splits = _by_words([Path(file).name for file in states])
        _assemble({split: [scratch / name for name in names] for split, names in splits.items()}, temporary, address)
        shutil.rmtree(scratch)

    target = folder / f"{FETCHED}{_digest(address, states)}"
    build_once(target, build)
    return Located(str(target), address)


def _by_words(files: Sequence[str]) -> dict[str, list[str]]:
    """The data files of each split by their names; all as one, where no name says anything."""
    kept = [file for file in files if file.endswith(KINDS)]
    found: dict[str, list[str]] = {}
    for file in kept:
        name, folders = Path(file).name.lower(), str(Path(file).parent).lower()
        named = [split for text in (name, folders) for split, words in SPLIT_WORDS.items() if _has_word(text, words)]
        if named:
            found.setdefault(named[0], []).append(file)
    return found or ({RAW: kept} if kept else {})


def _has_word(text: str, words: Sequence[str]) -> bool:
    return re.search(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", text) is not None


def _only_data(splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    kept = {split: [file for file in files if file.endswith(KINDS)] for split, files in splits.items() if split in SPLIT_WORDS}
    return {split: files for split, files in kept.items() if files}


def _assemble(splits: Mapping[str, Sequence[Path]], folder: Path, given: str) -> None:
    """Writes one file a split; several of one kind become one, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, files in splits.items():
        kinds = {next(kind for kind in KINDS if file.name.endswith(kind)) for file in files}
        if len(kinds) > 1:
            raise InputError(
                t(
                    "--dataset_path {path}: the {split} data are of several kinds ({kinds}); one is read",
                    path=given,
                    split=split,
                    kinds=", ".join(sorted(kinds)),
                )
            )
        (kind,) = kinds
        target = folder / f"{split}{'.jsonl' if kind == JSON else kind}"
        if kind == JSON:
            _join_json(files, target)
        elif len(files) == 1:
            _copy(files[0], target)
        elif kind == ".parquet":
            _join_parquet(files, target)
        else:
            _join_lines(files, target, kind)


def _copy(file: Path, target: Path) -> None:
    """Without using room where it can: the hub's cache has links, whose name says nothing, to the file itself."""
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)


def _join_json(files: Sequence[Path], target: Path) -> None:
    with target.open("w", encoding="utf-8") as out:
        for file in files:
            with file.open("rb") as beginning:
                is_array = ARRAY_START.match(beginning.read(256).lstrip().partition(b"\n")[0].strip()) is not None
            if is_array:
                out.writelines(f"{line}\n" for line in read_json_array(file))
            else:
                out.write(file.read_text(encoding="utf-8").rstrip("\n") + "\n")


def _join_lines(files: Sequence[Path], target: Path, kind: str) -> None:
    """Compressed files may follow each other as they are; a line feed between, lest two records share a line."""
    feed = b"\n"
    if kind == ".jsonl.gz":
        feed = gzip.compress(feed, mtime=0)
    elif kind == ".jsonl.zst":
        with needed_for(t("data compressed by Zstandard")):
            import zstandard
        feed = zstandard.compress(feed)
    with target.open("wb") as out:
        for file in files:
            with file.open("rb") as one:
                shutil.copyfileobj(one, out)
            out.write(feed)


def _join_parquet(files: Sequence[Path], target: Path) -> None:
    with needed_for(t("data in Parquet files")):
        import pyarrow
        from pyarrow import parquet

    try:
        with parquet.ParquetWriter(target, parquet.read_schema(files[0])) as out:
            for file in files:
                for batch in parquet.ParquetFile(file).iter_batches():
                    out.write_batch(batch)
    except (pyarrow.ArrowException, ValueError) as error:
        raise InputError(
            t("{path}: cannot be joined with the others: {error}", path=file.name, error=str(error).partition("\n")[0])
        ) from None


def _digest(origin: str, facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps([origin, facts], default=list).encode()).hexdigest()[:16]


def _no_data_files(given: str, files: Sequence[str]) -> str:
    return t(
        "--dataset_path {path}: has no data file ({suffixes}) there; found {found}",
        path=given,
        suffixes=", ".join(KINDS),
        found=", ".join(files[:10]) or t("nothing"),
    )


def _unreachable(address: str, error: OSError) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return t("--dataset_path {path}: cannot be read: {reason}", path=address, reason=reason)
