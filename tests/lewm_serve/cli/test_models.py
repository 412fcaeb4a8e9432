"""`lewm models` for a person: tables when it works, one line and exit code 1 when it does not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.calibration import calibrate
from lewm_serve.cli.main import app
from tests.lewm_models.examples import PARITY, card_of, publish, published, statistics, tiny


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lewm(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """The one line that a failing command writes."""
    result = lewm(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    [line] = result.stderr.splitlines()
    assert line.startswith("lewm models: ")
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny()
    checkpoint.save(tmp_path / "models" / "example", model, card_of(model))
    return tmp_path / "models" / "example"


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(statistics()))
    return path


def test_import_then_show_list_and_verify(tmp_path: Path, card_file: Path) -> None:
    source = publish(tmp_path / "public", tiny().state_dict(), published())
    destination = tmp_path / "made" / "imported"
    done = lewm("import", source, destination, "--card", card_file)
    assert done.exit_code == 0, done.output
    version = checkpoint.version(destination)
    assert version in done.stdout

    assert json.loads(lewm("show", destination, "--json").stdout)["name"] == "imported"
    shown = lewm("show", destination).stdout.splitlines()
    # An empty list shows as nothing.
    rows = {line.split()[0]: line.partition(" ")[2].strip() for line in shown}
    assert rows["version"].strip() == version
    assert rows["action_mean"].strip() == "0.25, 0.25"
    assert rows["architecture.encoder_heads"].strip() == "3"

    _, row = lewm("list", destination.parent).stdout.splitlines()
    assert row.split() == ["imported", version, "16", "px", "8", "5", "×", "2", str(destination)]

    verified = lewm("verify", destination)
    assert verified.exit_code == 0, verified.output
    assert verified.stdout.count("✓") == 6
    assert version in verified.stdout


def test_import_keeps_frames(tmp_path: Path, card_file: Path) -> None:
    source = publish(tmp_path / "public", tiny().state_dict(), published())
    images = [tmp_path / f"{shade}.png" for shade in (0, 200)]
    for path in images:
        Image.new("RGB", (32, 32), (int(path.stem), 0, 0)).save(path)
    given = [part for path in images for part in ("--frames", path)]
    destination = tmp_path / "imported"
    command = ("import", source, destination, "--card", card_file)
    done = lewm(*command, *given)
    assert done.exit_code == 0, done.output
    loaded = checkpoint.load(destination)
    assert loaded.frames is not None
    assert loaded.frames[:, 0, 0].tolist() == [[0, 0, 0], [200, 0, 0]]
    assert "precision_judged_on" not in loaded.card.provenance

    assert "at least 2 images" in refused(*command, "--force", *given[:2])
    Image.new("RGB", (32, 16)).save(images[0])
    assert f"{images[0]}: expected a square image" in refused(*command, "--force", *given)
    images[0].write_bytes(b"no image")
    assert str(images[0]) in refused(*command, "--force", *given)

    assert lewm(*command, "--force").exit_code == 0
    loaded = checkpoint.load(destination)
    assert loaded.frames is None
    assert loaded.card.provenance["precision_judged_on"] == "synthetic frames"


def test_export(tmp_path: Path, folder: Path) -> None:
    exported = tmp_path / "exported"
    done = lewm("export", folder, exported)
    assert done.exit_code == 0, done.output
    encoder, predictor = done.stdout.splitlines()
    assert encoder.startswith(f"{exported / 'encoder.onnx'}: within ")
    assert predictor.startswith(f"{exported / 'predictor.onnx'}: within ")
    assert "is not empty; --force" in refused("export", folder, exported)


def test_the_parity_checkpoint_is_imported(tmp_path: Path) -> None:
    card = statistics(action_block=7)
    (tmp_path / "card.json").write_text(json.dumps(card))
    for source in (PARITY, PARITY / "transformers4"):
        done = lewm("import", source, tmp_path / source.name, "--card", tmp_path / "card.json")
        assert done.exit_code == 0, done.output


def an_image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def images(folder: Path, count: int, *, actions: bool, image: str = "png") -> Path:
    """An episode of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        file = folder / f"{index:04}.{image}"
        Image.fromarray(an_image(index)).save(file)
    if actions:
        np.save(folder / "actions.npy", np.zeros((count - 1, 2), np.float32))
    return folder


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calibrations will do."""
    few = {"MIN_FRAMES": 20, "MIN_STEPS": 10, "WINDOWS": 5, "SIGREG_WINDOW": 16}
    for name, count in few.items():
        monkeypatch.setattr(calibrate, name, count)


@pytest.mark.usefixtures("_few")
def test_calibrate_on_images(tmp_path: Path, folder: Path) -> None:
    version = checkpoint.version(folder)
    for index, image in enumerate(("png", "jpg")):
        images(tmp_path / "frames" / f"episode-{index}", 20, actions=True, image=image)
    done = lewm("calibrate", folder, tmp_path / "frames", "--device", "cpu")
    assert done.exit_code == 0, done.output
    loaded = checkpoint.load(folder)
    assert loaded.version in done.stdout != version
    calibration = loaded.card.calibration
    assert calibration is not None
    # Contexts of one and of two blocks in two episodes of twenty frames.
    assert (calibration.frames, calibration.steps) == (40, 2 * (15 + 10))
    assert calibration.sigreg_limit is not None
    assert loaded.reference is not None
    assert loaded.card.provenance["calibration"] == {"frames": "frames"}
    assert loaded.card.provenance["weights"] == "random, untrained"


@pytest.mark.usefixtures("_few")
def test_calibrate_without_actions(tmp_path: Path, folder: Path) -> None:
    frames = images(tmp_path / "frames", 30, actions=False)
    done = lewm("calibrate", folder, frames, "--device", "cpu")
    assert done.exit_code == 0, done.output
    calibration = checkpoint.load(folder).card.calibration
    assert calibration is not None
    assert (calibration.frames, calibration.surprise_limit) == (30, None)


@pytest.mark.usefixtures("_few")
def test_calibrate_on_what_an_environment_shows(tmp_path: Path, folder: Path) -> None:
    arguments = ("calibrate", folder, "--device", "cpu", "--episodes", 2, "--episode-steps", 15)
    done = lewm(*arguments, "--env", "two-room", "--seed", 5)
    assert done.exit_code == 0, done.output
    card = checkpoint.load(folder).card
    assert card.calibration is not None
    assert (card.calibration.frames, card.calibration.steps) == (32, 2 * (11 + 6))
    assert card.provenance["calibration"]["seed"] == 5


def test_what_cannot_calibrate_changes_nothing(tmp_path: Path, folder: Path) -> None:
    version = checkpoint.version(folder)
    episode = images(tmp_path / "frames", 8, actions=True)

    def complaint(*arguments: object) -> str:
        line = refused("calibrate", folder, *arguments, "--device", "cpu")
        assert checkpoint.version(folder) == version
        return line

    assert "at least 1000 frames, got 8" in complaint(episode)
    np.save(episode / "actions.npy", np.zeros((8, 2), np.float32))
    assert "expected actions of shape (7, 2)" in complaint(episode)
    np.save(episode / "actions.npy", np.array([None]), allow_pickle=True)
    assert "actions.npy: cannot be read" in complaint(episode)
    (episode / "actions.npy").unlink()
    Image.fromarray(an_image(0)[:8]).save(episode / "0000.png")
    assert "0000.png: expected a square image" in complaint(episode)
    (episode / "0000.png").write_bytes(b"\x89PNG")
    assert "0000.png: received 4 bytes, expected a PNG or JPEG" in complaint(episode)
    assert "expected a recording" in complaint(tmp_path / "models")
    assert "expected FRAMES, or an --env" in complaint()
    assert "expected one of" in complaint("--env", "four-rooms")


@pytest.mark.parametrize("preset", ["paper", "edge"])
def test_init_makes_a_model_that_verifies(tmp_path: Path, preset: str) -> None:
    made = lewm("init", tmp_path / "random", "--preset", preset, "--seed", 3)
    assert made.exit_code == 0, made.output
    verified = lewm("verify", tmp_path / "random")
    assert verified.exit_code == 0, verified.output
    card = json.loads(lewm("show", tmp_path / "random", "--json").stdout)
    assert (card["name"], card["action_dim"], card["action_block"]) == (f"random-{preset}", 2, 5)
    assert card["provenance"]["command"] == f"lewm models init --preset {preset} --seed 3"


def test_an_embedded_model_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", folder.parent)
    assert "example" in lewm("list").stdout
    assert lewm("verify", "example").exit_code == 0


def test_a_folder_in_use_is_left_alone(tmp_path: Path, folder: Path, card_file: Path) -> None:
    version = checkpoint.version(folder)
    source = publish(tmp_path / "public", tiny(seed=1).state_dict(), published())
    for command in (
        ("init", folder, "--preset", "edge"),
        ("import", source, folder, "--card", card_file),
    ):
        assert "is not empty; --force" in refused(*command)
        assert checkpoint.version(folder) == version
    forced = lewm("import", source, folder, "--card", card_file, "--force")
    assert forced.exit_code == 0, forced.output
    assert checkpoint.version(folder) != version
    assert "is a file" in refused("init", card_file, "--preset", "edge", "--force")


def test_what_cannot_be_imported_writes_nothing(tmp_path: Path, card_file: Path) -> None:
    source = publish(tmp_path / "public", tiny().state_dict(), published())
    destination = tmp_path / "imported"
    assert "card.json: cannot be read" in refused(
        "import", source, destination, "--card", tmp_path / "absent" / "card.json"
    )
    card_file.write_text(json.dumps({"name": "imported"}))
    line = refused("import", source, destination, "--card", card_file)
    assert "action_mean" in line
    assert "action_high" in line
    card_file.write_text(json.dumps(statistics()))
    torch.save(tiny(), source / "weights.pt")
    assert "pickled object" in refused("import", source, destination, "--card", card_file)
    assert not destination.exists()


def test_a_broken_model_does_not_hide_the_others(tmp_path: Path, folder: Path) -> None:
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / checkpoint.CARD).write_text("{}")
    result = lewm("list", folder.parent)
    assert result.exit_code == 1
    assert "example" in result.stdout
    assert f"{broken}: " in result.stderr


def test_an_unsound_model_does_not_verify(folder: Path) -> None:
    model = tiny()
    model.get_parameter("projector.net.3.weight").data.zero_()
    checkpoint.save(folder, model, card_of(model))
    assert "the same latent" in refused("verify", folder)
    assert "absent" in refused("verify", "absent")
    assert "absent" in refused("show", "absent")
    assert "absent" in refused("list", "absent")


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys, lewm_serve.cli.main as main\n"
        "try: main.app(['models', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
