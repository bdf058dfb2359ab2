"""Tasks and answers that are made up, for tests of the page."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.metrics import Metrics
from ptuning.serving.rows import Refusal, Row, RowAnswer, Timing
from ptuning.serving.settings import Settings
from ptuning.serving.tasks import ServedTask
from ptuning.task import Task
from serving_fake import each_row

HOSTILE = '<script>alert("label")</script>'
CARD = """---
license: unknown
---

# sentiment

A prompt of 8 virtual tokens, trained with ptuning.

| metric | test | baseline |
|---|---:|---:|
| accuracy | 0.9120 | 0.5100 |

## How to use

```python
print("<b>")
```

- <img src=x onerror=alert("card")> ![pixel](http://elsewhere.example/pixel.png)
- [link](https://example.org/) [bad](javascript:alert(1))
"""
METRICS = {
    "test": {"loss": 0.231, "accuracy": 0.912, "f1_macro": 0.905},
    "validation": {"loss": 0.244, "accuracy": 0.903},
    "baseline": {"loss": 0.693, "accuracy": 0.51},
    "baseline_rule": "always positive",
}


def served(name: str, task: Task, card: str = "", **facts: Any) -> ServedTask:
    digest = sha256(name.encode()).hexdigest()[:12]
    folder = Path("/adapters", name)
    values: dict[str, Any] = {"max_tokens": 120, "loaded_at": 1_796_000_000.0, "source": str(folder)}
    values["folder"] = folder
    return ServedTask(name=name, digest=digest, task=task, card=card, **{**values, **facts})


def some_tasks() -> list[ServedTask]:
    single, multi = "single_label_classification", "multi_label_classification"
    intents = tuple(f"intent {number:02}" for number in range(20))
    return [
        served(
            "sentiment",
            Task(problem_type=single, labels=("negative", "neutral", "positive")),
            CARD,
            metrics=METRICS,
            source="team/sentiment",
        ),
        served("emotions", Task(problem_type=multi, labels=("anger", "fear", "joy", "sadness", "surprise"))),
        served("stars", Task(problem_type="regression", mean=3.2, scale=1.1)),
        served("paraphrase", Task(problem_type=single, labels=("different", "the same"), pair=True)),
        served("intents", Task(problem_type=single, labels=intents)),
        served(
            "hostile",
            Task(problem_type=single, labels=(HOSTILE, "\u202eevil", "a'b\"c")),
            HOSTILE + "\n\n[x](javascript:alert(1))",
            metrics={HOSTILE: {HOSTILE: 0.5}},
        ),
    ]


@dataclass
class FakeTasks:
    tasks: list[ServedTask] = field(default_factory=some_tasks)
    failures: Mapping[str, str] = field(default_factory=dict)

    def all(self) -> list[ServedTask]:
        return sorted(self.tasks, key=lambda task: task.name)

    def get(self, name: str, visible: Callable[[str], bool] = lambda name: True) -> ServedTask:
        for task in self.tasks:
            if task.name == name and visible(name):
                return task
        raise Refusal(status=404, kind="unknown_task", message=f"no task {name!r}; did you mean 'sentiment'?")


@dataclass
class FakeService:
    """Logits follow from the text alone; a text with ``LONG`` is too long."""

    tasks: FakeTasks = field(default_factory=FakeTasks)
    refuse: Refusal | None = None
    asked: list[tuple[list[Row], str]] = field(default_factory=list)
    seconds: float = 0.0
    settings: Settings = field(default_factory=Settings)
    metrics: Metrics = field(default_factory=Metrics)
    cancelled: int = 0
    ready: bool = True
    draining: bool = False
    failed: bool = False
    logits: Callable[[Task, str], tuple[float, ...]] = field(default=lambda *given: fake_logits(*given))

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def answer(
        self,
        rows: Sequence[Row],
        *,
        truncate: bool = True,
        timeout: float | None = None,
        caller: str = "",
        visible: Callable[[str], bool] = lambda name: True,
    ) -> tuple[list[RowAnswer | Refusal], Timing]:
        self.asked.append((list(rows), caller))
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refuse is not None:
            raise self.refuse
        found = each_row(self.tasks, rows, visible, partial(self._answer, truncate))
        return found, Timing(tokenise=0.0004, queue=0.0, inference=0.0123)

    def _answer(self, truncate: bool, row: Row, task: ServedTask) -> RowAnswer | Refusal:
        if not row.text.strip():
            return Refusal(status=422, kind="empty", message="the text is empty")
        if (row.text_pair is not None) != task.task.pair:
            return Refusal(status=422, kind="pair", message="one text or two")
        long = "LONG" in row.text
        if long and not truncate:
            return Refusal(status=422, kind="too_long", message="the text has 200 tokens; at most 120 fit")
        return RowAnswer(
            name=row.task,
            digest=task.digest,
            task=task.task,
            logits=self.logits(task.task, row.text + (row.text_pair or "")),
            tokens=120 if long else len(row.text.split()) + 2,
            truncated=long,
        )


@contextmanager
def page_client(service: Any, keys: Keys | None = None) -> Iterator[TestClient]:
    """A client of a server with this service, which does not follow redirects."""
    with TestClient(make_app(service, keys or Keys()), follow_redirects=False) as made:
        yield made


def fake_logits(task: Task, text: str) -> tuple[float, ...]:
    if not task.labels:
        return (task.mean + task.scale * math.sin(len(text)),)
    seeds = (sha256(f"{label}{text}".encode()).digest()[0] for label in task.labels)
    return tuple(seed / 32 - 4 for seed in seeds)


PART = {"HX-Request": "true"}
"""The header with which htmx asks for a part of the page."""


class Parsed(HTMLParser):
    """The tags with their attributes, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def text_of(response: Any) -> str:
    return Parsed(response.text).text
