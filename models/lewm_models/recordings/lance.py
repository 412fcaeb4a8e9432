"""Lance tables of stable-worldmodel: a row for each step, frames as JPEG pictures.

The columns `episode_idx` and `step_idx` tell where a row belongs. Columns of bytes are cameras.
Columns of numbers whose names begin with `action` are actions, the others are states.

An episode is left out, and a note says why, if its rows are not in one piece or if `step_idx` does
not increase. The tables do not say how many steps a second has.

Lance runs threads of its own: a process that reads must be started anew, not forked.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.arrow import innermost_type, numbers
from lewm_models.recordings.pictures import decode_picture
from lewm_models.recordings.recording import (
    Column,
    Contents,
    Recording,
    RecordingError,
    choose_column,
    load_library,
)

INDEX_COLUMNS = ("episode_idx", "step_idx")

BOOKKEEPING = {
    *INDEX_COLUMNS,
    *("id", "index", "ep_idx", "seed", "timestamp", "time", "render_time"),
    *("reward", "terminated", "truncated", "done", "success", "is_success"),
}
"""Columns that are neither actions nor states."""

PICTURES_AT_ONCE = 32
"""How many encoded pictures are in memory together."""

LANCE_ERRORS = (OSError, ValueError, RuntimeError)


class LanceRecording(Recording):
    """A Lance table of stable-worldmodel: a folder `NAME.lance`, or a folder with one of these."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        # LeRobot can store data sets in Lance tables too. Its reader has the error for that.
        is_lerobot = (path / "meta" / "info.json").is_file()
        return not is_lerobot and (_is_table(path) or bool(_tables_in(path)))

    def __init__(self, path: Path) -> None:
        load_library("lance", path)
        self.path = path
        self._table = _find_table(path)
        self._open_dataset: Any = None
        self._version: int | None = None
        # Rows that are appended later are not seen, so that every process reads the same rows.
        self._version = self._dataset().version
        names = self._dataset().schema.names
        missing = [name for name in INDEX_COLUMNS if name not in names]
        if missing:
            raise RecordingError(
                f"{self._table}: expected a table of stable-worldmodel with the column "
                f"{missing[0]}; it has {', '.join(names)}"
            )
        self._first_rows, episode_steps, notes = self._read_episodes()
        cameras, actions, states, column_notes = self._read_columns()
        self.contents = Contents(
            format="Lance",
            cameras=cameras,
            actions=actions,
            states=states,
            episode_steps=episode_steps,
            notes=(*notes, *column_notes),
        )

    def read_frames(
        self, camera: str, episode: int, *, first: int = 0, count: int | None = None
    ) -> NDArray[np.uint8]:
        shape = choose_column(
            self.contents.cameras, camera, option="--camera", path=self.path
        ).shape
        steps = range(self.contents.episode_steps[episode])
        steps = steps[first : None if count is None else first + count]
        frames = np.empty((len(steps), *shape), dtype=np.uint8)
        for start in range(0, len(steps), PICTURES_AT_ONCE):
            part = steps[start : start + PICTURES_AT_ONCE]
            pictures = self._read(camera, self._first_rows[episode] + part.start, len(part))
            for step, data in zip(part, pictures.to_pylist(), strict=True):
                source = f"{self._table}: {camera} of step {step} of episode {episode}"
                if data is None:
                    raise RecordingError(f"{source}: the picture is missing")
                pixels = decode_picture(data, source=source)
                if pixels.shape != shape:
                    raise RecordingError(
                        f"{source}: the first picture has the shape {shape}, "
                        f"this one has {pixels.shape}"
                    )
                frames[step - steps.start] = pixels
        return frames

    def read_actions(self, name: str, episode: int) -> NDArray[np.float32]:
        column = choose_column(self.contents.actions, name, option="--action", path=self.path)
        return self._read_numbers(column, episode)

    def read_states(self, name: str, episode: int) -> NDArray[np.float32]:
        column = choose_column(self.contents.states, name, option="--state", path=self.path)
        return self._read_numbers(column, episode)

    def read_times(self, episode: int) -> NDArray[np.float64]:
        times = self._read_numbers(Column("step_idx", (1,)), episode)[:, 0].astype(np.float64)
        return times - times[:1]

    def close(self) -> None:
        self._open_dataset = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_dataset": None}

    def _dataset(self) -> Any:
        if self._open_dataset is None:
            lance = load_library("lance", self.path)
            try:
                self._open_dataset = lance.dataset(self._table.absolute(), version=self._version)
            except LANCE_ERRORS as error:
                raise RecordingError(f"{self._table}: cannot be opened: {error}") from error
        return self._open_dataset

    def _read(self, name: str, first_row: int, count: int) -> Any:
        """Rows of a column, a `pyarrow.ChunkedArray`. Blobs come as bytes."""
        try:
            scanner = self._dataset().scanner(
                columns=[name], offset=first_row, limit=count, blob_handling="all_binary"
            )
            rows = scanner.to_table().column(name)
        except LANCE_ERRORS as error:
            raise RecordingError(f"{self._table}: {name} cannot be read: {error}") from error
        if len(rows) != count:
            raise RecordingError(f"{self._table}: {name}: expected {count} rows, found {len(rows)}")
        return rows

    def _read_numbers(self, column: Column, episode: int) -> NDArray[np.float32]:
        rows = self._read(
            column.name, self._first_rows[episode], self.contents.episode_steps[episode]
        )
        return numbers(rows, width=column.shape[0], source=f"{self._table}: {column.name}")

    def _read_episodes(self) -> tuple[list[int], tuple[int, ...], list[str]]:
        """The first row and the length of each usable episode, and notes on the others."""
        try:
            table = self._dataset().to_table(columns=list(INDEX_COLUMNS))
        except LANCE_ERRORS as error:
            raise RecordingError(f"{self._table}: cannot be read: {error}") from error
        episodes, steps = (table.column(name).to_numpy() for name in INDEX_COLUMNS)
        bounds = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
        pieces = [(start, end) for start, end in pairwise(bounds) if start < end]
        numbers_of_pieces = Counter(int(episodes[start]) for start, _ in pieces)
        first_rows, lengths = [], []
        scattered, disordered = set(), []
        for start, end in pieces:
            index = int(episodes[start])
            if numbers_of_pieces[index] > 1:
                scattered.add(index)
            elif not (np.diff(steps[start:end]) > 0).all():
                disordered.append(index)
            else:
                first_rows.append(start)
                lengths.append(end - start)
        notes = [
            f"Episodes that are left out because {reason}: {len(indices)}; the first is episode "
            f"{min(indices)}."
            for reason, indices in (
                ("their rows are not in one piece", scattered),
                ("their step_idx does not increase", disordered),
            )
            if indices
        ]
        if not lengths:
            raise RecordingError(
                f"{self._table}: has no usable episode: {' '.join(notes) or 'it has no rows'}"
            )
        return first_rows, tuple(lengths), notes

    def _read_columns(
        self,
    ) -> tuple[tuple[Column, ...], tuple[Column, ...], tuple[Column, ...], list[str]]:
        """Cameras, actions, states, and notes on columns that are left out.

        The first usable row tells the sizes.
        """
        types = load_library("pyarrow.types", self.path)
        cameras, actions, states, notes = [], [], [], []
        for entry in self._dataset().schema:
            name = entry.name
            if name in BOOKKEEPING:
                continue
            is_blob = "lance.blob" in str(entry.type)
            if is_blob or types.is_binary(entry.type) or types.is_large_binary(entry.type):
                first = self._read(name, self._first_rows[0], 1)[0].as_py()
                try:
                    pixels = decode_picture(first or b"", source=f"{self._table}: {name}")
                except RecordingError as error:
                    notes.append(
                        f"The column {name} is left out, its first value is no picture: {error}."
                    )
                else:
                    cameras.append(Column(name, pixels.shape))
                continue
            value_type = innermost_type(entry.type)
            if not types.is_floating(value_type) and not types.is_integer(value_type):
                continue
            if types.is_fixed_size_list(entry.type):
                width = entry.type.list_size
            else:
                width = np.size(self._read(name, self._first_rows[0], 1)[0].as_py())
            column = Column(name, (width,))
            if name.startswith("action"):
                actions.append(column)
            else:
                states.append(column)
        return tuple(cameras), tuple(actions), tuple(states), notes


def _is_table(path: Path) -> bool:
    return path.suffix == ".lance" and path.is_dir()


def _tables_in(path: Path) -> list[Path]:
    return [entry for entry in sorted(path.glob("*.lance")) if entry.is_dir()]


def _find_table(path: Path) -> Path:
    tables = [path] if _is_table(path) else _tables_in(path)
    for table in tables:
        if table.with_name(f"{table.stem}_videos.lance").is_dir():
            raise RecordingError(
                f"{table}: Lance tables with videos are not supported; write the data set in "
                "stable-worldmodel's format lance or lerobot"
            )
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables)
        raise RecordingError(f"{path}: has several Lance tables: {names}; give the path of one")
    return tables[0]
