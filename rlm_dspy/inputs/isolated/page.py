"""Fetches a page of the web: a job of `run_isolated`.

The body goes to standard output. A name is looked up once, and the connection
goes to the checked address, so that a second answer of the name server cannot redirect it.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import TYPE_CHECKING

from .job import Bounds, Refused, Settings

if TYPE_CHECKING:
    import httpx

    _Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ANSWER_SECONDS = 10
_MAX_REDIRECTS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_SERVES_METADATA = {ipaddress.ip_address("168.63.129.16")}
"""Public addresses at which clouds serve their own machines."""


class PageSettings(Settings):
    """The settings of the job."""

    url: str
    allow_local: bool
    """Whether addresses of this machine and its network are allowed."""


def main(settings: PageSettings, bounds: Bounds) -> dict[str, str]:  # noqa: ARG001 (a client opens files and sockets)
    """Fetch the page, write its body to standard output, and return the report."""
    import httpx

    with httpx.Client(verify=httpx.create_ssl_context(), trust_env=False, timeout=_ANSWER_SECONDS) as client:
        response = follow(client, settings["url"], allow_local=settings["allow_local"])
        if response.status_code != httpx.codes.OK:
            raise Refused("status", f"{response.status_code} {response.reason_phrase}".strip())
        for part in response.iter_bytes():
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return {"content_type": response.headers.get("content-type", "")}


def follow(client: httpx.Client, address: str, *, allow_local: bool) -> httpx.Response:
    """Follow redirects, each checked, and return the last response; its body is not read.

    Raises:
        Refused: If an address is not allowed or cannot be reached, or if there are too many redirects.
    """
    import httpx

    url = httpx.URL(address)
    for _ in range(_MAX_REDIRECTS + 1):
        response = _ask(client, url, _checked(url, allow_local=allow_local))
        if not response.has_redirect_location:
            return response
        response.close()
        url = url.join(response.headers["location"])
    raise Refused("redirects", str(_MAX_REDIRECTS))


def _ask(client: httpx.Client, url: httpx.URL, addresses: list[str]) -> httpx.Response:
    """Return the response of the first address that accepts a connection; its body is not read."""
    import httpx

    headers = {"Accept-Encoding": "gzip", "Host": url.netloc.decode("ascii"), "User-Agent": "rlm-dspy"}
    name = url.raw_host.decode("ascii")
    failed: Exception | None = None
    for address in addresses:
        request = client.build_request(
            "GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": name}
        )
        try:
            return client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failed = error
    raise Refused("failed", str(failed))


def _checked(url: httpx.URL, *, allow_local: bool) -> list[str]:
    """Return the addresses to connect to for a URL.

    Raises:
        Refused: If its scheme is not http or https, its name is unknown, or all of its addresses are local.
    """
    if url.scheme not in ("http", "https") or not url.host:
        raise Refused("scheme", url.scheme)
    try:
        found = socket.getaddrinfo(url.raw_host.decode("ascii"), url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused("name", url.host) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    allowed = [address for address in addresses if allow_local or _is_public(ipaddress.ip_address(address))]
    if not allowed:
        raise Refused("local", addresses[0])
    return allowed


def _is_public(address: _Address) -> bool:
    """Return whether an address, and each address embedded in it, belongs to the internet."""
    inner: list[_Address] = []
    if isinstance(address, ipaddress.IPv6Address):
        inner = [part for part in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if part]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
            return all(map(_is_public, inner))
        if not inner and address not in _GLOBAL_UNICAST:  # is_global is true of fec0::1, and of ::127.0.0.1
            return False
    is_public = address.is_global and not address.is_multicast and address not in _SERVES_METADATA
    return all(map(_is_public, inner)) and (is_public or bool(inner))
