"""Description of a preset before it runs: settings, parameters by part, tokens, steps and estimated bytes."""

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
    """The output of `fairway describe` as plain JSON types.

    Raises SpecError for a model that cannot be built.
    """
    train = spec.train
    try:
        size = measure_model(train.model, train.optimizer, spec.quantize)
    except ValueError as error:
        raise SpecError(str(error)) from error
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
        "processes": train.compute.world_size,
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


def print_description(console: Console, description: dict[str, Any]) -> None:
    """Print the description as tables."""
    settings = [
        {
            "name": info["name"],
            "value": shorten(number(info["value"])) or "–",
            "unit": info["unit"],
            "what it is": info["help"],
            "allowed": info["bounds"],
        }
        for info in description["settings"]
    ]
    title = f"Settings of {description['preset']} (--set NAME=VALUE changes one)"
    console.print(rows_table(title, settings, {"value"}, no_wrap={"name"}, box=SIMPLE_HEAD))
    summary = [dict(zip(("figure", "value", "note"), line, strict=True)) for line in _summary(description)]
    console.print(rows_table("Size and length", summary, {"value"}, box=SIMPLE_HEAD, header=False))


def _summary(description: dict[str, Any]) -> Iterator[tuple[str, str, str | Text]]:
    """Figure, value and note of each line about size and length."""
    yield "parameters", f"{description['parameters']:,}", ""
    for part, count in sorted(description["parameters_by_part"].items(), key=lambda item: -item[1]):
        yield f"  {part}", f"{count:,}", f"{count / description['parameters']:.1%}"
    for kind, why in (
        ("idle", "no forward pass uses them"),
        ("frozen", "not trained, as train.optimizer.frozen says"),
    ):
        if parameters := description[f"{kind}_parameters"]:
            yield f"{kind} parameters", f"{sum(parameters.values()):,}", f"{why}: {', '.join(parameters)}"
    cap = (
        f", or as many as {description['max_seconds']:g} s of training hold"
        if description["max_seconds"]
        else ""
    )
    yield "steps", f"{description['max_steps']:,}", f"at most{cap}"
    yield "tokens", f"{description['max_tokens']:,}", f"at most, {description['batch_tokens']:,} a step"
    yield "processes", f"{description['processes']}", description["device"]
    yield "precision", description["precision"], description["precision_note"].partition(": ")[2]
    yield (
        "artifact bytes, estimated",
        f"{description['estimated_artifact_bytes']:,}",
        f"of which code {description['code_bytes']:,}",
    )
    if description["fitted_to_bytes"] is not None:
        unfitted = description["unfitted_blob_bytes"] + description["code_bytes"]
        yield (
            "fitted to",
            f"{description['fitted_to_bytes']:,}",
            f"about {unfitted:,} at quantize.loss_budget_nats, without the fit",
        )
    margin = description["estimated_margin_bytes"]
    verdict = words("to spare") if margin >= 0 else words("OVER", "red")
    yield (
        "limit",
        f"{description['limit_bytes']:,}",
        Text.assemble(f"{abs(margin):,} ", verdict, ", by the estimate"),
    )
