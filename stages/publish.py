"""Publish: every result of a run -> report.html, one page without outside requests, and the loss curve alone.

    python -m stages publish --spec spec.json --input tokenized=…/record.json --input trained=…

`--help` names all inputs.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from schemas.audit import Audit
from schemas.evaluate import how_sliding
from schemas.publish import PublishedReport, PublishSpec
from schemas.results import RunResults
from schemas.sample import REPORT_SAMPLING
from stages.report import content, hover, plots, rows
from stages.store.workspace import Workspace
from stages.training.metrics import Columns, read_metrics

METRIC_COLUMNS = ("step", "loss", "lr_scale", "grad_norm", "qat_on", "snapshot", "muon_momentum", "val_nats")


def publish(spec: PublishSpec, results: RunResults, audit: Audit, work: Workspace) -> PublishedReport:
    """Write the report. Raises StageError when the training metrics lack a column or hold no step."""
    metrics = read_metrics(work.read(results.trained.metrics), METRIC_COLUMNS)
    html, curve = work.out_dir / "report.html", work.out_dir / "loss_curve.svg"
    html.write_text(render(spec, results, audit, metrics), encoding="utf-8")
    curve.write_text(plots.loss_curve(metrics, themed=False), encoding="utf-8")
    return PublishedReport(html=work.ref(html), loss_curve=work.ref(curve))


def render(spec: PublishSpec, results: RunResults, audit: Audit, metrics: Columns) -> str:
    """The whole page. Text from results and settings is escaped; only our own plots go in as markup."""
    steps = [(name, score.bpb) for name, score in rows.score_steps(results)]
    pictures = {
        "loss": hover.hoverable(
            plots.loss_curve(metrics, themed=True), [hover.loss_chart(metrics)], sync="steps"
        ),
        "timeline": hover.hoverable(
            plots.timeline(metrics, themed=True), hover.schedule_charts(metrics), sync="steps"
        ),
        "decomposition": plots.decomposition(steps, rows.compressors(results.tokenized.val), themed=True),
        "budget": plots.budget(rows.budget_parts(results.size), results.size.limit_bytes, themed=True),
    }
    style, scripts, policy = hover.assets()
    sliding_by = how_sliding(
        _setting(spec, "evaluate.scoring.stride"), _setting(spec, "evaluate.scoring.attention_window")
    )
    changes = content.change_rows(results.trained)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("report")),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        **results.by_name(),
        audit=audit,
        spec=spec,
        plots={name: Markup(picture) for name, picture in pictures.items()},
        hover_style=style,
        hover_scripts=scripts,
        policy=policy,
        figures=rows.result_table(results, "", sliding_by),
        averaged=rows.averaged(results),
        audited=rows.audit_table(audit),
        written=content.written_texts(audit),
        sampling=REPORT_SAMPLING,
        scores=rows.score_table(results),
        budget=rows.budget_table(results.size),
        gap=rows.gap_table(audit),
        gain=content.quantization_gain(results.packed),
        tensors=rows.tensor_table(results.packed),
        clip_bars=content.clip_bars(results.packed),
        clip_texts=[content.clip_text(tensor) for tensor in results.packed.tensors],
        training_rows=content.training_rows(results.trained, spec.provenance),
        group_rows=content.group_rows(results.trained),
        change_rows=changes,
        unchanged=sum(same for _, same in changes),
        corpus_rows=content.corpus_rows(results.tokenized),
        setting_rows=[[setting.name, setting.value, setting.unit] for setting in spec.settings],
        machine_rows=content.machine_rows(spec.provenance),
        provenance_rows=[
            [
                origin.stage,
                origin.key[:12],
                origin.created_at,
                f"{origin.seconds:.1f}",
                origin.host,
                origin.code_sha256[:12],
                ", ".join(f"{name} {version}" for name, version in origin.libraries.items()),
            ]
            for origin in spec.provenance
        ],
    )


def _setting(spec: PublishSpec, name: str) -> str:
    return next((setting.value for setting in spec.settings if setting.name == name), "")
