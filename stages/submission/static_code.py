"""Static analysis of a submission's program: its syntax tree is read, never executed."""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from stages.submission.evaluation_calls import follow_evaluation
from stages.submission.network import FETCHING_MODULES, POSSIBLE_MODULES, reaches
from stages.submission.python_source import Names, parse_python, unpacked
from stages.submission.untrusted import UnreadableError

UNSEEN_CALLS = frozenset(
    ["exec", "eval", "__import__", "import_module", "run_path", "run_module", "spec_from_file_location"]
)
USUAL_PACKAGES = frozenset(
    name.partition(".")[0] for name in (*FETCHING_MODULES, *POSSIBLE_MODULES)
) | frozenset(
    [
        *(
            "torch",
            "numpy",
            "sentencepiece",
            "zstandard",
            "brotli",
            "triton",
            "scipy",
            "tiktoken",
            "tokenizers",
            "numba",
            "mlx",
            "tqdm",
        ),
        *(
            "flash_attn",
            "flash_attn_interface",
            "flash_attn_3",
            "xformers",
            "constriction",
            "lz4",
            "einops",
            "safetensors",
            "psutil",
        ),
    ]
)
MAX_LAYERS = 3
MAX_MODULES = 200


@dataclass
class Findings:
    """Result of the analysis. `parsed` says why the program is no Python; a finding is `line N: what`."""

    parsed: str = ""
    newer: str = ""  # the syntax that only a newer Python has
    layers: int = 0  # how often it had to be unpacked
    modules: tuple[str, ...] = ()  # files beside it that it imports, and that were read too
    network: list[str] = field(default_factory=list)
    network_possible: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    evaluation: list[str] = field(default_factory=list)  # functions that evaluate
    training_data: list[str] = field(default_factory=list)  # ways from one of them to the training data
    training_possible: list[str] = field(
        default_factory=list
    )  # ways that may never be taken, or that may not read it
    training_named: bool = False
    calls: bool = False  # it calls anything at all
    text: str = field(default="", repr=False)  # of all that was read


@dataclass
class _Module:
    file: str
    tree: ast.Module
    names: Names
    layer: int = 0
    roots: set[str] = field(default_factory=set)  # the names under which it imports files of the folder


def inspect_program(
    source: bytes, files: frozenset[str] = frozenset(), read: Callable[[str], bytes] | None = None
) -> Findings:
    """Analyse a program.

    A self-extracting program is unpacked in memory, within bounds, and analysed too.

    `files` are the .py files of its folder (POSIX paths relative to it); `read` gives their content. Files
    that the program imports belong to it. `read` may raise UnreadableError.
    """
    findings = Findings()
    try:
        modules = _modules(source, files, read, findings)
        if not findings.parsed:
            _look_at(modules, files, findings)
    except RecursionError:
        findings.parsed = "it is nested too deeply"
    return findings


def _modules(
    source: bytes, files: frozenset[str], read: Callable[[str], bytes] | None, findings: Findings
) -> list[_Module]:
    """The program, its unpacked content, and the files that it imports."""
    modules: list[_Module] = []
    waiting = [("", source, 0)]
    seen: set[str] = set()
    while waiting:
        file, content, layer = waiting.pop(0)
        parsed = parse_python(content)
        if parsed.tree is None and not file:
            subject = "its unpacked content" if layer else "it"
            findings.parsed = f"{subject} is no Python: {parsed.error}"
            return []
        if parsed.tree is None:
            findings.unseen.append(f"{file} is no Python: {parsed.error}")
            continue
        findings.newer = findings.newer or parsed.newer
        findings.calls = findings.calls or any(isinstance(node, ast.Call) for node in ast.walk(parsed.tree))
        findings.text += content.decode("utf-8", "replace") + "\n"
        module = _Module(file, parsed.tree, Names.of(parsed.tree), layer)
        modules.append(module)
        for inner in _packed_programs(module, files, findings):
            findings.layers = max(findings.layers, layer + 1)
            waiting.append((file, inner, layer + 1))
        for name in _imported_files(module, files) - seen if read else ():
            seen.add(name)
            try:
                waiting.append((name, read(name), 0))  # type: ignore[misc]
            except UnreadableError as error:
                findings.unseen.append(str(error))
        if len(modules) + len(waiting) > MAX_MODULES:
            findings.unseen.append(f"it imports more than {MAX_MODULES} files")
            break
    findings.modules = tuple(sorted({module.file for module in modules if module.file}))
    return modules


def _packed_programs(module: _Module, files: frozenset[str], findings: Findings) -> Iterator[bytes]:
    """The programs that a module executes from its own constants.

    Everything else that it executes is recorded as unseen.
    """
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or (name := _called(node, module.names)) not in UNSEEN_CALLS:
            continue
        if name in ("__import__", "import_module") and _is_known(module.names.imported(node), files):
            continue
        inner = unpacked(node.args[0], module.names) if name in ("exec", "eval") and node.args else None
        if inner is not None and module.layer < MAX_LAYERS:
            yield inner.strip() if name == "eval" else inner
        else:
            findings.unseen.append(f"{_place(module.file, node.lineno)}: {name}(…)")


def _is_known(name: str, files: frozenset[str]) -> bool:
    """Whether a module imported by a call is known: one of Python, of the folder, or a common package."""
    root = name.lstrip(".").partition(".")[0]
    return bool(root) and (
        _is_usual(root) or any(root in PurePosixPath(file.removesuffix(".py")).parts for file in files)
    )


def _is_usual(root: str) -> bool:
    return root in sys.stdlib_module_names or root in USUAL_PACKAGES


def _called(node: ast.Call, names: Names) -> str:
    """The name of a call; "" for methods that happen to be called `eval` or `exec`."""
    if isinstance(node.func, ast.Name):
        return names.dotted(node.func).rpartition(".")[2]
    dotted = names.dotted(node.func)
    module, _, name = dotted.rpartition(".")
    return "" if name in ("eval", "exec") and module not in ("builtins", "__builtins__") else name


def _imported_files(module: _Module, files: frozenset[str]) -> set[str]:
    """The files of the folder that a module imports, packages' __init__.py among them.

    Sets `module.roots`.
    """
    here = PurePosixPath(module.file).parent
    wanted: list[tuple[PurePosixPath, str]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            wanted += [(PurePosixPath(), alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                PurePosixPath()
                if not node.level
                else PurePosixPath(*here.parts[: len(here.parts) - node.level + 1])
            )
            wanted += [(base, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names]
        elif isinstance(node, ast.Call) and (name := module.names.imported(node)):
            wanted.append((PurePosixPath(), name.lstrip(".")))
    imported: set[str] = set()
    for base, dotted in dict.fromkeys(wanted):
        parts = dotted.split(".")[:10]
        for count in range(1, len(parts) + 1):
            path = PurePosixPath(base, *parts[:count])
            matching = {f"{path}.py", f"{path}/__init__.py"} & files
            if not matching and count == 1 and not _is_usual(parts[0]):
                # It may be in a folder that the program puts into sys.path.
                matching = {file for file in files if file.endswith((f"/{path}.py", f"/{path}/__init__.py"))}
            if matching:
                module.roots.add(parts[0])
            imported |= matching
    return imported - {"train_gpt.py"}


def _look_at(modules: list[_Module], files: frozenset[str], findings: Findings) -> None:
    own = frozenset(root for module in modules for root in module.roots)
    defined = frozenset(
        node.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    for module in modules:
        for reach in reaches(module.tree, module.names, own, defined):
            finding = f"{_place(module.file, reach.line)}: {reach.what}"
            (findings.network if reach.certain else findings.network_possible).append(finding)
    training = follow_evaluation([(module.tree, module.names) for module in modules], own)
    findings.evaluation, findings.training_named = training.evaluation, training.named
    findings.training_data, findings.training_possible = training.certain, training.possible


def _place(file: str, line: int) -> str:
    return f"{file} line {line}" if file else f"line {line}"
