"""Parts of the stage `tokenize_corpus`: tokenizer, splits, fast encoder and split writer."""
