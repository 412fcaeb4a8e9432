"""All measures of a model on recorded data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lewm_models.checkpoint import Checkpoint
from lewm_models.judging.latent_space import MIN_SIGREG_FRAMES, latent_measures, probe_measures
from lewm_models.judging.measure import Measure
from lewm_models.judging.prediction import prediction_measures
from lewm_models.judging.recovery import Plan, recovery_measures
from lewm_models.judging.surprise import surprise_measures
from lewm_models.probe.fit import TooFewStates
from lewm_models.probe.network import StateProbe, StateSpace
from lewm_models.probe.run import fit_probe_to_sample
from lewm_models.recorded_sample import Pieces, RecordedSample, encode_samples

MAX_TRAINING_FRAMES, MAX_HELD_OUT_FRAMES = 8_000, 4_000
"""The most frames that baselines and a probe are fitted to, and that a model is judged on."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and with how much of it is done and there is in all."""


@dataclass(frozen=True)
class Judgement:
    """The measures of a model on held-out episodes of recorded data.

    Attributes:
        model: the model's name.
        version: its version.
        held_out_episodes: how many episodes it was judged on.
        held_out_frames: how many of their frames.
        training_frames: the frames of other episodes that baselines were fitted to.
        probe: whose probe read the states: "model" the model's own, "fitted" one that was fitted to
            these data; None without one.
        measures: in the order of a report.
        notes: what could not be measured, and why, one sentence each.
    """

    model: str
    version: str
    held_out_episodes: int
    held_out_frames: int
    training_frames: int
    probe: str | None
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The judgement for programs; measures by name."""
        return {
            "model": self.model,
            "model_version": self.version,
            "held_out_episodes": self.held_out_episodes,
            "held_out_frames": self.held_out_frames,
            "training_frames": self.training_frames,
            "probe": self.probe,
            "notes": list(self.notes),
            "measures": {measure.name: measure.to_json() for measure in self.measures},
        }


def judge(
    checkpoint: Checkpoint,
    pieces: Pieces,
    *,
    space: StateSpace | None,
    plan: Plan,
    plans: int,
    progress: Progress = lambda what, done, total: None,
) -> Judgement:
    """Judge a model on the held-out episodes of recorded data, which are chosen as in training.

    Args:
        checkpoint: the model, on any device.
        pieces: the recorded steps.
        space: the states; None: there are none.
        plan: the model's search.
        plans: how many plans are made for each distance of goals.
        progress: see `Progress`.

    Raises:
        ValueError: there is only one episode, or the data do not fit the model.
    """
    model, card = checkpoint.model, checkpoint.card
    training, held_out = encode_samples(
        model,
        card,
        pieces,
        max_frames=(MAX_TRAINING_FRAMES, MAX_HELD_OUT_FRAMES),
        progress=lambda done, total: progress("encoding frames", done, total),
    )
    notes: list[str] = []
    probe, probe_of = _find_probe(checkpoint, training, held_out, space, notes)
    horizon = card.solver.horizon
    measures = prediction_measures(model, training=training, held_out=held_out, horizon=horizon)
    for blocks in sorted({1, horizon}):
        found = recovery_measures(
            model,
            held_out,
            plan,
            blocks=blocks,
            plans=plans,
            action_dim=card.config.action_dim,
            probe=probe,
            space=space,
            progress=lambda done, total, blocks=blocks: progress(  # type: ignore[misc]
                f"planning {blocks} blocks ahead", done, total
            ),
        )
        if not found:
            notes.append(f"No held-out episode has goals {blocks} blocks ahead: no recovery.")
        measures += found
    measures += latent_measures(held_out, checkpoint.distance)
    if probe is not None and space is not None:
        measures += probe_measures(probe, space, training=training, held_out=held_out)
    measures += surprise_measures(
        model, held_out, calibration=card.calibration, reference=checkpoint.reference
    )
    if card.calibration is None:
        notes.append("The model is not calibrated: no alarms are counted.")
    if not any(measure.name == "sigreg" for measure in measures):
        notes.append(f"SIGReg needs {MIN_SIGREG_FRAMES} held-out frames, one action block apart.")
    if checkpoint.distance is None:
        notes.append("The model has no learned distance.")
    return Judgement(
        model=card.name,
        version=checkpoint.version,
        held_out_episodes=len(set(held_out.episodes.tolist())),
        held_out_frames=len(held_out),
        training_frames=len(training),
        probe=probe_of,
        measures=tuple(measures),
        notes=tuple(notes),
    )


def _find_probe(
    checkpoint: Checkpoint,
    training: RecordedSample,
    held_out: RecordedSample,
    space: StateSpace | None,
    notes: list[str],
) -> tuple[StateProbe | None, str | None]:
    """The model's probe if it reads these states, else one that is fitted here."""
    if space is None:
        notes.append("The data have no states: nothing is measured in their units.")
        return None, None
    described = checkpoint.card.probe
    if described is not None and (described.states, described.periods) == (
        space.names,
        space.periods,
    ):
        return checkpoint.probe, "model"
    try:
        return fit_probe_to_sample(training, held_out, space).network, "fitted"
    except TooFewStates as error:
        notes.append(f"No probe: {error}.")
        return None, None
