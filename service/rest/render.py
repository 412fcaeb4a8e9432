"""Responses as JSON bytes."""

import base64
from typing import Any

import numpy as np
import orjson

from service.access import Response
from service.responses import EncodeResponse


def dumps(document: object) -> bytes:
    """JSON of dictionaries, dataclasses and arrays; strided arrays take the slow way."""
    return orjson.dumps(document, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY)


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
