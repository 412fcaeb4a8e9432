"""The process that starts engines: it reports how they end, and ends with whoever made it."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lewm_serve.workers.launcher import Launcher
from tests.patience import wait_until


def echo_index_and_end(index: int, connection: socket.socket) -> None:
    """An engine: it says its index and its process, and ends as it is told."""
    connection.sendall(f"{index} {os.getpid()} {os.getppid()}".encode())
    if (told := connection.recv(10)) == b"exit":
        os._exit(3)
    if told == b"error":
        raise ValueError("an error that ends an engine")


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher(echo_index_and_end)
    yield launcher
    launcher.close()


def end_of(launcher: Launcher, pid: int) -> int:
    statuses: list[int] = []

    def has_ended() -> bool:
        if (status := launcher.exit_status(pid)) is not None:
            statuses.append(status)
        return bool(statuses)

    wait_until(has_ended)
    return statuses[0]


def test_engines_start_and_report_how_they_end(launcher: Launcher) -> None:
    engines = [launcher.start(index) for index in range(4)]
    for index, (pid, connection) in enumerate(engines):
        assert connection.recv(100).decode().split() == [str(index), str(pid), str(launcher.pid)]
    engines[0][1].sendall(b"exit")
    engines[1][1].sendall(b"error")
    engines[2][1].close()
    os.kill(engines[3][0], signal.SIGKILL)
    statuses = [end_of(launcher, pid) for pid, _ in engines]
    assert statuses == [3, 1, 0, -signal.SIGKILL]
    assert engines[3][1].recv(10) == b""  # nobody else holds the other end
    for _, connection in engines:
        connection.close()


def test_signals_for_the_server_do_not_end_it(launcher: Launcher) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(launcher.pid, number)
    time.sleep(0.05)
    _, connection = launcher.start(0)
    with connection:
        assert connection.recv(100)


def test_without_it_no_engine_starts(launcher: Launcher) -> None:
    _, connection = launcher.start(0)
    os.kill(launcher.pid, signal.SIGKILL)
    with connection:
        connection.recv(100)
        assert connection.recv(100) == b""  # the kernel has ended the engine, too
    os.waitpid(launcher.pid, 0)
    with pytest.raises(OSError, match=r"does not answer|Broken pipe|reset"):
        launcher.start(0)


def test_it_ends_with_the_process_that_made_it() -> None:
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        launcher = Launcher(echo_index_and_end)
        engine, _ = launcher.start(0)
        os.write(sender, f"{launcher.pid} {engine}".encode())
        signal.pause()
    processes = [int(text) for text in os.read(receiver, 100).split()]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not any(is_alive(process) for process in processes))


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that nobody has waited for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
