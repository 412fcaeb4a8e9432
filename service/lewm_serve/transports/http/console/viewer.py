"""Makes what the pages show of plans: only when somebody looks, and after all other work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import torch
from torch import Tensor

from lewm_models.checkpoint import CARD_FILE, CheckpointError, ViewingParts, load_viewing_parts
from lewm_models.cores import lower_thread_priority
from lewm_serve.errors import ServiceError
from lewm_serve.observability.logging import log
from lewm_serve.planner.history import PlanHistory, PlanRecord
from lewm_serve.planner.planner import Planner
from lewm_serve.registry.registry import VERSION_MARK, LoadedModel
from lewm_serve.transports.http.console.pictures import KnownFrame
from lewm_serve.transports.http.console.placing import Plane
from lewm_serve.transports.http.console.views import Candidates, detail_of

NICENESS = 15

MAX_VIEWS = 48
"""The most plans whose pages are kept."""

MAX_VIEW_BYTES = 16 << 20

MAX_KNOWN_PLANS = 200
"""How many of the last plans are searched for frames that stand for latents."""


class Viewer:
    """See the module. Used only from the event loop."""

    def __init__(self, planner: Planner, history: PlanHistory) -> None:
        self._planner, self._history = planner, history
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="console", initializer=_prepare_thread
        )
        self._views: OrderedDict[int, bytes] = OrderedDict()
        self._planes: dict[int, Plane] = {}
        self._bytes = 0
        self._pending: dict[int, asyncio.Task[bytes]] = {}
        self._parts: dict[Path, tuple[int, ViewingParts | None]] = {}

    async def view(self, record: PlanRecord) -> bytes:
        """All of a plan as JSON. It is made once, whoever asks for it."""
        if (made := self._views.get(record.number)) is not None:
            return made
        pending = self._pending.get(record.number)
        if pending is None:
            pending = asyncio.create_task(self._make(record))
            self._pending[record.number] = pending
            pending.add_done_callback(lambda _: self._pending.pop(record.number))
        return await asyncio.shield(pending)

    async def viewing_parts(self, folder: Path, latent_dim: int) -> ViewingParts | None:
        """The probe and the decoder of a model's folder; None if it is broken.

        They are read again when the card has changed.
        """
        changed_at = _changed_at(folder / CARD_FILE)
        read_at, parts = self._parts.get(folder, (0, None))
        if read_at == changed_at:
            return parts
        loop = asyncio.get_running_loop()
        try:
            parts = await loop.run_in_executor(self._thread, load_viewing_parts, folder, latent_dim)
        except CheckpointError as error:
            log.warning("the console cannot use a model's folder", reason=str(error))
            parts = None
        self._parts[folder] = changed_at, parts
        return parts

    async def _make(self, record: PlanRecord) -> bytes:
        model: LoadedModel | None = None
        parts: ViewingParts | None = None
        candidates: Candidates | None = None
        predicted: Tensor | None = None
        problem: str | None = None
        name = f"{record.response.model}{VERSION_MARK}{record.response.model_version}"
        try:
            model, folder = self._planner.model_and_folder(name)
            parts = await self.viewing_parts(folder, model.card.config.latent_dim)
            if record.latents is not None:
                candidates = Candidates(record, model)
                predicted = await self._planner.imagine(
                    name,
                    latents=candidates.latents,
                    past_actions=candidates.past_actions,
                    candidates=candidates.blocks,
                )
        except ServiceError as error:
            problem = error.detail
        known = self._known_frames(record, parts)
        plane = await self._plane_of_original(record)

        def render() -> tuple[bytes, Plane | None]:
            document, used = detail_of(
                record,
                model=model,
                parts=parts,
                candidates=candidates,
                predicted=predicted,
                known=known,
                plane=plane,
                problem=problem,
            )
            return orjson.dumps(document), used

        view, used = await asyncio.get_running_loop().run_in_executor(self._thread, render)
        if problem is None:
            self._keep(record.number, view, used)
        return view

    async def _plane_of_original(self, record: PlanRecord) -> Plane | None:
        """Where the plan is drawn that this one repeats, so that both can be compared."""
        original = None if record.replay_of is None else self._history.get(record.replay_of)
        if original is None:
            return None
        await self.view(original)
        return self._planes.get(original.number)

    def _known_frames(self, record: PlanRecord, parts: ViewingParts | None) -> list[KnownFrame]:
        """Frames of kept plans of the same model, if there is no decoder."""
        if parts is not None and parts.decoder is not None:
            return []
        plans = self._history.after(0, MAX_KNOWN_PLANS)
        version = record.response.model_version
        return [
            KnownFrame(frame, latent)
            for plan in plans
            if plan.latents is not None and plan.response.model_version == version
            for frame, latent in zip(plan.encoded_frames, plan.latents, strict=True)
        ]

    def _keep(self, number: int, view: bytes, plane: Plane | None) -> None:
        self._views[number] = view
        if plane is not None:
            self._planes[number] = plane
        self._bytes += len(view)
        while len(self._views) > 1 and (
            len(self._views) > MAX_VIEWS or self._bytes > MAX_VIEW_BYTES
        ):
            oldest, dropped = self._views.popitem(last=False)
            self._planes.pop(oldest, None)
            self._bytes -= len(dropped)


def _changed_at(file: Path) -> int:
    """When a file was changed, in nanoseconds; -1 if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return -1


def _prepare_thread() -> None:
    lower_thread_priority(NICENESS)
    torch.set_num_threads(1)
