import hashlib
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas.quantizer_settings import QUANTIZER_OF_METHOD, GptqLite
from schemas.tensor_formats import FormatRule, StoredFormat
from stages.core.blob.packing import (
    BLOB_FORMATS,
    BLOB_MAGIC,
    CONTENT_BYTES_FLOOR,
    BlobError,
    estimated_blob_bytes,
    pack,
    payload_of,
    seal,
    serialize,
    unpack,
)
from stages.core.calibrated.whole_model import quantize_state
from stages.core.quantizers.coded_grid import CODE_LIMIT, CodedGrid
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor

RULES = (
    FormatRule("*.6", "int6"),
    FormatRule("*.8", "int8"),
    FormatRule("*.h", "fp16"),
    FormatRule("*", "fp32"),
)
METADATA = {"model": {"dim": 8, "note": "ü▁"}, "list": [1, 2.5, None, True]}


def small_model(seed: int = 0) -> QuantizedModel:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "b.6": (6, 10),
        "emb.h": (5, 4),
        "a.8": (3, 7),
        "gain": (),
        "gate": (9,),
        "a.6": (2, 3),
        "mix": (2, 4),
    }
    return quantize_state(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        GptqLite(rules=RULES),
    )


SMALL = pack(small_model(), METADATA, 22)
HEADER, PAYLOAD = serialize(small_model(), METADATA)


def sealed(content: bytes) -> bytes:
    """A blob with a right checksum around any content, as an attacker would make it."""
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    return BLOB_MAGIC + hashlib.sha256(frame).digest()[:8] + frame


def with_header(header: Any, payload: bytes = PAYLOAD) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sealed(len(text).to_bytes(4, "little") + text + payload)


def with_tensors(tensors: Any, payload: bytes = b"") -> bytes:
    return with_header({"metadata": {}, "tensors": tensors}, payload)


def expect_blob_error_or_sound_tensors(blob: bytes) -> None:
    with suppress(BlobError):
        tensors, metadata = unpack(blob)
        assert isinstance(metadata, dict)
        assert all(
            tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()
        )


def coded_tensor(name: str, seed: int, rows: int = 30, columns: int = 20) -> QuantizedTensor:
    """Codes of very unequal rows and columns, up to the largest that there are."""
    generator = np.random.default_rng(seed)
    spread = np.exp2(generator.normal(0, 2, (rows, 1)) + generator.normal(0, 1, columns))
    codes = np.clip(
        np.round(generator.standard_normal((rows, columns)) * spread), -CODE_LIMIT, CODE_LIMIT
    ).astype(np.int16)
    exponents = [
        torch.from_numpy(generator.integers(-60, 60, count).astype(np.int8)) for count in (rows, columns)
    ]
    return QuantizedTensor(
        name,
        "coded",
        torch.from_numpy(codes),
        grid=CodedGrid(float(np.float32(2.0 ** generator.normal())), *exponents),
    )


@st.composite
def models(draw: st.DrawFn) -> QuantizedModel:
    formats: list[StoredFormat] = draw(st.lists(st.sampled_from(BLOB_FORMATS), max_size=6))
    state, rules, coded = {}, [], []
    for index, tensor_format in enumerate(formats):
        if tensor_format == "coded":
            coded.append(
                coded_tensor(
                    f"t{index}.weight",
                    draw(st.integers(0, 2**31)),
                    *draw(st.tuples(*[st.integers(1, 40)] * 2)),
                )
            )
            continue
        num_dims = 2 if tensor_format.startswith("int") else draw(st.integers(0, 3))
        shape = draw(st.lists(st.integers(1, 9), min_size=num_dims, max_size=num_dims))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        state[f"t{index}.weight"] = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-9, 3))
        rules.append(FormatRule(f"t{index}.weight", tensor_format))
    method = draw(st.sampled_from(["gptq_lite", "round_to_nearest"]))
    others = quantize_state(state, QUANTIZER_OF_METHOD[method](rules=(*rules, FormatRule("*", "fp32"))))
    return QuantizedModel(method, (*coded, *others.tensors))


@given(
    models(),
    st.integers(1, 22),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_every_model_comes_back_as_its_dequantized_tensors(
    model: QuantizedModel, level: int, metadata: dict[str, Any]
) -> None:
    tensors, read = unpack(pack(model, metadata, level))
    assert read == metadata
    assert set(tensors) == {tensor.name for tensor in model.tensors}
    for tensor in model.tensors:
        assert torch.equal(tensors[tensor.name], tensor.dequantized())
        assert tensors[tensor.name].shape == tensor.values.shape


def test_a_reader_written_from_the_layout_alone_finds_every_number() -> None:
    blob, model = SMALL, {tensor.name: tensor for tensor in small_model().tensors}
    assert blob[:4] == b"FWZ\x02"
    assert blob[4:12] == hashlib.sha256(blob[12:]).digest()[:8]
    content = zstandard.ZstdDecompressor().decompress(blob[12:])
    header_bytes = int.from_bytes(content[:4], "little")
    header, rest = json.loads(content[4 : 4 + header_bytes]), content[4 + header_bytes :]
    assert header["metadata"] == METADATA
    assert [name for name, _, _ in header["tensors"]] == ["a.6", "b.6", "a.8", "emb.h", "gain", "gate", "mix"]
    for name, _, shape in header["tensors"][:3]:
        codes, rest = (
            np.frombuffer(rest, np.int8, shape[0] * shape[1]).reshape(shape),
            rest[shape[0] * shape[1] :],
        )
        assert np.array_equal(codes, model[name].values.numpy())
    for names, dtype, kind in [
        (["a.6", "b.6", "a.8"], "<f2", "scales"),
        (["emb.h"], "<f2", "values"),
        (["gain", "gate", "mix"], "<f4", "values"),
    ]:
        expected = np.concatenate([getattr(model[name], kind).numpy().reshape(-1) for name in names])
        raw, rest = rest[: expected.nbytes], rest[expected.nbytes :]
        interleaved = bytes(
            raw[plane * len(expected) + i]
            for i in range(len(expected))
            for plane in range(np.dtype(dtype).itemsize)
        )
        assert np.array_equal(np.frombuffer(interleaved, dtype), expected)
    assert rest == b""


@pytest.mark.parametrize("rows", [30, 300, 1_500])
def test_the_estimate_is_the_bytes_to_a_few_in_ten_thousand(rows: int) -> None:
    coded = [coded_tensor(f"c{seed}.weight", seed, rows, 400) for seed in range(3)]
    model = QuantizedModel("ecsq", (*coded, *small_model().tensors))
    size = len(pack(model, METADATA, 19))
    assert abs(estimated_blob_bytes(model, METADATA, 19) - size) <= 10 + size // 2_000
    assert estimated_blob_bytes(small_model(), METADATA, 22) == len(SMALL)


def test_equal_models_give_equal_bytes_whatever_the_order_of_their_tensors() -> None:
    model = small_model()
    assert pack(model, METADATA, 22) == SMALL
    assert pack(QuantizedModel(model.method, model.tensors[::-1]), METADATA, 22) == SMALL


def test_tensors_of_one_role_stand_together() -> None:
    names = ["blocks.0.k.6", "blocks.0.q.6", "blocks.10.k.6", "blocks.2.q.6", "blocks.1.q.8"]
    model = quantize_state({name: torch.ones(2, 2) for name in names}, GptqLite(rules=RULES))
    tensors, _ = unpack(pack(model, {}, 1))
    assert list(tensors) == ["blocks.0.k.6", "blocks.10.k.6", "blocks.0.q.6", "blocks.2.q.6", "blocks.1.q.8"]


def test_byte_planes_compress_better_than_the_numbers_as_they_are() -> None:
    numbers = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    for tensor_format, dtype in (("fp16", "<f2"), ("fp32", "<f4")):
        model = quantize_state({"w": numbers}, GptqLite(rules=(FormatRule("*", tensor_format),)))
        raw = model.tensors[0].values.numpy().astype(dtype).tobytes()
        compress = zstandard.ZstdCompressor(level=22).compress
        assert len(compress(payload_of(list(model.tensors)))) < 0.95 * len(compress(raw))


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": float("inf")}])
def test_metadata_that_json_cannot_hold_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        pack(small_model(), metadata, 1)


def test_pack_refuses_what_unpack_would_refuse() -> None:
    tensors = small_model().tensors
    with pytest.raises(ValueError, match="the same name"):
        pack(QuantizedModel("round_to_nearest", (tensors[0], tensors[0])), {}, 1)
    with pytest.raises(ValueError, match="more than a blob may have"):
        seal(b"{}", bytes(CONTENT_BYTES_FLOOR + 1), 1)
    with pytest.raises(ValueError, match="more than a blob may have"):
        pack(small_model(), {"x": "y" * 2**23}, 1)


# ---- hostile input


@given(
    st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda tail: BLOB_MAGIC + tail)
    | st.binary(max_size=300).map(sealed)
)
@settings(max_examples=300)
def test_arbitrary_bytes_are_no_blob(blob: bytes) -> None:
    with pytest.raises(BlobError):
        unpack(blob)


@given(st.integers(0, 8 * len(SMALL) - 1))
@settings(max_examples=300)
@example(0)
@example(8 * len(SMALL) - 1)
def test_one_flipped_bit_anywhere_is_found(bit: int) -> None:
    blob = bytearray(SMALL)
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BlobError):
        unpack(bytes(blob))


@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=3))
@settings(max_examples=100)
def test_a_blob_cut_off_or_continued_is_refused(length: int, tail: bytes) -> None:
    with pytest.raises(BlobError):
        unpack(SMALL[:length])
    if tail:
        with pytest.raises(BlobError):
            unpack(SMALL + tail)


@given(
    st.lists(
        st.tuples(st.integers(0, 4 + len(HEADER) + len(PAYLOAD) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_changed_content_under_a_right_checksum_is_refused_or_still_sound(
    changes: list[tuple[int, int]],
) -> None:
    content = bytearray(len(HEADER).to_bytes(4, "little") + HEADER + PAYLOAD)
    for position, value in changes:
        content[position] = value
    expect_blob_error_or_sound_tensors(sealed(bytes(content)))


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 13), st.integers(0, 255)), min_size=1, max_size=5))
@settings(max_examples=300)
def test_a_changed_frame_under_a_right_checksum_is_refused_or_still_sound(
    changes: list[tuple[int, int]],
) -> None:
    frame = bytearray(SMALL[12:])
    for position, value in changes:
        frame[position] = value
    expect_blob_error_or_sound_tensors(BLOB_MAGIC + hashlib.sha256(frame).digest()[:8] + bytes(frame))


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["int6", "fp16", "fp32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(JSON_VALUES)
@settings(max_examples=300, deadline=None)
def test_any_json_as_header_entries_or_entry_is_refused_or_still_sound(value: Any) -> None:
    for blob in (
        with_header(value),
        with_tensors(value, PAYLOAD),
        with_tensors([value], PAYLOAD),
        with_tensors([["x", "fp32", value]], PAYLOAD),
    ):
        expect_blob_error_or_sound_tensors(blob)


def deep(depth: int) -> bytes:
    return b'{"metadata":{},"tensors":' + b"[" * depth + b"]" * depth + b"}"


HOSTILE_BLOBS: dict[str, tuple[bytes, str]] = {
    "another version": (b"FWZ\x01" + SMALL[4:], "not a blob of this version"),
    "no frame": (BLOB_MAGIC + hashlib.sha256(b"").digest()[:8], "cannot be decompressed"),
    "content of nothing": (sealed(b""), "declares a content of 0"),
    "content too short for a length": (sealed(b"abc"), "declares a content of 3"),
    "header longer than the content": (
        sealed((2**31).to_bytes(4, "little") + HEADER),
        "declares a header of 2,147,483,648",
    ),
    "header over the limit": (with_header(b" " * (4 * 2**20 + 1)), "declares a header of 4,194,305"),
    "header no UTF-8": (with_header(b"\xff\xfe"), "no JSON"),
    "header cut off": (with_header(HEADER[:-1]), "no JSON"),
    "deeply nested": (with_header(deep(100_000)), "no JSON"),
    "nested up to the limit": (with_header(deep(900)), "is not declared as"),
    "NaN in JSON": (with_header(b'{"metadata":{"x":NaN},"tensors":[]}'), "NaN is no number"),
    "a number of 5000 digits": (
        with_header(b'{"metadata":{"x":' + b"1" * 5000 + b'},"tensors":[]}'),
        "no JSON",
    ),
    "a key twice": (with_header(b'{"metadata":{},"metadata":{},"tensors":[]}'), "a key occurs twice"),
    "no tensors": (with_header({"metadata": {}}), "must be an object with"),
    "another key": (with_header({"metadata": {}, "tensors": [], "x": 1}), "must be an object with"),
    "metadata a list": (with_header({"metadata": [], "tensors": []}), "must be an object"),
    "two of one name": (with_tensors([["x", "fp32", []]] * 2, bytes(8)), "the same name"),
    "empty name": (with_tensors([["", "fp32", []]], bytes(4)), "is not declared as"),
    "unprintable name": (with_tensors([["a\x00", "fp32", []]], bytes(4)), "is not declared as"),
    "lone surrogate in a name": (with_tensors([["\ud800", "fp32", []]], bytes(4)), "is not declared as"),
    "unknown format": (with_tensors([["x", "int9", [1, 1]]], bytes(3)), "is not declared as"),
    "negative dims that multiply to a positive": (
        with_tensors([["x", "fp32", [-1, -1]]], bytes(4)),
        "cannot have this shape",
    ),
    "no elements": (with_tensors([["x", "fp32", [0]]]), "cannot have this shape"),
    "dims that are true": (with_tensors([["x", "fp32", [True]]], bytes(4)), "cannot have this shape"),
    "dims that are fractions": (with_tensors([["x", "fp32", [1.0]]], bytes(4)), "cannot have this shape"),
    "integer format without rows": (with_tensors([["x", "int6", [3]]], bytes(5)), "cannot have this shape"),
    "a terabyte": (
        with_tensors([["x", "fp32", [2**19, 2**19]]], bytes(4)),
        "declare 1,099,511,627,776 bytes",
    ),
    "sizes beyond 64 bits": (with_tensors([["x", "fp32", [2**39] * 8]], bytes(4)), "the payload has 4"),
    "payload too short": (with_header(HEADER, PAYLOAD[:-1]), "the payload has"),
    "payload too long": (with_header(HEADER, PAYLOAD + b"x"), "the payload has"),
    "a code outside of the format": (
        with_tensors([["x", "int6", [1, 1]]], b"\x20\x00\x3c"),
        "outside of int6's ±31",
    ),
    "a code of -128": (with_tensors([["x", "int8", [1, 1]]], b"\x80\x00\x3c"), "outside of int8's ±127"),
    "a NaN scale": (with_tensors([["x", "int6", [1, 1]]], b"\x01\x00\x7e"), "row scale"),
    "an infinite scale": (with_tensors([["x", "int6", [1, 1]]], b"\x01\x00\x7c"), "row scale"),
    "a negative scale": (with_tensors([["x", "int6", [1, 1]]], b"\x01\x00\xbc"), "row scale"),
    "a zero scale": (with_tensors([["x", "int6", [1, 1]]], b"\x01\x00\x00"), "row scale"),
    "a NaN in fp16": (with_tensors([["x", "fp16", [1]]], b"\x00\x7e"), "no finite number"),
    "an infinity in fp32": (with_tensors([["x", "fp32", [1]]], b"\x00\x00\x80\x7f"), "no finite number"),
}


@pytest.mark.parametrize("case", HOSTILE_BLOBS)
def test_hostile_blobs_are_refused_by_name(case: str) -> None:
    blob, message = HOSTILE_BLOBS[case]
    with pytest.raises(BlobError, match=message):
        unpack(blob)


def bomb() -> bytes:
    return sealed(bytes(CONTENT_BYTES_FLOOR + 2**20))


def undeclared() -> bytes:
    frame = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(
        bytes(CONTENT_BYTES_FLOOR + 2**20)
    )
    return BLOB_MAGIC + hashlib.sha256(frame).digest()[:8] + frame


@pytest.mark.parametrize("make", [bomb, undeclared, lambda: with_tensors([["x", "fp32", [2**19, 2**19]]])])
def test_what_a_blob_declares_allocates_nothing_before_it_is_checked(make: Callable[[], bytes]) -> None:
    blob = make()
    tracemalloc.start()
    try:
        with pytest.raises(BlobError):
            unpack(blob)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


CODED = pack(
    QuantizedModel("ecsq", tuple(coded_tensor(name, seed) for seed, name in enumerate("ab"))), METADATA, 22
)


@given(st.integers(0, 2**32), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_of_a_coded_section_is_an_error_or_sound_tensors(place: int, value: int) -> None:
    content = bytearray(zstandard.ZstdDecompressor().decompress(CODED[12:]))
    content[place % len(content)] = value
    expect_blob_error_or_sound_tensors(sealed(bytes(content)))


def test_symbols_that_cost_nothing_cannot_stand_for_more_numbers_than_a_blob_may_hold() -> None:
    with pytest.raises(BlobError, match=r"declares 1,099,511,627,776 coded numbers"):
        unpack(with_tensors([["a", "coded", [2**20, 2**20]]]))
