"""What a preset is before it runs: settings, parameters by part, tokens, steps and estimated bytes."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.text import Text

from flows.cli.terminal import rows_table, words
from flows.results.tables import shorten
from schemas.errors import SpecError
from schemas.introspect import describe_fields, number
from schemas.pipeline import PipelineSpec
from stages.packaging.script import as_shipped, program
from stages.quantizing.sizing import measure_model
from stages.store.machine import precision_note


def describe_spec(preset: str, label: str, spec: PipelineSpec) -> dict[str, Any]:
    """Everything `fairway describe` says, as plain JSON types.

    Raises SpecError for a model that cannot be built.
    """
    train = spec.train
    try:
        size = measure_model(train.model, train.optimizer, spec.quantize)
    except ValueError as error:
        raise SpecError(f"train.{error}") from error
    source, _ = program(spec.package, spec.recipe())
    code_bytes = len(as_shipped(source, spec.package))
    fitted_to = spec.quantize.limit_bytes
    # Steps get finer until the package is as large as the limit allows, or coarser until it is as small.
    blob_bytes = size.estimated_blob_bytes if fitted_to is None else max(fitted_to - code_bytes, 0)
    total = blob_bytes + code_bytes
    return {
        "preset": preset,
        "name": label,
        "parameters": size.num_parameters,
        "parameters_by_part": size.parts,
        "idle_parameters": size.idle,
        "frozen_parameters": size.frozen,
        "max_steps": train.schedule.max_steps,
        "max_seconds": train.schedule.max_seconds,
        "batch_tokens": train.data.batch_tokens,
        "max_tokens": train.schedule.max_steps * train.data.batch_tokens,
        "processes": train.compute.num_processes,
        "device": train.compute.device,
        "precision": train.compute.precision,
        "precision_note": precision_note(train.compute),
        "estimated_blob_bytes": blob_bytes,
        "fitted_to_bytes": fitted_to,
        "unfitted_blob_bytes": size.estimated_blob_bytes,
        "code_bytes": code_bytes,
        "estimated_artifact_bytes": total,
        "limit_bytes": spec.check_size.limit_bytes,
        "estimated_margin_bytes": spec.check_size.limit_bytes - total,
        "settings": [dataclasses.asdict(info) for info in describe_fields(spec)],
    }


def print_description(console: Console, told: dict[str, Any]) -> None:
    """The same for people."""
    settings = [
        {
            "name": info["name"],
            "value": shorten(number(info["value"])) or "–",
            "unit": info["unit"],
            "what it is": info["help"],
            "allowed": info["bounds"],
        }
        for info in told["settings"]
    ]
    title = f"Settings of {told['preset']} (--set NAME=VALUE changes one)"
    console.print(rows_table(title, settings, {"value"}, no_wrap={"name"}, box=SIMPLE_HEAD))
    summary = [dict(zip(("figure", "value", "note"), line, strict=True)) for line in _summary(told)]
    console.print(rows_table("Size and length", summary, {"value"}, box=SIMPLE_HEAD, header=False))


def _summary(told: dict[str, Any]) -> Iterator[tuple[str, str, str | Text]]:
    """Figure, value and note of each line about size and length."""
    yield "parameters", f"{told['parameters']:,}", ""
    for part, count in sorted(told["parameters_by_part"].items(), key=lambda item: -item[1]):
        yield f"  {part}", f"{count:,}", f"{count / told['parameters']:.1%}"
    for kind, why in (
        ("idle", "no forward pass uses them"),
        ("frozen", "get no updates, on purpose: train.optimizer.frozen"),
    ):
        if found := told[f"{kind}_parameters"]:
            yield f"{kind} parameters", f"{sum(found.values()):,}", f"{why}: {', '.join(found)}"
    cap = f", or as many as {told['max_seconds']:g} s of training hold" if told["max_seconds"] else ""
    yield "steps", f"{told['max_steps']:,}", f"at most{cap}"
    yield "tokens", f"{told['max_tokens']:,}", f"at most, {told['batch_tokens']:,} a step"
    yield "processes", f"{told['processes']}", told["device"]
    yield "precision", told["precision"], told["precision_note"].partition(": ")[2]
    yield (
        "artifact bytes, estimated",
        f"{told['estimated_artifact_bytes']:,}",
        f"of which code {told['code_bytes']:,}",
    )
    if told["fitted_to_bytes"] is not None:
        unfitted = told["unfitted_blob_bytes"] + told["code_bytes"]
        yield (
            "fitted to",
            f"{told['fitted_to_bytes']:,}",
            f"about {unfitted:,} at quantize.loss_budget_nats, without the fit",
        )
    margin = told["estimated_margin_bytes"]
    verdict = words("to spare") if margin >= 0 else words("OVER", "red")
    yield (
        "limit",
        f"{told['limit_bytes']:,}",
        Text.assemble(f"{abs(margin):,} ", verdict, ", by the estimate"),
    )
