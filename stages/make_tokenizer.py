"""Step of tokenization in parts: the tokenizer that every part of the corpus is encoded with.

TrainingText -> TokenizerModel. The whole corpus has the same tokenizer, made by the same function.
"""

from schemas.tokenize_corpus import TokenizerSpec
from schemas.tokenize_parts import TokenizerModel, TrainingText
from stages.store.workspace import Workspace
from stages.tokenization.training_text import write_tokenizer


def make_tokenizer(spec: TokenizerSpec, text: TrainingText, work: Workspace) -> TokenizerModel:
    """A SentencePiece model, trained on the text or copied from the manifest's.

    Raises SpecError for a vocabulary or model that does not fit, StageError for a file that changed since it
    was hashed.
    """
    path = work.out_dir / "tokenizer.model"
    write_tokenizer(spec, text.corpus, text.split, text.manifest, work.hashes, path)
    return TokenizerModel(model=work.ref(path))
