"""Random requests by the interfaces' own descriptions, and damaged bytes for every reader.

Each part takes `LEWM_FUZZ_S` seconds; `make fuzz` gives more.
"""

import itertools
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from hypothesis import HealthCheck, Phase, given, seed, settings

from lewm_serve.transports.grpc.calls import INFERENCE_SERVICE, SERVICE
from tests.fuzzing.messages import fields_of
from tests.fuzzing.targets import TARGETS
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.long

FUZZ_S = float(os.environ.get("LEWM_FUZZ_S", "8"))
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
BATCH = settings(
    max_examples=50,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
}
"""How calls may end; INTERNAL and UNKNOWN are faults."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded model, with the limits of a plan that the server gives itself."""
    log = tmp_path_factory.mktemp("fuzzing") / "log.jsonl"
    with ServerProcess(log, "--max-candidate-steps", "2000") as process:
        yield process.wait_ready()
        assert process.metric('lewm_engine_restarts_total{device="cpu"}') == 0
        assert process.stop() == 0, process.errors()
        assert "Traceback" not in process.errors()


def test_rest_keeps_to_its_document(server: ServerProcess) -> None:
    command = [
        *(str(SCHEMATHESIS), "--config-file", str(CONFIG), "run", f"{server.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--max-time", str(int(4 * FUZZ_S)), "--no-color"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = re.search(r"([\d,]+) generated", done.stdout)
    assert found is not None, done.stdout
    cases = int(found[1].replace(",", ""))
    print(f"REST: {cases} cases")
    assert cases > 1000


@pytest.mark.parametrize("service", [SERVICE, INFERENCE_SERVICE])
def test_grpc_answers_every_message(server: ServerProcess, service: str) -> None:
    with grpc.insecure_channel(server.target) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        codes: Counter[str] = Counter()
        methods = [m for m in pool.FindServiceByName(service).methods if not m.server_streaming]
        assert len(methods) >= 5
        for method in methods:
            message = GetMessageClass(method.input_type)
            call = channel.unary_unary(
                f"/{service}/{method.name}",
                request_serializer=message.SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            send = _sender(message, call, codes)
            end = time.monotonic() + 2 * FUZZ_S / len(methods)
            for number in itertools.count():
                if time.monotonic() > end:
                    break
                seed(number)(BATCH(given(fields_of(method.input_type))(send)))()
    print(f"{service}: {codes.total()} calls, {dict(codes)}")
    assert codes.total() > 300
    assert codes["INVALID_ARGUMENT"] > 0


def _sender(message: Any, call: Any, codes: Counter[str]) -> Callable[[dict[str, object]], None]:
    def send(fields: dict[str, object]) -> None:
        try:
            request = message(**fields)
        except (ValueError, OverflowError):  # a number that the field cannot hold
            return
        code = _code_of(call, request)
        codes[code] += 1
        assert code in CODES, fields

    return send


def _code_of(call: Any, request: object) -> str:
    """How a call ends. An error has to have a code and a request id."""
    try:
        call(request, timeout=PATIENCE_S)
    except grpc.RpcError as raised:
        error = raised
    else:
        return "OK"
    metadata: Any = error.trailing_metadata()
    trailing = dict(metadata or ())
    assert trailing.get("code"), error
    assert trailing.get("request_id"), error
    return str(error.code().name)


@pytest.mark.parametrize("target", TARGETS)
def test_readers_refuse_what_they_cannot_read(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzzing.program", target]
    options = [f"-max_total_time={max(1, int(FUZZ_S))}", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        command + options,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = re.search(r"Done (\d+) runs", done.stderr)
    assert found is not None, done.stderr[-2000:]
    print(f"{target}: {found[1]} executions")
    assert int(found[1]) > 100
