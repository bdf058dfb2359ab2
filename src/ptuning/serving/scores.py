"""From the logits of a row to labels and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ptuning.kinds import Answer
from ptuning.kinds.classification import sigmoid, softmax
from ptuning.serving.rows import Refusal, RowAnswer
from ptuning.task import Task

Function = Literal["softmax", "sigmoid", "none"]
"""What turns logits into scores, as in transformers' pipeline."""
NUMBER = "score"
"""The label of a task without labels, whose answer is a number."""


def answer_of(row: RowAnswer) -> Answer:
    """Label and probabilities, as the task's kind makes them; for a task without labels, its number."""
    return row.task.kind.answer(row.logits, row.task)


def names_of(task: Task) -> list[str]:
    """The labels as text, in the order of the logits."""
    return [str(label) for label in task.labels] or [NUMBER]


def scores_of(row: RowAnswer, function: Function | None = None) -> list[tuple[str, float]]:
    """Each label with its score, in the order of the logits.

    Args:
        function: What to apply to the logits, which are divided by the task's temperature first; ``none`` for
            the logits themselves; ``None`` for what the task was trained with: probabilities of classes, or
            the number of a regression.

    Raises:
        Refusal: 422 for a softmax or sigmoid of a number.
    """
    names = names_of(row.task)
    match function:
        case "none":
            return list(zip(names, row.logits, strict=True))
        case "softmax" | "sigmoid":
            if not row.task.labels:
                raise Refusal(
                    status=422,
                    kind="invalid",
                    message=f"function_to_apply: got {function!r}, but the task {row.name!r} has no labels "
                    "and answers with a number; leave it out",
                )
            logits = [each / row.task.temperature for each in row.logits]
            values = softmax(logits) if function == "softmax" else list(map(sigmoid, logits))
            return list(zip(names, values, strict=True))
    found = answer_of(row)
    if not found.probabilities:
        number: Any = found.label
        return [(NUMBER, float(number))]
    return [(str(label), value) for label, value in found.probabilities]


def best_first(scores: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The same by falling score; equal scores keep their order."""
    return sorted(scores, key=lambda each: -each[1])
