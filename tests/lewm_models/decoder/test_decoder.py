"""The decoder: its network, its file, its training, and its place in a model's folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner

from lewm_models import checkpoint
from lewm_models.decoder.network import FRAME_SIDE, FrameDecoder
from lewm_models.decoder.run import TooFewFrames, train_decoder_of_model
from lewm_models.recorded_sample import PreparedPieces
from lewm_serve.cli.main import app
from tests.lewm_models.examples import example_card, tiny_model
from tests.lewm_models.training.sources import prepare, two_room

DIM = 6
MAX_FILE_BYTES = 4_000_000


@pytest.fixture
def decoder() -> FrameDecoder:
    torch.manual_seed(0)
    mean_frame = torch.full((3, FRAME_SIDE, FRAME_SIDE), 0.5)
    return FrameDecoder(torch.zeros(DIM), torch.ones(DIM), mean_frame=mean_frame, width=8)


def test_a_written_decoder_is_read_back_without_gradients(decoder: FrameDecoder) -> None:
    read = FrameDecoder.from_bytes(decoder.to_bytes(), DIM)
    latents = torch.randn(3, DIM)
    assert torch.equal(read.pictures(latents), decoder.pictures(latents))
    assert read.pictures(latents).shape == (3, FRAME_SIDE, FRAME_SIDE, 3)
    assert not any(parameter.requires_grad for parameter in read.parameters())


@pytest.mark.parametrize("latent_dim", [16, 128, 192, 1024, 4096])
def test_the_file_is_small_for_any_latent(latent_dim: int) -> None:
    frame = torch.zeros(3, FRAME_SIDE, FRAME_SIDE)
    network = FrameDecoder(torch.zeros(latent_dim), torch.ones(latent_dim), mean_frame=frame)
    assert len(network.to_bytes()) < MAX_FILE_BYTES


def test_what_is_wrong_in_a_file_is_named(decoder: FrameDecoder) -> None:
    tensors = load(decoder.to_bytes())
    without_first = {name: value for name, value in tensors.items() if name != "first.bias"}
    for content, message in (
        (b"no tensors", "cannot be read"),
        (save(without_first), "first.bias: expected 8 to 128 times 16 values, got 0"),
        (save({**tensors, "first.bias": torch.zeros(7)}), "first.bias: expected 8 to 128"),
        (save({**tensors, "extra": torch.zeros(1)}), "expected the tensors"),
        (save({**tensors, "last.bias": torch.full((12,), torch.nan)}), "last.bias: holds values"),
        (save({**tensors, "latent_std": torch.zeros(DIM)}), "latent_std: expected deviations"),
    ):
        with pytest.raises(ValueError, match=message):
            FrameDecoder.from_bytes(content, DIM)
    with pytest.raises(ValueError, match=r"first\.weight: expected float32 of shape"):
        FrameDecoder.from_bytes(decoder.to_bytes(), DIM + 1)


def test_too_few_frames_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    data = prepare(two_room(episodes=3, steps=39, image_size=16), tmp_path)
    with pytest.raises(TooFewFrames, match="frames, a decoder needs 100"):
        train_decoder_of_model(model, example_card(model), PreparedPieces(data, 16))


def lewm(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_writes_a_decoder_and_changes_neither_model_nor_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, folder = tiny_model(), Path("model")
    checkpoint.save(folder, model, example_card(model))
    weights, version = (folder / "model.safetensors").read_bytes(), checkpoint.version(folder)
    command = ("models", "decoder", folder, "--env", "two-room", "--episodes", "8")
    output = lewm(*command, "--episode-steps", "60", "--steps", "5")
    loaded = checkpoint.load(folder)
    described = loaded.card.decoder
    assert loaded.decoder is not None
    assert described is not None
    assert described.training_frames >= 100
    assert f"{described.error:.4f}" in output
    assert loaded.version == version
    assert (folder / "model.safetensors").read_bytes() == weights
    made = loaded.card.provenance["decoder"]
    assert made["data"] == {"environment": "two-room", "seed": 0}
    assert made["command"].startswith("lewm models decoder model --env two-room --episodes 8")
    parts = checkpoint.load_viewing_parts(folder, loaded.card.config.latent_dim)
    assert parts.decoder is not None
    assert parts.probe is None
    # Saving the folder without its decoder removes the file.
    checkpoint.save(folder, model, replace(loaded.card, decoder=None))
    assert not (folder / checkpoint.DECODER_FILE).exists()


def test_a_damaged_or_missing_decoder_is_refused_by_name(tmp_path: Path) -> None:
    embedded = checkpoint.load(checkpoint.EMBEDDED_MODEL)
    folder = tmp_path / "model"
    card = replace(embedded.card, probe=None)
    checkpoint.save(folder, embedded.model, card, decoder=embedded.decoder)
    path = folder / checkpoint.DECODER_FILE
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(checkpoint.CheckpointError, match="does not belong to the card's decoder"):
        checkpoint.load_viewing_parts(folder, embedded.card.config.latent_dim)
    path.unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"decoder\.safetensors"):
        checkpoint.load_viewing_parts(folder, embedded.card.config.latent_dim)


def test_the_embedded_decoder_shows_its_frames() -> None:
    embedded = checkpoint.load(checkpoint.EMBEDDED_MODEL)
    assert embedded.decoder is not None
    assert embedded.frames is not None
    with torch.inference_mode():
        shown = embedded.decoder.pictures(embedded.model.encode(embedded.frames))
    mean_frame = embedded.decoder.mean_frame.permute(1, 2, 0) * 255
    error = (shown.float() - embedded.frames.float()).abs().mean()
    assert error < 0.5 * (mean_frame - embedded.frames.float()).abs().mean()
    assert (checkpoint.EMBEDDED_MODEL / checkpoint.DECODER_FILE).stat().st_size < MAX_FILE_BYTES
