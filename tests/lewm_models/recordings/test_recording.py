"""What all formats share: recognition, the choice of columns, missing libraries, entry points."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lewm_models.recordings import recording as recording_module
from lewm_models.recordings.hdf5 import Hdf5Recording
from lewm_models.recordings.recording import (
    INSTALL_COMMAND,
    Column,
    RecordingError,
    choose_column,
    natural_key,
    open_recording,
)
from tests.lewm_models.recordings.made_data import write_hdf5, write_zarr

COLUMNS = (Column("front", (4, 4, 3)), Column("wrist", (4, 4, 3)))


def test_a_path_without_a_recording(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="there is no such file or folder"):
        open_recording(tmp_path / "gone")
    (tmp_path / "text.txt").write_text("text")
    for path in (tmp_path, tmp_path / "text.txt"):
        with pytest.raises(RecordingError, match="expected a recording: HDF5"):
            open_recording(path)


@pytest.mark.parametrize("library", ["h5py", "hdf5plugin", "zarr"])
def test_a_missing_library_is_an_error_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    path = tmp_path / "a"
    if library == "zarr":
        write_zarr(path)
    else:
        write_hdf5(path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(RecordingError, match=f"{library} is needed") as raised:
        open_recording(path)
    assert INSTALL_COMMAND in str(raised.value)


def test_one_column_is_chosen_by_name_or_because_it_is_the_only_one() -> None:
    path = Path("a")
    assert choose_column(COLUMNS[:1], None, option="--camera", path=path) == COLUMNS[0]
    assert choose_column(COLUMNS, "wrist", option="--camera", path=path) == COLUMNS[1]
    with pytest.raises(
        RecordingError,
        match=r"several cameras: front, wrist; .*--camera \(several at once are not supp",
    ):
        choose_column(COLUMNS, None, option="--camera", path=path)
    with pytest.raises(RecordingError, match="has no 'top'; it has front, wrist"):
        choose_column(COLUMNS, "top", option="--camera", path=path)
    with pytest.raises(RecordingError, match="has no columns of actions"):
        choose_column((), None, option="--action", path=path)


def test_natural_order() -> None:
    names = ["b1", "a10", "a2", "a2b", "10", "9", "a", "A1"]
    assert sorted(names, key=natural_key) == ["9", "10", "A1", "a", "a2", "a2b", "a10", "b1"]


class _OtherFormat(Hdf5Recording):
    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix == ".other"


def test_packages_add_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("other", f"{__name__}:_OtherFormat", recording_module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        recording_module, "entry_points", lambda group: [point] if group == point.group else []
    )
    monkeypatch.setattr(recording_module, "READERS", ())
    monkeypatch.setitem(sys.modules, __name__, sys.modules[_OtherFormat.__module__])
    write_hdf5(tmp_path / "a.other")
    with open_recording(tmp_path / "a.other") as recording:
        assert type(recording) is _OtherFormat
