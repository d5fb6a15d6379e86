"""Texts in one column of a Parquet file, streamed.

`a.text` is the column of that name, or else the field `text` of `a`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import SpecError, on_one_line
from stages.corpora.contents import other_encoding
from stages.corpora.json_texts import listed
from stages.corpora.sources import OnRead

_ROWS_AT_ONCE = 256
_HEAD_BYTES = 4096


def documents(path: Path, file_bytes: int, column: str, on_read: OnRead) -> Iterator[str]:
    """The text of each row; "" for null.

    Raises SpecError for a file that is not sound and a column that holds no text.
    """
    # Slow to import, and only this kind of file needs it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    read, row = 0, 0
    try:
        with pq.ParquetFile(path) as table:
            names = find_column(path, table.schema_arrow, column)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[".".join(names)]):
                yield from _texts(_values(batch, names), f"{path}: column {column!r}, row", row)
                row += batch.num_rows
                progress = file_bytes * row // max(table.metadata.num_rows, row)
                on_read(progress - read)
                read = progress
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's
        raise SpecError(
            f"{path}: is not a sound Parquet file ({on_one_line(error, 200)}). Write it again"
        ) from error
    on_read(file_bytes - read)


def find_column(path: Path, schema: Any, column: str) -> tuple[str, ...]:
    """Names that lead to the text: of a column, and of the fields inside it.

    Raises SpecError when it is not one column of text.
    """
    fields = list(schema)
    found: list[tuple[tuple[str, ...], Any]] = [
        ((column,), field) for field in fields if field.name == column
    ]
    found = found or list(_nested(fields, column))
    if not found:
        alike = [name for name, _ in _texts_in(fields) if name.lower() == column.lower()]
        raise SpecError(
            f"{path}: has no column corpus.text_column = {column!r}; its columns are "
            f"{listed(_all_names(fields))}. {_no_struct(fields, column)}Set corpus.text_column to "
            f"{f'{alike[0]!r}, which differs in case' if alike else 'one of them'}"
        )
    if len(found) > 1:
        raise SpecError(
            f"{path}: has {len(found)} columns named {column!r}, so it is not clear which is meant. Rename "
            "one of them, or set corpus.text_column to another column"
        )
    names, field = found[0]
    if not _is_text(field.type):
        raise SpecError(
            f"{path}: column corpus.text_column = {column!r} holds {str(field.type)[:200]}, not text. Set "
            f"corpus.text_column to a column of strings{_how_to_say(field, fields)}"
        )
    return names


def _nested(fields: list[Any], column: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in fields:
        if field.name == column:
            yield (column,), field
        elif column.startswith(f"{field.name}.") and (inside := _fields_inside(field)):
            for names, found in _nested(inside, column[len(field.name) + 1 :]):
                yield (field.name, *names), found


def _no_struct(fields: list[Any], column: str) -> str:
    found = [field for field in fields if column.startswith(f"{field.name}.") and not _fields_inside(field)]
    return (
        f"{found[0].name!r} holds {str(found[0].type)[:200]}, of which no field can be read. "
        if found
        else ""
    )


def _fields_inside(field: Any) -> list[Any]:
    import pyarrow as pa

    return (
        [field.type.field(index) for index in range(field.type.num_fields)]
        if pa.types.is_struct(field.type)
        else []
    )


def _texts_in(fields: list[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields:
        if _is_text(field.type):
            yield prefix + field.name, field
        yield from _texts_in(_fields_inside(field), f"{prefix}{field.name}.")


def _all_names(fields: list[Any]) -> list[str]:
    nested = [name for field in fields for name, _ in _texts_in(_fields_inside(field), f"{field.name}.")]
    return [field.name for field in fields] + nested


def _how_to_say(field: Any, fields: list[Any]) -> str:
    inside = [name for name, _ in _texts_in(_fields_inside(field), f"{field.name}.")]
    if inside:
        return f"; a field inside a struct is named with a dot: {listed(inside)}"
    others = [name for name, _ in _texts_in(fields)]
    return (
        f": {listed(others)}"
        if others
        else "; a nested one is named with dots, as in meta.text, and no list can be read"
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    strings = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return (
        strings
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_null(kind)
    )


def _values(batch: Any, names: tuple[str, ...]) -> Any:
    import pyarrow.compute as pc

    values = batch.column(batch.schema.names.index(names[0]))
    for name in names[1:]:
        # Unlike `values.field`, with null where the struct is null.
        values = pc.struct_field(values, name)
    return getattr(values, "storage", values)


def _texts(values: Any, place: str, first_row: int) -> Iterator[str]:
    """The texts, binary ones decoded. Raises SpecError with the row for bytes that are not UTF-8."""
    try:
        texts = values.to_pylist()
        return iter([text if isinstance(text, str) else _decoded(text) if text else "" for text in texts])
    except UnicodeDecodeError:
        for row, value in enumerate(values, first_row):
            try:
                data = value.as_py()
                if isinstance(data, bytes):
                    _decoded(data)
            except UnicodeDecodeError as error:
                raise SpecError(
                    f"{place} {row:,}: byte {error.start:,} is not valid UTF-8 ({error.reason}). "
                    "Convert to UTF-8 and write the file again"
                ) from error
        raise


def _decoded(data: bytes) -> str:
    """Binary as UTF-8. ASCII in UTF-16 would pass for it."""
    if b"\0" in data and (encoding := other_encoding(data[:_HEAD_BYTES])) is not None:
        raise UnicodeDecodeError("utf-8", data, data.find(b"\0"), data.find(b"\0") + 1, f"it is {encoding}")
    return data.decode()
