"""Files of a corpus in object storage: s3://…, gs://…, az://… or file:///…, read through obstore.

An object is hashed once, streamed; its digest is remembered by address, size and ETag. Whoever reads it
fetches it into an unnamed file, which is gone with the process, and checks the digest.
"""

import hashlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from schemas.errors import SpecError, StageError
from schemas.files import SourceFile
from stages.store.object_storage import open_objects, said_by_server, without_obstore

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(s3|gs|az)://[^/@?#]+/[^@?#]|file:///[^?#]")
_MAGIC = re.compile(r"[*?[]")
_TOKENS = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?[^/\]]+\])")
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_AT_ONCE = 8  # objects that are hashed
_PIECE_BYTES = 8 * 2**20


def is_address(path: str) -> bool:
    """Whether a path or pattern of `corpus.paths` names objects instead of files of this machine."""
    return "://" in path


def find_objects(patterns: Iterable[str], memory: Path | None) -> list[SourceFile]:
    """Every object that the addresses name, sorted by address, each once; its path is its address.

    `*`, `?` and `[ab]` stay within a folder, `**` crosses folders. `memory` is a folder for digests.
    Raises SpecError, naming the pattern, if it matches nothing, is no address, or the server refuses;
    ConnectionError if the server fails.
    """
    found: dict[str, Any] = {}
    for pattern in patterns:
        with _clear_errors(f"tokenize.corpus.paths = {pattern}"):
            found |= _matches(pattern)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda address: _pinned(address, found[address], memory), sorted(found)))


@contextmanager
def fetched(file: SourceFile, folder: Path | None) -> Iterator[Path]:
    """Path of a copy of the object for the block; it takes room in `folder`, or where temporary files go.

    Raises StageError for an object that is gone or is not what the manifest says, ConnectionError if the
    server fails.
    """
    digest = hashlib.sha256()
    # Unnamed, so that nothing is left of it, even by a kill.
    with tempfile.TemporaryFile(dir=folder) as copy:
        with _clear_errors(file.path):
            for piece in _pieces(file.path):
                digest.update(piece)
                copy.write(piece)
        copy.flush()
        if digest.hexdigest() != file.sha256:
            raise StageError(
                f"the corpus changed since it was hashed: {file.path} is another object now. Run again to "
                "use it as it is now"
            )
        path = Path(f"/proc/self/fd/{copy.fileno()}")
        try:
            yield path
        except SpecError as error:
            raise SpecError(str(error).replace(str(path), file.path)) from error


def _matches(pattern: str) -> dict[str, Any]:
    """Address -> what the server tells of the object."""
    if not _ADDRESS.match(pattern):
        shown = re.sub("://.*@", "://…@", pattern)  # what stands there may be a password
        raise SpecError(
            f"tokenize.corpus.paths = {shown}: is no address. Give s3://BUCKET/PATTERN, gs://BUCKET/PATTERN, "
            "az://CONTAINER/PATTERN or file:///PATTERN, without user, password or query"
        )
    plain = pattern[: magic.start()] if (magic := _MAGIC.search(pattern)) else pattern
    root, prefix = _split(plain)
    expression = _expression(pattern)
    # A server lists whole folders.
    listed = _list(root, prefix.rpartition("/")[0])
    found = {f"{root}/{item['path']}": item for item in listed}
    matching = {address: item for address, item in found.items() if expression.fullmatch(address)}
    if not matching:
        hint = (
            " (it is a folder; a pattern ends with /*)"
            if any(address.startswith(f"{pattern.rstrip('/')}/") for address in found)
            else ""
        )
        raise SpecError(
            f"tokenize.corpus.paths = {pattern}: matches no object{hint}. Give an object, or a pattern that "
            "matches"
        )
    return matching


def _list(root: str, folder: str) -> list[Any]:
    import obstore

    if root.startswith("file:") and not Path(root.removeprefix("file://")).is_dir():
        return []
    pages = obstore.list(open_objects(_quoted(root)), f"{folder}/" if folder else None)
    return [item for page in pages for item in page]


def _split(address: str) -> tuple[str, str]:
    """What obstore opens, and the object in it: the bucket; of folders, the one that the object lies in."""
    if address.startswith("file:"):
        root, _, name = address.rpartition("/")
        return root, name
    scheme, _, rest = address.partition("://")
    bucket, _, name = rest.partition("/")
    return f"{scheme}://{bucket}", name


def _quoted(root: str) -> str:
    scheme, _, rest = root.partition("://")
    return f"{scheme}://{quote(rest)}"


def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(map(_translated, _TOKENS.split(pattern))), re.DOTALL)


def _translated(token: str) -> str:
    if token.startswith("[") and token.endswith("]"):
        return f"[{'^' * (token[1] == '!')}{re.escape(token[1:-1].removeprefix('!'))}]".replace(r"\-", "-")
    return _WILDCARDS.get(token) or re.escape(token)


def _pinned(address: str, item: Any, memory: Path | None) -> SourceFile:
    known = f"{address} {item['size']} {item['e_tag']} {item['last_modified']}"
    path = None if memory is None else memory / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.sha256"
    try:
        sha256 = "" if path is None else path.read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        sha256 = ""
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        digest = hashlib.sha256()
        with _clear_errors(f"tokenize.corpus.paths: {address}"):
            for piece in _pieces(address):
                digest.update(piece)
        sha256 = digest.hexdigest()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(sha256, encoding="ascii")
    return SourceFile(path=address, num_bytes=item["size"], sha256=sha256)


def _pieces(address: str) -> Iterator[bytes]:
    import obstore

    root, name = _split(address)
    for piece in obstore.get(open_objects(_quoted(root)), name).stream(_PIECE_BYTES):
        yield bytes(piece)


@contextmanager
def _clear_errors(what: str) -> Iterator[None]:
    """Errors of obstore as ours: what a user can mend, and what another try may."""
    try:
        from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
    except ModuleNotFoundError as error:
        raise without_obstore(error, what) from None
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise SpecError(
            f"{what}: the server refuses ({said_by_server(error)}). Check the credentials in the environment"
        ) from None
    except (NotFoundError, FileNotFoundError) as error:
        raise SpecError(f"{what}: is not there ({said_by_server(error)}). Check the address") from None
    except (BaseError, OSError, ValueError) as error:
        raise ConnectionError(f"{what}: cannot be read ({said_by_server(error)})") from None
