import pytest
import torch

from stages.core.muon import NEWTON_SCHULZ_COEFFICIENTS, Muon, normalize_rows, orthogonalize


@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 16, 40), (2, 40, 16)])
def test_newton_schulz_brings_all_singular_values_near_one_and_keeps_the_directions(
    shape: tuple[int, ...],
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    result = orthogonalize(matrices, steps=5)
    for before, after in zip(matrices, result, strict=True):
        values = torch.linalg.svdvals(after)
        assert values.min() > 0.3
        assert values.max() < 1.3
        u, _, vt = torch.linalg.svd(before, full_matrices=False)
        core = u.T @ after @ vt.T
        torch.testing.assert_close(core, torch.diag(torch.diagonal(core)), rtol=0, atol=1e-6)


def test_a_step_is_momentum_nesterov_orthogonalised_scaled_and_decayed() -> None:
    torch.manual_seed(1)
    param = torch.nn.Parameter(torch.randn(12, 6))
    start, lr, momentum, decay = param.detach().double(), 0.02, 0.9, 0.1
    optimizer = Muon([param], lr, momentum, decay, steps=5, work_dtype=torch.float32)
    buffer, expected = torch.zeros(12, 6, dtype=torch.float64), start.clone()
    for _ in range(3):
        grad = torch.randn(12, 6)
        param.grad = grad.clone()
        optimizer.step()
        buffer = momentum * buffer + grad.double()
        x = (grad.double() + momentum * buffer).T
        x = x / x.norm()
        a, b, c = NEWTON_SCHULZ_COEFFICIENTS
        for _ in range(5):
            gram = x @ x.T
            x = a * x + b * gram @ x + c * gram @ gram @ x
        expected = expected * (1 - lr * decay) - lr * (12 / 6) ** 0.5 * x.T
    torch.testing.assert_close(param.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_matrices_of_one_shape_are_updated_as_if_alone() -> None:
    torch.manual_seed(2)
    together = [torch.nn.Parameter(torch.randn(8, 5)) for _ in range(3)]
    alone = [torch.nn.Parameter(param.detach().clone()) for param in together]
    grads = [torch.randn(8, 5) for _ in together]
    for params in (together, *([param] for param in alone)):
        for param in params:
            index = next(i for i, p in enumerate(together + alone) if p is param) % 3
            param.grad = grads[index].clone()
        Muon(list(params), 0.1, 0.9, 0.0, steps=5, work_dtype=torch.float32).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_row_normalised_updates_have_rows_of_one_norm_before_the_iterations() -> None:
    torch.manual_seed(3)
    start, grad = torch.randn(6, 9), torch.randn(6, 9) * torch.tensor([1e-3, 1, 50, 1, 1, 0])[:, None]
    moved = {}
    for row_normalize in (False, True):
        param = torch.nn.Parameter(start.clone())
        param.grad = grad.clone()
        Muon([param], 0.1, 0.9, 0.0, 5, torch.float32, row_normalize).step()
        moved[row_normalize] = start - param.detach()
    rows = [row / row.norm() if row.norm() else row for row in grad.double() * 1.9]  # Nesterov's first step
    expected = 0.1 * orthogonalize(torch.stack(rows)[None], 5)[0]
    torch.testing.assert_close(moved[True].double(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(moved[False], moved[True], atol=1e-3)


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(normalize_rows(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))
