"""Recordings made with h5py, zarr and Pillow directly, in the layouts that people have."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import hdf5plugin
import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

STEPS = (40, 25, 60)


def frames_of(steps: int, *, height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    """Frames (N, H, W, 3): each tells its number."""
    frames = np.zeros((steps, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(steps)[:, None, None]
    frames[..., 1] = np.arange(width)
    return frames


def actions_of(steps: Sequence[int], dimensions: int = 2) -> NDArray[np.float32]:
    """Actions of all episodes one after another; the last of each episode is NaN."""
    actions = np.random.default_rng(0).normal(size=(sum(steps), dimensions)).astype(np.float32)
    actions[np.cumsum(steps) - 1] = np.nan
    return actions


def write_hdf5(
    path: Path,
    *,
    steps: Sequence[int] = STEPS,
    columns: Mapping[str, NDArray[Any]] | None = None,
    attributes: Mapping[str, float] | None = None,
) -> dict[str, NDArray[Any]]:
    """stable-worldmodel's layout. ``columns`` replace or add to `pixels`, `action`, `proprio`."""
    rows = sum(steps)
    arrays: dict[str, NDArray[Any]] = {
        "pixels": frames_of(rows),
        "action": actions_of(steps),
        "proprio": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3),
        "reward": np.zeros(rows, np.float32),
        "step_idx": np.concatenate([np.arange(count) for count in steps]),
        "ep_idx": np.repeat(np.arange(len(steps)), steps),
        **(columns or {}),
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array.ndim == 4:
                filters = hdf5plugin.Blosc2(cname="zstd")
                file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), **filters)
            else:
                file[name] = array
        file["ep_len"] = np.array(steps)
        file["ep_offset"] = np.cumsum([0, *steps[:-1]])
        file.attrs.update(attributes or {})
    return arrays


def write_zarr(
    path: Path, *, frames: NDArray[Any] | None = None, zarr_format: Literal[2, 3] = 2
) -> dict[str, NDArray[Any]]:
    """Diffusion policy's layout."""
    rows = sum(STEPS)
    arrays: dict[str, NDArray[Any]] = {
        "img": frames_of(rows) if frames is None else frames,
        "action": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        "state": np.arange(rows * 5, dtype=np.float32).reshape(rows, 5),
        "keypoint": np.zeros((rows, 9, 2), np.float32),
    }
    root = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, array in arrays.items():
        data.create_array(name, data=array, chunks=(16, *array.shape[1:]))
    meta.create_array("episode_ends", data=np.cumsum(STEPS))
    return arrays


def write_images(folder: Path, frames: NDArray[np.uint8], names: Sequence[str]) -> None:
    """Image files; PNG keeps the pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(folder / name)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
