"""The protocols' names for the command line."""

from enum import StrEnum


class Protocol(StrEnum):
    """Those of `lewm_models.evaluation.protocol`, repeated so that `--help` need not load torch."""

    PAPER = "paper"
    CROSS_ROOM = "cross-room"
