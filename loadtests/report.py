"""The report of a load: a Markdown page for people and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.calls import Call, LoadResult
from loadtests.server_metrics import Durations, Series, Snapshot, durations, increases
from loadtests.spec import LoadSpec


@dataclass(frozen=True)
class KindSummary:
    """The calls of one kind.

    Attributes:
        kind: the kind.
        calls: their number.
        refused, failed: how many of them were refused, and how many failed.
        missed_deadlines: plans that came later than their deadline.
        p50_ms, p95_ms, p99_ms, max_ms: latencies.
        late_p99_ms: how late the load sent them, p99.
        codes: how often each code ended a call.
        failed_codes: the same for the failed ones.
    """

    kind: str
    calls: int
    refused: int
    failed: int
    missed_deadlines: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    late_p99_ms: float
    codes: dict[str, int]
    failed_codes: dict[str, int]


def summarize(calls: Iterable[Call]) -> list[KindSummary]:
    """A summary for each kind, in alphabetical order."""
    by_kind: dict[str, list[Call]] = {}
    for call in calls:
        by_kind.setdefault(call.kind, []).append(call)
    return [_summarize_kind(kind, by_kind[kind]) for kind in sorted(by_kind)]


def _summarize_kind(kind: str, calls: Sequence[Call]) -> KindSummary:
    latencies = np.array([call.latency_ms for call in calls])
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return KindSummary(
        kind=kind,
        calls=len(calls),
        refused=sum(call.is_refused for call in calls),
        failed=sum(call.is_failed for call in calls),
        missed_deadlines=sum(call.missed_deadline for call in calls),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        max_ms=float(latencies.max()),
        late_p99_ms=float(np.percentile([call.late_ms for call in calls], 99)),
        codes=dict(Counter(call.code for call in calls)),
        failed_codes=dict(Counter(call.code for call in calls if call.is_failed)),
    )


@dataclass(frozen=True)
class LoadReport:
    """What a load showed, from outside and by the server's own figures.

    Attributes:
        spec: the load.
        seconds: how long it took.
        kinds: the calls by kind.
        before, after: the server's metrics; None if its HTTP port is not known.
    """

    spec: LoadSpec
    seconds: float
    kinds: list[KindSummary]
    before: Snapshot | None
    after: Snapshot | None

    @classmethod
    def of(
        cls, spec: LoadSpec, result: LoadResult, before: Snapshot | None, after: Snapshot | None
    ) -> LoadReport:
        """The report of a load."""
        return cls(spec, result.seconds, summarize(result.calls), before, after)

    @property
    def calls(self) -> int:
        """The number of calls."""
        return sum(kind.calls for kind in self.kinds)

    @property
    def failed(self) -> int:
        """The number of calls that failed."""
        return sum(kind.failed for kind in self.kinds)

    @property
    def refused(self) -> int:
        """The number of calls that were refused for lack of time."""
        return sum(kind.refused for kind in self.kinds)

    @property
    def verdict(self) -> str:
        """One sentence."""
        result = "no call failed" if not self.failed else f"{self.failed} calls FAILED"
        missed = sum(kind.missed_deadlines for kind in self.kinds)
        return (
            f"{result}: {self.calls} calls in {self.seconds:.0f} s, {self.refused} refused, "
            f"{missed} plans after their deadline"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        values: dict[str, Any] = {
            "verdict": self.verdict,
            "load": dataclasses.asdict(self.spec),
            "seconds": self.seconds,
            "calls": self.calls,
            "refused": self.refused,
            "failed": self.failed,
            "kinds": [dataclasses.asdict(kind) for kind in self.kinds],
        }
        if self.before is not None and self.after is not None:
            grown = increases(self.before, self.after)
            values["server"] = {
                "durations": [
                    dataclasses.asdict(row) for row in durations(self.before, self.after)
                ],
                "increases": {series_text(series): value for series, value in grown.items()},
                "gauges_before": _named(self.before.gauges),
                "gauges_after": _named(self.after.gauges),
            }
        return values

    def to_markdown(self) -> str:
        """The report as a page."""
        spec = self.spec
        lines = [
            "# Load report",
            "",
            f"**{self.verdict}.**",
            "",
            f"REST {spec.http or '–'}, gRPC {spec.grpc or '–'}; {spec.robots} robots of at most "
            f"{spec.robot_hz:g} Hz, {spec.arrivals_per_s:g} arrivals/s, {spec.bad_clients} bad "
            f"clients, {spec.slow_readers} slow readers, {spec.leaving_clients} leaving clients; "
            f"deadline {spec.deadline_ms:g} ms; seed {spec.seed}.",
            "",
            "## What the clients saw",
            "",
            *markdown_table(
                (
                    "kind",
                    "calls",
                    "refused",
                    "failed",
                    "late plans",
                    "p50 ms",
                    "p95 ms",
                    "p99 ms",
                    "max ms",
                    "sent late p99 ms",
                    "codes",
                ),
                [_kind_row(kind) for kind in self.kinds],
            ),
        ]
        if self.before is not None and self.after is not None:
            lines += _server_lines(self.before, self.after)
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``report.md`` and ``report.json`` into a folder, and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        page, document = folder / "report.md", folder / "report.json"
        page.write_text(self.to_markdown())
        document.write_text(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")
        return page, document


def _kind_row(kind: KindSummary) -> tuple[object, ...]:
    counts = (kind.calls, kind.refused, kind.failed, kind.missed_deadlines)
    times = (kind.p50_ms, kind.p95_ms, kind.p99_ms, kind.max_ms, kind.late_p99_ms)
    codes = ", ".join(f"{code} {count}" for code, count in sorted(kind.codes.items()))
    return (kind.kind, *counts, *(f"{value:.1f}" for value in times), codes)


def _server_lines(before: Snapshot, after: Snapshot) -> list[str]:
    def duration_row(row: Durations) -> tuple[object, ...]:
        times = f"{row.mean_ms:.1f}", f"{row.p50_ms:g}", f"{row.p99_ms:g}"
        return row.endpoint, row.protocol, row.count, *times

    grown = [(series_text(name), f"{value:g}") for name, value in increases(before, after).items()]
    gauges = [
        (series_text(series), f"{before.gauges.get(series, 0):g}", f"{value:g}")
        for series, value in after.gauges.items()
        if value or before.gauges.get(series)
    ]
    return [
        "",
        "## What the server measured",
        "",
        *markdown_table(
            ("endpoint", "protocol", "requests", "mean ms", "p50 ms at most", "p99 ms at most"),
            [duration_row(row) for row in durations(before, after)],
        ),
        "",
        "What its counters counted meanwhile:",
        "",
        *markdown_table(("counter", "increase"), grown),
        "",
        "Its gauges:",
        "",
        *markdown_table(("gauge", "before", "after"), gauges),
    ]


def series_text(series: Series) -> str:
    """A series as Prometheus writes it."""
    name, labels = series
    inside = ",".join(f'{label}="{value}"' for label, value in labels)
    return f"{name}{{{inside}}}" if inside else name


def _named(values: dict[Series, float]) -> dict[str, float]:
    return {series_text(series): value for series, value in values.items()}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines]
