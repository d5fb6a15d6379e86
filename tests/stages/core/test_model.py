import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from schemas.model_settings import ModelSettings
from schemas.qat_settings import QatSettings
from schemas.tensor_formats import FormatRule
from stages.core.attention import exclude_own_value, rotary_angles, rotate_partly
from stages.core.model import GPT, Matrix, SmearGate
from stages.core.quantizers.fake_quantizers import fake_quantizer
from stages.core.quantizers.grid import fake_quantize
from stages.core.shards import BOS_ID

SMALL = ModelSettings(
    vocab_size=64,
    num_layers=4,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=48,
    rope_dims=4,
    xsa_layers=2,
    value_embedding_dim=8,
    value_embedding_layers=(2, 3),
)


def make(settings: ModelSettings = SMALL, seed: int = 0) -> GPT:
    model = GPT(settings)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # zero-initialised projections would hide most of the model
        for param in model.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return model


def random_ids(batch: int = 2, tokens: int = 12) -> torch.Tensor:
    return torch.randint(3, SMALL.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(5))


def test_xsa_is_its_formula_in_float64() -> None:
    y, v = torch.randn(2, 5, 4, 8, dtype=torch.float64), torch.randn(2, 5, 2, 8, dtype=torch.float64)
    expected = torch.empty_like(y)
    for b in range(2):
        for t in range(5):
            for h in range(4):
                unit = v[b, t, h // 2] / v[b, t, h // 2].pow(2).sum().sqrt()
                expected[b, t, h] = y[b, t, h] - (y[b, t, h] @ unit) * unit
    torch.testing.assert_close(exclude_own_value(y, v), expected)


def test_partial_rope_turns_only_its_dims_and_scores_depend_on_distance_alone() -> None:
    cos, sin = rotary_angles(40, 4, 10_000.0, torch.device("cpu"))
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    everywhere = torch.ones(1, 40, 1, 1, dtype=torch.float64)
    turned_q = rotate_partly(everywhere * q, cos.double(), sin.double())[0, :, 0]
    turned_k = rotate_partly(everywhere * k, cos.double(), sin.double())[0, :, 0]
    torch.testing.assert_close(turned_q[:, 4:], q[4:].expand(40, 4))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(40))
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 7, 25):
        diagonal = torch.diagonal(scores, -distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores[1, 0], scores[9, 0], atol=1e-3)


def test_smear_gate_mixes_with_the_token_before_and_stops_at_a_document_start() -> None:
    gate = SmearGate(3, stops_at_bos=True)
    with torch.no_grad():
        gate.gate.copy_(torch.tensor([0.0, 2.0, -1.0]))
    g = torch.sigmoid(gate.gate)
    x = torch.randn(1, 4, 3)
    ids = torch.tensor([[7, 8, BOS_ID, 9]])
    y = gate(x, ids)
    torch.testing.assert_close(y[0, 0], (1 - g) * x[0, 0])
    torch.testing.assert_close(y[0, 1], (1 - g) * x[0, 1] + g * x[0, 0])
    torch.testing.assert_close(y[0, 2], (1 - g) * x[0, 2])
    torch.testing.assert_close(y[0, 3], (1 - g) * x[0, 3] + g * x[0, 2])


def test_a_token_does_not_see_what_comes_after_it() -> None:
    model, ids = make(), random_ids()
    changed = ids.clone()
    changed[:, 8:] = 5
    torch.testing.assert_close(model.hidden(ids)[:, :8], model.hidden(changed)[:, :8])
    assert not torch.allclose(model.hidden(ids)[:, 8:], model.hidden(changed)[:, 8:])


def test_attention_is_grouped_query_attention_written_out() -> None:
    attention = make().blocks[0].attn
    x = torch.randn(1, 6, 32)
    cos, sin = rotary_angles(6, 4, 10_000.0, torch.device("cpu"))

    def heads(matrix: torch.nn.Module, count: int) -> torch.Tensor:
        return F.linear(x, matrix.weight).view(6, count, 8)

    def normed_and_turned(h: torch.Tensor) -> torch.Tensor:
        h = h / (h.pow(2).mean(-1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt()
        a, b = h[..., :2], h[..., 2:4]
        c, s = cos[:, None], sin[:, None]
        return torch.cat((a * c + b * s, b * c - a * s, h[..., 4:]), -1)

    q, k, v = (
        normed_and_turned(heads(attention.q, 4)),
        normed_and_turned(heads(attention.k, 2)),
        heads(attention.v, 2),
    )
    q = q * attention.q_gain[:, None]
    out = torch.zeros(6, 4, 8)
    for h in range(4):
        for t in range(6):
            weights = torch.softmax(k[: t + 1, h // 2] @ q[t, h] / math.sqrt(8), dim=0)
            out[t, h] = weights @ v[: t + 1, h // 2]
    scale = torch.linspace(0.5, 2.0, 32)
    expected = scale * F.linear(out.view(6, 32), attention.out.weight)
    torch.testing.assert_close(attention(x, (cos, sin), None, scale)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"smear_gate": False},
        {"xsa_layers": 0},
        {"ln_scale": False},
        {"unet_skips": False},
        {"value_embedding_dim": 0},
        {"rope_dims": 8},
        {"logit_softcap": 2.0},
        {"smear_stops_at_bos": False},
    ],
)
def test_every_technique_can_be_turned_off_and_matters(change: dict) -> None:
    model = make()
    other = GPT(replace(SMALL, **change))
    other.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in other.state_dict()}
    )
    ids = random_ids()
    ids[:, 4] = BOS_ID
    assert not torch.allclose(model.logits(model.hidden(ids)), other.logits(other.hidden(ids)), atol=1e-4)


def test_initialisation_is_orthogonal_with_zero_output_projections_and_follows_the_seed() -> None:
    model, again, other = GPT(SMALL), GPT(SMALL), GPT(SMALL)
    for instance, seed in ((model, 1), (again, 1), (other, 2)):
        instance.init_weights(seed)
    weight = model.blocks[1].attn.k.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), rtol=1e-4, atol=1e-5)
    for name, param in model.named_parameters():
        if name.endswith(("out.weight", "down.weight", "proj.weight")):
            assert param.abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.tok_emb.weight, other.tok_emb.weight)


def test_logits_stay_within_the_softcap() -> None:
    model = make()
    with torch.no_grad():
        model.tok_emb.weight.mul_(1000)
    assert model.logits(model.hidden(random_ids())).abs().max() <= 30.0


def test_qat_shows_the_quantized_weight_and_passes_the_gradient_straight_through() -> None:
    rules = (FormatRule("blocks.1.mlp.up.weight", "int4"), FormatRule("*", "fp32"))
    model, plain, ids = make(), make(), random_ids()
    model.prepare_qat(QatSettings(rules=rules))
    torch.testing.assert_close(model.hidden(ids), plain.hidden(ids), rtol=0, atol=0)
    model.update_qat()
    quantized = fake_quantize(plain.blocks[1].mlp.up.weight.detach(), 4)
    with torch.no_grad():
        plain.blocks[1].mlp.up.weight.copy_(quantized)
    torch.testing.assert_close(model.hidden(ids), plain.hidden(ids), rtol=1e-5, atol=1e-6)
    for instance in (model, plain):
        instance(ids[:, :-1], ids[:, 1:]).backward()
    torch.testing.assert_close(
        model.blocks[1].mlp.up.weight.grad, plain.blocks[1].mlp.up.weight.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "settings",
    [QatSettings(), QatSettings(grid="gptq_lite", clip_candidates=(1.0, 0.8)), QatSettings(grid="reference")],
    ids=lambda s: s.grid,
)
def test_every_matrix_is_used_as_its_quantizer_would_store_it(settings: QatSettings) -> None:
    """The shift is a difference; added to the weight it must give the level again."""
    model = make()
    with torch.no_grad():
        for index, param in enumerate(model.parameters()):
            param.copy_(torch.randn(param.shape, generator=torch.Generator().manual_seed(index)))
    model.prepare_qat(settings)
    model.update_qat()
    fake, seen = fake_quantizer(settings)[1], 0
    for module in model.modules():
        if isinstance(module, Matrix) and module.qat_shift is not None:
            assert torch.equal(
                module.current(torch.float32), fake(module.weight.unsqueeze(0), module.qat_bits)[0]
            )
            seen += 1
    assert seen == 26


@pytest.mark.parametrize(
    "settings",
    [QatSettings(), QatSettings(grid="gptq_lite", clip_candidates=(1.0, 0.8))],
    ids=lambda s: s.grid,
)
def test_switching_qat_on_compiles_nothing_again(settings: QatSettings) -> None:
    model, ids, counter = make(), random_ids(), CompileCounter()
    model.prepare_qat(settings)
    compiled = torch.compile(model, backend=counter, dynamic=False)
    before = compiled(ids[:, :-1], ids[:, 1:])
    frames = counter.frame_count
    model.update_qat()
    after = compiled(ids[:, :-1], ids[:, 1:])
    assert counter.frame_count == frames >= 1
    assert before != after


def test_the_records_model_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        mended, as_it_ran = GPT(ModelSettings()), GPT(ModelSettings(value_embedding_scale_every_layer=True))
    assert sum(param.numel() for param in mended.parameters()) == 25_224_282
    assert sum(param.numel() for param in as_it_ran.parameters()) == 25_224_291
    assert as_it_ran.idle_parameters() == [f"value_embedding.scales.{layer}" for layer in range(9)]
    assert sum(param.numel() for param in mended.blocks[3].parameters()) == 2_230_280


def test_the_default_rules_make_every_block_matrix_an_integer_tensor() -> None:
    with torch.device("meta"):
        model = GPT(ModelSettings())
    model.prepare_qat(QatSettings())
    bits = {name: module.qat_bits for name, module in model.named_modules() if hasattr(module, "qat_bits")}
    assert bits["blocks.0.attn.q"] == bits["blocks.10.mlp.down"] == 8
    assert bits["blocks.5.attn.q"] == bits["value_embedding.table"] == 6
    assert bits["tok_emb"] == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("num_last", [1, 5, 12])
@torch.inference_mode()
def test_the_last_positions_alone_come_out_as_among_all(
    dtype: torch.dtype, tolerance: float, num_last: int
) -> None:
    model, ids = make(), random_ids()
    everything = model.hidden(ids, dtype)
    torch.testing.assert_close(
        model.hidden(ids, dtype, num_last), everything[:, -num_last:], rtol=tolerance, atol=tolerance
    )
