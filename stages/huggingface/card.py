"""Model card of an exported model: the README.md of the folder."""

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from schemas.evaluate import sliding_of
from schemas.huggingface import TRANSFORMERS_PACKAGES
from schemas.pipeline import PipelineReport
from schemas.sample import Weights
from schemas.tokenize_corpus import HuggingFaceCorpus
from stages.report.rows import Table, audit_table, bpb, markdown_table, result_table
from stages.store.runs import records_of
from stages.store.store import Store

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer("The state of our Union", return_tensors="pt")
written = model.generate(**ids, max_new_tokens=60, do_sample=True, temperature=0.8, top_k=50)
print(tokenizer.decode(written[0], skip_special_tokens=True))
```"""


def model_card(store: Store, report: PipelineReport, weights: Weights) -> str:
    """The card as Markdown with a YAML head, in the form that the Hugging Face hub reads.

    It names files by their sha256 and datasets of the hub by name and revision, but no path of this machine.
    """
    score = report.evaluation.non_overlapping if weights == "packed" else report.merged.score
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fairway"],
        model_name=report.name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=report.spec.tokenize.corpus.kind,
                dataset_name="held-out documents of the training corpus",
                metric_type="bits_per_byte",
                metric_name="bits per byte, non-overlapping windows",
                metric_value=round(score.bpb, 8),
            )
        ],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(store, report, weights)}"))


def _text(store: Store, report: PipelineReport, weights: Weights) -> str:
    model, scoring = report.merged.model, report.spec.evaluate.scoring
    kind = (
        f"the weights of the run's package: quantized by {report.packed.method}, stored here as float32"
        if weights == "packed"
        else f"the averaged weights ({report.merged.averaged}) before quantization, float32"
    )
    sections = {
        f"# {report.name}": (
            f"A causal language model of {report.packed.num_parameters:,} parameters, {model.num_layers} "
            f"layers of width {model.model_dim}, trained with Fairway on rows of "
            f"{report.spec.train.data.sequence_length:,} tokens. The file holds {kind}."
        ),
        "## Use": (
            f"Install {', '.join(TRANSFORMERS_PACKAGES)}. `trust_remote_code=True` runs the three Python "
            f"files beside this one, so read them first.\n\n{_USE}\n\nEach text begins with BOS, as each "
            "training document did. The model has no cache of keys and values. llama.cpp (GGUF) does not "
            "know the model."
        ),
        "## Figures": _markdown(result_table(report, "", sliding_of(scoring))),
        "## Data": _data(store, report),
        "## Audit: the effect of each technique": _audit(report),
    }
    return "\n\n".join(f"{heading}\n\n{text}" for heading, text in sections.items()) + "\n"


def _markdown(table: Table) -> str:
    return markdown_table(table.columns, table.rows)


def _audit(report: PipelineReport) -> str:
    """Findings about what was on, warnings first."""
    table = audit_table(report.audit)
    rows = [row for row, mark in zip(table.rows, table.marks, strict=True) if mark != "off"]
    return markdown_table(table.columns, rows)


def _data(store: Store, report: PipelineReport) -> str:
    tokenized, corpus = report.tokenized, report.spec.tokenize.corpus
    record = records_of(store, report).get("tokenize_corpus")
    source: dict[str, str] = {"corpus": corpus.kind}
    if isinstance(corpus, HuggingFaceCorpus):
        source |= {"dataset": corpus.dataset, "revision": corpus.revision, "split": corpus.split}
    if record is not None:
        source["files (fingerprint)"] = record.provenance.inputs["manifest"]
    source |= {
        "tokenizer (sha256)": tokenized.tokenizer_sha256,
        "validation shards (sha256)": ", ".join(ref.sha256 for ref in tokenized.val_shards),
    }
    rows = [[name, value] for name, value in source.items()]
    for split, counts in (("training", tokenized.train), ("validation", tokenized.val)):
        rows.append([split, f"{counts.num_documents:,} documents, {counts.num_tokens:,} tokens"])
    rows.append(["bits per byte of the validation text", _scores(report)])
    return markdown_table(["", ""], rows)


def _scores(report: PipelineReport) -> str:
    return f"{bpb(report.val_bpb_merged)} before quantization, {bpb(report.val_bpb_quantized)} after it"
