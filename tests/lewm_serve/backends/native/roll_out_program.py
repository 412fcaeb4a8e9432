"""A roll-out by the native code in a process of its own.

    python roll_out_program.py [--refuse-tiles]

It prints one line of JSON: the package's folder, whether tiles are available, and a checksum of the
results on dot products and, as is usual, on tiles if there are any. ``--refuse-tiles``: the system
refuses the use of tiles, as it does on a processor without them. A tile instruction then ends the
process with SIGILL.
"""

import ctypes
import hashlib
import json
import sys

PROGRAM = __file__

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
SYS_ARCH_PRCTL = 158
"""Its number on x86-64."""

REFUSE_ARCH_PRCTL = (
    (0x20, 0, 0, 0),  # load the number of the system call
    (0x15, 0, 1, SYS_ARCH_PRCTL),  # skip the next instruction unless it is this one
    (0x06, 0, 0, 0x0005_0001),  # fail with EPERM
    (0x06, 0, 0, 0x7FFF_0000),  # allow
)
"""A filter of system calls: code, jump if true, jump if false, operand."""


class FilterInstruction(ctypes.Structure):
    """``struct sock_filter`` of Linux."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class FilterProgram(ctypes.Structure):
    """``struct sock_fprog`` of Linux."""

    _fields_ = (
        ("length", ctypes.c_ushort),
        ("instructions", ctypes.POINTER(FilterInstruction)),
    )


def refuse_tiles() -> None:
    """Make the system call fail that asks for the use of tiles, in this process from now on."""
    instructions = (FilterInstruction * len(REFUSE_ARCH_PRCTL))(
        *(FilterInstruction(*values) for values in REFUSE_ARCH_PRCTL)
    )
    program = FilterProgram(len(instructions), instructions)
    system = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if system.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def roll_out(*, use_tiles: bool) -> str:
    """A checksum of the latents that a model of random weights predicts."""
    import torch

    from lewm_models.config import PRESETS
    from lewm_models.random_weights import random_model
    from lewm_serve.backends.native.backend import NativeKernel
    from lewm_serve.backends.native.library import load_library
    from lewm_serve.backends.rollout import RowThreads, SharedContextRollout

    config = PRESETS["edge"]
    kernel = NativeKernel(random_model(config), load_library(), use_tiles=use_tiles)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 2, config.latent_dim, generator=generator)
    past_actions = torch.randn(1, 1, config.block_width, generator=generator)
    candidates = torch.randn(1, 37, 5, config.block_width, generator=generator)
    with torch.inference_mode():
        predicted = SharedContextRollout(kernel, RowThreads(1))(latents, past_actions, candidates)
    return hashlib.sha256(predicted.numpy().tobytes()).hexdigest()


def results() -> dict[str, object]:
    """What the program prints."""
    from lewm_serve.backends.native.build import FOLDER
    from lewm_serve.backends.native.library import load_library

    return {
        "folder": str(FOLDER),
        "tiles": bool(load_library().tiles_available()),
        "on dot products": roll_out(use_tiles=False),
        "as usual": roll_out(use_tiles=True),
    }


if __name__ == "__main__":
    if "--refuse-tiles" in sys.argv:
        refuse_tiles()
    print(json.dumps(results()))
