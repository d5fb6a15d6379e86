"""Variants of an earlier run's quantization: what a form or a command asks, as settings and plans.

It imports neither Prefect nor torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, Self

from flows.inputs.form import AS_IT_IS, clip_override, format_overrides
from flows.inputs.ignored import ANY_INTEGER, as_given, refuse_foreign, refuse_ignored, why_ignored
from flows.inputs.specs import Plan, check_quantizer, with_changes
from schemas.errors import SpecError
from schemas.overrides import foreign_settings
from schemas.pipeline import PipelineReport
from schemas.quantizer_settings import Ecsq
from stages.store.runs import find_run, require_files
from stages.store.store import Store

CHANGEABLE = ("quantize", "package", "check_size", "evaluate", "publish")
MAX_VARIANTS = 32
FITTING = Ecsq.method
"""The method that meets a limit."""


@dataclass(frozen=True)
class Variation:
    """A variant: its name, the settings of each field that makes it, and all of its settings, as
    dotted.name=value.
    """

    name: str
    fields: Mapping[str, Sequence[str]]
    settings: list[str]


@dataclass(frozen=True)
class Variants:
    """The variants of an earlier run, each with its plan."""

    earlier: PipelineReport
    items: Sequence[Variation]
    plans: Sequence[Plan]


@dataclass(frozen=True)
class Asked:
    """As the user says it; what the fields mean is told where `requantize` is."""

    run: str
    bits: Sequence[str] = ()
    edge_bits: str = AS_IT_IS
    embedding_format: str = AS_IT_IS
    clip_grids: Sequence[str] = ()
    methods: Sequence[str] = ()
    limit_bytes: int | None = None
    zstd_level: int | None = None
    overrides: Sequence[str] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """As the parameters of the flow say it."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def variants(self, store: Store) -> Variants:
        """The variants, ready to run.

        Raises SpecError for what would not be carried out, and for an earlier run whose files are gone.
        """
        self._refuse_others_of_fit()
        earlier = find_run(store.runs_root(), self.run, fitting=True)
        shared = self._shared_fields(earlier)
        common = self._common(earlier, shared)
        items = _variants(earlier, self.bits, self.clip_grids, self.methods, common, self.overrides)
        if self.limit_bytes is not None:
            items = [replace(item, name=f"at most {self.limit_bytes:,} bytes") for item in items]
        for item in items:
            refuse_foreign(earlier.spec, item.fields, item.settings)
        plans = [Plan(earlier.preset, with_changes(earlier.spec, item.settings)) for item in items]
        _check(store, earlier, items, plans, shared, self.overrides)
        return Variants(earlier, items, plans)

    def _refuse_others_of_fit(self) -> None:
        others = self.bits or self.clip_grids or set(self.methods) - {FITTING}
        if self.limit_bytes is not None and others:
            raise SpecError(
                f"limit_bytes = {self.limit_bytes}: is met by the method {FITTING}, which takes neither bits "
                "nor clip_grids; choose none of them and no other method"
            )

    def _shared_fields(self, earlier: PipelineReport) -> dict[str, list[str]]:
        """The filled fields that all variants share, with their settings."""
        asked = {"edge_bits": self.edge_bits, "embedding_format": self.embedding_format}
        rules = earlier.spec.quantize.rules
        return {
            f"{name} = {wanted}": format_overrides("quantize.rules", rules, {name: wanted})
            for name, wanted in asked.items()
            if wanted != AS_IT_IS
        }

    def _common(self, earlier: PipelineReport, shared: Mapping[str, Sequence[str]]) -> list[str]:
        """The settings of every variant, but for the overrides."""
        common = [] if self.zstd_level is None else [f"quantize.zstd_level={self.zstd_level}"]
        if self.limit_bytes is not None:
            common += [
                f"quantize.method={FITTING}",
                f"quantize.fit.limit_bytes={self.limit_bytes}",
                "quantize.fit.code_bytes=null",
            ]
        common += [setting for settings in shared.values() for setting in settings]
        only_fitting = self.limit_bytes is not None or set(self.methods) == {FITTING}
        if self.embedding_format == AS_IT_IS and only_fitting:
            rules = earlier.spec.quantize.rules
            common += format_overrides("quantize.rules", rules, {"embedding_format": ANY_INTEGER})
        return common


def _variants(
    earlier: PipelineReport,
    bits: Sequence[str],
    clip_grids: Sequence[str],
    methods: Sequence[str],
    common: list[str],
    overrides: Sequence[str],
) -> list[Variation]:
    """Every combination of what was chosen, each with `common` and with the `overrides` that it can have."""
    rules = earlier.spec.quantize.rules
    axes = [
        [
            (wanted, f"bits = {wanted}", format_overrides("quantize.rules", rules, {"bits": wanted}))
            for wanted in bits
        ],
        [
            (f"clips {grid.strip()}", f"clip_grids = {grid}", [clip_override(grid)])
            for grid in clip_grids
            if grid.strip()
        ],
        [(method, f"methods = {method}", [f"quantize.method={method}"]) for method in methods],
    ]
    variants = []
    for combination in product(*(axis for axis in axes if axis)):
        shared = [*common, *overrides]
        name = ", ".join(label for label, _, _ in combination) or ", ".join(shared) or "the same settings"
        fields = {field: settings for _, field, settings in combination}
        own = [setting for settings in fields.values() for setting in settings]
        variants.append(Variation(name, fields, [*own, *shared]))
    if len(variants) > MAX_VARIANTS:
        raise SpecError(
            f"bits × clip_grids × methods = {len(variants)} variants: at most {MAX_VARIANTS} at "
            "once; choose fewer"
        )
    return _without_those_of_others(earlier, variants, overrides)


def _without_those_of_others(
    earlier: PipelineReport, variants: Sequence[Variation], overrides: Sequence[str]
) -> list[Variation]:
    """The variants, each without those of `overrides` that only other variants' methods have.

    One that no variant's method has stays, and is refused where it is applied.
    """
    foreign = [foreign_settings(earlier.spec, item.settings) for item in variants]
    of_some = set(overrides) - set(foreign[0]).intersection(*foreign)
    return [
        replace(item, settings=[text for text in item.settings if text not in of_some or text not in others])
        for item, others in zip(variants, foreign, strict=True)
    ]


def _check(
    store: Store,
    earlier: PipelineReport,
    variants: Sequence[Variation],
    plans: list[Plan],
    shared: Mapping[str, Sequence[str]],
    overrides: Sequence[str],
) -> None:
    """Refuse settings that would not be carried out, and an earlier run whose files are gone, before
    anything runs.

    `shared`: the filled fields that all variants share, with their settings. A field must count in every
    variant that has it; an override of all variants is refused where no variant has a use for it.
    """
    specs = [plan.spec for plan in plans]
    for item, spec in zip(variants, specs, strict=True):
        for section in ("tokenize", "train", "merge"):
            if getattr(spec, section) != getattr(earlier.spec, section):
                named = next(change for change in item.settings if change.startswith(f"{section}."))
                raise SpecError(
                    f"{named}: is decided before quantization; requantize changes "
                    f"{', '.join(CHANGEABLE)}. Use `fairway run`"
                )
        refuse_ignored(earlier.spec, spec, {**item.fields, **shared})
    for plan in plans:
        check_quantizer(plan, earlier.tokenized)
    for given, settings in as_given(overrides).items():
        users = [spec for spec, item in zip(specs, variants, strict=True) if settings[0] in item.settings]
        if all(why_ignored(earlier.spec, spec, settings[0]) for spec in users):
            refuse_ignored(earlier.spec, users[0], {given: settings})
    needed = (
        earlier.merged.weights,
        earlier.tokenized.train_shards,
        earlier.tokenized.val_shards,
        earlier.tokenized.tokenizer,
        earlier.trained.metrics,
    )
    require_files(store, earlier, needed)
