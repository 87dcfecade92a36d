"""Does a store answer at all, now? Asked at its address, without the store's own client and within a bound.

That keeps ``outbox status`` quick: the clients of the stores take seconds to import. What an address is:

* ``path``: a folder of an embedded store; it answers through the process that holds it.
* ``url`` with http(s): any answer of the server but a 5xx, whatever it says of the credentials it was not given.
* ``url`` with bolt or neo4j: a Bolt handshake (https://neo4j.com/docs/bolt/current/bolt/handshake/).
* ``dsn``: a connection to PostgreSQL, unless it has another scheme.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from psycopg import ProgrammingError, conninfo

from outbox.database import connect, first_line
from outbox.errors import DatabaseError
from projectors.holding import holder_of

if TYPE_CHECKING:
    import ssl

TIMEOUT_S: Final = 2.0
"""For all stores together: they are asked at the same time. Also libpq's least."""

BOLT: Final = bytes.fromhex("6060b017 00000005 00000004 00000003 00000000")
"""Its magic word and the versions we would take: what is answered tells that it is alive, even "none of these"."""
BOLT_PORT: Final = 7687
BOLT_ANSWER_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Pulse:
    """``answers``: None if there is no address to ask at. ``said``: why not, in one line, or where it is."""

    answers: bool | None
    said: str = ""


def pulses(stores: Mapping[str, Mapping[str, Any]], timeout_s: float = TIMEOUT_S) -> dict[str, Pulse]:
    """Each store's pulse, by name, from its settings. Takes ``timeout_s`` at most, whatever the stores do."""
    found: dict[str, Pulse] = {}

    def ask(name: str, settings: Mapping[str, Any]) -> None:
        found[name] = pulse(settings, timeout_s)

    # Daemons: one that hangs in the resolver, which has no time-out, must not keep the process.
    asking = [threading.Thread(target=ask, args=item, daemon=True) for item in stores.items()]
    for thread in asking:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in asking:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: found.get(name, Pulse(False, f"no answer within {timeout_s:g} s")) for name in stores}


def pulse(settings: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> Pulse:
    """One store's pulse. Each wait in it is bounded by ``timeout_s``."""
    try:
        if "path" in settings:
            return _folder(Path(settings["path"]))
        if "dsn" in settings:
            return _postgres(str(settings["dsn"]), timeout_s)
        if "url" in settings:
            return _address(urlsplit(str(settings["url"])), timeout_s)
    except (OSError, ValueError, DatabaseError) as error:
        return Pulse(False, first_line(error))
    return Pulse(None, "no address to ask at")


def _folder(folder: Path) -> Pulse:
    holder = holder_of(folder)
    if holder is not None:
        return Pulse(True, f"open in process {holder}")
    return Pulse(True) if folder.exists() else Pulse(False, f"nothing is in {folder} yet")


def _postgres(dsn: str, timeout_s: float) -> Pulse:
    scheme, separator, _ = dsn.partition("://")
    if separator and scheme.isalnum() and scheme not in {"postgresql", "postgres"}:  # of a sink of another package
        return Pulse(None, f"{scheme!r} is not known here")
    try:
        address = conninfo.make_conninfo(dsn, connect_timeout=round(max(timeout_s, 2)))
    except ProgrammingError:  # its text repeats what may be a password
        return Pulse(False, "its dsn is no address of PostgreSQL")
    connect(address).close()
    return Pulse(True)


def _address(url: SplitResult, timeout_s: float) -> Pulse:
    if url.scheme in {"http", "https"}:
        return _http(url, timeout_s)
    if url.scheme.partition("+")[0] in {"bolt", "neo4j"}:
        return _bolt(url, timeout_s)
    return Pulse(None, f"{url.scheme!r} is not known here")


def _http(url: SplitResult, timeout_s: float) -> Pulse:
    import urllib.error
    import urllib.request

    ask = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_unverified())
    )
    # Of the address only what leads to the server: it may carry a password.
    where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}/"
    try:
        ask.open(where, timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            return Pulse(False, f"HTTP {error.code} {error.reason}")
    except urllib.error.URLError as error:
        return Pulse(False, str(error.reason))
    return Pulse(True)


def _bolt(url: SplitResult, timeout_s: float) -> Pulse:
    host = url.hostname or "localhost"
    with socket.create_connection((host, url.port or BOLT_PORT), timeout_s) as plain:
        secure = "+s" in url.scheme
        with _unverified().wrap_socket(plain, server_hostname=host) if secure else plain as connection:
            connection.sendall(BOLT)
            answer = connection.recv(BOLT_ANSWER_BYTES)
    return Pulse(True) if answer else Pulse(False, "it closes the connection without an answer")


def _unverified() -> ssl.SSLContext:
    """Nothing secret is sent; whether the certificate is good is for the store's client to judge."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
