"""Kinds of real folders: what is right is passed, what is wrong fails, and what the text cannot show is
unknown.
"""

import base64
import lzma
import os
from collections.abc import Callable
from typing import Any

import pytest

Judge = Callable[..., dict[str, tuple[str, str]]]
SIZE, DECLARED, TRAINING, EVALUATION = (
    "bytes as shipped",
    "bytes as declared",
    "training time",
    "evaluation time",
)
LIMIT = 16_000_000


def _lines(size: int) -> bytes:
    return base64.encodebytes(os.urandom(size))


def test_a_sound_folder_of_the_baselines_shape_passes(judge: Judge) -> None:
    found = judge()
    assert {rule: verdict for rule, (verdict, _) in found.items() if verdict != "pass"} == {
        "bytes as declared": "unknown",
        "seeds": "unknown",
        "model.fwz is sound": "unknown",
    }


@pytest.mark.parametrize(
    "companion",
    ["train.pid", "run.sh", "Makefile", "sweep.ipynb", "tokenizer.model", "bpe.vocab", "fig.png", "k.cu"],
)
@pytest.mark.parametrize(
    ("declared", "verdict"),
    [(15_900_000, "pass"), (LIMIT, "pass"), (LIMIT + 1, "fail"), (16_439_738, "fail"), (..., "unknown")],
)
def test_a_small_companion_is_not_the_model(
    companion: str, declared: Any, verdict: str, judge: Judge
) -> None:
    found = judge({"bytes_total": declared}, more={companion: b"4711\n", "train.log": "seed:1337\n"})[SIZE]
    assert found[0] == verdict
    if declared is not ...:
        assert f"{declared:,}" in found[1]


@pytest.mark.parametrize(
    "key",
    [
        "bytes_total",
        "artifact_bytes",
        "total_bytes",
        "total_submission_bytes",
        "submission_bytes",
        "artifact_size_bytes",
        "artifact_bytes_max",
        "total_artifact_bytes",
        "submission_size_bytes",
        "model_size_bytes",
        "model_bytes",
        "bytes_model_int8_zlib",
    ],
)
def test_the_bytes_are_read_from_the_key_that_is_there(key: str, judge: Judge) -> None:
    assert judge({"bytes_total": ..., key: 16_001_154}, train__log="seed:1\n")[SIZE][0] == "fail"
    assert judge({"bytes_total": ..., key: 15_001_154}, train__log="seed:1\n")[SIZE][0] == "pass"


@pytest.mark.parametrize(
    "key",
    ["size_limit_bytes", "bytes_over_limit", "cap_margin_bytes", "raw_model_bytes", "peak_memory_bytes"],
)
def test_other_bytes_are_not_taken_for_the_artifact(key: str, judge: Judge) -> None:
    assert judge({key: 26_777_216})[SIZE][0] == "pass"


@pytest.mark.parametrize("key", ["bytes_total", "artifact_bytes"])
def test_the_bytes_of_every_seed_count(key: str, judge: Judge) -> None:
    results = {"1337": {"val_bpb": 1.2345, key: 15_900_000}, "42": {"val_bpb": 1.2345, key: 16_000_001}}
    assert judge({"bytes_total": ..., "seed_results": results})[SIZE][0] == "fail"
    as_list = [{"seed": seed, **result} for seed, result in results.items()]
    assert judge({"bytes_total": ..., "seed_results": as_list})[SIZE][0] == "fail"


@pytest.mark.parametrize("name", ["train.log", "train_seed42.log", "logs/run.txt", "log_seed42.txt"])
@pytest.mark.parametrize(
    "line",
    [
        "Total submission size int8+zlib: 16050000 bytes",
        "Total submission size int6+lzma: 16,050,000 bytes",
        "Total submission size quantized+brotli:16050000",
        "Total submission size mixed+zstd22: 16050000 bytes (limit 16000000)",
        "total artifact size: 16050000 bytes",
        "Total submission size: 16050000 bytes",
    ],
)
def test_a_log_over_the_limit_fails_and_is_named(name: str, line: str, judge: Judge) -> None:
    verdict, reason = judge(
        {"bytes_total": 15_900_000}, more={"train.log": None} | {name: f"seed:42\n{line}\n"}
    )[SIZE]
    assert verdict == "fail"
    assert name in reason
    assert "16,050,000" in reason
    assert "15,900,000" in reason


def test_a_size_before_compression_and_one_that_was_mended_do_not_count(
    judge: Judge, log: Callable[..., str]
) -> None:
    earlier = "Total submission size int8+zlib: 16500000 bytes\n"
    assert judge({"bytes_total": ...}, train__log=log(total=15_900_000))[SIZE][0] == "pass"
    assert judge(train__log=earlier + log(total=15_900_000))[SIZE][0] == "pass"
    assert judge(train__log=log(total=15_900_000) + earlier)[SIZE][0] == "pass", "the declared one of the two"
    assert judge({"bytes_total": 15_800_000}, train__log=log(total=15_900_000) + earlier)[SIZE][0] == "fail"
    only_raw = (
        "Serialized model: 67236226 bytes\nCode size: 49619 bytes\nTotal submission size: 67285845 bytes\n"
    )
    assert judge(train__log=only_raw)[SIZE][0] == "pass"
    assert judge({"bytes_total": ...}, train__log=only_raw)[SIZE][0] == "unknown"


def test_code_made_smaller_after_the_run_is_counted_as_it_lies_here(
    judge: Judge, log: Callable[..., str], program: str
) -> None:
    """The log counts 88,253 bytes of source; the folder has a smaller script, and the declared sum is of
    that.
    """
    model = 15_940_000
    printed = log(total=model + 88_253, code=88_253)
    assert judge({"bytes_total": model + len(program)}, train__log=printed)[SIZE][0] == "pass"
    assert judge({"bytes_total": 15_900_000}, train__log=printed)[SIZE][0] == "fail"


def test_an_ablations_log_over_the_limit_says_nothing_of_the_submission(
    judge: Judge, log: Callable[..., str]
) -> None:
    over = log(total=16_900_000, score=1.3)
    assert judge(more={"ablations/big.log": over})[SIZE][0] == "unknown"
    assert judge(more={"train_seed7.log": over})[SIZE][0] == "unknown", "another score than the declared one"
    assert judge(more={"train_seed7.log": log(total=16_900_000)})[SIZE][0] == "fail"


def test_models_in_the_folder_count(judge: Judge, program: str) -> None:
    code = len(program)
    assert judge({"bytes_total": code + 900_000}, more={"model.ptz": bytes(900_000)})[SIZE][0] == "pass"
    assert judge({"bytes_total": 15_900_000}, more={"model.ptz": bytes(900)})[SIZE][0] == "unknown"
    assert judge({"bytes_total": ...}, more={"model.ptz": bytes(LIMIT - code)})[SIZE][0] == "pass"
    assert judge({"bytes_total": ...}, more={"model.ptz": bytes(LIMIT - code + 1)})[SIZE][0] == "fail"
    raw = judge({"bytes_total": 15_900_000}, more={"model.ptz": None, "final_model.pt": bytes(20_000_000)})[
        SIZE
    ]
    assert raw[0] == "unknown", "weights before compression are not what is shipped"


@pytest.mark.parametrize(
    "content", [bytes, os.urandom, lambda size: base64.b85encode(os.urandom(size)), _lines]
)
@pytest.mark.parametrize("name", ["weights.txt", "train.log", "data.json", "plot.png", "README.md", "x"])
def test_a_model_does_not_hide_behind_a_name(
    name: str, content: Callable[[int], bytes], judge: Judge
) -> None:
    for declared in (1000, 15_900_000):
        verdict, _ = judge({"bytes_total": declared}, more={name: content(2_000_000)})[SIZE]
        assert verdict == "unknown"


def test_a_declared_figure_smaller_than_the_code_is_a_contradiction(judge: Judge) -> None:
    verdict, reason = judge({"bytes_total": 1000})[SIZE]
    assert verdict == "unknown"
    assert "1,000" in reason


@pytest.mark.parametrize(
    ("info", "place", "verdict"),
    [
        ({"track": "non_record_16mb"}, "folder", "pass"),
        ({"track": "non-record-unlimited-compute-16mb"}, "folder", "pass"),
        ({"non_record": True}, "folder", "pass"),
        ({"submission_kind": "non-record"}, "folder", "pass"),
        ({}, "records/track_non_record_16mb/2026-03-20_A_10min_run", "pass"),
        ({}, "records/track_10min_16mb/2026-03-20_A", "fail"),
        ({"track": "10min_16mb"}, "folder", "fail"),
        ({}, "folder", "fail"),
        ({"track": "10min_16mb"}, "records/track_non_record_16mb/a", "unknown"),
    ],
)
@pytest.mark.parametrize("where", ["json", "log", "hours"])
def test_the_cap_of_training_holds_on_the_record_track(
    info: dict, place: str, verdict: str, where: str, judge: Judge, log: Callable[..., str]
) -> None:
    told = {"json": {"train_time_seconds": 2400}, "log": {}, "hours": {"training_time_hours": 2.23}}[where]
    files = {"train__log": log(seconds=2400)} if where == "log" else {}
    assert judge(info | told, place, **files)[TRAINING][0] == verdict


def test_a_wall_clock_that_the_logs_contradict_is_unknown(judge: Judge, log: Callable[..., str]) -> None:
    """Some count compilation and evaluation in it."""
    assert judge({"wallclock_seconds": 912}, train__log=log(seconds=599.9))[TRAINING][0] == "unknown"
    assert judge({"wallclock_seconds": 912}, train__log=log(seconds=12))[TRAINING][0] == "fail"
    assert judge({"wallclock_seconds": 600.5}, train__log=log(seconds=599.9))[TRAINING][0] == "pass"


def test_a_readme_that_notes_the_other_track_makes_it_unknown(judge: Judge) -> None:
    readme = "# A case\n\nNon-record, unlimited compute: four hours.\n\nval_bpb 1.2345\n"
    assert judge({"wallclock_seconds": 14_400}, README__md=readme)[TRAINING][0] == "unknown"


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("stopping_early: wallclock_cap train_time: 588052ms step: 4550/20000", "pass"),
        ("stopping_early: wallclock_cap train_time: 612052ms step: 4550/20000", "fail"),
        ("4500/20000 train_loss: 3.1181 train_time: 10.0m tok/s: 6381279", "pass"),
        ("4500/20000 train_loss: 3.1181 train_time: 12.0m tok/s: 6381279", "fail"),
        ("train_time:599.6s", "pass"),
        ("step:6840/20000 train_time:600120ms", "pass"),
    ],
)
def test_the_times_of_later_logs_are_read(line: str, verdict: str, judge: Judge) -> None:
    assert judge(train__log=f"seed:1\n{line}\n")[TRAINING][0] == verdict


DIAGNOSTICS = (
    "pre-quantization post-ema val_loss:3.088 val_bpb:1.2101 eval_time:250000ms\n"
    "quantized val_loss:3.11 val_bpb:1.2399 eval_time:230000ms\n"
    "quantized_sliding_window val_loss:3.07 val_bpb:1.2349 eval_time:183469ms\n"
)


@pytest.mark.parametrize(
    ("last", "verdict"),
    [
        ("legal_ttt_exact val_loss:3.07023446 val_bpb:1.23450000 eval_time:297727ms", "pass"),
        ("legal_ttt_exact val_loss:3.07023446 val_bpb:1.23450000 eval_time:697727ms", "fail"),
        ("quantized_ttt_phased val_bpb:1.23450 eval_time:453812ms\ntotal_eval_time:453.8s", "pass"),
        ("ttt:done val_loss=3.07 val_bpb=1.234500 elapsed=335.9s", "pass"),
        ("something val_bpb:1.3 eval_time:697727ms", "unknown"),
        ("nothing", "pass"),
    ],
)
def test_only_the_evaluation_that_gives_the_score_counts(last: str, verdict: str, judge: Judge) -> None:
    assert judge(train__log=f"world_size:8 seed:1\n{DIAGNOSTICS}{last}\n")[EVALUATION][0] == verdict


def test_evaluation_on_other_hardware_is_unknown(judge: Judge) -> None:
    line = "final val_bpb:1.2345 eval_time:900000ms\n"
    assert judge(train__log="world_size:8\n" + line)[EVALUATION][0] == "fail"
    assert judge(train__log="world_size:1\n" + line)[EVALUATION][0] == "unknown"
    assert judge({"track": "non_record_16mb"}, train__log="world_size:8\n" + line)[EVALUATION][0] == "unknown"


@pytest.mark.parametrize(
    ("score", "readme", "verdict"),
    [
        (1.52523, "Final val_bpb: 1.52523098", "pass"),
        (1.52523098, "val_bpb **1.5252**", "pass"),
        (1.52523098, "| 42 | 1.525 |", "pass"),
        (1.19248879, "val_bpb 1.1924", "pass"),  # cut, not rounded
        (1.081, "| **Mean** | **1.0810** |", "pass"),
        (1.2169, "val_bpb=1.2168", "fail"),
        (1.52523, "val_bpb 1.5253", "fail"),
        (1.52523, "We beat the baseline. Details follow.", "unknown"),
        (1.52523, "| `val_bpb` | 1.52523098 |", "pass"),
        (1.52523, "| `val_bpb` | 1.6 | at first |\n\nval_bpb 1.52523", "fail"),
    ],
)
def test_the_readme_agrees_to_the_digits_of_the_coarser_figure(
    score: float, readme: str, verdict: str, judge: Judge
) -> None:
    assert judge({"val_bpb": score}, README__md=f"# A case\n\n{readme}\n")["README's figures"][0] == verdict


@pytest.mark.parametrize(
    ("seed", "logs", "verdict"),
    [
        (1, {"a.log": "step 1 of 1, 1 process\nseed: 1\n"}, "pass"),
        (1, {"a.log": "step 1 of 1, 1 process\n", "b.log": "seed 2\n"}, "unknown"),
        (1, {"a.log": "1 1 1\nseed:11 seed:12\n"}, "fail"),
        (1, {"train_seed1.log": "x\n"}, "pass"),
        (42, {"train_s42.log": "x\n"}, "pass"),
        (42, {"train_42.log": "x\n"}, "pass"),
        (42, {"a.log": "  seed: 42\n"}, "pass"),
        (42, {"a.log": 'SEED=42 torchrun\n{"seed": 42}\n'}, "pass"),
        (42, {"a.log": "seed:421 142\n"}, "fail"),
        (0, {"train_seed0.log": "x\n"}, "pass"),
    ],
)
def test_a_log_names_a_seed_by_the_word(seed: int, logs: dict, verdict: str, judge: Judge) -> None:
    found = judge({"seed_results": {str(seed): {"val_bpb": 1.2345}}}, train__log=None, more=logs)
    assert found["seeds"][0] == verdict


def test_figures_after_the_programs_source_are_found(
    judge: Judge, log: Callable[..., str], program: str
) -> None:
    """The baseline's log begins with the program, whose default seed is not the seed of the run."""
    for around in ("", "=" * 100 + "\nSource code:\n" + "=" * 100 + "\n"):
        printed = around + program * 3 + "=" * 100 + "\n" + log(seed=42)
        found = judge({"seed_results": {"42": {"val_bpb": 1.2345}}}, train__log=printed)
        assert found["seeds"][0] == found[SIZE][0] == found[TRAINING][0] == found[EVALUATION][0] == "pass"
        found = judge({"seed_results": {"1337": {"val_bpb": 1.2345}}}, train__log=printed)
        assert found["seeds"][0] == "fail"


@pytest.mark.parametrize(
    "results",
    [
        {"seed_results": {"42": {"val_bpb": 1.2344}, "7": {"val_bpb": 1.2346}}},
        {"seed_results": {"seed_42": {"val_bpb": 1.2344}, "seed_7": {"val_bpb": 1.2346}}},
        {"seed_results": [{"seed": 42, "val_bpb": 1.2344}, {"seed": 7, "val_bpb": 1.2346}]},
        {"val_bpb_seeds": {"42": 1.2344, "7": 1.2346}},
        {"seed_results": {"42": {"val_bpb": 1.2344}, "7": {"val_bpb": 1.2346}}, "seeds": [7, 42]},
        {
            "seed_results": {
                "42": {"val_bpb": 1.2344},
                "7": {"val_bpb": 1.2346},
                "mean": {"val_bpb": 1.2345},
                "std": 0.0001,
            }
        },
    ],
)
def test_seeds_are_read_in_every_shape(results: dict, judge: Judge) -> None:
    logs = {"train_seed42.log": "x\n", "train_seed7.log": "x\n"}
    assert judge(results, more=logs)["seeds"][0] == "pass"
    assert judge(results | {"val_bpb": 1.2344}, more=logs)["seeds"][0] in ("unknown", "pass")
    assert judge(results | {"val_bpb": 1.25}, more=logs)["seeds"][0] == "fail"
    assert (
        judge(
            results, more={"train_seed7.log": None, "train_seed42.log": "x\n", "train.log": None}, place="one"
        )["seeds"][0]
        == "fail"
    )


def test_helper_modules_are_read_and_others_are_named(judge: Judge, program: str) -> None:
    source = "from helper import fetch\nimport pkg.inner as inner\n" + program
    quiet = {
        "helper.py": "def fetch(): return 1\n",
        "pkg/inner.py": "x = 1\n",
        "pkg/__init__.py": "",
        "sweep.py": "import requests\n",
    }
    found = judge(train_gpt__py=source, more=quiet)
    assert found["no network"][0] == "pass"
    assert "sweep.py" in found["train_gpt.py is Python"][1]
    assert "helper.py" in found["train_gpt.py is Python"][1]
    for name in ("helper.py", "pkg/inner.py", "pkg/__init__.py"):
        found = judge(train_gpt__py=source, more=quiet | {name: "import requests\n"})
        assert found["no network"][0] == "fail"
        assert name in found["no network"][1]
        assert judge(train_gpt__py=source, more=quiet | {name: "def f(:\n"})["no network"][0] == "unknown"
    reads = "def read(files):\n    import glob\n    return glob.glob('fineweb_train_*.bin')\n"
    source = "import helper\n" + program.replace("model.eval()", "helper.read(1)")
    assert (
        judge(train_gpt__py=source, more=quiet | {"helper.py": reads})["no training data at evaluation"][0]
        == "fail"
    )


@pytest.mark.parametrize("inner", ["", "import requests\n"])
def test_the_wrapper_of_the_late_records_is_unpacked(inner: str, judge: Judge, program: str) -> None:
    packed = lzma.compress((inner + program).encode(), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    text = base64.b85encode(packed).decode()
    source = "import lzma as L,base64 as B\nexec(L.decompress(B.b85decode(" + repr(text)
    source += '),format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2}]))'
    found = judge(train_gpt__py=source)
    assert found["train_gpt.py is Python"][0] == "pass"
    assert found["no network"][0] == ("fail" if inner else "pass")
    assert found["no training data at evaluation"][0] == "pass"


@pytest.mark.parametrize("value", [None, "15,900,000", "15900000 bytes"])
def test_optional_figures_may_be_empty_or_text(value: Any, judge: Judge) -> None:
    assert judge({"bytes_total": value})["submission.json valid"][0] == "pass"
    assert judge({"bytes_total": value})[SIZE][0] == "pass"


def test_bytes_in_groups_and_per_seed_are_read_and_those_of_others_are_not(judge: Judge) -> None:
    over, quiet = 16_001_154, "seed:1\n"
    assert judge({"bytes_total": ..., "artifact": {"total_bytes": over}}, train__log=quiet)[SIZE][0] == "fail"
    assert (
        judge({"bytes_total": ..., "artifact_bytes": {"42": 15_900_000, "7": over}}, train__log=quiet)[SIZE][
            0
        ]
        == "fail"
    )
    assert (
        judge({"baseline": {"bytes_total": over}, "prior_sota": {"artifact_bytes": over}})[SIZE][0] == "pass"
    )


def test_a_log_without_a_total_states_its_parts(judge: Judge) -> None:
    parts = "seed:1\nSerialized model int6+lzma: 15990000 bytes\nCode size: 50000 bytes\n"
    verdict, reason = judge({"bytes_total": 15_900_000}, train__log=parts)[SIZE]
    assert verdict == "fail"
    assert "16,040,000" in reason


@pytest.mark.parametrize("cell", ["600", "600.0", "600.028", "**600.03** s", "ten minutes"])
def test_a_row_of_the_readme_agrees_to_its_own_digits(cell: str, judge: Judge) -> None:
    readme = (
        f"val_bpb 1.2345\n\n| `wallclock_seconds` | {cell} |\n| `bytes_total` | 15,900,000 "
        "bytes |\n| `author` | someone else |\n"
    )
    assert judge({"wallclock_seconds": 600.028}, README__md=readme)["README's figures"][0] == "pass"
    readme = readme.replace(cell, "599")
    assert judge({"wallclock_seconds": 600.028}, README__md=readme)["README's figures"][0] == "fail"


def test_a_file_elsewhere_does_not_shadow_a_network_library(judge: Judge, program: str) -> None:
    source = "import requests\nimport socket\n" + program
    assert (
        judge(train_gpt__py=source, more={"sub/requests.py": "", "sub/socket.py": ""})["no network"][0]
        == "fail"
    )
    assert (
        judge(train_gpt__py="import socket\n" + program, more={"socket.py": "x = 1\n"})["no network"][0]
        == "pass"
    )
    source = "import sys\nsys.path.insert(0, 'src')\nimport helper\n" + program
    assert judge(train_gpt__py=source, more={"src/helper.py": "import requests\n"})["no network"][0] == "fail"


@pytest.mark.parametrize("key", ["results", "seeds"])
def test_other_groups_are_not_taken_for_seeds(key: str, judge: Judge) -> None:
    assert judge({key: {"val_bpb": 1.2345, "steps": 5000}})["seeds"][0] == "unknown"


@pytest.mark.parametrize(
    "number", ["1e999999999", "1e-999999999", "1e99999999999999999999", "1." + "0" * 5000, "-0.0", "1e400"]
)
@pytest.mark.parametrize("key", ["val_bpb", "bytes_total", "wallclock_seconds", "seed"])
def test_odd_numbers_end_in_a_verdict(number: str, key: str, judge: Judge) -> None:
    text = (
        '{"author": "a", "github_id": "b", "name": "c", "KEY": NUMBER, "seed_results": {"1": '
        '{"val_bpb": NUMBER}}}'
    )
    text = text.replace("KEY", key).replace("NUMBER", number)
    found = judge(submission__json=text, README__md=f"val_bpb {number[:300]}\n| `{key}` | {number[:300]} |\n")
    assert all(reason for _, reason in found.values())


@pytest.mark.parametrize(("name", "value"), [("MAX_LOGS", 1), ("LOGS_LIMIT_BYTES", 1200)])
def test_logs_that_are_left_out_leave_it_unknown(
    name: str, value: int, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge(more={"z.log": "seed:1\n" * 99})[SIZE][0] == "pass"
    monkeypatch.setattr(f"stages.submission.folder.{name}", value)
    found = judge(more={"z.log": "seed:1\n" * 99})
    assert found[SIZE][0] == found[TRAINING][0] == found[EVALUATION][0] == "unknown"
    assert "z.log" in found[SIZE][1]


@pytest.mark.parametrize(
    ("info", "verdict"),
    [
        ({"name": ...}, "pass"),
        ({"author": ...}, "unknown"),
        ({"author": ..., "name": ...}, "fail"),
        ({"github_id": ...}, "fail"),
        ({"github_id": ..., "github": "tester"}, "unknown"),
        ({"github_id": 7, "github": "tester"}, "fail"),
        ({"val_bpb": ...}, "fail"),
        ({"val_bpb": None}, "fail"),
        ({"val_bpb": "pending", "val_bpb_mean": 1.2}, "fail"),
        ({"val_bpb": ..., "val_bpb_mean": 1.2}, "unknown"),
    ],
)
def test_the_required_fields_are_those_that_the_repository_asks_for(
    info: dict, verdict: str, judge: Judge
) -> None:
    assert judge(info)["submission.json valid"][0] == verdict
