"""What a public checkpoint lacks, from a recording: statistics and bounds of actions."""

from __future__ import annotations

from typing import Any

from lewm_models.card import MIN_ACTION_STD
from lewm_models.recordings.recording import (
    Recording,
    RecordingError,
    choose_action,
    choose_column,
)
from lewm_models.recordings.summary import Progress, Summary, summarise

CONSTANT_STD = 1.0
"""The divisor of the z-score of an action that is constant: it becomes 0."""


def summarise_for_import(
    recording: Recording,
    *,
    camera: str | None,
    action: str | None,
    progress: Progress | None = None,
) -> Summary:
    """The summary of the one camera and the one column of actions of an import.

    Raises:
        RecordingError: there are several and none is named, or the recording cannot be used.
    """
    contents, path = recording.contents, recording.path
    summary = summarise(
        recording,
        camera=choose_column(contents.cameras, camera, option="--camera", path=path).name,
        action=choose_action(contents, action, path).name,
        progress=progress,
    )
    assert summary.usable is not None  # one column of actions is chosen
    summary.usable.require_some(path)
    return summary


def action_fields(summary: Summary, block_width: int) -> dict[str, Any]:
    """The fields of a card about actions.

    Mean and deviation are those of all finite actions, as the field's code computes them. The
    bounds are robust quantiles, as `lewm data inspect` proposes them.

    Args:
        summary: of `summarise_for_import`.
        block_width: the numbers in one action block of the checkpoint.

    Raises:
        RecordingError: the checkpoint's blocks do not consist of actions like these.
    """
    [series] = summary.actions
    proposals = summary.proposals
    assert proposals is not None  # something can be used
    action_dim = len(series.dimensions)
    if block_width % action_dim:
        raise RecordingError(
            f"{summary.path}: {series.name!r} has {action_dim} numbers in each action, but the "
            f"checkpoint's action blocks have {block_width} numbers, which is no multiple of it; "
            "choose the actions that it was trained with by --action"
        )
    deviations = [dimension.deviation for dimension in series.dimensions]
    return {
        "action_dim": action_dim,
        "action_block": block_width // action_dim,
        "action_mean": [dimension.mean for dimension in series.dimensions],
        "action_std": [
            deviation if deviation >= MIN_ACTION_STD else CONSTANT_STD for deviation in deviations
        ],
        "action_low": list(proposals.action_low),
        "action_high": list(proposals.action_high),
        "provenance": {
            "action_statistics": {
                "recording": summary.path.resolve().name,
                "actions": series.name,
                "steps": summary.steps,
            }
        },
    }
