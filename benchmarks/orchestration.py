"""What orchestration costs: a wholly cached run, the pipeline against its stages by hand, `--help`,
hashing of a 10 GB dataset.

    python -m benchmarks.orchestration [--runs 5] [--dataset-gigabytes 10] [--json results.jsonl]

Everything is timed from the shell, in processes of their own. By hand means: the same stages through
`stages.execution.runner` in one process without Prefect. The demo is computed once first where the store that
FAIRWAY_STORE names lacks it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, Figure, Samples, alternate, parser_for, report, timed
from flows.server.addresses import port_is_free
from flows.server.environment import comes_up, stop
from presets import load_preset
from schemas.runtime import RunOptions
from schemas.tokenize_corpus import ShardsCorpus, TokenizeSpec
from stages.core.shards import MAX_SHARD_TOKENS, ShardWriter
from stages.corpora import locate
from stages.execution.runner import run_stage
from stages.store.hashing import FileHashes
from stages.store.machine import resolve_precision
from stages.store.store import Store

GOAL_CACHED_SECONDS = 5.0
GOAL_HELP_SECONDS = 0.5
GOAL_OVERHEAD = 0.02
LONG_RUN_SECONDS = 600.0
GOAL_REMEMBERED_SECONDS = 0.5
FAIRWAY = [sys.executable, "-c", "from flows.cli.main import main; main()"]


def clean_environment(**changes: str) -> dict[str, str]:
    """This environment without a Prefect server of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def shell(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-3000:]}")


@contextmanager
def server(home: Path) -> Iterator[str]:
    """A Prefect server on a free port, as `fairway up` starts one, without its pages."""
    port = next(number for number in count(4300) if port_is_free(number))
    environment = clean_environment(
        PREFECT_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_UI_ENABLED="false"
    )
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "flows.server.prefect_server:create_app",
        "--port",
        str(port),
    ]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "error"], env=environment, cwd=home, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        if not comes_up(process, url):
            raise RuntimeError(
                f"the Prefect server did not start: {(home / 'server.log').read_text()[-2000:]}"
            )
        yield url
    finally:
        stop(process, 10.0)


def cached_runs(store: Path, preset: str, url: str, runs: int) -> list[Figure]:
    """`fairway run --preset …` with everything in the store: with a server running, and with a temporary
    one for each run.
    """
    command = [*FAIRWAY, "run", "--preset", preset, "--json"]
    with_server = clean_environment(FAIRWAY_STORE=str(store), PREFECT_API_URL=url)
    without = clean_environment(FAIRWAY_STORE=str(store))
    shell(command, with_server)  # computes what is missing
    shell(command, without)  # the temporary server's new home
    samples = alternate(
        {"server": lambda: shell(command, with_server), "temporary": lambda: shell(command, without)}, runs
    )
    cost = samples["temporary"].median - samples["server"].median
    met = samples["server"].median <= GOAL_CACHED_SECONDS
    details = {name: sample.wall for name, sample in samples.items()}
    return [
        Figure(
            "orchestration",
            f"cached {preset}, server running",
            str(samples["server"]),
            "",
            None,
            "≤ 5 s",
            met,
            details,
        ),
        Figure(
            "orchestration",
            f"cached {preset}, without a server",
            str(samples["temporary"]),
            f"the temporary one costs {cost:.1f} s, once a run",
        ),
    ]


def overhead(folder: Path, url: str, runs: int) -> Figure:
    """The smoke preset from nothing, through the flow and by hand, with a store of its own each time."""
    stores = (folder / f"store{number}" for number in count())

    def flow() -> None:
        environment = clean_environment(FAIRWAY_STORE=str(next(stores)), PREFECT_API_URL=url)
        shell([*FAIRWAY, "run", "--preset", "smoke", "--json"], environment)

    def by_hand() -> None:
        shell(
            [sys.executable, "-m", "benchmarks.orchestration", "--by-hand", str(next(stores))],
            clean_environment(),
        )

    samples = alternate({"flow": flow, "by hand": by_hand}, runs)
    seconds = samples["flow"].median - samples["by hand"].median
    share = seconds / LONG_RUN_SECONDS
    details = {name: sample.wall for name, sample in samples.items()}
    what = "pipeline's share of a 10-minute run (smoke preset)"
    ours, peer = f"{samples['flow'].median:.1f} s", f"by hand {samples['by hand'].median:.1f} s"
    return Figure(
        "orchestration",
        what,
        f"{ours}: {seconds:+.1f} s = {share:.1%}",
        peer,
        None,
        "≤ 2 %",
        share <= GOAL_OVERHEAD,
        details,
    )


def chain_by_hand(folder: Path) -> None:
    """The stages of the smoke preset one after the other, without Prefect."""
    from schemas.publish import PublishSpec

    store, spec, options = (
        Store(folder),
        resolve_precision(load_preset("smoke").with_qat_grid()),
        RunOptions(store=str(folder)),
    )
    outcomes = []

    def run(stage: str, its_spec: object, **inputs: object) -> object:
        outcome = run_stage(store, stage, its_spec, inputs, options)  # type: ignore[arg-type]
        outcomes.append(outcome)
        return outcome.record.result

    results = {
        "tokenized": run("tokenize_corpus", spec.tokenize, manifest=locate(spec.tokenize, store.hashes))
    }
    results["trained"] = run("train", spec.train, tokenized=results["tokenized"])
    results["merged"] = run("merge", spec.merge, **results)
    results["packed"] = run(
        "quantize", spec.quantize, merged=results["merged"], tokenized=results["tokenized"]
    )
    results["package"] = run("package", spec.package_spec(), packed=results["packed"])
    results["size"] = run("check_size", spec.check_size, package=results["package"], packed=results["packed"])
    results["evaluation"] = run(
        "evaluate", spec.evaluate, package=results["package"], tokenized=results["tokenized"]
    )
    results["audit"] = run("audit", spec, **results)
    provenance = tuple(outcome.record.provenance for outcome in outcomes)
    run(
        "publish",
        PublishSpec(title="by hand", run_name="by-hand", settings=(), provenance=provenance),
        **results,
    )


def help_command(runs: int) -> Figure:
    samples = Samples()
    for _ in range(runs + 1):
        samples.wall.append(timed(lambda: shell([*FAIRWAY, "--help"], clean_environment()))[0][0])
    samples.wall = samples.wall[1:]  # the first one may write bytecode
    met = samples.median <= GOAL_HELP_SECONDS
    return Figure(
        "orchestration", "fairway --help", str(samples), "", None, "≤ 0.5 s", met, {"seconds": samples.wall}
    )


def hashing(folder: Path, gigabytes: float, runs: int) -> list[Figure]:
    """Ready-made shards of so many gigabytes: hashed once, then known by size, modification time and
    inode.
    """
    needed = int(gigabytes * 1e9)
    free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        return [
            Figure(
                "orchestration",
                "hashing a dataset",
                "left out",
                f"{free / 1e9:.0f} GB free, {2 * gigabytes:.0f} wanted",
                None,
                "",
                None,
            )
        ]
    tokens = np.random.default_rng(0).integers(3, 1024, MAX_SHARD_TOKENS, dtype=np.uint16)
    with ShardWriter(folder, "train") as writer:
        for _ in range(max(1, needed // tokens.nbytes)):
            writer.write(tokens)
    with ShardWriter(folder, "val") as validation:
        validation.write(tokens[:1_000_000])
    (folder / "tokenizer.model").write_bytes(b"hashed only")
    spec = TokenizeSpec(
        corpus=ShardsCorpus(folder=str(folder), tokenizer_model=str(folder / "tokenizer.model"))
    )

    def look() -> float:
        return timed(lambda: locate(spec, FileHashes(folder / "hashes.sqlite")))[0][0]

    first = look()
    again = [look() for _ in range(runs)]
    size = sum(path.stat().st_size for path in writer.paths)
    met = statistics.median(again) <= GOAL_REMEMBERED_SECONDS
    what = f"verifying {size / 1e9:.1f} GB of shards again"
    ours, peer = (
        f"{1000 * statistics.median(again):.0f} ms",
        f"the first time {first:.1f} s ({size / first / 1e9:.1f} GB/s)",
    )
    return [
        Figure(
            "orchestration",
            what,
            ours,
            peer,
            None,
            "≤ 0.5 s",
            met,
            {"first_seconds": first, "again_seconds": again},
        )
    ]


def main() -> None:
    parser = parser_for("orchestration", "What orchestration costs.")
    parser.add_argument(
        "--dataset-gigabytes",
        type=float,
        default=10.0,
        help="size of the dataset that is hashed (default: %(default)s)",
    )
    parser.add_argument("--preset", default="demo", help="whose cached run is timed (default: %(default)s)")
    parser.add_argument(
        "--by-hand",
        type=Path,
        metavar="STORE",
        help="only run the smoke preset's stages into STORE, without Prefect",
    )
    options = parser.parse_args()
    if options.by_hand:
        chain_by_hand(options.by_hand)
        return
    store = Path(os.environ.get("FAIRWAY_STORE") or ROOT / ".fairway").resolve()
    figures = [help_command(options.runs)]
    with tempfile.TemporaryDirectory(prefix="fairway-bench-") as name:
        folder = Path(name)
        (folder / "home").mkdir()
        with server(folder / "home") as url:
            figures += cached_runs(store, options.preset, url, options.runs)
            figures.append(overhead(folder, url, options.runs))
        (folder / "shards").mkdir()
        figures += hashing(folder / "shards", options.dataset_gigabytes, options.runs)
    report(figures, options.json)


if __name__ == "__main__":
    main()
