"""Mutate blobs, records and shards and read them: python -m tests.faults.mutations FOLDER COUNT
[NAME=VALUE …] -> JSON on standard output.

The records are those of the run with these overrides in FOLDER/store; what is not there is made.

A process of its own, because the kernel holds its limits: an address space a little larger than it is now,
and an alarm.
"""

import json
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.stages import STAGES
from stages.core.blob.packing import BlobError
from stages.core.checksummed import write_checksummed
from stages.core.loader import TokenStream
from stages.core.shards import ShardError, ShardWriter
from stages.store.store import Store
from tests.faults.hostile_blobs import HUGE, NAMES, Case, blob_cases, flip_some

LIMIT_MIB = 1024
SECONDS = 20


class TooSlowError(Exception):
    """A case ran past its time."""


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    generator = random.Random(6)
    sources = {
        "blobs": blob_cases(folder, generator),
        "records": _records(folder, sys.argv[3:], generator),
        "shards": _shards(folder, generator),
    }
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_MIB * 2**20,) * 2)
    signal.signal(signal.SIGALRM, _alarm)
    shares = {"blobs": count // 2, "records": count * 3 // 10, "shards": count - count // 2 - count * 3 // 10}
    kinds = {kind: _run_all(sources[kind], shares[kind]) for kind in sources}
    print(json.dumps({"limit_mib": LIMIT_MIB, "kinds": kinds}))


def _alarm(number: int, frame: Any) -> None:
    raise TooSlowError


def _run_all(next_case: Callable[[], tuple[str, Case]], count: int) -> dict[str, Any]:
    refused, sound, slowest, wrong = 0, 0, 0.0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        name, case = next_case()
        signal.alarm(SECONDS)
        started = time.perf_counter()
        try:
            sound += case()
        except (BlobError, ShardError, RefusedError) as error:
            refused += 1
            if not str(error):
                wrong.append(f"{name}: no message")
        except Exception as error:  # noqa: BLE001  that is what is looked for
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - started)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    return {
        "num": count,
        "refused": refused,
        "sound": sound,
        "slowest": slowest,
        "grown_mib": grown,
        "wrong": wrong[:20],
    }


class RefusedError(Exception):
    """The store did not serve it, and said why."""


# ---- records


def _records(folder: Path, overrides: list[str], generator: random.Random) -> Callable[[], tuple[str, Case]]:
    from tests.faults.chain import Chain

    chain = Chain(folder / "store", overrides)
    records = {}
    for stage in STAGES:
        record = chain.run(stage).record
        records[stage] = (record.provenance.key, record.model_dump_json())
    store = Store(chain.store.root)

    def next_case() -> tuple[str, Case]:
        stage = generator.choice(list(records))
        key, text = records[stage]
        how = generator.choice((text_flipped, text_cut, value_replaced, path_replaced, nested))
        write_checksummed(store.folder(STAGES[stage], key) / "record.json", how(generator, text))

        def read() -> bool:
            record = store.find(STAGES[stage], key)
            if record is None:
                raise RefusedError("the store said that the stage runs again")
            for ref in _paths(record.result):
                if not (store.root / ref).resolve().is_relative_to(store.root):
                    raise TypeError(f"{ref} leads out of the store")
            return True

        return f"{stage} {how.__name__}", read

    return next_case


def _paths(result: Any) -> list[str]:
    from schemas.files import FileRef
    from stages.store.store import file_refs

    return [ref.path for ref in file_refs(result) if isinstance(ref, FileRef)]


def text_flipped(generator: random.Random, text: str) -> bytes:
    return flip_some(generator, text.encode())


def text_cut(generator: random.Random, text: str) -> bytes:
    return text.encode()[: generator.randrange(len(text))]


def value_replaced(generator: random.Random, text: str) -> bytes:
    value = json.loads(text)
    node = value
    while True:
        key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key] or generator.random() < 0.2:
            node[key] = generator.choice(HUGE + NAMES)
            return json.dumps(value).encode()
        node = node[key]


def path_replaced(generator: random.Random, text: str) -> bytes:
    elsewhere = generator.choice(("../../", "/", "stages/../../../", "stages/./", "//etc/"))
    return (
        text.replace('"path":"stages/', f'"path":"{elsewhere}')
        .replace('"folder":"stages/', f'"folder":"{elsewhere}')
        .encode()
    )


def nested(generator: random.Random, text: str) -> bytes:
    depth = generator.choice((100, 10_000, 1_000_000))
    return text.replace('"result":', '"result":' + generator.choice(("[", '{"a":')) * depth, 1).encode()


# ---- shards


def _shards(folder: Path, generator: random.Random) -> Callable[[], tuple[str, Case]]:
    tokens = np.random.default_rng(0).integers(0, 320, 5000).astype(np.uint16)
    with ShardWriter(folder, "train") as writer:
        writer.write(tokens)
    [path] = writer.paths
    shard = path.read_bytes()

    def next_case() -> tuple[str, Case]:
        how = generator.choice((header_flipped, header_number, shard_cut, shard_longer))
        path.write_bytes(how(generator, shard))

        def read() -> bool:
            stream = TokenStream([path])
            return len(stream) >= 1

        return how.__name__, read

    return next_case


def header_flipped(generator: random.Random, shard: bytes) -> bytes:
    return flip_some(generator, shard[:16]) + shard[16:]


def header_number(generator: random.Random, shard: bytes) -> bytes:
    number = generator.choice((-1, 0, 1, 2**31 - 1, -(2**31), 100_000_000, 100_000_001, 4999, 5001))
    place = generator.choice((0, 4, 8))
    return shard[:place] + struct.pack("<i", number) + shard[place + 4 :]


def shard_cut(generator: random.Random, shard: bytes) -> bytes:
    return shard[: generator.randrange(len(shard))]


def shard_longer(generator: random.Random, shard: bytes) -> bytes:
    return shard + generator.randbytes(generator.randrange(1, 2000))


if __name__ == "__main__":
    main()
