"""Tensors of all float types are read; pickled objects are refused without being run."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lewm_models.checkpoint import CheckpointError
from lewm_models.importing import import_checkpoint
from lewm_models.importing.state_dict import EXPECTED
from lewm_models.importing.unpickling import load_without_running
from tests.lewm_models.examples import import_card, tiny_model
from tests.lewm_models.importing.public_checkpoints import (
    CLS_TOKEN,
    StateDict,
    copy_state,
    with_changed_state,
    with_tensors,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(source: Path, dtype: torch.dtype) -> None:
    def convert(state: StateDict) -> None:
        for name, tensor in state.items():
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor

    model, _ = import_checkpoint(with_changed_state(source, convert), import_card())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    original = copy_state(tiny_model())[CLS_TOKEN]
    assert torch.equal(model.state_dict()[CLS_TOKEN], original.to(dtype).float())


def test_a_state_dict_may_hold_parameters(source: Path) -> None:
    torch.save(tiny_model().state_dict(keep_vars=True), source / "weights.pt")
    model, _ = import_checkpoint(source, import_card())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_mask_token_is_dropped(source: Path) -> None:
    mask_token = {"encoder.embeddings.mask_token": torch.zeros(1, 1, 12)}
    model, _ = import_checkpoint(with_tensors(source, mask_token), import_card())
    assert not any("mask_token" in name for name in model.state_dict())


@pytest.mark.parametrize(
    "name", ["encoder.pooler.dense.weight", "encoder.layers.2.mlp.fc1.bias", "model.loss", "x"]
)
def test_an_unknown_tensor_is_named(source: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        import_checkpoint(with_tensors(source, {name: torch.ones(3)}), import_card())


def test_a_tensor_with_both_names_is_refused(source: Path) -> None:
    old_name = "encoder.encoder.layer.0.output.dense.bias"
    with pytest.raises(CheckpointError, match=rf"^{old_name}: is there twice.*layers\.0\.mlp\.fc2"):
        import_checkpoint(with_tensors(source, {old_name: torch.ones(12)}), import_card())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (CLS_TOKEN, torch.full((1, 1, 12), torch.nan), "not finite"),
        (CLS_TOKEN, torch.full((1, 1, 12), 1e300, dtype=torch.float64), "not finite"),
        (CLS_TOKEN, torch.ones(1, 1, 12, dtype=torch.int64), "int64"),
        (CLS_TOKEN, torch.ones(1, 1, 12, dtype=torch.cfloat), "complex64"),
        (CLS_TOKEN, torch.ones(1, 1, 1).expand(1, 1, 12), "dense tensor"),
        (CLS_TOKEN, torch.ones(1, 1, 12).to_sparse(), "dense tensor"),
        ("projector.net.1.num_batches_tracked", torch.tensor(0.5), "int64"),
    ],
    ids=["nan", "overflow", "integer", "complex", "expanded", "sparse", "float count"],
)
def test_a_tensor_of_another_kind_is_named(
    source: Path, name: str, tensor: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        import_checkpoint(with_tensors(source, {name: tensor}), import_card())


class MakesFolderWhenUnpickled:
    """Makes a folder if it is unpickled without protection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickled_object_is_refused_and_not_run(source: Path) -> None:
    folder, weights = source / "was run", source / "weights.pt"
    torch.save({**copy_state(tiny_model()), "extra": MakesFolderWhenUnpickled(folder)}, weights)
    with pytest.raises(
        CheckpointError, match=r"^weights\.pt: holds a pickled object \(posix\.mkdir\)"
    ):
        import_checkpoint(source, import_card())
    assert not folder.exists()
    torch.load(weights, weights_only=False)
    assert folder.exists(), "the file is harmless, so this test proves nothing"


def test_a_plain_pickle_is_refused_and_not_run(source: Path) -> None:
    folder = source / "was run"
    (source / "weights.pt").write_bytes(pickle.dumps(MakesFolderWhenUnpickled(folder)))
    with pytest.raises(CheckpointError, match=r"^weights\.pt: holds a pickled object"):
        import_checkpoint(source, import_card())
    assert not folder.exists()


def test_a_pickled_model_is_refused_with_its_class(source: Path) -> None:
    torch.save(tiny_model(), source / "weights.pt")
    with pytest.raises(CheckpointError, match=r"a pickled object \(lewm_models\.lewm\.LeWM\)"):
        import_checkpoint(source, import_card())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], f"{EXPECTED}, got list"),
        ({"state_dict": {"x": torch.ones(1)}}, rf"{EXPECTED}, got 'state_dict' \(dict\)"),
        ({0: torch.ones(1)}, rf"{EXPECTED}, got 0 \(Tensor\)"),
        ({CLS_TOKEN: 12}, rf"{EXPECTED}, got '{CLS_TOKEN}' \(int\)"),
        (
            {"encoder.layernorm.bias": torch.ones(12), CLS_TOKEN: 12},
            f"{EXPECTED}, but '{CLS_TOKEN}' holds int",
        ),
        ({}, f"{EXPECTED}, got an empty dict"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(
    source: Path, content: object, message: str
) -> None:
    torch.save(content, source / "weights.pt")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(source, import_card())


def import_error(source: Path) -> str:
    """The message of an import that fails. It never repeats the advice of torch or NumPy."""
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(source, import_card())
    message = str(caught.value)
    assert "weights_only" not in message
    assert "trust" not in message
    assert len(message.splitlines()) == 1
    return message


def test_a_file_that_is_cut_off_is_named(source: Path) -> None:
    weights = source / "weights.pt"
    content = weights.read_bytes()
    for length in (10, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:length])
        assert import_error(source).startswith("weights.pt: is cut off")
    torch.save(tiny_model().state_dict(), weights, _use_new_zipfile_serialization=False)
    import_checkpoint(source, import_card())
    content = weights.read_bytes()
    for length in (100, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:length])
        assert import_error(source).startswith("weights.pt: is cut off or damaged")


def test_damaged_files_are_named(source: Path) -> None:
    weights = source / "weights.pt"
    content = weights.read_bytes()
    messages = []
    generator = torch.Generator().manual_seed(0)
    for begin in [0] * 20 + [len(content) - 200] * 100:
        damaged = bytearray(content)
        for index in torch.randint(begin, len(content), (3,), generator=generator).tolist():
            damaged[index] ^= 0x55
        weights.write_bytes(damaged)
        try:
            import_checkpoint(source, import_card())
        except CheckpointError as error:
            messages.append(str(error))
    assert messages
    assert "weights_only" not in "".join(messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n",
            "is a Git LFS pointer and not the file itself; `git lfs pull` fetches the file",
        ),
        (b"<!doctype html>\n<html>", "is a web page and not the file itself"),
        (b'{"error": "not found"}', "is a JSON document"),
        (b"\x1f\x8b\x08\x00", "is a gzip file; unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array file"),
        (b"\x01", "is of an unknown format"),
        (pickle.dumps([1, 2], protocol=0), "is of an unknown format"),
        (pickle.dumps([1, 2], protocol=4), "holds a pickled object, which is refused"),
    ],
)
def test_another_file_in_place_of_the_weights_is_named(
    source: Path, content: bytes, message: str
) -> None:
    (source / "weights.pt").write_bytes(content)
    assert import_error(source).startswith(f"weights.pt: {message}")


def test_other_archives_in_place_of_the_weights_are_named(source: Path) -> None:
    weights = source / "weights.pt"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("notes.txt", "nothing")
    assert f"is a zip archive of ['notes.txt']; {EXPECTED}" in import_error(source)
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("model/data.pkl", b"")
        archive.writestr("model/constants.pkl", b"")
    assert f"is a TorchScript program; {EXPECTED}" in import_error(source)


def test_a_pickle_of_a_newer_protocol_is_read(source: Path) -> None:
    state = copy_state(tiny_model())
    content = {"state_dict": state, "hyper_parameters": {"losses": {1, 2}}}
    torch.save(content, source / "weights.pt", pickle_protocol=4)
    model, _ = import_checkpoint(source, import_card())
    assert torch.equal(model.state_dict()[CLS_TOKEN], state[CLS_TOKEN])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefix_of_a_wrapped_model_is_removed(source: Path, prefix: str) -> None:
    weights = source / "weights.pt"
    state = copy_state(tiny_model())
    torch.save({prefix + name: tensor for name, tensor in state.items()}, weights)
    model, _ = import_checkpoint(source, import_card())
    assert torch.equal(model.state_dict()[CLS_TOKEN], state[CLS_TOKEN])
    del state[CLS_TOKEN]
    torch.save({prefix + name: tensor for name, tensor in state.items()}, weights)
    assert import_error(source).startswith(f"{prefix}{CLS_TOKEN}: ")


def test_a_tensor_with_and_without_a_prefix_is_refused(source: Path) -> None:
    def add_prefix(state: StateDict) -> None:
        state[f"module.{CLS_TOKEN}"] = state[CLS_TOKEN]

    message = import_error(with_changed_state(source, add_prefix))
    assert message == f"module.{CLS_TOKEN}: is there twice, also as {CLS_TOKEN}"


class AsksForMemory:
    """A tensor of many values on a storage of few, as a damaged file may describe it."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage: Any = torch.zeros(4).storage()  # type: ignore[no-untyped-call]
        self.size, self.stride = size, stride

    def __reduce__(self) -> tuple[object, ...]:
        arguments: tuple[object, ...] = (
            self.storage,
            0,
            self.size,
            self.stride,
            False,
            OrderedDict(),
        )
        return torch._utils._rebuild_tensor_v2, arguments


@pytest.mark.parametrize(
    ("size", "stride"), [((1 << 40,), (1,)), ((2, 2), (1 << 40, 1)), ((5,), (1,)), ((2,), (-1,))]
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """It would take as much memory as the file says, whatever the size of the file."""
    file = tmp_path / "weights.pt"
    torch.save({"a": AsksForMemory(size, stride)}, file)
    with pytest.raises(ValueError, match=r"needs more than 4 values"):
        load_without_running(file)
