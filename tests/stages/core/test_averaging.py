import numpy as np
import pytest
import torch

from schemas.averaging_settings import AveragingSettings
from stages.core.averaging import average_states, averaging_weights, choose_snapshots


def states(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"a": 1e4 + torch.randn(4, 5, generator=generator), "b": torch.randn(3, generator=generator)}
        for _ in range(count)
    ]


def test_swa_is_the_mean_in_float64() -> None:
    snapshots = states(37)
    merged = average_states(iter(snapshots), averaging_weights(37, AveragingSettings()))
    for name in ("a", "b"):
        expected = np.mean([snapshot[name].numpy().astype(np.float64) for snapshot in snapshots], axis=0)
        np.testing.assert_array_equal(merged[name].numpy(), expected.astype(np.float32))


def test_ema_is_the_recursion_over_snapshots() -> None:
    snapshots = states(6)
    settings = AveragingSettings(method="ema", ema_decay=0.6)
    expected = snapshots[0]["b"].double()
    for snapshot in snapshots[1:]:
        expected = 0.6 * expected + 0.4 * snapshot["b"].double()
    torch.testing.assert_close(
        average_states(snapshots, averaging_weights(6, settings))["b"], expected.float()
    )


def test_averaging_leaves_the_snapshots_as_they_were() -> None:
    snapshots = states(2)
    before = snapshots[0]["a"].clone()
    average_states(snapshots, [0.5, 0.5])
    assert torch.equal(snapshots[0]["a"], before)


def test_the_window_keeps_what_is_below_its_scale_every_nth_from_the_end() -> None:
    scales = [0.3, 0.2, 0.15, 0.1, 0.05, 0.01]
    assert choose_snapshots(scales, AveragingSettings(start_lr_scale=0.2)) == [2, 3, 4, 5]
    assert choose_snapshots(scales, AveragingSettings(start_lr_scale=0.2, every_nth=3)) == [2, 5]
    assert choose_snapshots(scales, AveragingSettings(start_lr_scale=0.005)) == []


def test_states_that_do_not_fit_are_refused_by_name() -> None:
    first, second = states(2)
    with pytest.raises(ValueError, match="'b'"):
        average_states([first, {"a": second["a"]}], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"'a'.*\(5, 4\)"):
        average_states([first, {"a": second["a"].T, "b": second["b"]}], [0.5, 0.5])
