"""What all request models share: closed, frozen, and cheap to refuse."""

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lewm_serve.errors import FieldProblem, InvalidRequest, shorten

REPORTED = 8  # problems named in one answer

M = TypeVar("M", bound="RequestModel")


class RequestModel(BaseModel):
    """A closed, frozen model that both transports fill: from JSON, or from a message as a dict."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, data: Any) -> Any:
        """null says the same as leaving a field out; unknown fields are kept, but only a few.

        A million unknown fields would make a million errors before the first is reported.
        """
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        tidy = {}
        unknown = 0
        for name, value in data.items():
            if name in fields:
                if value is not None or fields[name].is_required():
                    tidy[name] = value
            elif unknown < REPORTED:
                tidy[name] = value
                unknown += 1
        return tidy


def parse(model: type[M], document: object) -> M:
    """The request in `document` (what JSON or a message held), or `InvalidRequest`."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise from_validation_error(error) from None


_TYPES = {
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
    "model_type": ("wrong_type", "an object"),
}


def _path(location: tuple[int | str, ...]) -> str:
    """`frames[0].pixels.shape`; a name of the client's own making is shortened and made plain."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            plain = part if re.fullmatch(r"\w{1,40}", part) else shorten(part, 40)
            path += f".{plain}" if path else plain
    return path or "body"


def from_validation_error(error: ValidationError) -> InvalidRequest:
    """The client's error for pydantic's: code, path, what was received, what was expected."""
    problems = []
    for line in error.errors(include_url=False)[:REPORTED]:
        context = line.get("ctx", {})
        field, received = _path(line["loc"]), shorten(line["input"])
        if "at" in context:
            code, expected = line["type"], context["expected"]
            field += context["at"]
            received = context.get("received", received)
        else:
            code, expected = _TYPES.get(line["type"], ("wrong_type", line["msg"]))
            expected = expected.format(**context)
        if line["type"] == "missing":
            received = "nothing"
        problems.append(FieldProblem(field, code, received, expected))
    return InvalidRequest.of(*problems)
