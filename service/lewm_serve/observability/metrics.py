"""All metrics that `/metrics` shows: a closed registry, base units, labels with bounded values.

The label ``code`` is ``ok`` or the code of an error. The values of the other labels are in
`lewm_serve.constants`.
"""

from collections.abc import Callable, Iterable
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from lewm_serve.constants import (
    BATCH_KINDS,
    ENDPOINTS,
    FALLBACK_REASONS,
    INFERENCE_ENDPOINTS,
    OK_CODE,
    PLAN_STATUSES,
    PROTOCOLS,
    RELOAD_RESULTS,
    STAGES,
)
from lewm_serve.errors import CODES
from lewm_serve.observability.logging import dropped_log_lines

REQUEST_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *REQUEST_SECONDS)
ROWS_PER_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
ITERATIONS_PER_PLAN = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 100, 200)
LATENT_NORMS = (1, 2, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16, 18, 20, 25, 30, 50, 100)
MAHALANOBIS_DISTANCES = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 50, 100, 200, 400)
SURPRISES = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 10, 12, 15, 20, 25, 50, 100)

REGISTERED = (
    "lewm_active_plans",
    "lewm_anomalies_total",
    "lewm_batch_rows",
    "lewm_cache_errors_total",
    "lewm_cache_requests_total",
    "lewm_cache_up",
    "lewm_candidates_total",
    "lewm_engine_memory_bytes",
    "lewm_engine_processor_seconds",
    "lewm_engine_restarts_total",
    "lewm_engine_up",
    "lewm_fallbacks_total",
    "lewm_health_total",
    "lewm_held_bytes",
    "lewm_latent_mahalanobis",
    "lewm_latent_norm",
    "lewm_latent_norm_zscore",
    "lewm_latent_sigreg",
    "lewm_log_lines_dropped_total",
    "lewm_model_info",
    "lewm_model_reloads_total",
    "lewm_plan_iterations",
    "lewm_plan_status_total",
    "lewm_predictor_tokens_total",
    "lewm_queued_requests",
    "lewm_request_duration_seconds",
    "lewm_requests_total",
    "lewm_stage_duration_seconds",
    "lewm_surprise",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "python_gc_collections_total",
    "python_gc_objects_collected_total",
    "python_gc_objects_uncollectable_total",
    "python_info",
)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._define_requests()
        self._define_plans()
        self._define_latents()
        self._define_cache()
        self.model_info = Gauge(
            "lewm_model_info",
            "A loaded version of a model; always 1",
            ("model", "version", "backend", "device", "precision"),
            registry=self.registry,
        )
        self.model_reloads_total = self._counter(
            "lewm_model_reloads_total",
            "Models of the folders that were read again, by what became of them",
            "result",
        )
        for result in RELOAD_RESULTS:
            self.model_reloads_total.labels(result)
        self.dropped_log_lines_of_engine: Callable[[], int] = lambda: 0
        self.registry.register(_DroppedLogLines(self))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, registry=self.registry)

    def _histogram(
        self, name: str, about: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, about, labels, buckets=buckets, registry=self.registry)

    def _define_requests(self) -> None:
        self.requests_total = self._counter(
            "lewm_requests_total", "Requests answered", "endpoint", "protocol", "code"
        )
        self.request_duration = self._histogram(
            "lewm_request_duration_seconds",
            "From the end of the request body to the answer; for refused bodies, from the head",
            REQUEST_SECONDS,
            "endpoint",
            "protocol",
        )
        self.stage_duration = self._histogram(
            "lewm_stage_duration_seconds",
            "Time spent in one stage",
            STAGE_SECONDS,
            "stage",
        )
        self.batch_rows = self._histogram(
            "lewm_batch_rows", "Rows of one run of the model", ROWS_PER_BATCH, "kind"
        )
        self.queued_requests = self._gauge(
            "lewm_queued_requests",
            "Admitted requests that the engine has not started; encode requests until they end",
            "endpoint",
        )
        self.engine_up = self._gauge(
            "lewm_engine_up", "1 while the engine runs, 0 while it is started again", "device"
        )
        self.engine_restarts = self._counter(
            "lewm_engine_restarts_total", "How often a dead engine was started again", "device"
        )
        self.engine_memory = self._gauge(
            "lewm_engine_memory_bytes",
            "Resident memory of the engine's process; 0 if it has none of its own",
            "device",
        )
        self.engine_processor = self._gauge(
            "lewm_engine_processor_seconds",
            "Processor time of the engine's process since it started; 0 if it has none of its own",
            "device",
        )
        self.held_bytes = self._gauge(
            "lewm_held_bytes",
            "Bytes of the requests in progress and of large answers that are being read",
        )
        for endpoint, protocol in product(ENDPOINTS, PROTOCOLS):
            self.request_duration.labels(endpoint, protocol)
            for code in (OK_CODE, *CODES):
                self.requests_total.labels(endpoint, protocol, code)
        for stage in STAGES:
            self.stage_duration.labels(stage)
        for kind in BATCH_KINDS:
            self.batch_rows.labels(kind)
        for endpoint in INFERENCE_ENDPOINTS:
            self.queued_requests.labels(endpoint)

    def _define_plans(self) -> None:
        self.active_plans = self._gauge("lewm_active_plans", "Plans that are being solved")
        self.plan_iterations = self._histogram(
            "lewm_plan_iterations", "Solver iterations of one plan", ITERATIONS_PER_PLAN
        )
        self.plan_status_total = self._counter(
            "lewm_plan_status_total", "Plans answered, by status", "status"
        )
        self.candidates_total = self._counter(
            "lewm_candidates_total", "Candidate action sequences scored"
        )
        self.predictor_tokens_total = self._counter(
            "lewm_predictor_tokens_total",
            "Latents in the windows from which the candidates of finished plans were predicted",
        )
        self.fallbacks_total = self._counter(
            "lewm_fallbacks_total",
            "Plans answered by a fallback controller",
            "model",
            "controller",
            "reason",
        )
        for status in PLAN_STATUSES:
            self.plan_status_total.labels(status)

    def add_fallback_controllers(self, model: str, controllers: Iterable[str]) -> None:
        """Show the fallback counters of a model, starting at 0."""
        for controller, reason in product(controllers, FALLBACK_REASONS):
            self.fallbacks_total.labels(model, controller, reason)

    def _define_latents(self) -> None:
        self.latent_norm = self._histogram(
            "lewm_latent_norm", "Norm of the latents of frames", LATENT_NORMS, "model"
        )
        self.latent_norm_zscore = self._gauge(
            "lewm_latent_norm_zscore",
            "z-score of the most unusual frame of the newest request",
            "model",
        )
        self.latent_mahalanobis = self._histogram(
            "lewm_latent_mahalanobis",
            "Mahalanobis distance of the most unusual frame of each request",
            MAHALANOBIS_DISTANCES,
            "model",
        )
        self.latent_sigreg = self._gauge(
            "lewm_latent_sigreg", "SIGReg of the recent stream of latents", "model"
        )
        self.surprise = self._histogram(
            "lewm_surprise",
            "Distance between the newest latent and its one-step prediction",
            SURPRISES,
            "model",
        )
        self.health_total = self._counter(
            "lewm_health_total",
            "Requests whose frames were assessed, by health status",
            "model",
            "status",
        )
        self.anomalies_total = self._counter(
            "lewm_anomalies_total",
            "Requests with a score above its limit, by kind of score",
            "model",
            "kind",
        )

    def _define_cache(self) -> None:
        self.cache_requests_total = self._counter(
            "lewm_cache_requests_total", "Latents looked up", "tier", "result"
        )
        self.cache_errors_total = self._counter(
            "lewm_cache_errors_total", "Failures of a cache tier", "tier"
        )
        self.cache_up = self._gauge("lewm_cache_up", "Whether a cache tier answers", "tier")
        for result in ("hit", "miss"):
            self.cache_requests_total.labels("memory", result)
        self.cache_errors_total.labels("memory")
        self.cache_up.labels("memory").set(1)

    def add_redis_tier(self) -> None:
        """Show the metrics of the Redis tier, which not every server has, starting at 0."""
        for result in ("hit", "miss", "unavailable"):
            self.cache_requests_total.labels("redis", result)
        self.cache_errors_total.labels("redis")
        self.cache_up.labels("redis").set(0)


class _DroppedLogLines(Collector):
    """The log's own count. A counter of the library has a lock that is not reentrant."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(
            "lewm_log_lines_dropped",
            "Log lines that could not be written: the reader is too slow or gone, or the disk full",
            value=dropped_log_lines() + self._metrics.dropped_log_lines_of_engine(),
        )
