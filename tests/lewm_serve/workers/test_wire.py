"""Messages arrive as they were sent, however the bytes are divided."""

import random
import socket
import threading
from typing import Any

import pytest
import torch

from lewm_serve.engine.jobs import EncodeJob, PlanJob, PredictJob
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import Client, QueuedRequest
from lewm_serve.engine.shared_numbers import RowTable
from lewm_serve.objectives.regions import Region
from lewm_serve.objectives.states import StateGoal, StateObjective
from lewm_serve.workers.wire import (
    HEADER,
    BlockingChannel,
    Call,
    MessageReader,
    Reference,
    RemoteBackend,
    RemoteDistance,
    RemoteProbe,
    Result,
    decode,
    encode,
)
from tests.lewm_serve.engine.fakes import FakeBackend, FakeClock, search

BACKEND = RemoteBackend(
    pin="arm@1",
    name="torch",
    device="cpu",
    precision="float32",
    encode_precision="float32",
    rows_are_independent=True,
    threads=1,
)


class BothEnds:
    """The objects that the two processes have."""

    def __init__(self) -> None:
        self.table = RowTable(64)
        self.latency = LatencyModel([(8, 0.001)], encode_s=0.002, new_row=self.table.take)
        self.engine_latency = LatencyModel([(8, 0.001)], encode_s=0.002)
        rows = self.latency.rows
        indices = [row.index for row in rows]
        assert None not in indices
        first, second = (self.table.see(index) for index in indices if index is not None)
        self.engine_latency.adopt(self.latency.measurements, (first, second))
        self.backend = FakeBackend(FakeClock())

    def send(self, message: object) -> Any:
        """A message as the engine gets it."""
        return decode(encode(1, message)[HEADER.size :], self._resolve)

    def _resolve(self, reference: Reference) -> Any:
        kind, key = reference
        if kind == "row":
            return self.table.see(key)
        return {"latency": self.engine_latency, "backend": self.backend}.get(kind, (kind, key))

    def queued(self, **fields: Any) -> QueuedRequest:
        """A request on shared rows."""
        client = Client(row=self.table.take())
        return QueuedRequest(self.latency, 5.0, client=client, row=self.table.take(), **fields)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3),
        torch.randn(3, 4).T,  # not contiguous
        torch.empty(0, 7),
        torch.tensor(1.5, dtype=torch.float64),
        torch.tensor([float("nan"), float("inf")]),
    ],
)
def test_tensors(tensor: torch.Tensor) -> None:
    (received,) = BothEnds().send((tensor,))
    torch.testing.assert_close(received, tensor, rtol=0, atol=0, equal_nan=True)
    if received.numel():
        received.zero_()  # it is the receiver's own


def test_a_plan_arrives_with_its_request() -> None:
    ends = BothEnds()
    shape = RolloutShape(horizon=5, solver="icem", objective="distance")
    queued = ends.queued(
        deadline=9.0,
        priority=7,
        frames_to_encode=2,
        candidates_per_iteration=(16, 12),
        shape=shape,
        min_iterations=1,
        search_bytes=100,
    )
    queued.expect(2)
    job = PlanJob(
        BACKEND,  # type: ignore[arg-type]
        queued,
        latents=torch.randn(1, 3),
        past_actions=torch.empty(0, 2),
        goal=torch.randn(3),
        search=search(),
        with_trajectory=True,
        max_surprise=0.5,
    )
    call = ends.send(Call("run", (job,)))
    (received,) = call.arguments
    assert call.name == "run"
    assert received.backend is ends.backend
    assert torch.equal(received.latents, job.latents)
    assert torch.equal(received.goal, job.goal)
    assert (received.with_trajectory, received.max_surprise) == (True, 0.5)
    assert received.search.solver_settings == job.search.solver_settings
    there = received.queued
    assert there.latency is ends.engine_latency
    for name in (
        *("arrival", "deadline", "priority", "candidates_per_iteration", "shape"),
        *("min_iterations", "requested_iterations", "search_bytes", "expected_iterations"),
        *("frames_to_encode", "within_share"),
    ):
        assert getattr(there, name) == getattr(queued, name), name

    there.completed_iterations = 2
    there.latency.observe_rollout(8, shape, 1.0)
    there.client.observe_use(0.25, best_effort=False)
    assert queued.completed_iterations == 2
    assert queued.latency.correction(shape) > 2
    assert queued.client.use > 0.2
    queued.within_share = False
    assert not there.is_urgent


def test_frames_and_candidates_arrive() -> None:
    ends = BothEnds()
    frames = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8)
    encode_job = EncodeJob(backend=BACKEND, frames=frames, queued=ends.queued())  # type: ignore[arg-type]
    assert torch.equal(ends.send(encode_job).frames, frames)
    candidates = torch.randn(70, 3, 2)
    predict_job = PredictJob(
        BACKEND,  # type: ignore[arg-type]
        ends.queued(candidates_per_iteration=(70,), shape=RolloutShape(horizon=3)),
        latents=torch.randn(1, 3),
        past_actions=torch.empty(0, 2),
        candidates=candidates,
    )
    assert torch.equal(torch.cat(list(ends.send(predict_job).parts)), candidates)


def test_a_distance_and_a_probe_are_sent_by_reference() -> None:
    sent = [RemoteDistance("arm@1"), RemoteProbe("arm@1")]
    assert BothEnds().send(sent) == [("distance", "arm@1"), ("probe", "arm@1")]


def test_an_objective_of_states_arrives_with_the_probe_of_the_engine() -> None:
    region = Region((0, 1), (5.0, 6.0), (2.0,), is_disc=True, weight=3.0, margins=(0.5,))
    goal = StateGoal((1,), (4.0,))
    sent = StateObjective(RemoteProbe("arm@1"), goal, base=None, regions=(region,))
    received = BothEnds().send(sent)
    assert received.reader == ("probe", "arm@1")
    assert (received.goal, received.base, received.regions) == (goal, None, (region,))


def test_a_row_that_is_not_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="not shared"):
        encode(1, QueuedRequest(BothEnds().latency, 0.0))


@pytest.mark.parametrize("seed", range(5))
def test_messages_are_found_however_the_bytes_are_divided(seed: int) -> None:
    messages = [(number, Result("x" * number**2)) for number in range(20)]
    data = b"".join(encode(number, message) for number, message in messages)
    reader, generator = MessageReader(), random.Random(seed)
    received: list[tuple[int, bytes]] = []
    while data:
        size = generator.choice([1, 3, HEADER.size, 1000])
        received += reader.feed(data[:size])
        data = data[size:]
    ends = BothEnds()
    assert [(number, decode(message, ends._resolve)) for number, message in received] == messages


def test_all_messages_that_have_come_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many reads that takes."""
    monkeypatch.setattr("lewm_serve.workers.wire.SOCKET_BUFFER_BYTES", 1000)
    here, there = socket.socketpair()
    with here, there:
        channel = BlockingChannel(there)
        for number in range(5):
            here.sendall(encode(number, Result("x" * 600)))
        assert [number for number, _ in channel.receive(None)] == list(range(5))
        assert list(channel.receive(0)) == []
        here.close()
        with pytest.raises(EOFError):
            list(channel.receive(None))


def test_a_message_that_is_larger_than_the_socket_holds() -> None:
    here, there = socket.socketpair()
    with here, there:
        channel = BlockingChannel(there)
        messages = [encode(number, Result("x" * 300_000)) for number in range(5)]
        sender = threading.Thread(target=here.sendall, args=(b"".join(messages),))
        sender.start()
        received: list[int] = []
        while len(received) < 5:
            received += [number for number, _ in channel.receive(None)]
        sender.join()
        assert received == list(range(5))


def test_states_arrive_with_their_frames() -> None:
    ends = BothEnds()
    frames, states = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.tensor([[1.0], [torch.nan]])
    job = EncodeJob(BACKEND, frames, ends.queued(), states)  # type: ignore[arg-type]
    received = ends.send(job).states
    assert torch.equal(received.isnan(), states.isnan())
    assert received[0] == states[0]
