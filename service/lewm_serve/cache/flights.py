"""Work that several requests want at the same moment, done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from torch import Tensor

GROUP = 32
"""Keys that one request holds at once. A request that wants one of them waits for the whole group,
which is as much as the engine encodes in one turn; it must not wait for a request of hundreds."""

Find = Callable[[str], Tensor | None]
Make = Callable[[Sequence[str]], Awaitable[Sequence[Tensor]]]


class Flights:
    """Who makes what just now. Lives on the event loop.

    The first request that wants a key makes it, those that come meanwhile wait for it. Where the
    first fails or goes away, one of the others makes it anew: nobody fails with a stranger.
    """

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Future[Tensor | None]] = {}

    async def run(self, keys: Sequence[str], find: Find, make: Make) -> dict[str, Tensor]:
        """The latents of keys: found, made by others, or made here, `GROUP` at a time.

        ``find`` looks where a finished flight leaves its result; ``make`` turns keys into latents
        in their order, and what it raises is raised here.
        """
        landed: dict[str, Tensor] = {}
        left = list(keys)
        while left:
            for key in left:
                latent = find(key)
                if latent is not None:
                    landed[key] = latent
            left = [key for key in left if key not in landed]
            mine = [key for key in left if key not in self._flights][:GROUP]
            if mine:
                landed |= await self._lead(mine, make)
            elif left:
                landed |= await self._follow(left[0])
            left = [key for key in left if key not in landed]
        return landed

    async def _lead(self, keys: list[str], make: Make) -> dict[str, Tensor]:
        loop = asyncio.get_running_loop()
        flights = {key: loop.create_future() for key in keys}
        self._flights |= flights
        made: dict[str, Tensor] = {}
        try:
            made |= zip(keys, await make(keys), strict=True)
            return made
        finally:
            for key, flight in flights.items():
                del self._flights[key]
                flight.set_result(made.get(key))

    async def _follow(self, key: str) -> dict[str, Tensor]:
        """Wait for another's flight: its latent, or nothing where it was given up."""
        flight = self._flights[key]
        await asyncio.wait({flight})  # which leaves the flight alone when this request goes away
        latent = flight.result()
        return {} if latent is None else {key: latent}
