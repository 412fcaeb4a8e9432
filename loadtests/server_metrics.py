"""The server's own figures: what `/metrics` says before and after a load."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]
Series = tuple[str, Labels]
"""The name of a series and its labels, sorted."""

DURATIONS = "lewm_request_duration_seconds"
SCRAPE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """The values of one scrape: counters with the parts of histograms, and gauges."""

    counters: dict[Series, float]
    gauges: dict[Series, float]


@dataclass(frozen=True)
class Durations:
    """How long the server took for the requests of one endpoint and protocol.

    Attributes:
        endpoint: the endpoint.
        protocol: the protocol.
        count: the number of requests.
        mean_ms: their mean.
        p50_ms, p99_ms: the bounds of the histogram's buckets that hold these quantiles.
    """

    endpoint: str
    protocol: str
    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float


def scrape(
    url: str, *, tls: ssl.SSLContext | None = None, headers: Mapping[str, str] | None = None
) -> Snapshot:
    """Read the metrics of the server at a URL such as ``http://127.0.0.1:8000``.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    answer = httpx.get(
        f"{url}/metrics", timeout=SCRAPE_TIMEOUT_S, verify=tls or True, headers=headers
    )
    return parse(answer.raise_for_status().text)


def parse(text: str) -> Snapshot:
    """The values of a text in Prometheus' format."""
    snapshot = Snapshot({}, {})
    for family in text_string_to_metric_families(text):
        is_gauge = family.type in ("gauge", "unknown")
        values = snapshot.gauges if is_gauge else snapshot.counters
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return snapshot


def increases(before: Snapshot, after: Snapshot) -> dict[Series, float]:
    """The counters that have grown, and by how much, without the parts of histograms."""
    grown = {}
    for series, value in after.counters.items():
        name, _ = series
        growth = value - before.counters.get(series, 0.0)
        if growth and not name.endswith(("_bucket", "_sum", "_count")):
            grown[series] = growth
    return grown


def durations(before: Snapshot, after: Snapshot) -> list[Durations]:
    """How long the server took for the requests between two scrapes."""
    found = []
    for name, labels in after.counters:
        if name != f"{DURATIONS}_count":
            continue

        def growth(part: str, *more: tuple[str, str], labels: Labels = labels) -> float:
            series = (f"{DURATIONS}_{part}", tuple(sorted((*labels, *more))))
            return after.counters[series] - before.counters.get(series, 0.0)

        count = growth("count")
        if not count:
            continue
        bounds = sorted(
            (float(dict(other)["le"]), growth("bucket", ("le", dict(other)["le"])))
            for part, other in after.counters
            if part == f"{DURATIONS}_bucket" and set(labels) <= set(other)
        )

        def quantile_ms(
            share: float,
            bounds: list[tuple[float, float]] = bounds,
            count: float = count,
        ) -> float:
            return 1000 * next(bound for bound, below in bounds if below >= share * count)

        found.append(
            Durations(
                endpoint=dict(labels)["endpoint"],
                protocol=dict(labels)["protocol"],
                count=round(count),
                mean_ms=1000 * growth("sum") / count,
                p50_ms=quantile_ms(0.5),
                p99_ms=quantile_ms(0.99),
            )
        )
    return found
