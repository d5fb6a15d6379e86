"""The parts of tokenization: the tokenizer, the splits, the fast encoder, the writer of a split."""
