import numpy as np
import pytest
import torch

from schemas.quantizer_settings import GptqLite
from stages.core.quantizers import gptq_lite as module
from stages.core.quantizers.gptq_lite import best_clip_ratios, gptq_lite
from stages.core.quantizers.grid import max_level
from stages.core.quantizers.round_to_nearest import round_to_nearest

CANDIDATES = GptqLite().clip_candidates


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return (
        torch.from_numpy(np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32)) * 0.05
    )


def brute_force(weight: torch.Tensor, bits: int, candidates: tuple[float, ...]) -> np.ndarray:
    """Squared error (candidates, rows) in float64, one row and one candidate at a time, on the grid with
    the fp16 scale.
    """
    limit = max_level(bits)
    errors = np.empty((len(candidates), len(weight)))
    for i, ratio in enumerate(candidates):
        for j, row in enumerate(weight.numpy()):
            scale = np.float64(np.float16(np.abs(row).max() * (np.float32(ratio) / np.float32(limit))))
            stored = np.clip(np.rint(row.astype(np.float64) / scale), -limit, limit) * scale
            errors[i, j] = np.sum((stored - row) ** 2)
    return errors


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("rows", "columns"), [(70, 96), (3, 1000), (200, 5)])
def test_every_row_gets_the_candidate_that_brute_force_in_float64_finds(
    bits: int, rows: int, columns: int
) -> None:
    weight = heavy_tailed(rows, columns)
    errors = brute_force(weight, bits, CANDIDATES)
    chosen = best_clip_ratios(weight, bits, CANDIDATES)
    index = [CANDIDATES.index(round(ratio, 6)) for ratio in chosen.tolist()]
    assert np.all(errors[index, np.arange(rows)] <= errors.min(axis=0) * (1 + 1e-6))


def test_the_search_chooses_different_ratios_for_different_rows_and_beats_plain_rounding() -> None:
    weight = heavy_tailed(64, 512)
    settings = GptqLite()
    clipped, plain = gptq_lite(weight, 4, settings), round_to_nearest(weight, 4, settings)
    assert len(clipped.clip_ratios.unique()) > 2

    def errors(rows) -> torch.Tensor:
        return (rows.codes * rows.scales.double().unsqueeze(1) - weight).square().sum(dim=1)

    assert torch.all(errors(clipped) <= errors(plain))
    assert errors(clipped).sum() < 0.9 * errors(plain).sum()
    assert torch.all(plain.clip_ratios == 1)


def test_a_tie_goes_to_the_larger_ratio() -> None:
    zeros = torch.zeros(4, 8)
    assert best_clip_ratios(zeros, 6, (0.5, 1.0, 0.7)).tolist() == [1.0] * 4
    # both ratios round to the same fp16 step
    assert (
        best_clip_ratios(heavy_tailed(9, 64), 6, (0.9, 0.9 + 1e-7)).tolist()
        == [pytest.approx(0.9 + 1e-7, abs=2e-8)] * 9
    )


def test_the_order_and_repetition_of_candidates_do_not_matter() -> None:
    weight = heavy_tailed(32, 64)
    assert torch.equal(
        best_clip_ratios(weight, 4, CANDIDATES), best_clip_ratios(weight, 4, (*CANDIDATES[::-1], *CANDIDATES))
    )


def test_working_through_a_few_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tailed(101, 48)
    at_once = best_clip_ratios(weight, 5, CANDIDATES)
    for numbers in (1, 3000):
        monkeypatch.setattr(module, "CLIP_SEARCH_NUMBERS", numbers)
        assert torch.equal(best_clip_ratios(weight, 5, CANDIDATES), at_once)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        gptq_lite(torch.tensor([[1.0, float("nan")]]), 6, GptqLite())
