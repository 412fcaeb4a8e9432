"""How a benchmark is asked to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _silent(_text: str) -> None:
    pass


@dataclass(frozen=True)
class Run:
    """``quick`` runs go through everything once, and their figures mean little.

    ``say`` is told what is being done; ``folder`` keeps what a later run goes on with; ``device``
    is where benchmarks of an accelerator run: `cuda`, or `cpu` to try them out.
    """

    quick: bool = False
    say: Callable[[str], None] = _silent
    folder: Path = Path("runs/benchmarks")
    device: str = "cuda"
