"""The graphs that a server runs; their results are tested in `tests/lewm_serve/backends`."""

from lewm_models.export.predictor import (
    extension_graph,
    last_token_modulations,
    modulation_graph,
)
from lewm_models.export.weights import PredictorWeights
from tests.lewm_models.examples import tiny_model


def test_all_graphs_share_the_same_arrays() -> None:
    weights = PredictorWeights(tiny_model(predictor_mlp=256))
    first, second, third = (
        {id(array) for array in extension_graph(weights, known, new).weights.values()}
        for known, new in ((0, 1), (2, 1), (0, 3))
    )
    assert first <= second == third != set()


def test_keys_and_values_are_outputs_if_the_window_is_not_full() -> None:
    weights = PredictorWeights(tiny_model())
    full = extension_graph(weights, 0, 3).model.graph
    assert [output.name for output in full.output] == ["latent"]
    extensible = extension_graph(weights, 1, 1).model.graph
    assert [output.name for output in extensible.output] == [
        *("key.0.1", "value.0.1", "key.1.1", "value.1.1"),
        "latent",
    ]


def test_modulations_of_all_layers_are_the_inputs_of_an_extension() -> None:
    model = tiny_model()
    weights = PredictorWeights(model)
    modulations = {value.name for value in modulation_graph(weights).model.graph.output}
    assert len(modulations) == model.config.predictor_depth * 6
    inputs = extension_graph(weights, 0, 1).model.graph.input
    assert {value.name for value in inputs} == modulations | {"latent.0"}
    assert set(last_token_modulations(model.config)) == {
        f"modulation.1.{index}" for index in (2, 3, 4, 5)
    }
