"""Signals, from the first moment of the process, and its end.

SIGTERM and SIGINT stop the server. SIGHUP reads the model folders again. SIGUSR1 and SIGUSR2 would
end the server without draining; they are ignored with a line in the log. So is SIGHUP before the
models are loaded.
"""

import os
import signal
from typing import NoReturn

from lewm_serve.observability.logging import EXIT_FLUSH_S, flush_logs, log

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELOAD_SIGNAL = signal.SIGHUP
IGNORED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Log rotators send them."""


def handle_early_signals() -> None:
    """Handle the signals that arrive before the server listens.

    A signal to stop ends the process at once, because nothing is in progress. Without a handler,
    the first process of a container would not even notice it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _stop_before_start)
    for number in (RELOAD_SIGNAL, *IGNORED_SIGNALS):
        signal.signal(number, lambda number, _frame: log_ignored_signal(signal.Signals(number)))


def log_ignored_signal(number: signal.Signals) -> None:
    """Say that the server does nothing."""
    log.warning("signal ignored", signal=number.name)


def exit_process(code: int, flush_s: float = EXIT_FLUSH_S) -> NoReturn:
    """End the process at once, after the last lines of the log.

    A run of the model that outlasts the grace period cannot be interrupted. A normal exit would end
    the interpreter during that run, and the process would abort.
    """
    flush_logs(flush_s)
    os._exit(code)


def _stop_before_start(number: int, _frame: object) -> None:
    log.info("stopped before the start", signal=signal.Signals(number).name)
    exit_process(0)
