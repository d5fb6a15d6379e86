"""The techniques that a run can have or go without: what each is called, and the settings that switch it off.

The audit looks for the effect of each one that a run has switched on, and `fairway ablate --off KEY` trains
without it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from schemas.errors import SpecError
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.quantizer_settings import RoundToNearest


@dataclass(frozen=True)
class Technique:
    """`off` gives the settings, as dotted.name=value, that take the technique away from a run and leave
    the rest as it is.

    `instead` says what stands in its place, where that is not simply nothing.
    """

    key: str
    title: str
    off: Callable[[PipelineSpec], tuple[str, ...]]
    instead: str = ""

    def without(self, spec: PipelineSpec) -> PipelineSpec:
        """`spec` with the technique switched off. Raises SpecError where another setting needs it."""
        return apply_overrides(spec, self.off(spec))

    def is_on(self, spec: PipelineSpec) -> bool:
        return self.without(spec) != spec


def _set(*settings: str) -> Callable[[PipelineSpec], tuple[str, ...]]:
    return lambda spec: settings


def _no_span(dotted: str, settings: object) -> tuple[str, ...]:
    """0 for whichever of `dotted`_fraction and `dotted`_steps is the one in use."""
    in_steps = getattr(settings, f"{dotted.rpartition('.')[2]}_steps") is not None
    return (f"{dotted}_{'steps' if in_steps else 'fraction'}=0",)


def _plain_rounding(spec: PipelineSpec) -> tuple[str, ...]:
    """Late QAT stays as it was: its grid would follow the quantizer."""
    changes = [f"quantize.method={RoundToNearest.method}"]
    qat = spec.train.qat
    if qat.grid != "of_quantizer":
        changes += [
            f"train.qat.grid={qat.grid}",
            f"train.qat.clip_candidates={json.dumps(qat.clip_candidates)}",
        ]
    return tuple(changes)


TECHNIQUES = (
    Technique("xsa", "exclusive self-attention (XSA)", _set("train.model.xsa_layers=0")),
    Technique("ve", "shared value embedding", _set("train.model.value_embedding_dim=0")),
    Technique("smear", "SmearGate", _set("train.model.smear_gate=false")),
    Technique(
        "smear-bos",
        "SmearGate stops at BOS",
        lambda spec: ("train.model.smear_stops_at_bos=false",) * spec.train.model.smear_gate,
    ),
    Technique(
        "unet",
        "U-Net skips",
        lambda spec: (
            "train.model.unet_skips=false",
            *("train.model.skip_gates=false",) * spec.train.model.skip_gates,
        ),
    ),
    Technique("skip-gates", "gates of the skips", _set("train.model.skip_gates=false"), "plain addition"),
    Technique("loops", "loops over layers", _set("train.model.loop_passes=1"), "each layer once"),
    Technique("leaky", "leaky relu²", _set("train.model.leaky_slope=0"), "relu²"),
    Technique(
        "parallel", "parallel residuals", _set("train.model.parallel_residuals=off"), "one after the other"
    ),
    Technique("head-gate", "gates of the heads", _set("train.model.head_gate=false")),
    Technique("untied", "untied output head", _set("train.model.tied_head=true"), "the token embedding"),
    Technique(
        "rope",
        "partial RoPE",
        lambda spec: (f"train.model.rope_dims={spec.train.model.head_dim // 2 * 2}",),
        "all dims rotate",
    ),
    Technique("ln-scale", "LN scale", _set("train.model.ln_scale=false")),
    Technique("softcap", "logit softcap", _set("train.model.logit_softcap=1e6"), "a cap of 1e6"),
    Technique(
        "momentum",
        "momentum warm-up",
        lambda spec: _no_span("train.optimizer.muon_momentum_warmup", spec.train.optimizer),
    ),
    Technique(
        "decay",
        "weight decay",
        _set(
            "train.optimizer.muon_weight_decay=0",
            "train.optimizer.adam_weight_decay=0",
            "train.optimizer.embedding_weight_decay=",
            "train.optimizer.scalar_weight_decay=",
        ),
    ),
    Technique("document-rows", "rows that begin with documents", _set("train.data.windows=stream")),
    Technique(
        "progressive-context",
        "progressive context",
        _set("train.data.context_lengths=[]", "train.data.context_ends=[]"),
        "whole sequences throughout",
    ),
    Technique("row-norm", "row-normalised Muon (MuonEq-R)", _set("train.optimizer.muon_row_normalize=false")),
    Technique("grad-clip", "gradient clipping", _set("train.optimizer.grad_clip_norm=0")),
    Technique(
        "warmdown",
        "learning-rate warmdown",
        lambda spec: _no_span("train.schedule.warmdown", spec.train.schedule),
    ),
    Technique("lr-floor", "learning-rate floor", _set("train.schedule.min_lr_scale=0")),
    Technique("qat", "late QAT", _set("train.qat.start_lr_scale=0")),
    Technique("swa", "averaging of weights", _set("merge.averaging.method=last"), "the last iterate"),
    Technique("quantizer", "quantizer", _plain_rounding, "plain rounding"),
    Technique(
        "document-windows",
        "scoring inside documents",
        _set("merge.scoring.windows=stream", "evaluate.scoring.windows=stream"),
        "windows over the stream",
    ),
    Technique("sliding", "sliding windows", _set("evaluate.scoring.stride=0")),
    Technique(
        "attention-window",
        "attention over the nearest tokens",
        _set("evaluate.scoring.attention_window=0"),
        "windows that do not overlap",
    ),
    Technique("test-time-training", "test-time training", _set("evaluate.test_time_training.on=false")),
)


def find_technique(key: str) -> Technique:
    """The technique of that key. Raises SpecError that names the nearest."""
    found = {technique.key: technique for technique in TECHNIQUES}.get(key)
    if found is None:
        keys = [technique.key for technique in TECHNIQUES]
        near = get_close_matches(key, keys, n=1)
        raise SpecError(
            f"off = {key}: {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(keys)}"
        )
    return found
