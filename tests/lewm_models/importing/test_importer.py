"""Public checkpoints of any size become models; an error names what is wrong."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lewm_models.card import CardError
from lewm_models.checkpoint import CheckpointError
from lewm_models.config import IMAGENET_MEAN, LeWMConfig
from lewm_models.importing import import_checkpoint
from lewm_models.importing.importer import REQUIRED_CARD_FIELDS
from tests.lewm_models.examples import (
    TINY,
    import_card,
    public_config,
    tiny_model,
    write_public_checkpoint,
)
from tests.lewm_models.importing.public_checkpoints import (
    CLS_TOKEN,
    StateDict,
    copy_state,
    with_changed_state,
    with_transformers_4_names,
)

CONFIGS = [
    TINY,
    replace(TINY, action_block=3, action_dim=1),
    replace(TINY, action_block=7, action_dim=6),
    replace(TINY, image_size=32, encoder_depth=1, predictor_depth=3, history=4),
    replace(TINY, predictor_width=10, predictor_output=6),
    replace(TINY, predictor_width=10, predictor_output=10),
    replace(TINY, predictor_output=5),
    replace(TINY, predictor_heads=1, predictor_head_dim=8),
    replace(TINY, history=1, dropout=0.0),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("rename", [dict, with_transformers_4_names])
def test_a_checkpoint_of_any_size_is_imported(
    tmp_path: Path, config: LeWMConfig, rename: Callable[[StateDict], StateDict]
) -> None:
    original = tiny_model(**asdict(config))
    folder = write_public_checkpoint(tmp_path, rename(copy_state(original)), public_config(config))
    model, card = import_checkpoint(folder, import_card(config))
    assert card.config == config
    assert not model.training
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in copy_state(original).items())


def test_the_last_epoch_is_imported(tmp_path: Path) -> None:
    for epoch in (2, 10, 9):
        write_public_checkpoint(
            tmp_path,
            copy_state(tiny_model(seed=epoch)),
            public_config(),
            weights_file=f"weights_epoch_{epoch}.pt",
        )
    model, card = import_checkpoint(tmp_path, import_card())
    assert torch.equal(model.state_dict()[CLS_TOKEN], tiny_model(seed=10).state_dict()[CLS_TOKEN])
    assert card.provenance["imported_from"] == f"{tmp_path.name}/weights_epoch_10.pt"


def test_the_fields_of_the_card_are_kept(source: Path) -> None:
    _, card = import_checkpoint(
        source,
        import_card(
            pixel_mean=[0.5, 0.5, 0.5],
            history=3,
            solver={"samples": 32},
            crop="center",
            provenance={"trained_by": "someone"},
            licence="MIT",
        ),
    )
    assert card.config.pixel_mean == (0.5, 0.5, 0.5)
    assert (card.solver.samples, card.crop, card.extra) == (32, "center", {"licence": "MIT"})
    assert card.provenance["trained_by"] == "someone"
    assert len(card.provenance["weights_sha256"]) == 64
    assert (card.action_mean, card.action_std) == ((0.25, 0.25), (0.5, 0.5))
    _, plain = import_checkpoint(source, import_card())
    assert plain.to_json()["pixel_mean"] == list(IMAGENET_MEAN)


@pytest.mark.parametrize("name", REQUIRED_CARD_FIELDS)
@pytest.mark.parametrize("value", ["absent", None])
def test_a_missing_required_field_is_named(source: Path, name: str, value: object) -> None:
    card = import_card()
    card[name] = value
    if value == "absent":
        del card[name]
    with pytest.raises(CardError, match=f"^{name}: missing from the card"):
        import_checkpoint(source, card)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("action_mean", [0.0], "action_mean: expected 2 finite numbers"),
        ("action_dim", "2", "action_dim: expected an integer"),
        ("action_block", 4, "action_dim, action_block: are 2 and 4.*patch_embed.*10"),
        ("history", 4, r"history: is 4, but 3.*predictor.pos_embedding has shape \(1, 3, 8\)"),
        ("latent_dim", 9, "latent_dim: is 9, but 8"),
        ("image_size", 224, "image_size: is 224, but 16"),
        ("architecture", {"encoder_heads": 4}, "encoder_heads: is 4, but 3"),
        ("architecture", {"colour": 4}, "architecture: unknown fields"),
        ("architecture", 4, "architecture: expected an object"),
    ],
)
def test_a_card_that_disagrees_is_refused(
    source: Path, field: str, value: Any, message: str
) -> None:
    with pytest.raises(CardError, match=f"^{message}"):
        import_checkpoint(source, import_card(**{field: value}))


SHALLOW = replace(TINY, encoder_depth=1, predictor_depth=1)


@pytest.mark.parametrize("rename", [dict, with_transformers_4_names])
def test_each_missing_tensor_is_named(
    tmp_path: Path, rename: Callable[[StateDict], StateDict]
) -> None:
    complete = rename(copy_state(tiny_model(**asdict(SHALLOW))))
    for name in complete:
        if name.endswith("num_batches_tracked"):
            continue  # older code does not write it
        state = {key: tensor for key, tensor in complete.items() if key != name}
        write_public_checkpoint(tmp_path, state, public_config(SHALLOW))
        with pytest.raises(CheckpointError, match="missing") as raised:
            import_checkpoint(tmp_path, import_card())
        assert name in str(raised.value)


def test_each_tensor_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    complete = with_transformers_4_names(copy_state(tiny_model(**asdict(SHALLOW))))
    for name, tensor in complete.items():
        for axis in range(tensor.ndim):
            longer = torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)
            state = {**complete, name: longer}
            write_public_checkpoint(tmp_path, state, public_config(SHALLOW))
            with pytest.raises(CheckpointError) as raised:
                import_checkpoint(tmp_path, import_card())
            assert name in str(raised.value)
            assert str(tuple(longer.shape)) in str(raised.value)


@pytest.mark.parametrize("projector", ["projector", "pred_proj"])
@pytest.mark.parametrize("kept", ["weight", "gamma"])
def test_another_norm_is_refused(source: Path, projector: str, kept: str) -> None:
    def change(state: StateDict) -> None:
        for name in list(state):
            if name.startswith(f"{projector}.net.1."):
                del state[name]
        state[f"{projector}.net.1.{kept}"] = torch.ones(16)

    with pytest.raises(
        CheckpointError, match=rf"^{projector}\.net\.1: expected a BatchNorm1d.*got \['{kept}'\]"
    ):
        import_checkpoint(with_changed_state(source, change), import_card())


def test_a_missing_file_is_named(source: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        import_checkpoint(source / "absent", import_card())
    (source / "weights.pt").rename(source / "weights.txt")
    with pytest.raises(CheckpointError, match=r"neither weights\.pt nor.*weights\.txt"):
        import_checkpoint(source, import_card())
    (source / "weights.txt").rename(source / "weights.pt")
    (source / "config.json").write_text("[]")
    with pytest.raises(CardError, match=r"config\.json: expected a JSON object"):
        import_checkpoint(source, import_card())


def test_the_distance_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_public_checkpoint(tmp_path, copy_state(tiny_model()), public_config())
    with pytest.raises(CardError, match="distance: belongs to other latents"):
        import_checkpoint(folder, import_card(distance={"network": "5d41" * 16}))
