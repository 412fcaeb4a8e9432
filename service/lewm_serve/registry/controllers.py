"""Fallback controllers that come with a model. They are installed as entry points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lewm_serve.observability.logging import log

FloatArray = NDArray[np.float32]

CONTROLLER_ENTRY_POINTS = "lewm.controllers"
"""The group of entry points. Each names a `Controller`, or a class that makes one."""


class Controller(Protocol):
    """Computes actions from a state, without a frame and without a model.

    The server calls it on its event loop before every search of a request that names it, whether
    or not its actions are needed. All other requests wait meanwhile. It must return within a few
    milliseconds and must not wait for anything.

    Attributes:
        state: a description of each number of the state, for error messages.
    """

    state: tuple[str, ...]

    def actions(self, state: FloatArray, rows: int) -> FloatArray:
        """Actions (rows, action_dim) in the environment's units from a finite state (n,).

        The caller clips them to the model's bounds.

        Raises:
            ValueError: there are no actions for this state. The request is refused, whether or not
                the fallback is needed; the message completes "expected …". Any other exception is
                a fault of the controller. A request that needs the controller then ends with the
                error `internal`.
        """
        ...


def load_controllers(model: str, names: Iterable[str]) -> Mapping[str, Controller]:
    """The installed controllers of these names. Those that are not installed are logged.

    Raises:
        Exception: whatever the import of a controller raises. A broken controller has to be known
            before it is needed.
    """
    installed = entry_points(group=CONTROLLER_ENTRY_POINTS)
    controllers: dict[str, Controller] = {}
    for name in names:
        if name not in installed.names:
            log.warning("fallback controller not installed", model=model, controller=name)
            continue
        controller = installed[name].load()
        controllers[name] = controller() if isinstance(controller, type) else controller
    return controllers
