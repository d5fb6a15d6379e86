"""Mutations of a blob, as a stranger can make them: with a right checksum around any content."""

import dataclasses
import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zstandard

from presets import load_preset
from stages.core.blob.packing import BLOB_MAGIC, pack
from stages.core.calibrated.whole_model import quantize_state
from stages.core.model import GPT
from stages.core.program import load_packed_model

Case = Callable[[], bool]  # reads one mutation: True if it was sound; raises the typed error if not

HUGE = (
    2**31,
    2**32,
    2**40 - 1,
    2**40,
    2**63,
    10**30,
    -1,
    -(2**31),
    0,
    1.5,
    float("nan"),
    float("inf"),
    None,
    True,
    "1",
    [],
    {},
)
NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "a\x00b",
    "",
    "é",
    "x" * 100_000,
    "blocks.0.attn.q.weight",
    "$(reboot)",
    "\u202e",
)


def flip_some(generator: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8, 64))):
        mutated[generator.randrange(len(mutated))] ^= 1 << generator.randrange(8)
    return bytes(mutated)


def blob_cases(folder: Path, generator: random.Random) -> Callable[[], tuple[str, Case]]:
    settings = load_preset("smoke").train.model
    model = GPT(settings)
    model.init_weights(0)
    blob = pack(
        quantize_state(dict(model.state_dict()), load_preset("smoke").quantize),
        {"model": dataclasses.asdict(settings)},
        1,
    )
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
    return sealed(
        struct.pack("<I", generator.choice((0, 1, 2**22, 2**22 + 1, 2**31, 2**32 - 1))) + content[4:]
    )


def lying_shape(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    entry = generator.choice(header["tensors"])
    entry[2] = generator.choice(
        [
            [generator.choice(HUGE) for _ in range(generator.randrange(9))],
            [2**20, 2**20],
            [1] * 9,
            entry[2][::-1],
        ]
    )
    return with_header(header, payload)


def lying_name(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    generator.choice(header["tensors"])[0] = generator.choice(NAMES + HUGE)
    return with_header(header, payload)


def lying_format(generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes) -> bytes:
    generator.choice(header["tensors"])[1] = generator.choice(
        ("int4", "int6", "int8", "fp16", "fp32", "pickle", *HUGE)
    )
    return with_header(header, payload)


def twice_or_gone(
    generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes
) -> bytes:
    entry = generator.choice(header["tensors"])
    header["tensors"].append(entry) if generator.random() < 0.5 else header["tensors"].remove(entry)
    return with_header(header, payload)


def lying_settings(
    generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes
) -> bytes:
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


def extreme_scales(
    generator: random.Random, blob: bytes, content: bytes, header: Any, payload: bytes
) -> bytes:
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
    flipped_outside, cut_outside, flipped_inside, cut_inside, longer_inside, flipped_frame,
    lying_header_length, lying_shape, lying_name, lying_format,
    twice_or_gone, lying_settings, other_header, extreme_scales, bomb,
)  # fmt: skip
