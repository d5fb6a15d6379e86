"""Rules on bytes: the artifact within its limit, and the declared bytes those of the files."""

from collections.abc import Iterator

from schemas.check_size import SIZE_LIMIT_BYTES
from schemas.package import BLOB_NAME, SCRIPT_NAME
from schemas.submission import INFO_NAME
from stages.submission.figures import code_bytes, model_bytes, total_bytes
from stages.submission.folder import TEXTS, Folder, Verdict, is_another_run, positive_number, results_of
from stages.submission.logs import Log

_MODELS = (
    ".fwz",
    ".ptz",
    ".pt",
    ".pth",
    ".bin",
    ".safetensors",
    ".npz",
    ".npy",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".onnx",
    ".gguf",
    ".weights",
)
_PACKED_MODELS = (
    ".fwz",
    ".ptz",
    ".zst",
    ".zstd",
    ".xz",
    ".lzma",
    ".br",
    ".gz",
    ".bz2",
    ".zlib",
    ".lrz",
    ".7z",
    ".zip",
)
_UNCOUNTED_BYTES = 2**20  # of companions that nothing says to be part of the artifact
_SAME_SHARE = 0.01
_SMALLEST_PROGRAM = 4_000  # bytes; what is smaller cannot be the program that a log is of


def size_within_limit(folder: Folder) -> Verdict:
    """Code and compressed model together have at most 16,000,000 bytes, by the files, submission.json and
    the logs.

    `unknown` where two of these contradict each other.
    """
    if "files" in folder.errors:
        return "unknown", folder.errors["files"]
    code = _code_bytes(folder)
    models = {name: folder.sizes[name] for name in folder.sizes if _is_model(name)}
    declared = [*_declared_totals(folder)]
    logged = {log.name: size for log in folder.logs if (size := _logged_total(log, declared)) is not None}
    over = [(f"{INFO_NAME} {where}", size) for where, size in declared if size > SIZE_LIMIT_BYTES]
    over += [(where, size) for where, size in _model_fields(folder) if size > SIZE_LIMIT_BYTES]
    if over:
        where, size = max(over, key=lambda item: item[1])
        return "fail", _size_said(size, f"as {where} says")
    if (verdict := _by_logs(folder, logged, declared, code)) is not None:
        return verdict
    if (verdict := _by_files(folder, models, declared, code)) is not None:
        return verdict
    if declared:
        where, size = max(declared, key=lambda item: item[1])
        return "pass", _size_said(size, f"as {INFO_NAME} says in {where}; the model is not in the folder")
    if logged:
        name, size = max(logged.items(), key=lambda item: item[1])
        return "pass", _size_said(size, f"as {name} says; the model is not in the folder")
    parts = [(where, size + code) for where, size in _model_fields(folder)]
    if SCRIPT_NAME in folder.sizes and parts and max(size for _, size in parts) <= SIZE_LIMIT_BYTES:
        where, size = max(parts, key=lambda item: item[1])
        return "pass", _size_said(size, f"{where} and the code of the folder")
    return (
        "unknown",
        (
            f"the folder holds no model, and neither {INFO_NAME} nor a log states the bytes; code "
            f"alone {code:,}"
        ),
    )


def size_as_declared(folder: Folder) -> Verdict:
    """bytes_code and bytes_total are those of the files."""
    code = folder.sizes.get(SCRIPT_NAME)
    declared_code = next(((key, size) for key, size in code_bytes(folder.info)), None)
    if declared_code is None or code is None:
        return "unknown", f"{INFO_NAME} has no bytes_code" if code is not None else f"no {SCRIPT_NAME}"
    key, declared = declared_code
    if declared not in (code, _code_bytes(folder)):
        return "fail", f"{key} = {declared:,}, {SCRIPT_NAME} has {code:,}"
    total, blob = positive_number(folder, "bytes_total"), folder.sizes.get(BLOB_NAME)
    if blob is None or total is None:
        return "pass", f"{key} = {declared:,}; the model is not in the folder"
    return (
        "pass" if total == declared + blob else "fail"
    ), f"bytes_total = {total:,.0f}, the files have {declared + blob:,}"


def _size_said(size: int, where: str) -> str:
    margin = SIZE_LIMIT_BYTES - size
    side = "below the limit" if margin >= 0 else "over the limit"
    return f"{size:,} bytes ({where}), {abs(margin):,} {side}"


def _is_model(name: str) -> bool:
    return name.lower().endswith(_MODELS) or (
        name.lower().endswith(_PACKED_MODELS) and not name.lower().endswith((".log.gz", ".txt.gz"))
    )


def _code_bytes(folder: Folder) -> int:
    """train_gpt.py and the modules of the folder that it imports."""
    return sum(folder.sizes.get(name, 0) for name in (SCRIPT_NAME, *folder.program.modules))


def _declared_totals(folder: Folder) -> Iterator[tuple[str, int]]:
    yield from total_bytes(folder.info)
    for seed, result in results_of(folder).items():
        if isinstance(result, dict):
            yield from ((f"seed {seed} {key}", size) for key, size in total_bytes(result))


def _model_fields(folder: Folder) -> Iterator[tuple[str, int]]:
    yield from ((f"{INFO_NAME} {key}", size) for key, size in model_bytes(folder.info))
    for seed, result in results_of(folder).items():
        if isinstance(result, dict):
            yield from ((f"{INFO_NAME} seed {seed} {key}", size) for key, size in model_bytes(result))


def _logged_total(log: Log, declared: list[tuple[str, int]]) -> int | None:
    """The artifact's bytes by a log: the declared ones if it states several totals, else the last."""
    if log.total is None and log.packed_models:
        return log.packed_models[-1] + (log.code[-1] if log.code else 0)
    if log.total is None or log.total_is_raw:
        return None
    last = log.total
    if any(size == last.bytes for _, size in declared):
        return last.bytes
    earlier = {total.bytes for total in log.totals if total.packed or not last.packed}
    same = [size for _, size in declared if size in earlier]
    return max(same) if same else last.bytes


def _by_logs(
    folder: Folder, logged: dict[str, int], declared: list[tuple[str, int]], code: int
) -> Verdict | None:
    """A verdict if a log states more than the limit."""
    over = {name: size for name, size in logged.items() if size > SIZE_LIMIT_BYTES}
    if not over:
        return None
    for log in folder.logs:
        # Code that was made smaller after the run: what is declared is the log's model and the code as it
        # lies here.
        if log.name in over and any(
            model + code == size for model in log.packed_models for _, size in declared
        ):
            del over[log.name]
    if not over:
        return None
    name, size = max(over.items(), key=lambda item: item[1])
    claim = _size_said(size, f"as {name} says") + (
        f"; {INFO_NAME} says {max(size for _, size in declared):,}" if declared else ""
    )
    log = next(log for log in folder.logs if log.name == name)
    if all(is_another_run(log, folder) for log in folder.logs if log.name in over):
        return "unknown", f"{claim}; the log seems to be of another run"
    # A wrapper or a smaller script may have been made after the run; then the sum of what is here would be
    # within the limit.
    if (
        declared
        and log.packed_models
        and log.code
        and code < log.code[-1]
        and log.packed_models[-1] + code <= SIZE_LIMIT_BYTES
    ):
        shown = (
            f"{claim}; its model and the {SCRIPT_NAME} of the folder have {log.packed_models[-1] + code:,}"
        )
        return ("unknown", shown) if code > _SMALLEST_PROGRAM else ("fail", claim)
    return "fail", claim


def _by_files(
    folder: Folder, models: dict[str, int], declared: list[tuple[str, int]], code: int
) -> Verdict | None:
    """A verdict if the files have more bytes than the figures state, or contradict them."""
    stated = max((size for _, size in declared), default=None)
    claim = "" if stated is None else f"; {INFO_NAME} says {stated:,}"
    if stated is not None and stated < code:
        return (
            "unknown",
            f"{INFO_NAME} says {stated:,} bytes, the code of the folder alone has {code:,}",
        )
    data = {name: folder.sizes[name] for name in folder.data}
    others = {
        name: size
        for name, size in folder.sizes.items()
        if not name.lower().endswith((*TEXTS, ".py")) and name not in models
    }
    loose = sum(data.values()) + sum(others.values())
    if models:
        name, smallest = min(models.items(), key=lambda item: item[1])
        total = code + smallest
        if stated is not None and (
            fitting := [size for size in models.values() if _near(code + size, stated)]
        ):
            total = code + fitting[0]
        elif stated is not None:
            return (
                ("fail", _size_said(total, f"{name} and the code"))
                if total > SIZE_LIMIT_BYTES and name.lower().endswith(_PACKED_MODELS)
                else ("unknown", f"{name} and the code have {total:,} bytes{claim}")
            )
        if total > SIZE_LIMIT_BYTES:
            return ("fail" if name.lower().endswith(_PACKED_MODELS) else "unknown"), _size_said(
                total, f"{name} and the code"
            ) + claim
        if loose > _UNCOUNTED_BYTES and total + loose > SIZE_LIMIT_BYTES:
            return "unknown", _companions(data | others, loose, claim)
        if SCRIPT_NAME not in folder.sizes:
            return "unknown", f"{name} has {smallest:,} bytes, and there is no {SCRIPT_NAME}{claim}"
        return "pass", _size_said(total, f"{name} and the code")
    if loose > _UNCOUNTED_BYTES and (stated is None or stated + loose > SIZE_LIMIT_BYTES or loose > stated):
        return "unknown", _companions(data | others, loose, claim)
    return None


def _near(size: int, declared: int) -> bool:
    return abs(size - declared) <= max(_UNCOUNTED_BYTES // 8, int(_SAME_SHARE * declared))


def _companions(files: dict[str, int], total: int, claim: str) -> str:
    largest = max(files, key=lambda name: files[name])
    return (
        f"{largest} and {len(files) - 1} more files, {total:,} bytes, are binary and may belong "
        f"to the artifact{claim}"
    )
