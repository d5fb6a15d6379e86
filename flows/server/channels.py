"""Addresses that messages go to: the forms of Apprise, and plain web addresses as webhooks.

Importing this imports neither Prefect nor Apprise.
"""

from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from schemas.errors import SpecError

VARIABLE = "FAIRWAY_NOTIFY"
"""Environment variable with the addresses, spaces between them: a command line is visible to other users."""
OFF = "off"
FORMS = (
    "mailtos://USER:PASSWORD@HOST?to=ADDRESS, the webhook address that Slack or Discord gives, "
    "https://ntfy.sh/TOPIC, or any https:// address for a webhook"
)
_WEBHOOK = {"http": "json", "https": "jsons"}


def channels(given: Sequence[str]) -> tuple[str, ...] | None:
    """The addresses as Apprise takes them, each once; empty for `off`, None where none was given.

    Raises SpecError for one that Apprise has no channel for. Its words repeat no address, because an address
    is a secret.
    """
    named = [address.strip() for address in given if address.strip()]
    if not named:
        return None
    if OFF in named:
        if len(named) > 1:
            raise SpecError(f"--notify = {OFF}: ends all messages, so give no address beside it")
        return ()
    return tuple(dict.fromkeys(_channel(number, address) for number, address in enumerate(named, 1)))


def _channel(number: int, address: str) -> str:
    from apprise import Apprise

    for form in (address, _webhook(address)):
        if form and Apprise.instantiate(form, suppress_exceptions=True) is not None:
            return form
    scheme, mark, _ = address.partition("://")
    kind = f"{scheme[:12]}://…" if mark else "without ://"
    raise SpecError(
        f"--notify = address {number} ({kind}): no channel of Apprise has this form. Give {FORMS}; "
        "all forms: https://github.com/caronc/apprise/wiki"
    )


def _webhook(address: str) -> str | None:
    """A plain web address as Apprise's JSON channel, which posts there; None for any other scheme.

    Apprise takes parameters of the address for its own, unless their names begin with a minus.
    """
    parts = urlsplit(address)
    if parts.scheme not in _WEBHOOK or not parts.hostname:
        return None
    named = parse_qsl(parts.query, keep_blank_values=True)
    query = "&".join(f"-{quote(name, safe='')}={quote(value, safe='')}" for name, value in named)
    return urlunsplit((_WEBHOOK[parts.scheme], parts.netloc, parts.path, query, ""))
