"""The technique audit: every record of a run in; for each technique and each rule what was measured, and
a verdict, out.

The stage's spec is the run's whole PipelineSpec: it says what was switched on. Everything else in a finding
is measured.
"""

from typing import Literal

from pydantic import Field, NonNegativeInt

from schemas.base import Schema
from schemas.gap import GapByCause
from schemas.sample import WrittenStart

Verdict = Literal["took effect", "in part", "no effect", "holds", "broken", "off"]
"""The first three are about techniques, `holds` and `broken` about rules, `off` about what the run did
not ask for.
"""


class AuditOptions(Schema):
    """What the user decides about the audit."""

    gap_tokens: NonNegativeInt = Field(
        16_384,
        description=(
            "validation tokens on which the gap of the quantization is measured by cause; 0 leaves it out"
        ),
    )


class Finding(Schema):
    """One technique or rule."""

    key: str = Field(
        description="short name; of a technique the one that `fairway ablate --off` takes",
        pattern=r"^[a-z][a-z0-9-]*$",
    )
    title: str
    verdict: Verdict
    evidence: str = Field(description="what was measured, in words")
    figures: dict[str, float] = Field(description="the same as numbers, by names that end in their unit")

    @property
    def is_warning(self) -> bool:
        """Switched on and without effect, wholly or in part; or a rule that does not hold."""
        return self.verdict in ("in part", "no effect", "broken")


class Audit(Schema):
    """All findings of a run."""

    findings: tuple[Finding, ...]
    probe_tokens: NonNegativeInt = Field(
        description="validation tokens on which the shipped model was tried without each technique"
    )
    gap: GapByCause | None = Field(
        None, description="what quantization costs, by cause; None where it was not measured"
    )
    written: tuple[WrittenStart, ...] = Field(
        (), description="how validation documents go on by the merged and by the shipped model"
    )

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_warning)

    def finding(self, key: str) -> Finding:
        """The finding of that name. Raises KeyError."""
        return {finding.key: finding for finding in self.findings}[key]
