"""Controllers that models bring: found by entry point, named in their cards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lewm_serve.logs import log

FloatArray = NDArray[np.float32]

GROUP = "lewm.controllers"
"""The group of entry points; each names a `Controller`, or a class that makes one from nothing."""


class Controller(Protocol):
    """Acts by a state of its own, without a frame or a model.

    It is asked on the server's event loop before every search of a request that names it, whether
    or not it will be needed, and all other requests wait meanwhile: it has to be quick, within a
    few milliseconds, and must not wait for anything.

    Attributes:
        state: what each number of the state is, for errors: its length is the state's.
    """

    state: tuple[str, ...]

    def actions(self, state: FloatArray, rows: int) -> FloatArray:
        """Actions (rows, action_dim) in the environment's units from a state (n,), finite.

        Clipping them to the model's bounds is the caller's part.

        Raises:
            ValueError: the state cannot be acted by, and the request is refused, needed or not;
                the message completes "expected …". Whatever else is raised is the controller's own
                failure: where it is needed, the request ends as `internal`.
        """
        ...


def load_controllers(model: str, names: Iterable[str]) -> Mapping[str, Controller]:
    """The controllers of these names that are installed; one that is not is logged and left out.

    Raises:
        Exception: whatever importing one raises: a controller that is broken had better be known
            before it is needed.
    """
    installed = entry_points(group=GROUP)
    controllers: dict[str, Controller] = {}
    for name in names:
        if name not in installed.names:
            log.warning("fallback controller not installed", model=model, controller=name)
            continue
        made = installed[name].load()
        controllers[name] = made() if isinstance(made, type) else made
    return controllers
