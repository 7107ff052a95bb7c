"""The rows of a Parquet file as records, a few at a time.

A file of a kilobyte may hold one text of megabytes in each of a million rows. So texts stay references into their dictionary
until it is known how large they are, and as few rows are unpacked at once as fit `SLICE_BYTES`.
"""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow import parquet, types

from finetuning.data.reading.findings import Finding, excerpt

BATCH_ROWS = 512
SLICE_BYTES = 1 << 20
# As a key of the footer (Thrift's compact protocol: a text of 12 bytes), and as one that pyarrow does not know.
ARROW_SCHEMA, NO_SCHEMA = b"\x18\x0cARROW:schema", b"\x18\x0cARROW-schema"

Row = tuple[int, dict[str, Any]]  # its number from 1, and its fields that are not null


def read_rows(path: Path, max_row_bytes: int, max_bytes: int) -> Iterator[tuple[list[Row], float] | Finding]:
    """Some rows and the share of the file that is read with them; a finding where there is something else to say.

    `max_bytes` is what all rows together may take.

    Raises:
        pyarrow.ArrowException, OSError, UnicodeDecodeError: the file is damaged.
    """
    with parquet.ParquetFile(path) as file:
        total = max(file.metadata.num_rows, 1)
        names = file.schema_arrow.names
        texts = [column.path for column in _columns(file) if column.physical_type == "BYTE_ARRAY"]
        inflates = _unpacked_size(file.metadata) > max_bytes
        has_fixed_lists = any(_has_fixed_list(field.type) for field in file.schema_arrow)
    for name in [name for name, count in Counter(names).items() if count > 1][:1]:
        yield Finding("duplicate_key", path.name, 0, {"name": excerpt(name)})
    number = read = 0
    metadata = _without_arrow_schema(path) if has_fixed_lists else None
    with parquet.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS) if not inflates else ():
            for rows, size in _small_slices(batch):
                read += size
                if read > max_bytes:
                    inflates = True
                    break
                if size > max_row_bytes:
                    number += 1
                    found = {"limit_mib": max_row_bytes >> 20, "row": number}
                    yield Finding("line_too_large", path.name, number, found)
                    continue
                for part, bad_column in _valid_slices(rows.cast(_plain_schema(rows.schema))):
                    if bad_column is not None:
                        yield Finding("not_utf8", path.name, number + 1, {"column": excerpt(bad_column)})
                    else:
                        values = [{name: value for name, value in row.items() if value is not None} for row in part.to_pylist()]
                        yield list(enumerate(values, start=number + 1)), (number + len(values)) / total
                    number += part.num_rows
            if inflates:
                break
    if inflates:
        yield Finding("inflates", path.name, 0, {"times": max_bytes // max(path.stat().st_size, 1)})


def _has_fixed_list(kind: pyarrow.DataType) -> bool:
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _has_fixed_list(kind.storage_type)
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return types.is_fixed_size_list(kind) or any(map(_has_fixed_list, inner))


def _without_arrow_schema(path: Path) -> parquet.FileMetaData:
    """The file's description without what pyarrow added, by which a list is one of a fixed size: pyarrow 25 cannot read those
    where one is null ("Expected all lists to be of size"). Parquet itself knows lists of any size only."""
    with path.open("rb") as file:
        file.seek(-8, io.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, io.SEEK_END)
        footer = file.read(length + 8)
    return parquet.read_metadata(io.BytesIO(b"PAR1" + footer.replace(ARROW_SCHEMA, NO_SCHEMA)))


def _columns(file: parquet.ParquetFile) -> list[parquet.ColumnSchema]:
    return [file.schema.column(index) for index in range(len(file.schema))]


def _unpacked_size(metadata: parquet.FileMetaData) -> int:
    """What the file says that it unpacks to. Asked of groups of rows: of a damaged column, pyarrow 26 ends the process."""
    return sum(max(metadata.row_group(group).total_byte_size, 0) for group in range(metadata.num_row_groups))


def _small_slices(batch: pyarrow.RecordBatch) -> Iterator[tuple[pyarrow.RecordBatch, int]]:
    """Parts of a batch, each with its size: halved until they are small, or one row."""
    size = sum(_unpacked_bytes(column) for column in batch.columns)
    if size <= SLICE_BYTES or batch.num_rows <= 1:
        yield batch, size
        return
    half = batch.num_rows // 2
    yield from _small_slices(batch.slice(0, half))
    yield from _small_slices(batch.slice(half))


def _valid_slices(batch: pyarrow.RecordBatch) -> Iterator[tuple[pyarrow.RecordBatch, str | None]]:
    """Parts of a batch whose texts are UTF-8; and single rows that have another one, with the name of its column."""
    bad_column = next(
        (name for name, column in zip(batch.schema.names, batch.columns, strict=True) if not _is_valid(column)), None
    )
    if bad_column is not None:
        if batch.num_rows <= 1:
            yield batch, bad_column
            return
        half = batch.num_rows // 2
        yield from _valid_slices(batch.slice(0, half))
        yield from _valid_slices(batch.slice(half))
        return
    yield batch, None


def _is_valid(array: pyarrow.Array) -> bool:
    try:
        array.validate(full=True)
    except pyarrow.ArrowInvalid:
        return False
    return True


def _unpacked_bytes(array: pyarrow.Array) -> int:
    """What the values of an array take when none refers to a dictionary any more."""
    if isinstance(array, pyarrow.ExtensionArray):
        return _unpacked_bytes(array.storage)
    if types.is_dictionary(array.type):
        if not (types.is_string(array.dictionary.type) or types.is_binary(array.dictionary.type)):
            return array.nbytes + len(array) * array.dictionary.nbytes
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return (pyarrow.compute.sum(lengths.cast(pyarrow.int64())).as_py() or 0) + len(array)
    if types.is_struct(array.type):
        return sum(_unpacked_bytes(child) for child in array.flatten())
    if types.is_nested(array.type):
        if types.is_map(array.type):
            array = array.cast(pyarrow.list_(pyarrow.struct([array.type.key_field, array.type.item_field])))
        return len(array) + _unpacked_bytes(array.flatten())
    return array.nbytes + len(array)


def _plain_schema(schema: pyarrow.Schema) -> pyarrow.Schema:
    return pyarrow.schema([(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type with the same values that Python can hold: no nanoseconds, no time zone that this machine does not know."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _plain(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_struct(kind):
        return pyarrow.struct([(field.name, _plain(field.type)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(_plain(kind.key_type), _plain(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(_plain(kind.value_type), kind.list_size)
    if types.is_large_list(kind):
        return pyarrow.large_list(_plain(kind.value_type))
    if types.is_list(kind):
        return pyarrow.list_(_plain(kind.value_type))
    if types.is_temporal(kind) and not types.is_interval(kind):
        return pyarrow.int64() if kind.bit_width == 64 else pyarrow.int32()
    return kind
