"""The packaged program train_gpt.py: the core bundled into one script, the run's settings in it,
plain or compressed.
"""

import base64
import dataclasses
import lzma
import sys
from typing import Any

from schemas.errors import StageError
from schemas.lora_recipe import LoraRecipe
from schemas.package import ALLOWED_PACKAGES, LORA_MODULE, SCRIPT_NAME, PackageOptions
from schemas.recipe import Recipe
from stages.packaging.bundle import bundle, imported_packages
from stages.store.machine import machine_in_words

ENTRY_MODULE = "stages.core.program"
RECIPE_MODULE = "stages.core.packaged_recipe"
KERNELS_MODULE = "stages.core.fused_kernels"
_NO_KERNELS = '''"""No Triton kernels here: the run's settings do not ask for them.

Only CUDA builds of PyTorch bring Triton.
"""

from typing import Any


def use_fused_kernels(model: Any, device: Any) -> None:
    raise ValueError(
        "train.compute.fused_kernels = true: this program was packaged without the kernels; "
        "package the run with them"
    )
'''

_NO_LORA = {
    "schemas.lora_settings": "",
    "schemas.lora_recipe": "",
    LORA_MODULE: "",
    "stages.core.lora_option": '''"""No test-time training here: the run's settings do not ask for it."""

from typing import Any


def add_lora_option(parser: Any, recipe: Any) -> None:
    pass


def lora_scores(*given: Any) -> dict[str, Any]:
    return {}
''',
}

# In linecache the unpacked source is found by compilers of kernels, which ask inspect for it.
_UNPACKER = '''"""The submission's program, xz-compressed: `python train_gpt.py --source` prints it."""
import base64, linecache, lzma, sys
source = lzma.decompress(base64.b85decode("{packed}")).decode()
if "--source" in sys.argv:
    sys.exit(print(source))
name = __file__ + " (unpacked)"
linecache.cache[name] = len(source), None, source.splitlines(True), name
exec(compile(source, name, "exec"))
'''


def program(options: PackageOptions, recipe: Recipe | None) -> tuple[str, tuple[str, ...]]:
    """Source of the script that repeats `recipe`, and the modules in it.

    Raises StageError as `package` does.
    """
    written, packages = {RECIPE_MODULE: recipe_source(recipe)}, ALLOWED_PACKAGES
    if recipe is not None and recipe.train.compute.fused_kernels:
        packages = packages | {"triton"}
    else:
        written[KERNELS_MODULE] = _NO_KERNELS
    if not isinstance(recipe, LoraRecipe):
        written |= _NO_LORA
    source, modules = bundle(ENTRY_MODULE, options.keep_comments, written)
    check_imports(source, packages)
    return source, modules


def as_shipped(source: str, options: PackageOptions) -> bytes:
    """The script's bytes: the source, or the source xz-compressed in a line that unpacks and runs it."""
    if not options.compressed:
        return source.encode()
    packed = base64.b85encode(
        lzma.compress(source.encode(), format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    ).decode()
    return _UNPACKER.format(packed=packed).encode()


def recipe_source(recipe: Recipe | None) -> str:
    """The module that holds the settings and this machine in words, as Python source: one setting a line.

    Raises StageError for a precision that is not resolved: the script would compute otherwise than the run
    did.
    """
    if recipe is not None and "auto" in (recipe.train.compute.precision, recipe.compute.precision):
        raise StageError(
            "precision = auto: resolve it first (stages.store.machine.resolve_precision); the script repeats "
            "what the run computed with"
        )
    made_on = machine_in_words(recipe.train.compute) if recipe else ""
    imported: dict[str, set[str]] = {Recipe.__module__: {Recipe.__name__}}
    for cls in _classes(recipe):
        imported.setdefault(cls.__module__, set()).add(cls.__name__)
    lines = [
        f"from {module} import {', '.join(sorted(names))}\n" for module, names in sorted(imported.items())
    ]
    docstring = '"""Settings of the run that this program repeats, and its machine."""'
    return (
        f"{docstring}\n\n{''.join(lines)}\nRECIPE: Recipe | None = {_literal(recipe, 0)}\nMADE_ON = "
        f"{made_on!r}\n"
    )


def _classes(value: Any) -> list[type]:
    if isinstance(value, tuple):
        return [cls for item in value for cls in _classes(item)]
    if not dataclasses.is_dataclass(value):
        return []
    return [
        type(value),
        *(cls for item in dataclasses.fields(value) for cls in _classes(getattr(value, item.name))),
    ]


def _literal(value: Any, depth: int) -> str:
    """A setting as Python source; what fits on a line of its own stays there, apart from the settings of
    a section.
    """
    if dataclasses.is_dataclass(value):
        items = [(f"{item.name}=", getattr(value, item.name)) for item in dataclasses.fields(value)]
        opening, closing, long = (
            f"{type(value).__name__}(",
            ")",
            len(items) > 2 or any(isinstance(item, tuple) for _, item in items),
        )
    elif isinstance(value, tuple):
        items = [("", item) for item in value]
        opening, closing, long = (
            "(",
            ",)" if len(value) == 1 else ")",
            any(dataclasses.is_dataclass(item) for item in value),
        )
    else:
        return repr(value)
    inner = [name + _literal(item, depth + 1) for name, item in items]
    if not long:
        return f"{opening}{', '.join(inner)}{closing}"
    indent = "    " * (depth + 1)
    return opening + "\n" + "".join(f"{indent}{item},\n" for item in inner) + "    " * depth + ")"


def check_imports(source: str, packages: frozenset[str] = ALLOWED_PACKAGES) -> None:
    """Raises StageError if the script imports anything but the standard library and `packages`."""
    if others := sorted(imported_packages(source) - sys.stdlib_module_names - packages):
        allowed = ", ".join(sorted(packages))
        raise StageError(
            f"{SCRIPT_NAME} would import {', '.join(others)}; only the standard library and "
            f"{allowed} may be needed"
        )
