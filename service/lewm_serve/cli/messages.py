"""How the commands speak to people."""

WIDTH_WITHOUT_TERMINAL = 1000
"""Columns of a table in a file or a pipe: one line per row."""


def describe_error(error: Exception) -> str:
    """One line for people. Of an operating system's error: the file and the reason, no number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
