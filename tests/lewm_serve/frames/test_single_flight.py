"""Work wanted by several is done once, and nobody fails with a stranger."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lewm_serve.frames.latent_cache import GROUP, SingleFlight


class Workshop:
    """Makes and keeps latents when it is let, and counts."""

    def __init__(self) -> None:
        self.flights = SingleFlight()
        self.made: list[list[str]] = []
        self.kept: dict[str, Tensor] = {}
        self.open = asyncio.Event()
        self.broken = False

    async def make(self, keys: Sequence[str]) -> Sequence[Tensor]:
        self.made.append(list(keys))
        await self.open.wait()
        if self.broken:
            self.broken = False
            raise ValueError("broken")
        latents = [torch.tensor([float(key)]) for key in keys]
        self.kept |= zip(keys, latents, strict=True)
        return latents

    def ask(self, *keys: str) -> asyncio.Task[dict[str, Tensor]]:
        return asyncio.create_task(self.flights.run(keys, self.kept.get, self.make))


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


async def turns(count: int = 5) -> None:
    """Let every task go as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_in_the_air_is_made_once(workshop: Workshop) -> None:
    asking = [workshop.ask("1", "2"), workshop.ask("2", "3"), workshop.ask("3", "1")]
    await turns()
    workshop.open.set()
    answers = await asyncio.gather(*asking)
    assert sorted(key for keys in workshop.made for key in keys) == ["1", "2", "3"]
    for answer, keys in zip(answers, ("12", "23", "31"), strict=True):
        assert {key: value.item() for key, value in answer.items()} == {k: float(k) for k in keys}


async def test_what_has_landed_meanwhile_is_not_made(workshop: Workshop) -> None:
    workshop.kept["1"] = torch.tensor([10.0])
    workshop.open.set()
    answer = await workshop.ask("1", "2")
    assert (answer["1"].item(), answer["2"].item()) == (10, 2)
    assert workshop.made == [["2"]]


async def test_the_first_goes_away(workshop: Workshop) -> None:
    first, second, third = (workshop.ask("1") for _ in range(3))
    await turns()
    first.cancel()
    await turns()
    assert workshop.made == [["1"], ["1"]]  # once more, for both that are left
    workshop.open.set()
    assert (await second)["1"].item() == (await third)["1"].item() == 1
    assert first.cancelled()


async def test_a_follower_goes_away(workshop: Workshop) -> None:
    first, second = workshop.ask("1"), workshop.ask("1")
    await turns()
    second.cancel()
    await turns()
    workshop.open.set()
    assert (await first)["1"].item() == 1
    assert workshop.made == [["1"]]


async def test_the_first_fails_alone(workshop: Workshop) -> None:
    workshop.broken = True
    first, second = workshop.ask("1", "2"), workshop.ask("2")
    await turns()
    workshop.open.set()
    with pytest.raises(ValueError, match="broken"):
        await first
    assert (await second)["2"].item() == 2
    assert workshop.made == [["1", "2"], ["2"]]


async def test_all_fail_and_none_hangs(workshop: Workshop) -> None:
    async def fail(_: Sequence[str]) -> Sequence[Tensor]:
        await workshop.open.wait()
        raise ValueError("broken")

    asking = [
        asyncio.create_task(workshop.flights.run(["1"], workshop.kept.get, fail)) for _ in range(3)
    ]
    await turns()
    workshop.open.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError] * 3


async def test_a_large_request_holds_only_what_it_makes(workshop: Workshop) -> None:
    large = workshop.ask(*map(str, range(3 * GROUP)))
    await turns()
    small = workshop.ask(str(2 * GROUP))
    await turns()
    assert [len(keys) for keys in workshop.made] == [GROUP, 1]
    workshop.open.set()
    assert set(await small) == {str(2 * GROUP)}
    assert len(await large) == 3 * GROUP
