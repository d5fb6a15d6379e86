"""Reader of one text column of a Parquet file, streamed.

`a.text` is the column of that name, or else the field `text` of `a`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import SpecError, on_one_line
from schemas.row_groups import RowGroups
from stages.corpora.contents import other_encoding
from stages.corpora.json_texts import listed
from stages.corpora.sources import OnRead

_ROWS_AT_ONCE = 256
_HEAD_BYTES = 4096


def documents(
    path: Path, file_bytes: int, column: str, on_read: OnRead, part: RowGroups | None = None
) -> Iterator[str]:
    """The text of each row; "" for null. Of a `part` only the rows of its row groups.

    Raises SpecError for a damaged file and for a column that holds no text.
    """
    # Slow to import, and only this kind of file needs it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            metadata = table.metadata
            names = find_column(path, table.schema_arrow, column)
            groups = range(part.first, part.end) if part else range(metadata.num_row_groups)
            row = sum(metadata.row_group(number).num_rows for number in range(groups.start))
            read = file_bytes * row // max(metadata.num_rows, 1)
            batches = table.iter_batches(_ROWS_AT_ONCE, list(groups), columns=[".".join(names)])
            for batch in batches:
                yield from _texts(_values(batch, names), f"{path}: column {column!r}, row", row)
                row += batch.num_rows
                progress = file_bytes * row // max(metadata.num_rows, row)
                on_read(progress - read)
                read = progress
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's
        raise SpecError(
            f"{path}: is not a sound Parquet file ({on_one_line(error, 200)}). Write it again"
        ) from error
    if part is None:
        on_read(file_bytes - read)


def row_groups(path: Path, column: str) -> list[tuple[int, int]]:
    """Rows and bytes of text, uncompressed, of each row group; empty for an unusable file or column.

    What is wrong with the file is said when its text is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
        columns = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        if columns.count(column) != 1:
            return []
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        text = columns.index(column)
        return [(group.num_rows, group.column(text).total_uncompressed_size) for group in groups]
    except (pa.ArrowException, OSError):
        return []


def find_column(path: Path, schema: Any, column: str) -> tuple[str, ...]:
    """The names that lead to the text: of a column, and of the fields inside it.

    Raises SpecError unless they lead to one column of text.
    """
    fields = list(schema)
    candidates: list[tuple[tuple[str, ...], Any]] = [
        ((column,), field) for field in fields if field.name == column
    ]
    candidates = candidates or list(_nested(fields, column))
    if not candidates:
        alike = [name for name, _ in _texts_in(fields) if name.lower() == column.lower()]
        choice = f"{alike[0]!r}, which differs in case" if alike else "one of them"
        raise SpecError(
            f"{path}: has no column tokenize.corpus.text_column = {column!r}; its columns are "
            f"{listed(_all_names(fields))}. {_no_struct(fields, column)}Set tokenize.corpus.text_column to "
            f"{choice}"
        )
    if len(candidates) > 1:
        raise SpecError(
            f"{path}: has {len(candidates)} columns named {column!r}, so it is not clear which is meant. "
            "Rename one of them, or set tokenize.corpus.text_column to another column"
        )
    names, field = candidates[0]
    if not _is_text(field.type):
        raise SpecError(
            f"{path}: column tokenize.corpus.text_column = {column!r} holds {str(field.type)[:200]}, not "
            f"text. Set tokenize.corpus.text_column to a column of strings{_how_to_say(field, fields)}"
        )
    return names


def _nested(fields: list[Any], column: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in fields:
        if field.name == column:
            yield (column,), field
        elif column.startswith(f"{field.name}.") and (inside := _fields_inside(field)):
            for names, inner in _nested(inside, column[len(field.name) + 1 :]):
                yield (field.name, *names), inner


def _no_struct(fields: list[Any], column: str) -> str:
    opaque = [field for field in fields if column.startswith(f"{field.name}.") and not _fields_inside(field)]
    return (
        f"{opaque[0].name!r} holds {str(opaque[0].type)[:200]}, of which no field can be read. "
        if opaque
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
        return iter([text if isinstance(text, str) else _decoded(text or b"") for text in texts])
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
    """Decode binary as UTF-8. UTF-16 of ASCII characters is also valid UTF-8, so it is refused."""
    if b"\0" in data and (encoding := other_encoding(data[:_HEAD_BYTES])) is not None:
        raise UnicodeDecodeError("utf-8", data, data.find(b"\0"), data.find(b"\0") + 1, f"it is {encoding}")
    return data.decode()
