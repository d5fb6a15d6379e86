"""A dataset repository on the Hugging Face hub: Parquet, JSON-lines or text files of one split, at one commit.

Locating asks the hub for names and digests only. Files are downloaded, into the hub's own cache, when they are read.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from schemas.errors import SpecError, StageError
from schemas.files import SourceFile
from schemas.tokenize_corpus import CorpusManifest, HuggingFaceCorpus
from stages.corpora.files import ENDINGS, format_by_ending
from stages.corpora.sources import source_file
from stages.hashing import FileHashes
from stages.surroundings import UNUSABLE_PROXY, proxy_variables

log = logging.getLogger(__name__)

_SPLIT_NAMES = ("train", "training", "validation", "valid", "dev", "test", "testing", "eval", "evaluation")


def locate(corpus: HuggingFaceCorpus, hashes: FileHashes) -> CorpusManifest:
    """The files of the split at the commit that `revision` means now, sorted; paths are relative to the repository.

    Raises SpecError when the hub cannot be reached, the dataset or revision does not exist or needs a login, or no file
    belongs to the split.
    """
    if not corpus.dataset:
        raise SpecError("corpus.dataset = '': give the id of a dataset repository, for example HuggingFaceFW/fineweb")
    info = _dataset_info(corpus)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = split_files(sorted(siblings), corpus.split, corpus.folder)
    if not names:
        under = f" under corpus.folder = {corpus.folder!r}" if corpus.folder else ""
        raise SpecError(
            f"corpus.split = {corpus.split!r}: {corpus.dataset} has no {', '.join(ENDINGS)} file of that split{under}; "
            f"its files are {', '.join(sorted(siblings)[:20]) or 'none'}. Set corpus.split or corpus.folder to match some"
        )
    return CorpusManifest(
        source=f"{corpus.dataset} at {info.sha}, split {corpus.split}: {len(names)} files",
        files=tuple(_pinned(corpus, info.sha, siblings[name], hashes) for name in names),
        formats=tuple(format_by_ending(name) for name in names),
        revision=info.sha,
    )


def fetch(corpus: HuggingFaceCorpus, manifest: CorpusManifest, file: SourceFile, hashes: FileHashes) -> SourceFile:
    """The file on this machine, downloaded at the manifest's commit unless the hub's cache has it undamaged."""
    assert manifest.revision is not None
    local = _download(corpus, manifest.revision, file.path)
    if problem := hashes.problem_with(local, file.num_bytes, file.sha256):
        log.warning("the hub's cache: %s: downloading it again", problem)
        local = _download(corpus, manifest.revision, file.path, force_download=True)
    return file.derive(path=str(local))


def split_files(names: list[str], split: str, folder: str = "") -> list[str]:
    """Those data files whose folder or name contains `split` as a word; all of them for "train" when none names a split.

    The second rule is what the `datasets` library does with a repository that has no splits.
    """
    prefix = folder.strip("/") + "/" if folder.strip("/") else ""
    data = [name for name in names if Path(name).suffix.lower() in ENDINGS and name.startswith(prefix)]
    chosen = [name for name in data if _has_word(name, split)]
    unsplit = not any(_has_word(name, known) for name in data for known in _SPLIT_NAMES)
    return data if not chosen and split == "train" and unsplit else chosen


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])", name.lower()) is not None


def _dataset_info(corpus: HuggingFaceCorpus) -> Any:
    from huggingface_hub import errors

    dataset = f"corpus.dataset = {corpus.dataset}"
    try:
        return _hub().dataset_info(corpus.dataset, revision=corpus.revision, files_metadata=True)
    except errors.HFValidationError as error:
        raise SpecError(f"{dataset}: is no repository id ({error}). Give OWNER/NAME") from error
    except errors.GatedRepoError as error:
        raise SpecError(f"{dataset}: its owner grants access on request. Ask for it on its page, then log in: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise SpecError(f"corpus.revision = {corpus.revision}: {corpus.dataset} has no such branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise SpecError(f"{dataset}: no such dataset, or it is private. Check the name; for a private one log in: hf auth login") from error
    except (OSError, errors.HTTPError) as error:
        raise SpecError(
            f"{dataset}: the Hugging Face hub cannot be reached ({error}). Check the network, "
            "or download the files and use corpus.kind = files"
        ) from error


def _pinned(corpus: HuggingFaceCorpus, commit: str, sibling: Any, hashes: FileHashes) -> SourceFile:
    # The hub knows the sha256 of large files only.
    if sibling.lfs is not None:
        return SourceFile(path=sibling.rfilename, num_bytes=sibling.lfs.size, sha256=sibling.lfs.sha256)
    return source_file(_download(corpus, commit, sibling.rfilename), hashes, "corpus.dataset").derive(path=sibling.rfilename)


def _download(corpus: HuggingFaceCorpus, commit: str, name: str, force_download: bool = False) -> Path:
    from huggingface_hub import errors

    try:
        return Path(_hub().hf_hub_download(corpus.dataset, name, repo_type="dataset", revision=commit, force_download=force_download))
    except errors.RemoteEntryNotFoundError as error:
        raise StageError(f"{corpus.dataset}: {name} is gone from the repository at {commit}") from error


def _hub() -> Any:
    proxies = proxy_variables(os.environ)
    if (said := os.environ.get(UNUSABLE_PROXY)) and not {"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} & {*proxies}:
        raise SpecError(f"{said}: the hub cannot be reached by it. Give a proxy of another kind by HTTPS_PROXY")
    # Slow to import, and only this source needs it.
    from huggingface_hub import HfApi

    return HfApi(library_name="fairway")
