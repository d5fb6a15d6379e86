import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import Ecsq, Gptq
from schemas.tensor_formats import FormatRule
from stages.core.calibrated.calibration import MatrixStatistics, collect_statistics
from stages.core.calibrated.coded_model import (
    divergence,
    plan_coded,
    predictions,
    with_measured_shares,
)
from stages.core.calibrated.ecsq import prepare, quantize_alike, quantize_coded
from stages.core.calibrated.error_feedback import inverse_factor, round_with_feedback
from stages.core.calibrated.gptq import gptq
from stages.core.model import GPT
from stages.core.quantizers.coded_grid import CODE_LIMIT, quarter_octaves
from stages.core.quantizers.grid import quantize_rows

GPTQ = Gptq()
SETTINGS = Ecsq(rules=(FormatRule("*.weight", "int8"), FormatRule("*", "fp32")))


def correlated(columns: int, seed: int = 0) -> Tensor:
    """A Hessian with strong correlations and very unequal inputs."""
    generator = np.random.default_rng(seed)
    x = (
        generator.standard_normal((400, columns))
        @ generator.standard_normal((columns, columns))
        * np.exp(generator.normal(0, 1, columns))
    )
    return torch.from_numpy(x.T @ x / 400)


def cost(error: Tensor, statistics: MatrixStatistics) -> float:
    error = error.double()
    return float((statistics.row_weights * ((error @ statistics.hessian) * error).sum(dim=1)).sum()) / 2


def statistics_of(rows: int, columns: int) -> MatrixStatistics:
    return MatrixStatistics(
        correlated(columns), torch.from_numpy(np.exp(np.random.default_rng(1).normal(0, 1, rows)))
    )


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    hessian = correlated(20)
    factor = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(20)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(20, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("bad", [torch.zeros(3, 3), torch.full((3, 3), math.nan)])
def test_a_hessian_without_content_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="Hessian that is not finite or is zero"):
        inverse_factor(bad, 0.01)


def test_feedback_across_blocks_is_the_plain_recursion() -> None:
    weight, factor = (
        torch.randn(5, 150, generator=torch.Generator().manual_seed(0)) * 3,
        inverse_factor(correlated(150), 0.01),
    )
    left, expected = weight.double(), torch.empty(5, 150, dtype=torch.float64)
    for j in range(150):
        expected[:, j] = left[:, j].round().clamp(-4, 4)
        left = left - ((left[:, j] - expected[:, j]) / factor[j, j]).unsqueeze(1) * factor[j].unsqueeze(0)
    found = round_with_feedback(weight, factor, 4)
    assert (found.double() != expected).float().mean() < 0.01  # float32 may tip a tie


def test_matrices_of_one_shape_are_quantized_together_as_each_by_itself() -> None:
    generator = torch.Generator().manual_seed(2)
    matrices = [
        prepare(torch.randn(24, 80, generator=generator), statistics_of(24, 80), 0.01) for _ in range(3)
    ]
    multipliers = [0.05, 0.2, 1.0]
    together = quantize_alike(matrices, multipliers)
    for (codes, grid), matrix, multiplier in zip(together, matrices, multipliers, strict=True):
        own_codes, own_grid = quantize_coded(matrix, multiplier)
        assert grid.step == own_grid.step
        assert torch.equal(grid.rows, own_grid.rows)
        # A sum that is rounded otherwise moves a code across the middle between two levels, seldom.
        assert (codes != own_codes).float().mean() < 0.01


def test_gptq_costs_less_than_plain_rounding_on_the_same_grid() -> None:
    weight, statistics = (
        torch.randn(40, 60, generator=torch.Generator().manual_seed(0)),
        statistics_of(40, 60),
    )
    plain = quantize_rows(weight, 4)
    ours = gptq("blocks.0.mlp.weight", weight, 4, GPTQ, statistics)
    assert torch.equal(plain.scales, ours.scales)
    assert int(ours.codes.abs().max()) <= 7
    errors = [rows.codes.float() * rows.scales.float().unsqueeze(1) - weight for rows in (plain, ours)]
    assert cost(errors[1], statistics) < 0.6 * cost(errors[0], statistics)


def test_a_row_clip_gives_every_row_the_same_bits_whatever_its_largest_weight() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, statistics = torch.randn(40, 400, generator=generator), statistics_of(40, 400)
    weight[:20, 0] = 9.0
    settings = replace(GPTQ, row_deviations=6.0, embedding_deviations=20.0)
    ours = gptq("blocks.0.mlp.weight", weight, 6, settings, statistics)
    expected = 6.0 * weight.double().std(dim=1, correction=0) / 31
    torch.testing.assert_close(ours.scales.double(), expected, rtol=1e-3, atol=0)
    used = ours.codes[:, 1:].float().std(dim=1)
    assert float(used.max() / used.min()) < 1.3
    plain = gptq("blocks.0.mlp.weight", weight, 6, GPTQ, statistics).codes[:, 1:].float().std(dim=1)
    assert float(plain.max() / plain.min()) > 2
    assert bool((ours.clip_ratios[:20] < 1).all())
    assert bool((ours.clip_ratios[20:] == 1).all())
    of_embedding = gptq("tok_emb.weight", weight, 6, settings, statistics)
    torch.testing.assert_close(of_embedding.scales.double(), expected * 20 / 6, rtol=1e-3, atol=0)
    nothing = gptq("blocks.0.mlp.weight", torch.zeros(2, 400), 6, settings, statistics)
    assert not nothing.codes.any()


def test_every_weight_costs_the_same_so_the_estimate_holds() -> None:
    weight, statistics = (
        torch.randn(200, 60, generator=torch.Generator().manual_seed(0)),
        statistics_of(200, 60),
    )
    multiplier = 1.0
    codes, grid = quantize_coded(prepare(weight, statistics, 1e-6), multiplier)
    assert cost(grid.dequantized(codes) - weight, statistics) == pytest.approx(
        200 * 60 * multiplier**2 / 24, rel=0.1
    )


def test_only_rows_that_need_codes_beyond_the_limit_get_coarser_steps() -> None:
    weight, statistics = (
        torch.randn(30, 20, generator=torch.Generator().manual_seed(0)),
        MatrixStatistics(torch.eye(20), torch.ones(30)),
    )
    weight[3] *= 1_000
    matrix = prepare(weight, statistics, 0.01)
    codes, grid = quantize_coded(matrix, 0.02)
    assert int(codes.abs().max()) <= CODE_LIMIT
    raised = grid.rows != matrix.rows
    assert raised.nonzero().flatten().tolist() == [3]
    assert (grid.dequantized(codes) - weight)[3].abs().max() < 0.01 * weight[3].abs().max()


def test_quarter_octaves_are_powers_of_two_to_the_quarter() -> None:
    exponents = torch.arange(-128, 128, dtype=torch.int8)
    assert torch.allclose(quarter_octaves(exponents).double(), 2.0 ** (exponents.double() / 4), rtol=1e-7)


@pytest.fixture
def trained(tiny_model: ModelSettings, tiny_state: dict[str, Tensor]) -> tuple[GPT, list[Tensor]]:
    model = GPT(tiny_model)
    model.load_state_dict(tiny_state)
    ids = torch.randint(4, 290, (128, 33), generator=torch.Generator().manual_seed(0))
    return model, list(ids.split(16))


def test_statistics_foretell_how_far_predictions_move(trained: tuple[GPT, list[Tensor]]) -> None:
    model, batches = trained
    statistics = collect_statistics(model, batches, seed=0)
    generator = torch.Generator().manual_seed(1)
    expected = predictions(model, batches)
    assert set(statistics) == {name for name, value in model.state_dict().items() if name.endswith(".weight")}
    for name in (
        "tok_emb.weight",
        "blocks.1.mlp.up.weight",
        "blocks.2.attn.v.weight",
        "value_embedding.table.weight",
    ):
        parameter = model.get_parameter(name)
        kept = parameter.detach().clone()
        error = torch.randn(kept.shape, generator=generator) * 0.01
        with torch.no_grad():
            parameter += error
            moved = divergence(expected, predictions(model, batches))
            parameter.copy_(kept)
        assert cost(error, statistics[name]) == pytest.approx(moved, rel=0.35), name


def test_the_same_text_gives_the_same_statistics_and_leaves_the_model_as_it_was(
    trained: tuple[GPT, list[Tensor]],
) -> None:
    model, batches = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = collect_statistics(model, batches, seed=0), collect_statistics(model, batches, seed=0)
    assert all(torch.equal(first[name].hessian, second[name].hessian) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "look_up" not in vars(model.tok_emb)


def test_bfloat16_changes_the_statistics_less_than_another_draw_of_targets(
    trained: tuple[GPT, list[Tensor]],
) -> None:
    model, batches = trained
    exact, other = collect_statistics(model, batches, seed=0), collect_statistics(model, batches, seed=1)
    rough = collect_statistics(model, batches, seed=0, dtype=torch.bfloat16)

    def apart(found: dict[str, MatrixStatistics], part: str) -> list[float]:
        pairs = [(getattr(found[name], part), getattr(exact[name], part)) for name in exact]
        return sorted(float((a - b).norm() / b.norm()) for a, b in pairs)

    for part in ("hessian", "row_weights"):
        changed, drawn = apart(rough, part), apart(other, part)
        assert 0 < changed[-1] < drawn[-1]
        assert changed[len(changed) // 2] < drawn[len(drawn) // 2] / 2, part
    assert all(rough[name].hessian.dtype == torch.float64 for name in rough)


def test_a_floor_keeps_a_matrix_as_fine_as_its_integer_format(trained: tuple[GPT, list[Tensor]]) -> None:
    model, batches = trained
    settings = replace(SETTINGS, floors=(FormatRule("blocks.0.attn.q.weight", "int8"),))
    state = model.state_dict()
    plan = plan_coded(state, settings, collect_statistics(model, batches, seed=0))
    coarse = {tensor.name: tensor for tensor in plan.quantized(plan.multiplier_for(0.5)).tensors}
    for name, limit in (("blocks.0.attn.q.weight", True), ("blocks.0.attn.k.weight", False)):
        error = (coarse[name].dequantized() - state[name]).square().mean().sqrt()
        int8 = (state[name].abs().amax(dim=1) / 127).square().mean().sqrt() / math.sqrt(12)
        assert (error < 2 * int8) == limit


def test_measured_shares_are_within_bounds_and_follow_the_measurement(
    trained: tuple[GPT, list[Tensor]],
) -> None:
    model, batches = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = plan_coded(before, SETTINGS, collect_statistics(model, batches, seed=0))
    multiplier = plan.multiplier_for(0.01)
    shared, measured = with_measured_shares(plan, model, batches[:2], multiplier)
    assert set(measured) == set(shared.shares) == set(plan.matrices)
    assert all(0.5 <= share <= 2 for share in shared.shares.values())
    estimate = {name: matrix.weight.numel() * multiplier**2 / 24 for name, matrix in plan.matrices.items()}
    for name, share in shared.shares.items():
        assert (share < 1) == (measured[name] > estimate[name])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_looped_matrix_is_measured_in_each_of_its_passes() -> None:
    """Against a model in which the passes are layers of their own, with copies of the weights."""
    unrolled = ModelSettings(
        vocab_size=300, num_layers=4, model_dim=32, num_heads=4, num_kv_heads=2, mlp_hidden=48, rope_dims=4,
        xsa_layers=0, value_embedding_dim=0, ln_scale=False, unet_skips=False,
    )  # fmt: skip
    looped = GPT(replace(unrolled, num_layers=3, loop_passes=2, loop_layers=(1,)))
    looped.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in looped.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    as_layers = GPT(unrolled)
    state = looped.state_dict()
    origin = {"0": "0", "1": "1", "2": "1", "3": "2"}
    as_layers.load_state_dict(
        {
            name: state[".".join(["blocks", origin[name.split(".")[1]], *name.split(".")[2:]])]
            if name.startswith("blocks.")
            else state[name]
            for name in as_layers.state_dict()
        }
    )
    ids = torch.randint(4, 290, (16, 33), generator=torch.Generator().manual_seed(0))
    found = collect_statistics(looped, [ids], seed=0)
    parts = collect_statistics(as_layers, [ids], seed=0)
    for name in ("attn.q.weight", "attn.out.weight", "mlp.up.weight", "mlp.down.weight"):
        first, second, both = parts[f"blocks.1.{name}"], parts[f"blocks.2.{name}"], found[f"blocks.1.{name}"]
        torch.testing.assert_close(
            both.row_weights, first.row_weights + second.row_weights, rtol=1e-4, atol=1e-9
        )
        a, b = first.row_weights.sum(), second.row_weights.sum()
        expected = (a * first.hessian + b * second.hessian) / (a + b)
        assert (both.hessian - expected).norm() < 1e-4 * expected.norm(), name
        assert (both.hessian - first.hessian).norm() > 0.01 * expected.norm(), name
