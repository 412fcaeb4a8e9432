"""The last check of an answer: no number that is not finite leaves the server.

Weights, statistics and latents are checked where they come in. This check finds what gets past
that, such as a roll-out that overflows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lewm_serve.api.requests import Frame
from lewm_serve.errors import FieldProblem, InvalidRequest, NonFiniteResult


def require_finite(
    name: str, values: NDArray[np.floating] | float, *, frames: Iterable[tuple[str, Frame]]
) -> None:
    """Refuse an answer in which these values are not finite.

    Args:
        name: what the values are, for the error.
        values: a part of the answer.
        frames: the request's frames, each with its path. Latents among them are the client's own
            numbers, so they are blamed.

    Raises:
        InvalidRequest: `not_finite`, if the client sent latents.
        NonFiniteResult: it sent none.
    """
    if np.isfinite(values).all():
        return
    problems = [
        FieldProblem(
            field=f"{field}.latent",
            code="not_finite",
            received=f"numbers up to {np.abs(frame.latent).max():g}",
            expected=f"a latent from which the model computes {name} that are finite",
        )
        for field, frame in frames
        if frame.latent is not None
    ]
    raise InvalidRequest.of(*problems) if problems else NonFiniteResult(name)
