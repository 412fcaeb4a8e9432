"""The process of a load: `python -m loadtests.generator SPEC RESULT`, see `loadtests.load`.

Here, and only here, blocking calls are those of gevent.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from pathlib import Path

from grpc.experimental.gevent import init_gevent  # type: ignore[import-not-found]
from locust.env import Environment

from loadtests.calls import Call, LoadResult
from loadtests.clients import CALL_TIMEOUT_S, Target
from loadtests.frames import walks
from loadtests.spec import LoadSpec
from loadtests.users import LoadRun, user_classes

USERS_PER_S = 50
"""How many users start in a second."""

LAST_CALLS_S = CALL_TIMEOUT_S + 5.0
"""The calls that are in flight at the end have this long to end by themselves."""

PROGRESS_PERIOD_S = 10.0


def generate(spec: LoadSpec) -> LoadResult:
    """Put the load on the server, and wait for its end."""
    target = Target(spec)
    load = LoadRun(spec, target, target.default_model(), walks(spec.seed))
    classes = user_classes(load)
    environment = Environment(user_classes=classes, stop_timeout=LAST_CALLS_S)
    environment.events.user_error.add_listener(  # type: ignore[no-untyped-call]
        lambda user_instance, exception, tb: load.calls.append(_fault(load, exception))
    )
    runner = environment.create_local_runner()
    users = sum(kind.fixed_count for kind in classes)
    print("started", flush=True)
    runner.start(users, spawn_rate=min(users, USERS_PER_S))
    while (left_s := load.started + spec.seconds - time.perf_counter()) > 0:
        if load.spent.wait(min(left_s, PROGRESS_PERIOD_S)):
            break
        _show_progress(load)
    runner.quit()
    return LoadResult(load.calls, time.perf_counter() - load.started)


def _fault(load: LoadRun, error: Exception) -> Call:
    """A fault of the load's own code as a failed call, so that no report hides it."""
    return Call(
        kind="load",
        ended_s=time.perf_counter() - load.started,
        latency_ms=0.0,
        late_ms=0.0,
        code=f"client: {type(error).__name__}: {error}",
        is_expected=False,
        missed_deadline=False,
    )


def _show_progress(load: LoadRun) -> None:
    seconds, calls = time.perf_counter() - load.started, load.calls
    failed, refused = (
        sum(call.is_failed for call in calls),
        sum(call.is_refused for call in calls),
    )
    text = f"{seconds:.0f} s: {len(calls)} calls, {refused} refused, {failed} failed"
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the load of the first argument and write its calls to the file of the second."""
    spec = LoadSpec.from_json(sys.argv[1])
    # Ends the process from a thread that needs neither gevent nor Python.
    faulthandler.dump_traceback_later(spec.seconds + 2 * LAST_CALLS_S, exit=True)
    generate(spec).write(Path(sys.argv[2]))


if __name__ == "__main__":
    init_gevent()
    main()
