"""Random messages of any type, built from its descriptor alone, as reflection gives it."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

MAX_DEPTH, MAX_ITEMS = 4, 3

NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def fields_of(message: Descriptor, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a message, as its constructor takes them; any of them may be left out."""
    optional = {
        field.name: _values(field, depth)
        for field in message.fields
        if depth < MAX_DEPTH or field.message_type is None
    }
    return st.fixed_dictionaries({}, optional=optional).map(
        lambda fields: _one_of_each(message, fields)
    )


def _one_of_each(message: Descriptor, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with at most one of each oneof."""
    seen: set[str] = set()
    kept = {}
    for name, value in fields.items():
        oneof = message.fields_by_name[name].containing_oneof
        if oneof is None or oneof.name not in seen:
            kept[name] = value
        if oneof is not None:
            seen.add(oneof.name)
    return kept


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        keys = _single(field.message_type.fields_by_name["key"], depth + 1)
        values = _single(field.message_type.fields_by_name["value"], depth + 1)
        return st.dictionaries(keys, values, max_size=MAX_ITEMS)
    single = _single(field, depth)
    return st.lists(single, max_size=MAX_ITEMS) if field.is_repeated else single


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return fields_of(field.message_type, depth + 1)
    if field.enum_type is not None:
        return st.integers(-1, len(field.enum_type.values))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        is_bytes = field.type == FieldDescriptor.TYPE_BYTES
        return st.binary(max_size=64) if is_bytes else st.text(max_size=16)
    return NUMBERS[field.cpp_type]
