"""Prometheus metrics of the server, in a registry of their own. No label has values without a bound."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from ptuning import __version__

OTHER = "other"
"""The label of tasks beyond the maximum, and of what is not a task."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class State(Protocol):
    """What is read when the metrics are."""

    @property
    def ready(self) -> bool: ...

    @property
    def engine_up(self) -> bool: ...

    @property
    def heartbeat_age(self) -> float: ...

    @property
    def queued(self) -> tuple[int, int]: ...

    @property
    def table_bytes(self) -> int: ...

    @property
    def task_states(self) -> Count[str]: ...


class Metrics:
    """Counters, histograms and gauges; any thread may count.

    Args:
        max_tasks: Maximum tasks with a label of their own; the others are counted as ``other``.

    Attributes:
        registry: The collector registry, for those who add metrics.
    """

    def __init__(self, max_tasks: int = 200) -> None:
        self.max_tasks = max_tasks
        self.registry = registry = CollectorRegistry()
        self._tasks: dict[str, str] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ptuning_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"ptuning_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "HTTP requests", "task", "route", "code")
        self._rows = counter("rows", "Rows by how they ended", "task", "outcome")
        self._truncated = counter("truncated_rows", "Rows whose text was cut", "task")
        self._tokens = counter("tokens", "Tokens that the backbone ran", "kind")
        self._rejected = counter("rejected", "Requests and rows that were refused", "reason")
        self._loads = counter("task_loads", "Adapters that were loaded or refused", "result")
        self.out_of_memory = counter("out_of_memory", "Batches that did not fit into the device's memory")
        self._seconds = histogram("request_seconds", "Seconds per HTTP request", _SECONDS, "route")
        self._stages = histogram("stage_seconds", "Seconds per request and stage", _SECONDS, "stage")
        self._passes = histogram("pass_seconds", "Seconds per batch", _SECONDS)
        self._batch_rows = histogram("batch_rows", "Rows per batch", _COUNTS)
        self._batch_tasks = histogram("batch_tasks", "Different tasks per batch", _COUNTS)
        self._batch_tokens = histogram("batch_tokens", "Tokens per batch, padding included", _TOKENS)
        self._fill = histogram("batch_fill_ratio", "Share of the token budget that a batch uses", _SHARES)
        Gauge(
            "ptuning_start_time_seconds", "When the server was started", registry=registry
        ).set_to_current_time()
        Info("ptuning_build", "The version of ptuning", registry=registry).info({"version": __version__})

    def watch(self, state: State) -> None:
        """Report queue, tasks and engine, each as it is when the metrics are read."""
        self.registry.register(_Gauges(state))

    def task(self, name: str) -> str:
        """The label for a task. Only pass names of tasks that exist."""
        if name not in self._tasks and len(self._tasks) < self.max_tasks:
            self._tasks[name] = name
        return self._tasks.get(name, OTHER)

    def request(self, *, task: str, route: str, code: int, seconds: float) -> None:
        """Count one HTTP request.

        Args:
            task: The name of a task that exists; ``""`` for a request without one, or with several.
            route: The route's template, such as ``/tasks/{task}``, never the path of a request.
        """
        label = self.task(task) if task else ""
        self._requests.labels(label, route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def rows(self, task: str, count: int, *, truncated: bool = False, refused: str = "") -> None:
        """Count rows that ended in the same way.

        Args:
            task: The name of a task that exists; ``""`` if it does not.
            truncated: Whether their texts were cut.
            refused: The kind of the refusal, if they were refused.
        """
        label = self.task(task) if task else OTHER
        self._rows.labels(label, refused or "answered").inc(count)
        if truncated:
            self._truncated.labels(label).inc(count)

    def rejected(self, reason: str) -> None:
        """Count one request that was refused entirely, by the kind of its refusal."""
        self._rejected.labels(reason).inc()

    def stages(self, *, tokenise: float, queue: float, inference: float) -> None:
        """Count the seconds that a request spent in each stage."""
        self._stages.labels("tokenise").observe(tokenise)
        self._stages.labels("queue").observe(queue)
        self._stages.labels("inference").observe(inference)

    def batch(
        self,
        *,
        rows: int,
        tasks: int,
        text_tokens: int,
        prompt_tokens: int,
        padding_tokens: int,
        fill: float,
        seconds: float,
    ) -> None:
        """Count one batch."""
        self._batch_rows.observe(rows)
        self._batch_tasks.observe(tasks)
        self._batch_tokens.observe(text_tokens + prompt_tokens + padding_tokens)
        self._fill.observe(fill)
        self._passes.observe(seconds)
        self._tokens.labels("text").inc(text_tokens)
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("padding").inc(padding_tokens)

    def loaded(self, result: str) -> None:
        """Count one adapter: ``loaded``, ``refused`` or ``removed``."""
        self._loads.labels(result).inc()

    def render(self) -> tuple[bytes, str]:
        """The body and the content type for ``/metrics``."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4


class _Gauges:
    """Values that are read when they are asked for, so that they are never out of date."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state
        rows, tokens = state.queued
        single: list[tuple[str, str, Callable[[], float]]] = [
            ("ready", "Whether requests are accepted", lambda: state.ready),
            ("engine_up", "Whether batches are run", lambda: state.engine_up),
            (
                "engine_heartbeat_age_seconds",
                "Seconds since the engine last moved",
                lambda: state.heartbeat_age,
            ),
            ("queue_rows", "Rows in the queue", lambda: rows),
            ("queue_tokens", "Tokens in the queue, virtual ones included", lambda: tokens),
            ("table_bytes", "Bytes of the tasks on the device", lambda: state.table_bytes),
        ]
        for name, text, value in single:
            yield GaugeMetricFamily(f"ptuning_{name}", text, value=float(value()))
        tasks = GaugeMetricFamily("ptuning_tasks", "Tasks by state", labels=["state"])
        for label, count in state.task_states.items():
            tasks.add_metric([label], count)
        yield tasks
