"""Choices of the command line. They repeat names so that `--help` does not import torch."""

from enum import StrEnum


class Protocol(StrEnum):
    """The protocols of `lewm_models.evaluation.protocol`."""

    PAPER = "paper"
    CROSS_ROOM = "cross-room"


class Preset(StrEnum):
    """The architectures of `lewm_models.config`."""

    PAPER = "paper"
    EDGE = "edge"
