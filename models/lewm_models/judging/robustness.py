"""How predictions and plans change when the camera is disturbed, and whether that is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.checkpoint import Checkpoint
from lewm_models.evaluation.faults import (
    Fault,
    camera_shift,
    defocus,
    exposure,
    noise,
    occlusion,
)
from lewm_models.judging.prediction import evenly_spaced, roll_out
from lewm_models.judging.recovery import Plan
from lewm_models.judging.surprise import alarms
from lewm_models.recorded_sample import Pieces, RecordedSample, encode_sample, split_pieces

SEED = 0

PICTURE_FAULTS: Mapping[str, Sequence[tuple[str, Fault]]] = {
    "noise": [(f"{std} grey levels", partial(noise, std=std)) for std in (10, 30, 80)],
    "blur": [(f"{px} px of 224", partial(defocus, pixels=px)) for px in (4, 8, 16)],
    "occlusion": [(f"{px} px of 224", partial(occlusion, side=px)) for px in (20, 40, 80)],
    "exposure": [(f"times {x}", partial(exposure, factor=x)) for x in (0.8, 0.6, 0.4)],
    "shift": [(f"{px} px of 224", partial(camera_shift, pixels=px)) for px in (2, 4, 8)],
}
"""Faults of pictures, each at three strengths."""

DROPPED_SHARES = (0.1, 0.3, 0.6)
"""The share of the frames that do not arrive: the newest that did is used."""

REPEATED_BLOCKS = (2, 3, 5)
"""For how many action blocks a camera repeats the same frame."""

MAX_FRAMES = 1000
"""The most held-out frames that are disturbed, about."""


@dataclass(frozen=True)
class Disturbance:
    """What one disturbance does to a model.

    Attributes:
        kind: such as "noise"; "none" for frames as they were recorded.
        strength: how strong it is, in words; empty for "none".
        level: 1 to 3, its strength among those of its kind; 0 for "none".
        prediction_error: the squared distance of the latent that is predicted one block after a
            disturbed frame from the recorded one, divided by the variance of the latents.
        action_error: root mean square difference of the mean action of a plan, which begins at a
            disturbed frame, from that of the logged actions, in deviations of the actions.
        noticed: the share of the disturbed frames that the monitor calls anomalous, of all
            frames for "none"; None without a calibration.
    """

    kind: str
    strength: str
    level: int
    prediction_error: float
    action_error: float
    noticed: float | None


def disturb(
    checkpoint: Checkpoint,
    pieces: Pieces,
    *,
    plan: Plan,
    plans: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Disturbance]:
    """Disturb held-out frames in several ways, each at three strengths.

    Plans begin at disturbed frames; their goals are as recorded, one action block later.

    Args:
        checkpoint: the model, on any device.
        pieces: the recorded steps.
        plan: the model's search.
        plans: how many plans are made for each disturbance.
        progress: called after each disturbance with the number done and in all.

    Raises:
        ValueError: there is only one episode, or the data do not fit the model.
    """
    _, numbers = split_pieces(pieces)
    encode = partial(
        encode_sample, checkpoint.model, checkpoint.card, numbers=numbers, max_frames=MAX_FRAMES
    )
    recorded = encode(pieces)
    cases = list(_cases(recorded, lambda fault: encode(_FaultyPieces(pieces, fault)).latents))
    found = []
    for kind, strength, level, latents in cases:
        seen = replace(recorded, latents=latents())
        found.append(
            Disturbance(
                kind,
                strength,
                level,
                *_errors(checkpoint, recorded, seen.latents, plan, plans),
                noticed=_noticed(checkpoint, recorded, seen),
            )
        )
        progress(len(found), len(cases))
    return found


Case = tuple[str, str, int, Callable[[], Tensor]]


def _cases(recorded: RecordedSample, encode: Callable[[Fault], Tensor]) -> Iterator[Case]:
    """Kind, strength and level of each disturbance, and what makes its latents (N, D)."""
    yield "none", "", 0, lambda: recorded.latents
    for kind, strengths in PICTURE_FAULTS.items():
        for level, (strength, fault) in enumerate(strengths, 1):
            yield kind, strength, level, partial(encode, fault)
    for level, share in enumerate(DROPPED_SHARES, 1):
        source = _dropped(recorded, share)
        yield "dropped frames", f"{share:.0%} of them", level, partial(_at, recorded, source)
    for level, blocks in enumerate(REPEATED_BLOCKS, 1):
        source = np.arange(len(recorded)) - recorded.before % blocks
        yield "repeated frames", f"{blocks} blocks long", level, partial(_at, recorded, source)


def _at(recorded: RecordedSample, rows: NDArray[np.int64]) -> Tensor:
    return recorded.latents[torch.from_numpy(rows)]


def _dropped(recorded: RecordedSample, share: float) -> NDArray[np.int64]:
    """For each row, the newest row of its sequence that arrived. The first one always does."""
    arrived = np.random.default_rng(SEED).random(len(recorded)) >= share
    arrived |= recorded.before == 0
    rows: NDArray[np.int64] = np.maximum.accumulate(np.where(arrived, np.arange(len(recorded)), 0))
    return rows


@dataclass(frozen=True)
class _FaultyPieces:
    """The same pieces, seen by a disturbed camera; see `Pieces`."""

    pieces: Pieces
    fault: Fault

    @property
    def episodes(self) -> NDArray[np.int64]:
        return self.pieces.episodes

    @property
    def steps(self) -> NDArray[np.int64]:
        return self.pieces.steps

    @property
    def frame_every(self) -> int:
        return self.pieces.frame_every

    def read_frames(self, piece: int, steps: NDArray[np.int64]) -> Tensor:
        frames = self.pieces.read_frames(piece, steps)
        generator = torch.Generator().manual_seed(SEED + (piece << 20) + int(steps[0]))
        return self.fault(frames, generator)

    def read_actions(self, piece: int) -> NDArray[np.float32]:
        return self.pieces.read_actions(piece)

    def read_states(self, piece: int) -> NDArray[np.float32] | None:
        return self.pieces.read_states(piece)


def _errors(
    checkpoint: Checkpoint, recorded: RecordedSample, seen: Tensor, plan: Plan, plans: int
) -> tuple[float, float]:
    """The prediction error and the action error, from latents (N, D) as they are seen."""
    rows = recorded.rows_before(1)
    ends = recorded.latents[torch.from_numpy(rows + 1)]
    starts, blocks = seen[torch.from_numpy(rows)], recorded.blocks_from(rows, 1)
    predicted = roll_out(checkpoint.model, starts, blocks)[:, 0]
    prediction_error = float((predicted - ends).square().sum(dim=1).mean()) / recorded.variance

    action_dim = checkpoint.card.config.action_dim
    chosen = evenly_spaced(rows, plans)
    squares = []
    for number, row in enumerate(chosen.tolist()):
        planned = plan(seen[row], recorded.latents[row + 1], blocks=1, seed=number)
        difference = (planned - recorded.blocks[row, None]).reshape(-1, action_dim).mean(dim=0)
        squares.append(float(difference.square().mean()))
    return prediction_error, float(np.sqrt(np.mean(squares)))


def _noticed(
    checkpoint: Checkpoint, recorded: RecordedSample, seen: RecordedSample
) -> float | None:
    """The share of the disturbed frames, or of all if none is, that any score calls anomalous."""
    calibration = checkpoint.card.calibration
    if calibration is None:
        return None
    rows, is_alarm = alarms(checkpoint.model, seen, calibration, checkpoint.reference)
    is_disturbed = (seen.latents != recorded.latents).any(dim=1).numpy()[rows]
    chosen = is_alarm[is_disturbed] if is_disturbed.any() else is_alarm
    return float(chosen.mean()) if len(chosen) else None
