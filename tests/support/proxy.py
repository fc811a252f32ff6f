"""A TCP proxy (to a Unix socket or a port) that delays, resets, swallows, holds, or cuts a connection at a word."""

import asyncio
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_PIECE_BYTES = 1 << 16
_ABORTIVE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Proxy:
    """Listens on a loopback port in a thread of its own; the attributes may be set from any thread."""

    def __init__(self, upstream: str | int) -> None:
        self._upstream = upstream
        self._connections: set[asyncio.StreamWriter] = set()
        self._is_ending = False
        self._loop = asyncio.new_event_loop()
        self._is_open = asyncio.Event()
        self.latency_seconds = 0.0  # of every piece, either way
        self.cut_at: bytes | None = None  # the next connection whose client sends this is cut, once
        self.silent_from: bytes | None = (
            None  # the next connection whose client sends this stays open and is dead, once
        )
        self._silent: set[asyncio.StreamWriter] = set()
        self.cuts_after = False  # whether the server still gets the piece
        self.answers_to_lose = 0  # so many answers are dropped, and their connections cut
        self.held_word: bytes | None = None  # answers with this word wait for `let_go`
        self._may_go = asyncio.Event()
        self.answer_to_swallow: bytes | None = None  # the next one that has this in it gets no further
        self.port = 0

    def __enter__(self) -> Self:
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        listening.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """RST to every client."""
        self._loop.call_soon_threadsafe(self._reset)

    def swallow(self) -> None:
        """A partition: connections stay open and nothing gets through until `pass_on`."""
        self._loop.call_soon_threadsafe(self._is_open.clear)

    def pass_on(self) -> None:
        """The end of a partition: what was swallowed arrives late."""
        self._loop.call_soon_threadsafe(self._is_open.set)

    def let_go(self) -> None:
        """Answers that were held arrive."""
        self._loop.call_soon_threadsafe(self._may_go.set)

    def _reset(self) -> None:
        for client in self._connections:
            _abort(client)

    def _run(self, listening: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._is_open.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        self._loop.run_forever()
        server.close()
        self._is_ending = True
        self._turn()  # whoever has just been accepted has no transport yet that would close its socket
        while tasks := asyncio.all_tasks(self._loop):
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.wait(tasks))
        for client in self._connections:  # those that have got no further than the door
            client.transport.abort()
        self._turn()  # until their sockets are closed

    def _turn(self) -> None:
        for _ in range(3):
            self._loop.run_until_complete(asyncio.sleep(0))

    async def _connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._connections.add(to_client)
        try:
            await self._is_open.wait()
            from_server, to_server = await self._open()
        except OSError:  # the server is away
            _abort(to_client)
            self._connections.discard(to_client)
            return
        ways = [
            asyncio.ensure_future(self._carry(from_client, to_server, to_client=to_client)),
            asyncio.ensure_future(self._carry(from_server, to_client, to_client=to_client)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (to_server, to_client):
                writer.transport.abort() if self._is_ending else writer.close()
            self._connections.discard(to_client)
            self._silent.discard(to_client)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, int):
            return await asyncio.open_connection("127.0.0.1", self._upstream)
        return await asyncio.open_unix_connection(self._upstream)

    def _is_dead(self, to_client: asyncio.StreamWriter, sent: bytes) -> bool:
        if self.silent_from is not None and self.silent_from in sent:
            self.silent_from = None
            self._silent.add(to_client)
        return to_client in self._silent

    def _is_to_be_cut(self, sent: bytes) -> bool:
        if self.cut_at is None or self.cut_at not in sent:
            return False
        self.cut_at = None
        return True

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, to_client: asyncio.StreamWriter
    ) -> None:
        """One direction, until either end closes."""
        is_clients = target is not to_client
        try:
            while piece := await source.read(_PIECE_BYTES):
                await self._wait_for_leave(piece, is_clients=is_clients)
                if self._is_dead(to_client, piece if is_clients else b""):
                    continue
                if not is_clients and self.answers_to_lose:
                    self.answers_to_lose -= 1
                    return
                if not is_clients and self._swallows(piece):
                    continue
                is_cut = self._is_to_be_cut(piece if is_clients else b"")
                if not is_cut or self.cuts_after:
                    target.write(piece)
                    await target.drain()
                if is_cut:
                    return
        except OSError:
            return

    async def _wait_for_leave(self, piece: bytes, *, is_clients: bool) -> None:
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        await self._is_open.wait()
        if not is_clients and self.held_word is not None and self.held_word in piece:
            await self._may_go.wait()

    def _swallows(self, answer: bytes) -> bool:
        if self.answer_to_swallow is None or self.answer_to_swallow not in answer:
            return False
        self.answer_to_swallow = None
        return True


def _abort(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTIVE)
    writer.transport.abort()
