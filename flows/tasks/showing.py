"""Errors of mere display on the server become warnings, because the run is worth more."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.exceptions import PrefectException

SERVER_ERRORS = (httpx.HTTPError, PrefectException)

log = logging.getLogger(__name__)


@contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Around calls to the server that no result depends on: when it refuses or is silent, a log line says
    what is not shown.
    """
    try:
        yield
    except SERVER_ERRORS as error:
        log.warning("not shown: %s: the server did not answer as expected (%s)", what, type(error).__name__)
