"""The plan of a run as a table, the same for terminal and Prefect artifacts."""

from schemas.plan import PlannedStage, RunPlan
from stages.report.rows import Table, markdown_table

COLUMNS = ("stage", "why it runs", "seconds", "seconds by", "main memory", "GPU memory", "disk")


def plan_table(plan: RunPlan) -> Table:
    """A row for each stage and one for the sum; with a column of money where it was asked for."""
    priced = plan.cost is not None
    rows = [(*_cells(stage), *([_money(stage.cost)] if priced else [])) for stage in plan.stages]
    rows.append((*_sum(plan), *([_money(plan.cost)] if priced else [])))
    return Table(
        f"Plan of {plan.name}",
        (*COLUMNS, *(["cost"] if priced else [])),
        tuple(rows),
        COLUMNS[:2] + COLUMNS[3:4],
        (*("off" if stage.cached else "" for stage in plan.stages), ""),
    )


def plan_summary(plan: RunPlan) -> str:
    """The length of the run in one line."""
    gpus = f", {plan.gpus} GPU{'s' if plan.gpus > 1 else ''}" if plan.gpus else ""
    return f"{plan.num_parameters:,} parameters, {plan.steps:,} steps, {plan.tokens:,} tokens{gpus}"


def plan_markdown(plan: RunPlan) -> str:
    """The plan for a page: what may not fit, the table, the length of the run."""
    table = plan_table(plan)
    warnings = [f"**{warning}**" for warning in plan.warnings]
    parts = [f"# {table.title}", *warnings, markdown_table(table.columns, table.rows), plan_summary(plan)]
    return "\n\n".join(parts)


def _cells(stage: PlannedStage) -> tuple[str, ...]:
    why = "stored" if stage.cached else "; ".join(stage.reasons)
    by = "" if stage.cached else f"{stage.source}: {stage.details}".removeprefix("unknown: ")
    return (
        stage.stage,
        why,
        _seconds(stage.seconds),
        by,
        *(_size(number) for number in (stage.host_bytes, stage.gpu_bytes, stage.disk_bytes)),
    )


def _sum(plan: RunPlan) -> tuple[str, ...]:
    least = "at least " if plan.unknown else ""
    host, gpu = (max(getattr(stage, name) for stage in plan.stages) for name in ("host_bytes", "gpu_bytes"))
    disk = sum(stage.disk_bytes for stage in plan.stages)
    return ("in all", "", f"{least}{_seconds(plan.seconds)}", "", _size(host), _size(gpu), _size(disk))


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}" if seconds else "0"


def _size(num_bytes: int) -> str:
    if not num_bytes:
        return "–"
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _money(cost: float | None) -> str:
    return "?" if cost is None else f"{cost:.2f}"
