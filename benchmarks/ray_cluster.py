"""A Ray of this machine alone, with the planner of `deploy/ray/lewm.yaml` on its CPUs.

As a program, it starts the cluster, prints one line of JSON when the replicas run, and answers each
line of JSON on standard input with another one:

    {"args": {…}, "deployment": {…}}   deploy with these changes of the file, wait until done
    {}                                 nothing but the answer

An answer holds the ports and the processes of the replicas. At the end of the input, Ray stops.

    python -m benchmarks.ray_cluster '{"args": {…}, "deployment": {…}}'
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lewm_serve.cli.local_server import HOST, START_TIMEOUT_S

CONFIG = Path(__file__).parents[1] / "deploy" / "ray" / "lewm.yaml"
CPUS = 2
"""What Ray may hand out. A replica takes one."""
OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""The least that Ray allows, about. Requests do not go through it."""
POLL_S = 0.1

Options = dict[str, Any]
"""Settings, or options of a deployment, by name."""

NODE_OPTIONS = (
    f"--node-ip-address={HOST}",
    f"--num-cpus={CPUS}",
    "--num-gpus=0",
    f"--object-store-memory={OBJECT_STORE_BYTES}",
    "--include-dashboard=false",
)
STARTED = "Ray runtime started."
START_ATTEMPTS = 5
"""A node gives up if its agent takes more than 15 s to start, as it does on a busy machine."""

VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # otherwise Ray keeps one in the home folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # otherwise Ray listens on the network's address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "60",
}
"""What Ray reads when it is imported."""

LOCAL_ARGS: Options = {"insecure": True, "host": HOST, "log_level": "warning"}
LOCAL_DEPLOYMENT: Options = {"ray_actor_options": {"num_cpus": 1}, "num_replicas": 2}
DROPPED_ARGS = ("keys_file", "metrics_port")


class RayCluster:
    """The running cluster. Only one can be in a process."""

    def __init__(self) -> None:
        self.http_port, self.grpc_port = _free_port(), _free_port()

    def deploy(self, args: Options | None = None, deployment: Options | None = None) -> None:
        """Deploy the file with changes, and wait until only new replicas run.

        Args:
            args: settings of the planner.
            deployment: options of the deployment.

        Raises:
            RuntimeError: Ray gives up, or it takes too long. The message says what Ray says.
        """
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = self.config(args or {}, deployment or {})
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
        end = time.monotonic() + START_TIMEOUT_S
        while (status := serve.status().applications["lewm"]).status != "RUNNING":
            if status.status == "DEPLOY_FAILED" or time.monotonic() > end:
                raise RuntimeError(f"{status.status}: {status.message} {status.deployments}")
            time.sleep(POLL_S)

    def config(self, args: Options, deployment: Options) -> Options:
        """The file for this machine, with changes."""
        config: Options = yaml.safe_load(CONFIG.read_text())
        config["proxy_location"] = "HeadOnly"
        config["http_options"] |= {"host": HOST, "port": self.http_port}
        config["grpc_options"]["port"] = self.grpc_port
        (application,) = config["applications"]
        for name in DROPPED_ARGS:
            del application["args"][name]
        application["args"] |= LOCAL_ARGS | args
        (planner,) = application["deployments"]
        del planner["autoscaling_config"]
        planner |= LOCAL_DEPLOYMENT | deployment
        return config

    def describe(self) -> Options:
        """The ports, and the processes of the replicas that run."""
        from ray.serve.context import _get_global_client

        details = _get_global_client().get_serve_details()
        replicas = details["applications"]["lewm"]["deployments"]["planner"]["replicas"]
        pids = [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]
        return {"http_port": self.http_port, "grpc_port": self.grpc_port, "pids": pids}


@contextmanager
def local_cluster() -> Iterator[RayCluster]:
    """Run Ray for the duration of the block, without the planner."""
    os.environ.update(VARIABLES)
    import ray
    from ray import serve

    cluster = RayCluster()
    config = cluster.config({}, {})
    with _ray_node() as address:
        ray.init(address, namespace="serve", log_to_driver=False)
        try:
            serve.start(
                config["proxy_location"],
                config["http_options"],
                grpc_options=config["grpc_options"],
            )
            yield cluster
        finally:
            serve.shutdown()
            ray.shutdown()


@contextmanager
def _ray_node() -> Iterator[str]:
    """Run `ray start --head` for the duration of the block. Yields the node's address.

    Raises:
        RuntimeError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short name: it holds sockets
        for _ in range(START_ATTEMPTS):
            port = _free_port()
            command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
            command += [f"--port={port}", f"--temp-dir={folder}", *NODE_OPTIONS]
            node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert node.stdout is not None
            with node.stdout:
                try:
                    if any(STARTED in line for line in node.stdout):
                        yield f"{HOST}:{port}"
                        return
                finally:
                    node.terminate()
                    node.wait()
    raise RuntimeError(f"ray start has failed {START_ATTEMPTS} times")


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
        return port


def main() -> None:
    """See the module."""
    with local_cluster() as cluster:
        cluster.deploy(**json.loads(sys.argv[1]))
        print(json.dumps(cluster.describe()), flush=True)
        for line in sys.stdin:
            if change := json.loads(line):
                cluster.deploy(**change)
            print(json.dumps(cluster.describe()), flush=True)


if __name__ == "__main__":
    main()
