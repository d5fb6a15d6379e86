"""What a preset is before it runs: settings, parameters by part, tokens, steps and estimated bytes."""

import dataclasses
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.tables import number, shorten
from schemas.errors import SpecError
from schemas.overrides import describe_fields
from schemas.pipeline import PipelineSpec
from stages.machine import precision_note
from stages.script import as_shipped, program
from stages.sizing import measure_model


def describe_spec(preset: str, label: str, spec: PipelineSpec) -> dict[str, Any]:
    """Everything `fairway describe` says, as plain JSON types. Raises SpecError for a model that cannot be built."""
    train = spec.train
    try:
        size = measure_model(train.model, train.optimizer, spec.quantize)
    except ValueError as error:
        raise SpecError(f"train.{error}") from error
    source, _ = program(spec.package, spec.recipe())
    code_bytes = len(as_shipped(source, spec.package))
    fitted_to = spec.quantize.fit.limit_bytes
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
    settings = Table(title=f"Settings of {told['preset']} (--set NAME=VALUE changes one)", title_justify="left", box=SIMPLE_HEAD)
    settings.add_column("name", no_wrap=True)
    settings.add_column("value", justify="right")
    settings.add_column("unit")
    settings.add_column("what it is")
    settings.add_column("allowed")
    for info in told["settings"]:
        settings.add_row(info["name"], shorten(number(info["value"])) or "–", info["unit"], info["help"], info["bounds"])
    console.print(settings)
    summary = Table(title="Size and length", title_justify="left", show_header=False, box=SIMPLE_HEAD)
    summary.add_column("figure")
    summary.add_column("value", justify="right")
    summary.add_column("note")
    summary.add_row("parameters", f"{told['parameters']:,}", "")
    for part, count in sorted(told["parameters_by_part"].items(), key=lambda item: -item[1]):
        summary.add_row(f"  {part}", f"{count:,}", f"{count / told['parameters']:.1%}")
    for kind, why in (("idle", "no forward pass uses them"), ("frozen", "get no updates, on purpose: train.optimizer.frozen")):
        found = told[f"{kind}_parameters"]
        if found:
            summary.add_row(f"{kind} parameters", f"{sum(found.values()):,}", f"{why}: {', '.join(found)}")
    cap = f", or as many as {told['max_seconds']:g} s of training hold" if told["max_seconds"] else ""
    summary.add_row("steps", f"{told['max_steps']:,}", f"at most{cap}")
    summary.add_row("tokens", f"{told['max_tokens']:,}", f"at most, {told['batch_tokens']:,} a step")
    summary.add_row("processes", f"{told['processes']}", told["device"])
    summary.add_row("precision", told["precision"], told["precision_note"].partition(": ")[2])
    summary.add_row("artifact bytes, estimated", f"{told['estimated_artifact_bytes']:,}", f"of which code {told['code_bytes']:,}")
    if told["fitted_to_bytes"] is not None:
        unfitted = told["unfitted_blob_bytes"] + told["code_bytes"]
        summary.add_row("fitted to", f"{told['fitted_to_bytes']:,}", f"about {unfitted:,} at quantize.ecsq.loss_nats, without the fit")
    margin = told["estimated_margin_bytes"]
    verdict = "to spare" if margin >= 0 else "[red]OVER[/red]"
    summary.add_row("limit", f"{told['limit_bytes']:,}", f"{abs(margin):,} {verdict}, by the estimate")
    console.print(summary)
