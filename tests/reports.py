"""Scored rows of every kind of task, made up, as the report takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ptuning.report.data import Entry, ReportData, Rows
from ptuning.task import Task
from ptuning.training.metrics import Baseline

WORDS = ("the", "parcel", "was", "late", "and", "the", "refund", "never", "came", "good", "bad", "film")
HOSTILE = ("<script>alert(1)</script>", "$x^2$ & 'q\" -->", "图书\u202e‮", True)
"""Labels that must do nothing but be shown."""

SINGLE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def scored(kind: str, classes: int = 2, rows: int = 200, *, seed: int = 0, **task: Any) -> tuple[Task, Rows]:
    """A task and rows that a model gets right for the most part."""
    draw = np.random.default_rng(seed)
    if kind == NUMBER:
        made = Task(problem_type=kind, mean=2.5, scale=1.4, **task)
        targets = draw.uniform(0, 5, rows).round(1)
        logits = (targets + draw.normal(0, 0.6, rows))[:, None]
    else:
        labels = task.pop("labels", tuple(f"class {number}" for number in range(classes)))
        made, classes = Task(problem_type=kind, labels=labels, **task), len(labels)
        if kind == SEVERAL:
            targets = (draw.random((rows, classes)) < np.linspace(0.5, 0.1, classes)).astype(float)
            logits = (2 * targets - 1) * 1.5 + draw.normal(0, 1.5, (rows, classes))
        else:
            share = np.linspace(2, 1, classes)
            truth = draw.choice(classes, size=rows, p=share / share.sum())
            logits = draw.normal(0, 1, (rows, classes)) * 1.5
            logits[np.arange(rows), truth] += 3
            targets = truth.astype(float)
    texts = tuple((" ".join(draw.choice(WORDS, size=draw.integers(2, 40))),) for _ in range(rows))
    return made, with_metrics(
        made,
        Rows(
            split="test",
            logits=logits,
            targets=targets,
            lengths=tuple(len(text.split()) + 2 for (text,) in texts),
            metrics={},
            source="test.csv",
            numbers=tuple(range(2, rows + 2)),
            texts=texts,
        ),
    )


def with_metrics(task: Task, rows: Rows) -> Rows:
    """The rows with the metrics that ``ptuning evaluate`` would report."""
    logits = torch.from_numpy(rows.logits)
    targets = task.kind.as_targets(task.kind.as_labels(rows.targets), logits, task)
    loss = float(task.kind.loss(logits, targets, task, None))
    baseline = Baseline.of(rows.targets, task)
    return replace(
        rows,
        metrics={"loss": loss, **task.kind.measure(rows.logits, rows.targets, task)},
        baseline=baseline.measure(rows.targets, task),
    )


def history(metrics: dict[str, float], count: int = 5) -> tuple[dict[str, Any], ...]:
    """Evaluations that get better."""
    return tuple(
        {
            "epoch": float(number),
            "step": 10 * number,
            "train_loss": 1 / (1 + number),
            "metrics": {name: value * (number + 1) / count for name, value in metrics.items()},
        }
        for number in range(count)
    )


def report(kind: str, classes: int = 2, rows: int = 200, **options: Any) -> ReportData:
    """The data of a report; ``options`` are of :func:`scored`."""
    task, made = scored(kind, classes, rows, **options)
    return ReportData(
        name="adapter",
        task=task,
        splits=(made,),
        baseline_rule="always the same",
        history=history(dict(made.metrics)),
        averaged=(20, 40),
        facts={"backbone": "tiny", "digest": "0123456789ab"},
    )


def entry(name: str, kind: str, classes: int = 3, *, noise: float = 0.0, **options: Any) -> Entry:
    """One of several adapters on the same rows; ``noise`` makes it worse."""
    task, made = scored(kind, classes, **options)
    draw = np.random.default_rng(len(name))
    made = with_metrics(task, replace(made, logits=made.logits + draw.normal(0, noise, made.logits.shape)))
    return Entry(
        name=name,
        metrics={"test": made.metrics},
        baseline={"test": made.baseline},
        task=task,
        rows=made,
        history=history(dict(made.metrics)),
        averaged=(40,),
        facts={"backbone": "tiny", "seed": name},
    )
