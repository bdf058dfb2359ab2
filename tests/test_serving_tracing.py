"""Spans: one per request, its stages inside, continuing the client's trace; none without configuration."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from ptuning.errors import ConfigError
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.tracing import Tracing, tracing_from_environment
from serving_fake import FakeService

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    yield made
    made.clear()


@pytest.fixture
def client(exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with TestClient(make_app(FakeService(), Keys(), tracing=Tracing(provider))) as made:
        yield made


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def named(spans: Sequence[ReadableSpan]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


def test_a_request_is_a_span_with_its_stages(client: TestClient, exporter: InMemorySpanExporter) -> None:
    header = f"00-{TRACE}-b7ad6b7169203331-01"
    client.post("/tasks/sentiment", json={"inputs": "a secret"}, headers={"traceparent": header})
    spans = named(exporter.get_finished_spans())
    request = spans.pop("POST /tasks/{task}")
    assert f"{request.context.trace_id:032x}" == TRACE
    found = attributes(request)
    assert found["http.response.status_code"] == 200
    assert found["ptuning.task"] == "sentiment"
    assert found["ptuning.digest"] == "sentiment-1"
    assert found["ptuning.rows"] == 1
    assert set(spans) == {"tokenise", "queue", "inference"}
    for stage in spans.values():
        assert stage.parent is not None
        assert stage.parent.span_id == request.context.span_id
    queue = spans["queue"]
    assert queue.end_time is not None
    assert queue.start_time is not None
    assert queue.end_time - queue.start_time == 2_000_000
    assert "secret" not in str([span.to_json() for span in exporter.get_finished_spans()])


def test_a_refused_request_is_a_span(client: TestClient, exporter: InMemorySpanExporter) -> None:
    client.get("/tasks/nothing")
    client.get("/nowhere")
    spans = named(exporter.get_finished_spans())
    assert attributes(spans["GET /tasks/{task}"])["http.response.status_code"] == 404
    assert attributes(spans["GET other"])["http.response.status_code"] == 404


def test_nothing_is_traced_unless_configured() -> None:
    assert tracing_from_environment({})._tracer is None
    disabled = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}
    assert tracing_from_environment(disabled)._tracer is None


def test_tracing_is_configured_by_opentelemetrys_variables() -> None:
    made = tracing_from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert made._tracer is not None
    made.close()


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"ptuning\[tracing\]"):
        tracing_from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
