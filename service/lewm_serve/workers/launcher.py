"""A small process that starts engines, because the process with the event loop must not fork.

It is forked before there are threads, when all modules are loaded. So an engine starts within
milliseconds and shares the memory of the modules. If the process with the event loop ends, in
whatever way, the kernel ends the launcher, and with it the engines.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from lewm_serve.signals import IGNORED_SIGNALS, RELOAD_SIGNAL, STOP_SIGNALS

START_TIMEOUT_S = 10.0
"""The launcher answers within milliseconds, unless the machine is out of memory."""

SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
"""As much as possible: the frames of a request are sent whole. The system may allow less."""

PR_SET_PDEATHSIG = 1
"""The kernel's number of this option of prctl(2)."""

SERVER_SIGNALS = (*STOP_SIGNALS, RELOAD_SIGNAL, *IGNORED_SIGNALS)
"""Whoever signals all processes of the server means the server."""

INDEX = struct.Struct("<i")
NO_PROCESS = -1
REPORT = struct.Struct("<ii?")
"""The fields of a `_Report`."""

RunEngine = Callable[[int, socket.socket], None]


class _Report(NamedTuple):
    """What the launcher says of a process: its number, its status, and whether it has ended."""

    pid: int
    status: int
    has_ended: bool


class Launcher:
    """Starts engines. Make it before the process has threads.

    Args:
        run_engine: what a process does with the index of its engine and its end of a socket.
    """

    def __init__(self, run_engine: RunEngine) -> None:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._statuses: dict[int, int] = {}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SERVER_SIGNALS)
        self.pid = _fork_that_ends_with_this_process()
        if self.pid == 0:
            try:
                for number in SERVER_SIGNALS:
                    signal.signal(number, signal.SIG_IGN)  # the first process acts for all
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                self._control.close()
                _serve(control, run_engine)
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        control.close()

    def close(self) -> None:
        """End the launcher, and with it the engines."""
        self._control.close()

    def start(self, index: int) -> tuple[int, socket.socket]:
        """Start an engine. Returns its process and this process's end of the socket.

        Raises:
            OSError: the launcher has ended.
        """
        here, there = socket.socketpair()
        for end in (here, there):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        try:
            with there:
                socket.send_fds(self._control, [INDEX.pack(index)], [there.fileno()])
            return self._started_process(), here
        except OSError:
            here.close()
            raise

    def _started_process(self) -> int:
        while select.select([self._control], [], [], START_TIMEOUT_S)[0]:
            report = self._next_report()
            if report is None:
                break
            if report.pid == NO_PROCESS:
                raise OSError("the system has no process left")
            if not report.has_ended:
                return report.pid
        raise OSError("the process that starts engines does not answer")

    def exit_status(self, pid: int) -> int | None:
        """How a process has ended, negative for a signal; None if that is not known yet."""
        while select.select([self._control], [], [], 0)[0]:
            if self._next_report() is None:
                break
        return self._statuses.pop(pid, None)

    def _next_report(self) -> _Report | None:
        """Read a report, and note the status of a process that has ended; None: no more come."""
        try:
            data = self._control.recv(REPORT.size)
        except OSError:
            data = b""
        if not data:
            return None
        report = _Report(*REPORT.unpack(data))
        if report.has_ended:
            self._statuses[report.pid] = report.status
        return report


def _serve(control: socket.socket, run_engine: RunEngine) -> NoReturn:
    """Fork an engine for each request, until the other end of the socket is closed."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([control.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1)
            _report_ends(control)
        if control.fileno() in ready:
            try:
                data, descriptors, _, _ = socket.recv_fds(control, INDEX.size, maxfds=1)
            except OSError:
                data = b""
            if not data:
                os._exit(0)
            try:
                connection = socket.socket(fileno=descriptors[0])
                pid = _fork_that_ends_with_this_process()
            except (OSError, IndexError):  # no process or descriptor is left
                control.send(REPORT.pack(NO_PROCESS, 0, False))
                continue
            if pid == 0:
                control.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _run(run_engine, INDEX.unpack(data)[0], connection)
            connection.close()
            control.send(REPORT.pack(pid, 0, False))


def _report_ends(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(REPORT.pack(pid, os.waitstatus_to_exitcode(status), True))


def _run(run_engine: RunEngine, index: int, connection: socket.socket) -> NoReturn:
    status = 1
    try:
        run_engine(index, connection)
        status = 0
    finally:
        os._exit(status)


def _fork_that_ends_with_this_process() -> int:
    """Fork. The kernel kills the new process when the thread that has forked it ends."""
    parent = os.getpid()
    with warnings.catch_warnings():
        # The thread of the log may run; `restart_log_thread` starts it in the new process.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before
            os._exit(1)
    return pid
