"""Graphs of a window; what they compute is held to the model in `tests/lewm_serve/backends`."""

from lewm_models.export.weights import PredictorWeights
from lewm_models.export.window import extension_graph
from tests.lewm_models.examples import tiny


def test_all_graphs_share_one_copy_of_the_weights() -> None:
    weights = PredictorWeights(tiny(predictor_mlp=256))
    held = [
        {id(array) for array in extension_graph(weights, *kind).weights.values()}
        for kind in ((0, 1), (2, 1), (0, 3))
    ]
    assert held[0] <= held[1] == held[2] != set()


def test_keys_and_values_leave_a_window_that_may_grow() -> None:
    weights = PredictorWeights(tiny())
    growing, full = (extension_graph(weights, *kind).model.graph for kind in ((1, 1), (0, 3)))
    assert [output.name for output in full.output] == ["latent"]
    assert [output.name for output in growing.output] == [
        f"{kind}.{layer}.1" for layer in (0, 1) for kind in ("key", "value")
    ] + ["latent"]
