"""Clients that people have, unchanged, against a real server: huggingface_hub, Triton's, curl."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient, close_session, constants
from huggingface_hub.errors import HfHubHTTPError
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from ptuning.kinds.classification import softmax
from ptuning.serving.keys import Keys, make_key
from ptuning.serving.rows import Refusal, Row
from serving_fake import SAME, SENTIMENT, FakeService, Running, logits_of, serving


@pytest.fixture(scope="module", autouse=True)
def _online() -> Iterator[None]:
    """The Hub's client may reach this machine, without a proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        close_session()
        yield
        close_session()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(FakeService()) as made:
        yield made


def chances(text: str) -> dict[str, float]:
    logits = logits_of(Row(task="sentiment", text=text), SENTIMENT)
    return dict(zip(("negative", "positive"), softmax(logits), strict=True))


# --------------------------------------------------------------------------------- huggingface_hub


def test_inference_client(running: Running) -> None:
    client = InferenceClient(model=f"{running.url}/tasks/sentiment")
    found = client.text_classification("I like you")
    assert {each.label: each.score for each in found} == pytest.approx(chances("I like you"))
    assert found[0].score >= found[1].score
    [best] = client.text_classification("I like you", top_k=1, function_to_apply="none")
    assert best.score == max(logits_of(Row(task="sentiment", text="I like you"), SENTIMENT))


def test_inference_client_errors(running: Running) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        InferenceClient(model=f"{running.url}/tasks/sentimen").text_classification("I like you")
    assert caught.value.response.status_code == 404
    assert "did you mean sentiment?" in str(caught.value)
    running.service.refusal = Refusal(status=429, kind="overloaded", message="busy", retry_after=1)
    try:
        with pytest.raises(HfHubHTTPError) as caught:
            InferenceClient(model=f"{running.url}/tasks/sentiment").text_classification("I like you")
    finally:
        running.service.refusal = None
    assert caught.value.response.status_code == 429


def test_inference_client_with_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = make_key(file, "team", tasks=("senti*",))
    with serving(FakeService(), Keys(file=file)) as running:
        model = f"{running.url}/tasks/sentiment"
        assert InferenceClient(model=model, token=key).text_classification("fine")
        with pytest.raises(HfHubHTTPError) as caught:
            InferenceClient(model=model, token="ptk_wrong").text_classification("fine")
        assert caught.value.response.status_code == 401
        assert running.service.callers == ["team"]


# ----------------------------------------------------------------------------------------- Triton


def tensor(name: str, texts: list[str], *, binary: bool) -> InferInput:
    made = InferInput(name, [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    return made


@pytest.fixture
def triton(running: Running) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(f"127.0.0.1:{running.port}")
    yield client
    client.close()


def test_triton_metadata(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("sentiment")
    assert not triton.is_model_ready("nothing")
    assert triton.get_server_metadata()["name"] == "ptuning"
    assert triton.get_model_metadata("same")["inputs"][1]["name"] == "text_pair"


@pytest.mark.parametrize("binary", [True, False])
def test_triton_infer(triton: InferenceServerClient, binary: bool) -> None:
    texts = ["fine", "größer — 日本"]
    outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
    found = triton.infer("sentiment", [tensor("text", texts, binary=binary)], outputs=outputs, request_id="7")
    expected = [chances(text) for text in texts]
    np.testing.assert_allclose(
        found.as_numpy("probabilities"), [list(each.values()) for each in expected], rtol=1e-6
    )
    labels = [each.decode() if isinstance(each, bytes) else each for each in found.as_numpy("label")]
    assert labels == [max(each, key=lambda name: each[name]) for each in expected]
    assert found.get_response()["id"] == "7"


def test_triton_pairs_with_its_defaults(triton: InferenceServerClient) -> None:
    inputs = [tensor("text", ["a"], binary=True), tensor("text_pair", ["b c"], binary=True)]
    found = triton.infer("same", inputs)
    expected = softmax(logits_of(Row(task="same", text="a", text_pair="b c"), SAME))
    np.testing.assert_allclose(found.as_numpy("probabilities"), [expected], rtol=1e-6)


def test_triton_errors(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="no task 'nothing'") as caught:
        triton.infer("nothing", [tensor("text", ["fine"], binary=True)])
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="expected 'text'"):
        triton.infer("sentiment", [tensor("txt", ["fine"], binary=True)])


# ------------------------------------------------------------------------------------------- curl


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_streams_lines(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"task": "sentiment", "text": f"text {number}"}) for number in range(5000)]
    file.write_text("\n".join(lines))
    found = curl(
        "-H", "content-type: application/x-ndjson", "--data-binary", f"@{file}", f"{running.url}/v1/rows"
    ).splitlines()
    assert len(found) == 5000
    assert json.loads(found[-1])["probabilities"] == pytest.approx(chances("text 4999"))


def test_curl_is_told_about_its_default_content_type(running: Running) -> None:
    found = curl("-d", '{"inputs": "fine"}', f"{running.url}/tasks/sentiment")
    assert "expected application/json" in json.loads(found)["error"]


def test_curl_sees_why_a_large_body_is_refused(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    with file.open("wb") as stream:
        stream.truncate(100 << 20)
    start = time.monotonic()
    found = curl(
        *("-H", "content-type: application/json", "-H", "expect:", "-w", " %{http_code}"),
        *("--data-binary", f"@{file}", f"{running.url}/tasks/sentiment"),
    )
    assert found.endswith(" 413")
    assert json.loads(found[:-4])["error_type"] == "body_too_large"
    assert time.monotonic() - start < 25
