"""Responses as JSON bytes."""

import base64
from typing import Any

import numpy as np
import orjson

from lewm_serve.access import Response
from lewm_serve.responses import EncodeResponse, PlanResponse, PredictResponse


def dumps(document: object) -> bytes:
    """JSON of dictionaries, dataclasses and arrays; strided arrays take the slow way."""
    return orjson.dumps(document, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY)


def values_of(response: Response) -> int:
    """How many numbers the response's arrays hold."""
    match response:
        case EncodeResponse():
            return sum(latent.latent.size for latent in response.latents)
        case PredictResponse():
            return response.latents.size
        case PlanResponse():
            trajectory = response.trajectory
            return response.actions.size + (0 if trajectory is None else trajectory.size)


def _base64(latent: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(latent.astype("<f4").tobytes()).decode("ascii")


def render(response: Response, encoding: str = "float") -> bytes:
    """The response's fields in their order; `encoding` is that of encoded latents."""
    document = dict(vars(response))
    if isinstance(response, EncodeResponse) and encoding == "base64":
        document["latents"] = [
            vars(latent) | {"latent": _base64(latent.latent)} for latent in response.latents
        ]
    if document.get("trajectory", ...) is None:
        del document["trajectory"]
    return dumps(document)
