"""A server that speaks Redis' protocol on loopback and gives the replies that a test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

Command = Sequence[bytes]
Reply = Callable[[Command], bytes]


def bulk(value: bytes | None) -> bytes:
    """A value, or null, as Redis writes it."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def array(*items: bytes) -> bytes:
    """A list of encoded items."""
    return b"*%d\r\n" % len(items) + b"".join(items)


class ScriptedRedis:
    """Answers like a Redis without values, until ``replies`` says otherwise.

    ``replies`` gives the reply to each command, by its name in capitals. Used from several threads.
    """

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.port = 0
        self.values: dict[bytes, bytes] = {}

    @property
    def url(self) -> str:
        """Its URL. A client authenticates and selects a database first."""
        return f"redis://:secret@127.0.0.1:{self.port}/1"

    def mget(self, command: Command) -> bytes:
        """The right reply to an MGET."""
        return array(*(bulk(self.values.get(key)) for key in command[1:]))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the commands of one connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while header := await reader.readline():
                command = []
                for _ in range(int(header[1:])):
                    length = int((await reader.readline())[1:])
                    command.append((await reader.readexactly(length + 2))[:-2])
                writer.write(self._reply(command))
                await writer.drain()
        writer.close()

    def _reply(self, command: Command) -> bytes:
        name = command[0].decode().upper()
        if name in self.replies:
            return self.replies[name](command)
        if name == "MGET":
            return self.mget(command)
        if name == "SET":
            self.values[command[1]] = command[2]
        return b"+OK\r\n"


@contextmanager
def scripted_redis() -> Iterator[ScriptedRedis]:
    """The server, in a thread of its own."""
    redis = ScriptedRedis()
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        async with await asyncio.start_server(redis.serve, "127.0.0.1", 0) as server:
            redis.port = server.sockets[0].getsockname()[1]
            started.set()
            await stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    started.wait()
    try:
        yield redis
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
