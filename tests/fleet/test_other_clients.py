"""openpi's protocol and the Open Inference Protocol through nginx and Envoy."""

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from lewm_client import PlannerClient
from tests.fleet.fleet import Fleet
from tests.lewm_serve.support.certificates import HOST
from tests.lewm_serve.support.inference_protocol import OipGrpcDriver, OipHttpDriver
from tests.lewm_serve.support.openpi import OBSERVATION, openpi
from tests.lewm_serve.support.requests import plan
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.long


def test_plans_through_the_proxies(tmp_path: Path) -> None:
    with Fleet(tmp_path, drain_lag_s=0) as fleet:
        key, ca = fleet.access.api_key, fleet.access.tls_ca
        assert key is not None
        assert isinstance(ca, str)
        context = ssl.create_default_context(cafile=ca)
        server: Any = fleet.servers[0].process
        address = f"{HOST}:{fleet.nginx.port}"
        wss: dict[str, Any] = {"uri": f"wss://{address}", "ssl": context}
        with openpi(server, key, **wss) as connection:
            first, again = (connection.infer(OBSERVATION) for _ in range(2))
            assert first["status"] == "completed"
        with pytest.raises(InvalidStatus, match="401"), openpi(server, **wss):
            pass
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(
            base_url=f"https://{address}", headers=headers, verify=context, timeout=PATIENCE_S
        ) as rest:
            over_http = OipHttpDriver(rest).send("plan", plan()).document
            assert rest.get("/").json()["code"] == "unknown_route"
        with PlannerClient(f"{HOST}:{fleet.envoy.port}", tls=ca, api_key=key) as rpc:
            over_grpc = OipGrpcDriver(rpc).send("plan", plan()).document
        plans = [first["actions"].tolist(), again["actions"].tolist()]
        plans += [over_http["actions"], over_grpc["actions"]]
        assert all(actions == plans[0] for actions in plans)
