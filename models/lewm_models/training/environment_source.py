"""Preparing data for training by recording episodes in an environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm_models.config import LeWMConfig
from lewm_models.cores import usable_cores
from lewm_models.environments.environment import SEED_COUNT, Environment, RecordedEpisode
from lewm_models.environments.registry import find_environment
from lewm_models.preprocessing import resize
from lewm_models.training.parts import PartsDone, do_parts, forget_parts
from lewm_models.training.preparation import (
    SAVE_PERIOD_S,
    Message,
    Progress,
    check_disk,
    open_same,
)
from lewm_models.training.prepared import PreparedData, frame_count

EPISODES_PER_PART = 8
"""The episodes that are recorded by one call where frames take long. Each part has a seed."""

MIN_POOL_S = 20.0
"""Less work than this is done in this process: others take seconds to start."""


@dataclass(frozen=True)
class EnvironmentSource:
    """Episodes that are recorded in an environment; equal ones give the same bytes.

    Attributes:
        environment: its name, or a factory.
        episodes: the number of episodes.
        steps: the actions of each.
        image_size: the side of the frames in pixels.
        seed: of the episodes.
        frame_every: the steps from one frame to the next.
    """

    environment: str
    episodes: int
    steps: int
    image_size: int
    seed: int
    frame_every: int = 1

    @classmethod
    def for_model(
        cls, environment: str, *, episodes: int, steps: int, seed: int, config: LeWMConfig
    ) -> EnvironmentSource:
        """Episodes for a model: all frames where they cost little, else one for each action block.

        Raises:
            ValueError: the environment is unknown.
        """
        has_fast_frames = find_environment(environment).has_fast_frames
        return cls(
            environment=environment,
            episodes=episodes,
            steps=steps,
            image_size=config.image_size,
            seed=seed,
            frame_every=1 if has_fast_frames else config.action_block,
        )

    def prepare(self, folder: Path, progress: Progress, announce: Message) -> PreparedData:
        """Record the episodes, or open the data in the folder if they are the same.

        Where frames take long, several processes record, and a recording that was interrupted
        continues.

        Raises:
            ValueError: the environment is unknown, or the folder holds other data.
        """
        made_from = self._made_from()
        if (data := open_same(folder, made_from)) is not None:
            return data
        environment = find_environment(self.environment)
        if environment.has_fast_frames:
            data = self._create(folder, made_from, environment, announce)
            recorded = environment.record(self.episodes, self.steps, self.seed, self.frame_every)
            for number, episode in enumerate(recorded):
                store_episode(data, number, episode)
                progress(number + 1, self.episodes)
        else:
            data = self._record_parts(folder, made_from, environment, progress, announce)
        data.finish(folder)
        forget_parts(folder)
        return PreparedData.open(folder)

    def _made_from(self) -> dict[str, Any]:
        made_from = asdict(self)
        if self.frame_every == 1:
            del made_from["frame_every"]  # as in data of earlier versions
        return made_from

    def _create(
        self,
        folder: Path,
        made_from: Mapping[str, Any],
        environment: Environment,
        announce: Message,
    ) -> PreparedData:
        frames = self.episodes * frame_count(self.steps + 1, self.frame_every)
        check_disk(folder, frames, self.image_size, announce)
        return PreparedData.create(
            folder,
            made_from,
            steps=[self.steps + 1] * self.episodes,
            episodes=range(self.episodes),
            image_size=self.image_size,
            action_dim=environment.action_dim,
            state_dim=environment.state_dim,
        )

    def _record_parts(
        self,
        folder: Path,
        made_from: Mapping[str, Any],
        environment: Environment,
        progress: Progress,
        announce: Message,
    ) -> PreparedData:
        done = PartsDone.read(folder, made_from)
        if done is None:
            data = self._create(folder, made_from, environment, announce)
            data.flush()
            done = PartsDone(folder, made_from)
            done.save()
        else:
            data = PreparedData.reopen(folder, made_from, writable=True)

        def note(number: int) -> None:
            done.numbers.add(number)
            progress(sum(len(self.episodes_of(part)) for part in done.numbers), self.episodes)
            if time.monotonic() - done.saved > SAVE_PERIOD_S:
                data.flush()
                done.save()

        parts = range(-(-self.episodes // EPISODES_PER_PART))
        missing = [number for number in parts if number not in done.numbers]
        started = time.monotonic()
        for number in missing[:1]:
            _Recording(self, folder, made_from)(number)
            note(number)
        seconds_left = (time.monotonic() - started) * (len(missing) - 1)
        processes = min(usable_cores(), len(missing) - 1)
        for number in do_parts(
            _Recording(self, folder, made_from),
            missing[1:],
            processes=processes if seconds_left > MIN_POOL_S else 1,
            name=f"--env {self.environment}",
        ):
            note(number)
        return data

    def episodes_of(self, part: int) -> range:
        """The episodes of a part."""
        first = part * EPISODES_PER_PART
        return range(first, min(first + EPISODES_PER_PART, self.episodes))


@dataclass(frozen=True)
class _Recording:
    """Records the part of this number."""

    source: EnvironmentSource
    folder: Path
    made_from: Mapping[str, Any]

    @cached_property
    def environment(self) -> Environment:
        return find_environment(self.source.environment)

    @cached_property
    def data(self) -> PreparedData:
        return PreparedData.reopen(self.folder, self.made_from, writable=True)

    def __call__(self, number: int) -> None:
        source, numbers = self.source, self.source.episodes_of(number)
        seed = int(np.random.default_rng((source.seed, number)).integers(SEED_COUNT))
        recorded = self.environment.record(len(numbers), source.steps, seed, source.frame_every)
        for episode_number, episode in zip(numbers, recorded, strict=True):
            store_episode(self.data, episode_number, episode)


def store_episode(data: PreparedData, number: int, episode: RecordedEpisode) -> None:
    """Write an episode into the piece of this number.

    Raises:
        ValueError: the environment recorded another number of steps or frames.
    """
    rows, frames = data.rows(number), data.frame_indices(number)
    recorded = len(episode.states), len(episode.actions), len(episode.frames)
    if recorded != (expected := (len(rows), len(rows) - 1, len(frames))):
        raise ValueError(
            f"episode {number}: expected {expected} states, actions and frames, got {recorded}"
        )
    assert data.states is not None
    data.actions[rows.start : rows.stop - 1] = episode.actions
    data.states[rows.start : rows.stop] = episode.states
    resized = resize(torch.from_numpy(np.ascontiguousarray(episode.frames)), data.image_size)
    data.frames.write(frames.start, resized.numpy())
