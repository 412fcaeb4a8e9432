"""Model folders: what is written is read again, and what is broken is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.reference import LatentReference, digest
from lewm_models.card import Calibration
from lewm_models.checkpoint import CheckpointError
from tests.lewm_models.examples import TINY, card_of, tiny

TENSOR = "predictor.transformer.norm.weight"
COUNT = "projector.net.1.num_batches_tracked"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny()
    checkpoint.save(tmp_path / "example", model, card_of(model))
    return tmp_path / "example"


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / checkpoint.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / checkpoint.WEIGHTS)


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / checkpoint.CARD
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def test_a_model_survives_its_folder(folder: Path) -> None:
    model = tiny()
    loaded = checkpoint.load(folder)
    assert loaded.card == card_of(model)
    assert not loaded.model.training
    assert loaded.model.config == TINY
    state = loaded.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor)


def test_frames_go_with_a_model_and_not_into_its_version(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.frames is None
    frames = torch.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3).byte()
    assert checkpoint.save(folder, loaded.model, loaded.card, frames=frames) == loaded.version
    kept = checkpoint.load(folder).frames
    assert kept is not None
    assert torch.equal(kept, frames)
    checkpoint.save(folder, loaded.model, loaded.card)
    assert checkpoint.load(folder).frames is None


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 16, 16, 3).byte(), torch.zeros(2, 8, 8, 3).byte(), torch.zeros(2, 16, 16, 3)],
)
def test_frames_of_another_kind_are_refused(folder: Path, frames: Tensor) -> None:
    save_file({"frames": frames}, folder / checkpoint.FRAMES)
    with pytest.raises(CheckpointError, match="expected at least 2 frames"):
        checkpoint.load(folder)
    (folder / checkpoint.FRAMES).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(folder)


def test_saving_twice_gives_one_version(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert checkpoint.save(folder, loaded.model, loaded.card) == loaded.version
    assert checkpoint.version(folder) == loaded.version


def calibrated(folder: Path) -> LatentReference:
    """Give the model in the folder a calibration."""
    loaded = checkpoint.load(folder)
    latents = torch.randn(50, TINY.latent_dim, generator=torch.Generator().manual_seed(0))
    reference = LatentReference.fit(latents)
    calibration = Calibration(
        50, 2.0, 0.5, 3.0, mahalanobis_limit=9.0, reference=digest(reference.to_bytes())
    )
    card = replace(loaded.card, calibration=calibration)
    checkpoint.write_calibration(folder, card, reference)
    return reference


def test_a_calibration_s_reference_belongs_to_the_model(folder: Path) -> None:
    before = checkpoint.load(folder)
    assert before.reference is None
    reference = calibrated(folder)
    loaded = checkpoint.load(folder)
    assert loaded.reference is not None
    assert torch.equal(loaded.reference.whitening, reference.whitening)
    assert loaded.version != before.version
    again = checkpoint.save(folder, loaded.model, loaded.card, loaded.reference)
    assert again == loaded.version
    checkpoint.save(folder, loaded.model, before.card)
    assert not (folder / checkpoint.REFERENCE).exists()
    assert checkpoint.load(folder).version == before.version


def test_another_reference_than_the_card_s_is_refused(folder: Path) -> None:
    calibrated(folder)
    other = LatentReference(torch.zeros(TINY.latent_dim), torch.eye(TINY.latent_dim))
    (folder / checkpoint.REFERENCE).write_bytes(other.to_bytes())
    with pytest.raises(CheckpointError, match=r"calibration\.safetensors: is not the one"):
        checkpoint.load(folder)
    (folder / checkpoint.REFERENCE).unlink()
    with pytest.raises(CheckpointError, match=r"calibration\.safetensors: No such file"):
        checkpoint.load(folder)


def test_a_card_without_the_file_s_name_does_not_need_it(folder: Path) -> None:
    """As cards were before there was such a file."""
    norms = {"frames": 10, "norm_mean": 2.0, "norm_std": 0.5, "zscore_limit": 3.0}
    change_card(folder, lambda card: card.update(calibration=norms))
    loaded = checkpoint.load(folder)
    assert loaded.card.calibration == Calibration(10, 2.0, 0.5, 3.0)
    assert loaded.reference is None


def test_files_have_the_ordinary_mode_and_are_replaced_whole(folder: Path) -> None:
    ordinary = folder / "ordinary"
    ordinary.touch()
    written = [folder / checkpoint.CARD, folder / checkpoint.WEIGHTS]
    assert [path.stat().st_mode for path in written] == [ordinary.stat().st_mode] * 2
    # A server that has the old weights mapped keeps them.
    before = [path.stat().st_ino for path in written]
    opened = [path.open("rb") for path in written]
    loaded = checkpoint.load(folder)
    checkpoint.save(folder, loaded.model, loaded.card)
    assert all(path.stat().st_ino != old for path, old in zip(written, before, strict=True))
    for file in opened:
        file.close()
    assert {path.name for path in folder.iterdir()} == {
        "ordinary",
        checkpoint.CARD,
        checkpoint.WEIGHTS,
    }


@pytest.mark.parametrize("name", [TENSOR, COUNT])
def test_the_version_changes_with_any_weight(folder: Path, name: str) -> None:
    before = checkpoint.version(folder)
    change_tensors(folder, lambda tensors: tensors[name].flatten()[-1:].add_(1))
    assert checkpoint.version(folder) != before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other"),
        ("action_high", [1.0, 1.5]),
        ("pixel_mean", [0.5, 0.5, 0.5]),
        ("solver", {"samples": 8}),
        ("figures", {"success": 1.0}),
        ("provenance", {}),
        ("unheard_of", 1),
    ],
)
def test_the_version_changes_with_any_field(folder: Path, field: str, value: Any) -> None:
    before = checkpoint.version(folder)
    change_card(folder, lambda card: card.update({field: value}))
    assert checkpoint.version(folder) != before


def test_the_version_does_not_change_with_the_layout_of_the_card(folder: Path) -> None:
    before = checkpoint.version(folder)
    path = folder / checkpoint.CARD
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert checkpoint.version(folder) == before


def test_halves_are_read_as_float32(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({TENSOR: tensors[TENSOR].half()}))
    assert checkpoint.load(folder).model.state_dict()[TENSOR].dtype == torch.float32


def with_nan(tensor: Tensor) -> Tensor:
    tensor[0] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(TENSOR), f"{TENSOR}: missing tensor"),
        (lambda t: t.update(stranger=torch.ones(1)), "stranger: unknown tensor"),
        (lambda t: t.update({TENSOR: torch.ones(9)}), rf"{TENSOR}: expected shape \(8,\), got \(9"),
        (lambda t: t.update({TENSOR: torch.ones(1, 8)}), f"{TENSOR}: expected shape"),
        (lambda t: t.update({TENSOR: torch.ones(8, dtype=torch.int64)}), f"{TENSOR}: .*int64"),
        (lambda t: t.update({TENSOR: torch.ones(8, dtype=torch.cfloat)}), f"{TENSOR}: .*complex64"),
        (lambda t: t.update({COUNT: torch.tensor(1.5)}), f"{COUNT}: expected torch.int64"),
        (lambda t: with_nan(t[TENSOR]), f"{TENSOR}: holds values that are not finite"),
    ],
)
def test_a_wrong_tensor_is_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], complaint: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(folder)


def test_a_wrong_card_is_refused_before_memory_is_asked_for(folder: Path) -> None:
    change_card(folder, lambda card: card["architecture"].update(predictor_mlp=10**12))
    with pytest.raises(CheckpointError, match=r"predictor.transformer.layers.0.mlp.net.1"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (checkpoint.CARD, None, "cannot be read"),
        (checkpoint.CARD, b"{}", "missing"),
        (checkpoint.WEIGHTS, None, "there is no such file"),
        (checkpoint.WEIGHTS, b"", "cannot be read"),
        (checkpoint.WEIGHTS, b"\xff" * 100, "cannot be read"),
    ],
)
def test_a_missing_or_broken_file_is_named(
    folder: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        checkpoint.load(folder)


def test_folders_are_found(folder: Path) -> None:
    assert checkpoint.folders(folder) == [folder]
    (folder.parent / "empty").mkdir()
    assert checkpoint.folders(folder.parent) == [folder]
    for nothing in (folder.parent / "empty", folder.parent / "absent", folder / checkpoint.CARD):
        with pytest.raises(CheckpointError, match="is no model folder and holds none"):
            checkpoint.folders(nothing)
