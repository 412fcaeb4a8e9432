"""The client's response classes match the server's classes and the messages of lewm.v1."""

import inspect
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from numpy.typing import NDArray

from lewm.v1 import planner_pb2 as pb
from lewm_client import responses as client_responses
from lewm_serve.api import responses as server_responses

WITHOUT_CLIENT_CLASS = {
    *("ModelDescription", "ModelList", "OldVersion", "ServerStatus"),
    *("ReloadReport", "ReloadedModel"),
}
"""`PlannerClient.models` returns messages. Probes and reloads are for operators."""


def response_classes(module: types.ModuleType) -> dict[str, type]:
    """The dataclasses that a module defines, by name."""
    return {
        name: member
        for name, member in vars(module).items()
        if inspect.isclass(member) and is_dataclass(member) and member.__module__ == module.__name__
    }


CLIENT_CLASSES = response_classes(client_responses)
SERVER_CLASSES = response_classes(server_responses)


def comparable(annotation: Any) -> Any:
    """A type in a form that is equal for both packages: a dataclass becomes its name."""
    if is_dataclass(annotation) and isinstance(annotation, type):
        return annotation.__name__
    if get_origin(annotation) is Literal:
        return annotation
    arguments = tuple(comparable(argument) for argument in get_args(annotation))
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return Union, frozenset(arguments)
    return (origin, arguments) if arguments else annotation


def field_table(response_class: type) -> list[tuple[str, Any, Any]]:
    """Name, type and default of each field, in order."""
    hints = get_type_hints(response_class)
    return [
        (field.name, comparable(hints[field.name]), field.default)
        for field in fields(response_class)
    ]


def test_every_response_of_the_server_has_a_class_in_the_client() -> None:
    assert set(SERVER_CLASSES) - WITHOUT_CLIENT_CLASS == set(CLIENT_CLASSES)


@pytest.mark.parametrize("name", CLIENT_CLASSES)
def test_client_class_matches_the_servers(name: str) -> None:
    assert field_table(CLIENT_CLASSES[name]) == field_table(SERVER_CLASSES[name])


PYTHON_TYPES: dict[int, type] = {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_DOUBLE: float,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_BOOL: bool,
}
MESSAGE_TYPES = {"Tensor": NDArray[np.float32], "SolverSettings": dict[str, Any]}


def python_type(field: FieldDescriptor) -> Any:
    """The type in which the client holds a field of a message, apart from None."""
    if field.message_type is None:
        value: Any = PYTHON_TYPES[field.type]
    elif field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return dict[python_type(entry["key"]), python_type(entry["value"])]  # type: ignore[misc]
    else:
        name = field.message_type.name
        value = MESSAGE_TYPES.get(name) or CLIENT_CLASSES[name]
    return tuple[value, ...] if field.is_repeated else value


def without_none(annotation: Any) -> tuple[Any, bool]:
    """A type without None and with str for a choice of strings, and whether None was part of it."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    (value,) = [member for member in members if member is not type(None)] or [annotation]
    return (str if get_origin(value) is Literal else value), type(None) in members


@pytest.mark.parametrize("name", CLIENT_CLASSES)
def test_client_class_matches_its_message(name: str) -> None:
    message_fields = pb.DESCRIPTOR.message_types_by_name[name].fields_by_name
    hints = get_type_hints(CLIENT_CLASSES[name])
    assert set(hints) == set(message_fields)
    for field_name, annotation in hints.items():
        field = message_fields[field_name]
        value, may_be_none = without_none(annotation)
        assert value == python_type(field), field_name
        if field.message_type is None:
            # A number without presence cannot be left out, so it is never None.
            assert may_be_none == field.has_presence, field_name
        elif field.is_repeated:
            assert not may_be_none, field_name


def test_a_field_that_differs_is_found() -> None:
    latent = CLIENT_CLASSES["EncodedLatent"]
    name, annotation, default = field_table(latent)[-1]
    assert (name, default) == ("norm_zscore", None)
    assert annotation == comparable(float | None)
    assert annotation != comparable(float)
    assert field_table(latent)[0][2] is MISSING
    assert comparable(client_responses.Health) != comparable(client_responses.Timing)
