"""LeWM, a joint-embedding predictive world model: the complete architecture in one file.

The encoder (a ViT, its CLS token and a projector) turns a frame into one latent. A model with a
state input adds what it makes of the robot's named states to the CLS token. The predictor, a causal
transformer conditioned on action blocks by adaptive LayerNorm, predicts the next latent.
Source: arXiv 2603.19312. The keys of the state dict are those of the public LeWM checkpoints, as
version 5 of transformers writes them.

Axes: B batch, N frames, P encoder tokens, T time steps, S candidates, D latent_dim, X input states,
A = action_dim · action_block: the numbers of one z-scored action block, in the order of time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_models.config import LeWMConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
NORMS: dict[str, type[nn.Module]] = {
    "batchnorm": nn.BatchNorm1d,
    "layernorm": nn.LayerNorm,
    "none": nn.Identity,
}


PART_FRAMES = 256
"""Frames that `encode_in_parts` encodes at once."""


class PatchEmbeddings(nn.Module):
    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(
            3, config.encoder_width, config.patch_size, stride=config.patch_size
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, P − 1, width). Pixels beyond the last whole patch have no effect."""
        patches: Tensor = self.projection(pixels)
        return patches.flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.encoder_width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.tokens, config.encoder_width))
        self.patch_embeddings = PatchEmbeddings(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, P, width)."""
        patches = self.patch_embeddings(pixels)
        cls_token = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([cls_token, patches], dim=1) + self.position_embeddings


class EncoderAttention(nn.Module):
    """Self-attention of all tokens of a frame."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.heads = config.encoder_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, P, width) → the same shape."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class EncoderMLP(nn.Module):
    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.encoder_width, config.encoder_mlp)
        self.activation = ACTIVATIONS[config.encoder_activation]()
        self.fc2 = nn.Linear(config.encoder_mlp, config.encoder_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.encoder_width, eps=1e-12)
        self.attention = EncoderAttention(config)
        self.layernorm_after = nn.LayerNorm(config.encoder_width, eps=1e-12)
        self.mlp = EncoderMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """The ViT of Hugging Face's ``ViTModel`` without its pooler; it returns the CLS token."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_depth))
        self.layernorm = nn.LayerNorm(config.encoder_width, eps=1e-12)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) normalised pixels → (N, width)."""
        x = self.embeddings(pixels)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x[:, 0])  # type: ignore[no-any-return]


class StateEncoder(nn.Module):
    """What is added to the CLS token: an MLP of the standardised states and of whether they are
    there."""

    def __init__(self, state_count: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(state_count + 1, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, values: Tensor) -> Tensor:
        """(N, X + 1) → (N, width). A row holds X standardised states and 1, or X + 1 zeros."""
        return self.net(values)  # type: ignore[no-any-return]


class Projector(nn.Module):
    """Linear, norm, activation, Linear; in the paper BatchNorm and GELU.

    SIGReg (`lewm_models.loss`) trains its outputs to be isotropic Gaussian.
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, *, norm: str, activation: str
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(input_dim, hidden_dim),
            NORMS[norm](hidden_dim),
            ACTIVATIONS[activation](),
            nn.Linear(hidden_dim, output_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, input_dim) → (N, output_dim). In training, BatchNorm normalises over the N rows."""
        return self.net(x)  # type: ignore[no-any-return]


class ActionEncoder(nn.Module):
    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.patch_embed = nn.Conv1d(config.block_width, config.action_smoothed, kernel_size=1)
        self.embed = nn.Sequential(
            nn.Linear(config.action_smoothed, config.action_mlp),
            nn.SiLU(),
            nn.Linear(config.action_mlp, config.latent_dim),
        )

    def forward(self, actions: Tensor) -> Tensor:
        """(B, T, A) → (B, T, D)."""
        # A convolution of kernel size 1 is a matrix product.
        smoothed = F.linear(actions, self.patch_embed.weight.squeeze(-1), self.patch_embed.bias)
        return self.embed(smoothed)  # type: ignore[no-any-return]


class PredictorAttention(nn.Module):
    """Causal self-attention over the time steps of a window, with its own LayerNorm."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        width, heads, head_dim = (
            config.predictor_width,
            config.predictor_heads,
            config.predictor_head_dim,
        )
        self.heads = heads
        self.dropout = config.dropout
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        # As in the public code, one head as wide as the model has no output projection.
        self.to_out: nn.Module = nn.Identity()
        if heads > 1 or head_dim != width:
            self.to_out = nn.Sequential(
                nn.Linear(heads * head_dim, width), nn.Dropout(config.dropout)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) → the same shape."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.to_out(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class PredictorMLP(nn.Module):
    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(config.predictor_width),
            nn.Linear(config.predictor_width, config.predictor_mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.predictor_mlp, config.predictor_width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class PredictorLayer(nn.Module):
    """A transformer block with AdaLN-zero: shift, scale and gate come from the action."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        width = config.predictor_width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = PredictorAttention(config)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = PredictorMLP(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens and action embeddings (B, T, width) → tokens of the same shape."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(
            6, dim=-1
        )
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The predictor's blocks, with projections where two widths differ."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        latent, width, output = config.latent_dim, config.predictor_width, config.predictor_output
        self.input_proj = nn.Linear(latent, width) if latent != width else nn.Identity()
        self.cond_proj = nn.Linear(latent, width) if latent != width else nn.Identity()
        self.layers = nn.ModuleList(PredictorLayer(config) for _ in range(config.predictor_depth))
        self.norm = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, output) if width != output else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Latents and action embeddings (B, T, D) → (B, T, predictor_output)."""
        x = self.input_proj(x)
        condition = self.cond_proj(condition)
        for layer in self.layers:
            x = layer(x, condition)
        return self.output_proj(self.norm(x))  # type: ignore[no-any-return]


class Predictor(nn.Module):
    """A transformer over latents with learnt positions."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, config.history, config.latent_dim))
        self.transformer = Transformer(config)

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Latents and action embeddings (B, T ≤ history, D) → (B, T, predictor_output)."""
        positions = self.pos_embedding[:, : latents.shape[1]]
        return self.transformer(latents + positions, actions)  # type: ignore[no-any-return]


class LeWM(nn.Module):
    """The complete model. Call ``eval()`` before you encode or predict outside of training."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.projector = _projector(config, "projector", config.encoder_width)
        self.action_encoder = ActionEncoder(config)
        self.predictor = Predictor(config)
        self.pred_proj = _projector(config, "pred_proj", config.predictor_output)
        for name in ("pixel_mean", "pixel_std"):
            statistic = torch.tensor(getattr(config, name)).view(3, 1, 1)
            self.register_buffer(name, statistic, persistent=False)
        if (given := config.state_input) is not None:
            self.state_encoder = StateEncoder(len(given), config.encoder_width)
            for name, values in (("state_mean", given.mean), ("state_std", given.std)):
                statistic = torch.tensor(values, dtype=torch.float32)
                self.register_buffer(name, statistic, persistent=False)

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """Frames and the robot's states → latents (N, D).

        Args:
            frames: (N, H, H, 3) uint8 RGB, H = image_size.
            states: (N, X), those of ``config.state_input`` in their units. A row that is not finite
                is hidden from the model; None hides all.

        Raises:
            ValueError: a tensor has another shape or type, or the model has no state input.
        """
        return self.projector(self.with_states(self.features(frames), states))  # type: ignore[no-any-return]

    def with_states(self, features: Tensor, states: Tensor | None) -> Tensor:
        """CLS tokens (N, encoder_width) and states as in `encode` → the input of the projector."""
        given = self.config.state_input
        if given is None:
            if states is not None:
                raise ValueError("states: expected none, since the model has no state input")
            return features
        mean, std = self.get_buffer("state_mean"), self.get_buffer("state_std")
        if states is None:
            states = mean.new_full((len(features), len(given)), torch.nan)
        _check_shape("states", states, (len(features), len(given)))
        shown = states.isfinite().all(dim=-1, keepdim=True)
        values = torch.where(shown, (states - mean) / std, 0.0)
        values = torch.cat([values, shown.to(values.dtype)], dim=-1)
        return features + self.state_encoder(values.to(features.dtype))  # type: ignore[no-any-return]

    def features(self, frames: Tensor) -> Tensor:
        """Frames as in `encode` → CLS tokens (N, encoder_width)."""
        size = self.config.image_size
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != (size, size, 3):
            raise ValueError(
                f"frames: expected uint8 of shape (N, {size}, {size}, 3), "
                f"got {frames.dtype} of shape {tuple(frames.shape)}"
            )
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        pixels = (frames.permute(0, 3, 1, 2).to(mean.dtype) / 255 - mean) / std
        return self.encoder(pixels.to(self.encoder.embeddings.cls_token.dtype))  # type: ignore[no-any-return]

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Predict the latent that follows each step of a window.

        Args:
            latents: (B, T, D), the oldest first, 1 ≤ T ≤ history.
            actions: (B, T, A), z-scored; the block that is executed after each latent.

        Returns:
            (B, T, D). The prediction at step t uses steps 0 to t only.

        Raises:
            ValueError: a tensor has another shape.
        """
        history, width = self.config.history, self.config.latent_dim
        if latents.ndim != 3 or not 1 <= latents.shape[1] <= history or latents.shape[2] != width:
            raise ValueError(
                f"latents: expected shape (B, 1 to {history}, {width}), got {tuple(latents.shape)}"
            )
        _check_shape("actions", actions, (*latents.shape[:2], self.config.block_width))
        return self._predict(latents, self.action_encoder(actions))

    def _predict(self, latents: Tensor, action_embeddings: Tensor) -> Tensor:
        hidden = self.predictor(latents, action_embeddings)
        return self.pred_proj(hidden.flatten(0, 1)).view_as(latents)  # type: ignore[no-any-return]

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """Predict the latents that each candidate leads to; the reference for all backends.

        The window slides over the last ``history`` latents. As in the public code, positions start
        at 0 in each window.

        Args:
            latents: (H, D), 1 ≤ H ≤ history: the context frames, the oldest first.
            past_actions: (H − 1, A), z-scored: the blocks executed between the context frames.
            candidates: (S, T, A), z-scored: the blocks of each candidate.

        Returns:
            (S, T, D), the predicted latents.

        Raises:
            ValueError: a tensor has another shape.
        """
        history, width = self.config.history, self.config.latent_dim
        if latents.ndim != 2 or not 1 <= len(latents) <= history or latents.shape[1] != width:
            raise ValueError(
                f"latents: expected shape (1 to {history}, {width}), got {tuple(latents.shape)}"
            )
        if candidates.ndim != 3 or candidates.shape[1] < 1:
            raise ValueError(
                f"candidates: expected shape (S, T, {self.config.block_width}) with T of at least "
                f"1, got {tuple(candidates.shape)}"
            )
        context, (samples, horizon, _) = len(latents), candidates.shape
        block_width = self.config.block_width
        _check_shape("candidates", candidates, (samples, horizon, block_width))
        _check_shape("past_actions", past_actions, (context - 1, block_width))
        past = past_actions.expand(samples, -1, -1)
        embeddings = self.action_encoder(torch.cat([past, candidates], dim=1))
        window = list(latents.unsqueeze(1).expand(-1, samples, -1))
        for step in range(context, context + horizon):
            first = max(0, step - history)
            predicted = self._predict(
                torch.stack(window[first:step], dim=1), embeddings[:, first:step]
            )
            window.append(predicted[:, -1])
        return torch.stack(window[context:], dim=1)

    def rollout_each(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Predict the latents that each of B sequences leads to, from one frame each.

        The window slides as in `rollout`.

        Args:
            latents: (B, D), the frames.
            actions: (B, T, A), z-scored, T ≥ 1.

        Returns:
            (B, T, D), the predicted latents.
        """
        window = [latents]
        for step in range(actions.shape[1]):
            first = max(0, step + 1 - self.config.history)
            predicted = self.predict(
                torch.stack(window[first:], dim=1), actions[:, first : step + 1]
            )
            window.append(predicted[:, -1])
        return torch.stack(window[1:], dim=1)


def encode_in_parts(model: LeWM, frames: Tensor, states: Tensor | None = None) -> Tensor:
    """`LeWM.encode` for many frames: both frames and latents, float32, are on the CPU."""
    device = next(model.parameters()).device
    latents = [
        model.encode(
            frames[rows].to(device), None if states is None else states[rows].to(device)
        ).float()
        for rows in (
            slice(first, first + PART_FRAMES) for first in range(0, len(frames), PART_FRAMES)
        )
    ]
    return torch.cat(latents).cpu()


def _projector(config: LeWMConfig, name: str, input_dim: int) -> Projector | nn.Identity:
    """The projector of this name; an identity if the model has none."""
    hidden_dim = getattr(config, f"{name}_mlp")
    if hidden_dim == 0:
        return nn.Identity()
    return Projector(
        input_dim,
        hidden_dim,
        config.latent_dim,
        norm=getattr(config, f"{name}_norm"),
        activation=getattr(config, f"{name}_activation"),
    )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    # Most wrong shapes fail by themselves, but some broadcast and give a wrong prediction.
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def initialise(model: LeWM, generator: torch.Generator) -> None:
    """Set the initial weights for training; the same seed gives the same weights.

    As in the paper, positions are N(0, 1) and the AdaLN linears are zero. The encoder's matrices
    are N(0, 0.02²), truncated at two standard deviations. Other matrices are uniform ±1/√fan_in.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("position_embeddings") or name.endswith("pos_embedding"):
            nn.init.normal_(parameter, generator=generator)
        elif "adaLN" in name:
            nn.init.zeros_(parameter)
        elif name.startswith("encoder.") and parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=generator)
        elif parameter.ndim > 1:
            bound = parameter[0].numel() ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
