"""Check size: count the bytes of the package on disk and compare them with the limit.

    python -m stages check_size --spec spec.json --input package=…/record.json --input packed=…/record.json

Package and PackedModel → SizeReport. Over the limit is a result: `fits` is False, and what weighs most is
named.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from schemas.check_size import CheckSizeSpec, SizePart, SizeReport, TensorGroup
from schemas.errors import SpecError
from schemas.package import BLOB_NAME, Package
from schemas.quantize import PackedModel, TensorReport
from stages.core.blob.packing import compress_frame, open_blob
from stages.quantizing.tensor_groups import group_of
from stages.store.workspace import Workspace

P = TypeVar("P", bound=SizePart)

log = logging.getLogger(__name__)

HEADER_GROUP = "header"


def check_size(spec: CheckSizeSpec, package: Package, packed: PackedModel, work: Workspace) -> SizeReport:
    """Bytes of every file in the package folder, whatever it is; the blob's bytes by tensor group; the
    largest of all.

    Raises SpecError when `packed` describes another blob than the package holds.
    """
    if package.blob.sha256 != packed.blob.sha256:
        raise SpecError(
            "inputs package and packed: they hold different blobs; give the record that the package "
            "was made from"
        )
    blob = work.read(package.blob)
    folder = work.read(package.script).parent
    files = _files_of(folder)
    total_bytes = sum(part.num_bytes for part in files)
    model_bytes = next(part.num_bytes for part in files if part.name == BLOB_NAME)
    groups = _tensor_groups(packed, blob.read_bytes(), model_bytes)
    contributors = [part for part in files if part.name != BLOB_NAME] + [
        SizePart(name=f"model: {part.name}", num_bytes=part.num_bytes) for part in groups
    ]
    report = SizeReport(
        limit_bytes=spec.limit_bytes,
        total_bytes=total_bytes,
        code_bytes=total_bytes - model_bytes,
        model_bytes=model_bytes,
        margin_bytes=spec.limit_bytes - total_bytes,
        fits=total_bytes <= spec.limit_bytes,
        files=files,
        tensor_groups=groups,
        largest=tuple(_by_size(contributors)[:3]),
    )
    log.info("%s", describe_size(report))
    return report


def describe_size(report: SizeReport) -> str:
    """The report in one sentence: how much of the limit is left, or what is over by how much and why."""
    if report.fits:
        return f"{report.total_bytes:,} bytes of {report.limit_bytes:,}: {report.margin_bytes:,} left"
    largest = ", ".join(f"{part.name} {part.num_bytes:,}" for part in report.largest)
    return (
        f"{report.total_bytes:,} bytes are {-report.margin_bytes:,} over the limit of "
        f"{report.limit_bytes:,}; largest: {largest}"
    )


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split in proportion to `weights` into whole numbers that sum to it (largest remainders
    first).
    """
    whole = max(1, sum(weights))
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-(total * weights[index] % whole), index))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def _files_of(folder: Path) -> tuple[SizePart, ...]:
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return tuple(
        SizePart(name=path.relative_to(folder).as_posix(), num_bytes=path.stat().st_size) for path in paths
    )


def _tensor_groups(packed: PackedModel, blob: bytes, model_bytes: int) -> tuple[TensorGroup, ...]:
    header, _ = open_blob(blob)
    tensors: dict[str, list[TensorReport]] = {}
    for tensor in packed.tensors:
        tensors.setdefault(group_of(tensor.name), []).append(tensor)
    alone = [
        len(compress_frame(header, 22)),
        *(sum(tensor.compressed_bytes for tensor in members) for members in tensors.values()),
    ]
    header_share, *shares = apportion(model_bytes, alone)
    groups = [TensorGroup(name=HEADER_GROUP, num_bytes=header_share)]
    for (name, members), num_bytes in zip(tensors.items(), shares, strict=True):
        num_weights = sum(tensor.num_elements for tensor in members)
        entropy_bits = sum(tensor.num_elements * tensor.entropy_bits for tensor in members) / num_weights
        groups.append(
            TensorGroup(name=name, num_bytes=num_bytes, num_weights=num_weights, entropy_bits=entropy_bits)
        )
    return tuple(_by_size(groups))


def _by_size(parts: list[P]) -> list[P]:
    return sorted(parts, key=lambda part: (-part.num_bytes, part.name))
