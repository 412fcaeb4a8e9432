"""Arrays of numbers as request fields: nested lists in JSON, arrays over gRPC, float32 after.

What is refused: ragged or wrongly nested lists, empty axes, booleans and strings, NaN and
infinities, numbers beyond float32.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Annotated, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from lewm_serve.errors import shorten

LARGEST = float(np.finfo(np.float32).max)

FloatArray = NDArray[np.float32]


def refusal(code: str, expected: str, received: str | None = None, at: str = "") -> Exception:
    """A validation error with the service's own code.

    `received` replaces the description of the field's value; `at` continues the field's path.
    """
    context: dict[str, Any] = {"expected": expected, "at": at}
    if received is not None:
        context["received"] = received
    return PydanticCustomError(cast(Any, code), "refused", context)


def _path(flat_index: int, shape: Sequence[int]) -> str:
    """The path of an element by its row-major index: `[2][0]`."""
    return "".join(f"[{int(i)}]" for i in np.unravel_index(flat_index, shape)) if shape else ""


def _first(items: Sequence[object], matches: Callable[[object], bool]) -> int:
    return next(index for index, item in enumerate(items) if matches(item))


def _from_lists(value: object, rank: int) -> NDArray[np.float64]:
    """Nested lists, opened level by level: every level must hold lists of one length."""
    flat: list[Any] = [value]
    shape: list[int] = []
    for _ in range(rank):
        if set(map(type, flat)) != {list}:
            index = _first(flat, lambda item: type(item) is not list)
            code = "shape_mismatch" if shape else "wrong_type"
            raise refusal(code, "a list", shorten(flat[index]), _path(index, shape))
        lengths = list(map(len, flat))
        if len(set(lengths)) > 1:
            index = next(i for i, length in enumerate(lengths) if length != lengths[0])
            expected, received = (
                f"{lengths[0]} items like the first",
                f"{lengths[index]} items",
            )
            raise refusal("shape_mismatch", expected, received, _path(index, shape))
        if lengths[0] == 0:
            raise refusal("shape_mismatch", "at least one item", "[]", _path(0, shape))
        shape.append(lengths[0])
        flat = list(chain.from_iterable(flat))
    if not set(map(type, flat)) <= {int, float}:
        index = _first(flat, lambda item: type(item) not in (int, float))
        code = "shape_mismatch" if type(flat[index]) is list else "wrong_type"
        raise refusal(code, "a number", shorten(flat[index]), _path(index, shape))
    try:
        return np.array(flat, dtype=np.float64).reshape(shape)
    except OverflowError:
        raise refusal("out_of_range", f"numbers within ±{LARGEST:.2e}") from None


def to_float32(value: object, rank: int) -> FloatArray:
    """Nested lists or an array of the given rank as a finite float32 array, C-contiguous."""
    if isinstance(value, np.ndarray):
        if value.ndim != rank or value.size == 0:
            raise refusal("shape_mismatch", f"{rank} axes, none of them empty")
        array: NDArray[Any] = value
    else:
        array = _from_lists(value, rank)
    finite = np.isfinite(array)
    if not finite.all():
        index = int(np.argmin(finite))
        at = _path(index, array.shape)
        raise refusal("not_finite", "a finite number", str(float(array.flat[index])), at)
    if array.dtype != np.float32 and np.abs(array).max() > LARGEST:
        raise refusal("out_of_range", f"numbers within ±{LARGEST:.2e}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _schema(rank: int, description: str, example: object) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    for _ in range(rank):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema | {"description": description, "examples": [example]}


def array(rank: int, description: str, example: object) -> tuple[PlainValidator, WithJsonSchema]:
    """The annotations that make a field a float32 array of `rank` axes."""

    def validate(value: object) -> FloatArray:
        return to_float32(value, rank)

    return PlainValidator(validate), WithJsonSchema(_schema(rank, description, example))


def _none_if_empty(value: object) -> object:
    """An empty list of past actions or of a warm start says the same as none at all."""
    if isinstance(value, np.ndarray):
        return None if value.shape[:1] == (0,) else value
    return None if value == [] else value


Vector = Annotated[FloatArray, *array(1, "numbers", [0.5, -0.25])]
Rows = Annotated[FloatArray, *array(2, "rows of action_dim numbers", [[0.5, -0.25], [0.5, 0.0]])]
Candidates = Annotated[
    FloatArray,
    *array(3, "candidates of rows of action_dim numbers", [[[0.5, -0.25]], [[0.0, 1.0]]]),
]
NoRowsIsNone = BeforeValidator(_none_if_empty)
