"""Every protocol: what is asked, what is answered, and errors in its own shape."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ptuning.kinds.classification import sigmoid, softmax
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.protocols.writing import json_bytes
from ptuning.serving.rows import Refusal, Row
from ptuning.serving.settings import Settings
from ptuning.task import Task
from serving_fake import SAME, SENTIMENT, SIMILAR, TOPICS, FakeService, Served, logits_of


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with TestClient(make_app(service, Keys()), raise_server_exceptions=False) as made:
        yield made


def row(task: str, text: str, text_pair: str | None = None) -> Row:
    return Row(task=task, text=text, text_pair=text_pair)


def sentiment(text: str) -> dict[str, float]:
    """The probabilities that the fake gives."""
    logits = logits_of(row("sentiment", text), SENTIMENT)
    return dict(zip(("negative", "positive"), softmax(logits), strict=True))


def labelled(scores: list[dict[str, Any]]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in scores}


# ---------------------------------------------------------------------------------- Hugging Face


def test_hugging_face_one_text_is_nested_and_best_first(client: TestClient) -> None:
    answer = client.post("/tasks/sentiment", json={"inputs": "fine"})
    assert answer.status_code == 200
    [scores] = answer.json()
    assert labelled(scores) == pytest.approx(sentiment("fine"))
    assert [each["score"] for each in scores] == sorted((each["score"] for each in scores), reverse=True)
    assert answer.headers["x-task-digest"] == "sentiment-1"
    assert answer.headers["server-timing"] == "tokenise;dur=1.0, queue;dur=2.0, inference;dur=3.0"


def test_hugging_face_a_list_is_a_list_of_lists(client: TestClient) -> None:
    answer = client.post("/tasks/sentiment", json={"inputs": ["fine", "a film", {"text": "odd"}]})
    assert [labelled(each) for each in answer.json()] == [
        pytest.approx(sentiment(text)) for text in ("fine", "a film", "odd")
    ]


def test_hugging_face_pairs(client: TestClient) -> None:
    answer = client.post("/tasks/same", json={"inputs": {"text": "a", "text_pair": "b c"}})
    logits = logits_of(row("same", "a", "b c"), SAME)
    assert labelled(answer.json()[0]) == pytest.approx(dict(zip(("0", "1"), softmax(logits), strict=True)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [("softmax", softmax), ("sigmoid", lambda logits: [*map(sigmoid, logits)]), ("none", list)],
)
def test_hugging_face_function_and_top_k(client: TestClient, function: str, expected: Any) -> None:
    parameters = {"function_to_apply": function, "top_k": 2}
    answer = client.post("/tasks/topics", json={"inputs": "fine", "parameters": parameters})
    logits = logits_of(row("topics", "fine"), TOPICS)
    all_scores = dict(zip(TOPICS.labels, expected(logits), strict=True))
    best = sorted(all_scores.values(), reverse=True)[:2]
    found = answer.json()[0]
    assert [each["score"] for each in found] == pytest.approx(best)
    assert all(all_scores[each["label"]] == pytest.approx(each["score"]) for each in found)


def test_hugging_face_multi_label_is_a_sigmoid_of_each(client: TestClient) -> None:
    logits = logits_of(row("topics", "fine"), TOPICS)
    found = labelled(client.post("/tasks/topics", json={"inputs": "fine"}).json()[0])
    assert found == pytest.approx(dict(zip(TOPICS.labels, map(sigmoid, logits), strict=True)))


def test_hugging_face_regression_is_a_number(client: TestClient) -> None:
    body = {"inputs": {"text": "a", "text_pair": "b"}}
    [[score]] = client.post("/tasks/similar", json=body).json()
    assert score == {"label": "score", "score": logits_of(row("similar", "a", "b"), SIMILAR)[0]}
    body["parameters"] = {"function_to_apply": "sigmoid"}
    refused = client.post("/tasks/similar", json=body)
    assert refused.status_code == 422
    assert "has no labels" in refused.json()["error"]


def test_hugging_face_errors(client: TestClient) -> None:
    refused = client.post("/tasks/sentimet", json={"inputs": "fine"})
    assert refused.status_code == 404
    assert refused.json() == {
        "error": "no task 'sentimet'; did you mean sentiment?",
        "error_type": "unknown_task",
    }


# ------------------------------------------------------------------- text-embeddings-inference

TEI = [
    ({"inputs": "fine"}, ["fine"], False),
    ({"inputs": ["fine"]}, ["fine"], False),
    ({"inputs": [["fine"], ["a film"]]}, ["fine", "a film"], True),
    ({"inputs": [["fine"]], "truncate": True, "raw_scores": False}, ["fine"], True),
]


@pytest.mark.parametrize(("body", "texts", "batch"), TEI)
def test_tei_inputs(client: TestClient, body: Any, texts: list[str], batch: bool) -> None:
    found = client.post("/tasks/sentiment/predict", json=body).json()
    rows = found if batch else [found]
    assert [labelled(each) for each in rows] == [pytest.approx(sentiment(text)) for text in texts]
    assert all(each["score"] for each in rows[0])
    assert [*rows[0][0]] == ["score", "label"]


def test_tei_two_texts_are_one_pair(client: TestClient, service: FakeService) -> None:
    found = client.post("/tasks/similar/predict", json={"inputs": ["a", "b"]}).json()
    assert found == [{"score": logits_of(row("similar", "a", "b"), SIMILAR)[0], "label": "score"}]
    assert service.asked == [row("similar", "a", "b")]
    batch = client.post("/tasks/same/predict", json={"inputs": [["a", "b"], ["c", "d"]]}).json()
    assert len(batch) == 2
    assert service.asked[1:] == [row("same", "a", "b"), row("same", "c", "d")]


def test_tei_raw_scores_are_logits(client: TestClient) -> None:
    found = client.post("/tasks/topics/predict", json={"inputs": "fine", "raw_scores": True}).json()
    logits = logits_of(row("topics", "fine"), TOPICS)
    assert labelled(found) == dict(zip(TOPICS.labels, logits, strict=True))


def test_tei_truncate(client: TestClient) -> None:
    long = "word " * 100
    assert client.post("/tasks/sentiment/predict", json={"inputs": long}).status_code == 200
    refused = client.post("/tasks/sentiment/predict", json={"inputs": long, "truncate": False})
    assert refused.status_code == 422
    assert refused.json() == {"error": "the text has 100 tokens", "error_type": "validation"}


def test_tei_info_and_health(client: TestClient, service: FakeService) -> None:
    info = client.get("/tasks/sentiment/info").json()
    assert info["model_id"] == "sentiment"
    assert info["model_sha"] == "sentiment-1"
    assert info["model_type"] == {
        "classifier": {
            "id2label": {"0": "negative", "1": "positive"},
            "label2id": {"negative": 0, "positive": 1},
        }
    }
    assert info["max_input_length"] == 62
    assert info["max_client_batch_size"] == service.settings.max_rows
    assert info["max_batch_tokens"] == service.settings.batch_tokens
    assert client.get("/tasks/sentiment/health").status_code == 200
    service.ready = False
    unready = client.get("/tasks/sentiment/health")
    assert unready.status_code == 503
    assert unready.json()["error_type"] == "unhealthy"


def test_tei_overloaded(client: TestClient, service: FakeService) -> None:
    service.refusal = Refusal(status=429, kind="overloaded", message="busy", retry_after=2.2)
    refused = client.post("/tasks/sentiment/predict", json={"inputs": "fine"})
    assert refused.status_code == 429
    assert refused.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert refused.headers["retry-after"] == "3"


# ------------------------------------------------------------------------- infinity, vLLM, OpenAI


def test_infinity(client: TestClient) -> None:
    body = {"model": "sentiment", "input": ["fine", "a film"], "raw_scores": False}
    found = client.post("/classify", json=body).json()
    assert [*found] == ["object", "data", "model", "usage", "id", "created"]
    assert found["object"] == "classify"
    assert found["model"] == "sentiment"
    assert found["usage"] == {"prompt_tokens": 3 + 4, "total_tokens": 7}
    assert found["id"].startswith("infinity-")
    assert [labelled(each) for each in found["data"]] == [
        pytest.approx(sentiment("fine")),
        pytest.approx(sentiment("a film")),
    ]


def test_infinity_error(client: TestClient, service: FakeService) -> None:
    service.refusal = Refusal(status=429, kind="overloaded", message="busy", retry_after=1)
    refused = client.post("/classify", json={"model": "sentiment", "input": ["fine"]})
    assert refused.json() == {"error": {"message": "busy", "type": "overloaded", "param": None, "code": 429}}


def test_vllm(client: TestClient) -> None:
    found = client.post("/v1/classify", json={"model": "sentiment", "input": "fine", "priority": 3}).json()
    chances = sentiment("fine")
    assert found["object"] == "list"
    assert found["id"].startswith("classify-")
    [data] = found["data"]
    assert data["index"] == 0
    assert data["num_classes"] == 2
    assert data["label"] == max(chances, key=lambda name: chances[name])
    assert data["probs"] == pytest.approx([chances["negative"], chances["positive"]])
    assert found["usage"] == {
        "prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0, "prompt_tokens_details": None,
    }  # fmt: skip


def test_vllm_logits(client: TestClient) -> None:
    body = {"model": "topics", "input": ["fine", "odd"], "use_activation": False}
    found = client.post("/v1/classify", json=body).json()["data"]
    assert found[1]["probs"] == list(logits_of(row("topics", "odd"), TOPICS))
    assert found[1]["index"] == 1


@pytest.mark.parametrize("path", ["/models", "/v1/models"])
def test_models(client: TestClient, path: str) -> None:
    found = client.get(path).json()
    assert found["object"] == "list"
    assert [each["id"] for each in found["data"]] == ["same", "sentiment", "similar", "topics"]
    assert found["data"][0]["created"] == 1790000000


# ------------------------------------------------------------------------ Open Inference Protocol


def test_open_inference(client: TestClient) -> None:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["fine", "a film"]}
    found = client.post("/v2/models/sentiment/infer", json={"id": "42", "inputs": [tensor]}).json()
    label, probabilities = found.pop("outputs")
    assert found == {"model_name": "sentiment", "model_version": "sentiment-1", "id": "42"}
    chances = [sentiment("fine"), sentiment("a film")]
    assert label["data"] == [max(each, key=lambda name: each[name]) for each in chances]
    assert probabilities["shape"] == [2, 2]
    assert probabilities["datatype"] == "FP32"
    assert probabilities["data"] == pytest.approx([value for each in chances for value in each.values()])


def test_open_inference_outputs_by_kind(client: TestClient) -> None:
    def infer(task: str, *tensors: tuple[str, list[str]], **more: Any) -> Any:
        inputs = [
            {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data} for name, data in tensors
        ]
        return client.post(f"/v2/models/{task}/infer", json={"inputs": inputs, **more})

    [value] = infer("similar", ("text", ["a"]), ("text_pair", ["b"])).json()["outputs"]
    assert value == {
        "name": "value", "shape": [1], "datatype": "FP64",
        "data": [logits_of(row("similar", "a", "b"), SIMILAR)[0]],
    }  # fmt: skip
    [label] = infer("topics", ("text", ["fine"]), outputs=[{"name": "label"}]).json()["outputs"]
    logits = logits_of(row("topics", "fine"), TOPICS)
    assert json.loads(label["data"][0]) == [
        name for name, logit in zip(TOPICS.labels, logits, strict=True) if logit > 0
    ]
    refused = infer("topics", ("text", ["fine"]), outputs=[{"name": "embedding"}])
    assert refused.status_code == 422
    assert refused.json() == {"error": "outputs: got 'embedding', expected some of label, probabilities"}


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}],
        [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}],
        [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}],
        [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["a"]}],
        [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}],
        [{"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": -1}}],
        [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}] * 2,
        [
            {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]},
            {"name": "text_pair", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]},
        ],
    ],
)
def test_open_inference_refuses(client: TestClient, inputs: Any) -> None:
    refused = client.post("/v2/models/sentiment/infer", json={"inputs": inputs})
    assert refused.status_code == 422
    assert list(refused.json()) == ["error"]


def test_open_inference_metadata(client: TestClient, service: FakeService) -> None:
    assert client.get("/v2").json()["name"] == "ptuning"
    found = client.get("/v2/models/same").json()
    assert found["versions"] == ["same-1"]
    assert [each["name"] for each in found["inputs"]] == ["text", "text_pair"]
    assert found["outputs"][1]["shape"] == [-1, 2]
    assert found["outputs"][1]["parameters"] == {"labels": ["0", "1"]}
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/same/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2/models/other/ready").json() == {"error": "no task 'other'"}
    service.ready = False
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503


# ------------------------------------------------------------------------------------- our own


def test_rows_of_any_tasks_in_order_with_their_own_errors(client: TestClient) -> None:
    rows = [
        {"task": "sentiment", "text": "fine", "id": 7},
        {"task": "nothing", "text": "fine"},
        {"task": "similar", "text": "a", "text_pair": "b"},
        {"task": "sentiment", "text": "a", "text_pair": "b"},
        {"task": "topics", "text": "fine"},
        {"task": "sentiment", "text": " "},
    ]
    answer = client.post("/v1/rows", json={"rows": rows})
    assert answer.status_code == 200
    found = answer.json()["rows"]
    assert found[0]["id"] == 7
    assert found[0]["digest"] == "sentiment-1"
    assert found[0]["probabilities"] == pytest.approx(sentiment("fine"))
    assert found[0]["tokens"] == 3
    assert found[0]["truncated"] is False
    assert found[1]["error"] == {"code": 404, "type": "unknown_task", "message": "no task 'nothing'"}
    assert found[2]["value"] == logits_of(row("similar", "a", "b"), SIMILAR)[0]
    assert found[3]["error"]["type"] == "wrong_texts"
    assert isinstance(found[4]["label"], list)
    assert found[5]["error"]["type"] == "empty_text"
    assert [each["task"] for each in found] == [each["task"] for each in rows]
    assert "x-task-digest" not in answer.headers  # of several


def test_rows_labels_are_those_of_the_training_data(client: TestClient) -> None:
    [found] = client.post(
        "/v1/rows", json={"rows": [{"task": "same", "text": "a", "text_pair": "b"}]}
    ).json()["rows"]
    assert found["label"] in (0, 1)
    assert isinstance(found["label"], int)


def test_one_text_for_every_task_of_its_form(client: TestClient) -> None:
    found = client.post("/v1/rows", json={"text": "fine", "tasks": "*"}).json()["rows"]
    assert [each["task"] for each in found] == ["sentiment", "topics"]
    found = client.post("/v1/rows", json={"text": "a", "text_pair": "b", "tasks": "*"}).json()["rows"]
    assert [each["task"] for each in found] == ["same", "similar"]
    found = client.post("/v1/rows", json={"text": "fine", "tasks": ["topics", "nothing"]}).json()["rows"]
    assert ["error" in each for each in found] == [False, True]


def test_every_task_may_be_more_than_the_rows_of_a_request() -> None:
    tasks = {f"task-{number:02}": SENTIMENT for number in range(25)}
    service = FakeService(tasks, Settings(max_rows=10))
    with TestClient(make_app(service, Keys())) as client:
        found = client.post("/v1/rows", json={"text": "fine", "tasks": "*"}).json()["rows"]
        assert [each["task"] for each in found] == list(tasks)
        assert len(service.callers) == 3
        assert client.post("/v1/rows", json={"text": "fine", "tasks": [*tasks]}).status_code == 413


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, '"rows"'),
        ({"rows": []}, 400, "empty list"),
        ({"rows": [{"task": "sentiment"}]}, 422, "rows: not valid"),
        ({"rows": [{"task": "sentiment", "text": "a", "txet": "b"}]}, 422, "unknown field"),
        ({"row": []}, 422, "row: unknown field"),
        ({"text": "a"}, 422, "tasks"),
        ({"text": "a", "tasks": "sentiment"}, 422, 'tasks: not valid, expected a list of tasks, or "*"'),
        ({"text": "a", "tasks": []}, 400, "empty list"),
        ({"rows": [{"task": "sentiment", "text": "a"}], "text": "b"}, 422, "either"),
        ({"rows": [{"task": "sentiment", "text": "a"}], "timeout": -1}, 422, "timeout"),
        ([], 422, "expected an object"),
        ("fine", 422, "expected an object"),
    ],
)
def test_rows_refused(client: TestClient, body: Any, status: int, words: str) -> None:
    refused = client.post("/v1/rows", json=body)
    assert refused.status_code == status
    assert words in refused.json()["error"]["message"]


def test_tasks_and_details(client: TestClient) -> None:
    found = client.get("/tasks").json()["tasks"]
    assert found[1] == {
        "task": "sentiment", "digest": "sentiment-1", "kind": "single_label_classification",
        "labels": ["negative", "positive"], "pair": False,
    }  # fmt: skip
    one = client.get("/tasks/sentiment").json()
    assert one["max_tokens"] == 62
    assert one["card"] == "# A card"
    assert one["metrics"] == {"test": {"accuracy": 0.9}}
    assert "/adapters" not in json.dumps(one)


def test_health_ready_metrics_info(client: TestClient, service: FakeService) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    client.post("/tasks/sentiment", json={"inputs": "fine"})
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    line = 'ptuning_requests_total{code="200",route="/tasks/{task}",task="sentiment"} 1.0'
    assert line in metrics.text.splitlines()
    info = client.get("/v1/info").json()
    assert info["tasks"] == 4
    assert info["limits"]["max_rows"] == service.settings.max_rows
    service.ready = False
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").headers["retry-after"] == "1"
    assert client.get("/health").status_code == 200


def test_labels_that_are_not_unicode_do_not_prevent_an_answer() -> None:
    """A file of labels in JSON can have half of a surrogate pair."""
    task = Task(problem_type="single_label_classification", labels=("\ud800", "größer"))
    with TestClient(make_app(FakeService({"odd": task}), Keys())) as client:
        found = client.post("/tasks/odd", json={"inputs": "fine"})
        assert {each["label"] for each in found.json()[0]} == {"\ud800", "größer"}
        assert "größer" in found.text
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["fine"]}
        body = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        assert client.post("/v2/models/odd/infer", json=body).status_code == 200
        assert client.post("/v1/rows", json={"text": "fine", "tasks": "*"}).status_code == 200
        assert client.get("/tasks/odd").status_code == 200
        assert client.get("/tasks/odd/info").status_code == 200


def test_scores_are_finite_for_any_logits() -> None:
    assert softmax((1000.0, -1000.0)) == [1.0, 0.0]
    assert sigmoid(-1000) == 0.0
    assert sigmoid(1000) == 1.0
    assert math.fsum(softmax((3.0, 1.0, -2.0))) == pytest.approx(1)


# ------------------------------------------------------------------------------------------ versions


ASKS: dict[str, Any] = {
    "/tasks/sentiment": {"inputs": "fine"},
    "/tasks/sentiment/predict": {"inputs": "fine"},
    "/classify": {"model": "sentiment", "input": "fine"},
    "/v1/classify": {"model": "sentiment", "input": "fine"},
    "/v2/models/sentiment/infer": {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["fine"]}]
    },
    "/v1/rows": {"rows": [{"task": "sentiment", "text": "fine"}]},
}


@pytest.mark.parametrize("path", ASKS)
def test_a_task_replaced_in_flight_answers_as_the_version_that_ran(
    service: FakeService, client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    answer = service.answer

    async def replaced(rows: Any, **options: Any) -> Any:
        task = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
        service.tasks.served["sentiment"] = Served(name="sentiment", digest="new", task=task)
        return await answer(rows, **options)

    monkeypatch.setattr(service, "answer", replaced)
    found = client.post(path, json=ASKS[path])
    assert found.status_code == 200
    assert found.headers["x-task-digest"] == "new"
    body = found.json()
    if path.startswith("/v2"):
        assert body["model_version"] == "new"
        assert [each["shape"] for each in body["outputs"]] == [[1], [1, 3]]
        assert len(body["outputs"][1]["data"]) == 3


@pytest.mark.parametrize("path", [*ASKS, "/v2/models/sentiment/versions/sentiment-1/infer"])
def test_a_task_replaced_after_it_has_answered_is_not_named(
    service: FakeService, client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    answer = service.answer

    async def answered(rows: Any, **options: Any) -> Any:
        found = await answer(rows, **options)
        service.tasks.served["sentiment"] = Served(name="sentiment", digest="new", task=SENTIMENT)
        return found

    monkeypatch.setattr(service, "answer", answered)
    found = client.post(path, json=ASKS.get(path, ASKS["/v2/models/sentiment/infer"]))
    assert (found.status_code, found.headers["x-task-digest"]) == (200, "sentiment-1")
    if path.startswith("/v2"):
        assert found.json()["model_version"] == "sentiment-1"


def test_a_refused_row_names_the_version_too(client: TestClient) -> None:
    found = client.post("/tasks/sentiment", json={"inputs": " "})
    assert (found.status_code, found.headers["x-task-digest"]) == (422, "sentiment-1")


def test_several_tasks_have_no_digest_in_common(service: FakeService) -> None:
    service.settings = Settings(max_rows=2)  # more tasks than rows in a request: asked in parts
    with TestClient(make_app(service, Keys())) as client:
        found = client.post("/v1/rows", json={"text": "fine", "tasks": "*"})
        assert len(found.json()["rows"]) == 2
        assert "x-task-digest" not in found.headers
        service.tasks.served["other"] = Served(name="other", digest="other-1", task=SENTIMENT)
        found = client.post("/v1/rows", json={"text": "fine", "tasks": "*"})
        assert len(found.json()["rows"]) == 3
        assert "x-task-digest" not in found.headers


# -------------------------------------------------------------------------------------- large answers


@pytest.mark.parametrize("path", ASKS)
def test_a_large_answer_is_written_in_a_thread_and_is_the_same(
    service: FakeService, client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It would hold up every other request."""
    labels = tuple(f"label {number}" for number in range(50))
    service.tasks.served["sentiment"] = Served(
        name="sentiment",
        digest="wide",
        task=Task(problem_type="single_label_classification", labels=labels),
    )
    body = ASKS[path]
    if "inputs" in body:
        tensor = [{"name": "text", "shape": [20], "datatype": "BYTES", "data": ["fine"] * 20}]
        texts: Any = tensor if path.startswith("/v2") else [["fine"]] * 20 if "predict" in path else None
        body = {"inputs": texts or ["fine"] * 20}
    elif "rows" in body:
        body = {"rows": body["rows"] * 20}
    else:
        body = {**body, "input": ["fine"] * 20}
    in_loop: list[bool] = []

    def made(content: Any) -> bytes:
        try:
            in_loop.append(bool(asyncio.get_running_loop()))
        except RuntimeError:
            in_loop.append(False)
        return json.dumps(content).encode()

    small = client.post(path, json=body)
    monkeypatch.setattr("ptuning.serving.protocols.writing.FEW", 500)
    large = client.post(path, json=body)
    monkeypatch.setattr("ptuning.serving.protocols.writing.json_bytes", made)
    assert client.post(path, json=body).status_code == small.status_code == 200
    assert in_loop == [False]
    changing = ("id", "created")
    assert {**_object(large), **dict.fromkeys(changing)} == {**_object(small), **dict.fromkeys(changing)}


def _object(answer: Any) -> dict[str, Any]:
    found = answer.json()
    return found if isinstance(found, dict) else {"list": found}


def test_answers_need_no_torch(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "as_tensor", None)
    for path, body in ASKS.items():
        assert client.post(path, json=body).status_code == 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(), inner, max_size=5),
        max_leaves=100,
    )
)
def test_json_in_pieces_is_the_same_json(value: Any) -> None:
    assert json_bytes(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )


def test_long_lists_in_json() -> None:
    value = {"rows": [[number] for number in range(100)], "flat": list(range(10_000)), "none": []}
    assert json.loads(json_bytes(value)) == value


# ------------------------------------------------------------------------- what others' clients read


INFINITY_MODEL = {
    "id": str,
    "stats": {"queue_fraction": float, "queue_absolute": int, "results_pending": int, "batch_size": int},
    "object": "model",
    "owned_by": "infinity",
    "created": int,
    "backend": str,
    "capabilities": ["classify"],
}
"""``ModelInfo`` of infinity-client 0.0.78: ``stats`` is required; ``object`` and ``owned_by`` are enums."""
INFINITY_CLASSIFIED = {
    "data": [[{"score": float, "label": str}]],
    "model": str,
    "usage": {"prompt_tokens": int, "total_tokens": int},
    "object": "classify",
    "id": str,
    "created": int,
}
"""``ClassifyResult`` of infinity-client 0.0.78."""
VLLM_CLASSIFIED = {
    "id": str,
    "object": "list",
    "created": int,
    "model": str,
    "data": [{"index": int, "label": str, "probs": [float], "num_classes": int}],
    "usage": {"prompt_tokens": int, "total_tokens": int, "completion_tokens": int},
}
"""``ClassificationResponse`` of vLLM."""
TEI_INFO = {
    "model_id": str,
    "model_sha": str,
    "model_dtype": "float32",
    "model_type": {"classifier": {"id2label": {"0": str}, "label2id": {"negative": int}}},
    "max_concurrent_requests": int,
    "max_input_length": int,
    "max_batch_tokens": int,
    "max_client_batch_size": int,
    "auto_truncate": bool,
    "tokenization_workers": int,
    "version": str,
}
"""``Info`` of text-embeddings-inference."""


def has_shape(value: Any, shape: Any) -> bool:
    """Whether a JSON value has the fields and types of ``shape``; a text in it stands for itself."""
    match shape:
        case dict():
            return isinstance(value, dict) and all(
                has_shape(value[name], each) for name, each in shape.items()
            )
        case list():
            return (
                isinstance(value, list) and bool(value) and all(has_shape(each, shape[0]) for each in value)
            )
        case type():
            return type(value) is shape
        case _:
            return bool(value == shape)


def test_infinitys_client_reads_the_list_of_models(client: TestClient) -> None:
    for path in ("/models", "/v1/models"):
        found = client.get(path).json()
        assert has_shape(found, {"object": "list", "data": [INFINITY_MODEL]})
    assert found["data"][0]["stats"]["queue_absolute"] == 3


def test_infinitys_client_classifies(client: TestClient) -> None:
    body = {"input": ["fine", "a film"], "model": "sentiment", "raw_scores": False}  # as it sends it
    assert has_shape(client.post("/classify", json=body).json(), INFINITY_CLASSIFIED)


def test_vllms_shape(client: TestClient) -> None:
    body = {"model": "sentiment", "input": ["fine", "a film"], "priority": 0, "truncate_prompt_tokens": -1}
    assert has_shape(client.post("/v1/classify", json=body).json(), VLLM_CLASSIFIED)


@pytest.mark.parametrize(
    "body",
    [
        # curl of its README; its Rust types serialised; the JavaScript and Go clients send no options
        {"inputs": "I like you."},
        {"inputs": "I like you.", "raw_scores": False, "truncate": None, "truncation_direction": "right"},
        {"inputs": [["I like you."], ["I hate pineapples"]], "truncate": True, "raw_scores": True},
        {"inputs": ["What is Deep Learning?"], "truncation_direction": "Right"},
    ],
)
def test_requests_as_clients_of_text_embeddings_inference_send_them(client: TestClient, body: Any) -> None:
    found = client.post("/tasks/sentiment/predict", json=body)
    one = [{"score": float, "label": str}]
    batch = isinstance(body["inputs"], list) and isinstance(body["inputs"][0], list)
    assert has_shape(found.json(), [one] if batch else one)


def test_what_text_embeddings_inference_says_of_a_model(client: TestClient) -> None:
    assert has_shape(client.get("/tasks/sentiment/info").json(), TEI_INFO)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/classify", {"input": "fine"}),
        ("/v1/classify", {"input": "fine", "model": None}),
        ("/classify", {"input": "fine"}),
        ("/classify", {"input": ["fine"], "model": "default/not-specified"}),
    ],
)
def test_the_only_task_needs_no_name(client: TestClient, path: str, body: Any) -> None:
    with TestClient(make_app(FakeService({"sentiment": SENTIMENT}), Keys())) as one:
        assert one.post(path, json=body).json()["model"] == "sentiment"
    refused = client.post(path, json=body)
    assert refused.status_code == 422
    assert "there are 4" in refused.json()["error"]["message"]


def test_versions_have_paths(service: FakeService, client: TestClient) -> None:
    body = ASKS["/v2/models/sentiment/infer"]
    (version,) = client.get("/v2/models/sentiment").json()["versions"]
    place = f"/v2/models/sentiment/versions/{version}"
    assert client.get(place).json() == client.get("/v2/models/sentiment").json()
    assert client.get(f"{place}/ready").status_code == 200
    assert client.post(f"{place}/infer", json=body).json()["model_version"] == version
    service.tasks.served["sentiment"] = Served(name="sentiment", digest="sentiment-2", task=SENTIMENT)
    for answer in (client.get(place), client.get(f"{place}/ready"), client.post(f"{place}/infer", json=body)):
        assert answer.status_code == 404
        assert "it is served as sentiment-2" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/"])
def test_head(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == 200


def test_failures_say_no_folder_of_the_server(service: FakeService, client: TestClient) -> None:
    service.tasks.failures = {
        "broken": "/srv/adapters/broken/prompt.safetensors: got 3 bytes, expected 4 (see a/b and 1/2)",
    }
    said = "prompt.safetensors: got 3 bytes, expected 4 (see a/b and 1/2)"
    assert client.get("/v1/info").json()["failures"] == {"broken": said}
    page = client.get("/").text
    assert said in page
    assert "/srv" not in page


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200),
        ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421), ("", 421),
        ("192.168.0.1", 421), ("[::2]", 421),
    ],
)  # fmt: skip
def test_a_server_without_keys_is_asked_by_the_names_of_this_machine(host: str, status: int) -> None:
    with TestClient(make_app(FakeService(), Keys(), loopback_only=True)) as client:
        for path in ("/", "/health", "/tasks"):
            answer = client.get(path, headers={"host": host})
            assert answer.status_code == status
            assert "x-request-id" in answer.headers
    with TestClient(make_app(FakeService(), Keys())) as client:
        assert client.get("/tasks", headers={"host": host}).status_code == 200
