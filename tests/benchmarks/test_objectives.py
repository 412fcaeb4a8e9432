"""The benchmark of objectives: what it compares, and its picture."""

from pathlib import Path

from PIL import Image

from benchmarks.objectives import COLORS, PROTOCOLS, draw, solvers
from lewm_serve.solvers import SOLVERS


def test_both_objectives_have_the_same_searches() -> None:
    counts = {
        objective: [
            sum(SOLVERS[search.name].candidates_per_ask(search))
            for search in solvers(objective, quick=False)
        ]
        for objective in COLORS
    }
    assert counts["latent"] == [9001, 451, 100, 50, 28, 19]
    assert counts["distance"] == [*counts["latent"], 1]
    searches = solvers("distance", quick=True)
    assert {search.objective for search in searches} == {"distance"}
    assert max(search.samples * search.iterations for search in searches) < 1000


def test_the_picture_has_a_dot_for_each_point(tmp_path: Path) -> None:
    points = [
        {"protocol": protocol, "objective": objective, "candidates": count, "success": 50.0}
        for protocol in PROTOCOLS
        for objective in COLORS
        for count in (20, 9001)
    ]
    draw([], tmp_path / "empty.png")
    draw(points, tmp_path / "points.png")
    with Image.open(tmp_path / "empty.png") as empty, Image.open(tmp_path / "points.png") as full:
        assert empty.size == full.size
        assert empty.convert("RGB").tobytes() != full.convert("RGB").tobytes()
