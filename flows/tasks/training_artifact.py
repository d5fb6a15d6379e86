"""Artifact `training` of a run: loss, held-out score and learning rate, redrawn in place while it trains."""

import base64
import logging
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from pathlib import Path
from uuid import UUID

import numpy as np
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from flows.tasks.showing import SERVER_ERRORS
from schemas.evaluate import Score
from stages.report.plots import training_plot
from stages.report.rows import markdown_table
from stages.training.metrics import Columns, as_columns, read_lines

log = logging.getLogger(__name__)

KEY = "training"
SECONDS_BETWEEN = 15.0
SHARE_BETWEEN = 0.01
"""Of the time so far: a training of hours is drawn some hundred times, not thousands."""
_POINTS_TOLD = 12


class TrainingArtifact:
    """The artifact of one run. A server that does not take it costs a log line, not the run."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._id: UUID | None = None
        self._context: Context | None = None
        self._metrics: Columns = {}
        self._scores: list[tuple[str, Score]] = []

    def follow(self, lines: Path) -> Callable[[], None]:
        """A function that reads the metrics of a training in progress and redraws, seldom enough.

        Call this in the task or flow; the function may be called from other threads of it, at any rate.
        """
        self._context = copy_context()
        began = last = time.monotonic() - SECONDS_BETWEEN

        def look() -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < max(SECONDS_BETWEEN, SHARE_BETWEEN * (now - began)):
                return
            if rows := read_lines(lines):
                last = now
                self.draw(as_columns(rows))

        return look

    def draw(self, metrics: Columns) -> None:
        """Show these metrics, with the columns of `training_plot` and `val_bpb`."""
        self._metrics = metrics
        self._show()

    def add_score(self, name: str, score: Score) -> None:
        """Show the score of a finished model beside the curve; nothing where no training was drawn."""
        if self._metrics:
            self._scores.append((name, score))
            self._show()

    def _show(self) -> None:
        text = self._markdown()
        context = self._context or copy_context()
        try:
            context.copy().run(self._send, text)
        except SERVER_ERRORS as error:
            log.warning(
                "not shown: the training curve: the server did not take it (%s)", type(error).__name__
            )

    def _send(self, text: str) -> None:
        if self._id is None:
            made = create_markdown_artifact(
                key=KEY, markdown=text, description="loss, held-out score and learning rate"
            )
            assert isinstance(made, UUID)  # not a coroutine: nothing here is asynchronous
            self._id = made
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._id, ArtifactUpdate(data=text))

    def _markdown(self) -> str:
        metrics = self._metrics
        marks = [(name, score.loss) for name, score in self._scores]
        picture = base64.b64encode(training_plot(metrics, marks).encode()).decode()
        step, loss, seconds = (metrics[name][-1] for name in ("step", "loss", "seconds"))
        lines = [
            f"# Training of {self._label}",
            f"Step {step:,.0f}, loss {loss:.4f} nats a token, {seconds:.1f} s of training.",
            f"![training](data:image/svg+xml;base64,{picture})",
        ]
        if rows := [*_told(metrics), *((name, score.loss, score.bpb) for name, score in self._scores)]:
            cells = [[name, f"{nats:.4f}", f"{bpb:.4f}"] for name, nats, bpb in rows]
            lines.append(markdown_table(["held-out text after", "nats a token", "val_bpb"], cells))
        return "\n\n".join(lines)


def _told(metrics: Columns) -> list[tuple[str, float, float]]:
    scored = np.flatnonzero(np.isfinite(metrics["val_bpb"]))[-_POINTS_TOLD:]
    return [
        (f"step {metrics['step'][at]:,.0f}", float(metrics["val_nats"][at]), float(metrics["val_bpb"][at]))
        for at in scored
    ]
