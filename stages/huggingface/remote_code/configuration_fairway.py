"""Configuration of a Fairway model for Transformers.

`config.json` holds the names of Fairway's own settings. Transformers' names for the same are mapped to them.
"""

from typing import ClassVar

from transformers import PretrainedConfig


class FairwayConfig(PretrainedConfig):
    """The settings of the model as attributes; `context_tokens` is the length of its training rows."""

    model_type = "fairway"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "model_dim",
        "intermediate_size": "mlp_hidden",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "max_position_embeddings": "context_tokens",
    }
