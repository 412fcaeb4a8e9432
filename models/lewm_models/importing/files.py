"""Finding the files of a public checkpoint: its tensors and its `config.json`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lewm_models.checkpoint import CARD_FILE, CheckpointError

CONFIG_FILE = "config.json"
NAMES = ("weights.pt", "model.safetensors", "weights.safetensors", "pytorch_model.bin")
"""Names of files of tensors that are preferred to others, the first before the next."""

EPOCH_NAME = re.compile(r"weights_epoch_(\d+)\.(?:pt|safetensors)")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")

HUB_FOLDER = re.compile(r"models--(?P<organisation>.+?)--(?P<name>.+)")
"""How the cache of Hugging Face names the folder of a repository."""


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a public checkpoint.

    Attributes:
        weights: the file of tensors.
        config: `config.json` beside it; None if there is none.
        origin: where the tensors come from, for people: ``repository/file`` or ``folder/file``.
        revision: the commit of a repository of Hugging Face, if the folder says so.
    """

    weights: Path
    config: Path | None
    origin: str
    revision: str | None


def find_files(source: Path) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Args:
        source: a file of tensors, a folder with one, or the folder of a repository in the cache of
            Hugging Face.

    Raises:
        CheckpointError: there are none, or several that could be meant.
    """
    if not source.exists():
        raise CheckpointError(f"{source}: there is no such file or folder")
    # Links are kept: in the cache of Hugging Face, files are links to blobs without names.
    source = source.absolute()
    weights = _find_weights(_snapshot(source)) if source.is_dir() else source
    config = weights.parent / CONFIG_FILE
    origin, revision = _origin(weights)
    return CheckpointFiles(weights, config if config.is_file() else None, origin, revision)


def _snapshot(folder: Path) -> Path:
    """The folder of the current snapshot of a repository in a cache; else the folder itself."""
    snapshots = folder / "snapshots"
    if folder.name == "snapshots":
        folder, snapshots = folder.parent, folder
    if not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found)
        raise CheckpointError(
            f"{snapshots}: expected one snapshot or refs/main, got {names or 'none'}; "
            "give the folder of one snapshot"
        )
    return found[0]


def _find_weights(folder: Path) -> Path:
    if (folder / CARD_FILE).is_file():
        raise CheckpointError(f"{folder}: has a {CARD_FILE}, so it is a model folder already")
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    epochs = {int(match[1]): path for path in files if (match := EPOCH_NAME.fullmatch(path.name))}
    if epochs:
        return epochs[max(epochs)]
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(path.name for path in files)
        raise CheckpointError(
            f"{folder}: holds several files of tensors, {names}; give one of them instead of the "
            "folder"
        )
    inside = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    raise CheckpointError(
        f"{folder}: holds neither weights.pt nor weights_epoch_N.pt nor another file of tensors "
        f"({', '.join(SUFFIXES)}), but {inside}"
    )


def _origin(weights: Path) -> tuple[str, str | None]:
    """What a file of tensors is called, and its commit, if it is in the cache of Hugging Face."""
    for folder in weights.parents:
        if match := HUB_FOLDER.fullmatch(folder.name):
            inside = weights.relative_to(folder).parts
            revision = None
            if inside[0] == "snapshots" and len(inside) > 2:
                revision, inside = inside[1], inside[2:]
            return "/".join([match["organisation"], match["name"], *inside]), revision
    return f"{weights.parent.name}/{weights.name}", None
