"""The end of a run in words and figures, for its event and the message about it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FINISHED, FAILED, OVER_LIMIT = "fairway.run.finished", "fairway.run.failed", "fairway.run.over-limit"
EVENTS = (FINISHED, FAILED, OVER_LIMIT)
"""The events that a run gives when it ends by itself; Prefect's `Crashed` stands for a killed one."""

STAGE, RESULT, VAL_BPB, TOTAL_BYTES, LIMIT_BYTES, REPORT = (
    f"fairway.{name}" for name in ("stage", "result", "val_bpb", "bytes", "limit_bytes", "report")
)
"""Labels of a run on the server: the stage at work, a result in words, and the figures once known."""
_WORDS = {FINISHED: "finished", FAILED: "failed", OVER_LIMIT: "is over the limit"}
_NOISE = re.compile(r"(Flow|Task) run encountered an exception:? ?((Spec|Stage|Stopped|Storage)Error: )?")
"""What Prefect writes before the message of an exception; of our own errors the class says nothing more."""


@dataclass(frozen=True)
class Ending:
    """An ended run: the event's name, the message's subject and text, and the figures that are known."""

    event: str
    subject: str
    text: str
    figures: Mapping[str, Any]

    @property
    def payload(self) -> dict[str, Any]:
        """The event's payload."""
        return {"subject": self.subject, "text": self.text, **self.figures}


def reason(message: str | None) -> str:
    """The message of a state without Prefect's words, wherever they stand; empty where there is none."""
    return _NOISE.sub("", message or "")


def ending(name: str, completed: bool, message: str, labels: Mapping[str, Any]) -> Ending:
    """The ending of the run `name`. `message`: that of its last state; `labels`: those of the run."""
    figures = {
        label.removeprefix("fairway."): labels[label]
        for label in (STAGE, RESULT, VAL_BPB, TOTAL_BYTES, LIMIT_BYTES, REPORT)
        if label in labels
    }
    over = figures.get("bytes", 0) > figures.get("limit_bytes", float("inf"))
    event = FINISHED if completed else OVER_LIMIT if over else FAILED
    lines = []
    if event == FAILED and "stage" in figures:
        lines.append(f"Stage: {figures['stage']}")
    if event != FINISHED:
        lines.append(reason(message))
    if "result" in figures:
        lines.append(figures["result"])
    if "val_bpb" in figures:
        lines.append(f"val_bpb: {figures['val_bpb']:.5f}")
    if "bytes" in figures:
        lines.append(f"Bytes: {figures['bytes']:,} of {figures['limit_bytes']:,}")
    if "report" in figures:
        lines.append(f"Report: {figures['report']}")
    return Ending(event, f"Fairway: {name} {_WORDS[event]}", "\n".join(lines), figures)
