"""Settings of the model.

Standard library only: this class ships in the submission.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from schemas.settings_base import Settings, setting


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The transformer. Defaults are the reference's (parameter-golf pull request 543)."""

    vocab_size: int = setting(1024, "rows of the token embedding", unit="tokens", minimum=4, maximum=65_536)
    num_layers: int = setting(11, "blocks", minimum=1, maximum=256)
    model_dim: int = setting(512, "width of the residual stream", unit="dims", minimum=8, maximum=16_384)
    num_heads: int = setting(8, "query heads", minimum=1)
    num_kv_heads: int = setting(4, "key and value heads (GQA)", minimum=1)
    mlp_hidden: int = setting(1408, "hidden width of the relu² MLP", unit="dims", minimum=1)
    leaky_slope: float = setting(
        0.0, "slope of the MLP's relu² below 0 before it is squared; 0 is relu²", minimum=0, maximum=1
    )
    rope_dims: int = setting(
        16, "dims of each head that rotate; the rest pass through", unit="dims", minimum=0
    )
    rope_base: float = setting(10_000.0, "base of the rotary frequencies", above=0)
    q_gain_init: float = setting(1.5, "initial gain of each query head", above=0)
    logit_softcap: float = setting(30.0, "logits are cap·tanh(z/cap)", above=0)
    xsa_layers: int = setting(
        4, "last layers with exclusive self-attention; 0 turns it off", unit="layers", minimum=0
    )
    ln_scale: bool = setting(True, "scale the norm before layer i by 1/sqrt(i+1)")
    smear_gate: bool = setting(True, "mix each input with the one before it")
    smear_stops_at_bos: bool = setting(True, "do not mix across the start of a document")
    unet_skips: bool = setting(
        True, "second half of the layers adds the first half's outputs, weighted per dim"
    )
    value_embedding_dim: int = setting(
        128, "width of the shared value embedding; 0 turns it off", unit="dims", minimum=0
    )
    value_embedding_layers: tuple[int, ...] = setting(
        (9, 10), "layers that add the value embedding to v", minimum=0
    )
    value_embedding_scale_every_layer: bool = setting(
        False, "give layers without value embedding an (idle) scale too, as the reference does"
    )
    embedding_init_std: float = setting(0.005, "standard deviation of the initial token embedding", above=0)
    loop_passes: int = setting(
        1,
        "times that loop_layers run one after another with the same weights; 1 turns loops off",
        minimum=1,
        maximum=16,
    )
    loop_layers: tuple[int, ...] = setting((3, 4, 5), "neighbouring layers that a loop repeats", minimum=0)
    skip_gates: bool = setting(
        False, "skips are interpolated with the stream by a gate per dim, and not added to it"
    )
    parallel_residuals: Literal["off", "one_lane", "two_lanes"] = setting(
        "off", "attention and MLP of a layer read the same input, or a stream each"
    )
    parallel_first_layer: int = setting(7, "first layer with parallel residuals", minimum=0)
    head_gate: bool = setting(False, "each head's output is scaled by a gate that reads the layer's input")
    head_gate_dims: int = setting(
        12, "first dims of its input that a head's gate reads", unit="dims", minimum=1
    )
    head_gate_scale: float = setting(0.5, "factor before the sigmoid of a head's gate", above=0)
    smear_form: Literal["blend", "by_input"] = setting(
        "blend", "blend: a fixed share per dim; by_input: one share for each token, by its own embedding"
    )
    smear_dims: int = setting(
        12, "first dims of the embedding that smear_form by_input reads", unit="dims", minimum=1
    )
    tied_head: bool = setting(True, "the token embedding is the output head too")

    def check(self) -> None:
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"model_dim = {self.model_dim}: must be a multiple of num_heads = {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads = {self.num_kv_heads}: must divide num_heads = {self.num_heads}")
        if self.rope_dims % 2 or self.rope_dims > self.head_dim:
            raise ValueError(
                f"rope_dims = {self.rope_dims}: must be even and at most the head's {self.head_dim} dims"
            )
        if self.xsa_layers > self.num_layers:
            raise ValueError(
                f"xsa_layers = {self.xsa_layers}: must be at most num_layers = {self.num_layers}"
            )
        if self.value_embedding_dim and any(i >= self.num_layers for i in self.value_embedding_layers):
            raise ValueError(
                f"value_embedding_layers = {self.value_embedding_layers}: layers count from 0 to "
                f"{self.num_layers - 1}"
            )
        if len(set(self.value_embedding_layers)) != len(self.value_embedding_layers):
            raise ValueError(f"value_embedding_layers = {self.value_embedding_layers}: names a layer twice")
        if self.value_embedding_dim and not self.value_embedding_layers:
            raise ValueError(
                "value_embedding_layers = (): name a layer, or turn it off with value_embedding_dim=0"
            )
        self._check_loops()
        self._check_lanes()
        if self.skip_gates and not self.unet_skips:
            raise ValueError("skip_gates = True: there are no skips; set unet_skips=true")
        for on, name in (
            (self.head_gate, "head_gate_dims"),
            (self.smear_gate and self.smear_form == "by_input", "smear_dims"),
        ):
            if on and getattr(self, name) > self.model_dim:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: must be at most model_dim = {self.model_dim}"
                )

    def _check_loops(self) -> None:
        layers = self.loop_layers
        if self.loop_passes == 1:
            return
        if not layers or layers != tuple(range(layers[0], layers[0] + len(layers))):
            raise ValueError(f"loop_layers = {layers}: name neighbouring layers in order, such as 3, 4, 5")
        if layers[-1] >= self.num_layers:
            raise ValueError(f"loop_layers = {layers}: layers count from 0 to {self.num_layers - 1}")

    def _check_lanes(self) -> None:
        first = self.parallel_first_layer
        if self.parallel_residuals == "off":
            return
        if first >= self.num_layers:
            raise ValueError(
                f"parallel_first_layer = {first}: must be below num_layers = {self.num_layers}, or "
                "parallel_residuals off"
            )
        if self.parallel_residuals == "one_lane":
            return
        if self.loop_passes > 1 and first <= self.loop_layers[-1]:
            raise ValueError(
                f"parallel_first_layer = {first}: two lanes begin after the last looped layer, "
                f"{self.loop_layers[-1]}"
            )
        if self.unet_skips and first < self.num_layers // 2:
            raise ValueError(
                f"parallel_first_layer = {first}: two lanes begin in the second half of the layers, from "
                f"{self.num_layers // 2}, because skips leave from one stream"
            )

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    def layer_order(self, looped: bool = True) -> tuple[int, ...]:
        """Layers in the order in which they run: each once, or looped with `loop_layers` `loop_passes`
        times.
        """
        layers = tuple(range(self.num_layers))
        if not looped or self.loop_passes == 1:
            return layers
        first, last = self.loop_layers[0], self.loop_layers[-1]
        return layers[:first] + self.loop_layers * self.loop_passes + layers[last + 1 :]

    def as_metadata(self) -> dict[str, Any]:
        """Plain types for a blob. What the first blobs did not know is left out where it is off, so that
        their bytes stay.
        """
        values = asdict(self)
        return {
            item.name: values[item.name]
            for item in fields(self)
            if item.name not in _NOT_IN_FIRST_BLOBS or values[item.name] != item.default
        }


_NOT_IN_FIRST_BLOBS = frozenset(
    (
        "leaky_slope", "loop_passes", "loop_layers", "skip_gates", "parallel_residuals",
        "parallel_first_layer", "head_gate", "head_gate_dims", "head_gate_scale", "smear_form",
        "smear_dims", "tied_head",
    )
)  # fmt: skip
