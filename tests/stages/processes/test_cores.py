"""Cores are counted as this process may use them: mask, and quota of its control groups, of either
version.
"""

import math
import os
from pathlib import Path

import pytest

from stages.processes import cores
from stages.tokenization.fast_encode import default_threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cores, core 7 alone idle; no control group yet: those go below the folder."""
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: [100.0] * 7 + [0.0])
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_the_mask_counts(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (cores.usable_cores(), cores.cpu_quota(), cores.idle_cores(0)) == (8, math.inf, 1.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5})
    assert (cores.usable_cores(), cores.idle_cores(0)) == (2, 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 7})
    assert (cores.usable_cores(), cores.idle_cores(0)) == (2, 1.0)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        (
            "0::/user/job\n",
            {"cpu.max": "max 100000\n", "user/cpu.max": "150000 100000", "user/job/cpu.max": "300000 100000"},
            1.5,
        ),
        (
            "0::/docker/abc\n",
            {"cpu.max": "50000 100000\n"},
            0.5,
        ),  # the container sees its own group as the root
        (
            "3:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "400000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            4.0,
        ),
        (
            "3:cpuacct,cpu:/\n",
            {"cpuacct,cpu/cpu.cfs_quota_us": "200000", "cpuacct,cpu/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        (
            "3:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
        ("5:cpuset:/\n0::/\n", {}, math.inf),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(
    own: str, files: dict[str, str], quota: float, machine: Path
) -> None:
    write(machine / "own", own)
    for name, text in files.items():
        write(machine / name, text)
    assert cores.cpu_quota() == quota
    assert cores.usable_cores() == max(1, int(min(8, quota)))
    assert cores.idle_cores(0) == min(1.0, quota)


def test_encoding_takes_no_more_threads_than_cores(machine: Path) -> None:
    write(machine / "own", "0::/\n")
    write(machine / "cpu.max", "200000 100000")
    assert default_threads() == 2


def test_on_this_machine_the_count_is_within_the_mask() -> None:
    assert 1 <= cores.usable_cores() <= len(os.sched_getaffinity(0))
