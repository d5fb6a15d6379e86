"""Bundler: one self-contained script from a module and everything of ours that it reaches.

Modules follow one another in the order of their dependencies, each under a header with its path. Imports of
ours are removed, all others are gathered at the top. The bundler refuses code that could change its meaning
in one namespace. Such code is a name that two modules define, or an import of ours under another name or as
a whole module. So the script does what the modules do.
"""

import ast
import builtins
import re
import symtable
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from schemas.errors import StageError
from stages.store.source import OUR_PACKAGES, reachable_modules

SHIPPED_PREFIX = "stages.core."
SHIPPED_MODULES = (
    "schemas.settings_base",
    "schemas.tensor_formats",
    "schemas.model_settings",
    "schemas.compute_settings",
    "schemas.qat_settings",
    "schemas.scoring_settings",
    "schemas.train_settings",
    "schemas.averaging_settings",
    "schemas.quantizer_settings",
    "schemas.recipe",
    "schemas.lora_settings",
    "schemas.lora_recipe",
)
_LINE_LENGTH = 140


@dataclass(frozen=True, order=True)
class OutsideImport:
    """One name imported from elsewhere; `module` is empty for a plain `import name`."""

    module: str
    name: str
    alias: str | None

    @property
    def bound(self) -> str:
        return self.alias or (self.name if self.module else self.name.split(".")[0])

    @property
    def target(self) -> str:
        """What the bound name stands for: `import a` and `import a.b` both bind the package a."""
        return self.name.split(".")[0] if not self.module and not self.alias else f"{self.module}:{self.name}"

    def __str__(self) -> str:
        return f"{self.name} as {self.alias}" if self.alias else self.name


@dataclass
class ModuleParts:
    """A module taken apart: `body` is its text without docstring and without the imports listed beside it."""

    name: str
    path: str
    docstring: str = ""  # with its quotes, as it stands in the source
    body: str = ""
    outside: set[OutsideImport] = field(default_factory=set)
    future: set[str] = field(default_factory=set)
    taken: list[tuple[str, str]] = field(default_factory=list)  # (module of ours, name imported from it)
    needs: set[str] = field(default_factory=set)  # modules of ours that must stand before this one

    def bindings(self) -> dict[str, str]:
        """Top-level names of the module in the script, and what each is bound to, in words that can be
        compared.
        """
        symbols = symtable.symtable(self.body, self.path, "exec").get_symbols()
        shared = {
            statement.targets[0].id: ast.unparse(statement)
            for statement in ast.parse(self.body).body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and _may_occur_twice(statement.value)
        }
        own = {
            symbol.get_name(): f"{self.name}.{symbol.get_name()}"
            for symbol in symbols
            if symbol.is_assigned() or symbol.is_imported()
        }
        return {item.bound: item.target for item in self.outside} | own | shared


def bundle(
    entry_module: str, keep_comments: bool, written: Mapping[str, str] | None = None
) -> tuple[str, tuple[str, ...]]:
    """Source text of the script, and the names of the modules in it, in order.

    With `keep_comments` the modules' text stays as it is and module docstrings become comments; without it
    only the code stays. `written` has other text for some of the modules than their files, or none for those
    to leave out. Raises StageError, naming the place, for what cannot be put into one script without changing
    its meaning.
    """
    paths = {
        name: path
        for name, path in reachable_modules([entry_module]).items()
        if (path.name != "__init__.py" or _has_code(path)) and (written or {}).get(name) != ""
    }
    for name in paths:
        if not name.startswith(SHIPPED_PREFIX) and name not in (*SHIPPED_MODULES, entry_module):
            shipped = f"{SHIPPED_PREFIX}* and {', '.join(SHIPPED_MODULES)}"
            raise StageError(f"{entry_module} reaches {name}, which does not ship: only {shipped} do")
    texts = {
        name: (written or {}).get(name) or path.read_text(encoding="utf-8") for name, path in paths.items()
    }
    parts = {name: _take_apart(name, text, is_entry=name == entry_module) for name, text in texts.items()}
    try:
        order = tuple(
            TopologicalSorter({name: sorted(parts[name].needs) for name in sorted(parts)}).static_order()
        )
    except CycleError as error:
        raise StageError(f"modules import each other in a circle: {' → '.join(error.args[1])}") from error
    modules = [parts[name] for name in order if name in parts]
    _check_names(modules)
    entry = parts[entry_module]
    future = sorted(set().union(*(part.future for part in modules)))
    pieces = [
        entry.docstring if keep_comments or "__doc__" in entry.body else "",
        f"from __future__ import {', '.join(future)}" if future else "",
        _import_block(set().union(*(part.outside for part in modules))),
        *(_section(part, keep_comments, is_entry=part is entry) for part in modules),
    ]
    source = "\n\n".join(piece for piece in pieces if piece) + "\n"
    compile(source, f"bundle of {entry_module}", "exec", dont_inherit=True)
    return source, tuple(part.name for part in modules)


def imported_packages(source: str) -> set[str]:
    """First part of every module name that `source` imports, at the top or inside functions.

    A module beside the script, imported relatively, is ".".
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else (node.module or "").split(".")[0])
    return found


def _has_code(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return len(tree.body) > (ast.get_docstring(tree) is not None)


def _take_apart(name: str, source: str, is_entry: bool) -> ModuleParts:
    part = ModuleParts(name, name.replace(".", "/") + ".py")
    tree = ast.parse(source)
    cut: list[ast.stmt] = []
    if ast.get_docstring(tree) is not None:
        part.docstring = ast.get_source_segment(source, tree.body[0]) or ""
        cut.append(tree.body[0])
    for statement in tree.body:
        match statement:
            case ast.Import() | ast.ImportFrom():
                _sort_import(part, statement)
                cut.append(statement)
            case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                if statement.orelse:
                    raise StageError(
                        f"{part.path}:{statement.lineno}: `if TYPE_CHECKING` with an else branch "
                        "cannot be bundled"
                    )
                cut.append(statement)
            case ast.If(test=test) if ast.unparse(test) == "__name__ == '__main__'" and not is_entry:
                cut.append(statement)
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                cut.append(statement)
            case _:
                cut += _inner_imports_of_ours(part, statement)
    part.body = _without(part, source, cut)
    return part


def _sort_import(part: ModuleParts, statement: ast.Import | ast.ImportFrom) -> None:
    module = ""
    if isinstance(statement, ast.ImportFrom):  # a relative one is of a module that lies beside the script
        module = "." * statement.level + (statement.module or "")
    if module == "__future__":
        part.future |= {alias.name for alias in statement.names}
    elif _is_ours(statement):
        _take(part, statement)
        part.needs.add(module)
    elif statement.names[0].name == "*":
        raise StageError(f"{part.path}:{statement.lineno}: a star import cannot be bundled")
    else:
        part.outside |= {OutsideImport(module, alias.name, alias.asname) for alias in statement.names}


def _inner_imports_of_ours(part: ModuleParts, statement: ast.stmt) -> Iterator[ast.stmt]:
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and _is_ours(node):
            _take(part, node)
            yield node


def _is_ours(statement: ast.Import | ast.ImportFrom) -> bool:
    modules = (
        [alias.name for alias in statement.names]
        if isinstance(statement, ast.Import)
        else [statement.module or ""]
    )
    return any(module.split(".")[0] in OUR_PACKAGES for module in modules)


def _take(part: ModuleParts, statement: ast.Import | ast.ImportFrom) -> None:
    if isinstance(statement, ast.Import) or any(
        alias.asname or alias.name == "*" for alias in statement.names
    ):
        text = ast.unparse(statement)
        raise StageError(
            f"{part.path}:{statement.lineno}: `{text}` cannot be bundled: write `from module import "
            "name`, not renamed"
        )
    part.taken += [(statement.module or "", alias.name) for alias in statement.names]


def _without(part: ModuleParts, source: str, cut: list[ast.stmt]) -> str:
    lines = source.split("\n")
    for statement in sorted(cut, key=lambda item: item.lineno, reverse=True):
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        indent, rest = (
            lines[first].encode()[: statement.col_offset].decode(),
            lines[last].encode()[statement.end_col_offset :].decode(),
        )
        if indent.strip() or not re.fullmatch(r"\s*(#.*)?", rest):
            raise StageError(
                f"{part.path}:{statement.lineno}: cannot be bundled: put the statement on a line of its own"
            )
        lines[first : last + 1] = [f"{indent}pass"] if indent else []
    return "\n".join(lines).strip("\n")


def _may_occur_twice(value: ast.expr) -> bool:
    is_logger_or_type = isinstance(value, ast.Call) and ast.unparse(value.func) in (
        "logging.getLogger",
        "TypeVar",
    )
    return isinstance(value, ast.Constant) or is_logger_or_type


def _check_names(modules: list[ModuleParts]) -> None:
    owners: dict[str, tuple[str, str]] = {}
    known: dict[str, set[str]] = {}
    for part in modules:
        bindings = part.bindings()
        known[part.name] = set(bindings) | {name for _, name in part.taken}
        for name, target in bindings.items():
            owner, owners_target = owners.setdefault(name, (part.name, target))
            if owners_target != target:
                raise StageError(
                    f"{owner} and {part.name} both define {name!r} at top level: in one script the "
                    "later replaces the other"
                )
            if hasattr(builtins, name) and not name.startswith("__"):
                raise StageError(
                    f"{part.name} defines {name!r} at top level, which would hide Python's own from "
                    "the other modules"
                )
    for part in modules:
        for module, name in part.taken:
            if name not in known.get(module, ()):
                raise StageError(
                    f"{part.name} imports {name!r} from {module}, which defines no such name: "
                    "import it from its own module"
                )


def _import_block(imports: set[OutsideImport]) -> str:
    lines: dict[bool, list[str]] = {True: [], False: []}
    for item in sorted((item for item in imports if not item.module), key=str):
        lines[_is_standard(item.name)].append(f"import {item}")
    for module in sorted({item.module for item in imports if item.module}):
        names = [str(item) for item in sorted(imports, key=str) if item.module == module]
        line = f"from {module} import {', '.join(names)}"
        if len(line) > _LINE_LENGTH:
            line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
        lines[_is_standard(module)].append(line)
    return "\n\n".join("\n".join(group) for group in (lines[True], lines[False]) if group)


def _is_standard(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names


def _section(part: ModuleParts, keep_comments: bool, is_entry: bool) -> str:
    header = f"# ---- {part.path} ----"
    if not keep_comments:
        return f"{header}\n\n{ast.unparse(_without_docstrings(ast.parse(part.body)))}"
    docstring = "" if is_entry or not part.docstring else str(ast.literal_eval(part.docstring))
    comment = "".join(f"# {line}".rstrip() + "\n" for line in docstring.strip().splitlines())
    return f"\n{header}\n{comment}\n{part.body}"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
