"""A probe for a model: encode recorded frames, fit, and measure on held-out episodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lewm_models.card import ModelCard, StateProbeCard
from lewm_models.lewm import LeWM
from lewm_models.probe.fit import LabelledLatents, TooFewStates, fit_probe
from lewm_models.probe.network import StateProbe, StateSpace
from lewm_models.probe.quality import describe_probe
from lewm_models.recorded_sample import (
    Pieces,
    Progress,
    RecordedSample,
    encode_samples,
)

MAX_TRAINING_FRAMES, MAX_HELD_OUT_FRAMES = 10_000, 3_000
"""The most frames that a probe is fitted to, and that it is measured on."""


@dataclass(frozen=True)
class FittedProbe:
    """A probe, and what the card says about it."""

    network: StateProbe
    described: StateProbeCard

    def on_card(self, card: ModelCard) -> ModelCard:
        """The card with this probe."""
        return replace(card, probe=self.described)


def fit_probe_of_model(
    model: LeWM,
    card: ModelCard,
    pieces: Pieces,
    space: StateSpace,
    *,
    progress: Progress = lambda done, total: None,
) -> FittedProbe:
    """Fit a probe to the training episodes of recorded data. The model does not change.

    Args:
        model: in ``eval()`` mode, on any device.
        card: its card.
        pieces: recorded steps with states.
        space: the states.
        progress: called while frames are encoded.

    Raises:
        TooFewStates: there are too few frames with states.
        ValueError: there is only one episode, or the frames do not fit the model.
    """
    training, held_out = encode_samples(
        model,
        card,
        pieces,
        max_frames=(MAX_TRAINING_FRAMES, MAX_HELD_OUT_FRAMES),
        progress=progress,
    )
    return fit_probe_to_sample(training, held_out, space)


def fit_probe_to_sample(
    training: RecordedSample, held_out: RecordedSample, space: StateSpace
) -> FittedProbe:
    """Fit a probe to a sample of training episodes, and measure it on held-out ones.

    Raises:
        TooFewStates: there are too few frames with states.
    """
    labelled, judged = (_labelled(sample) for sample in (training, held_out))
    if not len(judged):
        raise TooFewStates("the held-out episodes have no frame with states")
    network = fit_probe(labelled, space)
    described = describe_probe(network, space, training=labelled, held_out=judged)
    return FittedProbe(network, described)


def _labelled(sample: RecordedSample) -> LabelledLatents:
    if sample.states is None:
        raise TooFewStates("the recording has no states")
    return LabelledLatents.finite(sample.latents, sample.states, sample.episodes)
