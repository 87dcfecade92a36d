"""Ask a server whether it serves: each probe speaks one exchange of the server's own protocol.

An open port proves little, as most servers listen before they can answer. Every probe returns True or False, never
raises, and takes at most `TIMEOUT_S`.
"""

from __future__ import annotations

import http.client
import socket
import struct

import psycopg

from deploy.local.ports import HOST

TIMEOUT_S = 2.0
BOLT_HELLO = bytes.fromhex("6060b017") + struct.pack(">4I", 0x0000_0405, 0x0000_0404, 0x0000_0004, 0)
"""The magic number and four versions on offer: 5.4, 4.4, 4.0 and none (Bolt's handshake specification)."""

KAFKA_METADATA, KAFKA_METADATA_VERSION = 3, 4
KAFKA_ANSWER_LIMIT_BYTES = 1 << 20


def answers_postgres(dsn: str) -> bool:
    """Connect and run a query."""
    try:
        with psycopg.connect(dsn, connect_timeout=int(TIMEOUT_S)) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.Error:
        return False


def answers_http(port: int, path: str) -> bool:
    """GET the path; True on 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def answers_bolt(port: int) -> bool:
    """Shake hands; True if the server agrees to one of the versions offered."""
    try:
        with socket.create_connection((HOST, port), TIMEOUT_S) as connection:
            connection.sendall(BOLT_HELLO)
            return any(_read(connection, 4))
    except OSError:
        return False


def answers_kafka(port: int) -> bool:
    """Ask for the cluster's metadata without topics; True once the broker itself is listed in it."""
    header = struct.pack(">hhih", KAFKA_METADATA, KAFKA_METADATA_VERSION, 1, -1)  # no client id
    body = struct.pack(">i?", 0, False)  # no topic, create none
    try:
        with socket.create_connection((HOST, port), TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
            (size,) = struct.unpack(">i", _read(connection, 4))
            if not 12 <= size <= KAFKA_ANSWER_LIMIT_BYTES:
                return False
            _correlation, _throttle, brokers = struct.unpack(">iii", _read(connection, 12))
            return bool(brokers >= 1)
    except (OSError, struct.error):
        return False


def _read(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionError("the server closed the connection")
        received += part
    return received
