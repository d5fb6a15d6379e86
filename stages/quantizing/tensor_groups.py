"""The roles of a model's tensors, by which bytes and losses are counted."""

from fnmatch import fnmatchcase

TENSOR_GROUPS = (
    ("tok_emb.*", "embedding"),
    ("head.*", "output head"),
    ("value_embedding.*", "value embedding"),
    ("blocks.*.attn.*.weight", "attention"),
    ("blocks.*.mlp.*.weight", "mlp"),
    ("*", "controls"),
)


def group_of(tensor_name: str) -> str:
    """The role of a tensor in the model."""
    return next(group for pattern, group in TENSOR_GROUPS if fnmatchcase(tensor_name, pattern))
