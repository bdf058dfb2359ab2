"""A real server with tiny tasks: protocols agree with offline prediction, and tasks change under load."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from transformers import AutoTokenizer

from serving_real import KINDS, TEXTS, Served, adapter, adapters, offline, serve
from tiny import tiny
from warm import Programs

ADMIN = {"authorization": "Bearer an admin key of ours"}


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters(tiny_folder, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(programs: Programs, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    env = {"PTUNING_ADMIN_KEY": "an admin key of ours"}
    with serve(programs, tmp_path_factory.mktemp("logs"), "--folder", folder, env=env) as made:
        yield made


def packed(folder: Path) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return made.getvalue()


def put(served: Served, name: str, folder: Path) -> tuple[int, Any]:
    return served.ask("PUT", f"/tasks/{name}", packed(folder), content_type="application/zip", **ADMIN)


def scores(served: Served, path: str, body: Any) -> Any:
    status, found = served.ask("POST", path, body)
    assert status == 200, found
    return found


def chances(row: list[dict[str, Any]]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in row}


@pytest.mark.parametrize("name", ["sentiment", "topics"])
def test_protocols_agree_on_texts(served: Served, folder: Path, name: str) -> None:
    texts = list(TEXTS)
    labels = [str(label) for label in KINDS[name].labels]
    expected = [each["probabilities"] for each in offline(folder / name, texts)]
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    rows = [{"task": name, "text": text} for text in texts]
    outputs = scores(served, f"/v2/models/{name}/infer", {"inputs": [tensor]})["outputs"]
    flat = outputs[1]["data"]
    width = len(labels)
    found = {
        "hugging face": [*map(chances, scores(served, f"/tasks/{name}", {"inputs": texts}))],
        "tei": [
            *map(chances, scores(served, f"/tasks/{name}/predict", {"inputs": [[text] for text in texts]}))
        ],
        "infinity": [*map(chances, scores(served, "/classify", {"model": name, "input": texts})["data"])],
        "vllm": [
            dict(zip(labels, each["probs"], strict=True))
            for each in scores(served, "/v1/classify", {"model": name, "input": texts})["data"]
        ],
        "v2": [
            dict(zip(labels, flat[place : place + width], strict=True))
            for place in range(0, len(flat), width)
        ],
        "rows": [each["probabilities"] for each in scores(served, "/v1/rows", {"rows": rows})["rows"]],
    }
    for protocol, each in found.items():
        for row, right in zip(each, expected, strict=True):
            assert row == pytest.approx(right, abs=1e-5), protocol


def test_protocols_agree_on_a_regression(served: Served, folder: Path) -> None:
    [right] = offline(folder / "similar", [("a good film", "food")])
    pair = {"text": "a good film", "text_pair": "food"}
    tensors = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]} for name, text in pair.items()
    ]
    found = {
        "hugging face": scores(served, "/tasks/similar", {"inputs": pair})[0][0]["score"],
        "tei": scores(served, "/tasks/similar/predict", {"inputs": [*pair.values()]})[0]["score"],
        "infinity": scores(served, "/classify", {"model": "similar", "input": pair})["data"][0][0]["score"],
        "vllm": scores(served, "/v1/classify", {"model": "similar", "input": pair})["data"][0]["probs"][0],
        "v2": scores(served, "/v2/models/similar/infer", {"inputs": tensors})["outputs"][0]["data"][0],
        "rows": scores(served, "/v1/rows", {"rows": [{"task": "similar", **pair}]})["rows"][0]["value"],
    }
    assert found == pytest.approx(dict.fromkeys(found, right["label"]), abs=1e-5)


def test_the_page_agrees_with_offline_prediction(served: Served, folder: Path) -> None:
    form = urlencode({"task": "sentiment", "rows": "\n".join(TEXTS), "truncate": "yes"}).encode()
    kind = "application/x-www-form-urlencoded"
    status, page = served.ask("POST", "/page/rows", form, content_type=kind, hx_request="true")
    assert status == 200, page
    (table,) = re.findall(r'<textarea name="csv"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    rows = list(csv.DictReader(io.StringIO(table)))
    expected = offline(folder / "sentiment", list(TEXTS))
    assert [row["label"] for row in rows] == [each["label"] for each in expected]
    for row, right in zip(rows, expected, strict=True):
        found = {label: float(row[f"p({label})"]) for label in right["probabilities"]}
        assert found == pytest.approx(right["probabilities"], abs=1e-5)


def test_one_text_for_all_tasks(served: Served) -> None:
    found = scores(served, "/v1/rows", {"text": "a good film", "tasks": "*"})["rows"]
    assert {"sentiment", "topics"} <= {each["task"] for each in found}
    assert all("digest" in each for each in found)


def test_uploads_replace_deletions_remove_and_every_answer_is_one_versions(
    served: Served, tiny_folder: Path, tmp_path: Path
) -> None:
    """Under load: each answer equals, to 1e-5, what the version that it names says offline."""
    versions = [
        adapter(tiny_folder, tmp_path / f"v{number}", KINDS["sentiment"], seed=20 + number)
        for number in range(2)
    ]
    right = {}
    for version in versions:
        status, found = put(served, "changing", version)
        assert status == 200, found
        [answer] = offline(version, ["a good film"])
        right[found["digest"]] = answer["probabilities"]
    assert len(right) == 2
    outcomes: list[tuple[int, Any]] = []
    stop = threading.Event()

    def load() -> None:
        body = {"rows": [{"task": "changing", "text": "a good film"}] * 3}
        while not stop.is_set():
            outcomes.append(served.ask("POST", "/v1/rows", body))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            assert put(served, "changing", versions[number % 2])[0] == 200
            if number % 3 == 2:
                assert served.ask("DELETE", "/tasks/changing", **ADMIN)[0] == 204
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    seen = set()
    for status, found in outcomes:
        assert status == 200
        for row in found["rows"]:
            if "error" in row:
                assert row["error"]["type"] == "unknown_task"
            else:
                seen.add(row["digest"])
                assert row["probabilities"] == pytest.approx(right[row["digest"]], abs=1e-5)
    assert seen == set(right)
    assert served.ask("DELETE", "/tasks/changing", **ADMIN)[0] == 204


def test_an_adapter_for_another_backbone_is_refused_and_the_old_one_stays(
    served: Served, folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    tiny("bert", num_labels=2, seed=7).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "other")
    foreign = adapter(tmp_path / "other", tmp_path / "foreign", KINDS["sentiment"])
    before = served.ask("GET", "/tasks/sentiment")[1]["digest"]
    record = (folder / "sentiment" / "ptuning.json").read_bytes()
    status, found = put(served, "sentiment", foreign)
    assert status == 422
    assert "backbone" in found["error"]["message"] or "vocab" in found["error"]["message"]
    assert served.ask("GET", "/tasks/sentiment")[1]["digest"] == before
    assert (folder / "sentiment" / "ptuning.json").read_bytes() == record


def test_a_broken_folder_is_reported_and_disturbs_nothing(served: Served, folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "ptuning.json").write_text("{}")
    ends = time.monotonic() + 30
    while "broken" not in served.ask("GET", "/v1/info")[1]["failures"]:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert served.ask("GET", "/tasks/broken")[0] == 404
    assert served.ask("GET", "/ready")[0] == 200
    assert served.ask("POST", "/tasks/sentiment", {"inputs": "a good film"})[0] == 200
    assert "broken" in served.log.read_text()


def test_the_page_is_there(served: Served) -> None:
    status, text = served.ask("GET", "/")
    assert status == 200
    assert "<html" in text


def test_no_line_of_the_log_is_an_error(served: Served) -> None:
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
    assert [line for line in lines if line.get("level") == "error" or line.get("status", 200) >= 500] == []
