"""JSON of which every reader makes the same values.

Python reads more than JSON, and writes some of it in a form that other programs cannot read. What
this module accepts can be written again and sent to any client.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_NESTING = 32

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1


def parse(content: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is not JSON, or an object has a name twice.
        RecursionError: it is nested too deeply.
    """
    text = content.decode("utf-8-sig")  # some editors write a byte order mark
    return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)


def check_values(value: Any, name: str = "") -> None:
    """Check that a value can be written as JSON for every reader.

    Args:
        value: lists, objects, strings, numbers, booleans and None.
        name: the path of the value, for errors.

    Raises:
        ValueError: it holds an integer of more than 64 bits, a number that is not finite, a string
            that has no UTF-8, or is nested more than `MAX_NESTING` deep. The message starts with
            the path.
    """
    pending = [(value, name, 0)]
    while pending:
        item, path, depth = pending.pop()
        expected = _expectation(item, depth)
        if expected is not None:
            raise ValueError(f"{path}: expected {expected}, got {item!a:.80}")
        if isinstance(item, dict):
            for key, entry in item.items():
                check_values(key, f"{path}: a field's name")
                pending.append((entry, f"{path}.{key}" if path else key, depth + 1))
        elif isinstance(item, list | tuple):
            pending += [(entry, f"{path}[{i}]", depth + 1) for i, entry in enumerate(item)]


def _expectation(item: object, depth: int) -> str | None:
    """What a value should have been; None if it is right."""
    match item:
        case int() if not MIN_INTEGER <= item <= MAX_INTEGER:
            return "an integer of at most 64 bits"
        case float() if not math.isfinite(item):
            return "a finite number"
        case str() if not _has_utf8(item):
            return "a string of Unicode characters without lone surrogates"
        case dict() | list() | tuple() if depth > MAX_NESTING:
            return f"at most {MAX_NESTING} levels of objects and lists"
    return None


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!a:.80} is there twice in one object")
    return content


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")
