"""Columns of Arrow tables as arrays. Parquet files and Lance tables are read as Arrow tables."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.recording import RecordingError


def numbers(column: Any, *, width: int, source: str) -> NDArray[np.float32]:
    """The values (N, width) of a column of numbers or lists of numbers. Missing ones are NaN.

    Args:
        column: a ``pyarrow.ChunkedArray`` of N rows. Nested lists are flattened.
        width: how many numbers each row has.
        source: where the column comes from, for errors.

    Raises:
        RecordingError: a row has another number of values.
    """
    compute = import_module("pyarrow.compute")
    array = column.combine_chunks()
    present = array.is_valid().to_numpy(zero_copy_only=False)
    values = array.drop_null()
    while _is_list(values.type):
        lengths = compute.list_value_length(values).unique().to_pylist()
        if len(lengths) > 1:
            raise RecordingError(f"{source}: expected {width} values a step, found {lengths}")
        values = values.flatten()
    if len(values) != width * int(present.sum()):
        found = len(values) / max(1, int(present.sum()))
        raise RecordingError(f"{source}: expected {width} values a step, found {found:g}")
    matrix = np.full((len(array), width), np.nan, dtype=np.float32)
    matrix[present] = values.to_numpy(zero_copy_only=False).reshape(-1, width)
    return matrix


def innermost_type(data_type: Any) -> Any:
    """The type of the values in (nested) lists; of other types, the type itself."""
    while _is_list(data_type):
        data_type = data_type.value_type
    return data_type


def _is_list(data_type: Any) -> bool:
    types = import_module("pyarrow.types")
    return bool(
        types.is_list(data_type)
        or types.is_large_list(data_type)
        or types.is_fixed_size_list(data_type)
    )
