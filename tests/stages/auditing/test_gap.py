"""The gap by cause: the parts sum to the whole, each is what a slow reference says, and a model with one
cause has one.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.gap import GapByCause, GapPart
from schemas.model_settings import ModelSettings
from schemas.quantizer_settings import Ecsq, Gptq, GptqLite, QuantizerSettings, Reference, RoundToNearest
from schemas.tensor_formats import FormatRule
from stages.auditing.gap import Sequences, choose_sequences, gap_by_cause, ratio_with_error, take_apart
from stages.core.bits_per_byte import TokenBytes
from stages.core.calibrated.table import QUANTIZERS, MatrixQuantizer
from stages.core.calibrated.whole_model import quantize_state
from stages.core.model import GPT
from stages.quantizing.tensor_groups import group_of

RULES = (FormatRule("tok_emb.weight", "fp16"), FormatRule("*.weight", "int4"), FormatRule("*", "fp32"))
State = dict[str, Tensor]


@pytest.fixture
def sequences() -> Sequences:
    generator = torch.Generator().manual_seed(1)
    return Sequences(torch.randint(0, 300, (12, 33), generator=generator), np.arange(50, 62))


def _settings(kind: type[QuantizerSettings]) -> QuantizerSettings:
    clips = {"clip_candidates": (1.0, 0.8, 0.6)} if kind is GptqLite else {}
    return kind(rules=RULES, **clips)


@pytest.mark.parametrize(
    "settings",
    [_settings(kind) for kind, quantizer in QUANTIZERS.items() if isinstance(quantizer, MatrixQuantizer)],
    ids=lambda settings: settings.method,
)
def test_each_part_is_what_a_slow_reference_finds_and_all_sum_to_the_whole(
    settings: QuantizerSettings, tiny_model: ModelSettings, tiny_state: State, sequences: Sequences
) -> None:
    method = settings.method
    # Beyond its floor of the scale, so that int4 cannot reach the largest weights.
    if isinstance(settings, Reference):
        tiny_state = {
            name: 6 * tensor if tensor.dim() == 2 else tensor for name, tensor in tiny_state.items()
        }
    quantized = quantize_state(tiny_state, settings)
    shipped = {tensor.name: tensor.dequantized() for tensor in quantized.tensors}
    gap = gap_by_cause(tiny_model, tiny_state, shipped, settings, sequences)

    clipped, rounded = dict(tiny_state), dict(shipped)
    for tensor in quantized.tensors:
        if tensor.scales is not None:
            clipped[tensor.name], rounded[tensor.name] = _weight_by_weight(
                tiny_state[tensor.name], tensor.clip_ratios, method
            )
    base, at_clips, all_rounded = (
        _bpb(tiny_model, state, sequences) for state in (tiny_state, clipped, rounded)
    )
    expected = {"clipping": at_clips - base}
    for group in ("embedding", "value embedding", "attention", "mlp"):
        swapped = clipped | {name: tensor for name, tensor in rounded.items() if group_of(name) == group}
        expected[f"rounding, {group}"] = _bpb(tiny_model, swapped, sequences) - at_clips
    expected["rounding, interaction of the groups"] = (
        all_rounded - at_clips - sum(list(expected.values())[1:])
    )
    expected["fp16 scales"] = _bpb(tiny_model, shipped, sequences) - all_rounded
    found = {part.cause: part.bpb for part in gap.parts}
    assert set(found) == set(expected)
    for cause, value in expected.items():
        assert found[cause] == pytest.approx(value, abs=2e-6), cause
    assert abs(found["clipping"]) > 1e-4 or method == "round_to_nearest"
    assert gap.total.bpb == pytest.approx(_bpb(tiny_model, shipped, sequences) - base, abs=2e-6)
    assert math.fsum(found.values()) == pytest.approx(gap.total.bpb, abs=1e-12)


def test_the_divergence_of_a_step_is_that_of_the_formula(
    tiny_model: ModelSettings, tiny_state: State, sequences: Sequences
) -> None:
    settings = GptqLite(rules=RULES, clip_candidates=(0.6,))
    shipped = {tensor.name: tensor.dequantized() for tensor in quantize_state(tiny_state, settings).tensors}
    gap = gap_by_cause(tiny_model, tiny_state, shipped, settings, sequences)
    clipped, _ = take_apart(tiny_state, shipped, settings)
    for part, state in ((gap.total, shipped), (_part(gap, "clipping"), clipped)):
        p, q = (
            _logits(tiny_model, weights, sequences.ids).double().softmax(-1)
            for weights in (tiny_state, state)
        )
        expected = float((p * (p / q).log()).sum(-1).mean())
        assert part.divergence_nats == pytest.approx(expected, rel=1e-3)
        assert expected > 1e-4


def test_weights_that_lie_on_the_grid_but_for_a_few_beyond_it_have_clipping_as_their_only_cause(
    tiny_model: ModelSettings, tiny_state: State, sequences: Sequences
) -> None:
    """Every row has levels of a step 2⁻⁶ (exact in fp16), and one weight twice as large as the outermost
    level: clip ratio ½.
    """
    settings = GptqLite(rules=RULES, clip_candidates=(0.5,))
    generator = torch.Generator().manual_seed(2)
    state = {}
    for name, tensor in tiny_state.items():
        state[name] = tensor.half().float()
        if name.endswith(".weight") and name != "tok_emb.weight":
            levels = torch.randint(-7, 8, tensor.shape, generator=generator).float()
            levels[:, 0] = 14
            state[name] = levels * 2.0**-6
    shipped = {tensor.name: tensor.dequantized() for tensor in quantize_state(state, settings).tensors}
    gap = gap_by_cause(tiny_model, state, shipped, settings, sequences)
    assert abs(gap.total.bpb) > 1e-3
    assert _part(gap, "clipping").bpb == gap.total.bpb
    assert {part.bpb for part in gap.parts if part.cause != "clipping"} == {0.0}


def test_nothing_is_clipped_by_plain_rounding_and_fp16_scales_alone_can_cost(
    tiny_model: ModelSettings, tiny_state: State, sequences: Sequences
) -> None:
    """Levels of a step that fp16 does not hold: only the scale is wrong afterwards."""
    settings = RoundToNearest(rules=(FormatRule("*.weight", "int4"), FormatRule("*", "fp32")))
    step = 0.05 * (1 + 2**-11.5)
    generator = torch.Generator().manual_seed(3)
    state = dict(tiny_state)
    for name, tensor in tiny_state.items():
        if name.endswith(".weight"):
            levels = torch.randint(-7, 8, tensor.shape, generator=generator).float()
            levels[:, 0] = 7
            state[name] = levels * step
    shipped = {tensor.name: tensor.dequantized() for tensor in quantize_state(state, settings).tensors}
    gap = gap_by_cause(tiny_model, state, shipped, settings, sequences)
    assert _part(gap, "clipping").bpb == 0
    assert gap.total.bpb != 0
    assert _part(gap, "fp16 scales").bpb == pytest.approx(gap.total.bpb, abs=2e-6)


def test_methods_with_error_feedback_have_rounding_only_and_say_why(
    tiny_model: ModelSettings, tiny_state: State, sequences: Sequences
) -> None:
    shipped = {
        name: tensor + 0.01 * torch.sign(tensor) * (tensor.dim() == 2) for name, tensor in tiny_state.items()
    }
    for settings in (Gptq(rules=RULES), Ecsq(rules=RULES)):
        gap = gap_by_cause(tiny_model, tiny_state, shipped, settings, sequences)
        assert {part.cause.partition(",")[0] for part in gap.parts} == {"rounding"}
        assert gap.note.startswith(f"{settings.method} clips ")
        assert math.fsum(part.bpb for part in gap.parts) == pytest.approx(gap.total.bpb, abs=1e-12)


def test_the_standard_error_shrinks_with_the_square_root_and_holds_for_a_ratio() -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(80, 120, size=(400, 50)).astype(float)
    values = 0.3 * weights + generator.normal(size=weights.shape)
    ratios, errors = zip(*(ratio_with_error(v, w) for v, w in zip(values, weights, strict=True)), strict=True)
    assert np.std(ratios) == pytest.approx(np.mean(errors), rel=0.1)
    assert ratio_with_error(values.ravel(), weights.ravel())[1] == pytest.approx(
        np.mean(errors) / math.sqrt(400), rel=0.1
    )


def test_sequences_do_not_overlap_and_are_spread_over_the_text() -> None:
    table = TokenBytes(np.arange(1000) % 7, np.zeros(1000, bool), np.zeros(1000, bool))
    stream = _Stream(np.arange(1000))
    chosen = choose_sequences(stream, table, 400, 40)  # type: ignore[arg-type]
    assert chosen is not None
    assert chosen.ids.shape == (10, 41)
    starts = chosen.ids[:, 0].tolist()
    assert (starts[0], starts[-1]) == (0, 920)
    assert min(b - a for a, b in zip(starts, starts[1:], strict=False)) >= 40
    assert chosen.num_bytes.tolist() == [sum(i % 7 for i in range(start + 1, start + 41)) for start in starts]
    assert choose_sequences(stream, table, 79, 40) is None  # type: ignore[arg-type]
    assert choose_sequences(stream, table, 0, 40) is None  # type: ignore[arg-type]
    assert choose_sequences(stream, table, 10**6, 40).ids.shape == (24, 41)  # type: ignore[arg-type, union-attr]


class _Stream:
    """A token stream in memory."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.tokens[start : start + count]


def _part(gap: GapByCause, cause: str) -> GapPart:
    return next(part for part in gap.parts if part.cause == cause)


def _weight_by_weight(weight: Tensor, ratios: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """int4: each weight clipped and rounded on its own, in Python's floats."""
    clipped, rounded = weight.clone(), weight.clone()
    for i, row in enumerate(weight.tolist()):
        clip = max(map(abs, row)) * float(ratios[i])
        fine = max(clip / 127, 1 / 127)
        step = 16 * fine if method == "reference" else clip / 7
        for j, value in enumerate(row):
            limited = max(-7 * step, min(7 * step, value))
            if abs(value) > 7 * step * (1 + 1e-6):
                clipped[i, j] = limited
            if method == "reference":
                code = round(max(-127, min(127, round(value / fine))) / 16)
            else:
                code = round(value / step)
            rounded[i, j] = max(-7, min(7, code)) * step
    return clipped, rounded


def _logits(model: ModelSettings, state: State, ids: Tensor) -> Tensor:
    network = GPT(model)
    network.load_state_dict(state)
    with torch.no_grad():
        return torch.cat([network.logits(network.hidden(row[:, :-1])) for row in ids.split(1)])


def _bpb(model: ModelSettings, state: State, sequences: Sequences) -> float:
    logits = _logits(model, state, sequences.ids).double()
    nats = F.cross_entropy(logits.flatten(0, 1), sequences.ids[:, 1:].flatten(), reduction="sum")
    return float(nats) / math.log(2) / float(sequences.num_bytes.sum())
