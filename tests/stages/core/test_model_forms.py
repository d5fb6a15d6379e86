"""Forms of the model that the reference has not: values and gradients against a slow model in float64 that
goes token by token.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from schemas.model_settings import ModelSettings
from stages.core.model import GPT
from stages.core.shards import BOS_ID

PLAIN = ModelSettings(
    vocab_size=64,
    num_layers=6,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=48,
    rope_dims=4,
    q_gain_init=5.25,
    xsa_layers=6,
    smear_gate=False,
    value_embedding_dim=0,
    loop_layers=(1, 2),
    parallel_first_layer=3,
)
LOOPED = {"loop_passes": 3}
WINNING = {
    **LOOPED,
    "leaky_slope": 0.5,
    "skip_gates": True,
    "head_gate": True,
    "smear_gate": True,
    "smear_form": "by_input",
    "tied_head": False,
}
FORMS = {
    "settings that were there before": {},
    "leaky": {"leaky_slope": 0.5},
    "loops": LOOPED,
    "loops to the last layer": {"loop_passes": 2, "loop_layers": (4, 5)},
    "skip gates": {"skip_gates": True},
    "loops with skip gates": {**LOOPED, "skip_gates": True},
    "loops and no skips": {**LOOPED, "unet_skips": False},
    "one lane": {"parallel_residuals": "one_lane"},
    "two lanes": {"parallel_residuals": "two_lanes"},
    "head gate": {"head_gate": True},
    "smear by input": {"smear_gate": True, "smear_form": "by_input"},
    "smear by input, over BOS": {
        "smear_gate": True,
        "smear_form": "by_input",
        "smear_stops_at_bos": False,
    },
    "untied": {"tied_head": False},
    "all, one lane": {**WINNING, "parallel_residuals": "one_lane"},
    "all, two lanes": {**WINNING, "parallel_residuals": "two_lanes"},
}
forms = pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)


def make(settings: ModelSettings) -> GPT:
    model = GPT(settings)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # at the start zeros would hide most of the model
        for param in model.parameters():
            param.add_(0.2 * torch.randn(param.shape, generator=generator))
    return model


def some_ids() -> Tensor:
    ids = torch.randint(3, 64, (2, 10), generator=torch.Generator().manual_seed(5))
    ids[0, 4] = ids[1, 7] = BOS_ID
    return ids


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()


class SlowModel:
    """One sequence through weights `w` in float64; `passes` names the layers in the order of their passes."""

    def __init__(self, settings: ModelSettings, w: dict[str, Tensor]) -> None:
        self.s, self.w = settings, w

    def logits(self, ids: list[int], passes: list[int]) -> Tensor:
        s, w = self.s, self.w
        raw = [w["tok_emb.weight"][i] for i in ids]
        if s.smear_gate:
            raw = [self.smeared(raw, ids, t) for t in range(len(ids))]
        x0 = norm(torch.stack(raw))
        half, kept = len(passes) // 2, []
        lane, second = x0, None
        for place, layer in enumerate(passes):
            in_two = s.parallel_residuals == "two_lanes" and layer >= s.parallel_first_layer
            if in_two and second is None:
                second = lane
            if s.unet_skips and place >= half and place - half < half:
                skip = w["skip_weights"][place - half] * kept[half - 1 - (place - half)]
                if s.skip_gates:
                    share = 1 / (1 + torch.exp(-w["skip_gates"][place - half]))
                    lane = share * lane + (1 - share) * skip
                else:
                    lane = lane + skip
            mix, scale = w[f"blocks.{layer}.resid_mix"], 1 / math.sqrt(layer + 1)
            mixed = mix[0] * lane + mix[1] * x0
            attended = self.attend(layer, norm(mixed) * scale) * w[f"blocks.{layer}.attn_scale"]
            if in_two:
                assert second is not None
                fed = self.feed(layer, norm(second) * scale)
                r, a, m = w[f"blocks.{layer}.lanes"]
                lane, second = (
                    r[0] * lane + a[0] * attended + m[0] * fed,
                    r[1] * second + a[1] * attended + m[1] * fed,
                )
            elif s.parallel_residuals == "one_lane" and layer >= s.parallel_first_layer:
                lane = mixed + attended + self.feed(layer, norm(mixed) * scale)
            else:
                lane = mixed + attended
                lane = lane + self.feed(layer, norm(lane) * scale)
            kept.append(lane)
        out = norm(lane if second is None else (lane + second) / 2)
        head = w["tok_emb.weight"] if s.tied_head else w["head.weight"]
        return 30 * torch.tanh(out @ head.T / 30)

    def smeared(self, raw: list[Tensor], ids: list[int], t: int) -> Tensor:
        if t == 0 or (self.s.smear_stops_at_bos and ids[t] == BOS_ID):
            return raw[t]
        gate = 1 / (1 + torch.exp(-(self.w["smear.gate"] * raw[t][:12]).sum()))
        return raw[t] + self.w["smear.strength"] * gate * raw[t - 1]

    def attend(self, layer: int, x: Tensor) -> Tensor:
        w, dims, half = self.w, 8, 2
        rows = []
        for t in range(len(x)):
            heads = []
            for h in range(4):
                q = self.turned(norm(self.part(layer, "q", h) @ x[t]), t, half)
                q = q * w[f"blocks.{layer}.attn.q_gain"][h]
                keys = [
                    self.turned(norm(self.part(layer, "k", h // 2) @ x[u]), u, half) for u in range(t + 1)
                ]
                values = torch.stack([self.part(layer, "v", h // 2) @ x[u] for u in range(t + 1)])
                shares = torch.softmax(torch.stack(keys) @ q / math.sqrt(dims), 0)
                y, own = shares @ values, values[t] / values[t].norm()
                y = y - (y @ own) * own
                if self.s.head_gate:
                    seen = w[f"blocks.{layer}.attn.head_gate"][h] @ x[t][:12]
                    y = y / (1 + torch.exp(-0.5 * seen))
                heads.append(y)
            rows.append(torch.cat(heads))
        return torch.stack(rows) @ w[f"blocks.{layer}.attn.out.weight"].T

    def part(self, layer: int, which: str, head: int) -> Tensor:
        return self.w[f"blocks.{layer}.attn.{which}.weight"][head * 8 : head * 8 + 8]

    @staticmethod
    def turned(x: Tensor, position: int, half: int) -> Tensor:
        angle = position * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        a, b = x[:half], x[half : 2 * half]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((a * cos + b * sin, b * cos - a * sin, x[2 * half :]))

    def feed(self, layer: int, x: Tensor) -> Tensor:
        h = x @ self.w[f"blocks.{layer}.mlp.up.weight"].T
        h = torch.where(h > 0, h * h, (self.s.leaky_slope * h) ** 2)
        return h @ self.w[f"blocks.{layer}.mlp.down.weight"].T * self.w[f"blocks.{layer}.mlp_scale"]


def passes_of(change: dict) -> list[int]:
    if change.get("loop_layers") == (4, 5):
        return [0, 1, 2, 3, 4, 5, 4, 5]
    return [0, 1, 2, 1, 2, 1, 2, 3, 4, 5] if change.get("loop_passes") else [0, 1, 2, 3, 4, 5]


@forms
def test_values_and_gradients_are_those_of_the_slow_model(change: dict) -> None:
    settings, ids = replace(PLAIN, **change), some_ids()
    model = make(settings)
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    slow = SlowModel(settings, weights)
    expected = torch.stack([slow.logits(row[:-1], passes_of(change)) for row in ids.tolist()])
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model.hidden(ids[:, :-1], torch.float64)).double(), expected, rtol=1e-4, atol=1e-4
        )
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), ids[:, 1:].flatten())
    found = model(ids[:, :-1], ids[:, 1:])
    assert abs(float(found.detach()) - float(loss.detach())) < 1e-5
    found.backward()
    exact = torch.autograd.grad(loss, list(weights.values()))
    for (name, param), gradient in zip(model.named_parameters(), exact, strict=True):
        assert param.grad is not None, name
        assert gradient.norm() > 1e-8, f"{name} does nothing"
        assert (param.grad.double() - gradient).norm() < 1e-3 * gradient.norm(), name


@forms
@torch.inference_mode()
def test_the_last_positions_alone_come_out_as_among_all(change: dict) -> None:
    model, ids = make(replace(PLAIN, **change)), some_ids()
    torch.testing.assert_close(model.hidden(ids, num_last=3), model.hidden(ids)[:, -3:], rtol=1e-4, atol=1e-5)


def test_the_records_layers_loop_in_the_published_order_with_three_more_skips() -> None:
    looped = ModelSettings(loop_passes=3)
    assert looped.layer_order() == (0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10)
    assert looped.layer_order(looped=False) == ModelSettings().layer_order() == tuple(range(11))
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in GPT(s).parameters()) for s in (ModelSettings(), looped)]
    assert sizes[1] - sizes[0] == 3 * 512


def test_before_the_loops_a_model_is_the_plain_one_with_the_first_skips() -> None:
    looped, plain, ids = make(replace(PLAIN, **LOOPED)), GPT(PLAIN), some_ids()
    state = looped.state_dict()
    plain.load_state_dict({**state, "skip_weights": state["skip_weights"][:3]})
    with_loops = looped.hidden(ids)
    looped.use_loops(False)
    torch.testing.assert_close(looped.hidden(ids), plain.hidden(ids), rtol=0, atol=0)
    looped.use_loops(True)
    assert torch.equal(looped.hidden(ids), with_loops)
    assert not torch.allclose(with_loops, plain.hidden(ids), atol=1e-3)


def test_both_graphs_are_compiled_once_and_switching_compiles_nothing_again() -> None:
    model, ids, counter = make(replace(PLAIN, **WINNING)), some_ids(), CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=False)
    losses: dict[bool, list[float]] = {False: [], True: []}
    counts = []
    for looped in (False, True, False, True, True, False):
        model.use_loops(looped)
        losses[looped].append(float(compiled(ids[:, :-1], ids[:, 1:])))
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2, 2, 2]
    assert len(set(losses[False])) == len(set(losses[True])) == 1
    assert losses[False][0] != losses[True][0]


def test_a_model_without_loops_has_one_graph() -> None:
    model, ids, counter = make(PLAIN), some_ids(), CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=False)
    for looped in (True, False, True):
        model.use_loops(looped)
        compiled(ids[:, :-1], ids[:, 1:])
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loop_passes": 2, "loop_layers": (1, 3)}, "loop_layers = (1, 3): name neighbouring layers"),
        ({"loop_passes": 2, "loop_layers": ()}, "loop_layers = (): name neighbouring"),
        ({"loop_passes": 2, "loop_layers": (5, 6)}, "loop_layers = (5, 6): layers count from 0 to 5"),
        ({"skip_gates": True, "unet_skips": False}, "skip_gates = True: there are no skips"),
        ({"parallel_residuals": "one_lane", "parallel_first_layer": 6}, "must be below num_layers = 6"),
        ({"parallel_residuals": "two_lanes", "parallel_first_layer": 2}, "second half of the layers, from 3"),
        (
            {"parallel_residuals": "two_lanes", "loop_passes": 2, "loop_layers": (3, 4)},
            "after the last looped layer, 4",
        ),
        ({"head_gate": True, "head_gate_dims": 33}, "head_gate_dims = 33: must be at most model_dim = 32"),
        ({"leaky_slope": 1.5}, "leaky_slope = 1.5: must be at most 1"),
    ],
)
def test_forms_that_cannot_be_are_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(PLAIN, **change)


def test_a_blob_names_new_settings_only_where_they_are_on() -> None:
    plain = ModelSettings().as_metadata()
    assert list(plain)[-1] == "embedding_init_std"
    assert len(plain) == 19
    assert set(ModelSettings(loop_passes=3, skip_gates=True).as_metadata()) - set(plain) == {
        "loop_passes",
        "skip_gates",
    }
