"""Files that a command writes when its work is done, looked at before the work begins."""

from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise the `OSError` now that writing the file would raise later; leaves no file behind."""
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()
