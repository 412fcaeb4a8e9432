"""The predictor of DINO-WM's shapes."""

import torch

from benchmarks.patch_predictor import PatchPredictor, Shapes
from lewm_models.config import PRESETS

SMALL = Shapes(patches=4, width=14, action_width=2, depth=2, heads=2, head_dim=4, mlp=8)


def test_the_shapes_are_the_published_ones() -> None:
    shapes = Shapes()
    predictor = PatchPredictor(shapes, PRESETS["paper"].block_width)
    assert (shapes.patches, shapes.width, shapes.frames) == (196, 404, 3)
    block = predictor.blocks[0]
    assert sum(values.numel() for values in block.parameters()) == sum(
        (2 * 404, 404 * 3072, 1024 * 404 + 404, 2 * 404, 404 * 2048 + 2048, 2048 * 404 + 404)
    )


def test_a_frame_attends_to_itself_and_earlier_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    predictor = PatchPredictor(SMALL, 6).eval()
    tokens = torch.randn(1, 12, 14, generator=generator)
    changed = tokens.clone()
    changed[:, 8:, 0] += 1
    with torch.inference_mode():
        before, after = predictor(tokens), predictor(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])
    changed = tokens.clone()
    changed[:, 7, 0] += 1
    with torch.inference_mode():
        after = predictor(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_other_actions_predict_other_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    predictor = PatchPredictor(SMALL, 6).eval()
    frame = torch.randn(4, 14, generator=generator)
    candidates = torch.randn(3, 5, 6, generator=generator)
    predicted = predictor.rollout(frame, candidates)
    assert predicted.shape == (3, 4, 14)
    assert torch.allclose(predicted[1:2], predictor.rollout(frame, candidates[1:2]), atol=1e-5)
    assert not torch.allclose(predicted[0], predicted[1])
