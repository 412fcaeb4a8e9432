"""Looks a host's name up without holding anybody up."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import Future
from threading import Thread


class NameLookup:
    """Whether a name is resolved, asked on a thread of its own. Lives on the event loop.

    A name service may hang, and who asks it cannot be called back: so there is one lookup at most,
    however often and for however short a time it is waited for, and the process ends without it.
    """

    def __init__(self) -> None:
        self._asking: Future[None] | None = None

    async def done(self, host: str, port: int) -> None:
        """Wait until the name has been resolved, by a lookup that an earlier call may have begun.

        Raises:
            OSError: it cannot be.
        """
        if self._asking is None:
            self._asking = Future()
            self._asking.set_running_or_notify_cancel()  # who stops waiting does not cancel it
            Thread(target=_ask, args=(host, port, self._asking), name="lookup", daemon=True).start()
        asking = self._asking
        try:
            await asyncio.wrap_future(asking)
        finally:
            if asking.done():
                self._asking = None


def _ask(host: str, port: int, told: Future[None]) -> None:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except Exception as error:
        told.set_exception(error)
    else:
        told.set_result(None)
