"""Prefect's settings: our own home, and no outside connections.

Call `settings_first` before Prefect is imported, because Prefect reads its environment once. prefect.toml has
the same settings for plain `prefect` commands in the checkout; a test keeps the two equal.
"""

import logging
import os
import tomllib
from pathlib import Path

from schemas.errors import SpecError
from stages.processes.surroundings import leave_out_unusable_proxies, reach_loopback

log = logging.getLogger(__name__)

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # its pages call Amplitude whatever the settings say
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
_OWN_SERVER_ONLY = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"
}  # Prefect's own temporary server outlives a killed run


def settings_first(home: Path) -> None:
    """Put Prefect's settings into the environment; those of the user take precedence.

    `home` is the folder of Prefect's files.

    Raises SpecError if that folder cannot be written.
    """
    reach_loopback(os.environ)
    for message in leave_out_unusable_proxies(os.environ):
        log.warning(message)
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name, value in (SETTINGS | _OWN_SERVER_ONLY).items():
        os.environ.setdefault(name, value)
    profiles = _users_profiles()
    if "PREFECT_HOME" not in os.environ and profiles is not None:
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))  # may name the user's server
    os.environ.setdefault("PREFECT_HOME", str(home))
    _check_profiles()
    _make_home(Path(os.environ["PREFECT_HOME"]).expanduser())


def _users_profiles() -> Path | None:
    try:
        path = Path.home() / ".prefect" / "profiles.toml"
        return path if path.is_file() else None
    except (RuntimeError, OSError):  # no HOME and no such user, or a home that is closed to us
        return None


def _check_profiles() -> None:
    """Ignore a file of profiles that Prefect cannot read; it would end every command with a decoder's
    message.
    """
    path = profiles_path()
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning(
            (
                "%s: Prefect's profiles are left out, because they cannot be read (%s). Correct or "
                "remove the file"
            ),
            path,
            error,
        )
        os.environ["PREFECT_PROFILES_PATH"] = str(
            Path(os.environ["PREFECT_HOME"]).expanduser() / "no-profiles.toml"
        )


def profiles_path() -> Path:
    """The file of profiles that Prefect reads."""
    home = Path(os.environ["PREFECT_HOME"]).expanduser()
    return Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"PREFECT_HOME = {home}: Prefect's folder cannot be made ({error.strerror}). Set it to "
            "one that you may write"
        ) from error
    if not os.access(home, os.W_OK):
        raise SpecError(
            f"PREFECT_HOME = {home}: Prefect's folder cannot be written. Set it to one that you may write"
        )


def check_settings() -> None:
    """Make Prefect read its settings, which it does once. Raises SpecError naming one that it refuses."""
    from pydantic import ValidationError

    try:
        from prefect.settings import get_current_settings

        get_current_settings()
    except ValidationError as error:
        # The last item only says that a default which depends on the refused one could not be made.
        first = error.errors()[0]
        field = "_".join(str(part) for part in first["loc"]).upper()
        refused = str(first["input"]).casefold()
        names = [
            name for name, value in os.environ.items() if _may_be(name, field) and value.casefold() == refused
        ]
        name = " or ".join(names) or f"{error.title}.{field.lower()}"
        value = os.environ[names[0]] if names else first["input"]
        raise SpecError(
            f"{name} = {value}: Prefect refuses this setting: {first['msg']}. Correct or unset it"
        ) from error
    except ValueError as error:  # prefect.toml or .env of the working folder
        raise SpecError(f"{error}. Correct or remove what is wrong there") from error


def _may_be(variable: str, field: str) -> bool:
    return variable.startswith("PREFECT_") and variable.endswith(field)
