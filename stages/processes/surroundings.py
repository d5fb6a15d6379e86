"""Environment variables of processes: leftovers of other programs are removed, and loopback needs no proxy.

A scheduler's variables describe its own processes. torchrun, OpenMP and Python would apply them to ours.
"""

import os
import re
from collections.abc import Mapping, MutableMapping
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
UNUSABLE_PROXY = "FAIRWAY_UNUSABLE_PROXY"
# Users set the first two on purpose (docs/decisions/0007-threads-spin-or-wait.md). By the others srun finds
# the cluster, and the allocation in which it is to start a training on several machines.
_KEPT = {
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    *("SLURM_CONF", "SLURM_JOB_ID", "SLURM_ACCOUNT", "SLURM_PARTITION", "SLURM_QOS", "SLURM_RESERVATION"),
}
_OF_A_SCHEDULER = re.compile(
    r"(SLURM|PET|TORCHELASTIC|PMI|PMIX|OMPI|OMP|GOMP|KMP)_\w+"
    r"|(LOCAL_|GROUP_|ROLE_|NODE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|ROLE_NAME"
    r"|MASTER_(ADDR|PORT)"
)
# How one person wants to look at one program; a stage's process would fail, hang or print what nobody can
# read.
_OF_ANOTHER_PROGRAM = {
    "PYTHONWARNINGS",
    "PYTHONOPTIMIZE",
    "PYTHONIOENCODING",
    "PYTHONINSPECT",
    "PYTHONVERBOSE",
}


def left_over(environment: Mapping[str, str]) -> set[str]:
    """Names of the variables that a scheduler or a launcher has left for processes of its own."""
    return {name for name in environment if _OF_A_SCHEDULER.fullmatch(name)} - _KEPT


def for_children(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for our Python programs: no leftovers, UTF-8, and no imports from the working folder."""
    unwanted = left_over(environment) | _OF_ANOTHER_PROGRAM
    kept = {name: value for name, value in environment.items() if name not in unwanted}
    reach_loopback(kept)
    return {**kept, "PYTHONUTF8": "1", "PYTHONSAFEPATH": "1"}


def importing_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with this checkout first on PYTHONPATH, before another `stages.py` there."""
    others = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), others] if others else [str(ROOT)])}


def reach_loopback(environment: MutableMapping[str, str]) -> None:
    """Add this machine to NO_PROXY and no_proxy, after the user's own entries. Each library reads one of the
    two.

    Networks of IPv6 (fd00::/8) are left out: no Python library reads them, and httpx refuses the whole list
    because of one.
    """
    entries = [
        entry.strip(" []")
        for name in ("no_proxy", "NO_PROXY")
        for entry in environment.get(name, "").split(",")
    ]
    readable = [
        entry for entry in entries if entry and not (":" in entry and "/" in entry and "://" not in entry)
    ]
    hosts = list(dict.fromkeys([*readable, *LOOPBACK]))
    environment["NO_PROXY"] = environment["no_proxy"] = ",".join(hosts)


def proxy_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables that are set, in either spelling."""
    return {
        name: environment[name] for both in PROXIES for name in (both, both.lower()) if environment.get(name)
    }


def leave_out_unusable_proxies(environment: MutableMapping[str, str]) -> list[str]:
    """Remove proxies that httpx, Prefect's HTTP client, cannot use.

    Returns a message for each.

    UNUSABLE_PROXY keeps the messages, so that code which needs the proxy refuses instead of connecting
    without one.
    """
    messages = []
    for name, value in proxy_variables(environment).items():
        scheme, separator, _ = value.partition("://")
        if not separator or scheme.lower() in ("http", "https"):
            continue
        if scheme.lower() not in ("socks5", "socks5h"):
            reason = "Python's HTTP client knows no such proxy (http, https, socks5 and socks5h are known)"
        elif find_spec("socksio") is None:
            reason = "such a proxy needs the Python package socksio (`pip install socksio`)"
        else:
            continue
        messages.append(f"{name} = {scheme}://...: {reason}")
        del environment[name]
    if messages:
        environment[UNUSABLE_PROXY] = "; ".join(messages)
    return messages
