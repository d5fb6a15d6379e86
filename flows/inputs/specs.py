"""Resolution of a run's inputs: preset, form fields and overrides → the spec, its name, its options.

It imports neither Prefect nor torch.
"""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import starmap
from typing import Any

from flows.inputs.form import form_settings
from flows.inputs.ignored import as_given, refuse_foreign, refuse_ignored, without_ignored
from flows.inputs.run_file import run_file_text
from flows.inputs.starts import Start, start_of_preset
from presets import load_preset
from schemas.base import fingerprint
from schemas.errors import SpecError
from schemas.introspect import describe_fields
from schemas.overrides import apply_overrides, as_override, is_tag
from schemas.pipeline import PipelineSpec
from schemas.quantize import QuantizeSpec
from schemas.quantizer_settings import CalibratedSettings, FittingSettings
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from schemas.tokenize_corpus import TokenizedCorpus
from stages.packaging.script import as_shipped, program
from stages.store.machine import resolve_precision


@dataclass(frozen=True)
class Plan:
    """What a run does, resolved once: everything else about it follows from these two."""

    preset: str
    spec: PipelineSpec

    @property
    def label(self) -> str:
        """The run's name: `demo-seed1337-5e884898`."""
        return run_label(self.preset, self.spec)

    @cached_property
    def quantize(self) -> QuantizeSpec:
        """The quantization's settings; where a limit is to be met, with the bytes of the script that will
        ship beside the blob (the script is put together for that, once).
        """
        quantizer = self.spec.quantize
        if not isinstance(quantizer, FittingSettings) or not quantizer.fit.lacks_code:
            return quantizer
        source, _ = program(self.spec.package, self.spec.recipe())
        return quantizer.with_code(len(as_shipped(source, self.spec.package)))

    def with_seed(self, seed: int) -> "Plan":
        """The same run with another seed of the training."""
        train = replace(self.spec.train, seed=seed)
        return replace(self, spec=self.spec.derive(train=train))


def plan_run(preset: str, overrides: Sequence[str], fields: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a run of the preset with the filled form fields and the overrides.

    The plan of a user's preset names the built-in one that it starts from. Raises SpecError as `resolve`
    does.
    """
    start = start_of_preset(preset)
    return plan_from(start, overrides, fields)


def plan_from(start: Start, overrides: Sequence[str], fields: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a run that starts there. Raises SpecError as `resolve` does."""
    return Plan(start.preset, _resolved(start.spec, overrides, fields))


def resolve(preset: str, overrides: Sequence[str], fields: Mapping[str, Any] | None = None) -> PipelineSpec:
    """The preset with the filled form fields and then the overrides applied, the quantizer's grid for
    late QAT, and the precision that `auto` means on this machine.

    Raises SpecError for an unknown preset, setting or value, and for one that the chosen methods ignore.
    """
    return _resolved(start_of_preset(preset).spec, overrides, fields)


def _resolved(base: PipelineSpec, overrides: Sequence[str], fields: Mapping[str, Any] | None) -> PipelineSpec:
    given = dict(fields or {})
    of_fields = form_settings(base, given)
    asked = {f"{name} = {given[name]}": settings for name, settings in of_fields.items()}
    refuse_foreign(base, asked, overrides)
    spec = with_changes(
        base, [*(setting for settings in of_fields.values() for setting in settings), *overrides]
    )
    refuse_ignored(base, spec, asked | as_given(overrides))
    return spec.with_qat_grid()


def with_changes(spec: PipelineSpec, overrides: Sequence[str]) -> PipelineSpec:
    """`spec` with the overrides applied, and its precision resolved for this machine. Raises SpecError."""
    changed: PipelineSpec = resolve_precision(apply_overrides(spec, overrides))
    return changed


def settings_between(preset: str, spec: PipelineSpec) -> tuple[str, ...]:
    """The settings, as dotted.name=value, that make `spec` of the built-in preset.

    Raises SpecError if there are none that do.
    """
    return tuple(starmap(as_override, _differences(preset, spec).items()))


def runnable_settings(plan: Plan) -> dict[str, Any]:
    """The settings by which a new run repeats the plan: those that differ from its preset and count.

    Raises SpecError if there are none that do.
    """
    differing = _differences(plan.preset, plan.spec)
    counting = without_ignored(load_preset(plan.preset), tuple(starmap(as_override, differing.items())))
    names = {setting.partition("=")[0] for setting in counting}
    return {name: value for name, value in differing.items() if name in names}


def as_overrides(plan: Plan) -> tuple[str, ...]:
    """The same as dotted.name=value."""
    return tuple(starmap(as_override, runnable_settings(plan).items()))


def run_file_of(plan: Plan, about: str, with_others: bool = False) -> str:
    """The run file that repeats the plan; `with_others` tells every other setting in a comment.

    Raises SpecError as `runnable_settings` does.
    """
    differing = runnable_settings(plan)
    others = [info for info in describe_fields(plan.spec.without_qat_grid()) if info.name not in differing]
    return run_file_text(plan.preset, differing, about, others if with_others else ())


def _differences(preset: str, spec: PipelineSpec) -> dict[str, Any]:
    """The settings that make `spec` of the built-in preset, with their values."""
    base = resolve_precision(load_preset(preset))
    wanted = spec.without_qat_grid()
    # Another kind or method brings settings with defaults of its own: it comes first.
    found = _differing(base, wanted, is_tag)
    tags = tuple(starmap(as_override, found.items()))
    found |= _differing(apply_overrides(base, tags), wanted, lambda name: not is_tag(name))
    changes = tuple(starmap(as_override, found.items()))
    # Not `resolve`: an earlier run may have a setting that its methods ignore.
    if fingerprint(apply_overrides(base, changes).with_qat_grid()) != fingerprint(spec):
        raise SpecError(
            f"run: its configuration cannot be made of its preset again ({', '.join(changes)}). Run "
            "the pipeline anew"
        )
    return found


def _differing(base: PipelineSpec, wanted: PipelineSpec, counts: Callable[[str], bool]) -> dict[str, Any]:
    """Settings of `wanted`, of those whose name counts, that `base` lacks or has otherwise."""
    before = {info.name: info.value for info in describe_fields(base)}
    return {
        info.name: info.value
        for info in describe_fields(wanted)
        if counts(info.name) and (info.name not in before or before[info.name] != info.value)
    }


def run_label(preset: str, spec: PipelineSpec) -> str:
    """`demo-seed1337-5e884898`: preset, seed, and the beginning of the spec's fingerprint."""
    return f"{preset}-seed{spec.train.seed}-{fingerprint(spec)[:8]}"


def check_quantizer(plan: Plan, tokenized: TokenizedCorpus) -> None:
    """Raises SpecError for what the quantization would only find out after training: too little text,
    less room than the script takes.
    """
    quantizer = plan.quantize
    if isinstance(quantizer, CalibratedSettings):
        try:
            quantizer.calibration.count_in(tokenized.train.num_tokens)
        except ValueError as error:
            raise SpecError(f"quantize.{error}") from error
    refuse_small_limit(plan)


def refuse_small_limit(plan: Plan) -> None:
    """Raises SpecError where the script alone takes the bytes that the package is to be fitted to."""
    quantizer = plan.quantize
    code_bytes = quantizer.fit.code_bytes or 0 if isinstance(quantizer, FittingSettings) else 0
    if quantizer.limit_bytes is not None and code_bytes >= quantizer.limit_bytes:
        smaller = "" if plan.spec.package.compressed else ", or ship it smaller with package.compressed=true"
        raise SpecError(
            f"quantize.fit.limit_bytes = {quantizer.limit_bytes}: the script alone has {code_bytes:,} bytes; "
            f"allow more{smaller}"
        )


def known_stages(names: Sequence[str], option: str) -> tuple[str, ...]:
    """The names, each once. Raises SpecError, naming `option`, for one that is no stage."""
    for name in names:
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.4) or list(STAGES)
            raise SpecError(f"{option} = {name}: no such stage. Did you mean {' or '.join(near)}?")
    return tuple(dict.fromkeys(names))


def run_options(given: RunOptions | None) -> RunOptions:
    """The options, with the stores that FAIRWAY_STORE and FAIRWAY_REMOTE name where they name none.

    Goes to FAIRWAY_FOLDER, the folder that `fairway up` serves: relative paths in forms begin there. Prefect
    imports a flow from the working folder first, so a worker starts its runs in the program's own folder.
    """
    if folder := os.environ.get("FAIRWAY_FOLDER"):
        os.chdir(folder)
    options = given or RunOptions()
    named = {name: os.environ.get(f"FAIRWAY_{name.upper()}") for name in ("store", "remote")}
    missing = {name: value for name, value in named.items() if value and name not in options.model_fields_set}
    return options.derive(**missing) if missing else options
