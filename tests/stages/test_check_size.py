from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.check_size import CheckSizeSpec
from schemas.errors import SpecError
from schemas.merge import MergedModel
from schemas.package import Package, PackageSpec
from schemas.quantize import PackedModel
from schemas.quantizer_settings import GptqLite
from schemas.tokenize_corpus import TokenizedCorpus
from stages.check_size import apportion, check_size, describe_size
from stages.package import package
from stages.quantize import quantize
from stages.quantizing.tensor_groups import group_of
from stages.store.workspace import DamagedFileError, Workspace

MakeWorkspace = Callable[[str], Workspace]


@pytest.fixture
def packed(
    tiny_merged: MergedModel, tiny_tokens: TokenizedCorpus, make_workspace: MakeWorkspace
) -> PackedModel:
    return quantize(GptqLite(), tiny_merged, tiny_tokens, make_workspace("quantize"))


@pytest.fixture
def packaged(packed: PackedModel, make_workspace: MakeWorkspace) -> Package:
    return package(PackageSpec(), packed, make_workspace("package"))


def test_the_total_is_the_files_on_disk_and_every_part_adds_up(
    packed: PackedModel, packaged: Package, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace("check_size")
    report = check_size(CheckSizeSpec(), packaged, packed, work)
    on_disk = {path.name: path.stat().st_size for path in (work.root / packaged.folder).iterdir()}
    assert {part.name: part.num_bytes for part in report.files} == on_disk
    assert report.total_bytes == sum(on_disk.values()) == report.code_bytes + report.model_bytes
    assert report.model_bytes == packed.blob_bytes
    assert sum(part.num_bytes for part in report.tensor_groups) == report.model_bytes
    assert {part.name for part in report.tensor_groups} == {
        "embedding",
        "value embedding",
        "attention",
        "mlp",
        "controls",
        "header",
    }
    embedding = next(group for group in report.tensor_groups if group.name == "embedding")
    row = next(tensor for tensor in packed.tensors if tensor.name == "tok_emb.weight")
    assert (embedding.num_weights, embedding.entropy_bits) == (300 * 32, pytest.approx(row.entropy_bits))
    assert embedding.bits_per_weight == pytest.approx(8 * embedding.num_bytes / (300 * 32))
    assert sum(group.num_weights for group in report.tensor_groups) == packed.num_parameters
    assert report.fits
    assert report.margin_bytes == 16_000_000 - report.total_bytes


def test_any_other_file_in_the_folder_counts_as_code(
    packed: PackedModel, packaged: Package, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace("check_size")
    before = check_size(CheckSizeSpec(), packaged, packed, work)
    extra = work.root / packaged.folder / "notes" / "stray.bin"
    extra.parent.mkdir()
    extra.write_bytes(bytes(654_321))
    report = check_size(CheckSizeSpec(), packaged, packed, work)
    assert report.total_bytes == before.total_bytes + 654_321
    assert report.code_bytes == before.code_bytes + 654_321
    assert report.largest[0].name == "notes/stray.bin"


def test_the_limit_itself_fits_and_one_byte_less_does_not_and_is_no_error(
    packed: PackedModel, packaged: Package, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace("check_size")
    total = check_size(CheckSizeSpec(), packaged, packed, work).total_bytes
    assert check_size(CheckSizeSpec(limit_bytes=total), packaged, packed, work).fits
    over = check_size(CheckSizeSpec(limit_bytes=total - 1), packaged, packed, work)
    assert not over.fits
    assert over.margin_bytes == -1
    assert len(over.largest) == 3
    assert over.largest[0].name == "train_gpt.py"
    assert [part.num_bytes for part in over.largest] == sorted(
        (part.num_bytes for part in over.largest), reverse=True
    )
    sentence = describe_size(over)
    assert "are 1 over the limit" in sentence
    assert all(part.name in sentence for part in over.largest)


def test_a_damaged_blob_is_not_counted(
    packed: PackedModel, packaged: Package, make_workspace: MakeWorkspace
) -> None:
    work = make_workspace("check_size")
    Path(work.root / packaged.blob.path).write_bytes(b"x")
    with pytest.raises(DamagedFileError):
        check_size(CheckSizeSpec(), packaged, packed, work)


def test_records_of_different_blobs_are_refused(
    packed: PackedModel, packaged: Package, make_workspace: MakeWorkspace
) -> None:
    other = packed.derive(blob=packed.blob.derive(sha256="0" * 64))
    with pytest.raises(SpecError, match="different blobs"):
        check_size(CheckSizeSpec(), packaged, other, make_workspace("check_size"))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("tok_emb.weight", "embedding"),
        ("blocks.10.attn.out.weight", "attention"),
        ("blocks.10.attn.q_gain", "controls"),
        ("blocks.0.mlp.up.weight", "mlp"),
        ("blocks.0.mlp_scale", "controls"),
        ("value_embedding.scales.9", "value embedding"),
        ("skip_weights", "controls"),
    ],
)
def test_tensors_are_grouped_by_their_role(name: str, group: str) -> None:
    assert group_of(name) == group


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**7), min_size=1, max_size=20).filter(any))
def test_shares_sum_to_the_total_and_each_is_its_proportion_within_one(
    total: int, weights: list[int]
) -> None:
    shares = apportion(total, weights)
    assert sum(shares) == total
    # In whole numbers: floats would need a tolerance that grows with the total.
    assert all(
        abs(share * sum(weights) - total * weight) < sum(weights)
        for share, weight in zip(shares, weights, strict=True)
    )
