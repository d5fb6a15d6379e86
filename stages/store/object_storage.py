"""Object storage through obstore: S3, Google Cloud Storage, Azure, or a folder.

Credentials and the server's address come from the environment, as obstore reads it; no message has one.
"""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from schemas.errors import SpecError
from schemas.extras import missing_package

if TYPE_CHECKING:
    from obstore.store import ObjectStore

REQUEST_SECONDS = 120  # for one piece: 0.3 MB/s at least
_RETRY_SECONDS = 60
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|SAS")


def open_objects(url: str, make_folder: bool = False) -> "ObjectStore":
    """The objects under `url`. Raises what obstore raises for an address that is none."""
    from obstore.store import from_url

    if url.startswith("file:"):
        return from_url(url, mkdir=make_folder)
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    return from_url(
        url,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        },
        retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
    )


def without_obstore(error: ModuleNotFoundError, what: str) -> SpecError:
    """The refusal of `what`, which needs obstore; raises other errors again."""
    if (error.name or "").partition(".")[0] != "obstore":
        raise error
    return missing_package("obstore", what)


def said_by_server(error: Exception) -> str:
    """The error's first line; values of the environment that may be secret are left out."""
    said = str(error).partition("\n")[0]
    for variable, value in os.environ.items():
        if len(value) >= 4 and _SECRET_NAME.search(variable.upper()):
            said = said.replace(value, "***")
    return said
