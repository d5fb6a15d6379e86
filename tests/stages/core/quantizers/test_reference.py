import numpy as np
import torch

from schemas.quantizer_settings import Reference
from stages.core.quantizers.reference import SCALE_FLOOR, reference

SETTINGS = Reference()


def test_int6_is_every_fourth_level_of_int8() -> None:
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 3
    fine, coarse = reference(weight, 8, SETTINGS), reference(weight, 6, SETTINGS)
    assert torch.equal(coarse.scales, fine.scales * 4)
    assert torch.equal(coarse.codes, (fine.codes.float() / 4).round().clamp(-31, 31).to(torch.int8))


def test_small_rows_share_one_step_because_of_the_floor() -> None:
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * torch.linspace(
        0.01, 0.2, 20
    ).unsqueeze(1)
    assert (reference(weight, 8, SETTINGS).scales == np.float16(SCALE_FLOOR)).all()


def test_its_candidates_all_lie_between_the_two_largest_values_of_a_row() -> None:
    weight = torch.randn(30, 200, generator=torch.Generator().manual_seed(0)) * 40
    rows = reference(weight, 8, SETTINGS)
    two = weight.abs().topk(2, dim=1).values
    clips = rows.clip_ratios * two[:, 0]
    assert (clips <= two[:, 0] * 1.0001).all()
    assert (clips >= two[:, 1] * 0.9999).all()
