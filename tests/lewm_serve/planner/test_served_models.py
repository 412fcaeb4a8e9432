"""Reloads in a planner without a transport: what is kept, shared, dropped and released."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from lewm_serve.errors import Draining, InvalidRequest, Loading, ReloadFailed, UnknownModel
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.registry.loading import load_model
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.registry.reload import read_models_again
from lewm_serve.settings import Settings
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.model_versions import write_version
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.running_planner import RunningPlanner, running_planner
from tests.patience import PATIENCE_S


def model_of(running: RunningPlanner, name: str | None = None) -> LoadedModel:
    """The model that answers requests for a name."""
    return running.planner._loaded_model(name)


async def until(condition: Any) -> None:
    """Wait for the event loop, the engine or a timer."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def reload(running: RunningPlanner) -> dict[str, str]:
    """Read the models again; what became of each, also if some failed."""
    try:
        report = await running.planner.reload_models()
    except ReloadFailed as error:
        return {model["model"]: model["result"] for model in error.models}
    return {model.model: model.result for model in report.models}


async def test_a_version_is_pinned_until_its_time_has_come(tmp_path: Path) -> None:
    old = write_version(tmp_path / "a")
    async with running_planner(tmp_path, keep_old_s=600.0) as running:
        first = model_of(running)
        assert await reload(running) == {MODEL_NAME: "unchanged"}
        assert model_of(running) is first
        before = await running.plan()
        new = write_version(tmp_path / "a", 1)
        assert await reload(running) == {MODEL_NAME: "switched"}
        assert (before.model_version, (await running.plan()).model_version) == (old, new)
        pinned = await running.plan(model=f"{MODEL_NAME}@{old}")
        assert (pinned.model, pinned.model_version) == (MODEL_NAME, old)
        assert pinned.actions.tolist() == before.actions.tolist()
        assert (await running.plan(model=f"{MODEL_NAME}@{new}")).model_version == new
        described = running.planner.describe_model(MODEL_NAME)
        assert [(o.name, o.version) for o in described.old_versions] == [(MODEL_NAME, old)]
        assert 0 < described.old_versions[0].seconds_left <= 600
        assert described.seconds_left is None
        assert described.default
        of_old = running.planner.describe_model(f"{MODEL_NAME}@{old}")
        assert (of_old.version, of_old.default) == (old, False)
        assert of_old.seconds_left is not None

        write_version(tmp_path / "a")  # the old version comes back, and is not loaded again
        assert await reload(running) == {MODEL_NAME: "switched"}
        assert model_of(running) is first

        registry = running.planner._models.registry
        assert registry is not None
        running.planner._models.registry = registry.without_expired(float("inf"))
        with pytest.raises(UnknownModel) as refused:
            model_of(running, f"{MODEL_NAME}@{new}")
        assert refused.value.detail.endswith(f"expected one of {MODEL_NAME}@{old}")


async def test_the_time_of_an_old_version(tmp_path: Path) -> None:
    old = write_version(tmp_path / "a")
    async with running_planner(tmp_path, keep_old_s=0.2) as running:
        released = weakref.ref(model_of(running))
        write_version(tmp_path / "a", 1)
        await reload(running)
        await until(lambda: released() is None)
        with pytest.raises(UnknownModel):
            model_of(running, f"{MODEL_NAME}@{old}")
        labels = {"backend": "torch", "device": "cpu", "precision": "float32"}
        sample = running.metrics.registry.get_sample_value
        await until(
            lambda: (
                sample("lewm_model_info", {"model": MODEL_NAME, "version": old} | labels) is None
            )
        )


async def test_models_that_come_and_go(tmp_path: Path) -> None:
    write_version(tmp_path / "a")
    async with running_planner(tmp_path) as running:
        arm = write_version(tmp_path / "arm", 1, name="arm")
        assert await reload(running) == {MODEL_NAME: "unchanged", "arm": "added"}
        assert (await running.plan(model="arm")).model == "arm"
        assert (await running.plan()).model == MODEL_NAME  # it was the default, and stays it
        (tmp_path / "arm").rename(tmp_path / "moved")
        assert await reload(running) == {MODEL_NAME: "unchanged", "arm": "unchanged"}
        (tmp_path / "moved").rename(tmp_path.parent / "elsewhere")
        assert await reload(running) == {MODEL_NAME: "unchanged", "arm": "removed"}
        with pytest.raises(UnknownModel, match=f"expected one of {MODEL_NAME}$"):
            model_of(running, "arm")
        assert (await running.plan(model=f"arm@{arm}")).model_version == arm
        listed = running.planner.describe_models()
        assert [model.name for model in listed.models] == [MODEL_NAME]
        assert [(old.name, old.version) for old in listed.removed] == [("arm", arm)]
        for result, count in (("added", 1), ("removed", 1), ("failed", 0), ("unchanged", 4)):
            assert running.metric("lewm_model_reloads_total", result=result) == count


async def test_a_model_that_cannot_be_used_leaves_the_old_one(tmp_path: Path) -> None:
    versions = {name: write_version(tmp_path / name, name=name) for name in ("a", "b", "c", "d")}
    async with running_planner(tmp_path, default_model="d") as running:
        before = {name: model_of(running, name) for name in versions}
        new = write_version(tmp_path / "a", 1, name="a")
        (tmp_path / "b" / "model.safetensors").write_bytes(b"broken")
        card = tmp_path / "c" / "model.json"
        card.write_text(card.read_text().replace('"cem"', '"oracle"'))
        (tmp_path / "d").rename(tmp_path.parent / "d")
        write_version(tmp_path / "e", name="e")
        write_version(tmp_path / "f", name="e")
        with pytest.raises(ReloadFailed) as failed:
            await running.planner.reload_models()
        report = {model["model"]: model for model in failed.value.models}
        results = {name: model["result"] for name, model in report.items()}
        assert results == {
            "a": "switched",
            **dict.fromkeys("bcde", "failed"),
        }
        assert (report["a"]["old_version"], report["a"]["new_version"]) == (versions["a"], new)
        for name in "bcd":
            assert report[name]["old_version"] == versions[name]
            assert model_of(running, name) is before[name]
        assert report["b"]["error"].startswith(f"{tmp_path.name}/b/model.safetensors: ")
        assert "solver.name: received 'oracle'" in report["c"]["error"]
        assert report["d"]["error"] == "LEWM_DEFAULT_MODEL names it, so it is not removed"
        assert report["e"]["error"] == "2 folders have models of this name"
        assert str(tmp_path.parent) not in str(failed.value.problem("id"))
        assert failed.value.detail.startswith("5 of 6 models could not be loaded: b: ")
        (tmp_path / "a" / "model.json").write_text("{")
        assert (await reload(running))["a"] == "failed"  # by the folder: the card has no name
        assert model_of(running, "a").version == new


async def test_a_path_that_cannot_be_read_keeps_its_models(tmp_path: Path) -> None:
    version = write_version(tmp_path / "models" / "a")
    async with running_planner(tmp_path / "models") as running:
        (tmp_path / "models").rename(tmp_path / "away")
        assert await reload(running) == {MODEL_NAME: "failed"}
        assert (await running.plan()).model_version == version


async def test_the_default_model_is_not_replaced_by_one_of_another_name(tmp_path: Path) -> None:
    write_version(tmp_path / "folder")
    async with running_planner(tmp_path, default_model=MODEL_NAME) as running:
        before = model_of(running)
        write_version(tmp_path / "folder", 1, name="arm")
        with pytest.raises(
            ReloadFailed, match=f"holds 'arm', but LEWM_DEFAULT_MODEL is {MODEL_NAME}"
        ):
            await running.planner.reload_models()
        assert [model.name for model in running.planner.describe_models().models] == [MODEL_NAME]
        write_version(tmp_path / "other")  # another folder holds the default model
        assert await reload(running) == {MODEL_NAME: "unchanged", "arm": "added"}
        assert model_of(running) is before


async def test_a_folder_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "a", name="a")
    write_version(tmp_path / "b", name="b")
    async with running_planner(tmp_path) as running:
        before = [model_of(running, name) for name in "ab"]
        write_version(tmp_path / "a", 1, name="a")

        def change_and_load(folder: Path, *args: Any, **kwargs: Any) -> LoadedModel:
            write_version(folder, 2, name="b")
            return load_model(folder, *args, **kwargs)

        monkeypatch.setattr("lewm_serve.registry.reload.load_model", change_and_load)
        with pytest.raises(ReloadFailed, match="a: the folder changed while it was read"):
            await running.planner.reload_models()
        assert [model_of(running, name) for name in "ab"] == before


@pytest.mark.parametrize(("path", "shown"), [(".", "a/"), ("two-room", "two-room/")])
async def test_errors_do_not_show_where_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, shown: str
) -> None:
    folder = tmp_path / "embedded" / "two-room" if path == "two-room" else tmp_path / "a"
    monkeypatch.setattr("lewm_models.checkpoint.PRETRAINED", tmp_path / "embedded")
    write_version(folder)
    monkeypatch.chdir(tmp_path)
    async with running_planner(Path(path)) as running:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ReloadFailed) as failed:
            await running.planner.reload_models()
        (model,) = failed.value.models
        assert model["error"] == f"{shown}model.safetensors: there is no such file"


async def test_numbers_that_are_not_finite_are_seen_before_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lewm_serve.backends.torch import TorchBackend

    version = write_version(tmp_path / "a")
    async with running_planner(tmp_path) as running:
        write_version(tmp_path / "a", 1)
        encode = TorchBackend.encode
        served = model_of(running).backend

        def overflow(self: TorchBackend, frames: Any, states: Any = None) -> Any:
            return encode(self, frames, states) * (1.0 if self is served else float("inf"))

        monkeypatch.setattr(TorchBackend, "encode", overflow)
        with pytest.raises(ReloadFailed, match="numbers that are not finite"):
            await running.planner.reload_models()
        assert (await running.plan()).model_version == version


async def test_what_runs_ends_on_its_version(tmp_path: Path) -> None:
    old = write_version(tmp_path / "a")
    unlimited = 1 << 40
    async with running_planner(tmp_path, keep_old_s=0.0, max_candidate_steps=unlimited) as running:
        released = weakref.ref(model_of(running))
        long = {"samples": 256, "iterations": 100}
        planning = asyncio.create_task(running.plan(solver=long, goal=pixels(3)))
        await until(lambda: running.metric("lewm_active_plans") == 1)
        new = write_version(tmp_path / "a", 1)
        await reload(running)
        assert (await running.plan()).model_version == new
        if not planning.done():
            assert released() is not None
        assert (await planning).model_version == old
        del planning
        await until(lambda: released() is None)


async def test_versions_share_no_state_but_their_latencies(tmp_path: Path) -> None:
    old = write_version(tmp_path / "a")
    async with running_planner(tmp_path, keep_old_s=600.0) as running:
        first = model_of(running)
        latent_id = (await running.encode(pixels(5))).latents[0].latent_id
        assert (await running.plan(goal={"latent_id": latent_id})).model_version == old
        write_version(tmp_path / "a", 1)
        await reload(running)
        second = model_of(running)
        assert second.backend is not first.backend
        assert second.latency is first.latency  # one architecture, one kind of backend
        streams = running.planner._monitor._streams
        assert streams[first] is not streams[second]
        # A latent id belongs to one version: another one does not know it.
        with pytest.raises(Exception, match="expected a latent_id still in the cache"):
            await running.plan(goal={"latent_id": latent_id})
        pin = f"{MODEL_NAME}@{old}"
        assert (await running.plan(goal={"latent_id": latent_id}, model=pin)).model_version == old
        assert running.planner.log_label(pin) == pin
        assert running.planner.log_label(f"{MODEL_NAME}@0") == f"'{MODEL_NAME}@0'"


async def test_memory_is_released_over_many_reloads(tmp_path: Path) -> None:
    write_version(tmp_path / "a")
    async with running_planner(tmp_path, keep_old_s=0.0) as running:
        backends = []
        gc.disable()  # nothing may wait for it
        try:
            for number in range(20):
                backends.append(weakref.ref(model_of(running).backend))
                write_version(tmp_path / "a", number + 1)
                assert await reload(running) == {MODEL_NAME: "switched"}
                await running.plan()
            await until(lambda: [ref for ref in backends if ref() is not None] == [])
        finally:
            gc.enable()
        registry = running.planner._models.registry
        assert registry is not None
        assert len(registry.loaded) == len(running.planner._monitor._streams) == 1


async def test_reloads_run_one_after_another_and_share_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_version(tmp_path / "a")
    started, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def wait_and_read(registry: Registry, settings: Settings) -> Any:
        started.release()
        go_on.acquire()
        return read_models_again(registry, settings)

    name = "lewm_serve.workers.thread.read_models_again"
    monkeypatch.setattr(name, wait_and_read)
    async with running_planner(tmp_path) as running:
        first = asyncio.create_task(running.planner.reload_models())
        await asyncio.to_thread(started.acquire)
        others = [asyncio.create_task(running.planner.reload_models()) for _ in range(5)]
        await asyncio.sleep(0)
        others[0].cancel()  # its client has gone away; the others still wait
        go_on.release()
        await first
        new = write_version(tmp_path / "a", 1)
        go_on.release()
        for waiting in others[1:]:
            (model,) = (await waiting).models
            assert (model.result, model.new_version) == ("switched", new)
        assert running.metric("lewm_model_reloads_total", result="unchanged") == 1
        assert running.metric("lewm_model_reloads_total", result="switched") == 1

        last = [asyncio.create_task(running.planner.reload_models()) for _ in range(2)]
        await asyncio.to_thread(started.acquire)
        await asyncio.to_thread(started.acquire)
        running.planner.drain()
        for waiting in last:
            with pytest.raises(Draining):
                await waiting
        with pytest.raises(Draining):
            await running.planner.reload_models()
        go_on.release()


async def test_an_unexpected_error_is_logged_and_counted_if_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "a")

    def fail(registry: Registry, settings: Settings) -> Any:
        raise OSError("disk")

    monkeypatch.setattr("lewm_serve.workers.thread.read_models_again", fail)
    async with running_planner(tmp_path) as running:
        waiting = asyncio.create_task(running.planner.reload_models())
        await asyncio.sleep(0)
        waiting.cancel()
        await until(lambda: running.metric("lewm_model_reloads_total", result="failed") == 1)
    assert "models not reloaded" in capsys.readouterr().out


async def test_before_the_models_are_loaded() -> None:
    with pytest.raises(Loading):
        await Planner(Settings(), Metrics()).reload_models()


def test_a_default_must_be_chosen_among_several(tmp_path: Path) -> None:
    model: Any = type("Model", (), {"name": "a", "pin": "a@1"})()
    other: Any = type("Model", (), {"name": "b", "pin": "b@1"})()
    with pytest.raises(InvalidRequest, match="one of a, b"):
        Registry({Path("a"): model, Path("b"): other}, None).get(None)
