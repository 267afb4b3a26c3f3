"""Fetches a page of the web as text.

A process of its own does it (`isolated.page`), so that one time limit covers everything, also the name look-up.
"""

from __future__ import annotations

import codecs
import subprocess
from email.message import Message

from rlm_dspy.errors import UnreachableAddress
from rlm_dspy.inputs.documents import HEAD_BYTES, Document, Kind, kind_of, read_document
from rlm_dspy.inputs.isolated.process import run_isolated

_SECONDS = 30
_MAX_BYTES = 100 << 20
_NO_CHARSETS = ("idna", "punycode", "undefined", "raw-unicode-escape", "unicode-escape")
"""Text encodings of Python that web pages do not use. They raise errors, or take hours for a large page."""
_LARGE = f"{{name}} is larger than {_MAX_BYTES >> 20:,} MB. Download it and open the file."
_PROBLEMS = {
    "scheme": "{name} cannot be fetched: Text.open takes http and https addresses.",
    "name": "{name} cannot be fetched: there is no host {detail}, or no network.",
    "local": "{name} leads to a local network ({detail}). If you trust it: allow_local=True, or --allow-local.",
    "redirects": "{name} cannot be fetched: it is redirected more than {detail} times.",
    "status": "{name} cannot be fetched: the server answered {detail}.",
    "large": _LARGE,
    "memory": _LARGE,
    "time": f"{{name}} did not arrive within {_SECONDS} seconds. Download it and open the file.",
    "failed": "{name} cannot be fetched: {detail}. Proxies are not used: fetch it and open the file.",
    "missing": "{name} cannot be fetched: the package {detail} is not installed.",
    "crashed": "{name} cannot be fetched: the process for it ended with {detail}.",
}


def read_address(url: str, *, password: str | None = None, allow_local: bool = False) -> Document:
    """Return the text of a page of the web, or of a document there.

    Args:
        url: An http or https address. Redirects are followed, and checked too.
        password: The password of an encrypted PDF.
        allow_local: Whether the address may belong to this machine or its network.

    Raises:
        UnreachableAddress: If it is not allowed, or cannot be fetched within 30 seconds and 100 MB.
        UnreadableDocument: If it is neither text nor a document.
    """
    report, body = run_isolated(
        "page",
        {"url": url, "allow_local": allow_local},
        subprocess.DEVNULL,
        seconds=_SECONDS,
        file_bytes=_MAX_BYTES,
    )
    with body:
        if report.problem:
            problem = _PROBLEMS[report.problem].format(
                name=without_credentials(url), detail=report.detail.rstrip(".")
            )
            raise UnreachableAddress(problem)
        name = without_credentials(url)
        header = Message()
        header["Content-Type"] = report.content_type
        charset = header.get_content_charset("")
        kind: Kind = "html" if header.get_content_subtype() in ("html", "xhtml+xml") else "text"
        head = body.read(HEAD_BYTES)
        body.seek(0)
        if kind == "text" or head.startswith(b"%PDF-"):
            kind = kind_of(head, name)
        if kind == "text":
            return Document(kind=kind, unit="", pages=[_decoded(body.read(), charset)], names=[])
        return read_document(body, kind, name, password=password, charset=charset)


def without_credentials(url: str) -> str:
    """Return a URL without the user and password in it."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _decoded(body: bytes, charset: str) -> str:
    """Return text decoded by the server's charset, else as UTF-8; invalid bytes become U+FFFD, as in browsers."""
    try:
        charset = codecs.lookup(charset or "utf-8").name
        return body.decode("utf-8-sig" if charset in ("utf-8", *_NO_CHARSETS) else charset, "replace")
    except LookupError:
        return body.decode("utf-8-sig", "replace")
