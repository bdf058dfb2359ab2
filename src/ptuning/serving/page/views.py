"""What the page's templates show of an answer: plain text and shares, ready to print."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ptuning.inference.predictor import Prediction, prediction_of
from ptuning.kinds import LabelForm
from ptuning.serving.rows import Refusal, RowAnswer, Timing
from ptuning.serving.scores import answer_of
from ptuning.task import Label, Task
from ptuning.visible import visible

SHOWN_BARS = 8
"""Bars that are shown at once; the other labels are one click away."""

_TITLES = {
    400: "This form cannot be read",
    401: "This key is not accepted",
    403: "This is not allowed",
    404: "This task is not here",
    408: "This took too long to arrive",
    413: "This is too much at once",
    422: "This cannot be answered",
    429: "The server is busy",
    503: "The server cannot answer now",
    504: "This took too long",
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One label.

    Attributes:
        share: Its probability, from 0 to 1.
        chosen: Whether it is part of the answer.
        threshold: Of several labels, the probability above which it is.
    """

    label: str
    share: float
    chosen: bool
    threshold: float = 0.5

    @property
    def percent(self) -> str:
        """The probability in words that never round to 0 or 100 %: ``97.2 %``, ``< 0.1 %``."""
        if 0 < self.share < 0.0005:
            return "< 0.1 %"
        if 0.9995 <= self.share < 1:
            return "> 99.9 %"
        return f"{self.share:.1%}".replace("%", " %")

    @property
    def width(self) -> str:
        """The length of the bar, in percent."""
        return f"{100 * self.share:.2f}%"

    @property
    def line(self) -> str:
        """Where the threshold is, in percent."""
        return f"{100 * self.threshold:.4g}%"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a number is among the training targets: their mean and standard deviations.

    Attributes:
        place: From 0, two standard deviations below the mean, to 1, two above; numbers outside are at the
            ends.
    """

    place: float
    low: str
    mean: str
    high: str

    @property
    def x(self) -> str:
        return f"{100 * self.place:.2f}%"


@dataclass(frozen=True, kw_only=True)
class AnswerView:
    """One answer.

    Attributes:
        headline: The label, the labels, or the number.
        sure: The probability of the headline; empty for several labels and for numbers.
        bars: The labels, most likely first; empty for numbers.
        several: Whether each label has its own yes or no, at its threshold.
        mark: For a number.
        score: For sorting by certainty, from 0 to 1; ``None`` for numbers.
    """

    name: str
    digest: str
    headline: str
    sure: str
    bars: tuple[Bar, ...]
    several: bool
    mark: Mark | None
    score: float | None
    tokens: int
    truncated: bool

    @property
    def is_number(self) -> bool:
        return not self.bars


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A refusal in plain words."""

    title: str
    message: str
    name: str = ""
    retry_after: int | None = None


def prediction(row: int, answer: RowAnswer, kept: dict[str, object] | None = None) -> Prediction:
    """The answer as :class:`~ptuning.Predictor` would give it."""
    return prediction_of(row, answer.logits, answer.task, kept=kept)


def answer_view(answer: RowAnswer) -> AnswerView:
    """One answer as the templates show it."""
    task, found = answer.task, answer_of(answer)
    chosen = found.label if isinstance(found.label, tuple) else (found.label,)
    thresholds = task.thresholds or (0.5,) * len(found.probabilities)
    bars = tuple(
        Bar(label=shown(label), share=share, chosen=label in chosen, threshold=threshold)
        for (label, share), threshold in sorted(
            zip(found.probabilities, thresholds, strict=True),
            key=lambda each: -each[0][1],
        )
    )
    several = task.kind.form is LabelForm.SEVERAL
    mark, headline, sure, score = None, ", ".join(map(shown, chosen)), "", None
    if not bars and isinstance(found.label, float):
        headline, mark = number(found.label, task.scale), _mark(found.label, task)
    elif several:
        headline = headline or "none of the labels"
        score = task.kind.confidence(found, task)
    else:
        sure, score = bars[0].percent, bars[0].share
    return AnswerView(
        name=answer.name,
        digest=answer.digest,
        headline=headline,
        sure=sure,
        bars=bars,
        several=several,
        mark=mark,
        score=score,
        tokens=answer.tokens,
        truncated=answer.truncated,
    )


def trouble(refusal: Refusal, name: str = "") -> Trouble:
    """A refusal in plain words; ``name`` is the task's, in a list of many."""
    after = None if refusal.retry_after is None else max(1, math.ceil(refusal.retry_after))
    title = _TITLES.get(refusal.status, "This did not work")
    message = visible(refusal.message)
    return Trouble(title=title, message=message[:1].upper() + message[1:], name=name, retry_after=after)


def answer_or_trouble(name: str, found: RowAnswer | Refusal) -> AnswerView | Trouble:
    """What became of one row."""
    return trouble(found, name) if isinstance(found, Refusal) else answer_view(found)


def shown(label: Label) -> str:
    """A label as text in one line, with invisible characters as escape codes."""
    return visible(label if isinstance(label, str) else json.dumps(label))


def number(value: float, scale: float) -> str:
    """A number to about a hundredth of the spread of the training targets."""
    if not math.isfinite(value):
        return str(value)
    digits = 2 - math.floor(math.log10(scale)) if 0 < scale < math.inf else 3
    if digits > 9 or abs(value) >= 1e15:
        return f"{value:.4g}"
    return f"{value:,.{max(0, min(digits, 9))}f}"


def _mark(value: float, task: Task) -> Mark:
    low, high = task.mean - 2 * task.scale, task.mean + 2 * task.scale
    place = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5
    return Mark(
        place=place,
        low=number(low, task.scale),
        mean=number(task.mean, task.scale),
        high=number(high, task.scale),
    )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Many answers in short.

    Attributes:
        shares: The label or labels of the answers, most frequent first, as bars.
        mean: The mean of the numbers, for a regression.
    """

    answered: int
    refused: int
    tokens: int
    truncated: int
    shares: tuple[Bar, ...] = ()
    mean: str = ""


def totals(answers: Sequence[RowAnswer | Refusal]) -> Totals:
    """The totals of many rows of one task."""
    good = [each for each in answers if isinstance(each, RowAnswer)]
    labels: Counter[str] = Counter()
    numbers: list[float] = []
    for answer in good:
        label = answer_of(answer).label
        if answer.task.is_regression:
            numbers.append(answer.logits[0])
        else:
            labels.update(map(shown, label if isinstance(label, tuple) else (label,)))
    return Totals(
        answered=len(good),
        refused=len(answers) - len(good),
        tokens=sum(answer.tokens for answer in good),
        truncated=sum(answer.truncated for answer in good),
        shares=tuple(
            Bar(label=label, share=count / len(good), chosen=True) for label, count in labels.most_common()
        ),
        mean=number(math.fsum(numbers) / len(numbers), good[0].task.scale) if numbers else "",
    )


def stages(timing: Timing) -> tuple[tuple[str, str], ...]:
    """Milliseconds by stage."""
    named = (("tokenise", timing.tokenise), ("queue", timing.queue), ("model", timing.inference))
    return tuple((name, _milliseconds(seconds)) for name, seconds in named)


def together(timings: Sequence[Timing]) -> Timing:
    """The time of requests that were made one after another."""
    return Timing(
        tokenise=sum(each.tokenise for each in timings),
        queue=sum(each.queue for each in timings),
        inference=sum(each.inference for each in timings),
    )


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"
