"""Write the dashboards: `python -m deploy.grafana.generate`."""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.fleet import fleet
from deploy.grafana.model import model

FOLDER = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """The JSON of each dashboard, by file name."""
    boards = {"fleet.json": fleet(), "model.json": model()}
    encoder = JSONEncoder(indent=2, sort_keys=True)
    return {name: encoder.encode(board.build()) + "\n" for name, board in boards.items()}


if __name__ == "__main__":
    for name, document in documents().items():
        (FOLDER / name).write_text(document)
