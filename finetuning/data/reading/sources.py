"""Where samples come from: the files of a data folder, and their records one batch after another.

Reads `.jsonl`, the same compressed by gzip (`.gz`) or Zstandard (`.zst`), and Parquet, whose rows count as lines. A line ends
at "\\n" and nowhere else: JSON may hold U+2028, U+0085 and other characters that some take for line ends. Memory is bounded by
the batch, whatever the size of the file, and whatever it unpacks to.
"""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from typing_extensions import override

from finetuning.data.reading.columns import Columns
from finetuning.data.reading.findings import Finding, Problem
from finetuning.data.reading.json_line import BYTE_ORDER_MARK
from finetuning.data.reading.records import TEXT, Sample, parse_line, parse_record
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.on_demand import needed_for

SPLITS = ("training", "validation", "test")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
BATCH_BYTES = 1 << 18
LARGEST_LINE_MIB = 8  # 128 K tokens are a megabyte of text or less; a line may take thirty times its size when it is parsed
# Zstandard makes 128 KiB of 4 bytes: what is fed to it at once may become 32 MiB.
FED_BYTES = 1 << 10
# Repeated lines shrink to a hundredth, with a long system prompt in each to a few hundredths of that; blanks to less.
MAX_RATIO, MIN_INFLATED = 1000, 16 << 20
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
ARRAY_START = re.compile(rb"\[\s*(\{|$)")


class RawBatch(NamedTuple):
    """Some lines of a file (bytes) or rows (dict), each with its number from 1."""

    file: str
    records: list[tuple[int, bytes | dict[str, Any]]]
    position: int  # bytes of the file read so far, for a progress bar


@dataclass(frozen=True)
class Source:
    """The file of one split; `is_shared`: one raw file that is still to be split 98/1/1."""

    path: Path
    is_shared: bool = False


def stem_of(path: Path) -> str | None:
    """The name without the ending of a data file; None: not a data file."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name.removesuffix(suffix)
    return None


def find_sources(path: Path) -> dict[str, Source]:
    """The file of each split.

    Raises:
        InputError: no such folder, or files that do not say which is which.
    """
    if path.is_file():
        if stem_of(path) is None:
            raise InputError(
                t("--dataset_path {path}: not a data file; use {suffixes}", path=path, suffixes=", ".join(SUFFIXES))
            )
        return {name: Source(path, is_shared=True) for name in SPLITS}
    if not path.is_dir():
        raise InputError(t("--dataset_path {path}: there is no such folder", path=path))
    files = sorted(file for file in path.iterdir() if file.is_file() and stem_of(file))
    named: dict[str, Source] = {}
    for name in SPLITS:
        found = [file for file in files if stem_of(file) == name]
        if len(found) > 1:
            raise InputError(
                t(
                    "--dataset_path {path}: {files} are for the same split; keep one",
                    path=path,
                    files=", ".join(file.name for file in found),
                )
            )
        if found:
            named[name] = Source(found[0])
    if "training" in named:
        return named
    raw = [file for file in files if stem_of(file) not in SPLITS]
    if len(raw) == 1 and not named:
        return {name: Source(raw[0], is_shared=True) for name in SPLITS}
    listed = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or t("nothing")
    raise InputError(
        t(
            "--dataset_path {path}: needs training.jsonl (and validation.jsonl, test.jsonl), or exactly one other .jsonl "
            "file to be split 98/1/1; found {found}",
            path=path,
            found=listed,
        )
    )


def fingerprint(sources: dict[str, Source]) -> str:
    """Changes with any byte of the files and with the way they are split."""
    digest = hashlib.sha256()
    contents: dict[Path, str] = {}
    for name, source in sources.items():
        if source.path not in contents:
            with source.path.open("rb") as file:
                contents[source.path] = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name} {contents[source.path]} {source.is_shared}\n".encode())
    return digest.hexdigest()[:16]


def read_batches(path: Path) -> Iterator[RawBatch | Finding]:
    """The records of a file in order, in batches; a finding where the file itself cannot be read on, or holds none."""
    name, is_empty = path.name, True
    try:
        for batch in _read_rows(path) if name.endswith(".parquet") else _read_lines(path):
            is_empty = False
            yield batch
    except (OSError, EOFError, zlib.error) as error:
        yield Finding("unreadable", name, 0, {"reason": str(error) or type(error).__name__})
        return
    if is_empty:
        yield Finding("no_records", name, 0, {})


def begins_with_text(path: Path, columns: Columns = ()) -> bool:
    """Whether the first record of a file is a text without a question, for which a base model will do."""
    first = next(iter(read_batches(path)), None)
    return isinstance(first, RawBatch) and parse(first.records[0][1], first.records[0][0], columns=columns)[1] == TEXT


def read_samples_at(path: Path, lines: set[int], columns: Columns = ()) -> dict[int, Sample]:
    """The samples of some lines; lines without a usable sample are left out."""
    samples: dict[int, Sample] = {}
    last = max(lines, default=0)
    for batch in read_batches(path):
        if isinstance(batch, Finding):
            continue
        for number, record in batch.records:
            if number in lines:
                sample = parse(record, number, columns=columns)[0]
                if sample is not None:
                    samples[number] = sample
        if not batch.records or batch.records[-1][0] >= last:
            break
    return samples


def parse(
    record: bytes | dict[str, Any], line: int, *, needs_answer: bool = True, columns: Columns = ()
) -> tuple[Sample | None, str, list[Problem]]:
    """`parse_line` or `parse_record`, as the record needs it."""
    read: Callable[..., tuple[Sample | None, str, list[Problem]]] = parse_line if isinstance(record, bytes) else parse_record
    return read(record, line, needs_answer=needs_answer, columns=columns)


@contextmanager
def _open_lines(path: Path) -> Iterator[tuple[io.BufferedReader, IO[bytes]]]:
    """The decompressed bytes of a file, and the file itself, whose position tells how far it is read."""
    with path.open("rb") as file:
        if path.suffix == ".gz":
            with gzip.open(file) as lines:
                yield io.BufferedReader(lines, BATCH_BYTES), file
        elif path.suffix == ".zst":
            yield io.BufferedReader(_ZstandardFile(file), BATCH_BYTES), file
        else:
            yield file, file


class _ZstandardFile(io.RawIOBase):
    """Reads Zstandard frames one after another; unlike the library's own reader, notices when the last one is cut off."""

    def __init__(self, file: IO[bytes]):
        with needed_for(t("data compressed by Zstandard")):
            import zstandard
        self.file = file
        self.library = zstandard
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.is_inside = False  # of a frame
        self.ready = b""

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            compressed = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.is_inside = self.library.ZstdDecompressor().decompressobj(), False
            compressed = compressed or self.file.read(FED_BYTES)
            if not compressed:
                if self.is_inside:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            self.is_inside = True
            try:
                self.ready = self.frame.decompress(compressed)
            except self.library.ZstdError as error:
                raise OSError(str(error)) from None
        count = min(len(self.ready), len(buffer))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def _read_lines(path: Path) -> Iterator[RawBatch | Finding]:
    name, limit = path.name, LARGEST_LINE_MIB << 20
    records: list[tuple[int, bytes | dict[str, Any]]] = []
    size = unpacked = number = 0
    is_first, ends_early = True, None
    with _open_lines(path) as (lines, packed):
        while raw := lines.readline(limit):
            number += 1
            unpacked += len(raw)
            is_blank = not raw.removeprefix(BYTE_ORDER_MARK).strip()
            if is_first and not is_blank and (problem := _look_at_first(raw)):
                yield Finding(problem, name, number, {})
                return
            is_first = is_first and is_blank
            if len(raw) == limit:
                ends_early = Finding("line_too_large", name, number, {"limit_mib": LARGEST_LINE_MIB})
                break
            if is_blank:
                blank = _blank_lines(lines)
                number += blank.count(b"\n")
                unpacked += len(blank)
            else:
                records.append((number, raw))
                size += len(raw)
            if size >= BATCH_BYTES:
                yield RawBatch(name, records, packed.tell())
                records, size = [], 0
            if lines is not packed and unpacked > max(MIN_INFLATED, MAX_RATIO * packed.tell()):
                ends_early = Finding("inflates", name, number, {"times": MAX_RATIO})
                break
        if records:  # also those before a line that ends the reading: everything that is wrong is told at once
            yield RawBatch(name, records, packed.tell())
        if ends_early is not None:
            yield ends_early


def _blank_lines(lines: io.BufferedReader) -> bytes:
    """Reads the blank lines that are in the buffer: there may be millions, and one at a time takes too long."""
    ahead = lines.peek()
    blank = ahead[: len(ahead) - len(ahead.lstrip())]
    return lines.read(blank.rfind(b"\n") + 1)


def _look_at_first(line: bytes) -> str | None:
    """What the first line with anything on it tells of the whole file."""
    if line.startswith(UTF_16_MARKS) or 8 < line[:64].count(0) < len(line[:64]):
        return "utf_16"
    return "json_array" if ARRAY_START.match(line.removeprefix(BYTE_ORDER_MARK).strip()) else None


def _read_rows(path: Path) -> Iterator[RawBatch | Finding]:
    with needed_for(t("data in Parquet files")):
        import pyarrow  # takes a tenth of a second

        from finetuning.data.reading.parquet_rows import read_rows

    size = path.stat().st_size
    try:
        for rows in read_rows(path, LARGEST_LINE_MIB << 20, max(MIN_INFLATED, MAX_RATIO * size)):
            if isinstance(rows, Finding):
                yield rows
            else:
                yield RawBatch(path.name, list(rows[0]), int(size * rows[1]))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        yield Finding("unreadable", path.name, 0, {"reason": str(error).partition("\n")[0]})
