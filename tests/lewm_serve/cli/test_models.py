"""`lewm models` as it is typed: tables on success; one line and exit code 1 on failure."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.calibration import calibrate
from lewm_models.recordings.recording import open_recording
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.preparation import fingerprint
from lewm_serve.cli.image_files import read_episodes
from lewm_serve.cli.main import app
from lewm_serve.cli.messages import describe_error
from tests.lewm_models.examples import (
    PARITY_FOLDER,
    example_card,
    import_card,
    public_config,
    tiny_model,
    write_public_checkpoint,
)
from tests.lewm_models.training.sources import JOINT_RANGES, write_robot


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lewm(*arguments: object) -> Result:
    """Run `lewm models`."""
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


def error_line(*arguments: object) -> str:
    """The one line that a failing command writes."""
    result = lewm(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    [line] = result.stderr.splitlines()
    assert line.startswith("lewm models: ")
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model called `example`."""
    model = tiny_model()
    checkpoint.save(tmp_path / "models" / "example", model, example_card(model))
    return tmp_path / "models" / "example"


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    """The card that an import needs."""
    path = tmp_path / "card.json"
    path.write_text(json.dumps(import_card()))
    return path


@pytest.fixture
def public_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint in the format of public ones."""
    weights = tiny_model(seed=1).state_dict()
    return write_public_checkpoint(tmp_path / "public", weights, public_config())


def test_import_then_show_list_and_verify(
    tmp_path: Path, public_checkpoint: Path, card_file: Path
) -> None:
    destination = tmp_path / "made" / "imported"
    result = lewm("import", public_checkpoint, destination, "--card", card_file)
    assert result.exit_code == 0, result.output
    version = checkpoint.version(destination)
    assert version in result.stdout

    assert json.loads(lewm("show", destination, "--json").stdout)["name"] == "imported"
    lines = lewm("show", destination).stdout.splitlines()
    # An empty list is shown as nothing.
    values = {line.split()[0]: line.partition(" ")[2].strip() for line in lines}
    assert values["version"] == version
    assert values["action_mean"] == "0.25, 0.25"
    assert values["architecture.encoder_heads"] == "3"

    _, row = lewm("list", destination.parent).stdout.splitlines()
    assert row.split() == ["imported", version, "16", "px", "8", "5", "×", "2", str(destination)]

    verified = lewm("verify", destination)
    assert verified.exit_code == 0, verified.output
    assert verified.stdout.count("✓") == 6
    assert version in verified.stdout


def test_import_keeps_frames(tmp_path: Path, public_checkpoint: Path, card_file: Path) -> None:
    images = [tmp_path / f"{shade}.png" for shade in (0, 200)]
    for path in images:
        Image.new("RGB", (32, 32), (int(path.stem), 0, 0)).save(path)
    frames = [part for path in images for part in ("--frames", path)]
    destination = tmp_path / "imported"
    command = ("import", public_checkpoint, destination, "--card", card_file)
    result = lewm(*command, *frames)
    assert result.exit_code == 0, result.output
    loaded = checkpoint.load(destination)
    assert loaded.frames is not None
    assert loaded.frames[:, 0, 0].tolist() == [[0, 0, 0], [200, 0, 0]]
    assert "precision_judged_on" not in loaded.card.provenance

    assert "at least 2 images" in error_line(*command, "--force", *frames[:2])
    Image.new("RGB", (32, 16)).save(images[0])
    assert f"{images[0]}: received 32 x 16, expected a square frame" in error_line(
        *command, "--force", *frames
    )
    images[0].write_bytes(b"no image")
    assert str(images[0]) in error_line(*command, "--force", *frames)

    assert lewm(*command, "--force").exit_code == 0
    loaded = checkpoint.load(destination)
    assert loaded.frames is None
    assert loaded.card.provenance["precision_judged_on"] == "synthetic frames"


def test_export(tmp_path: Path, folder: Path) -> None:
    exported = tmp_path / "exported"
    result = lewm("export", folder, exported)
    assert result.exit_code == 0, result.output
    encoder, predictor = result.stdout.splitlines()
    assert encoder.startswith(f"{exported / 'encoder.onnx'}: within ")
    assert predictor.startswith(f"{exported / 'predictor.onnx'}: within ")
    assert "is not empty; --force" in error_line("export", folder, exported)


def test_the_parity_checkpoint_can_be_imported(tmp_path: Path) -> None:
    card = import_card(action_block=7)
    (tmp_path / "card.json").write_text(json.dumps(card))
    for source in (PARITY_FOLDER, PARITY_FOLDER / "transformers4"):
        result = lewm("import", source, tmp_path / source.name, "--card", tmp_path / "card.json")
        assert result.exit_code == 0, result.output


def random_image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def write_episode(folder: Path, count: int, *, with_actions: bool, extension: str = "png") -> Path:
    """Write random images, and actions of zero between them, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(random_image(index)).save(folder / f"{index:04}.{extension}")
    if with_actions:
        np.save(folder / "actions.npy", np.zeros((count - 1, 2), np.float32))
    return folder


@pytest.fixture
def _small_calibrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow calibrations with few frames."""
    counts = {
        "MIN_CALIBRATION_FRAMES": 20,
        "MIN_SURPRISE_STEPS": 10,
        "SIGREG_WINDOW_COUNT": 5,
        "SIGREG_WINDOW": 16,
    }
    for name, count in counts.items():
        monkeypatch.setattr(calibrate, name, count)


@pytest.mark.usefixtures("_small_calibrations")
def test_calibrate_on_images(tmp_path: Path, folder: Path) -> None:
    version = checkpoint.version(folder)
    for index, extension in enumerate(("png", "jpg")):
        episode = tmp_path / "frames" / f"episode-{index}"
        write_episode(episode, 20, with_actions=True, extension=extension)
    result = lewm("calibrate", folder, tmp_path / "frames", "--device", "cpu")
    assert result.exit_code == 0, result.output
    loaded = checkpoint.load(folder)
    assert loaded.version in result.stdout != version
    calibration = loaded.card.calibration
    assert calibration is not None
    # Contexts of one and of two blocks in two episodes of twenty frames.
    assert (calibration.frames, calibration.steps) == (40, 2 * (15 + 10))
    assert calibration.sigreg_limit is not None
    assert loaded.reference is not None
    assert loaded.card.provenance["calibration"] == {"frames": "frames"}
    assert loaded.card.provenance["weights"] == "random, untrained"


@pytest.mark.usefixtures("_small_calibrations")
def test_calibrate_without_actions(tmp_path: Path, folder: Path) -> None:
    frames = write_episode(tmp_path / "frames", 30, with_actions=False)
    result = lewm("calibrate", folder, frames, "--device", "cpu")
    assert result.exit_code == 0, result.output
    calibration = checkpoint.load(folder).card.calibration
    assert calibration is not None
    assert (calibration.frames, calibration.surprise_limit) == (30, None)


@pytest.mark.usefixtures("_small_calibrations")
def test_calibrate_on_an_environment(tmp_path: Path, folder: Path) -> None:
    arguments = ("calibrate", folder, "--device", "cpu", "--episodes", 2, "--episode-steps", 15)
    result = lewm(*arguments, "--env", "two-room", "--seed", 5)
    assert result.exit_code == 0, result.output
    card = checkpoint.load(folder).card
    assert card.calibration is not None
    assert (card.calibration.frames, card.calibration.steps) == (32, 2 * (11 + 6))
    assert card.provenance["calibration"]["seed"] == 5


def test_images_are_read_in_the_order_of_their_numbers(tmp_path: Path, folder: Path) -> None:
    card = checkpoint.load(folder).card
    for episode in range(11):
        inside = tmp_path / "frames" / f"episode{episode}"
        inside.mkdir(parents=True)
        for step in range(12):
            pixels = np.full((16, 16, 3), 12 * episode + step, np.uint8)
            extension = "png" if step % 2 else "PNG"
            Image.fromarray(pixels).save(inside / f"{step}.{extension}", "PNG")
    episodes = list(read_episodes(tmp_path / "frames", card))
    frames = torch.cat([episode.frames for episode in episodes])
    assert frames[:, 0, 0, 0].tolist() == list(range(11 * 12))


def test_an_episode_without_actions_among_others_is_refused(tmp_path: Path, folder: Path) -> None:
    for name, with_actions in (("first", True), ("second", False), ("third", True)):
        write_episode(tmp_path / "frames" / name, 4, with_actions=with_actions)
    line = error_line("calibrate", folder, tmp_path / "frames", "--device", "cpu")
    assert "frames/second: has no actions.npy, as 1 of 3 folders of images" in line


def test_actions_that_are_infinite_are_refused(tmp_path: Path, folder: Path) -> None:
    episode = write_episode(tmp_path / "frames", 4, with_actions=True)
    np.save(episode / "actions.npy", np.array([[0, np.nan], [0, 0], [np.inf, 0]], np.float32))
    line = error_line("calibrate", folder, episode, "--device", "cpu")
    assert "actions.npy: expected finite actions, or NaN for a missing one, got infinity" in line


def test_a_calibration_of_random_weights_is_warned_about(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 20)
    monkeypatch.setattr(calibrate, "SIGREG_WINDOW_COUNT", 5)
    frames = write_episode(tmp_path / "frames", 140, with_actions=False)
    result = lewm("calibrate", folder, frames, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "lewm models: warning: calibration: the latents of ordinary frames" in result.stderr
    assert "is the model trained" in result.stderr


def test_a_recording_calibrates_its_model(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any format, with the card's crop, without the steps that training would leave out."""
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 20)
    monkeypatch.setattr(calibrate, "SIGREG_WINDOW_COUNT", 5)
    recording = write_robot(tmp_path / "robot.h5", steps=[70, 4, 90])
    with h5py.File(recording, "r+") as file:
        actions = file["action"][:, :2] / JOINT_RANGES[:2]
        actions[100] = np.nan  # the last episode is cut into 27 and 63 steps
        del file["action"]
        file["action"] = actions
    line = error_line("calibrate", folder, recording, "--device", "cpu")
    assert "crop: expected center, pad, stretch for frames of 96 x 64" in line
    card = checkpoint.load(folder).card
    checkpoint.write_card(folder, replace(card, crop="pad"))
    result = lewm("calibrate", folder, recording, "--device", "cpu")
    assert result.exit_code == 0, result.output
    calibration = checkpoint.load(folder).card.calibration
    assert calibration is not None
    assert calibration.frames == 70 + 27 + 63
    assert "no 'front'" in error_line("calibrate", folder, recording, "--camera", "front")


def test_calibration_on_the_training_data_is_warned_of(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the content, whatever the file is called; by the name where the card has nothing else."""
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 20)
    monkeypatch.setattr(calibrate, "SIGREG_WINDOW_COUNT", 5)
    recording, other = (
        write_robot(tmp_path / name, steps=[60, 60], height=16, width=16, seed=seed)
        for seed, name in enumerate(("robot.h5", "other.h5"))
    )
    for path in (recording, other):
        with h5py.File(path, "r+") as file:
            actions = file["action"][:, :2]
            del file["action"]
            file["action"] = actions
    with open_recording(recording) as opened:
        usable = usable_episodes(opened, action="action", min_steps=16)
        found = fingerprint(opened, usable.ranges, action="action", camera="pixels")
    card = checkpoint.load(folder).card
    description = {"camera": "pixels", "action": "action"}
    for trained_on, expected in (
        (description | {"fingerprint": found}, {"copy.h5"}),
        (description, {"robot.h5"}),
    ):
        provenance = {"trained_on": "robot.h5", "recording": trained_on}
        checkpoint.write_card(folder, replace(card, provenance=provenance))
        copy = tmp_path / "copy.h5"
        copy.write_bytes(recording.read_bytes())
        names = {"copy.h5", "other.h5"} | expected
        warned = {
            name
            for name in names
            if f"{name} is what"
            in lewm("calibrate", folder, tmp_path / name, "--device", "cpu").stderr
        }
        assert warned == expected


def test_a_failing_calibration_changes_nothing(tmp_path: Path, folder: Path) -> None:
    version = checkpoint.version(folder)
    episode = write_episode(tmp_path / "frames", 8, with_actions=True)

    def calibration_error(*arguments: object) -> str:
        line = error_line("calibrate", folder, *arguments, "--device", "cpu")
        assert checkpoint.version(folder) == version
        return line

    assert "at least 1000 frames, got 8" in calibration_error(episode)
    np.save(episode / "actions.npy", np.zeros((8, 2), np.float32))
    assert "expected actions of shape (7, 2)" in calibration_error(episode)
    np.save(episode / "actions.npy", np.array([None]), allow_pickle=True)
    assert "actions.npy: holds Python objects" in calibration_error(episode)
    (episode / "actions.npy").unlink()
    Image.fromarray(random_image(0)[:8]).save(episode / "0000.png")
    assert "0000.png: received 16 x 8, expected a square frame" in calibration_error(episode)
    (episode / "0000.png").write_bytes(b"\x89PNG")
    assert "0000.png: received 4 bytes, expected a PNG or JPEG" in calibration_error(episode)
    assert "expected a recording" in calibration_error(tmp_path / "models")
    assert "calibrate: expected either FRAMES or --env" in calibration_error()
    assert "expected one of" in calibration_error("--env", "four-rooms")


@pytest.mark.parametrize("preset", ["paper", "edge"])
def test_a_new_model_verifies(tmp_path: Path, preset: str) -> None:
    result = lewm("init", tmp_path / "random", "--preset", preset, "--seed", 3)
    assert result.exit_code == 0, result.output
    verified = lewm("verify", tmp_path / "random")
    assert verified.exit_code == 0, verified.output
    card = json.loads(lewm("show", tmp_path / "random", "--json").stdout)
    assert (card["name"], card["action_dim"], card["action_block"]) == (f"random-{preset}", 2, 5)
    assert card["provenance"]["command"] == f"lewm models init --preset {preset} --seed 3"


def test_an_embedded_model_has_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PRETRAINED", folder.parent)
    assert "example" in lewm("list").stdout
    assert lewm("verify", "example").exit_code == 0


def test_a_folder_in_use_is_not_overwritten(
    public_checkpoint: Path, folder: Path, card_file: Path
) -> None:
    version = checkpoint.version(folder)
    for command in (
        ("init", folder, "--preset", "edge"),
        ("import", public_checkpoint, folder, "--card", card_file),
    ):
        assert "is not empty; --force" in error_line(*command)
        assert checkpoint.version(folder) == version
    forced = lewm("import", public_checkpoint, folder, "--card", card_file, "--force")
    assert forced.exit_code == 0, forced.output
    assert checkpoint.version(folder) != version
    assert "is a file" in error_line("init", card_file, "--preset", "edge", "--force")


def test_an_import_lists_what_it_does_not_use(
    tmp_path: Path, public_checkpoint: Path, card_file: Path
) -> None:
    config = json.loads((public_checkpoint / "config.json").read_text())
    config["predictor"]["rotary"] = True
    config["loss"] = {"weight": 0.1}
    (public_checkpoint / "config.json").write_text(json.dumps(config))
    card_file.write_text(json.dumps(import_card() | {"action_mean": [9.0, 0.0]}))
    destination = tmp_path / "imported"
    result = lewm("import", public_checkpoint, destination, "--card", card_file)
    assert result.exit_code == 0, result.output
    warnings = result.stderr.splitlines()
    assert (
        "config.json: unknown settings, without effect here: loss, predictor.rotary" in warnings[0]
    )
    assert "action_mean: [9.0, 0.0] is outside of action_low and action_high" in warnings[1]
    card = checkpoint.load(destination).card
    assert card.provenance["unknown_settings"] == ["loss", "predictor.rotary"]
    assert "action_mean" in lewm("verify", destination).stderr


def test_a_solver_that_no_server_has_does_not_verify(folder: Path) -> None:
    path = folder / checkpoint.CARD_FILE
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"solver": {"name": "oracle"}}))
    assert "solver.name: received 'oracle', expected one of cem" in error_line("verify", folder)


def test_the_solver_of_a_card_is_changed_where_it_is_asked_for(folder: Path) -> None:
    before = checkpoint.load(folder)
    shown = lewm("solver", folder).stdout
    assert before.version in shown
    assert checkpoint.version(folder) == before.version
    given = ("--horizon", 2, "--solver", "icem", "--samples", 40, "--setting", "momentum=0.5")
    shown = lewm("solver", folder, *given).stdout
    after = checkpoint.load(folder)
    expected = replace(before.card.solver, name="icem", samples=40, horizon=2, momentum=0.5)
    assert after.card == replace(before.card, solver=expected)
    assert after.version != before.version
    assert after.version in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--horizon", 0), "solver.horizon: expected an integer of at least 1, got 0"),
        (("--solver", "oracle"), "solver.name: received 'oracle', expected one of cem"),
        (("--objective", "distance"), "the card has no distance"),
        (("--setting", "speed=1"), "solver: unknown fields ['speed'], known are"),
        (("--setting", "momentum"), "--setting: expected NAME=VALUE with a number, got momentum"),
    ],
)
def test_an_impossible_solver_is_refused_and_not_written(
    folder: Path, given: tuple[object, ...], message: str
) -> None:
    card = (folder / checkpoint.CARD_FILE).read_bytes()
    assert message in error_line("solver", folder, *given)
    assert (folder / checkpoint.CARD_FILE).read_bytes() == card


def test_a_failing_import_writes_nothing(
    tmp_path: Path, public_checkpoint: Path, card_file: Path
) -> None:
    destination = tmp_path / "imported"
    assert "card.json: cannot be read" in error_line(
        "import", public_checkpoint, destination, "--card", tmp_path / "absent" / "card.json"
    )
    card_file.write_text(json.dumps({"name": "imported"}))
    line = error_line("import", public_checkpoint, destination, "--card", card_file)
    assert "action_mean" in line
    assert "action_high" in line
    card_file.write_text(json.dumps(import_card()))
    torch.save(tiny_model(), public_checkpoint / "weights.pt")
    assert "pickled object" in error_line(
        "import", public_checkpoint, destination, "--card", card_file
    )
    assert not destination.exists()


def test_a_broken_model_is_listed_as_an_error_beside_the_others(
    tmp_path: Path, folder: Path
) -> None:
    broken = folder.parent / "broken"
    broken.mkdir()
    (broken / checkpoint.CARD_FILE).write_text("{}")
    result = lewm("list", folder.parent)
    assert result.exit_code == 1
    assert "example" in result.stdout
    assert f"{broken / checkpoint.CARD_FILE}: " in result.stderr


def test_a_model_that_gives_one_latent_for_all_frames_does_not_verify(folder: Path) -> None:
    model = tiny_model()
    model.get_parameter("projector.net.3.weight").data.zero_()
    checkpoint.save(folder, model, example_card(model))
    assert "the same latent" in error_line("verify", folder)
    assert "absent" in error_line("verify", "absent")
    assert "absent" in error_line("show", "absent")
    assert "absent" in error_line("list", "absent")


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys, lewm_serve.cli.main as main\n"
        "try: main.app(['models', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert process.returncode == 0, process.stderr


def test_a_file_in_place_of_a_folder_is_named(
    tmp_path: Path, folder: Path, card_file: Path
) -> None:
    file = tmp_path / "data.h5"
    file.write_bytes(b"\x89HDF\r\n\x1a\n")
    for command in (["show"], ["verify"], ["export", tmp_path / "out"], ["calibrate", tmp_path]):
        line = error_line(command[0], file, *command[1:])
        assert line == f"lewm models: {file}: is a file, expected a model folder"
    line = error_line("calibrate", folder, file)
    assert line.startswith(f"lewm models: {file}: cannot be opened: ")
    line = error_line("calibrate", folder, tmp_path / "nowhere")
    assert line == f"lewm models: {tmp_path / 'nowhere'}: there is no such file or folder"
    line = error_line("import", file, tmp_path / "out", "--card", card_file)
    assert "data.h5: is an HDF5 file; expected the state dict of a LeWM" in line
    line = error_line("init", file / "inside", "--preset", "edge")
    assert line == f"lewm models: {file / 'inside'}: Not a directory"


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    line = error_line("show", tmp_path / "nowhere")
    assert line.endswith("nowhere: is no folder and no embedded model (push-t, reacher, two-room)")


def test_errors_of_the_operating_system_name_the_file_and_the_reason() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/models/x")
    assert describe_error(error) == "/models/x: No space left on device"
    assert describe_error(OSError("no number")) == "no number"
    assert describe_error(ValueError("frames: none")) == "frames: none"


def test_a_card_file_of_another_kind_is_named(
    tmp_path: Path, public_checkpoint: Path, card_file: Path
) -> None:
    command = ("import", public_checkpoint, tmp_path / "out", "--card", card_file)
    content = card_file.read_bytes()
    card_file.write_bytes(b"<html>")
    assert f"{card_file}: is not valid JSON: it is a web page" in error_line(*command)
    card_file.write_bytes(b"")
    assert f"{card_file}: is not valid JSON: it is empty" in error_line(*command)
    card_file.write_bytes(b"\xef\xbb\xbf" + content)  # as Windows' editors write it
    assert lewm(*command).exit_code == 0


def test_other_files_in_place_of_actions_are_named(tmp_path: Path, folder: Path) -> None:
    episode = write_episode(tmp_path / "frames", 8, with_actions=True)
    actions = episode / "actions.npy"
    np.savez(episode / "actions", np.zeros((7, 2)))
    (episode / "actions.npz").replace(actions)
    line = error_line("calibrate", folder, episode)
    assert f"{actions}: is a zip archive; expected a NumPy array file" in line
    actions.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert f"{actions}: is a Git LFS pointer" in error_line("calibrate", folder, episode)


def test_a_pointer_in_place_of_an_image_is_named(tmp_path: Path, folder: Path) -> None:
    episode = write_episode(tmp_path / "frames", 8, with_actions=False)
    image = sorted(episode.glob("*.png"))[0]
    image.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    line = error_line("calibrate", folder, episode, "--device", "cpu")
    assert f"{image}: is a Git LFS pointer" in line
