"""What a program does, as far as its text says: read as a syntax tree, never executed."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.submission.strangers import LINE_CHARACTERS, decompressed

NETWORK_MODULES = frozenset(
    [
        "requests",
        "httpx",
        "aiohttp",
        "urllib3",
        "pycurl",
        "ftplib",
        "smtplib",
        "telnetlib",
        "poplib",
        "imaplib",
        "websocket",
        "websockets",
        "paramiko",
        "wandb",
        "gdown",
        "boto3",
        "botocore",
        "huggingface_hub",
        "datasets",
        "google.cloud",
        "fsspec",
        "gcsfs",
        "s3fs",
        "urllib.request",
        "http.client",
        "xmlrpc",
        "torch.hub",
        "kagglehub",
    ]
)
NETWORK_CALLS = frozenset(
    ["urlopen", "urlretrieve", "load_state_dict_from_url", "download_url_to_file", "from_pretrained", "hf_hub_download"]
)
SHELL_CALLS = frozenset(["system", "popen", "run", "call", "check_call", "check_output", "Popen"])
SHELL_FETCHES = re.compile(r"\b(curl|wget|git clone|pip3? install|aria2c|rsync|scp|gsutil)\b|https?://")
UNSEEN_CALLS = frozenset(["exec", "eval", "__import__", "import_module", "run_path", "run_module"])
TRAINING_NAMES = frozenset(
    ["train_files", "train_loader", "train_shards", "train_data", "train_tokens", "train_path", "train_pattern", "train_dataset"]
)
TRAINING_FILES = re.compile(r"train[^\s]*(\*|\.bin)|fineweb_train", re.IGNORECASE)
EVALUATION = re.compile(r"(^|_)(eval|evaluate|evaluation|score|scoring|validate|validation)(_|$)", re.IGNORECASE)
PACKED_CHARACTERS = 500
MAX_LAYERS = 3


@dataclass
class Findings:
    """`parsed`: the program is Python. Each finding is `line N: what`."""

    parsed: str = ""  # why not, if it is not
    layers: int = 0  # how often it had to be unpacked
    network: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    evaluation: list[str] = field(default_factory=list)  # functions that evaluate
    training_data: list[str] = field(default_factory=list)  # ways from one of them to the training data


def inspect_program(source: bytes) -> Findings:
    """What the text shows. A program that unpacks itself is unpacked, in memory and within bounds, and looked at instead."""
    findings = Findings()
    tree = _parse(source, findings)
    while tree is not None and findings.layers < MAX_LAYERS and (inner := _packed_program(tree)) is not None:
        findings.layers += 1
        tree = _parse(inner, findings)
    if tree is None:
        return findings
    try:
        _look_at(tree, findings)
    except RecursionError:
        findings.parsed = "it is nested too deeply to be read"
    return findings


def _look_at(tree: ast.Module, findings: Findings) -> None:
    for node in ast.walk(tree):
        findings.network += [f"line {node.lineno}: {what}" for what in _network(node)]  # type: ignore[attr-defined]
        if (
            isinstance(node, ast.Call)
            and _called(node) in UNSEEN_CALLS
            and not (isinstance(node.func, ast.Attribute) and _called(node) == "eval")
        ):
            findings.unseen.append(f"line {node.lineno}: {ast.unparse(node.func)}(…)")
    _follow_evaluation(tree, findings)


def _parse(source: bytes, findings: Findings) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = "what it unpacks to is" if findings.layers else "it is"
        findings.parsed = f"{what} no Python: {type(error).__name__}: {str(error)[:200]}"
        return None


def _packed_program(tree: ast.Module) -> bytes | None:
    """The program inside a large constant, if the outer one executes something."""
    if not any(isinstance(node, ast.Call) and _called(node) == "exec" for node in ast.walk(tree)):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) > PACKED_CHARACTERS:
            content = node.value.encode("utf-8", "replace") if isinstance(node.value, str) else node.value
            if (inner := decompressed(content)) is not None:
                return inner
    return None


def _network(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"imports {alias.name}" for alias in node.names if _is_network(alias.name))
    elif isinstance(node, ast.ImportFrom) and node.module:
        if _is_network(node.module):
            yield f"imports {node.module}"
        else:
            yield from (f"imports {node.module}.{alias.name}" for alias in node.names if _is_network(f"{node.module}.{alias.name}"))
    elif isinstance(node, ast.Call):
        called = _called(node)
        if called in NETWORK_CALLS or ast.unparse(node.func).startswith("torch.hub."):
            yield f"calls {ast.unparse(node.func)}"
        elif called in SHELL_CALLS:
            texts = [item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            if any(SHELL_FETCHES.search(text) for text in texts):
                yield f"runs {' '.join(texts)[:80]!r}"


def _is_network(module: str) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:count]) in NETWORK_MODULES for count in range(1, len(parts) + 1))


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""


@dataclass
class _Function:
    """What one function of the program refers to."""

    name: str
    functions: set[str] = field(default_factory=set)  # by plain name
    methods: set[str] = field(default_factory=set)  # by attribute
    training: str = ""


def _follow_evaluation(tree: ast.Module, findings: Findings) -> None:
    """Follow names from the functions that evaluate; names alone decide, so a way that is found may never be taken."""
    plain: dict[str, list[_Function]] = {}
    methods: dict[str, list[_Function]] = {}
    for owner in ast.walk(tree):
        body = getattr(owner, "body", None)
        if not isinstance(body, list):
            continue
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                table = methods if isinstance(owner, ast.ClassDef) else plain
                table.setdefault(node.name, []).append(_describe(node))
            elif isinstance(node, ast.ClassDef):
                made = [_describe(item) for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
                plain.setdefault(node.name, []).extend(made)
    findings.evaluation = sorted(name for name in plain if EVALUATION.search(name) and "train" not in name.lower())
    for start in findings.evaluation:
        waiting, seen = [(item, start) for item in plain[start]], {start}
        while waiting:
            function, way = waiting.pop()
            if function.training:
                findings.training_data.append(f"{way}: {function.training}")
                break
            for table, names in ((plain, function.functions), (methods, function.methods)):
                for name in sorted(names & set(table) - seen):
                    seen.add(name)
                    waiting += [(item, f"{way} → {name}") for item in table[name]]


def _describe(function: ast.FunctionDef | ast.AsyncFunctionDef) -> _Function:
    found = _Function(function.name)
    arguments = function.args
    local = {item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            local |= {node.id} if isinstance(node.ctx, ast.Store) else set()
            found.functions.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.methods.add(node.attr)
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != ast.get_docstring(function, clean=False)
        if name in TRAINING_NAMES:
            found.training = found.training or f"{name} (line {node.lineno})"  # type: ignore[attr-defined]
        elif is_text and TRAINING_FILES.search(node.value[:LINE_CHARACTERS]):  # type: ignore[attr-defined]
            found.training = found.training or f"{node.value[:60]!r} (line {node.lineno})"  # type: ignore[attr-defined]
    found.functions -= local
    return found
