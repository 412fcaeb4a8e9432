"""All forms in which the field's code writes a checkpoint, made here with torch and safetensors.

The tensors are those of the reference checkpoint, which the field's own library made.
"""

import argparse
import copy
import json
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lewm_models.card import CardError
from lewm_models.checkpoint import CheckpointError, load, save
from lewm_models.importing import import_checkpoint
from lewm_models.lewm import EncoderLayer, LeWM
from tests.lewm_models.examples import PARITY_FOLDER, import_card

State = dict[str, Tensor]

CARD = import_card(action_block=7)
HEADS = {"encoder_heads": 3, "predictor_heads": 4}
"""What no tensor of the reference checkpoint shows."""


def reference_state(folder: str = ".") -> State:
    state: State = torch.load(PARITY_FOLDER / folder / "weights.pt", weights_only=True)
    return dict(state)


def reference_config() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((PARITY_FOLDER / "config.json").read_text())
    return config


def expected() -> dict[str, Tensor]:
    with np.load(PARITY_FOLDER / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def write(
    folder: Path,
    content: object,
    config: dict[str, Any] | None = None,
    *,
    name: str = "weights.pt",
) -> Path:
    """Write a checkpoint; with the reference's `config.json` if there is no other."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / name)
    (folder / "config.json").write_text(json.dumps(config or reference_config()))
    return folder


@torch.no_grad()
def assert_is_reference(model: LeWM) -> None:
    """The model gives what the field's own library gave."""
    result = expected()
    assert torch.allclose(model.encode(result["frames"]), result["latents"], atol=1e-5)
    rolled = model.rollout(result["latents"][:3], result["action_history"], result["candidates"])
    assert torch.allclose(rolled, result["rollout_context3"], atol=1e-5)


def renamed(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): tensor for name, tensor in state.items()}


class Kind(Enum):
    """A class that a reader of the file need not have."""

    ONE = 1


class Attributes(dict[str, Any]):
    """A dict with a class of its own, as Lightning's hyper-parameters are."""


def lightning(state: State) -> dict[str, Any]:
    """A checkpoint as Lightning writes it, of a training module that holds the model."""
    module = {f"model.{name}": tensor for name, tensor in state.items()}
    module["sigreg.directions"] = torch.ones(3, 2)
    module["callbacks_modules.probe.weight"] = torch.ones(2, 2)
    return {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(module),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': None}": {
                "best_model_score": torch.tensor(0.5),
                "dirpath": Path("checkpoints"),
                "best": np.float64(0.25),
            }
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "lr_schedulers": [{"lr_lambdas": [partial(max, 1)], "kind": Kind.ONE}],
        "hparams_name": "cfg",
        "hyper_parameters": Attributes(
            cfg=argparse.Namespace(lr=5e-5, counts=defaultdict(int, {"x": 1})), labels={"a", "b"}
        ),
    }


WRAPPINGS: dict[str, Callable[[State], object]] = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: torch.ones(1)}}},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}, "step": 4},
    "nested with dots": lambda state: {"model": {"model.module": state}},
    "ema beside it": lambda state: {"model": state, "ema": renamed(state, str)},
    "one dict a part": lambda state: {
        part: {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{part}.")
        }
        for part in ("encoder", "projector", "predictor", "action_encoder", "pred_proj")
    },
    "module": lambda state: renamed(state, lambda name: f"module.{name}"),
    "compiled": lambda state: renamed(state, lambda name: f"_orig_mod.{name}"),
    "compiled in a wrapper": lambda state: renamed(
        state, lambda name: f"model._orig_mod.module.{name}"
    ),
    "compiled parts": lambda state: renamed(
        state, lambda name: name.replace("encoder.", "encoder._orig_mod.", 1)
    ),
    "wrapped inside": lambda state: renamed(
        state, lambda name: name.replace(".transformer.", ".module.transformer.model.")
    ),
    "one compiled part": lambda state: renamed(
        state, lambda name: f"_orig_mod.{name}" if name.startswith("predictor") else name
    ),
    "fully sharded": lambda state: renamed(
        state, lambda name: f"_forward_module._fsdp_wrapped_module.{name}"
    ),
    "another name": lambda state: renamed(state, lambda name: f"world_model.{name}"),
    "no counters": lambda state: {
        name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name
    },
    "lightning": lightning,
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("names", [".", "transformers4"])
def test_a_wrapped_state_dict_is_read(
    tmp_path: Path, wrap: Callable[[State], object], names: str
) -> None:
    source = write(tmp_path / "public", wrap(reference_state(names)))
    model, card = import_checkpoint(source, CARD)
    assert_is_reference(model)
    save(tmp_path / "model", model, card)
    loaded = load(tmp_path / "model")
    assert_is_reference(loaded.model)
    assert loaded.card == card


def test_what_a_training_checkpoint_holds_beside_the_model_is_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "public", lightning(reference_state()), name="last.ckpt")
    _, card = import_checkpoint(source, CARD)
    assert card.provenance["ignored_tensors"] == {
        "sigreg": 1,
        "callbacks_modules": 1,
        "callbacks": 1,
    }
    assert card.provenance["imported_from"] == "public/last.ckpt"


def test_hyper_parameters_take_the_place_of_a_config(tmp_path: Path) -> None:
    content = lightning(reference_state())
    content["hyper_parameters"]["cfg"] = {"train": {"lr": 1}, "model": reference_config()}
    torch.save(content, tmp_path / "last.ckpt")
    assert_is_reference(import_checkpoint(tmp_path / "last.ckpt", CARD)[0])
    content["hyper_parameters"]["cfg"]["model"]["predictor"]["depth"] = 7
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(
        CheckpointError,
        match=r"last\.ckpt: cfg\.model\.predictor\.depth is 7, but there are 2 layers",
    ):
        import_checkpoint(tmp_path / "last.ckpt", CARD)


class MakesFolder:
    """Makes a folder if it is unpickled without protection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.folder),)


def test_nothing_of_a_training_checkpoint_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "was run"
    content = lightning(reference_state())
    content["hyper_parameters"] = MakesFolder(folder)
    source = write(tmp_path / "public", content)
    assert_is_reference(import_checkpoint(source, CARD)[0])
    assert not folder.exists()
    content["state_dict"]["extra"] = MakesFolder(folder)
    write(source, content)
    with pytest.raises(CheckpointError, match=r"holds a pickled object \(posix\.mkdir\)"):
        import_checkpoint(source, CARD)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.extra.weight", r"^state_dict\.model\.extra\.weight: unknown tensor \(1 in all\)"),
        ("model.encoder.pooler", r"^state_dict\.model\.encoder\.pooler: unknown tensor"),
    ],
)
def test_an_unknown_tensor_of_the_model_is_refused(tmp_path: Path, name: str, message: str) -> None:
    content = lightning(reference_state())
    content["state_dict"][name] = torch.ones(2)
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(write(tmp_path / "public", content), CARD)


def test_several_models_in_one_file_are_refused(tmp_path: Path) -> None:
    state = reference_state()
    source = write(tmp_path / "public", {"student": state, "teacher": state})
    with pytest.raises(CheckpointError, match="holds several models, student, teacher; save"):
        import_checkpoint(source, CARD)


def test_a_pickled_model_inside_is_refused_with_its_class(tmp_path: Path) -> None:
    source = write(tmp_path / "public", {"model": MakesFolder(tmp_path / "x"), "epoch": 1})
    with pytest.raises(
        CheckpointError, match=r"got 'model' \(a pickled object, posix\.mkdir\), 'epoch' \(int\)"
    ):
        import_checkpoint(source, CARD)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "other.safetensors"])
def test_safetensors_are_read(tmp_path: Path, name: str) -> None:
    save_file(reference_state("transformers4"), tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(reference_config()))
    assert_is_reference(import_checkpoint(tmp_path, CARD)[0])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=rf"^{name}: is cut off"):
        import_checkpoint(tmp_path, CARD)


@pytest.mark.parametrize("name", ["model.pth", "epoch=9-step=10.ckpt", "w.safetensors", "x.bin"])
def test_a_single_file_needs_the_numbers_of_heads_in_the_card(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(reference_state(), path)
    else:
        torch.save(reference_state(), path)
    for heads, missing in (({}, "predictor.heads"), ({"predictor_heads": 4}, "attention_heads")):
        with pytest.raises(CheckpointError, match=rf"{missing}: is missing.*card's \"architectu"):
            import_checkpoint(path, {**CARD, "architecture": heads})
    with pytest.raises(CardError, match="encoder_heads: expected an integer"):
        import_checkpoint(path, {**CARD, "architecture": {**HEADS, "encoder_heads": "3"}})
    model, card = import_checkpoint(path, {**CARD, "architecture": HEADS})
    assert_is_reference(model)
    assert card.provenance["imported_from"] == f"{tmp_path.name}/{name}"
    (tmp_path / "config.json").write_text(json.dumps(reference_config()))
    assert_is_reference(import_checkpoint(path, CARD)[0])
    assert_is_reference(import_checkpoint(tmp_path, CARD)[0])


def test_one_of_several_files_has_to_be_named(tmp_path: Path) -> None:
    for name in ("last.ckpt", "epoch=1.ckpt"):
        write(tmp_path, reference_state(), name=name)
    with pytest.raises(CheckpointError, match=r"several files.*epoch=1\.ckpt, last\.ckpt; give"):
        import_checkpoint(tmp_path, CARD)
    assert_is_reference(import_checkpoint(tmp_path / "last.ckpt", CARD)[0])


def test_a_model_folder_of_this_project_is_no_checkpoint(tmp_path: Path) -> None:
    model, card = import_checkpoint(write(tmp_path / "public", reference_state()), CARD)
    save(tmp_path / "model", model, card)
    with pytest.raises(CheckpointError, match=r"has a model\.json, so it is a model folder"):
        import_checkpoint(tmp_path / "model", CARD)


@pytest.mark.parametrize(
    "nest",
    [
        lambda config: {"model": config, "lr": 1e-4},
        lambda config: {"config": {"model": config}},
        lambda config: {"world_model": config, "encoder": "vit"},
    ],
)
def test_a_nested_config_is_read(
    tmp_path: Path, nest: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    config = reference_config()
    source = write(tmp_path / "public", reference_state(), nest(config))
    assert_is_reference(import_checkpoint(source, CARD)[0])
    config["encoder"]["patch_size"] = 16
    write(source, reference_state(), nest(config))
    with pytest.raises(CheckpointError, match=r"(model|config)\.encoder\.patch_size is 16"):
        import_checkpoint(source, CARD)


def cached_repository(cache: Path, commits: tuple[str, ...], main: str | None) -> Path:
    """A repository as the cache of Hugging Face holds it: snapshots link to blobs."""
    folder = cache / "models--some-lab--lewm--push-t"
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    torch.save(reference_state(), blobs / "4f1a")
    (blobs / "8c2b").write_text(json.dumps(reference_config()))
    for commit in commits:
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "weights.pt").symlink_to("../../blobs/4f1a")
        (snapshot / "config.json").symlink_to("../../blobs/8c2b")
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


@pytest.mark.parametrize("inside", ["", "snapshots", "snapshots/ab12", "snapshots/ab12/weights.pt"])
def test_a_repository_in_the_cache_of_hugging_face_is_read(tmp_path: Path, inside: str) -> None:
    folder = cached_repository(tmp_path, ("ab12", "cd34"), main="ab12")
    model, card = import_checkpoint(folder / inside, CARD)
    assert_is_reference(model)
    assert card.provenance["imported_from"] == "some-lab/lewm--push-t/weights.pt"
    assert card.provenance["revision"] == "ab12"


def test_a_cached_repository_without_one_current_snapshot_is_refused(tmp_path: Path) -> None:
    folder = cached_repository(tmp_path, ("ab12", "cd34"), main=None)
    with pytest.raises(CheckpointError, match=r"expected one snapshot.*got ab12, cd34; give"):
        import_checkpoint(folder, CARD)


def test_the_cache_of_the_fields_own_library_names_the_repository(tmp_path: Path) -> None:
    source = write(tmp_path / "models--some-lab--lewm", reference_state())
    _, card = import_checkpoint(source, CARD)
    assert card.provenance["imported_from"] == "some-lab/lewm/weights.pt"
    assert "revision" not in card.provenance


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def project(state: State, name: str, x: Tensor, *, norm: str, activation: str) -> Tensor:
    """A projector written out, with the tensors of a state dict."""
    x = F.linear(x, state[f"{name}.net.0.weight"], state[f"{name}.net.0.bias"])
    if norm == "LayerNorm":
        affine = (state[f"{name}.net.1.weight"], state[f"{name}.net.1.bias"])
        x = F.layer_norm(x, x.shape[-1:], *affine)
    x = ACTIVATIONS[activation](x)
    return F.linear(x, state[f"{name}.net.3.weight"], state[f"{name}.net.3.bias"])


@pytest.mark.parametrize("norm", ["LayerNorm", "Identity", None])
@pytest.mark.parametrize("activation", ["ReLU", "SiLU", "GELU"])
@torch.no_grad()
def test_projectors_with_other_norms_and_activations(
    tmp_path: Path, norm: str | None, activation: str
) -> None:
    state, config = reference_state(), reference_config()
    for name in ("projector", "pred_proj"):
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            del state[f"{name}.net.1.{statistic}"]
        if norm != "LayerNorm":
            del state[f"{name}.net.1.weight"], state[f"{name}.net.1.bias"]
        target = {"_target_": f"torch.nn.{norm}", "_partial_": True}
        config[name]["norm_fn"] = None if norm is None else target
        config[name]["act_fn"] = {
            "_target_": "hydra.utils.get_class",
            "path": f"torch.nn.{activation}",
        }
    model, card = import_checkpoint(write(tmp_path / "public", state, config), CARD)
    form = {"norm": norm or "Identity", "activation": activation.lower()}
    frames = expected()["frames"]
    latents = project(state, "projector", model.features(frames), **form)
    assert torch.allclose(model.encode(frames), latents, atol=1e-5)
    actions = torch.randn(1, 3, 14, generator=torch.Generator().manual_seed(0))
    hidden = model.predictor(latents[None, :3], model.action_encoder(actions))
    predicted = project(state, "pred_proj", hidden, **form)
    assert torch.allclose(model.predict(latents[None, :3], actions), predicted, atol=1e-5)

    save(tmp_path / "model", model, card)
    loaded = load(tmp_path / "model")
    assert loaded.card.config == card.config
    assert torch.equal(loaded.model.encode(frames), model.encode(frames))


@torch.no_grad()
def test_a_model_without_projectors(tmp_path: Path) -> None:
    state, config = reference_state(), reference_config()
    state = {name: tensor for name, tensor in state.items() if "proj" not in name.split(".")[0]}
    source = tmp_path / "public"
    for value in (None, {"_target_": "torch.nn.Identity"}):
        config["projector"] = config["pred_proj"] = value
        model, card = import_checkpoint(write(source, state, config), CARD)
        frames = expected()["frames"]
        assert torch.equal(model.encode(frames), model.features(frames))
        assert (card.config.projector_mlp, card.config.pred_proj_mlp) == (0, 0)
        assert "unknown_settings" not in card.provenance
    with pytest.raises(CheckpointError, match=r"projector is Identity, but projector\.net\.0"):
        import_checkpoint(write(source, reference_state(), config), CARD)
    with pytest.raises(CheckpointError, match=r"projector\.hidden_dim is 96, but there are no ten"):
        import_checkpoint(write(source, state), CARD)


@pytest.mark.parametrize("activation", ["relu", "silu", "swish"])
@torch.no_grad()
def test_the_encoders_activation(tmp_path: Path, activation: str) -> None:
    config = reference_config()
    config["encoder"]["hidden_act"] = activation
    model, _ = import_checkpoint(write(tmp_path / "public", reference_state(), config), CARD)
    frames = expected()["frames"]
    assert not torch.allclose(model.encode(frames), expected()["latents"], atol=1e-2)
    mlp = cast(EncoderLayer, model.encoder.layers[0]).mlp
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    function = {"swish": "silu"}.get(activation, activation)
    written_out = mlp.fc2(ACTIVATIONS[function](mlp.fc1(x)))
    assert torch.equal(mlp(x), written_out)


@pytest.mark.parametrize("size", [[56, 56], 60, [69, 69]])
@torch.no_grad()
def test_image_sizes_that_are_no_multiple_of_the_patch(tmp_path: Path, size: Any) -> None:
    config = reference_config()
    config["encoder"]["image_size"] = size
    config["encoder"]["patch_size"] = [14, 14]
    model, card = import_checkpoint(write(tmp_path / "public", reference_state(), config), CARD)
    side = size if isinstance(size, int) else size[0]
    assert card.config.image_size == side
    # The convolution of the patches does not reach the rest of the pixels.
    frames = torch.full((4, side, side, 3), 200, dtype=torch.uint8)
    frames[:, :56, :56] = expected()["frames"]
    assert torch.allclose(model.encode(frames), expected()["latents"], atol=1e-5)


def test_the_card_gives_an_image_size_that_no_config_gives(tmp_path: Path) -> None:
    config = reference_config()
    del config["encoder"]["image_size"]
    source = write(tmp_path / "public", reference_state(), config)
    assert import_checkpoint(source, {**CARD, "image_size": 60})[1].config.image_size == 60
    with pytest.raises(CardError, match="image_size: is 72, but 56 in the checkpoint"):
        import_checkpoint(source, {**CARD, "image_size": 72})


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ("torch.nn.LayerNorm", r"projector\.norm_fn is LayerNorm, but projector\.net\.1: its tens"),
        ("torch.nn.Identity", r"projector\.norm_fn is Identity, but projector\.net\.1"),
        ("torch.nn.GroupNorm", r"projector\.norm_fn: expected one of .*, got 'GroupNorm'"),
        (None, r"projector\.norm_fn is null, but projector\.net\.1"),
    ],
)
def test_a_norm_that_the_tensors_do_not_show_is_refused(
    tmp_path: Path, norm: str | None, message: str
) -> None:
    config = copy.deepcopy(reference_config())
    config["projector"]["norm_fn"] = norm
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(write(tmp_path / "public", reference_state(), config), CARD)


def test_a_batch_norm_that_lost_its_statistics_is_refused(tmp_path: Path) -> None:
    state = {
        name: tensor
        for name, tensor in reference_state().items()
        if not name.startswith("pred_proj.net.1.running")
    }
    with pytest.raises(CheckpointError, match=r"pred_proj\.norm_fn is BatchNorm1d, but pred_proj"):
        import_checkpoint(write(tmp_path / "public", state), CARD)


def test_another_kind_of_projector_is_refused(tmp_path: Path) -> None:
    state = {
        name: tensor
        for name, tensor in reference_state().items()
        if not name.startswith("projector.")
    }
    state["projector.weight"] = torch.ones(48, 48)
    with pytest.raises(CheckpointError, match=r"^projector: expected a linear map.*projector\.wei"):
        import_checkpoint(write(tmp_path / "public", state), CARD)


def test_the_card_names_the_activations_of_a_single_file(tmp_path: Path) -> None:
    torch.save(reference_state(), tmp_path / "weights.pt")
    forms = {"projector_activation": "relu", "encoder_activation": "silu"}
    card = {**CARD, "architecture": {**HEADS, **forms}}
    config = import_checkpoint(tmp_path / "weights.pt", card)[1].config
    assert (config.projector_activation, config.encoder_activation) == ("relu", "silu")


@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        ("projector_norm", "layernorm", "is 'layernorm', but batchnorm in the checkpoint"),
        ("projector_activation", "tanh", "expected one of gelu, relu, silu, got 'tanh'"),
    ],
)
def test_a_form_in_the_card_that_cannot_be_is_refused(
    tmp_path: Path, form: str, value: str, message: str
) -> None:
    torch.save(reference_state(), tmp_path / "weights.pt")
    card = {**CARD, "architecture": {**HEADS, form: value}}
    with pytest.raises(CardError, match=f"^{form}: {message}"):
        import_checkpoint(tmp_path / "weights.pt", card)
