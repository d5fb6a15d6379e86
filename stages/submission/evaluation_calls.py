"""Call graph analysis: does a program's evaluation reach training data?

The analysis starts at every function whose name says that it evaluates, and follows the calls in its syntax
tree.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stages.submission.python_source import Names

TRAINING_DATA = frozenset(["train_loader", "train_shards", "train_data", "train_tokens", "train_dataset"])
TRAINING_PLACES = frozenset(["train_files", "train_path", "train_pattern", "train_glob", "train_dir"])
TRAINING_NAMES = TRAINING_DATA | TRAINING_PLACES
EVALUATION = re.compile(
    r"(?:^|_)(?:eval|evaluate|evaluation|score|scoring|validate|validation)(?:_|$)", re.IGNORECASE
)
_EVALUATED = re.compile(r"model|net(?:work)?(?:_|$)|eval|val_|loss|bpb|gpt", re.IGNORECASE)
# Calls that say something about their arguments, and calls that only pass them on.
_SAYING = frozenset(
    [
        *(
            "print",
            "log",
            "log0",
            "info",
            "debug",
            "warning",
            "error",
            "write",
            "len",
            "isinstance",
            "issubclass",
            "cast",
            "hasattr",
        ),
        *("exists", "is_file", "is_dir"),
    ]
)
_PASSING = frozenset(
    [
        "join",
        "Path",
        "str",
        "repr",
        "int",
        "float",
        "bool",
        "get",
        "getenv",
        "getattr",
        "format",
        "append",
        "setdefault",
        "basename",
        "dirname",
        "abspath",
        "replace",
        "split",
        "strip",
    ]
)
_MADE_BY = ("__new__", "__init__", "__post_init__")
_MAX_WAYS = 20_000


@dataclass
class Training:
    """`certain` and `possible` hold chains of calls from an evaluating function to training data."""

    evaluation: list[str] = field(default_factory=list)
    certain: list[str] = field(default_factory=list)
    possible: list[str] = field(default_factory=list)
    named: bool = False  # training data is named anywhere in the program


@dataclass
class _Call:
    name: str
    owner: str  # "" for a plain function, "?" for an object of unknown class, else the class
    certain: bool
    above: bool = False  # of super(): the class itself is left out


@dataclass
class _Function:
    name: str
    owner: str
    evaluates: bool = True  # as far as its parameters say
    calls: list[_Call] = field(default_factory=list)
    reads: str = ""  # training data that is read here
    names: str = ""  # training data that is named here, and perhaps read


@dataclass
class _Class:
    bases: list[str]
    methods: dict[str, _Function] = field(default_factory=dict)


@dataclass
class _Program:
    plain: dict[str, list[_Function]] = field(default_factory=dict)
    classes: dict[str, list[_Class]] = field(default_factory=dict)
    methods: dict[str, list[_Function]] = field(default_factory=dict)

    def targets(self, call: _Call, owner: str) -> Iterator[tuple[_Function, bool]]:
        """Yield each function that the call may run, and whether it is certain to run it."""
        if call.owner == "?":
            for method in self.methods.get(call.name, []):
                yield method, False
        elif call.owner:
            for method in self._method(owner if call.owner == "self" else call.owner, call.name, call.above):
                yield method, call.certain and len(self.classes.get(call.owner, [])) < 2
        else:
            functions = self.plain.get(call.name, [])
            for function in functions:
                yield function, call.certain and len(functions) == 1
            classes = self.classes.get(call.name, [])
            for name in _MADE_BY if classes else ():
                for method in self._method(call.name, name, False):
                    yield method, call.certain and len(classes) == 1

    def _method(self, owner: str, name: str, above: bool) -> list[_Function]:
        """The method as the class or its bases in this program define it."""
        waiting, seen = [(owner, above)], {owner}
        while waiting:
            at, skip = waiting.pop(0)
            for definition in self.classes.get(at, []):
                if not skip and name in definition.methods:
                    return [definition.methods[name]]
                waiting += [(base, False) for base in definition.bases if base not in seen]
                seen |= {*definition.bases}
        return []


def follow_evaluation(modules: Iterable[tuple[ast.Module, Names]], own: frozenset[str]) -> Training:
    """Follow the calls of every function whose name says that it evaluates.

    A chain of resolved calls to a call that reads training data is certain. A chain is possible if it goes
    through an object of unknown class or a function that is only passed on, or ends at a mere mention of
    training data. `own` names the program's own modules.
    """
    program, training = _Program(), Training()
    for tree, names in modules:
        _collect(tree, program, names, own)
        training.named = training.named or any(_names_training(node, frozenset()) for node in ast.walk(tree))
    starts = [
        function
        for table in (program.plain, program.methods)
        for name, functions in table.items()
        if name != "eval" and EVALUATION.search(name) and "train" not in name.lower()
        for function in functions
        if function.evaluates
    ]
    training.evaluation = sorted({function.name for function in starts})
    for start in starts:
        _follow(start, program, training)
    training.certain, training.possible = (
        list(dict.fromkeys(training.certain)),
        list(dict.fromkeys(training.possible)),
    )
    return training


def _follow(start: _Function, program: _Program, training: Training) -> None:
    waiting = [(start, start.name, True)]
    seen: set[tuple[int, bool]] = {(id(start), True)}
    while waiting and len(seen) < _MAX_WAYS:
        function, way, certain = waiting.pop(0)
        if function.reads and certain:
            training.certain.append(f"{way}: {function.reads}")
            return
        if function.reads or function.names:
            training.possible.append(f"{way}: {function.reads or function.names}")
        for call in function.calls:
            for target, resolved in program.targets(call, function.owner):
                key = (id(target), certain and resolved)
                if key not in seen and (id(target), True) not in seen:
                    seen.add(key)
                    waiting.append((target, f"{way} → {target.owner or target.name}", certain and resolved))


def _collect(tree: ast.AST, program: _Program, names: Names, own: frozenset[str]) -> None:
    """Every function and class of a module, wherever it is defined."""
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]  # with the class whose body it is
    while waiting:
        node, owner = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                function = _described(child, owner, names, own)
                (program.methods if owner else program.plain).setdefault(child.name, []).append(function)
                if owner:
                    program.classes[owner][-1].methods[child.name] = function
                _collect(child, program, names, own)
            elif isinstance(child, ast.ClassDef):
                bases = [names.dotted(base).rpartition(".")[2] for base in child.bases]
                program.classes.setdefault(child.name, []).append(_Class(bases))
                waiting.append((child, child.name))
            elif not isinstance(child, ast.expr):
                waiting.append((child, owner))


def _described(
    function: ast.FunctionDef | ast.AsyncFunctionDef, owner: str, names: Names, own: frozenset[str]
) -> _Function:
    described = _Function(function.name, owner)
    nodes = list(_executed(function, names))
    given = function.args
    parameters = {
        argument.arg
        for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
        if argument
    }
    # `validate_settings(path)` checks its input; what evaluates has a model, or takes all that it needs from
    # around it.
    checks = "valid" in function.name.lower() and not _EVALUATED.search(function.name)
    described.evaluates = (
        not checks or not parameters - {"self"} or any(_EVALUATED.search(name) for name in parameters)
    )
    made = frozenset(
        node.id for node, _ in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    kinds = _kinds(function, [node for node, _ in nodes], names)
    for node, use in nodes:
        if isinstance(node, ast.Call):
            described.calls += _calls(node, names, own, kinds, parameters | made)
        training_name = _names_training(node, made)
        if not training_name or use == "said":
            continue
        mention = f"{training_name} (line {getattr(node, 'lineno', 0)})"
        name = node.id if isinstance(node, ast.Name) else ""
        is_key = isinstance(node, ast.Constant) and node.value in TRAINING_NAMES
        is_field = (
            isinstance(node, ast.Attribute) and node.attr in TRAINING_DATA
        )  # of an object that may have filled it itself
        if (
            name not in parameters
            and not is_key
            and not is_field
            and (use == "read" or name in TRAINING_DATA)
        ):
            described.reads = described.reads or mention
        else:
            described.names = described.names or mention
    return described


def _executed(
    function: ast.FunctionDef | ast.AsyncFunctionDef, names: Names
) -> Iterator[tuple[ast.AST, str]]:
    """Yield the nodes that run when the function is called, each with its use by the call around it.

    Annotations, docstrings and the bodies of inner functions and classes are left out. The use is "read"
    (perhaps), "said" (only printed or measured), "passed" on, or "" outside of calls.
    """
    body = list(function.body)
    if isinstance(first := body[0], ast.Expr) and isinstance(first.value, ast.Constant):
        body.pop(0)
    waiting: list[tuple[ast.AST, str]] = [(node, "") for node in reversed(body)]
    while waiting:
        node, use = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield node, use
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.AnnAssign):
            children = [part for part in (node.target, node.value) if part is not None]
        elif isinstance(node, ast.Call) and use != "read":
            name = names.dotted(node.func).rpartition(".")[2] or (
                node.func.attr if isinstance(node.func, ast.Attribute) else ""
            )
            only_prints = name in _SAYING or name.endswith(("Error", "Exception", "Warning"))
            if only_prints or use == "said":
                use = "said"
            else:
                use = "passed" if name in _PASSING else "read"
        waiting += [(child, use) for child in reversed(children)]


def _kinds(
    function: ast.FunctionDef | ast.AsyncFunctionDef, nodes: list[ast.AST], names: Names
) -> dict[str, str]:
    """The class of each local name that is made here, or annotated: `loader = Loader(…)`."""
    kinds = {
        argument.arg: names.dotted(argument.annotation).rpartition(".")[2]
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if argument.annotation is not None
    }
    for node in nodes:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and isinstance(node.targets[0], ast.Name)
        ):
            kinds[node.targets[0].id] = names.dotted(node.value.func).rpartition(".")[2]
    return {name: kind for name, kind in kinds.items() if kind}


def _calls(
    node: ast.Call, names: Names, own: frozenset[str], kinds: dict[str, str], local: set[str]
) -> Iterator[_Call]:
    func = node.func
    if isinstance(func, ast.Name):
        if func.id not in local:
            yield _Call(names.modules.get(func.id, func.id).rpartition(".")[2], "", True)
        elif func.id in kinds:
            yield _Call("forward", kinds[func.id], False)
            yield _Call("__call__", kinds[func.id], True)
    elif isinstance(func, ast.Attribute):
        yield from _method_call(func, names, own, kinds)
    if names.dotted(func).rpartition(".")[2] in _SAYING:
        return
    for given in (*node.args, *(word.value for word in node.keywords)):
        if isinstance(given, ast.Name) and given.id not in local:
            yield _Call(given.id, "", False)


def _method_call(
    func: ast.Attribute, names: Names, own: frozenset[str], kinds: dict[str, str]
) -> Iterator[_Call]:
    receiver = func.value
    if isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Name):
        if receiver.func.id == "super":
            yield _Call(func.attr, "self", True, above=True)
        else:
            yield _Call(func.attr, receiver.func.id, True)
    elif isinstance(receiver, ast.Name) and receiver.id in ("self", "cls"):
        yield _Call(func.attr, "self", True)
    elif isinstance(receiver, ast.Name) and receiver.id in kinds:
        yield _Call(func.attr, kinds[receiver.id], True)
        if func.attr not in _MADE_BY:
            yield _Call(func.attr, "?", False)
    elif isinstance(receiver, ast.Name) and receiver.id in names.modules:
        module = names.modules[receiver.id].lstrip(".")
        if module.partition(".")[0] in own:
            yield _Call(func.attr, "", True)
        yield _Call(func.attr, module.rpartition(".")[2], True)  # of a class that is imported from there
    elif isinstance(receiver, ast.Name):
        yield _Call(func.attr, receiver.id, True)  # of a class that is named itself
        if func.attr not in _MADE_BY:
            yield _Call(func.attr, "?", False)
    elif func.attr not in _MADE_BY:
        yield _Call(func.attr, "?", False)


def _names_training(node: ast.AST, local: frozenset[str]) -> str:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return node.id if node.id in TRAINING_NAMES and node.id not in local else ""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return node.attr if node.attr in TRAINING_NAMES else ""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value in TRAINING_NAMES:
            return repr(node.value)
        return (
            repr(node.value[:60]) if any(map(_is_training_file, node.value[:4_000].lower().split())) else ""
        )
    return ""


def _is_training_file(word: str) -> bool:
    at = word.find("train")
    return at >= 0 and ("fineweb_train" in word or word.find("*", at) > 0 or word.find(".bin", at) > 0)
