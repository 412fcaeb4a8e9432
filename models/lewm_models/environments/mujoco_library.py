"""MuJoCo, which several environments simulate with."""

import os
from ctypes.util import find_library
from typing import Any

from lewm_models.environments.environment import load_simulator


def load_mujoco(environment: str) -> Any:
    """Import MuJoCo for an environment.

    It chooses its OpenGL at its first import in a process, by the variable MUJOCO_GL. Where that is
    not set, it becomes EGL, which needs no display, if there is EGL.

    Raises:
        ValueError: MuJoCo is not installed.
    """
    if "MUJOCO_GL" not in os.environ and find_library("EGL") is not None:
        os.environ["MUJOCO_GL"] = "egl"
    return load_simulator("mujoco", environment)
