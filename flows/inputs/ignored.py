"""Settings that the others make idle: one that a user gave is refused, because it would change a key and no
number. (A setting of another quantizer does not exist, and is refused as such.)

Looks at the spec as all fields and overrides together make it. Imports neither Prefect nor torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import SpecError
from schemas.overrides import apply_overrides, foreign_settings
from schemas.pipeline import PipelineSpec
from schemas.quantizer_settings import Ecsq, FittingSettings

ANY_INTEGER = "int8"
"""The integer format that stands for "quantized" to a method that chooses its steps itself."""
_RULE_FORMAT = re.compile(r"quantize\.rules\.(\d+)\.format")


@dataclass(frozen=True)
class _Conditional:
    """The setting or section `name` counts only where `counts` is true; `why` says why not, from the
    spec, and the remedy.
    """

    name: str
    counts: Callable[[PipelineSpec], bool]
    why: Callable[[PipelineSpec], str]

    def is_about(self, dotted: str) -> bool:
        return f"{dotted}.".startswith(f"{self.name}.")


_CONDITIONAL = (
    _Conditional(
        "quantize.loss_budget_nats",
        lambda spec: (
            spec.quantize.limit_bytes is None
            or (isinstance(spec.quantize, Ecsq) and spec.quantize.measured_shares)
        ),
        lambda spec: (
            f"quantize.fit.limit_bytes = {spec.quantize.limit_bytes} decides the steps; leave it out, or "
            "empty the limit: quantize.fit.limit_bytes="
        ),
    ),
    *(
        _Conditional(
            f"quantize.fit.{name}",
            lambda spec: spec.quantize.limit_bytes is not None,
            lambda spec: "no limit is fitted; leave it out, or set quantize.fit.limit_bytes",
        )
        for name in ("code_bytes", "tolerance_fraction")
    ),
    _Conditional(
        "merge.averaging.ema_decay",
        lambda spec: spec.merge.averaging.method == "ema",
        lambda spec: (
            f"merge.averaging.method = {spec.merge.averaging.method} has no decay; leave it out, or "
            "set merge.averaging.method=ema"
        ),
    ),
    *(
        _Conditional(
            f"merge.averaging.{name}",
            lambda spec: spec.merge.averaging.method in ("swa", "ema"),
            lambda spec: (
                f"merge.averaging.method = {spec.merge.averaging.method} averages no snapshots; leave it "
                "out, or set merge.averaging.method to swa or ema"
            ),
        )
        for name in ("start_lr_scale", "every_nth")
    ),
    *(
        _Conditional(
            f"train.qat.{name}",
            lambda spec: spec.train.qat.start_lr_scale > 0,
            lambda spec: "late QAT is off (train.qat.start_lr_scale = 0); leave it out, or switch QAT on",
        )
        for name in ("rules", "grid", "clip_candidates")
    ),
)


def refuse_foreign(
    before: PipelineSpec, asked: Mapping[str, Sequence[str]], overrides: Sequence[str]
) -> None:
    """Refuse what only stands for settings of another method or kind than all that is asked chooses.

    `asked` as for `refuse_ignored`. Raises SpecError that names it, where it belongs, and the remedy.
    """
    settings = [setting for own in asked.values() for setting in own]
    foreign = foreign_settings(before, [*settings, *overrides])
    for given, own in asked.items():
        if own and all(setting in foreign for setting in own):
            raise SpecError(f"{given}: {foreign[own[0]]}")


def refuse_ignored(before: PipelineSpec, after: PipelineSpec, asked: Mapping[str, Sequence[str]]) -> None:
    """Refuse what changes no result.

    `asked`: what the user gave -> the settings, as dotted.name=value, that it stands for.

    `before` is the spec without, `after` the spec with all that was asked. Something that stands for several
    settings is refused where none of them counts. Raises SpecError that names it, why it is ignored, and the
    remedy.
    """
    for given, settings in asked.items():
        reasons = [why_ignored(before, after, setting) for setting in settings]
        if reasons and all(reasons):
            raise SpecError(f"{given}: {reasons[0]}")


def as_given(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Settings that were given as such, in the form that `refuse_ignored` takes."""
    return {" = ".join(part.strip() for part in setting.split("=", 1)): [setting] for setting in overrides}


def why_ignored(before: PipelineSpec, after: PipelineSpec, setting: str) -> str | None:
    """Why the setting, as dotted.name=value, changes no result of `after`; None where it counts, or only
    empties a value.
    """
    name, _, value = (part.strip() for part in setting.partition("="))
    if value in ("", "null"):
        return None
    rule, chooses_steps = _RULE_FORMAT.fullmatch(name), isinstance(after.quantize, FittingSettings)
    if rule and chooses_steps and value.startswith("int"):
        if value == ANY_INTEGER and _is_quantized_anew(before, int(rule[1])):
            return None
        return f"method {after.quantize.method} {_CHOOSES_STEPS}"
    found = (item.why(after) for item in _CONDITIONAL if item.is_about(name) and not item.counts(after))
    return next(found, None)


def without_ignored(before: PipelineSpec, settings: Sequence[str]) -> tuple[str, ...]:
    """Those of `settings`, as dotted.name=value, that count once all of them are applied to `before`; so
    none of another method or kind than they choose.
    """
    foreign = foreign_settings(before, settings)
    known = [setting for setting in settings if setting not in foreign]
    after = apply_overrides(before, known)
    return tuple(setting for setting in known if why_ignored(before, after, setting) is None)


_CHOOSES_STEPS = (
    "chooses its steps itself. Choose a method that takes bits (quantize.method=gptq_lite; for requantize "
    "--method gptq_lite), or another earlier run. Or leave it out, and say what the steps may cost: "
    "quantize.fit.limit_bytes=… or quantize.loss_budget_nats=…"
)


def _is_quantized_anew(before: PipelineSpec, index: int) -> bool:
    """Whether an integer format of this rule means something to a method that chooses its steps: quantized
    instead of floating point, or the embedding as well.
    """
    rules = before.quantize.rules
    return (
        index >= len(rules)
        or not rules[index].format.startswith("int")
        or rules[index].pattern.startswith("tok_emb")
    )
