"""Settings that the chosen methods ignore: one that a user gave is refused, because it would change a key
and no number.

Looks at the spec as all fields and overrides together make it. Imports neither Prefect nor torch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import SpecError
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.quantizer_settings import CALIBRATED_METHODS

ANY_INTEGER = "int8"
"""The integer format that stands for "coded" under ecsq, to which the width means nothing."""
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
        "quantize.clip_candidates",
        lambda spec: spec.quantize.method == "gptq_lite",
        lambda spec: (
            f"method {spec.quantize.method} searches no clip ratios; leave it out, or take the "
            "method gptq_lite alone"
        ),
    ),
    _Conditional(
        "quantize.calibration",
        lambda spec: spec.quantize.method in CALIBRATED_METHODS,
        lambda spec: (
            f"method {spec.quantize.method} reads no calibration text; leave it out, or take "
            f"{' or '.join(CALIBRATED_METHODS)}"
        ),
    ),
    _Conditional(
        "quantize.ecsq",
        lambda spec: spec.quantize.method == "ecsq",
        lambda spec: (
            f"method {spec.quantize.method} takes no settings of ecsq; leave it out, or set "
            "quantize.method=ecsq"
        ),
    ),
    _Conditional(
        "quantize.ecsq.loss_nats",
        lambda spec: spec.quantize.fit.limit_bytes is None or spec.quantize.ecsq.measured_shares,
        lambda spec: (
            f"quantize.fit.limit_bytes = {spec.quantize.fit.limit_bytes} decides the steps; leave it out, or "
            "empty the limit: quantize.fit.limit_bytes="
        ),
    ),
    *(
        _Conditional(
            f"quantize.fit.{name}",
            lambda spec: spec.quantize.fit.limit_bytes is not None,
            lambda spec: (
                "no limit is fitted; leave it out, or set quantize.method=ecsq and quantize.fit.limit_bytes"
            ),
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
    if (rule := _RULE_FORMAT.fullmatch(name)) and after.quantize.method == "ecsq" and value.startswith("int"):
        return None if value == ANY_INTEGER and _is_coded_anew(before, int(rule[1])) else _CHOOSES_STEPS
    found = (item.why(after) for item in _CONDITIONAL if item.is_about(name) and not item.counts(after))
    return next(found, None)


def without_ignored(before: PipelineSpec, settings: Sequence[str]) -> tuple[str, ...]:
    """Those of `settings`, as dotted.name=value, that count once all of them are applied to `before`."""
    after = apply_overrides(before, settings)
    return tuple(setting for setting in settings if why_ignored(before, after, setting) is None)


_CHOOSES_STEPS = (
    "method ecsq chooses its steps itself; leave it out, and say what they may cost: "
    "quantize.fit.limit_bytes=… or quantize.ecsq.loss_nats=…"
)


def _is_coded_anew(before: PipelineSpec, index: int) -> bool:
    """Whether an integer format of this rule means something to ecsq: coded instead of floating point, or
    the embedding as well.
    """
    rules = before.quantize.rules
    return (
        index >= len(rules)
        or not rules[index].format.startswith("int")
        or rules[index].pattern.startswith("tok_emb")
    )
