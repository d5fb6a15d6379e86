"""Step of tokenization in parts: a few neighbouring files, or row groups of one, as two streams of tokens.

CorpusPart, TokenizerModel -> TokenizedPart. `tokenize_corpus` puts the streams of all parts together and cuts
them into shards. A part knows neither its place in the corpus nor the size of a shard. So one more file
leaves the other parts as they are. Only splits by the text alone can be made so (`HashFraction`).
"""

from contextlib import ExitStack
from pathlib import Path

from schemas.row_groups import RowGroups
from schemas.tokenize_parts import CorpusPart, PartSpec, PartSplit, SplitSums, TokenizedPart, TokenizerModel
from stages.core.bits_per_byte import load_token_bytes
from stages.corpora import documents
from stages.store.workspace import Workspace
from stages.tokenization.fast_encode import TextEncoder, encode_stream
from stages.tokenization.reading import ReadBytes
from stages.tokenization.split_writer import SplitWriter, write_splits
from stages.tokenization.token_file import TokenFileWriter


def tokenize_part(
    spec: PartSpec, part: CorpusPart, tokenizer: TokenizerModel, work: Workspace
) -> TokenizedPart:
    """Both splits of the part's documents, and their sums. Memory does not grow with the part.

    Raises SpecError for unusable text, StageError for a file that changed since it was hashed.
    """
    model_path = work.read(tokenizer.model)
    model, table = model_path.read_bytes(), load_token_bytes(model_path)
    train_path, val_path, text_path = (work.out_dir / name for name in ("train.u16", "val.u16", "val.txt"))
    texts = documents(spec.corpus, part, work.hashes, ReadBytes(part, work))
    with ExitStack() as stack:
        text_file = stack.enter_context(text_path.open("xb")) if spec.keep_val_text else None
        train, val = write_splits(
            encode_stream(texts, model, work.runtime.encode_threads or 1),
            spec.split,
            TextEncoder(model),
            SplitWriter(TokenFileWriter(train_path), table),
            SplitWriter(TokenFileWriter(val_path), table, text_file),
        )
    # A file counts where it ends, so that the parts together name each file once.
    ends = not isinstance(part, RowGroups) or part.end == part.total
    return TokenizedPart(
        files=tuple(file.sha256 for file in part.files if ends),
        tokenizer_sha256=tokenizer.model.sha256,
        train=_split(work, train_path, train),
        val=_split(work, val_path, val),
        val_text=work.ref(text_path) if spec.keep_val_text else None,
    )


def _split(work: Workspace, path: Path, sums: SplitSums) -> PartSplit:
    return PartSplit(tokens=work.ref(path), sums=sums)
