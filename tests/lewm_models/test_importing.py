"""Public checkpoints of any size become models; what is wrong with one is named."""

import copy
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm_models.card import CardError
from lewm_models.checkpoint import CheckpointError
from lewm_models.config import IMAGENET_MEAN, LeWMConfig
from lewm_models.importing import import_checkpoint
from lewm_models.importing.importer import REQUIRED
from lewm_models.importing.state_dict import TRANSFORMERS_4
from lewm_models.lewm import LeWM
from tests.lewm_models.examples import TINY, publish, published, statistics, tiny

State = dict[str, Tensor]

CLS = "encoder.embeddings.cls_token"


def state_of(model: LeWM) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def in_transformers_4(state: State) -> State:
    def old(name: str) -> str:
        if name.startswith("encoder.layers."):
            for before, after in TRANSFORMERS_4:
                name = name.replace(after, before)
        return name

    return {old(name): tensor for name, tensor in state.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A public checkpoint of `TINY`."""
    return publish(tmp_path / "public", state_of(tiny()), published())


def with_state(source: Path, change: Callable[[State], object]) -> Path:
    state = state_of(tiny())
    change(state)
    return publish(source, state, published())


def with_number(source: Path, path: str, value: Any) -> Path:
    """The checkpoint with one entry of `config.json` replaced, or taken away by None."""
    *parents, last = path.split(".")
    config = copy.deepcopy(published())
    entry = config
    for name in parents:
        entry = entry[name]
    entry[last] = value
    if value is None:
        del entry[last]
    return publish(source, state_of(tiny()), config)


SIZES = [
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


@pytest.mark.parametrize("config", SIZES)
@pytest.mark.parametrize("respelled", [dict, in_transformers_4])
def test_any_size_is_imported(
    tmp_path: Path, config: LeWMConfig, respelled: Callable[[State], State]
) -> None:
    original = tiny(**asdict(config))
    folder = publish(tmp_path, respelled(state_of(original)), published(config))
    model, card = import_checkpoint(folder, statistics(config))
    assert card.config == config
    assert not model.training
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in state_of(original).items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(source: Path, kind: torch.dtype) -> None:
    def convert(state: State) -> None:
        for name, tensor in state.items():
            state[name] = tensor.to(kind) if tensor.is_floating_point() else tensor

    model, _ = import_checkpoint(with_state(source, convert), statistics())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    state = state_of(tiny())
    assert torch.equal(model.state_dict()[CLS], state[CLS].to(kind).float())


def test_parameters_of_a_module_are_tensors_too(source: Path) -> None:
    torch.save(tiny().state_dict(keep_vars=True), source / "weights.pt")
    model, _ = import_checkpoint(source, statistics())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_mask_token_is_dropped(source: Path) -> None:
    mask = {"encoder.embeddings.mask_token": torch.zeros(1, 1, 12)}
    model, _ = import_checkpoint(with_state(source, lambda state: state.update(mask)), statistics())
    assert not any("mask_token" in name for name in model.state_dict())


def test_the_last_epoch_is_taken(tmp_path: Path) -> None:
    for epoch in (2, 10, 9):
        state = state_of(tiny(seed=epoch))
        publish(tmp_path, state, published(), f"weights_epoch_{epoch}.pt")
    model, card = import_checkpoint(tmp_path, statistics())
    assert torch.equal(model.state_dict()[CLS], tiny(seed=10).state_dict()[CLS])
    assert card.provenance["imported_from"] == f"{tmp_path.name}/weights_epoch_10.pt"


def test_the_size_says_how_many_heads_where_nothing_else_does(source: Path) -> None:
    _, card = import_checkpoint(
        with_number(source, "encoder.num_attention_heads", None), statistics()
    )
    assert card.config.encoder_heads == 3


def test_numbers_that_shapes_show_may_be_missing(source: Path) -> None:
    for path in ("encoder.image_size", "predictor.dim_head", "predictor.output_dim"):
        assert import_checkpoint(with_number(source, path, None), statistics())[1].config == TINY


def test_the_card_file_is_kept(source: Path) -> None:
    _, card = import_checkpoint(
        source,
        statistics(
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
    _, plain = import_checkpoint(source, statistics())
    assert plain.to_json()["pixel_mean"] == list(IMAGENET_MEAN)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", ["absent", None])
def test_a_missing_statistic_is_named(source: Path, name: str, value: object) -> None:
    card = statistics()
    card[name] = value
    if value == "absent":
        del card[name]
    with pytest.raises(CardError, match=f"^{name}: missing from the card"):
        import_checkpoint(source, card)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
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
    source: Path, field: str, value: Any, complaint: str
) -> None:
    with pytest.raises(CardError, match=f"^{complaint}"):
        import_checkpoint(source, statistics(**{field: value}))


SHALLOW = replace(TINY, encoder_depth=1, predictor_depth=1)


@pytest.mark.parametrize("respelled", [dict, in_transformers_4])
def test_each_missing_tensor_is_named(tmp_path: Path, respelled: Callable[[State], State]) -> None:
    whole = respelled(state_of(tiny(**asdict(SHALLOW))))
    for name in whole:
        state = {key: tensor for key, tensor in whole.items() if key != name}
        publish(tmp_path, state, published(SHALLOW))
        with pytest.raises(CheckpointError, match="missing") as raised:
            import_checkpoint(tmp_path, statistics())
        assert name in str(raised.value)


def test_each_mis_shaped_tensor_is_named(tmp_path: Path) -> None:
    whole = in_transformers_4(state_of(tiny(**asdict(SHALLOW))))
    for name, tensor in whole.items():
        for axis in range(tensor.ndim):
            longer = torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)
            publish(tmp_path, {**whole, name: longer}, published(SHALLOW))
            with pytest.raises(CheckpointError) as raised:
                import_checkpoint(tmp_path, statistics())
            assert name in str(raised.value)
            assert str(tuple(longer.shape)) in str(raised.value)


@pytest.mark.parametrize(
    "name", ["encoder.pooler.dense.weight", "encoder.layers.2.mlp.fc1.bias", "model.loss", "x"]
)
def test_an_unknown_tensor_is_named(source: Path, name: str) -> None:
    stranger = {name: torch.ones(3)}
    with pytest.raises(CheckpointError, match=name):
        import_checkpoint(with_state(source, lambda state: state.update(stranger)), statistics())


def test_a_tensor_in_both_spellings_is_refused(source: Path) -> None:
    both = "encoder.encoder.layer.0.output.dense.bias"
    with pytest.raises(CheckpointError, match=rf"^{both}: is there twice.*layers\.0\.mlp\.fc2"):
        import_checkpoint(
            with_state(source, lambda state: state.update({both: torch.ones(12)})), statistics()
        )


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        (CLS, torch.full((1, 1, 12), torch.nan), "not finite"),
        (CLS, torch.full((1, 1, 12), 1e300, dtype=torch.float64), "not finite"),
        (CLS, torch.ones(1, 1, 12, dtype=torch.int64), "int64"),
        (CLS, torch.ones(1, 1, 12, dtype=torch.cfloat), "complex64"),
        (CLS, torch.ones(1, 1, 1).expand(1, 1, 12), "dense tensor"),
        (CLS, torch.ones(1, 1, 12).to_sparse(), "dense tensor"),
        ("projector.net.1.num_batches_tracked", torch.tensor(0.5), "int64"),
    ],
    ids=["nan", "overflow", "integer", "complex", "expanded", "sparse", "float count"],
)
def test_a_tensor_of_another_kind_is_named(
    source: Path, name: str, tensor: Any, complaint: str
) -> None:
    change = {name: tensor}
    with pytest.raises(CheckpointError, match=f"{name}.*{complaint}"):
        import_checkpoint(with_state(source, lambda state: state.update(change)), statistics())


@pytest.mark.parametrize(
    ("path", "value", "tensor"),
    [
        ("encoder.patch_size", 14, r"patch_embeddings.projection.weight has shape \(12, 3, 8, 8\)"),
        ("encoder.image_size", 224, r"position_embeddings has shape \(1, 5, 12\)"),
        ("encoder.hidden_size", 192, r"cls_token has shape \(1, 1, 12\)"),
        ("encoder.num_hidden_layers", 12, r"2 layers, up to encoder.layers.1"),
        ("encoder.intermediate_size", 48, r"encoder.layers.0.mlp.fc1.weight has shape \(24, 12\)"),
        ("encoder.num_attention_heads", 5, r"cls_token has shape \(1, 1, 12\)"),
        ("predictor.num_frames", 4, r"predictor.pos_embedding has shape \(1, 3, 8\)"),
        ("predictor.input_dim", 9, r"predictor.pos_embedding has shape \(1, 3, 8\)"),
        ("predictor.hidden_dim", 9, r"predictor.transformer.norm.weight has shape \(8,\)"),
        ("predictor.output_dim", 9, r"pred_proj.net.0.weight has shape \(20, 8\)"),
        ("predictor.depth", 3, r"2 layers, up to predictor.transformer.layers.1"),
        ("predictor.heads", 3, r"attn.to_qkv.weight has shape \(24, 8\)"),
        ("predictor.dim_head", 64, r"attn.to_qkv.weight has shape \(24, 8\)"),
        ("predictor.mlp_dim", 9, r"mlp.net.1.weight has shape \(16, 8\)"),
        ("projector.input_dim", 9, r"cls_token has shape \(1, 1, 12\)"),
        ("projector.output_dim", 9, r"pos_embedding has shape \(1, 3, 8\)"),
        ("projector.hidden_dim", 9, r"projector.net.0.weight has shape \(16, 12\)"),
        ("pred_proj.hidden_dim", 9, r"pred_proj.net.0.weight has shape \(20, 8\)"),
        ("action_encoder.input_dim", 9, r"action_encoder.patch_embed.weight has shape \(5, 10, 1"),
        ("action_encoder.smoothed_dim", 9, r"action_encoder.patch_embed.weight has shape \(5,"),
        ("action_encoder.emb_dim", 9, r"predictor.pos_embedding has shape \(1, 3, 8\)"),
    ],
)
def test_a_number_that_no_tensor_agrees_with_is_named(
    source: Path, path: str, value: int, tensor: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"{path} is {value}, but .*{tensor}"):
        import_checkpoint(with_number(source, path, value), statistics())


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("predictor.heads", None, "is missing"),
        ("predictor.heads", "16", "expected an integer of at least 1, got '16'"),
        ("predictor.heads", 0, "expected an integer of at least 1, got 0"),
        ("predictor.input_dim", "${embed_dim}", "expected an integer"),
        ("encoder.hidden_act", "relu", "expected 'gelu', got 'relu'"),
        ("encoder.layer_norm_eps", 1e-6, "expected 1e-12, got 1e-06"),
        ("projector.norm_fn.eps", 1e-3, "expected 1e-05, got 0.001"),
    ],
)
def test_a_number_that_is_missing_or_wrong_is_named(
    source: Path, path: str, value: Any, complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^config.json: {path}: {complaint}"):
        import_checkpoint(with_number(source, path, value), statistics())


def test_an_unknown_size_says_nothing_of_heads(source: Path) -> None:
    config = published()
    config["encoder"].update(size="gigantic", num_attention_heads=None)
    publish(source, state_of(tiny()), config)
    with pytest.raises(
        CheckpointError, match=r"encoder\.num_attention_heads: is missing.*gigantic"
    ):
        import_checkpoint(source, statistics())


@pytest.mark.parametrize("head", ["projector", "pred_proj"])
@pytest.mark.parametrize(("keep", "what"), [(("weight", "bias"), "another norm"), ((), "no norm")])
def test_another_norm_than_batch_norm_is_refused(
    source: Path, head: str, keep: tuple[str, ...], what: str
) -> None:
    def change(state: State) -> None:
        for name in list(state):
            if name.startswith(f"{head}.net.1.") and not name.endswith(keep or "?"):
                del state[name]

    with pytest.raises(CheckpointError, match=rf"^{head}\.net\.1: expected BatchNorm1d.*{what}"):
        import_checkpoint(with_state(source, change), statistics())


class Malicious:
    """Leaves a mark when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickled_object_is_refused_and_not_run(source: Path) -> None:
    mark, weights = source / "was run", source / "weights.pt"
    torch.save({**state_of(tiny()), "extra": Malicious(mark)}, weights)
    with pytest.raises(
        CheckpointError, match=r"^weights\.pt: holds a pickled object \(posix\.mkdir\)"
    ):
        import_checkpoint(source, statistics())
    assert not mark.exists()
    torch.load(weights, weights_only=False)
    assert mark.exists(), "the file was harmless, so that this test proved nothing"


def test_a_plain_pickle_is_refused_and_not_run(source: Path) -> None:
    mark = source / "was run"
    (source / "weights.pt").write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(CheckpointError, match=r"^weights\.pt: holds a pickled object"):
        import_checkpoint(source, statistics())
    assert not mark.exists()


def test_a_pickled_model_is_refused_by_its_class(source: Path) -> None:
    torch.save(tiny(), source / "weights.pt")
    with pytest.raises(CheckpointError, match=r"a pickled object \(lewm_models\.lewm\.LeWM\)"):
        import_checkpoint(source, statistics())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([torch.ones(1)], "expected a bare state dict of tensors, got list"),
        ({"state_dict": {CLS: torch.ones(1)}}, "'state_dict' holds dict"),
        ({0: torch.ones(1)}, "expected a bare state dict of tensors, but 0 holds Tensor"),
        ({CLS: 12}, f"expected a bare state dict of tensors, but '{CLS}' holds int"),
        ({}, "missing tensor"),
    ],
)
def test_a_file_that_is_no_state_dict_is_refused(
    source: Path, content: object, complaint: str
) -> None:
    torch.save(content, source / "weights.pt")
    with pytest.raises(CheckpointError, match=complaint):
        import_checkpoint(source, statistics())


def test_a_broken_file_is_named_wherever_it_breaks(source: Path) -> None:
    weights = source / "weights.pt"
    whole = weights.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"^weights\.pt: "):
            import_checkpoint(source, statistics())


def test_a_folder_that_is_no_checkpoint_is_named(source: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder"):
        import_checkpoint(source / "weights.pt", statistics())
    (source / "weights.pt").rename(source / "model_object.ckpt")
    with pytest.raises(CheckpointError, match=r"neither weights\.pt nor.*model_object\.ckpt"):
        import_checkpoint(source, statistics())
    (source / "model_object.ckpt").rename(source / "weights.pt")
    (source / "config.json").unlink()
    with pytest.raises(CardError, match=r"config\.json: cannot be read"):
        import_checkpoint(source, statistics())
