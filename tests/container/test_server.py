"""The server in a container: read-only, without rights, as a user that the image does not know."""

import json
import shutil
import subprocess
import threading
from base64 import b64encode
from pathlib import Path

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient, PlannerError
from lewm_models.checkpoint import PRETRAINED
from tests.container.containers import RUN, USER, ServerContainer
from tests.container.images import ROOT, run
from tests.lewm_serve.support.certificates import Authority, CertificateFiles, client_context
from tests.lewm_serve.support.keys import add_key, bearer
from tests.patience import PATIENCE_S, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

FRAMES = ROOT / "docs" / "frames"
START, GOAL = (FRAMES / "start.png").read_bytes(), (FRAMES / "goal.png").read_bytes()
GRACE_S = 20
NATIVE_INSTRUCTIONS = "avx512_bf16"


def test_plans_over_both_protocols(server: ServerContainer) -> None:
    with PlannerClient(server.target) as client:
        by_grpc = client.plan([START], goal=GOAL, seed=7)
    start, goal = ({"image": b64encode(image).decode()} for image in (START, GOAL))
    body = {"frames": [start], "goal": goal, "seed": 7}
    answer = httpx.post(f"{server.url}/plan", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(np.float32(answer.json()["actions"]), by_grpc.actions)


def test_it_writes_nothing_and_is_nobody(server: ServerContainer) -> None:
    folders = "/ /tmp /run /var/tmp /dev/shm /opt/lewm"
    attempt = f"for folder in {folders}; do touch $folder/x 2>&- && echo $folder; done; true"
    written = run("podman", "exec", server.name, "sh", "-c", attempt).split()
    assert written == ["/dev/shm"]  # in memory, and in each container
    (user,) = run("podman", "exec", server.name, "id", "-u").split()
    assert user == USER.partition(":")[0]
    status = run("podman", "exec", server.name, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [USER.partition(":")[0]] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


@pytest.mark.skipif(
    NATIVE_INSTRUCTIONS not in Path("/proc/cpuinfo").read_text(),
    reason=f"the processor has no {NATIVE_INSTRUCTIONS}",
)
def test_the_native_backend_needs_no_compiler(server: ServerContainer) -> None:
    assert server.events("no native backend") == []
    (choice,) = server.events("backend chosen")
    assert any(option.startswith("native") for option in choice["plan_ms"])


def test_the_health_check_sees_whether_it_answers(server: ServerContainer) -> None:
    (description,) = json.loads(run("podman", "inspect", server.name))
    check = description["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    run("podman", "exec", server.name, *check[1:])
    unanswered = ["podman", "exec", "--env", "LEWM_HTTP_PORT=9", server.name, *check[1:]]
    assert subprocess.run(unanswered, capture_output=True, check=False).returncode == 1


def test_robots_of_the_demo_reach_their_goals(server: ServerContainer, image: str) -> None:
    network, memory = f"--network=container:{server.name}", "--tmpfs=/tmp"
    arguments = ("--server", "127.0.0.1:50051", "--robots", "4", "--output", "/tmp/rooms.gif")
    printed = run(*RUN, "--rm", f"--user={USER}", network, memory, image, "demo", *arguments)
    assert "4 robots at once" in printed


def test_a_stop_lets_plans_end(image: str) -> None:
    with ServerContainer(image, "--env=LEWM_MAX_CANDIDATE_STEPS=1000000000000") as container:
        container.wait_ready()
        plans = []

        def plan() -> None:
            with PlannerClient(container.target) as client:
                solver = {"name": "cem", "samples": 256, "iterations": 200, "horizon": 20}
                plans.append(client.plan([START], goal=GOAL, solver=solver, timeout_s=5))

        thread = threading.Thread(target=plan)
        thread.start()
        wait_until(lambda: "lewm_active_plans 1.0" in container.get("/metrics").text)
        run("podman", "stop", "--time", str(GRACE_S), container.name)
        thread.join(PATIENCE_S)
        assert [plan.status for plan in plans] == ["deadline"]
        assert container.exit_code() == 0
        assert container.events("stopped")


def test_own_models_and_a_quota_of_processors(image: str, tmp_path: Path) -> None:
    shutil.copytree(PRETRAINED / "reacher", tmp_path / "arm")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    volume, models = f"--volume={tmp_path}:/models:ro", "--env=LEWM_MODELS=/models/arm"
    with ServerContainer(image, volume, models, "--cpus=1.5", "--memory=2g") as container:
        container.wait_ready()
        assert [model["name"] for model in container.get("/models").json()["models"]] == ["reacher"]
        (choice,) = container.events("backend chosen")
        assert all(option.endswith(" on 1") for option in choice["plan_ms"])


def test_keys_and_certificates_in_a_read_only_volume(image: str, tmp_path: Path) -> None:
    authority, files = Authority(), CertificateFiles.in_folder(tmp_path)
    files.write(authority.issue())
    robot = add_key(tmp_path / "keys", "arm-1", "infer")
    prometheus = add_key(tmp_path / "keys", "prometheus", "read")
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    settings = {
        "LEWM_INSECURE": "0",
        "LEWM_HOST": "0.0.0.0",
        "LEWM_KEYS_FILE": "/etc/lewm/keys",
        "LEWM_TLS_CERT": f"/etc/lewm/{files.certificate.name}",
        "LEWM_TLS_KEY": f"/etc/lewm/{files.key.name}",
        "LEWM_METRICS_PORT": "8001",
    }
    variables = (f"--env={name}={value}" for name, value in settings.items())
    volume, port = f"--volume={tmp_path}:/etc/lewm:ro", "--publish=127.0.0.1::8001"
    with ServerContainer(image, volume, port, *variables) as container:
        container.wait_ready()
        (description,) = json.loads(run("podman", "inspect", container.name))
        run("podman", "exec", container.name, *description["Config"]["Healthcheck"]["Test"][1:])

        def client(key: str | None) -> PlannerClient:
            return PlannerClient(container.target, tls=authority.certificate, api_key=key)

        with client(robot) as with_key, client(None) as without_key:
            by_grpc = with_key.plan([START], goal=GOAL, seed=7)
            with pytest.raises(PlannerError) as refused:
                without_key.plan([START], goal=GOAL, seed=7)
        assert refused.value.code == "unauthenticated"

        start, goal = ({"image": b64encode(frame).decode()} for frame in (START, GOAL))
        body = {"frames": [start], "goal": goal, "seed": 7}
        trust = client_context(tmp_path, authority)
        with httpx.Client(verify=trust, timeout=PATIENCE_S) as rest:
            url = container.url.replace("http:", "https:")
            answer = rest.post(f"{url}/plan", json=body, headers=bearer(robot))
            assert answer.status_code == 200, answer.text
            np.testing.assert_array_equal(np.float32(answer.json()["actions"]), by_grpc.actions)
            assert rest.post(f"{url}/plan", json=body).json()["code"] == "unauthenticated"
            monitoring = run("podman", "port", container.name, "8001").strip()
            statuses = [
                rest.get(f"https://{monitoring}/metrics", headers=headers).status_code
                for headers in (bearer(prometheus), bearer(robot), {})
            ]
        assert statuses == [200, 403, 401]


def test_a_wrong_setting_ends_with_one_line(image: str) -> None:
    command = [*RUN, "--rm", f"--user={USER}", "--env=LEWM_GRACE_S=soon", image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lewm serve: LEWM_GRACE_S")
