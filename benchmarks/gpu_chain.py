"""Runs of the whole chain on a GPU without Prefect, one after another, with one row of figures for each.

    python -m benchmarks.gpu_chain --store /tmp/store --json results.jsonl \\
        --corpus 'corpus/english-*.parquet' --tokenizer corpus/english8192.model --seconds 120 \\
        --run 'winner: winner-1gpu' \\
        --run 'no loop: winner-1gpu train.model.loop_passes=1'

`--until merge` stops after the merged model's score: enough to compare techniques, and quick. `--until train`
leaves the rest to a later command on the same store, for example while the next run compiles. `--context`
scores the package once more, in windows of that many tokens. A run's row is written after training, merging
and evaluation and at its end, so an interrupted command leaves what it had.

All runs share the store, so the text is tokenized once. A GPU machine needs torch with Triton, numpy,
sentencepiece, pyarrow, pydantic, safetensors, psutil and zstandard.

`--tokenizer` names a ready SentencePiece model. Training one of 8,192 pieces takes minutes on a CPU.
"""

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from flows.inputs.specs import Plan
from presets import load_preset
from schemas.errors import FairwayError
from schemas.overrides import apply_overrides
from schemas.pipeline import PipelineSpec
from schemas.runtime import RunOptions
from schemas.stages import STAGES, result_name
from schemas.tokenize_corpus import FilesCorpus, HashFraction, TokenizerSpec
from schemas.train_settings import ScheduleSettings
from stages.corpora import locate
from stages.execution.runner import StageOutcome, run_stage
from stages.scoring.isolated import check_isolated
from stages.store.machine import resolve_precision
from stages.store.store import Store

CHAIN = ("tokenize_corpus", "train", "merge", "quantize", "package", "check_size", "evaluate")
VAL_FRACTION = 0.02


def spec_of(words: list[str], options: argparse.Namespace) -> PipelineSpec:
    """The preset `words[0]` with the settings that follow, on the corpus, clock and GPUs of the command."""
    preset, *overrides = words
    base = load_preset(preset)
    tokenize = base.tokenize.derive(
        corpus=FilesCorpus(paths=(options.corpus,)),
        tokenizer=TokenizerSpec(vocab_size=base.train.model.vocab_size, model_path=options.tokenizer),
        split=HashFraction(val_fraction=VAL_FRACTION),
        compressor_baselines=False,
    )
    compute = replace(base.train.compute, num_processes=options.gpus)
    schedule: ScheduleSettings = replace(base.train.schedule, max_seconds=options.seconds)
    spec = base.derive(
        tokenize=tokenize,
        train=replace(base.train, seed=options.seed, schedule=schedule, compute=compute),
        merge=base.merge.derive(compute=replace(base.merge.compute, num_processes=options.gpus)),
        evaluate=base.evaluate.derive(compute=replace(base.evaluate.compute, num_processes=options.gpus)),
    )
    chosen: PipelineSpec = resolve_precision(apply_overrides(spec, overrides).with_qat_grid())
    return chosen


def run_chain(
    spec: PipelineSpec, store: Store, until: str, contexts: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run stage after stage; after each give its name and the figures so far.

    Evaluated, the package is scored again in windows of `contexts` tokens.
    """
    whole = {
        "tokenize_corpus": spec.tokenize,
        "package": spec.package_spec(),
        "quantize": Plan("gpu_chain", spec).quantize,
    }
    results: dict[str, Any] = {"manifest": locate(spec.tokenize, store.hashes)}
    seconds: dict[str, float] = {}

    def run(stage: str, stage_spec: Any) -> StageOutcome:
        inputs = {name: results[name] for name in STAGES[stage].inputs}
        return run_stage(store, stage, stage_spec, inputs, RunOptions(store=str(store.root)))

    for stage in CHAIN[: CHAIN.index(until) + 1]:
        outcome = run(stage, whole[stage] if stage in whole else getattr(spec, stage))
        results[result_name(stage)], seconds[stage] = outcome.record.result, outcome.seconds
        if "trained" in results:
            yield stage, figures(results, seconds)
    if "evaluation" in results:
        scoring = spec.evaluate.scoring
        scores = {str(scoring.sequence_length): results["evaluation"].non_overlapping.bpb}
        for context in sorted(set(contexts) - {scoring.sequence_length}):
            other = spec.evaluate.derive(
                scoring=scoring.derive(sequence_length=context, stride=0, attention_window=0)
            )
            scores[str(context)] = run("evaluate", other).record.result.non_overlapping.bpb
        yield "contexts", {"bpb_by_context": scores}


def figures(results: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """The row of one run: steps, speed and scores, as far as the chain went."""
    trained = results["trained"]
    row = {
        "steps": trained.steps,
        "epochs": trained.epochs,
        "training_seconds": trained.timings.training_seconds,
        "ms_a_step": 1000 * trained.timings.training_seconds / trained.steps,
        "train_loss": trained.final_train_loss,
        "peak_gib": trained.timings.peak_memory_bytes / 2**30,
        "parameters": trained.num_parameters,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "warmup_seconds": trained.timings.warmup_seconds,
    }
    if "merged" in results:
        merged = results["merged"]
        row |= {
            "bpb_last": merged.last.bpb,
            "bpb_merged": merged.score.bpb,
            "targets": merged.score.num_targets,
        }
    if "evaluation" in results:
        evaluation = results["evaluation"]
        if learned := evaluation.test_time_training:
            row |= {
                "bpb_ttt": learned.adapted.bpb if learned.adapted else None,
                "bpb_without_ttt": learned.without.bpb,
                "ttt_seconds": learned.seconds,
                "ttt_steps": learned.num_steps,
                "ttt_done_share": learned.done_share,
            }
        row |= {
            "bpb_quantized": evaluation.non_overlapping.bpb,
            "bpb_sliding": evaluation.sliding.bpb if evaluation.sliding else None,
            "total_bytes": results["size"].total_bytes,
            "divergence_nats": results["packed"].divergence_nats,
            "text_seconds": results["packed"].text_seconds,
        }
    return row


def keep(row: dict[str, Any], path: Path | None) -> None:
    """Print the row, and add it to the file if there is one."""
    print(json.dumps(row), flush=True)
    if path:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", action="append", required=True, help="'name: preset setting=value …'")
    parser.add_argument("--corpus", required=True, help="text files or a pattern")
    parser.add_argument("--tokenizer", help="SentencePiece model; without it one is trained")
    parser.add_argument("--seconds", type=float, default=120.0, help="training clock")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--until", choices=CHAIN[1:], default=CHAIN[-1])
    parser.add_argument("--context", action="append", type=int, default=[], help="tokens in a window")
    parser.add_argument("--check", action="store_true", help="only look for what would stop a run")
    parser.add_argument("--store", default=str(ROOT / ".fairway"))
    parser.add_argument("--json", type=Path, help="a line of JSON for each run is added to this file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for run in options.run:
        try:
            spec_of(run.partition(":")[2].split(), options)
        except (FairwayError, ValueError) as error:
            parser.error(f"{run}: {error}")
    last, failed = options.until, 0
    if options.until == CHAIN[-1]:
        last = "contexts"
        try:
            check_isolated()
        except FairwayError as error:
            parser.error(f"--until {options.until}: {error}")
    for run in [] if options.check else options.run:
        name, _, words = run.partition(":")
        began = time.perf_counter()
        row: dict[str, Any] = {"run": name, "settings": words.split(), "seed": options.seed}
        store = Store(options.store)
        try:
            spec = spec_of(words.split(), options)
            for stage, so_far in run_chain(spec, store, options.until, options.context):
                row |= so_far
                if stage in ("train", "merge", "evaluate") and stage != last:
                    keep(row | {"after": stage}, options.json)
        except (FairwayError, OSError, RuntimeError, ValueError) as error:  # the next run is still worth it
            traceback.print_exc()
            row["error"], failed = f"{type(error).__name__}: {error}"[:2000], failed + 1
        row["wall_seconds"] = round(time.perf_counter() - began, 1)
        keep(row, options.json)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
