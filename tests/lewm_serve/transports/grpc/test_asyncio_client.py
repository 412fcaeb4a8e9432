"""The asyncio client of `lewm_client` gets the answers that the blocking one gets."""

from typing import Any

import numpy as np
import pytest

from lewm_client import AsyncPlannerClient, PlannerClient, PlannerError
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

FRAME, GOAL = picture(0), picture(1)
PLAN: dict[str, Any] = {
    "seed": 1,
    "solver": {"samples": 16, "iterations": 1, "elites": 4},
    "timeout_s": PATIENCE_S,
}


async def test_all_calls(server: ServerProcess, rpc: PlannerClient) -> None:
    async with AsyncPlannerClient(server.target, robot="arm 7") as client:
        plan = await client.plan([FRAME], GOAL, **PLAN)
        encoded = await client.encode([FRAME])
        predicted = await client.predict([FRAME], actions=plan.actions)
        models = await client.models()
        with pytest.raises(PlannerError, match="unknown_model"):
            await client.encode([FRAME], model="no-such-model")
    assert np.array_equal(plan.actions, rpc.plan([FRAME], GOAL, **PLAN).actions)
    assert np.array_equal(encoded.latents[0].latent, rpc.encode([FRAME]).latents[0].latent)
    expected = rpc.predict([FRAME], actions=plan.actions)
    assert np.array_equal(predicted.latents, expected.latents)
    assert models == rpc.models()
