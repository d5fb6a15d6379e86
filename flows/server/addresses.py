"""Addresses and ports of the Prefect server: which ones are free, which ones may be used."""

import errno
import ipaddress
import os
import socket
from urllib.parse import urlsplit

from schemas.errors import SpecError

LOOPBACK = "127.0.0.1"


def api_address(server: str | None) -> str:
    """The API's address of `server`; None: that of PREFECT_API_URL.

    Raises SpecError for one that is missing, no address, or with a password in it.
    """
    name, text = (
        ("--server", server) if server else ("PREFECT_API_URL", os.environ.get("PREFECT_API_URL", ""))
    )
    parts = urlsplit(text)
    example = "as http://10.0.0.1:4200, the address that `fairway up` prints on the machine of the server"
    if not text:
        raise SpecError(f"--worker-only: needs the server. Give --server or PREFECT_API_URL {example}")
    if "@" in parts.netloc:
        raise SpecError(
            f"{name}: has a user and a password. Put them into PREFECT_API_AUTH_STRING=user:password instead"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError(f"{name} = {text}: is no address of a server. Give it {example}")
    return text.rstrip("/") if parts.path.strip("/") else f"{text.rstrip('/')}/api"


def in_url(host: str) -> str:
    """`host` as a part of a URL: an address of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `port` of `host`; False for a number that is no port.

    Of the loopback interface both address families are tested: `localhost` in a browser may be ::1.
    """
    if host != LOOPBACK:
        return _is_free(socket.AF_INET6 if ":" in host else socket.AF_INET, host, port)
    return _is_free(socket.AF_INET, LOOPBACK, port) and (
        not socket.has_ipv6 or _is_free(socket.AF_INET6, "::1", port)
    )


def check_host(host: str) -> None:
    """Raise SpecError unless `host` is one address of this machine, other than all of them at once."""
    why = f"--host = {host}: give one address of this machine, of the network that only your machines share"
    try:
        address = ipaddress.ip_address(host)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except ValueError:
        raise SpecError(f"{why}. It is no address such as 10.0.0.1") from None
    except OSError as error:
        raise SpecError(f"{why}. This one is refused: {error.strerror}") from None
    if address.is_unspecified:
        raise SpecError(f"{why}. This one stands for all networks, the public one too")


def _is_free(family: socket.AddressFamily, host: str, port: int) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OverflowError:
        return False
    except OSError as error:
        return error.errno in (
            errno.EAFNOSUPPORT,
            errno.EADDRNOTAVAIL,
        )  # this machine has no such family: nobody listens there
    return True
