"""OpenTelemetry spans of requests, if the packages of the extra ``tracing`` are installed and configured.

They are configured by OpenTelemetry's own environment variables: spans are exported if
``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set, unless ``OTEL_SDK_DISABLED``
is ``true``. No span has a text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ptuning.errors import ConfigError
from ptuning.serving.rows import Timing

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Makes spans: one per request, with one per stage in it.

    Args:
        provider: An OpenTelemetry ``TracerProvider``; ``None`` for no spans.
    """

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("ptuning.serving")

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """A span that continues the trace of the ``traceparent`` header, if there is one.

        Yields:
            The span; ``None`` without tracing.
        """
        if self._tracer is None:
            yield None
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        with self._tracer.start_as_current_span(name, context=parent, kind=SpanKind.SERVER) as span:
            yield span

    def stages(self, timing: Timing) -> None:
        """Spans of the stages that have just ended, inside the current span."""
        if self._tracer is None:
            return
        start = time.time_ns() - round(1e9 * (timing.tokenise + timing.queue + timing.inference))
        for stage in ("tokenise", "queue", "inference"):
            span = self._tracer.start_span(stage, start_time=start)
            start += round(1e9 * getattr(timing, stage))
            span.end(start)

    def close(self) -> None:
        """Export what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def tracing_from_environment(environment: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing as OpenTelemetry's environment variables say; none if they are not set.

    Raises:
        ConfigError: they are set, but the packages are not installed.
    """
    set_ = next((name for name in ENDPOINTS if environment.get(name)), None)
    if set_ is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{set_} is set, but OpenTelemetry is not installed",
            remedy="install it with: pip install 'ptuning[tracing]', or unset the variable",
        ) from error
    name = environment.get("OTEL_SERVICE_NAME", "ptuning")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
