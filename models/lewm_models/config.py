"""Hyper-parameters of LeWM, and the two presets of this project."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

MAX_SIZE = 65_536
"""The largest width, count or side of an image in a model."""

MAX_DEPTH = 1024
"""The most layers of an encoder or predictor."""

MAX_PIXEL_STATISTIC = 1e6
"""The largest mean or deviation of pixels. The inverse is the least deviation."""

MAX_STATE_VALUE, MIN_STATE_STD = 1e15, 1e-9
"""The largest mean or deviation of a state, and the least deviation."""

ACTIVATIONS = ("gelu", "relu", "silu")
"""The activations of the encoder and of the two projectors. GELU is the exact one."""

NORMS = ("batchnorm", "layernorm", "none")
"""The norms between the first linear map and the activation of a projector."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


FORM_FIELDS = (
    "encoder_activation",
    "projector_norm",
    "projector_activation",
    "pred_proj_norm",
    "pred_proj_activation",
)
"""The fields that name a norm or an activation. A card leaves out those that the paper's model has
too: cards of earlier versions do not have them."""

PROJECTORS = {"projector_mlp": "encoder_width", "pred_proj_mlp": "predictor_output"}
"""The hidden width of each projector, and the width of its input."""


@dataclass(frozen=True)
class StateInput:
    """The S named states that a model sees beside the pixels.

    Attributes:
        names: (S,), all different, in the order of the numbers that the model takes.
        mean: (S,), in the states' units. The model subtracts it, and divides by ``std``.
        std: (S,).

    Raises:
        ValueError: a value is impossible; the message starts with the field's name.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        names = self.names
        if not 1 <= len(names) <= MAX_SIZE or len(set(names)) < len(names) or "" in names:
            raise ValueError(
                f"state_input.names: expected names that all differ, got {list(names)!r:.80}"
            )
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) != len(names) or not all(
                is_finite(value) and abs(value) <= MAX_STATE_VALUE for value in values
            ):
                raise ValueError(
                    f"state_input.{field}: expected {len(names)} numbers within "
                    f"±{MAX_STATE_VALUE:g}, one for each name, got {list(values)!r:.80}"
                )
        if min(self.std) < MIN_STATE_STD:
            raise ValueError(
                f"state_input.std: expected numbers from {MIN_STATE_STD:g} on, "
                f"got {list(self.std)!r:.80}"
            )

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class LeWMConfig:
    """The hyper-parameters of one LeWM (arXiv 2603.19312).

    The defaults are those of the paper: ViT-Tiny/14 on frames of 224 px, one latent of 192 numbers
    per frame, and a causal predictor of 6 blocks over 3 frames. Fields that end in ``_mlp`` are
    hidden widths; ``history`` counts frames, and ``action_block`` counts actions between two
    frames. The names are those of `model.json`.

    A ``projector_mlp`` or ``pred_proj_mlp`` of 0 means that there is no such projector: its output
    is its input. If ``image_size`` is no multiple of ``patch_size``, the encoder does not see the
    rest of the pixels, at the right and at the bottom. With a ``state_input`` of None, the model
    sees pixels only.

    Raises:
        ValueError: a value is impossible; the message starts with the field's name.
    """

    image_size: int = 224
    patch_size: int = 14
    encoder_width: int = 192
    encoder_depth: int = 12
    encoder_heads: int = 3
    encoder_mlp: int = 768

    latent_dim: int = 192
    projector_mlp: int = 2048
    history: int = 3

    predictor_width: int = 192
    predictor_output: int = 192  # width between the predictor and pred_proj
    predictor_depth: int = 6
    predictor_heads: int = 16
    predictor_head_dim: int = 64
    predictor_mlp: int = 2048
    pred_proj_mlp: int = 2048
    dropout: float = 0.1

    action_dim: int = 2
    action_block: int = 5
    action_smoothed: int = 10  # width after the first linear map of the action encoder
    action_mlp: int = 768

    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD

    encoder_activation: str = "gelu"
    projector_norm: str = "batchnorm"
    projector_activation: str = "gelu"
    pred_proj_norm: str = "batchnorm"
    pred_proj_activation: str = "gelu"

    state_input: StateInput | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type != "int":
                continue
            least = 0 if field.name in PROJECTORS else 1
            most = MAX_DEPTH if field.name.endswith("_depth") else MAX_SIZE
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"{field.name}: expected an integer from {least} to {most}, got {value!r:.80}"
                )
        for name in FORM_FIELDS:
            known, value = NORMS if name.endswith("_norm") else ACTIVATIONS, getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r:.80}")
        for name, input_name in PROJECTORS.items():
            if getattr(self, name) == 0 and getattr(self, input_name) != self.latent_dim:
                raise ValueError(
                    f"{name}: is 0 (no projector), so that {input_name} "
                    f"{getattr(self, input_name)} must equal latent_dim {self.latent_dim}"
                )
        if not isinstance(self.state_input, StateInput | None):
            raise ValueError(
                f"state_input: expected names, mean and std, got {self.state_input!r:.80}"
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size: expected at least patch_size {self.patch_size}, got {self.image_size}"
            )
        if self.encoder_width % self.encoder_heads:
            raise ValueError(
                f"encoder_heads: expected a divisor of encoder_width {self.encoder_width}, "
                f"got {self.encoder_heads}"
            )
        if not is_finite(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {self.dropout!r}")
        for name in ("pixel_mean", "pixel_std"):
            value = getattr(self, name)
            if (
                not isinstance(value, tuple)
                or len(value) != 3
                or not all(is_finite(item) and abs(item) <= MAX_PIXEL_STATISTIC for item in value)
            ):
                raise ValueError(
                    f"{name}: expected 3 numbers within ±{MAX_PIXEL_STATISTIC:g}, got {value!r:.80}"
                )
        if min(self.pixel_std) < 1 / MAX_PIXEL_STATISTIC:
            raise ValueError(
                f"pixel_std: expected numbers from {1 / MAX_PIXEL_STATISTIC:g} on, "
                f"got {self.pixel_std!r}"
            )

    @property
    def tokens(self) -> int:
        """Encoder tokens per frame: the CLS token and the patches."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @property
    def block_width(self) -> int:
        """Numbers in one action block: ``action_dim · action_block``."""
        return self.action_dim * self.action_block


def is_finite(value: object) -> bool:
    """Whether the value is a finite float, or an int (not a bool) of at most 64 bits."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) and math.isfinite(value)


PRESETS: dict[str, LeWMConfig] = {
    # The model of the paper.
    "paper": LeWMConfig(),
    # A small model that plans in real time on a CPU.
    "edge": LeWMConfig(
        image_size=64,
        patch_size=16,
        encoder_width=128,
        encoder_depth=4,
        encoder_heads=4,
        encoder_mlp=512,
        latent_dim=128,
        projector_mlp=512,
        predictor_width=128,
        predictor_output=128,
        predictor_depth=3,
        predictor_heads=8,
        predictor_head_dim=32,
        predictor_mlp=512,
        pred_proj_mlp=512,
        action_mlp=512,
    ),
}
