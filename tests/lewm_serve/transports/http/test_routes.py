"""The rendering of metrics takes a limited share of the event loop's time."""

import asyncio
import itertools
import time

from lewm_serve.transports.http.routes import RENDERING_SHARE, SharedRendering

RENDERING_S = 0.02


class SlowText:
    """A text that takes processor time, and says how often it was rendered."""

    def __init__(self) -> None:
        self.count = 0

    def render(self) -> bytes:
        """Render the text."""
        self.count += 1
        end = time.thread_time() + RENDERING_S
        while time.thread_time() < end:
            pass
        return b"%d" % self.count


async def test_a_lone_question_is_answered_at_once_with_a_new_text() -> None:
    slow = SlowText()
    shared = SharedRendering(slow.render)
    assert await shared.render() == b"1"
    await asyncio.sleep(2 * RENDERING_S / RENDERING_SHARE)
    question = asyncio.create_task(shared.render())
    for _ in range(10):
        await asyncio.sleep(0)  # lets what is due run, without a wait
    assert slow.count == 2
    assert await question == b"2"


async def test_many_who_ask_share_one_rendering_that_is_newer_than_the_question() -> None:
    slow = SlowText()
    shared = SharedRendering(slow.render)
    assert await asyncio.gather(*(shared.render() for _ in range(8))) == [b"1"] * 8
    assert await asyncio.gather(*(shared.render() for _ in range(8))) == [b"2"] * 8


async def test_renderings_take_a_limited_share_of_the_time() -> None:
    slow = SlowText()
    shared = SharedRendering(slow.render)
    stop = time.monotonic() + 1.0

    async def ask_without_pause() -> None:
        for last in itertools.count():
            if time.monotonic() > stop:
                return
            assert int(await shared.render()) > last

    await asyncio.gather(*(ask_without_pause() for _ in range(8)))
    assert slow.count <= 2 + 1.0 / (RENDERING_S / RENDERING_SHARE)


async def test_one_who_stops_waiting_does_not_stop_the_others() -> None:
    slow = SlowText()
    shared = SharedRendering(slow.render)
    await shared.render()
    impatient, patient = (asyncio.create_task(shared.render()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == b"2"
