"""Tiny random adapters of every kind of task, what they answer offline, and the program that serves them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch

from ptuning import DeepPrompt, Predictor, PTuningModel, Task
from warm import Program, Programs

KINDS: Mapping[str, Task] = {
    "sentiment": Task(problem_type="single_label_classification", labels=("negative", "positive")),
    "topics": Task(problem_type="multi_label_classification", labels=("sport", "war", "art")),
    "similar": Task(problem_type="regression", pair=True, mean=2.0, scale=1.5),
    "same": Task(problem_type="single_label_classification", labels=(0, 1), pair=True),
}
TEXTS = ("a good film", "the parcel was late", "very bad food", "one two three")


def adapter(backbone: Path, folder: Path, task: Task, *, seed: int = 0, tokens: int = 4) -> Path:
    """Write a random adapter."""
    torch.manual_seed(seed)
    prompt = DeepPrompt(num_virtual_tokens=tokens)
    model = PTuningModel.from_backbone(str(backbone), prompt, task=task, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    model.save_pretrained(folder)
    return folder


def adapters(backbone: Path, folder: Path) -> Path:
    """A folder with one adapter of each kind."""
    for seed, (name, task) in enumerate(KINDS.items()):
        adapter(backbone, folder / name, task, seed=seed, tokens=3 + seed)
    return folder


def offline(folder: Path, texts: Any) -> list[dict[str, Any]]:
    """What ``Predictor`` says: labels, and probabilities that are not rounded."""
    model = PTuningModel.from_pretrained(str(folder), dtype=torch.float32)
    return [
        {"label": each.label, "probabilities": {str(name): value for name, value in each.probabilities}}
        for each in Predictor(model)(texts)
    ]


class Served:
    """A program that serves."""

    def __init__(self, program: Program, url: str, log: Path) -> None:
        self.program, self.url, self.log = program, url, log
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection(self.host, self.port, timeout=30)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()


@contextmanager
def serve(
    programs: Programs,
    place: Path,
    *arguments: object,
    port: int = 0,
    seconds: float = 120,
    env: dict[str, str] | None = None,
) -> Iterator[Served]:
    log = place / f"log-{time.monotonic_ns()}"
    argv = ["-m", "ptuning", "serve", *map(str, arguments), "--port", str(port), "--precision", "fp32"]
    with log.open("wb") as stream:
        program = programs.start(argv, stdout=stream, stderr=stream, env=env)
    try:
        ends = time.monotonic() + seconds
        while "ptuning: serving" not in log.read_text():
            assert program.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.02)
        url = next(
            line.split(" at ")[1]
            for line in log.read_text().splitlines()
            if line.startswith("ptuning: serving")
        )
        yield Served(program, url.strip(), log)
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
