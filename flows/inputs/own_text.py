"""The user's own text as settings: `--text` of the commands, and the field `text` of the form.

A glob, a file or a folder of text; a folder of shards; or `owner/dataset` on the Hugging Face hub. Of little
text, it also chooses a split that holds out some of it, and a vocabulary that it can carry.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import SpecError
from schemas.overrides import apply_overrides, as_override
from schemas.pipeline import PipelineSpec
from schemas.tokenize_corpus import FilesCorpus, HashFraction
from stages.corpora import locate
from stages.corpora.contents import COMPRESSED_ENDINGS
from stages.corpora.files import ENDINGS
from stages.corpora.objects import is_address
from stages.corpora.paths import find_files
from stages.corpora.sources import ready_made_tokenizer
from stages.tokenization.survey import READ_BYTES, SmallText, carried_vocabulary, read_small_text
from stages.tokenization.survey import refuse_small_text as refuse_text

log = logging.getLogger(__name__)

VOCABULARY = ("tokenize.tokenizer.vocab_size", "train.model.vocab_size")
_CORPUS, _SPLIT = "tokenize.corpus.", "tokenize.split."
_DATASET = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARDS = "fineweb_train_*.bin"
_VAL_FRACTION = 0.05
# With fewer documents, a split by hash may leave none for validation.
_FEW_DOCUMENTS = 100
_BYTES_PER_TOKEN = 4


def text_settings(texts: Sequence[str], spec: PipelineSpec, overrides: Sequence[str] = ()) -> list[str]:
    """The settings, as dotted.name=value, by which a run of `spec` with the overrides reads the texts.

    A setting that the overrides choose stays. The log says what else is changed because the text is small.
    Raises SpecError for a text that is nowhere, and as `apply_overrides` does.
    """
    chosen = {setting.partition("=")[0].strip() for setting in overrides}
    settings = _corpus_settings(texts)
    changed = apply_overrides(spec, [*settings, *overrides])
    if changed.tokenize.corpus.kind == "shards" and VOCABULARY[1] not in chosen:
        return settings + _vocabulary_of_shards(changed)
    if not isinstance(changed.tokenize.corpus, FilesCorpus) or _has_objects(changed):
        return settings
    small = _read(changed)
    if not any(name.startswith(_SPLIT) for name in chosen):
        settings += _split_settings(changed, small)
        changed = apply_overrides(spec, [*settings, *overrides])
    if small is not None and not set(VOCABULARY) & set(chosen):
        settings += _vocabulary_settings(changed, small)
    return settings


def refuse_small_text(spec: PipelineSpec) -> None:
    """Raise SpecError for files with too little text for both splits, with the smallest size that works."""
    files = isinstance(spec.tokenize.corpus, FilesCorpus) and not _has_objects(spec)
    if files and (text := _read(spec)) is not None:
        refuse_text(spec.tokenize, text, spec.train.data.sequence_length)


def _corpus_settings(texts: Sequence[str]) -> list[str]:
    if not all(text.strip() for text in texts):
        raise SpecError("text = '': give a file, a folder, a pattern, or owner/dataset")
    places = [Path(text).expanduser() for text in texts]
    if len(texts) == 1 and places[0].is_dir() and any(places[0].glob(_SHARDS)):
        return _of_kind("shards", folder=texts[0], tokenizer_model=str(_tokenizer_beside(places[0])))
    if len(texts) == 1 and _DATASET.fullmatch(texts[0]) and not _is_here(texts[0]):
        return _of_kind("huggingface", dataset=texts[0])
    paths = [path for text in texts for path in _paths(text)]
    return _of_kind("files", paths=paths)


def _of_kind(kind: str, **settings: object) -> list[str]:
    own = [as_override(f"{_CORPUS}{name}", value) for name, value in settings.items()]
    return [f"{_CORPUS}kind={kind}", *own]


def _has_objects(spec: PipelineSpec) -> bool:
    """Whether some text lies in object storage: nothing of it is read before the run."""
    corpus = spec.tokenize.corpus
    return isinstance(corpus, FilesCorpus) and any(map(is_address, corpus.paths))


def _is_here(text: str) -> bool:
    """Whether the text names something of this machine: a path whose folder exists, or a file of text."""
    path = Path(text).expanduser()
    return path.exists() or path.parent.is_dir() or path.suffix.lower() in (*ENDINGS, *COMPRESSED_ENDINGS)


def _paths(text: str) -> list[str]:
    """The paths and patterns of the setting; for a folder, patterns of all files of text in it."""
    folder = Path(text).expanduser()
    if is_address(text) or not folder.is_dir():
        return [text]
    endings = [ending + packed for ending in ENDINGS for packed in ("", *COMPRESSED_ENDINGS)]
    found = [ending for ending in endings if any(folder.rglob(f"[!.]*{ending}"))]
    if not found:
        raise SpecError(
            f"text = {text}: the folder has no file of text ({', '.join(ENDINGS)}, also compressed), and no "
            f"{_SHARDS}. Give a folder with some, or a pattern"
        )
    return [f"{text.rstrip('/')}/**/*{ending}" for ending in found]


def _tokenizer_beside(folder: Path) -> Path:
    """The SentencePiece model of a folder of shards: in it, beside it, or in `../../tokenizers`."""
    absolute = folder.absolute()
    for place in (absolute, absolute.parent, absolute.parent.parent / "tokenizers"):
        models = sorted(place.glob("*.model"))
        size = re.search(r"sp(\d+)$", absolute.name)
        named = [path for path in models if size and size[1] in re.findall(r"\d+", path.stem)]
        if len(models) == 1 or len(named) == 1:
            return (named or models)[0]
        if models:
            raise SpecError(
                f"text = {folder}: several models may be the tokenizer of these shards: "
                f"{', '.join(map(str, models))}. Set tokenize.corpus.kind=shards, tokenize.corpus.folder and "
                "tokenize.corpus.tokenizer_model"
            )
    raise SpecError(
        f"text = {folder}: has shards, but no SentencePiece .model lies in it or beside it. Put it there, or "
        "set tokenize.corpus.kind=shards, tokenize.corpus.folder and tokenize.corpus.tokenizer_model"
    )


def _vocabulary_of_shards(spec: PipelineSpec) -> list[str]:
    corpus = spec.tokenize.corpus
    assert corpus.kind == "shards"
    size = ready_made_tokenizer(Path(corpus.tokenizer_model), "text").vocab_size()
    if size == spec.train.model.vocab_size:
        return []
    log.info("text: the tokenizer of the shards has %s pieces: %s = %d", f"{size:,}", VOCABULARY[1], size)
    return [f"{VOCABULARY[1]}={size}"]


def _split_settings(spec: PipelineSpec, small: SmallText | None) -> list[str]:
    """Another split where the present one leaves too little text on a side; none for large corpora."""
    split = spec.tokenize.split
    needed = (spec.train.data.sequence_length + 1) * _BYTES_PER_TOKEN
    if small is None:
        sizes = _sizes_of_few_files(spec)
        if not sizes:
            return []
    else:
        sizes = small.sizes
        if all(sum(map(len, part)) >= needed for part in small.of(split)):
            return []
    fraction = split.val_fraction if isinstance(split, HashFraction) else _VAL_FRACTION
    with_text = [index for index, size in enumerate(sizes) if size]
    if not with_text:
        return []
    count = with_text[max(1, round(fraction * len(with_text))) - 1] + 1
    while sum(sizes[:count]) < needed <= sum(sizes[count + 1 :]):
        count += 1
    if count > with_text[-1]:  # one document, which `refuse_small_text` refuses with the remedy
        return []
    log.info(
        "text: the first %d of %d documents are for validation, because %s would leave too little on a side",
        sum(index < count for index in with_text),
        len(with_text),
        f"tokenize.split.kind = {split.kind}",
    )
    return [f"{_SPLIT}kind=first_documents", f"{_SPLIT}num_val_documents={count}"]


def _sizes_of_few_files(spec: PipelineSpec) -> list[int]:
    """Bytes of each text file, a document each; empty for many files, and for files of many documents."""
    corpus = spec.tokenize.corpus
    assert isinstance(corpus, FilesCorpus)
    paths = find_files(corpus.paths).paths
    if len(paths) >= _FEW_DOCUMENTS or not all(".txt" in Path(path).suffixes for path in paths):
        return []
    return [Path(path).stat().st_size for path in paths]


def _vocabulary_settings(spec: PipelineSpec, small: SmallText) -> list[str]:
    """A smaller vocabulary where the text cannot carry that of `spec`."""
    tokenizer = spec.tokenize.tokenizer
    train, val = small.of(spec.tokenize.split)
    if tokenizer.model_path is not None or len(train) + len(val) < 2:
        return []
    carried = carried_vocabulary(tokenizer, train)
    if carried == tokenizer.vocab_size:
        return []
    log.warning(
        "text: it carries a vocabulary of at most %s pieces: %s and %s = %d instead of %d",
        f"{carried:,}",
        *VOCABULARY,
        carried,
        tokenizer.vocab_size,
    )
    return [f"{name}={carried}" for name in VOCABULARY]


def _read(spec: PipelineSpec) -> SmallText | None:
    corpus = spec.tokenize.corpus
    assert isinstance(corpus, FilesCorpus)
    if sum(Path(path).stat().st_size for path in find_files(corpus.paths).paths) > READ_BYTES:
        return None  # nothing that large is hashed here
    return read_small_text(spec.tokenize, locate(spec.tokenize))
