"""The blob that ships: every tensor of a model and its metadata in one checked, compressed container.

No pickle.

    blob     "FWZ" + version byte | first 8 bytes of the frame's sha256 | zstandard frame of the content
    content  header length, uint32 | header, JSON | payload
    header   {"metadata": {…}, "tensors": [[name, format, [dims]], …]}
    payload  codes of the integer tensors, one byte each | their fp16 row scales | fp16 tensors
             | fp32 tensors | coded matrices

All numbers are little-endian; tensors follow one another in the header's order, so offsets need no storing
and cannot lie. What resembles each other stands together, because that compresses better: formats, and within
them the tensors of one role over all layers; scales and floating-point tensors are byte planes (all first
bytes, then all second ones …). Coded matrices have a section of their own (`coded_section`), whose stream
zstandard stores as it is.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

import numpy as np
import torch
import zstandard
from torch import Tensor

from schemas.tensor_formats import StoredFormat
from stages.core.blob.coded_section import (
    CodedSectionError,
    coded_from_bytes,
    coded_to_bytes,
    coded_without_stream,
)
from stages.core.quantizers.coded_grid import CodedGrid
from stages.core.quantizers.grid import dequantize_rows, max_level
from stages.core.quantizers.quantized import QuantizedModel, QuantizedTensor, bits_of

BLOB_MAGIC = b"FWZ\x02"
DIGEST_BYTES = 8
HEADER_BYTES_LIMIT = 4 * 2**20
CONTENT_BYTES_FLOOR = 64 * 2**20
CONTENT_RATIO_LIMIT = 64
# Weights repeat nothing over longer distances: a window of one zstd block gives the same size in a fraction
# of the time.
BLOB_WINDOW_LOG = 17
_BLOCK_HEADER_BYTES = 3
BLOB_FORMATS: tuple[StoredFormat, ...] = get_args(StoredFormat)


class BlobError(ValueError):
    """The bytes are no sound blob. A blob is data from strangers: nothing in it is believed unchecked."""


@dataclass(frozen=True)
class BlobEntry:
    """A tensor as the header declares it."""

    name: str
    format: StoredFormat
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def pack(model: QuantizedModel, metadata: dict[str, Any], level: int) -> bytes:
    """The blob of `model`; equal inputs give equal bytes. `metadata` is plain JSON types.

    Raises TypeError for metadata that JSON cannot hold, and ValueError for tensors or metadata that `unpack`
    would refuse.
    """
    header, payload = serialize(model, metadata)
    return seal(header, payload, level)


def estimated_blob_bytes(model: QuantizedModel, metadata: dict[str, Any], level: int) -> int:
    """The bytes that `pack` would make of `model`, to a few in ten thousand; coded matrices are counted and
    not coded. Raises as `pack` does.
    """
    tensors = sorted(model.tensors, key=_place_in_blob)
    section, stream_bytes = coded_without_stream(_coded(tensors))
    # zstandard stores the stream as it is. Its first window stands in a block with the tables before it.
    beginning = min(stream_bytes, 1 << BLOB_WINDOW_LOG)
    stand_in = np.random.default_rng(0).bytes(beginning)
    blob = seal(_header(tensors, metadata), _plain_payload(tensors) + section + stand_in, level)
    rest = stream_bytes - beginning
    return len(blob) + rest + _BLOCK_HEADER_BYTES * (rest >> BLOB_WINDOW_LOG)


def serialize(model: QuantizedModel, metadata: dict[str, Any]) -> tuple[bytes, bytes]:
    """Header and payload, uncompressed. Raises as `pack` does."""
    tensors = sorted(model.tensors, key=_place_in_blob)
    return _header(tensors, metadata), payload_of(tensors)


def _header(tensors: list[QuantizedTensor], metadata: dict[str, Any]) -> bytes:
    entries = [[tensor.name, tensor.format, list(tensor.values.shape)] for tensor in tensors]
    header = json.dumps(
        {"metadata": metadata, "tensors": entries}, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
    _parse_header(header)
    return header


def _place_in_blob(tensor: QuantizedTensor) -> tuple[int, str, str]:
    role = re.sub(r"\d+", "", tensor.name)
    return BLOB_FORMATS.index(tensor.format), role, tensor.name


def payload_of(tensors: list[QuantizedTensor]) -> bytes:
    """The payload's bytes of `tensors`, in their order."""
    return _plain_payload(tensors) + coded_to_bytes(_coded(tensors))


def _coded(tensors: list[QuantizedTensor]) -> list[tuple[np.ndarray, CodedGrid]]:
    return [(tensor.values.numpy(), tensor.grid) for tensor in tensors if tensor.grid is not None]


def _plain_payload(tensors: list[QuantizedTensor]) -> bytes:
    codes = b"".join(tensor.values.numpy().tobytes() for tensor in tensors if tensor.scales is not None)
    scales = [tensor.scales for tensor in tensors if tensor.scales is not None]
    halves = [tensor.values for tensor in tensors if tensor.format == "fp16"]
    floats = [tensor.values for tensor in tensors if tensor.format == "fp32"]
    return codes + _to_planes(scales, "<f2") + _to_planes(halves, "<f2") + _to_planes(floats, "<f4")


def seal(header: bytes, payload: bytes, level: int) -> bytes:
    """Compressed content behind its checksum.

    Raises ValueError for a content that `unpack` would refuse as a decompression bomb.
    """
    content = len(header).to_bytes(4, "little") + header + payload
    frame = compress_frame(content, level)
    blob = BLOB_MAGIC + hashlib.sha256(frame).digest()[:DIGEST_BYTES] + frame
    if len(header) > HEADER_BYTES_LIMIT or len(content) > _content_limit(blob):
        raise ValueError(
            f"a header of {len(header):,} bytes or a content of {len(content):,} bytes in {len(blob):,} is "
            f"more than a blob may have: at most {HEADER_BYTES_LIMIT:,} bytes of header, and "
            f"{_content_limit(blob):,} bytes of content at this size"
        )
    return blob


def compress_frame(content: bytes, level: int) -> bytes:
    """One zstandard frame that declares its size.

    Single-threaded, so equal content gives equal bytes on every machine.

    Matches shorter than five bytes are not searched for: at the highest levels zstandard takes them where
    coding the literals, which are quantized weights with a skewed distribution, would cost less (docs/log.md
    has what it saves).
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(content), window_log=BLOB_WINDOW_LOG, write_content_size=True, min_match=5
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def unpack(blob: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The model's tensors as float32, in the header's order, and the metadata.

    Raises BlobError for anything but a blob that `pack` could have made. Memory stays within a fixed multiple
    of the larger of 64 MiB and 64 times the blob.
    """
    header, payload = open_blob(blob)
    metadata, entries = _parse_header(header)
    declared = sum(entry.num_elements for entry in entries if entry.format == "coded")
    if declared > _content_limit(
        blob
    ):  # a stream of symbols that cost nothing could stand for any number of them
        raise BlobError(
            f"a blob of {len(blob):,} bytes declares {declared:,} coded numbers; "
            f"{_content_limit(blob):,} are taken"
        )
    return _read_payload(entries, payload), metadata


def open_blob(blob: bytes) -> tuple[bytes, memoryview]:
    """Header and payload, decompressed, their checksum verified and their size bounded. Raises BlobError."""
    start = len(BLOB_MAGIC) + DIGEST_BYTES
    if blob[: len(BLOB_MAGIC)] != BLOB_MAGIC:
        raise BlobError(f"not a blob of this version: it starts with {blob[:4]!r} instead of {BLOB_MAGIC!r}")
    frame = blob[start:]
    if hashlib.sha256(frame).digest()[:DIGEST_BYTES] != blob[len(BLOB_MAGIC) : start]:
        raise BlobError(f"damaged or cut off: the checksum of its {len(blob):,} bytes is wrong")
    try:
        declared = zstandard.frame_content_size(frame)
        if not 4 <= declared <= _content_limit(blob):
            raise BlobError(
                f"a blob of {len(blob):,} bytes declares a content of {declared:,}; 4 to "
                f"{_content_limit(blob):,} are taken"
            )
        content = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=declared, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BlobError(f"cannot be decompressed: {error}") from error
    header_bytes = int.from_bytes(content[:4], "little")
    if header_bytes > min(HEADER_BYTES_LIMIT, len(content) - 4):
        raise BlobError(
            f"declares a header of {header_bytes:,} bytes in a content of {len(content):,}; at most "
            f"{HEADER_BYTES_LIMIT:,} are taken"
        )
    return content[4 : 4 + header_bytes], memoryview(content)[4 + header_bytes :]


def _content_limit(blob: bytes) -> int:
    return max(CONTENT_BYTES_FLOOR, CONTENT_RATIO_LIMIT * len(blob))


def _parse_header(header: bytes) -> tuple[dict[str, Any], list[BlobEntry]]:
    try:
        value = json.loads(
            header.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise BlobError(f"the header is no JSON that is taken here: {error}") from error
    if not isinstance(value, dict) or set(value) != {"metadata", "tensors"}:
        raise BlobError('the header must be an object with "metadata" and "tensors"')
    metadata, items = value["metadata"], value["tensors"]
    if not isinstance(metadata, dict) or not isinstance(items, list):
        raise BlobError('"metadata" must be an object and "tensors" a list')
    entries = [_parse_entry(index, item) for index, item in enumerate(items)]
    if len({entry.name for entry in entries}) != len(entries):
        raise BlobError("two tensors have the same name")
    return metadata, entries


def _parse_entry(index: int, item: Any) -> BlobEntry:
    match item:
        case [str(name), str(tensor_format), [*shape]] if (
            name and name.isascii() and name.isprintable() and tensor_format in BLOB_FORMATS
        ):
            pass
        case _:
            raise BlobError(
                f"tensor {index} is not declared as [printable ASCII name, one of "
                f"{', '.join(BLOB_FORMATS)}, [dims]]"
            )
    sound = len(shape) <= 8 and all(type(dim) is int and 0 < dim < 2**40 for dim in shape)
    if not sound or ((bits_of(tensor_format) or tensor_format == "coded") and len(shape) != 2):
        raise BlobError(
            f"tensor {name!r} cannot have this shape as {tensor_format}: give at most 8 positive "
            "dims, two for a matrix"
        )
    return BlobEntry(name, tensor_format, tuple(shape))


def _read_payload(entries: list[BlobEntry], payload: memoryview) -> dict[str, Tensor]:
    integers = [entry for entry in entries if bits_of(entry.format)]
    halves = [entry for entry in entries if entry.format == "fp16"]
    floats = [entry for entry in entries if entry.format == "fp32"]
    coded = [entry for entry in entries if entry.format == "coded"]
    lengths = {
        "codes": sum(entry.num_elements for entry in integers),
        "scales": 2 * sum(entry.shape[0] for entry in integers),
        "fp16": 2 * sum(entry.num_elements for entry in halves),
        "fp32": 4 * sum(entry.num_elements for entry in floats),
    }
    if sum(lengths.values()) > len(payload) or (sum(lengths.values()) < len(payload) and not coded):
        raise BlobError(
            f"the tensors declare {sum(lengths.values()):,} bytes; the payload has {len(payload):,}"
        )
    sections, start = {}, 0
    for section, length in lengths.items():
        sections[section] = payload[start : start + length]
        start += length
    codes = torch.from_numpy(np.frombuffer(sections["codes"], np.int8).copy())
    scales = _from_planes(sections["scales"], "<f2")
    tensors: dict[str, Tensor] = {}
    for entry, tensor_codes in zip(
        integers, codes.split([entry.num_elements for entry in integers]), strict=True
    ):
        tensor_scales, scales = scales[: entry.shape[0]], scales[entry.shape[0] :]
        tensors[entry.name] = _integer_tensor(entry, tensor_codes, tensor_scales)
    tensors |= _float_tensors(halves, _from_planes(sections["fp16"], "<f2")) | _float_tensors(
        floats, _from_planes(sections["fp32"], "<f4")
    )
    try:
        matrices, used = coded_from_bytes(
            payload[start:], [(entry.shape[0], entry.shape[1]) for entry in coded]
        )
    except CodedSectionError as error:
        raise BlobError(f"the coded matrices cannot be read: {error}") from error
    if start + used != len(payload):
        raise BlobError(f"the payload has {len(payload) - start - used:,} bytes after its last section")
    for entry, (matrix_codes, grid) in zip(coded, matrices, strict=True):
        tensors[entry.name] = grid.dequantized(matrix_codes)
        if not bool(torch.isfinite(tensors[entry.name]).all()):
            raise BlobError(f"tensor {entry.name!r} has steps beyond float32")
    return {entry.name: tensors[entry.name] for entry in entries}


def _integer_tensor(entry: BlobEntry, codes: Tensor, scales: Tensor) -> Tensor:
    limit = max_level(bits_of(entry.format) or 0)
    if int(codes.max()) > limit or int(codes.min()) < -limit:
        raise BlobError(f"tensor {entry.name!r} has a code outside of {entry.format}'s ±{limit}")
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise BlobError(f"tensor {entry.name!r} has a row scale that is no positive finite number")
    return dequantize_rows(codes.view(entry.shape), scales)


def _float_tensors(entries: list[BlobEntry], values: Tensor) -> dict[str, Tensor]:
    tensors = {}
    for entry, part in zip(entries, values.split([entry.num_elements for entry in entries]), strict=True):
        if not bool(torch.isfinite(part).all()):
            raise BlobError(f"tensor {entry.name!r} holds a value that is no finite number")
        tensors[entry.name] = part.float().reshape(entry.shape).clone()
    return tensors


def _to_planes(tensors: list[Tensor], dtype: str) -> bytes:
    values = np.concatenate(
        [np.empty(0, dtype), *(tensor.numpy().astype(dtype).reshape(-1) for tensor in tensors)]
    )
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def _from_planes(section: memoryview, dtype: str) -> Tensor:
    planes = np.frombuffer(section, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    values = np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=True))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number here")
