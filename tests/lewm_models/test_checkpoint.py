"""What is written to a model folder is read back, and what is broken in one is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.reference import LatentReference, sha256_of
from lewm_models.card import Calibration
from lewm_models.checkpoint import CheckpointError
from tests.lewm_models.examples import TINY, example_card, tiny_model

TENSOR = "predictor.transformer.norm.weight"
COUNT = "projector.net.1.num_batches_tracked"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an uncalibrated model without frames."""
    model = tiny_model()
    checkpoint.save(tmp_path / "example", model, example_card(model))
    return tmp_path / "example"


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / checkpoint.WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / checkpoint.WEIGHTS_FILE)


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / checkpoint.CARD_FILE
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def test_a_saved_model_is_loaded_unchanged(folder: Path) -> None:
    model = tiny_model()
    loaded = checkpoint.load(folder)
    assert loaded.card == example_card(model)
    assert not loaded.model.training
    assert loaded.model.config == TINY
    state = loaded.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor)


def test_frames_are_kept_but_do_not_change_the_version(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert loaded.frames is None
    frames = torch.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3).byte()
    assert checkpoint.save(folder, loaded.model, loaded.card, frames=frames) == loaded.version
    loaded_frames = checkpoint.load(folder).frames
    assert loaded_frames is not None
    assert torch.equal(loaded_frames, frames)
    checkpoint.save(folder, loaded.model, loaded.card)
    assert checkpoint.load(folder).frames is None


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(1, 16, 16, 3).byte(), torch.zeros(2, 8, 8, 3).byte(), torch.zeros(2, 16, 16, 3)],
)
def test_wrong_frames_are_refused(folder: Path, frames: Tensor) -> None:
    save_file({"frames": frames}, folder / checkpoint.FRAMES_FILE)
    with pytest.raises(CheckpointError, match="expected at least 2 frames"):
        checkpoint.load(folder)
    (folder / checkpoint.FRAMES_FILE).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"frames\.safetensors: is not a safetensors file"):
        checkpoint.load(folder)


def test_saving_a_loaded_model_keeps_its_version(folder: Path) -> None:
    loaded = checkpoint.load(folder)
    assert checkpoint.save(folder, loaded.model, loaded.card) == loaded.version
    assert checkpoint.version(folder) == loaded.version


def write_example_calibration(folder: Path) -> LatentReference:
    """Calibrate the model in the folder with random latents."""
    loaded = checkpoint.load(folder)
    latents = torch.randn(50, TINY.latent_dim, generator=torch.Generator().manual_seed(0))
    reference = LatentReference.fit(latents)
    calibration = Calibration(
        frames=50,
        norm_mean=2.0,
        norm_std=0.5,
        zscore_limit=3.0,
        mahalanobis_limit=9.0,
        reference=sha256_of(reference.to_bytes()),
    )
    card = replace(loaded.card, calibration=calibration)
    checkpoint.write_calibration(folder, card, reference)
    return reference


def test_the_reference_is_saved_and_changes_the_version(folder: Path) -> None:
    before = checkpoint.load(folder)
    assert before.reference is None
    reference = write_example_calibration(folder)
    loaded = checkpoint.load(folder)
    assert loaded.reference is not None
    assert torch.equal(loaded.reference.whitening, reference.whitening)
    assert loaded.version != before.version
    version = checkpoint.save(folder, loaded.model, loaded.card, reference=loaded.reference)
    assert version == loaded.version
    checkpoint.save(folder, loaded.model, before.card)
    assert not (folder / checkpoint.REFERENCE_FILE).exists()
    assert checkpoint.load(folder).version == before.version


def test_a_reference_of_another_calibration_is_refused(folder: Path) -> None:
    write_example_calibration(folder)
    other = LatentReference(torch.zeros(TINY.latent_dim), torch.eye(TINY.latent_dim))
    (folder / checkpoint.REFERENCE_FILE).write_bytes(other.to_bytes())
    with pytest.raises(
        CheckpointError, match=r"calibration\.safetensors: does not belong to the card"
    ):
        checkpoint.load(folder)
    (folder / checkpoint.REFERENCE_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"calibration\.safetensors: No such file"):
        checkpoint.load(folder)


def test_an_older_calibration_of_norms_needs_no_reference(folder: Path) -> None:
    norms: dict[str, Any] = {"frames": 10, "norm_mean": 2.0, "norm_std": 0.5, "zscore_limit": 3.0}
    change_card(folder, lambda card: card.update(calibration=norms))
    loaded = checkpoint.load(folder)
    assert loaded.card.calibration == Calibration(**norms)
    assert loaded.reference is None


def test_files_have_the_default_mode_and_are_replaced_as_a_whole(folder: Path) -> None:
    ordinary = folder / "ordinary"
    ordinary.touch()
    written = [folder / checkpoint.CARD_FILE, folder / checkpoint.WEIGHTS_FILE]
    assert [path.stat().st_mode for path in written] == [ordinary.stat().st_mode] * 2
    # A server that has mapped the old weights keeps them.
    before = [path.stat().st_ino for path in written]
    opened = [path.open("rb") for path in written]
    loaded = checkpoint.load(folder)
    checkpoint.save(folder, loaded.model, loaded.card)
    assert all(path.stat().st_ino != old for path, old in zip(written, before, strict=True))
    for file in opened:
        file.close()
    assert {path.name for path in folder.iterdir()} == {
        "ordinary",
        checkpoint.CARD_FILE,
        checkpoint.WEIGHTS_FILE,
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
def test_the_version_changes_with_any_field_of_the_card(
    folder: Path, field: str, value: Any
) -> None:
    before = checkpoint.version(folder)
    change_card(folder, lambda card: card.update({field: value}))
    assert checkpoint.version(folder) != before


def test_the_version_does_not_change_with_the_layout_of_the_card(folder: Path) -> None:
    before = checkpoint.version(folder)
    path = folder / checkpoint.CARD_FILE
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert checkpoint.version(folder) == before


def test_float16_weights_are_loaded_as_float32(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({TENSOR: tensors[TENSOR].half()}))
    assert checkpoint.load(folder).model.state_dict()[TENSOR].dtype == torch.float32


def with_nan(tensor: Tensor) -> Tensor:
    tensor[0] = torch.nan
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
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
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def test_a_huge_width_is_refused_without_allocating_it(folder: Path) -> None:
    huge = {"encoder_width": 60_000, "encoder_heads": 1, "predictor_mlp": 60_000}
    change_card(folder, lambda card: card["architecture"].update(huge))
    with pytest.raises(CheckpointError, match=r"model.safetensors: encoder.*: expected shape"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("field", "depth", "message"),
    [
        ("encoder_depth", 1000, r"encoder.layers.2: missing tensors; encoder_depth is 1000"),
        ("predictor_depth", 3, r"layers.2: missing tensors; predictor_depth is 3, .* 2 layers"),
        ("encoder_depth", 1, r"encoder.layers.1.*: unknown tensor"),
        ("encoder_depth", 10**6, r"model.json: encoder_depth: expected an integer from 1 to 1024"),
    ],
)
def test_another_number_of_layers_is_refused_at_once(
    folder: Path, field: str, depth: int, message: str
) -> None:
    change_card(folder, lambda card: card["architecture"].update({field: depth}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("value", "name", "message"),
    [
        (1e300, "encoder.layernorm.bias", "holds values that are not finite in torch.float32"),
        (-1e-3, "projector.net.1.running_var", "holds variances below 0"),
    ],
)
def test_weights_that_would_give_no_numbers_are_refused(
    folder: Path, value: float, name: str, message: str
) -> None:
    tensors = load_file(folder / checkpoint.WEIGHTS_FILE)
    tensors[name] = torch.full_like(tensors[name], value, dtype=torch.float64)
    save_file(tensors, folder / checkpoint.WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=rf"model.safetensors: {name}: {message}"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (checkpoint.CARD_FILE, None, "cannot be read"),
        (checkpoint.CARD_FILE, b"{}", "missing"),
        (checkpoint.WEIGHTS_FILE, None, "there is no such file"),
        (checkpoint.WEIGHTS_FILE, b"", "is empty"),
        (checkpoint.WEIGHTS_FILE, b"\xff" * 100, "is not a safetensors file, or is damaged"),
    ],
)
def test_a_missing_or_broken_file_is_named(
    folder: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 30369684\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a Git LFS pointer and not the file itself; `git lfs pull` fetches"),
        (b"\n <!DOCTYPE html><html>", "a web page and not the file itself"),
        (b"<html lang=en>", "a web page and not the file itself"),
        (b"Entry not found", "an error message of a download"),
        (b'{"error": "gated"}', "a JSON document"),
        (b"\x1f\x8b\x08" + bytes(40), "a gzip file; unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
        (b"PK\x03\x04" + bytes(40), "cut off: the end of its zip archive is missing"),
    ],
)
def test_another_file_in_place_of_the_weights_is_named(
    folder: Path, content: bytes, message: str
) -> None:
    (folder / checkpoint.WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is ") as caught:
        checkpoint.load(folder)
    assert message in str(caught.value)


def test_weights_that_are_cut_off_are_named(folder: Path) -> None:
    path = folder / checkpoint.WEIGHTS_FILE
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    for length in (9, 20, header_end - 1, header_end, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: is cut off"):
            checkpoint.load(folder)


def test_a_pointer_in_place_of_the_calibration_is_named(folder: Path) -> None:
    write_example_calibration(folder)
    (folder / checkpoint.REFERENCE_FILE).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"calibration\.safetensors: is a Git LFS pointer"):
        checkpoint.load(folder)


def test_a_folder_in_place_of_the_weights_is_named(folder: Path) -> None:
    (folder / checkpoint.WEIGHTS_FILE).unlink()
    (folder / checkpoint.WEIGHTS_FILE).mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a folder"):
        checkpoint.load(folder)


def test_model_folders_are_found(folder: Path) -> None:
    assert checkpoint.model_folders(folder) == [folder]
    (folder.parent / "empty").mkdir()
    assert checkpoint.model_folders(folder.parent) == [folder]
    for path in (folder.parent / "empty", folder.parent / "absent", folder / checkpoint.CARD_FILE):
        with pytest.raises(CheckpointError, match="is not a model folder and holds none"):
            checkpoint.model_folders(path)
    with pytest.raises(CheckpointError, match=r"absent: .*: there is no such folder"):
        checkpoint.model_folders(folder.parent / "absent")
    (folder.parent / "empty" / "checkpoint.pt").touch()
    with pytest.raises(CheckpointError, match=r"empty: .* a training run that is not finished"):
        checkpoint.model_folders(folder.parent / "empty")


def test_embedded_models_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    name = Path("reacher")
    embedded = checkpoint.PRETRAINED / "reacher"
    assert checkpoint.resolve_folder(name) == embedded
    assert checkpoint.model_folders(name) == [embedded]
    assert checkpoint.model_of_environment("reacher") == embedded
    assert checkpoint.model_of_environment("of-a-stranger") == checkpoint.EMBEDDED_MODEL
    with pytest.raises(CheckpointError, match=r"absent: .* no embedded model \(.*two-room.*\)"):
        checkpoint.resolve_folder(Path("absent"))
    shutil.copytree(folder, folder.parent / name)  # a folder of one's own comes first
    assert checkpoint.resolve_folder(name) == name
    assert checkpoint.model_folders(name) == [name]


def test_model_folders_are_in_the_order_of_their_numbers(folder: Path) -> None:
    names = ["m1", "m2", "m10", "n1"]
    for name in names:
        shutil.copytree(folder, folder.parent / "several" / name)
    found = checkpoint.model_folders(folder.parent / "several")
    assert [path.name for path in found] == names


def test_weights_without_a_card_are_not_passed_over(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "second")
    (folder.parent / "second" / checkpoint.CARD_FILE).unlink()
    for path in (folder.parent, folder.parent / "second"):
        with pytest.raises(CheckpointError, match=r"second/model\.json: is missing"):
            checkpoint.model_folders(path)


def test_the_weights_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    loaded = checkpoint.load(folder)
    assert read.count("model.safetensors") == 1
    assert loaded.version == checkpoint.version(folder)
