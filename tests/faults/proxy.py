"""A TCP proxy that hurts what goes through it. It runs in a process of its own, told what to do over a pipe.

``pass`` on · ``delay`` each piece by so many seconds · ``cut``: no connection lives, none is taken · ``freeze``: every
connection stays open and nothing moves, new ones are taken and starve (a peer whose cable is out, as far as a program
above TCP can do it: the kernel still acknowledges) · ``reset``: what is open ends with RST, new ones pass. A frozen
connection is reset when the freeze ends, as a peer that comes back knows nothing of it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Literal

from tests.faults.processes import CONTEXT, Child, begin

Mode = Literal["pass", "delay", "cut", "freeze", "reset"]
PIECE_BYTES = 65_536
HOST = "127.0.0.1"


class Proxy:
    """A port of our own in front of ``target``; always the same port."""

    def __init__(self, target: tuple[str, int], name: str) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._child: Child = begin(f"proxy of {name}", serve, theirs, target)
        theirs.close()
        self.port: int = self._pipe.recv()

    def set(self, mode: Mode, delay_s: float = 0.0) -> None:
        """Returns once it is so."""
        self._pipe.send((mode, delay_s))
        self._pipe.recv()

    def aim(self, target: tuple[str, int]) -> None:
        """Lead new connections elsewhere."""
        self._pipe.send(("aim", target))
        self._pipe.recv()

    def close(self) -> None:
        self._child.kill()
        self._pipe.close()


@dataclass
class State:
    target: tuple[str, int]
    mode: Mode = "pass"
    delay_s: float = 0.0
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    moving: asyncio.Event = field(default_factory=asyncio.Event)


def serve(pipe: Connection, target: tuple[str, int]) -> None:
    """The proxy's process."""
    asyncio.run(_serve(pipe, target))


async def _serve(pipe: Connection, target: tuple[str, int]) -> None:
    state, ended = State(target), asyncio.Event()
    state.moving.set()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(state, reader, writer)

    server = await asyncio.start_server(joined, HOST, 0, limit=PIECE_BYTES)
    asyncio.get_running_loop().add_reader(pipe.fileno(), lambda: _told(pipe, state, ended))
    pipe.send(server.sockets[0].getsockname()[1])
    await ended.wait()


def _told(pipe: Connection, state: State, ended: asyncio.Event) -> None:
    try:
        word, given = pipe.recv()
    except (EOFError, OSError):
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        ended.set()
        return
    if word == "aim":
        state.target = given
    else:
        _change(state, word, given)
    pipe.send("done")


def _change(state: State, mode: Mode, delay_s: float) -> None:
    if mode in ("cut", "reset") or state.mode == "freeze":
        for writer in list(state.open):
            _reset(writer)
    state.mode = "pass" if mode == "reset" else mode
    state.delay_s = delay_s
    if state.mode == "freeze":
        state.moving.clear()
    else:
        state.moving.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    with suppress(OSError):
        # A linger of no seconds makes closing send RST.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _join(state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    state.open.add(writer)
    far: asyncio.StreamWriter | None = None
    try:
        if state.mode == "cut":
            return
        await state.moving.wait()
        far_reader, far = await asyncio.open_connection(*state.target)
        state.open.add(far)
        pumps = [asyncio.create_task(_pump(state, *pair)) for pair in ((reader, far), (far_reader, writer))]
        _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in left:
            pump.cancel()
    except OSError:
        pass
    finally:
        for end in (writer, far):
            if end is not None:
                state.open.discard(end)
                _reset(end) if state.mode == "cut" else end.close()


async def _pump(state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(PIECE_BYTES):
            if state.delay_s:
                await asyncio.sleep(state.delay_s)
            await state.moving.wait()
            writer.write(piece)
            await writer.drain()
