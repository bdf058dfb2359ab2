"""``ptuning serve`` as a program: what it answers, refuses to start with, and how it stops."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptuning.cli import main
from ptuning.cli.serve import parser
from serving_real import KINDS, TEXTS, Served, adapter, adapters, offline, serve
from warm import Programs


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters(tiny_folder, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(programs: Programs, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("logs")
    env = {"PTUNING_ADMIN_KEY": "an admin key of ours"}
    with serve(programs, place, "--folder", folder, "--drain_seconds", 10, env=env) as made:
        yield made


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_answers_as_offline(served: Served, folder: Path, name: str) -> None:
    task = KINDS[name]
    texts: Any = [(text, text[::-1]) for text in TEXTS] if task.pair else list(TEXTS)
    expected = offline(folder / name, texts)
    rows = [
        {"task": name, "text": text[0], "text_pair": text[1]} if task.pair else {"task": name, "text": text}
        for text in texts
    ]
    status, found = served.ask("POST", "/v1/rows", {"rows": rows})
    assert status == 200
    for each, right in zip(found["rows"], expected, strict=True):
        if right["probabilities"]:
            assert each["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5)
            label = each["label"]
            assert (tuple(label) if isinstance(label, list) else label) == right["label"]
        else:
            assert each["value"] == pytest.approx(right["label"], abs=1e-5)


def test_rows_of_all_tasks_in_one_request(served: Served, folder: Path) -> None:
    rows = [{"task": name, "text": text} for text in TEXTS for name in ("sentiment", "topics")]
    _, found = served.ask("POST", "/v1/rows", {"rows": rows})
    right = {name: offline(folder / name, list(TEXTS)) for name in ("sentiment", "topics")}
    for row, each in zip(rows, found["rows"], strict=True):
        expected = right[row["task"]][TEXTS.index(row["text"])]["probabilities"]
        assert each["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_truncation_is_said_or_refused(served: Served) -> None:
    body = {"rows": [{"task": "sentiment", "text": "good " * 100}]}
    _, found = served.ask("POST", "/v1/rows", body)
    assert found["rows"][0]["truncated"] is True
    _, found = served.ask("POST", "/v1/rows", {**body, "truncate": False})
    assert found["rows"][0]["error"]["code"] in (413, 422)


def test_texts_that_are_odd(served: Served) -> None:
    texts = ["\0", "a\0b", "\u200b", "x" * 100_000, "😀" * 50, "\u202eabc", "a\r\nb\t"]
    rows = [{"task": "sentiment", "text": text} for text in texts]
    status, found = served.ask("POST", "/v1/rows", {"rows": rows})
    assert status == 200
    for each in found["rows"]:
        assert each.get("error", {}).get("code", 200) < 500


def test_info_ready_and_metrics(served: Served) -> None:
    _, info = served.ask("GET", "/v1/info")
    assert info["tasks"] == 4
    assert info["precision"] == "fp32"
    assert served.ask("GET", "/ready") == (200, {"status": "ready"})
    status, text = served.ask("GET", "/metrics")
    assert status == 200
    assert "ptuning_batch_rows_bucket" in text


def test_the_log_is_json(served: Served) -> None:
    served.ask("GET", "/health")
    lines = [line for line in served.log.read_text().splitlines() if not line.startswith("ptuning: ")]
    assert lines
    assert all(json.loads(line)["time"] for line in lines)


def test_a_task_that_is_copied_to_the_folder_and_deleted(
    served: Served, folder: Path, tiny_folder: Path
) -> None:
    adapter(tiny_folder, folder / "late", KINDS["sentiment"], seed=9)
    ends = time.monotonic() + 30
    while served.ask("GET", "/tasks/late")[0] != 200:
        assert time.monotonic() < ends
        time.sleep(0.05)
    admin = {"authorization": "Bearer an admin key of ours"}
    assert served.ask("DELETE", "/tasks/late", **admin)[0] == 204
    assert not (folder / "late").exists()
    assert served.ask("GET", "/tasks/late")[0] == 404


# ------------------------------------------------------------------------------------- stopping


def test_sigterm_under_load_loses_no_request(programs: Programs, folder: Path, tmp_path: Path) -> None:
    """Every request that was read gets its answer, or a refusal; then exit code 0. A connection that was not
    read from is closed.
    """
    arguments = ("--folder", folder, "--drain_delay", 3)
    with serve(programs, tmp_path, *arguments) as served:
        outcomes: list[Any] = []
        stop = threading.Event()

        def load() -> None:
            rows = [
                {"task": "sentiment", "text": f"{text} {number}"} for number in range(8) for text in TEXTS
            ]
            while not stop.is_set():
                try:
                    status, found = served.ask("POST", "/v1/rows", {"rows": rows})
                except ConnectionError:  # the server has gone
                    return
                outcomes.append(status)
                if status == 200:
                    assert all("label" in row for row in found["rows"])
                else:
                    assert found["error"]["type"] == "stopping"

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        ends = time.monotonic() + 30
        while len(outcomes) < 20 and time.monotonic() < ends:
            time.sleep(0.01)
        before = len(outcomes)
        served.program.send_signal(signal.SIGTERM)
        ends = time.monotonic() + 10
        while served.ask("GET", "/ready")[0] != 503:
            assert time.monotonic() < ends
        assert served.program.wait(60) == 0
        stop.set()
        for thread in threads:
            thread.join(30)
        assert len(outcomes) > before
        text = served.log.read_text()
        assert "Traceback" not in text
        logged = [json.loads(line) for line in text.splitlines() if '"route": "/v1/rows"' in line]
        assert Counter(outcomes) == Counter(each["status"] for each in logged)
        assert set(outcomes) <= {200, 503}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    programs: Programs, folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serve(programs, tmp_path, "--folder", folder, "--drain_delay", 60) as served:
        served.program.send_signal(number)
        ends = time.monotonic() + 30
        while served.ask("GET", "/ready")[0] != 503:
            assert time.monotonic() < ends
        assert served.program.poll() is None
        served.program.send_signal(number)
        assert served.program.wait(30) == 128 + number


# ------------------------------------------------------------------------------- at the command line


def failed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main(["serve", *map(str, argv)]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("ptuning: error: ")
    assert found.err.count("\n") == 1
    return found.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--folder"),
        (["--folder", "{empty}"], "--backbone"),
        (["--folder", "{empty}/nothing"], "No such file"),
        (["--folder", "{file}"], "Not a directory"),
        (["{empty}"], "no adapter at"),
        (["{folder}/sentiment", "--host", "0.0.0.0"], "--no_auth"),
        (["{folder}/sentiment", "--host", "nothing.invalid", "--no_auth"], "address of this machine"),
        (["{folder}/sentiment", "--port", "99999"], "65535"),
        (["{folder}/sentiment", "--port", "x"], "--port"),
        (["{folder}/sentiment", "--keys", "{empty}/keys.toml"], "No such file"),
        (["{folder}/sentiment", "--memory_limit", "4G"], "memory_limit"),
        (["{folder}/sentiment", "--memory_limit", "0"], "a number of GiB above 0"),
        (["{folder}/sentiment", "--packed_memory", "nan"], "a number of GiB, 0 or more"),
        (["{folder}/sentiment", "--threads", "0"], "--threads"),
        (["{folder}/sentiment", "--batch_tokens", "0"], "batch_tokens"),
        (["{folder}/sentiment", "{folder}/sentiment"], "one adapter for each name"),
        (["a/b=c=d", "--port", "0"], "name of the task"),
        (["--make_key", "me"], "--keys FILE"),
        (["{folder}/sentiment", "--key_tasks", "spam"], "--make_key NAME"),
        (["{folder}/sentiment", "--key_admin"], "--make_key NAME"),
        (["--admin_key_file", "{file}", "{folder}/sentiment"], "16 or more"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, argv: list[str], words: str
) -> None:
    file = tmp_path / "file"
    file.write_text("short")
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "file": file, "folder": folder}
    assert words in failed(capsys, *(each.format(**places) for each in argv))


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in failed(capsys, folder / "sentiment", "--port", port)


def test_adapters_of_different_backbones(
    capsys: pytest.CaptureFixture[str], folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from tiny import tiny

    other = tmp_path / "other"
    tiny("bert", num_labels=2, seed=5).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(other)
    made = adapter(other, tmp_path / "elsewhere", KINDS["sentiment"])
    said = failed(capsys, folder / "sentiment", made, "--port", 0)
    assert "elsewhere" in said
    assert "backbone" in said


def test_a_key_is_made_and_printed_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from ptuning.serving.keys import digest, read_keys

    file = tmp_path / "keys.toml"
    assert main(["serve", "--keys", str(file), "--make_key", "team", "--key_tasks", "a, b-*"]) == 0
    key = capsys.readouterr().out.strip()
    caller = read_keys(file)[digest(key)]
    assert (caller.name, caller.tasks, caller.admin) == ("team", ("a", "b-*"), False)


def test_the_defaults_of_the_command_line_are_those_of_the_settings() -> None:
    from ptuning.serving.limits import HttpSettings
    from ptuning.serving.settings import Settings

    given = vars(parser().parse_args(["x"]))
    known = {**vars(Settings()), **vars(HttpSettings()), "max_queue_seconds": Settings().queue_seconds}
    assert {name: known[name] for name in given if name in known} == {
        name: value for name, value in given.items() if name in known
    }
