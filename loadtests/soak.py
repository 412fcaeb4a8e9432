"""Whether a server that works for long stays as it was: `python -m loadtests.soak --seconds 3600`.

A server of its own gets a steady load of all kinds. Its memory, descriptors and threads are read in
equal steps of time, and the clients' p99 is computed for equal windows of time. None of them may
drift (see `loadtests.drift`), and no call may fail or be refused. A machine that gets busier makes
every server slower: p99 counts as drift only if a fresh server, which takes turns with the old one
at the end, is faster too.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from lewm_serve.cli.local_server import HOST, LocalServer, local_server
from loadtests.calls import Call, LoadResult
from loadtests.command import readable_errors
from loadtests.drift import Drift, Limit, judge
from loadtests.load import running_load
from loadtests.report import LoadReport, markdown_table
from loadtests.server_metrics import scrape
from loadtests.spec import Address, LoadSpec
from loadtests.speed import compare

PROGRAM = "python -m loadtests.soak"

SAMPLES = 150
"""How often the process is read in the whole run."""
WINDOWS = 30
"""Windows of time whose p99 is judged."""
SHOWN_ROWS = 12
MIN_SECONDS = 60.0

CACHE_ENTRIES = 512
"""A cache this small is full before the first third begins; a larger one would grow for hours."""

MEMORY_LIMIT = Limit(share=0.02, amount=8.0)
DESCRIPTOR_LIMIT = Limit(amount=3.0)
THREAD_LIMIT = Limit(amount=0.5)
P99_LIMIT = Limit(share=0.5, amount=5.0)
MAX_P99_RATIO = 1.5
"""The p99 of the old server relative to that of a fresh one."""
COMPARED_PLANS = 500


@dataclass(frozen=True)
class ProcessSample:
    """What the system says of all processes of a server together, ``at_s`` after the load began."""

    at_s: float
    memory_mib: float
    descriptors: int
    threads: int


def read_processes(pid: int, at_s: float) -> ProcessSample:
    """Read a process of this machine and those that it has started."""
    parent = psutil.Process(pid)
    processes = [parent, *parent.children(recursive=True)]
    return ProcessSample(
        at_s=at_s,
        memory_mib=sum(process.memory_info().rss for process in processes) / 2**20,
        descriptors=sum(process.num_fds() for process in processes),
        threads=sum(process.num_threads() for process in processes),
    )


@dataclass(frozen=True)
class SoakReport:
    """What a soak showed.

    Attributes:
        load: the report of its load.
        samples: the process over time.
        windows_p99_ms: the p99 of all plans in each window of time.
        figures: memory, descriptors, threads and p99.
        p99_ratio: the old server's p99 relative to that of a fresh one.
    """

    load: LoadReport
    samples: list[ProcessSample]
    windows_p99_ms: list[float]
    figures: list[Drift]
    p99_ratio: float

    @property
    def faults(self) -> list[str]:
        """What went wrong, one sentence each."""
        faults = []
        if self.load.failed or self.load.refused:
            faults.append(f"{self.load.failed} calls failed, {self.load.refused} were refused")
        for figure in self.figures:
            is_slow_machine = figure.name == "p99" and self.p99_ratio <= MAX_P99_RATIO
            if figure.is_drift and not is_slow_machine:
                faults.append(
                    f"{figure.name} drifts: {figure.first:.1f} {figure.unit} in the first third, "
                    f"{figure.last:.1f} in the last"
                )
        return faults

    @property
    def smallest_leak_bytes(self) -> float:
        """The smallest leak in bytes per call that this run would have found."""
        (memory,) = (figure for figure in self.figures if figure.name == "memory")
        # The thirds' middles lie two thirds of the judged time apart.
        return (memory.allowed - memory.first) * 2**20 / (2 / 3 * self.load.calls)

    @property
    def verdict(self) -> str:
        """One sentence."""
        return "; ".join(self.faults) or (
            f"no drift and no failed call: {self.load.calls} calls in {self.load.seconds:.0f} s"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "verdict": self.verdict,
            "figures": [
                dataclasses.asdict(figure) | {"is_drift": figure.is_drift}
                for figure in self.figures
            ],
            "p99_ratio_to_fresh_server": self.p99_ratio,
            "smallest_leak_found_bytes_per_call": self.smallest_leak_bytes,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
            "windows_p99_ms": self.windows_p99_ms,
            "load": self.load.to_json(),
        }

    def to_markdown(self) -> str:
        """The report as a page: the soak, then its load."""
        figures = [
            (
                figure.name,
                figure.unit,
                f"{figure.first:.1f}",
                f"{figure.last:.1f}",
                f"{figure.allowed:.1f}",
                f"{figure.chance:.2g}",
                "DRIFT" if figure.is_drift else "steady",
            )
            for figure in self.figures
        ]
        step = max(1, len(self.samples) // SHOWN_ROWS)
        course = [
            (f"{sample.at_s:.0f}", f"{sample.memory_mib:.1f}", sample.descriptors, sample.threads)
            for sample in self.samples[::step]
        ]
        head = ("figure", "unit", "first third", "last third", "at most", "chance", "result")
        return "\n".join(
            [
                "# Soak report",
                "",
                f"**{self.verdict}.**",
                "",
                *markdown_table(head, figures),
                "",
                f"p99 relative to a fresh server, in turns: {self.p99_ratio:.2f} (at most "
                f"{MAX_P99_RATIO}). The smallest leak that this run would have found is "
                f"{self.smallest_leak_bytes:.0f} bytes per call.",
                "",
                *markdown_table(("seconds", "memory MiB", "descriptors", "threads"), course),
                "",
                self.load.to_markdown().replace("# Load report", "# Its load", 1),
            ]
        )

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``soak.md`` and ``soak.json`` into a folder, and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        page, document = folder / "soak.md", folder / "soak.json"
        page.write_text(self.to_markdown())
        document.write_text(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")
        return page, document


def soak(seconds: float) -> SoakReport:
    """Put a steady load on a server for this time, and judge it.

    Raises:
        ValueError: the time is too short.
        LocalServerError, RuntimeError: a server or the load did not start.
    """
    if seconds < MIN_SECONDS:
        raise ValueError(f"--seconds: expected at least {MIN_SECONDS:g}, got {seconds:g}")
    with local_server(cache_entries=CACHE_ENTRIES, log_level="info") as server:
        spec = LoadSpec(
            http=f"{HOST}:{server.http_port}",
            grpc=server.target,
            seconds=seconds,
            robots=8,
            robot_hz=2.5,
            arrivals_per_s=0.0,  # they open connections while the server is slow
            deadline_ms=60_000.0,
        )
        before = scrape(server.url)
        samples, result = _run(spec, server)
        after = scrape(server.url)
        with local_server() as fresh:
            old_and_new = compare(
                Address(HOST, server.http_port), Address(HOST, fresh.http_port), COMPARED_PLANS
            )
    windows = windows_p99_ms(result)
    return SoakReport(
        load=LoadReport.of(spec, result, before, after),
        samples=samples,
        windows_p99_ms=windows,
        figures=[
            judge("memory", "MiB", [sample.memory_mib for sample in samples], MEMORY_LIMIT),
            judge("descriptors", "", [sample.descriptors for sample in samples], DESCRIPTOR_LIMIT),
            judge("threads", "", [sample.threads for sample in samples], THREAD_LIMIT),
            judge("p99", "ms", windows, P99_LIMIT),
        ],
        p99_ratio=old_and_new.ratio(99),
    )


def _run(spec: LoadSpec, server: LocalServer) -> tuple[list[ProcessSample], LoadResult]:
    """Run the load, and read the server's process in equal steps of time."""
    samples: list[ProcessSample] = []
    with running_load(spec) as load:
        load.wait_started()
        started = time.monotonic()
        for number in range(SAMPLES):
            due = started + (number + 1) * spec.seconds / (SAMPLES + 1)
            time.sleep(max(0.0, due - time.monotonic()))
            samples.append(read_processes(server.pid, time.monotonic() - started))
        return samples, load.wait()


def windows_p99_ms(result: LoadResult) -> list[float]:
    """The p99 of the plans' latencies in each of `WINDOWS` equal windows of time."""
    width = result.seconds / WINDOWS

    def is_plan(call: Call) -> bool:
        return call.kind.endswith(" plan")

    ends = np.array([call.ended_s for call in result.calls if is_plan(call)])
    latencies = np.array([call.latency_ms for call in result.calls if is_plan(call)])
    windows = np.minimum(ends / width, WINDOWS - 1).astype(int)
    return [
        float(np.percentile(latencies[windows == number], 99))
        for number in range(WINDOWS)
        if (windows == number).any()
    ]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    seconds: Annotated[float, typer.Option(help="how long the load lasts")] = 3600.0,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="where soak.md and soak.json go")
    ] = Path("load"),
) -> None:
    """Run a server under a steady load and report whether anything drifts. Status 1: it does."""
    with readable_errors(PROGRAM):
        report = soak(seconds)
        page, document = report.write(output)
    typer.echo(f"{report.verdict}; see {page} and {document}")
    if report.faults:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name=PROGRAM)
