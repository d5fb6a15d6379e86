"""Corpus of kind `huggingface`: a dataset repository on the Hugging Face hub.

It reads Parquet, JSON-lines or text files of one split at one commit. `locate` asks the hub only for names
and digests. Files are downloaded into the hub's own cache when they are read. The hub's answers are
remembered: a commit is asked for once, and a branch or tag keeps its last commit without a network.
"""

import hashlib
import logging
import os
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from schemas.base import Schema
from schemas.errors import SpecError, StageError
from schemas.files import SourceFile
from schemas.tokenize_corpus import CorpusManifest, HuggingFaceCorpus
from stages.corpora.files import ENDINGS, data_ending, format_by_ending
from stages.corpora.sources import source_file
from stages.processes.surroundings import UNUSABLE_PROXY, proxy_variables
from stages.store.hashing import FileHashes

log = logging.getLogger(__name__)

# What the `datasets` library leaves out too.
_ABOUT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
TRIES = 3
SECONDS_BETWEEN_TRIES = 2.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SPLIT_NAMES = ("train", "training", "validation", "valid", "dev", "test", "testing", "eval", "evaluation")


class RepositoryFile(Schema):
    """A file and its digest, as the hub gives them."""

    name: str
    num_bytes: int | None
    sha256: str | None
    """None: the hub knows the digest of large files only."""


class Repository(Schema):
    """A dataset repository at one commit."""

    commit: str
    files: tuple[RepositoryFile, ...]


def locate(corpus: HuggingFaceCorpus, hashes: FileHashes, memory: Path | None = None) -> CorpusManifest:
    """The files of the split at the commit that `revision` means now, sorted; paths are relative to the
    repository.

    `memory` is a folder for the hub's answers. Raises SpecError if the dataset or revision does not exist or
    needs a login, or no file belongs to the split. Raises ConnectionError if the hub cannot be reached and
    `memory` has no answer.
    """
    if not corpus.dataset:
        raise SpecError(
            "tokenize.corpus.dataset = '': give the id of a dataset repository, for example "
            "HuggingFaceFW/fineweb"
        )
    repository = _repository(corpus, memory)
    files = {file.name: file for file in repository.files}
    names = split_files(sorted(files), corpus.split, corpus.folder)
    if not names:
        under = f" under tokenize.corpus.folder = {corpus.folder!r}" if corpus.folder else ""
        raise SpecError(
            f"tokenize.corpus.split = {corpus.split!r}: {corpus.dataset} has no {', '.join(ENDINGS)} file of "
            f"that split{under}; its files are {', '.join(sorted(files)[:20]) or 'none'}. Set "
            "tokenize.corpus.split or tokenize.corpus.folder to match some"
        )
    return CorpusManifest(
        source=f"{corpus.dataset} at {repository.commit}, split {corpus.split}: {len(names)} files",
        files=tuple(_pinned(corpus, repository.commit, files[name], hashes) for name in names),
        formats=tuple(format_by_ending(name) for name in names),
        revision=repository.commit,
    )


def fetch(
    corpus: HuggingFaceCorpus, manifest: CorpusManifest, file: SourceFile, hashes: FileHashes
) -> SourceFile:
    """Path of the local copy, downloaded at the manifest's commit unless the hub's cache has it undamaged."""
    assert manifest.revision is not None
    local = _download(corpus, manifest.revision, file.path)
    if problem := hashes.problem_with(local, file.num_bytes, file.sha256):
        log.warning("the hub's cache: %s: downloading it again", problem)
        local = _download(corpus, manifest.revision, file.path, force_download=True)
    return file.derive(path=str(local))


def split_files(names: list[str], split: str, folder: str = "") -> list[str]:
    """The data files whose folder or name contains `split` as a word; for "train" all of them if none names a
    split.

    The `datasets` library has the same second rule for a repository without splits. Hidden files do not
    count. `.json` counts only if there is nothing else, because most repositories use it for metadata.
    """
    prefix = folder.strip("/") + "/" if folder.strip("/") else ""
    data = [
        name
        for name in names
        if data_ending(name) in ENDINGS and name.startswith(prefix) and not _is_about_data(name)
    ]
    data = [name for name in data if data_ending(name) != ".json"] or data
    # A repository may have a file both as it is and compressed.
    data = [
        name
        for name in data
        if PurePosixPath(name).suffix in ENDINGS or str(PurePosixPath(name).with_suffix("")) not in data
    ]
    chosen = [name for name in data if _has_word(name, split)]
    unsplit = not any(_has_word(name, known) for name in data for known in _SPLIT_NAMES)
    return data if not chosen and split == "train" and unsplit else chosen


def _is_about_data(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name in _ABOUT_DATA or any(part.startswith(".") for part in path.parts)


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(word.lower())}(?![a-z0-9])", name.lower()) is not None


def _repository(corpus: HuggingFaceCorpus, memory: Path | None) -> Repository:
    """The hub's answer, or its last one; a commit's answer never changes."""
    remembered = _recall(corpus, memory)
    if remembered is not None and _COMMIT.fullmatch(corpus.revision):
        return remembered
    try:
        info = _dataset_info(corpus)
    except ConnectionError as error:
        if remembered is None:
            raise
        log.warning("%s; using %s, the last known commit", error, remembered.commit)
        return remembered
    repository = Repository(
        commit=info.sha, files=tuple(_described(sibling) for sibling in info.siblings or [])
    )
    _remember(corpus, memory, repository)
    return repository


def _described(sibling: Any) -> RepositoryFile:
    large = sibling.lfs
    size, digest = (None, None) if large is None else (large.size, large.sha256)
    return RepositoryFile(name=sibling.rfilename, num_bytes=size, sha256=digest)


def _recall(corpus: HuggingFaceCorpus, memory: Path | None) -> Repository | None:
    if memory is None:
        return None
    path = _place(corpus, memory)
    try:
        return Repository.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s cannot be read (%s): asking the hub", path, type(error).__name__)
        return None


def _remember(corpus: HuggingFaceCorpus, memory: Path | None, repository: Repository) -> None:
    if memory is None:
        return
    path = _place(corpus, memory)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repository.model_dump_json(), encoding="utf-8")
    except OSError as error:
        log.warning("%s cannot be written (%s): the next run asks the hub again", path, error)


def _place(corpus: HuggingFaceCorpus, memory: Path) -> Path:
    return memory / f"{hashlib.sha256(f'{corpus.dataset}@{corpus.revision}'.encode()).hexdigest()[:32]}.json"


def _dataset_info(corpus: HuggingFaceCorpus) -> Any:
    """Ask the hub.

    Raises SpecError if the hub refuses, ConnectionError after TRIES without an answer.
    """
    from huggingface_hub import errors

    dataset = f"tokenize.corpus.dataset = {corpus.dataset}"
    for again in range(1, TRIES + 1):
        try:
            return _hub().dataset_info(corpus.dataset, revision=corpus.revision, files_metadata=True)
        except errors.HFValidationError as error:
            raise SpecError(f"{dataset}: is no repository id ({error}). Give OWNER/NAME") from error
        except errors.GatedRepoError as error:
            raise SpecError(
                f"{dataset}: its owner grants access on request. Ask for it on its page, then log "
                "in: hf auth login"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise SpecError(
                f"tokenize.corpus.revision = {corpus.revision}: {corpus.dataset} has no such branch, tag or "
                "commit"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise SpecError(
                f"{dataset}: no such dataset, or it is private. Check the name; for a private one "
                "log in: hf auth login"
            ) from error
        except (OSError, errors.HTTPError) as error:
            if again < TRIES and not isinstance(error, errors.OfflineModeIsEnabled):
                log.warning(
                    "%s: the Hugging Face hub does not answer (%s). Try %d of %d follows",
                    dataset,
                    error,
                    again + 1,
                    TRIES,
                )
                time.sleep(SECONDS_BETWEEN_TRIES * 2 ** (again - 1))
                continue
            raise ConnectionError(
                f"{dataset}: the Hugging Face hub cannot be reached ({error}). Check the network, "
                "or download the files and use tokenize.corpus.kind=files"
            ) from error
    raise AssertionError("not reached")


def _pinned(corpus: HuggingFaceCorpus, commit: str, file: RepositoryFile, hashes: FileHashes) -> SourceFile:
    if file.num_bytes is not None and file.sha256 is not None:
        return SourceFile(path=file.name, num_bytes=file.num_bytes, sha256=file.sha256)
    path = _download(corpus, commit, file.name)
    return source_file(path, hashes, "tokenize.corpus.dataset").derive(path=file.name)


def _download(corpus: HuggingFaceCorpus, commit: str, name: str, force_download: bool = False) -> Path:
    from huggingface_hub import errors

    try:
        return Path(
            _hub().hf_hub_download(
                corpus.dataset, name, repo_type="dataset", revision=commit, force_download=force_download
            )
        )
    except errors.RemoteEntryNotFoundError as error:
        raise StageError(f"{corpus.dataset}: {name} is gone from the repository at {commit}") from error
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        raise ConnectionError(
            f"{corpus.dataset}: {name} is not on this machine and cannot be downloaded ({error})"
        ) from error


def _hub() -> Any:
    proxies = proxy_variables(os.environ)
    if (message := os.environ.get(UNUSABLE_PROXY)) and not {
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    } & {*proxies}:
        raise SpecError(
            f"{message}: the hub cannot be reached by it. Give a proxy of another kind by HTTPS_PROXY"
        )
    # Slow to import, and only this source needs it.
    from huggingface_hub import HfApi

    return HfApi(library_name="fairway")
