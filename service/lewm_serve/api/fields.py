"""Building blocks of the request types: a strict base class, arrays, and clear errors.

Arrays are nested lists in JSON and NumPy arrays over gRPC. Both become float32. Ragged or wrongly
nested lists, empty axes, booleans, strings, NaN, infinities and numbers beyond float32 are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Annotated, Any, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError, core_schema

from lewm_serve.errors import FieldProblem, InvalidRequest, shorten

FloatArray = NDArray[np.float32]

MAX_FLOAT32 = float(np.finfo(np.float32).max)

MAX_REPORTED_PROBLEMS = 8
"""How many refused fields one answer names."""

MAX_COMPARED_CHARACTERS = 40
"""How much of an unknown field's name is compared with the known ones."""

RequestT = TypeVar("RequestT", bound="RequestModel")


class RequestModel(BaseModel):
    """Base of all request types: unknown fields are refused, values do not change.

    Both transports fill these types: HTTP from JSON, gRPC from a message as a dictionary.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls_and_excess(cls, data: Any) -> Any:
        """Treat null like a field that was left out, and keep only a few unknown fields.

        A million unknown fields would make a million errors before the first is reported.
        """
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        kept = {}
        unknown_count = 0
        for name, value in data.items():
            if name in fields:
                if value is not None or fields[name].is_required():
                    kept[name] = value
            elif unknown_count < MAX_REPORTED_PROBLEMS:
                kept[name] = value
                unknown_count += 1
        return kept

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema says too that null is accepted where a field may be left out."""
        document = handler(schema)
        properties = handler.resolve_ref_schema(document)["properties"]
        for name, field in cls.model_fields.items():
            if not field.is_required():
                properties[name] = _nullable(properties[name])
        return document


def parse(request_type: type[RequestT], document: object) -> RequestT:
    """Make a request from what a JSON body or a message holds.

    Raises:
        InvalidRequest: a field is unknown, missing or wrong.
    """
    try:
        return request_type.model_validate(document)
    except ValidationError as error:
        raise to_invalid_request(error, request_type) from None


PYDANTIC_ERRORS = {
    "extra_forbidden": ("unknown_field", "no field of this name"),
    "missing": ("missing_field", "a value"),
    "finite_number": ("not_finite", "a finite number"),
    "too_long": ("shape_mismatch", "at most {max_length} items"),
    "string_too_short": ("out_of_range", "at least {min_length} characters"),
    "string_too_long": ("out_of_range", "at most {max_length} characters"),
    "greater_than": ("out_of_range", "more than {gt}"),
    "greater_than_equal": ("out_of_range", "{ge} or more"),
    "less_than": ("out_of_range", "less than {lt}"),
    "less_than_equal": ("out_of_range", "{le} or less"),
    "literal_error": ("invalid_choice", "one of {expected}"),
    "int_type": ("wrong_type", "an integer"),
    "float_type": ("wrong_type", "a number"),
    "string_type": ("wrong_type", "a string"),
    "tuple_type": ("wrong_type", "a list"),
    "dict_type": ("wrong_type", "an object"),
    "model_type": ("wrong_type", "an object"),
}
"""Our code and the expectation for each of pydantic's error types."""


def to_invalid_request(error: ValidationError, request_type: type[RequestModel]) -> InvalidRequest:
    """The client's error for pydantic's: code, path, received and expected value."""
    problems = []
    for line in error.errors(include_url=False)[:MAX_REPORTED_PROBLEMS]:
        context = line.get("ctx", {})
        field, received = _field_path(line["loc"]), shorten(line["input"])
        if "at" in context:  # made by `refusal`
            code, expected = line["type"], context["expected"]
            field += context["at"]
            received = context.get("received", received)
        else:
            code, expected = PYDANTIC_ERRORS.get(line["type"], ("wrong_type", line["msg"]))
            expected = expected.format(**context)
            if line["type"] == "float_type" and type(line["input"]) is int:
                code, expected = "out_of_range", "a number that fits into 64 bits"
        if line["type"] == "missing":
            received = "nothing"
        if line["type"] == "extra_forbidden":
            expected += _similar_name(request_type, line["loc"])
        problems.append(FieldProblem(field=field, code=code, received=received, expected=expected))
    return InvalidRequest.of(*problems)


def _similar_name(request_type: type[RequestModel], location: tuple[int | str, ...]) -> str:
    """The end of a sentence about an unknown field: the most similar name, if there is one."""
    parent: type[RequestModel] | None = request_type
    for part in location[:-1]:
        if parent is not None and part in parent.model_fields:
            parent = _request_type_in(parent.model_fields[str(part)].annotation)
    names = [] if parent is None else list(parent.model_fields)
    similar = get_close_matches(str(location[-1])[:MAX_COMPARED_CHARACTERS], names, n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def _request_type_in(annotation: Any) -> type[RequestModel] | None:
    """The first request type in an annotation such as `tuple[Frame, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        return annotation
    found = (_request_type_in(argument) for argument in get_args(annotation))
    return next((request_type for request_type in found if request_type is not None), None)


def refusal(code: str, expected: str, *, received: str | None = None, at: str = "") -> Exception:
    """The error that a validator raises, with a code of the service.

    Args:
        code: one of `lewm_serve.errors.INVALID_REQUEST_CODES`.
        expected: a phrase that completes "expected …".
        received: replaces the description of the field's value.
        at: continues the path of the field, such as ``[2].shape``.
    """
    context: dict[str, Any] = {"expected": expected, "at": at}
    if received is not None:
        context["received"] = received
    return PydanticCustomError(cast(Any, code), "refused", context)


def _field_path(location: tuple[int | str, ...]) -> str:
    """A path such as `frames[0].pixels.shape`. Unusual names from the client are shortened."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part if re.fullmatch(r"\w{1,40}", part) else shorten(part, 40)
            path += f".{name}" if path else name
    return path or "body"


def to_float32(value: object, rank: int) -> FloatArray:
    """Nested lists or an array of ``rank`` axes as a finite, C-contiguous float32 array.

    Raises:
        PydanticCustomError: the value has another shape, is not finite or is out of range.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != rank or value.size == 0:
            raise refusal("shape_mismatch", f"{rank} axes, none of them empty")
        array: NDArray[Any] = value
    else:
        array = _from_lists(value, rank)
    finite = np.isfinite(array)
    if not finite.all():
        index = int(np.argmin(finite))
        at = _element_path(index, array.shape)
        received = str(float(array.flat[index]))
        raise refusal("not_finite", "a finite number", received=received, at=at)
    if array.dtype != np.float32 and np.abs(array).max() > MAX_FLOAT32:
        raise refusal("out_of_range", f"numbers within ±{MAX_FLOAT32:.2e}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _from_lists(value: object, rank: int) -> NDArray[np.float64]:
    """Open nested lists level by level. All lists of one level must have the same length."""
    flat: list[Any] = [value]
    shape: list[int] = []
    for _ in range(rank):
        if set(map(type, flat)) != {list}:
            index = _first_index(flat, lambda item: type(item) is not list)
            code = "shape_mismatch" if shape else "wrong_type"
            raise refusal(
                code, "a list", received=shorten(flat[index]), at=_element_path(index, shape)
            )
        lengths = list(map(len, flat))
        if len(set(lengths)) > 1:
            index = next(i for i, length in enumerate(lengths) if length != lengths[0])
            raise refusal(
                "shape_mismatch",
                f"{lengths[0]} items like the first",
                received=f"{lengths[index]} items",
                at=_element_path(index, shape),
            )
        if lengths[0] == 0:
            at = _element_path(0, shape)
            raise refusal("shape_mismatch", "at least one item", received="[]", at=at)
        shape.append(lengths[0])
        flat = list(chain.from_iterable(flat))
    if not set(map(type, flat)) <= {int, float}:
        index = _first_index(flat, lambda item: type(item) not in (int, float))
        code = "shape_mismatch" if type(flat[index]) is list else "wrong_type"
        raise refusal(
            code, "a number", received=shorten(flat[index]), at=_element_path(index, shape)
        )
    try:
        return np.array(flat, dtype=np.float64).reshape(shape)
    except OverflowError:
        raise refusal("out_of_range", f"numbers within ±{MAX_FLOAT32:.2e}") from None


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of a property that may also be null. Titles and the like stay outside."""
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    outside = {"default", "description", "examples", "title"}
    value = {name: entry for name, entry in schema.items() if name not in outside}
    rest = {name: entry for name, entry in schema.items() if name in outside}
    return {"anyOf": [value, {"type": "null"}]} | rest


def exactly_one_of(*names: str) -> dict[str, Any]:
    """The part of a schema that asks for exactly one of several fields; null counts as left out."""

    def given(name: str) -> dict[str, Any]:
        return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}

    return {"oneOf": [given(name) for name in names]}


def _element_path(flat_index: int, shape: Sequence[int]) -> str:
    """The path of an element from its row-major index, such as `[2][0]`."""
    return "".join(f"[{int(i)}]" for i in np.unravel_index(flat_index, shape)) if shape else ""


def _first_index(items: Sequence[object], matches: Callable[[object], bool]) -> int:
    return next(index for index, item in enumerate(items) if matches(item))


def _array_schema(rank: int, description: str, *, min_items: int = 1) -> JsonSchemaValue:
    schema: JsonSchemaValue = {"type": "number"}
    for _ in range(rank):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema | {"minItems": min_items, "description": description}


def _array_field(rank: int, description: str) -> tuple[PlainValidator, WithJsonSchema]:
    """The annotations that make a field a float32 array of ``rank`` axes."""

    def validate(value: object) -> FloatArray:
        return to_float32(value, rank)

    return PlainValidator(validate), WithJsonSchema(_array_schema(rank, description))


def _none_if_empty(value: object) -> object:
    if isinstance(value, np.ndarray):
        return None if value.shape[:1] == (0,) else value
    return None if value == [] else value


Vector = Annotated[FloatArray, *_array_field(1, "numbers")]
Rows = Annotated[FloatArray, *_array_field(2, "rows of action_dim numbers")]
Candidates = Annotated[FloatArray, *_array_field(3, "candidates of rows of action_dim numbers")]
OptionalRows = Annotated[
    Rows | None,
    BeforeValidator(_none_if_empty),
    WithJsonSchema(_nullable(_array_schema(2, "rows of action_dim numbers", min_items=0))),
]
"""Rows that may be left out. An empty list means the same."""
