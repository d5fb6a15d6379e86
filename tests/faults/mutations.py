"""Mutate blobs, records and shards and read them: python -m tests.faults.mutations FOLDER COUNT -> JSON on standard output.

A process of its own, because the kernel holds its limits: an address space a little larger than it is now, and an alarm.
"""

import dataclasses
import hashlib
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
import zstandard

from presets import load_preset
from stages.core.loader import TokenStream
from stages.core.model import GPT
from stages.core.packing import BLOB_MAGIC, BlobError, pack
from stages.core.quantizers.methods import quantize_state
from stages.core.shards import ShardError, ShardWriter
from stages.core.submission import load_packed_model
from stages.registry import STAGES
from stages.sealed import write_sealed
from stages.store import Store

LIMIT_MIB = 1024
SECONDS = 20
Case = Callable[[], bool]  # reads one mutation: True if it was sound; raises the typed error if not

HUGE = (2**31, 2**32, 2**40 - 1, 2**40, 2**63, 10**30, -1, -(2**31), 0, 1.5, float("nan"), float("inf"), None, True, "1", [], {})
NAMES = ("../../etc/passwd", "/etc/passwd", "..\\..\\x", "a\x00b", "", "é", "x" * 100_000, "blocks.0.attn.q.weight", "$(reboot)", "\u202e")


class TooSlowError(Exception):
    """A case ran past its time."""


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    generator = random.Random(6)
    sources = {"blobs": _blobs(folder, generator), "records": _records(folder, generator), "shards": _shards(folder, generator)}
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
    return {"num": count, "refused": refused, "sound": sound, "slowest": slowest, "grown_mib": grown, "wrong": wrong[:20]}


class RefusedError(Exception):
    """The store did not serve it, and said why."""


# ---- blobs


def _blobs(folder: Path, generator: random.Random) -> Callable[[], tuple[str, Case]]:
    settings = load_preset("smoke").train.model
    model = GPT(settings)
    model.init_weights(0)
    blob = pack(quantize_state(dict(model.state_dict()), load_preset("smoke").quantize), {"model": dataclasses.asdict(settings)}, 1)
    content = zstandard.ZstdDecompressor().decompress(blob[12:])
    header_bytes = int.from_bytes(content[:4], "little")
    header, payload = json.loads(content[4 : 4 + header_bytes]), content[4 + header_bytes :]
    path = folder / "model.fwz"

    def next_case() -> tuple[str, Case]:
        how = generator.choice(_BLOB_MUTATIONS)
        mutated = how(generator, blob, content, json.loads(json.dumps(header)), payload)
        path.write_bytes(mutated)

        def read() -> bool:
            state = load_packed_model(path, torch.device("cpu")).state_dict()
            if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
                raise TypeError("served a value that is no finite number")
            return True

        return how.__name__, read

    return next_case


def sealed(content: bytes) -> bytes:
    """A blob with a right checksum around any content, as a stranger can make one."""
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    return BLOB_MAGIC + hashlib.sha256(frame).digest()[:8] + frame


def with_header(header: Any, payload: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sealed(len(text).to_bytes(4, "little") + text + payload)


def flipped_outside(generator: random.Random, blob: bytes, *rest: Any) -> bytes:
    return flip_some(generator, blob)


def cut_outside(generator: random.Random, blob: bytes, *rest: Any) -> bytes:
    return blob[: generator.randrange(len(blob))]


def flipped_inside(generator: random.Random, blob: bytes, content: bytes, *rest: Any) -> bytes:
    return sealed(flip_some(generator, content))


def cut_inside(generator: random.Random, blob: bytes, content: bytes, *rest: Any) -> bytes:
    return sealed(content[: generator.randrange(len(content))])


def longer_inside(generator: random.Random, blob: bytes, content: bytes, *rest: Any) -> bytes:
    return sealed(content + generator.randbytes(generator.randrange(1, 9)))


def flipped_frame(generator: random.Random, blob: bytes, *rest: Any) -> bytes:
    frame = flip_some(generator, blob[12:])
    return BLOB_MAGIC + hashlib.sha256(frame).digest()[:8] + frame


def lying_header_length(generator: random.Random, blob: bytes, content: bytes, *rest: Any) -> bytes:
    return sealed(struct.pack("<I", generator.choice((0, 1, 2**22, 2**22 + 1, 2**31, 2**32 - 1))) + content[4:])


def lying_shape(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    entry = generator.choice(header["tensors"])
    entry[2] = generator.choice([[generator.choice(HUGE) for _ in range(generator.randrange(9))], [2**20, 2**20], [1] * 9, entry[2][::-1]])
    return with_header(header, payload)


def lying_name(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    generator.choice(header["tensors"])[0] = generator.choice(NAMES + HUGE)
    return with_header(header, payload)


def lying_format(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    generator.choice(header["tensors"])[1] = generator.choice(("int4", "int6", "int8", "fp16", "fp32", "pickle", *HUGE))
    return with_header(header, payload)


def twice_or_gone(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    entry = generator.choice(header["tensors"])
    header["tensors"].append(entry) if generator.random() < 0.5 else header["tensors"].remove(entry)
    return with_header(header, payload)


def lying_settings(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    model = header["metadata"]["model"]
    name = generator.choice([*model, "unknown"])
    model[name] = generator.choice((*HUGE, *NAMES, 10**6, 10**9, [10**9], [0] * 10_000))
    return with_header(header, payload)


def other_header(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    depth = generator.choice((10, 1000, 100_000, 1_000_000))
    choices = (
        b"[" * depth,
        b'{"a":' * depth,
        b"9" * depth,
        b'"' + b"\\u0000" * depth + b'"',
        b'{"metadata":{},"metadata":{}}',
        b"NaN",
        b"\xff",
    )
    return with_header(generator.choice(choices), payload)


def extreme_scales(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    start = generator.randrange(len(payload))
    value = generator.choice((b"\xff", b"\x7f", b"\x7c", b"\xfc", b"\x00", b"\x80"))
    length = min(generator.randrange(1, 4096), len(payload) - start)
    return with_header(header, payload[:start] + value * length + payload[start + length :])


_BOMB = zstandard.ZstdCompressor(level=3).compress(bytes(400 * 2**20))


def bomb(generator: random.Random, *rest: Any) -> bytes:
    """400 MiB of zeros that say so, or a frame that says something else."""
    declared = generator.choice((None, 0, 2**30, 2**40, 2**62))
    frame = _BOMB
    if declared is not None:
        frame = b"\x28\xb5\x2f\xfd" + bytes([0b1110_0000]) + declared.to_bytes(8, "little") + _BOMB[-2000:]
    return BLOB_MAGIC + hashlib.sha256(frame).digest()[:8] + frame


_BLOB_MUTATIONS = (
    flipped_outside, cut_outside, flipped_inside, cut_inside, longer_inside, flipped_frame, lying_header_length, lying_shape, lying_name,
    lying_format, twice_or_gone, lying_settings, other_header, extreme_scales, bomb,
)  # fmt: skip


def flip_some(generator: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8, 64))):
        mutated[generator.randrange(len(mutated))] ^= 1 << generator.randrange(8)
    return bytes(mutated)


# ---- records


def _records(folder: Path, generator: random.Random) -> Callable[[], tuple[str, Case]]:
    from tests.faults.chain import Chain

    chain = Chain(folder / "store", ["train.schedule.max_steps=20"])
    records = {}
    for stage in STAGES:
        record = chain.run(stage).record
        records[stage] = (record.provenance.key, record.model_dump_json())
    store = Store(chain.store.root)

    def next_case() -> tuple[str, Case]:
        stage = generator.choice(list(records))
        key, text = records[stage]
        how = generator.choice((text_flipped, text_cut, value_replaced, path_replaced, nested))
        write_sealed(store.folder(STAGES[stage], key) / "record.json", how(generator, text))

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
    from stages.store import file_refs

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
    value = text.replace('"path":"stages/', f'"path":"{generator.choice(("../../", "/", "stages/../../../", "stages/./", "//etc/"))}')
    return value.encode()


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
