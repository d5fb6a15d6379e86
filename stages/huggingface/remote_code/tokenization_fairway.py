"""Tokenizer of a Fairway model for Transformers: the SentencePiece model itself.

A conversion to another format would lose parity with the ids that the model was trained on.
"""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
from transformers import PreTrainedTokenizer


class FairwayTokenizer(PreTrainedTokenizer):
    """A text becomes BOS and the ids of SentencePiece's own `encode`, special words in it included."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **given: Any) -> None:
        self.vocab_file = vocab_file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        super().__init__(**given)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pieces": self.pieces.serialized_model_proto()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {
            **state,
            "pieces": sentencepiece.SentencePieceProcessor(model_proto=state["pieces"]),
        }

    @property
    def vocab_size(self) -> int:
        return int(self.pieces.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        return {self.pieces.id_to_piece(index): index for index in range(self.vocab_size)}

    def _tokenize(self, text: str, **unused: Any) -> list[str]:
        return list(self.pieces.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.pieces.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.pieces.decode(tokens))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Each text begins a document: BOS before it."""
        second = [] if token_ids_1 is None else [self.bos_token_id, *token_ids_1]
        return [self.bos_token_id, *token_ids_0, *second]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        name = self.vocab_files_names["vocab_file"]
        path = Path(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
        if path.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)
