"""Prints the project's own files that run during one `/plan` over REST, as a JSON list.

It is a program of its own, because every thread of the process is traced. Its argument is the
backend. Server and client share the process; the client is the standard library's.
"""

import asyncio
import json
import os
import sys
import threading
import urllib.request
from types import FrameType

import uvloop

from lewm_serve.observability.logging import configure_logs
from lewm_serve.server import Server
from lewm_serve.settings import load_settings
from tests.lewm_serve.support.frames import image
from tests.lewm_serve.support.ports import free_port
from tests.lewm_serve.support.server_process import ROOT

PACKAGES = ("service", "models", "client")
"""The folders of the project's own packages."""

_files: set[str] = set()
_is_tracing = False


def _profile(frame: FrameType, event: str, _argument: object) -> None:
    if _is_tracing and event == "call":
        _files.add(frame.f_code.co_filename)


def _send_plan(port: int, seed: int) -> None:
    """Ask for a plan whose images nobody has sent before."""
    document = {"frames": [image("PNG", seed)], "goal": image("PNG", seed + 1)}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/plan",
        json.dumps(document).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["status"] == "completed"


async def _main(backend: str) -> None:
    global _is_tracing
    port = free_port()
    settings = load_settings(
        backend=backend, threads=1, http_port=port, grpc_port=0, log_format="json"
    )
    configure_logs(settings)
    server = Server(settings)
    running = asyncio.create_task(server.run())
    while server.planner.state != "ready":
        await asyncio.sleep(0.05)
        assert not running.done(), running
    await asyncio.to_thread(_send_plan, port, 1)  # imports are not part of the path
    _is_tracing = True
    await asyncio.to_thread(_send_plan, port, 10)
    await asyncio.sleep(0.1)  # the log line and the metrics follow the answer
    _is_tracing = False
    folders = tuple(f"{ROOT / package}{os.sep}" for package in PACKAGES)
    # A timer of the other transport may run meanwhile; no plan over REST passes through it.
    of_grpc = f"{ROOT / 'service' / 'lewm_serve' / 'transports' / 'grpc'}{os.sep}"
    own_files = [
        file for file in _files if file.startswith(folders) and not file.startswith(of_grpc)
    ]
    print(json.dumps(sorted(os.path.relpath(file, ROOT) for file in own_files)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    threading.setprofile(_profile)
    sys.setprofile(_profile)
    uvloop.run(_main(sys.argv[1]))
