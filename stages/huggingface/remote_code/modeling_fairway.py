"""Fairway's model as a causal language model of Transformers.

Shape legend: B batch, T tokens, L tokens whose logits are asked for, V vocabulary.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from schemas.model_settings import ModelSettings
from schemas.settings_base import from_dict
from stages.core.model import GPT

from .configuration_fairway import FairwayConfig


class FairwayForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with Transformers' interface; it computes in the type of its weights.

    There is no cache of keys and values: each new token computes the whole context again.
    """

    config_class = FairwayConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # All parts read weights of other parts, so the model stays on one device.
    _no_split_modules = ("GPT",)

    def __init__(self, config: FairwayConfig) -> None:
        super().__init__(config)
        known = {item.name for item in fields(ModelSettings) if hasattr(config, item.name)}
        self.model = GPT(from_dict(ModelSettings, {name: getattr(config, name) for name in known}))
        if self.model.tok_emb.weight.device.type != "meta":  # nothing has to be loaded into the weights
            self.model.init_weights(int(torch.randint(2**31, ())))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Do nothing: the constructor initialises, and loaded weights stay."""

    def get_input_embeddings(self) -> Any:
        return self.model.tok_emb

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Ids (B, T) -> logits (B, T, V) float32, with `logits_to_keep` those of the last L positions.

        `attention_mask` (B, T) may leave out tokens at the left and at the right of a row. `labels` (B, T)
        are ids, −100 where none counts; the loss is that of each next one. Raises ValueError for embeddings
        instead of ids and for a mask with holes.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("input_ids: the model reads ids only; its embeddings are not all of its input")
        # The loss needs the logits of all positions.
        num_last = logits_to_keep if logits_to_keep and labels is None else None
        hidden = self._hidden(input_ids, attention_mask, num_last)
        logits = self.model.logits(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=unused.get("num_items_in_batch"),
            )
            logits = logits[:, -logits_to_keep:]
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **given: Any
    ) -> dict[str, Any]:
        """The last tokens, as many as the training rows had."""
        seen = slice(-self.config.context_tokens, None)
        return {
            "input_ids": input_ids[:, seen],
            "attention_mask": None if attention_mask is None else attention_mask[:, seen],
            "logits_to_keep": given.get("logits_to_keep", 0),
        }

    def _hidden(self, ids: Tensor, mask: Tensor | None, num_last: int | None) -> Tensor:
        """Output of the last layer, (B, L, D)."""
        dtype = self.model.tok_emb.weight.dtype
        left = _left_padding(mask)
        if left is None:
            return self.model.hidden(ids, dtype, num_last)
        # Each row begins at position 0, its padding goes behind it, where causal attention ignores it.
        places = torch.arange(ids.size(1), device=ids.device)
        hidden = self.model.hidden(ids.gather(1, (places + left) % ids.size(1)), dtype)
        back = ((places - left) % ids.size(1)).unsqueeze(-1).expand_as(hidden)
        hidden = hidden.gather(1, back)
        return hidden if num_last is None else hidden[:, -num_last:]


def _left_padding(mask: Tensor | None) -> Tensor | None:
    """Tokens that each row leaves out at its left, (B, 1); None where no row does.

    Raises ValueError for a mask that leaves out tokens inside a row.
    """
    if mask is None:
        return None
    if mask.dim() != 2:
        raise ValueError(f"attention_mask: has {mask.dim()} dims; give one number for each token, (B, T)")
    seen = mask.bool()
    begins = seen[:, 0].long() + (seen[:, 1:] & ~seen[:, :-1]).sum(1)
    if bool((begins > 1).any()):
        raise ValueError("attention_mask: leaves out tokens inside a row; only its ends can be left out")
    left = (seen.cumsum(1) == 0).sum(1, keepdim=True)
    return left if bool((left > 0).any()) else None
