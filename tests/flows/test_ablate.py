"""What a technique is worth: the variants, their differences with the same seeds, and what is refused."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Completed, Failed
from typer.testing import CliRunner

from flows import ablate as module
from flows.ablate import ablate
from flows.cli.main import app
from flows.inputs.ignored import without_ignored
from flows.inputs.specs import resolve, settings_between
from flows.results.ablation import Variant, ablation_rows, plan_variants
from presets import PRESETS, load_preset
from schemas.errors import SpecError, StageError
from schemas.evaluate import LoraScores
from schemas.runtime import RunOptions
from schemas.stages import STAGES
from schemas.techniques import TECHNIQUES, Technique, find_technique
from stages.store.runs import save_report
from tests.faults.chain import Chain

FORMS = (
    "train.model.leaky_slope=0.5",
    "train.model.loop_passes=2",
    "train.model.loop_layers=[1]",
    "train.model.skip_gates=true",
    "train.model.parallel_residuals=two_lanes",
    "train.model.parallel_first_layer=2",
    "train.model.head_gate=true",
    "train.model.tied_head=false",
    "train.optimizer.muon_row_normalize=true",
    "train.schedule.min_lr_scale=0.05",
    "train.data.windows=documents",
    "train.data.context_lengths=[16, 32]",
    "train.data.context_ends=[0.1, 0.5]",
    "merge.scoring.windows=documents",
    "evaluate.scoring.windows=documents",
    "evaluate.test_time_training.on=true",
)
"""What turns on the techniques that `smoke` has off, but for the next one."""

ATTENTION_WINDOW = ("evaluate.scoring.stride=0", "evaluate.scoring.attention_window=64")
"""In the place of sliding windows."""


@pytest.mark.parametrize("preset", PRESETS)
def test_every_technique_of_a_preset_can_be_left_out_alone(preset: str) -> None:
    spec = resolve(preset, [])
    for technique in TECHNIQUES:
        if technique.is_on(spec):
            other = technique.without(spec)
            assert not technique.is_on(other), technique.key
            still_on = {item.key for item in TECHNIQUES if item.is_on(other)}
            # Without SmearGate there is nothing that could stop at BOS, without skips nothing to gate.
            gone = {technique.key, *{"smear": ["smear-bos"], "unet": ["skip-gates"]}.get(technique.key, [])}
            assert still_on == {item.key for item in TECHNIQUES if item.is_on(spec)} - gone


def test_skips_are_left_out_with_their_gates() -> None:
    spec = resolve("smoke", FORMS)
    other = find_technique("unet").without(spec)
    assert not other.train.model.unet_skips
    assert not other.train.model.skip_gates
    assert find_technique("skip-gates").without(spec).train.model.unet_skips


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.seed=7", "train.schedule.warmdown_steps=20", "train.model.value_embedding_layers=[1, 2]"),
        (
            "tokenize.corpus.kind=files",
            'tokenize.corpus.paths=["a.txt"]',
            "quantize.rules.0.format=int8",
            "publish.title=007",
        ),
    ],
)
def test_a_configuration_is_made_of_its_preset_again(overrides: tuple[str, ...]) -> None:
    spec = resolve("smoke", overrides)
    assert resolve("smoke", settings_between("smoke", spec)) == spec


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.key)
def test_settings_of_a_technique_that_is_left_out_are_left_out_too(technique: Technique) -> None:
    """The pipeline refuses settings that the chosen methods ignore; an ablation does not stumble over it."""
    own = (
        "quantize.clip_candidates=[1.0, 0.9]",
        "merge.averaging.start_lr_scale=0.15",
        "train.qat.rules.2.format=int5",
        *FORMS,
        *(ATTENTION_WINDOW if technique.key == "attention-window" else ()),
    )
    spec = resolve("smoke", own)
    changes = (*settings_between("smoke", spec), *technique.off(spec))
    made = resolve("smoke", without_ignored(load_preset("smoke"), changes))
    assert made.with_qat_grid() != spec
    assert not technique.is_on(made)


@pytest.mark.parametrize(("technique", "first"), [("swa", "merge"), ("quantizer", "quantize")])
def test_the_store_serves_what_the_technique_does_not_touch(
    technique: str, first: str, smoke_run: Any, smoke_store: Path
) -> None:
    """A variant runs no stage before the first that the technique touches."""
    chain = Chain(smoke_store, list(find_technique(technique).off(resolve("smoke", []))))
    for stage in list(STAGES)[: list(STAGES).index(first)]:
        assert chain.run(stage).cached
    assert not chain.is_made(first)


@pytest.mark.slow
def test_only_what_the_technique_touches_is_run_again(smoke_run: Any, smoke_store: Path) -> None:
    """A real ablation: one merge without averaging, one quantization by plain rounding."""
    rows, reports = ablate(
        smoke_run.report.run_id, ("swa", "quantizer"), 1, RunOptions(store=str(smoke_store), retries=0)
    )
    assert [row["variant"] for row in rows] == ["the run itself", "without swa", "without quantizer"]
    whole, swa, quantizer = reports
    assert all(stage.cached for stage in whole.stages)
    assert [stage.stage for stage in swa.stages if stage.cached] == ["tokenize_corpus", "train"]
    assert [stage.stage for stage in quantizer.stages if stage.cached] == [
        "tokenize_corpus",
        "train",
        "merge",
    ]
    assert swa.spec.merge.averaging.method == swa.merged.method == "last"
    assert swa.audit.finding("swa").verdict == "off"
    assert quantizer.packed.method == "round_to_nearest"
    assert rows[1]["difference"] == f"{swa.val_bpb_quantized_sliding - whole.val_bpb_quantized_sliding:+.5f}"
    assert "one seed" in rows[1]["finding"]


def test_test_time_training_is_compared_on_its_own_windows(smoke_run: Any) -> None:
    off = find_technique("test-time-training").off(smoke_run.report.spec)
    score = smoke_run.report.evaluation.non_overlapping
    learned = LoraScores(
        adapted=score.derive(bpb=3.0),
        without=score.derive(bpb=3.25),
        num_documents=1,
        num_steps=9,
        done_share=1.0,
        seconds=1.0,
    )
    whole = smoke_run.report.derive(evaluation=smoke_run.report.evaluation.derive(test_time_training=learned))
    variants = [Variant("the run", (), {1: whole}), Variant("without", off, {1: smoke_run.report})]
    assert ablation_rows(variants)[1]["difference"] == "+0.25000"
    assert ablation_rows([variants[0], Variant("other", ("x=1",), {1: whole})])[1]["difference"] == "+0.00000"


def test_a_technique_of_the_model_is_trained_without(smoke_run: Any, smoke_store: Path) -> None:
    chain = Chain(smoke_store, list(find_technique("xsa").off(resolve("smoke", []))))
    assert chain.run("tokenize_corpus").cached
    assert not chain.is_made("train")
    assert chain.spec.train.model.xsa_layers == 0


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, smoke_run: Any) -> dict[tuple[bool, int], float | str]:
    """(with XSA?, seed) -> its bpb, or the message with which it fails. A stand-in for the chain."""
    plan: dict[tuple[bool, int], float | str] = {}

    def chain(preset: str, overrides: tuple[str, ...], options: RunOptions, return_state: bool) -> Any:
        spec, run_id = resolve(preset, overrides), uuid.uuid4()
        outcome = plan[spec.train.model.xsa_layers > 0, spec.train.seed]
        state = Failed(message=outcome) if isinstance(outcome, str) else Completed()
        state.state_details.flow_run_id = run_id
        if not isinstance(outcome, str):
            report = smoke_run.report
            sliding = report.evaluation.sliding.derive(bpb=outcome)
            evaluation = report.evaluation.derive(sliding=sliding)
            save_report(
                Path(options.store), report.derive(run_id=str(run_id), spec=spec, evaluation=evaluation)
            )
        return state

    monkeypatch.setattr(module, "pipeline", chain)
    return plan


@pytest.fixture
def store(tmp_path: Path, smoke_run: Any, api: str) -> Path:
    save_report(tmp_path, smoke_run.report)
    return tmp_path


def run_ablation(store: Path, **asked: Any) -> Any:
    return ablate(
        "smoke-seed1337", ("xsa",), options=RunOptions(store=str(store)), return_state=True, **asked
    )


def test_differences_are_taken_seed_by_seed(store: Path, trained: Any) -> None:
    trained.update(
        {
            (True, 1337): 2.0,
            (True, 1338): 2.4,
            (True, 1339): 2.2,
            (False, 1337): 2.03,
            (False, 1338): 2.43,
            (False, 1339): 2.24,
        }
    )
    rows, _ = run_ablation(store).result()
    whole, without = rows
    assert (whole["val_bpb"], whole["seeds"], whole["difference"]) == ("2.20000", "3", "")
    # Differences 0.03, 0.03, 0.04: mean 0.03333, standard error 0.00333, t(0.975, 2) = 4.30265.
    assert without["difference"] == "+0.03333"
    assert without["95 % interval"] == "+0.01899 to +0.04768"
    assert without["finding"] == "worse without: it helps"


def test_a_difference_within_the_noise_is_not_shown_and_says_how_many_seeds_would(
    store: Path, trained: Any
) -> None:
    trained.update({(True, 1337): 2.0, (True, 1338): 2.1, (False, 1337): 2.05, (False, 1338): 2.06})
    rows, _ = run_ablation(store, num_seeds=2).result()
    assert rows[1]["finding"].startswith("not shown: 0 is in the interval; about ")


def test_a_variant_that_fails_is_named_and_the_others_are_kept(store: Path, trained: Any) -> None:
    trained.update(
        {(True, 1337): 2.0, (True, 1338): 2.1, (False, 1337): 2.05, (False, 1338): "the loss diverged"}
    )
    state = run_ablation(store, num_seeds=2)
    with pytest.raises(StageError, match="without xsa, seed 1338: the loss diverged"):
        state.result()


@pytest.mark.parametrize(
    ("off", "named"),
    [
        (("xas",), "off = xas: did you mean xsa"),
        ((), "name at least one technique, or all"),
        (("ve+smaer",), "off = smaer: did you mean smear"),
    ],
)
def test_what_is_no_technique_is_refused(off: tuple[str, ...], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        plan_variants(resolve("smoke", []), off)


def test_a_technique_that_is_off_already_is_refused() -> None:
    spec = find_technique("xsa").without(resolve("smoke", []))
    with pytest.raises(
        SpecError, match=r"off = xsa: the run has exclusive self-attention \(XSA\) off already"
    ):
        plan_variants(spec, ("ve", "xsa"))
    assert [name for name, _ in plan_variants(spec, ("all",))] == [
        f"without {t.key}" for t in TECHNIQUES if t.is_on(spec)
    ]
    assert plan_variants(spec, ("ve+smear",)) == [
        ("without ve+smear", ("train.model.value_embedding_dim=0", "train.model.smear_gate=false"))
    ]


def test_the_command_lists_what_there_is_and_refuses_before_anything_starts(store: Path) -> None:
    listed = CliRunner().invoke(app, ["ablate", "last", "--store", str(store), "--json"])
    assert {item["key"]: item["on"] for item in json.loads(listed.stdout)} == {
        item.key: item.is_on(resolve("smoke", [])) for item in TECHNIQUES
    }
    assert "all dims rotate" in CliRunner().invoke(app, ["ablate", "last", "--store", str(store)]).stdout
    refused = CliRunner().invoke(app, ["ablate", "last", "--off", "xas", "--store", str(store)])
    assert (refused.exit_code, "did you mean xsa" in refused.stderr, "server" in refused.stderr) == (
        2,
        True,
        False,
    )
