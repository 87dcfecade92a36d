"""An HTTP proxy before a store that passes every request on and then does not tell the truth about it.

``pass`` · ``status`` N: what was written is answered N · ``silence``: what was written is answered by nothing until the
client gives up · ``part``: of a bulk request every second item is kept back and answered 429, as a full queue of one
shard does. Only writes are lied about, and only every other one, so that trying again gets somewhere.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any, Literal

from tests.faults.processes import CONTEXT, Child, begin
from tests.faults.proxy import HOST

Mode = Literal["pass", "status", "silence", "part"]
WRITES = re.compile(r"/_bulk|/(add|update|upsert|delete)$")
LIES_EVERY = 2
DROPPED = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}
REJECTED = {"type": "es_rejected_execution_exception", "reason": "rejected by the test's proxy"}


class Liar:
    """A port of our own in front of the store at ``target``."""

    def __init__(self, target: tuple[str, int], name: str) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._child: Child = begin(f"liar before {name}", serve, theirs, target)
        theirs.close()
        self.port: int = self._pipe.recv()

    def set(self, mode: Mode, status: int = 0) -> None:
        self._pipe.send((mode, status))
        self._pipe.recv()

    def lies(self) -> int:
        """How many answers were not the truth."""
        self._pipe.send(("count", 0))
        told: int = self._pipe.recv()
        return told

    def close(self) -> None:
        self._child.kill()
        self._pipe.close()


class Server(ThreadingHTTPServer):
    """What all requests share."""

    daemon_threads = True
    target: tuple[str, int]
    mode: Mode = "pass"
    status: int = 0
    writes: int = 0
    lies: int = 0
    lock: threading.Lock
    honest: threading.Event

    def lying(self) -> bool:
        with self.lock:
            self.writes += 1
            lie = self.mode != "pass" and self.writes % LIES_EVERY == 1
            self.lies += lie
            return lie


def serve(pipe: Connection, target: tuple[str, int]) -> None:
    """The proxy's process."""
    server = Server((HOST, 0), Request)
    server.target, server.lock, server.honest = target, threading.Lock(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_address[1])
    while True:
        try:
            word, status = pipe.recv()
        except EOFError:
            return
        if word != "count":
            server.mode, server.status = word, status
            if word == "pass":
                server.honest.set()
        pipe.send(server.lies if word == "count" else "done")


class Request(BaseHTTPRequestHandler):
    """One connection of the store's client."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        writes = self.command in ("POST", "PUT") and WRITES.search(self.path.partition("?")[0])
        mode, status = self.server.mode, self.server.status
        if not writes or not self.server.lying():
            self._answer(*self._forward(body))
        elif mode == "part":
            self._answer(*self._in_part(body))
        else:
            _, headers, _ = self._forward(body)
            if mode == "silence":
                self.server.honest.wait(60)
                self.close_connection = True
                return
            said = json.dumps({"error": REJECTED, "status": status}).encode()
            self._answer(status, [(n, v) for n, v in headers if n.lower() != "content-encoding"], said)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.target, timeout=60)
        try:
            own = {n: v for n, v in self.headers.items() if n.lower() not in ("host", "content-length", "connection")}
            connection.request(self.command, self.path, body, own)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _in_part(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        lines = body.splitlines(keepends=True)
        items = [lines[n : n + 2] for n in range(0, len(lines), 2)]
        status, headers, answer = self._forward(b"".join(line for item in items[::2] for line in item))
        if status != 200:
            return status, headers, answer
        told = iter(json.loads(answer)["items"])
        kept_back = {"index": {"status": 429, "error": REJECTED}}
        whole = [next(told) if n % 2 == 0 else kept_back for n in range(len(items))]
        return status, headers, json.dumps({"items": whole}).encode()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in DROPPED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
