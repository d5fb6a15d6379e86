"""Setup of the command line's own process: streams, folder, limits, environment and signals."""

import atexit
import codecs
import errno
import io
import os
import resource
import signal
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from schemas.errors import SpecError
from stages.processes.surroundings import left_over

OPEN_FILES = 4096
FEWEST_OPEN_FILES = 128
READER_GONE = 128 + signal.SIGPIPE
_PLAIN = {
    "−": "-",
    "–": "-",
    "→": ">",
    "←": "<",
    "×": "x",
    "·": ".",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "⚠": "!",
    "Σ": "sum",
    "√": "sqrt",
}
# What may be missing and is looked up by libraries without a word of where the path came from.
_CERTIFICATES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PREFECT_API_SSL_CERT_FILE",
)

Interrupt = Callable[[int, FrameType | None], Any]


def standard_streams() -> None:
    """Open the standard streams that are closed.

    They replace characters that an encoding lacks, and drop output that nobody reads.
    """
    codecs.register_error("fairway", _replace)
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by the caller: the next file that is opened would become a standard stream
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _stream(sys.stdout, _Output)
    sys.stderr = _stream(sys.stderr, _Messages)


def surroundings() -> None:
    """Remove environment variables that are not meant for Fairway.

    Raises SpecError, with the remedy, for values that cannot work.

    Call it before torch, OpenMP and Prefect are imported: each reads the environment once.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise SpecError(
            f"the working folder is gone or closed to you ({error.strerror}). Run `cd` to another "
            "folder first"
        ) from error
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise SpecError(
            f"TMPDIR = {os.environ.get('TMPDIR', '')}: no folder for temporary files is writable ({error}). "
            "Set TMPDIR to one"
        ) from error
    try:
        Path.home()
    except RuntimeError:  # HOME is unset, and this user has no entry that names one, as in many containers
        os.environ["HOME"] = str(private_folder())
    for name in left_over(os.environ):
        del os.environ[name]
    if os.environ.pop("PYTHONWARNINGS", None):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")  # of libraries, and no business of who runs them
    for name in _CERTIFICATES:
        if (path := os.environ.get(name)) and not (
            os.path.isfile(path) if name.endswith("FILE") else os.path.exists(path)
        ):
            raise SpecError(f"{name} = {path}: there are no certificates. Unset it, or name existing ones")
    _open_files()


def private_folder() -> Path:
    """A folder for this process alone, removed when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="fairway-own-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


@contextmanager
def hangup_interrupts() -> Iterator[None]:
    """Within the block SIGHUP (a terminal closes) ends the work as Ctrl-C does.

    Under `nohup` it stays ignored.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGHUP, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _open_files() -> None:
    """Raise the soft limit of open files as far as needed. Raises SpecError if the hard limit is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= OPEN_FILES:
        return
    wanted = OPEN_FILES if hard == unlimited else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < FEWEST_OPEN_FILES:
        raise SpecError(
            f"ulimit -n = {wanted}: too few open files; at least {FEWEST_OPEN_FILES} are needed. "
            "Raise the hard limit (ulimit -Hn)"
        )


class _Output(io.FileIO):
    """Standard output.

    Once its reader has gone the program ends as others do by SIGPIPE, which Python ignores.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # what is buffered would fail again when Python ends
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno != errno.EPIPE:
                print(f"fairway: standard output cannot be written: {error.strerror}", file=sys.stderr)
            raise SystemExit(READER_GONE if error.errno == errno.EPIPE else 1) from None


class _Messages(io.FileIO):
    """Standard error.

    A run continues without its log lines if they cannot be written.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
            return len(data)


def _stream(today: Any, kind: type[io.FileIO]) -> io.TextIOWrapper:
    raw = kind(1 if kind is _Output else 2, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if today is None else today.encoding,
        errors="fairway",
        line_buffering=kind is _Messages or raw.isatty(),
    )


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """The replacement for characters that an encoding lacks: a plain one of the same meaning, else `?`.

    Bytes of a path that is no text are written unchanged.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return b"".join(_plain(character) for character in error.object[error.start : error.end]), error.end


def _plain(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return character.encode("utf-8", "surrogateescape")
    parts = unicodedata.normalize("NFKD", _PLAIN.get(character, character))
    return "".join(part for part in parts if not unicodedata.combining(part)).encode("ascii", "replace")
