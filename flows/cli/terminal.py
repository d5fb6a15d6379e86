"""Tables and figures of `fairway` in the terminal, and as JSON."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import HEAVY_HEAD, Box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from flows.results.compared import tables
from flows.results.frontier_points import PNG_NAME, frontier_rows
from flows.results.plan_table import plan_summary, plan_table
from flows.results.tables import Row, run_table, stage_rows
from schemas.compare import ComparedRuns
from schemas.frontier import Frontier
from schemas.notes import RunNotes
from schemas.pipeline import PipelineReport, PipelineSpec
from schemas.plan import RunPlan
from schemas.printable import printable
from schemas.sample import Sample
from schemas.submission import Rescored, RuleResult
from schemas.techniques import TECHNIQUES
from stages.report import rows as figures
from stages.report.rows import bpb
from stages.store.housekeeping import Unneeded

_STYLES = {"bad": "yellow", "off": "dim", "good": "", "": ""}


def print_report(console: Console, report: PipelineReport, store: Path, techniques: bool = False) -> None:
    """Print the result table of a run, its warnings and its paths; with `techniques` also the audit."""
    console.print()
    console.print(drawn(run_table(report)))
    total = words(f"{report.seconds:.1f} s in all", "dim")
    console.print(rows_table("Stages", stage_rows(report), {"seconds"}))
    console.print(total)
    if techniques:
        console.print(drawn(figures.audit_table(report.audit), no_wrap={"verdict"}))
        if (by_cause := figures.gap_table(report.audit)).rows:
            console.print(drawn(by_cause))
    for finding in report.audit.warnings:
        console.print(
            words(f"warning: {finding.title}: {finding.verdict}: {finding.evidence}", "yellow"),
            soft_wrap=True,
        )
    for name, path in (("report", report.published.html.path), ("package", report.package.folder)):
        console.print(Text.assemble(words(f"{name:8}", "bold"), words(str(store / path))), soft_wrap=True)


def drawn(table: figures.Table, no_wrap: Collection[str] = ()) -> Table:
    """A table of figures; warnings are yellow."""
    styles = [_STYLES[mark] for mark in table.marks]
    return rows_table(table.title, table.dicts(), table.right, no_wrap=no_wrap, styles=styles)


def print_comparison(console: Console, earlier: str, rows: list[Row]) -> None:
    """Print the variants of a requantization."""
    console.print(
        rows_table(f"Quantizations of {earlier}", rows, {"val_bpb", "sliding", "gap to merged", "bytes"})
    )


def print_ablation(console: Console, earlier: str, rows: list[Row]) -> None:
    """Print a configuration with and without techniques."""
    console.print(
        rows_table(
            f"{earlier} without techniques (positive: worse without)",
            rows,
            set(rows[0]) - {"variant", "finding"},
        )
    )


def print_compared(console: Console, compared: ComparedRuns, everything: bool) -> None:
    """Print runs side by side. A table without rows prints only its title, which counts the equal entries."""
    for table in tables(compared, everything):
        console.print(drawn(table) if table.rows else words(table.title, "bold"))
    for sentence in compared.conclusions:
        console.print(words(sentence), soft_wrap=True)


def print_plan(console: Console, plan: RunPlan) -> None:
    """Print what a run would do and take; what may not fit is yellow."""
    console.print(drawn(plan_table(plan)))
    console.print(words(plan_summary(plan), "dim"))
    for warning in plan.warnings:
        console.print(words(f"warning: {warning}", "yellow"), soft_wrap=True)


def print_sample(console: Console, sample: Sample) -> None:
    """Print each text after its prompt; the prompt is bold."""
    for item in sample.continuations:
        ending = ", ended by the model" if item.ended else ""
        details = f"seed {item.seed}, {item.num_tokens} tokens{ending}"
        console.print(words(f"── {sample.source}, {sample.weights}, {details}", "dim"), soft_wrap=True)
        console.print(Text.assemble(words(sample.prompt, "bold"), words(item.text)))


def print_frontier(console: Console, frontier: Frontier, folder: Path) -> None:
    """Print every quantization of a run, and the path of the plot."""
    rows = frontier_rows(frontier)
    console.print(rows_table(f"Quantizations of {frontier.run_name}", rows, set(rows[0]) - {"scheme", ""}))
    console.print(Text.assemble(words("plot    ", "bold"), words(str(folder / PNG_NAME))), soft_wrap=True)


def techniques_table(spec: PipelineSpec) -> Table:
    """The techniques that a run can go without, and whether it has them."""
    rows = [
        {
            "key": technique.key,
            "technique": technique.title,
            "in its place": technique.instead or "nothing",
            "in the run": "on" if technique.is_on(spec) else "off",
        }
        for technique in TECHNIQUES
    ]
    return rows_table("Techniques that --off can name", rows)


def print_seeds(console: Console, label: str, rows: list[Row], conclusions: list[str]) -> None:
    """Print a ledger of seeds and its conclusions."""
    if rows:
        console.print(
            rows_table(f"Seeds of {label}", rows, {"seed", "nats a token", "val_bpb", "sliding", "bytes"})
        )
    for sentence in conclusions:
        console.print(words(sentence.replace("**", "")), soft_wrap=True)


def print_runs(console: Console, entries: list[dict[str, Any]], sorted_by: str = "") -> None:
    """Print one line a run. A run without report has no figures. Tags and the values by which the runs are
    sorted have columns of their own.
    """
    names = ("name", "id", "state", "started", "quantized", "sliding", "bytes", "fits", "seconds")
    rows = [dict(zip(names, _run_cells(entry), strict=True)) for entry in entries]
    if any(_marks(entry) for entry in entries):
        rows = [{**row, "tags": ", ".join(_marks(entry))} for row, entry in zip(rows, entries, strict=True)]
    if sorted_by and sorted_by not in names:
        values = [_plain(entry.get(sorted_by)) for entry in entries]
        rows = [{**row, sorted_by: value} for row, value in zip(rows, values, strict=True)]
    right = {"quantized", "sliding", "bytes", "seconds", sorted_by}
    console.print(rows_table("Runs", rows, right, columns=list(rows[0]) if rows else names, no_wrap={"name"}))


def print_notes(console: Console, report: PipelineReport, notes: RunNotes) -> None:
    """Print the run, its tags and its notes with their numbers; nothing if it has none."""
    if not (marks := _marks(notes.as_json())) and not notes.notes:
        return
    console.print(
        Text.assemble(words(report.name, "bold"), words(f"  {report.run_id[:8]}  {', '.join(marks)}"))
    )
    for number, note in enumerate(notes.notes, 1):
        console.print(words(f"{number:3}  {note.created_at}  {note.text}"), soft_wrap=True)


def _marks(entry: Mapping[str, Any]) -> list[str]:
    return [*(("pinned",) if entry.get("pinned") else ()), *entry.get("tags", ())]


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5f}" if isinstance(value, float) else f"{value}"


def _run_cells(entry: dict[str, Any]) -> Iterator[str | Text]:
    quantized, sliding = entry.get("val_bpb_quantized"), entry.get("val_bpb_quantized_sliding")
    yield from (entry["name"], entry["run_id"][:8], entry["state"], entry["started"])
    yield from ("–" if score is None else bpb(score) for score in (quantized, sliding))
    yield f"{entry['total_bytes']:,}" if "total_bytes" in entry else "–"
    fits: dict[bool | None, str | Text] = {None: "–", True: "yes", False: words("no", "red")}
    yield fits[entry.get("fits")]
    yield f"{entry['seconds']:.1f}" if "seconds" in entry else "–"


def print_rules(console: Console, folder: str, rules: Sequence[RuleResult]) -> None:
    """Print every rule with its verdict and reason."""
    styles = {"pass": "green", "fail": "bold red", "unknown": "yellow"}
    rows: list[dict[str, str | Text]] = [
        {"rule": rule.rule, "verdict": words(rule.verdict, styles[rule.verdict]), "reason": rule.reason}
        for rule in rules
    ]
    console.print(rows_table(f"Rules, {folder}", rows, columns=("rule", "verdict", "reason")))


def print_rescored(console: Console, folder: str, made: Rescored) -> None:
    """Print the scores measured here, and their difference from the claim."""
    sliding, claimed = made.val_bpb_sliding, made.claimed_val_bpb
    best = made.val_bpb_non_overlapping if sliding is None else sliding
    rows = [
        {"figure": "val_bpb non-overlapping", "value": f"{made.val_bpb_non_overlapping:.8f}"},
        {"figure": "val_bpb sliding", "value": "–" if sliding is None else f"{sliding:.8f}"},
        {"figure": "val_loss", "value": f"{made.val_loss:.8f}"},
        {"figure": "scored with", "value": made.scored_with},
        {"figure": "claimed val_bpb", "value": "–" if claimed is None else f"{claimed:.8f}"},
        {"figure": "found − claimed", "value": "–" if claimed is None else f"{best - claimed:+.8f}"},
        {"figure": "targets, bytes of text", "value": f"{made.num_targets:,}, {made.num_bytes:,}"},
        {"figure": "model bytes", "value": f"{made.blob_bytes:,}"},
        {"figure": "scored by", "value": made.scored_by},
        {"figure": "precision", "value": made.precision},
        {"figure": "seconds", "value": f"{made.seconds:.1f}"},
    ]
    console.print(rows_table(f"Rescored, {folder}", rows, {"value"}))
    if claimed is not None and made.claimed_with not in ("", made.scored_with):
        console.print(
            words(f"The claim is for {made.claimed_with}: the difference is one of two kinds of score."),
            soft_wrap=True,
        )


def print_unneeded(
    console: Console,
    unneeded: list[Unneeded],
    store: Path,
    removed: bool,
    title: str = "No run needs",
    command: str = "fairway gc --remove",
) -> None:
    """Print what housekeeping found under `title`, with the command that removes it, or what it removed."""
    names = ("path in the store", "bytes", "what it is")
    rows = [
        dict(zip(names, (str(item.path.relative_to(store)), f"{item.num_bytes:,}", item.reason), strict=True))
        for item in unneeded
    ]
    console.print(rows_table("Removed" if removed else title, rows, {"bytes"}, columns=names))
    total = f"{len(unneeded)} in all, {sum(item.num_bytes for item in unneeded):,} bytes"
    console.print(
        total if removed or not unneeded else f"{total}. Nothing was removed: `{command}` removes it",
        soft_wrap=True,
    )


def print_server_run(console: Console, run: dict[str, Any], stages: list[Row]) -> None:
    """Print a run without report: its state, the reason, and its stages so far."""
    console.print(Text.assemble(words(run["name"], "bold"), words(f"  {run['flow']}  {run['run_id']}")))
    console.print(Text.assemble("state   ", words(run["state"], "bold"), words(f"  {run['started']}")))
    if run["message"]:
        console.print(words(run["message"]), soft_wrap=True)
    if stages:
        console.print(rows_table("Stages", stages, {"seconds"}))


def rows_table(
    title: str,
    rows: Sequence[Mapping[str, str | Text]],
    right: Collection[str] = (),
    *,
    columns: Sequence[str] = (),
    no_wrap: Collection[str] = (),
    styles: Sequence[str] = (),
    box: Box = HEAVY_HEAD,
    header: bool = True,
) -> Table:
    """Rows with equal keys as a table; every table is made here, so that no cell is read as markup.

    `columns` names the keys, which is needed if there are no rows. `right` names columns of numbers,
    `no_wrap` those that stay on one line. `styles` holds a style for each row. A cell is plain text, or one
    of `words`.
    """
    table = Table(title=words(title, "bold"), title_justify="left", box=box, show_header=header)
    for name in columns or rows[0]:
        whole = name in no_wrap
        justify: JustifyMethod = "right" if name in right else "left"
        table.add_column(
            words(name), justify=justify, no_wrap=whole, overflow="ellipsis" if whole else "fold"
        )
    for row, style in zip(rows, styles or [""] * len(rows), strict=True):
        table.add_row(*(words(cell) if isinstance(cell, str) else cell for cell in row.values()), style=style)
    return table


def words(text: str, style: str = "") -> Text:
    """Plain text, without markup and escape sequences."""
    return Text(printable(text), style=style)


def report_json(report: PipelineReport, store: Path) -> dict[str, Any]:
    """The report as plain JSON types, with the figures of the table at the top."""
    figures = {
        "name": report.name,
        "run_id": report.run_id,
        "val_bpb_last": report.val_bpb_last,
        "val_bpb_merged": report.val_bpb_merged,
        "val_bpb_quantized": report.val_bpb_quantized,
        "val_bpb_quantized_sliding": report.val_bpb_quantized_sliding,
        "val_bpb_test_time_training": report.val_bpb_test_time_training,
        "num_parameters": report.packed.num_parameters,
        "total_bytes": report.size.total_bytes,
        "limit_bytes": report.size.limit_bytes,
        "fits": report.size.fits,
        "warnings": [
            f"{finding.title}: {finding.verdict}: {finding.evidence}" for finding in report.audit.warnings
        ],
        "seconds": report.seconds,
        "cached_stages": [stage.stage for stage in report.stages if stage.cached],
        "report_html": str(store / report.published.html.path),
        "package_folder": str(store / report.package.folder),
    }
    return {**figures, "report": report.model_dump(mode="json")}


def unneeded_json(unneeded: Sequence[Unneeded], removed: bool) -> dict[str, Any]:
    """What housekeeping found or removed, as plain JSON types."""
    items = [
        {"path": str(item.path), "num_bytes": item.num_bytes, "reason": item.reason} for item in unneeded
    ]
    return {"removed": removed, "num_bytes": sum(item.num_bytes for item in unneeded), "items": items}
