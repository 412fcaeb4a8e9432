"""Statistics of a recording against NumPy, and the proposals."""

from pathlib import Path

import numpy as np
import pytest

from lewm_models.recordings import summary as summary_module
from lewm_models.recordings.recording import Column, Contents, RecordingError, open_recording
from lewm_models.recordings.summary import (
    RowSample,
    SeriesStatistics,
    largest_image_size,
    propose_block,
    summarise,
)
from tests.lewm_models.recordings.made_data import STEPS, actions_of, write_hdf5


def contents(steps: tuple[int, ...], rate_hz: float | None) -> Contents:
    return Contents("made", (), (), (), episode_steps=steps, rate_hz=rate_hz)


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    actions = actions_of(STEPS, 3).clip(-1, 1)
    actions[7] = np.nan
    actions[:, 2] = 5
    write_hdf5(tmp_path / "a.h5", columns={"action": actions}, attributes={"fps": 10})
    with open_recording(tmp_path / "a.h5") as recording:
        report = summarise(recording)
    assert report.steps == sum(STEPS)
    assert report.hours == pytest.approx(sum(STEPS) / 10 / 3600)
    (series,) = report.actions
    for dimension, column in zip(series.dimensions, actions.T, strict=True):
        known = column[np.isfinite(column)].astype(np.float64)
        assert dimension.low == known.min()
        assert dimension.high == known.max()
        assert dimension.mean == pytest.approx(known.mean())
        assert dimension.deviation == pytest.approx(known.std(), abs=1e-9)
    clipped = np.isin(actions[:, 0], [-1, 1]).sum() / np.isfinite(actions[:, 0]).sum()
    assert clipped > 0.1
    assert series.dimensions[0].clipped_share == pytest.approx(clipped)
    assert series.dimensions[0].constant_share < 0.3
    assert series.dimensions[2].constant_share == 1
    assert series.dimensions[2].clipped_share == 0


def test_values_far_from_zero_keep_their_deviation() -> None:
    statistics = SeriesStatistics(1)
    values = 1e4 + np.random.default_rng(0).normal(size=(5000, 1)).astype(np.float32)
    for part in np.split(values, 50):
        statistics.add(part)
    (dimension,) = statistics.dimensions(())
    assert dimension.deviation == pytest.approx(values.astype(np.float64).std(), rel=1e-9)


def test_bounds_and_rate_limits_are_robust() -> None:
    rng = np.random.default_rng(0)
    smooth = np.sin(np.arange(20_000) / 50)
    smooth[5000] = 40  # one faulty value
    gripper = (np.arange(20_000) // 3000 % 2).astype(float)  # changes 6 times
    held = np.repeat(rng.normal(size=20), 1000)
    constant = np.full(20_000, 2.0)
    statistics = SeriesStatistics(4)
    statistics.add(np.stack([smooth, gripper, held, constant], 1).astype(np.float32))
    low, high = map(np.array, statistics.bounds())
    assert low[:2] == pytest.approx([-1, 0], abs=1e-3)
    assert high[:2] == pytest.approx([1, 1], abs=1e-3)
    assert low[3] < 2 < high[3]
    limit = statistics.rate_limit()
    assert limit[0] == pytest.approx(1 / 50, rel=1e-2)
    assert limit[1:] == pytest.approx((high - low)[1:])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "MAX_SAMPLED_ROWS", 100)
    sample = RowSample(1)
    for start in range(0, 5000, 17):
        sample.add(np.arange(start, min(5000, start + 17), dtype=float)[:, None])
    rows = sample.rows()[:, 0]
    assert 50 <= len(rows) <= 100
    assert len(set(np.diff(rows))) == 1
    assert rows[0] == 0
    assert rows[-1] > 4900


@pytest.mark.parametrize(
    ("steps", "rate_hz", "expected"),
    [
        ((200, 200), None, (5, 3)),
        ((200, 200), 10.0, (5, 3)),
        ((200, 200), 30.0, (15, 3)),
        ((200, 200), 100.0, (15, 3)),
        ((200, 200), 2.0, (1, 3)),
        ((31, 31), 30.0, (5, 3)),
        ((4, 4), 10.0, (1, 3)),
        ((3, 3), 10.0, (1, 2)),
        ((1,), None, (1, 1)),
    ],
)
def test_block_and_history(
    steps: tuple[int, ...], rate_hz: float | None, expected: tuple[int, int]
) -> None:
    assert propose_block(contents(steps, rate_hz)) == expected


@pytest.mark.parametrize(("height", "width", "size"), [(480, 640, 480), (84, 96, 80), (10, 9, 0)])
def test_the_largest_image_size(height: int, width: int, size: int) -> None:
    assert largest_image_size(Column("a", (height, width, 3))) == size


def test_several_columns_have_to_be_chosen(tmp_path: Path) -> None:
    write_hdf5(
        tmp_path / "a.h5",
        columns={
            "wrist": np.zeros((sum(STEPS), 8, 8, 3), np.uint8),
            "action_delta": np.zeros((sum(STEPS), 4), np.float32),
        },
    )
    with open_recording(tmp_path / "a.h5") as recording:
        report = summarise(recording)
        assert report.choices == ("--camera", "--action")
        assert report.proposals is None
        assert report.usable is None
        assert len(report.actions) == 2
        chosen = summarise(recording, camera="wrist", action="action_delta")
        assert chosen.choices == ()
        assert [column.name for column in chosen.cameras] == ["wrist"]
        assert chosen.proposals is not None
        assert chosen.proposals.crop is None
        assert chosen.proposals.image_size == 64
        with pytest.raises(RecordingError, match=r"--camera: .* has no 'front'; it has"):
            summarise(recording, camera="front")
