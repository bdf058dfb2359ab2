"""Predictions, in windows of examples, each in batches of similar length; the order is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch

from ptuning.data import Example, stream_examples
from ptuning.data.memory import is_table, texts_of
from ptuning.data.options import TooLong
from ptuning.data.places import shortened
from ptuning.data.tokens import Tokenise, TokenRow
from ptuning.errors import ConfigError, DataError, UserError
from ptuning.inference.abstaining import certainty, check_abstain_below
from ptuning.inference.blank import refuse_blank
from ptuning.inference.evaluate import BATCH_TOKENS, check_finite, logits_of, prepared
from ptuning.inference.windows import windows
from ptuning.model.ptuning import PTuningModel
from ptuning.peft import PeftModel
from ptuning.progress import counted
from ptuning.task import Label, Task


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one row.

    Attributes:
        row: The number of the row in its source.
        label: The most likely class; for multi-label, a tuple of the labels with a probability above their
            threshold (0.5 unless the task has others); for regression, the value in the target's unit;
            ``None`` if the model abstained.
        probabilities: The probability of each class, in the task's order; empty for regression.
        kept: The example's :attr:`~ptuning.data.Example.kept`: additional columns of the row.
        task: The name of the row's task, if it was predicted among rows of several tasks.
        abstained: Whether the answer was too uncertain; ``None`` if abstaining was not asked for.
    """

    row: int
    label: Label | tuple[Label, ...] | None
    probabilities: tuple[tuple[Label, float], ...] = ()
    kept: Mapping[str, Any] | None = field(default=None, hash=False)
    task: str | None = None
    abstained: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """``{"label": …, "probabilities": {…}}``, ready for JSON; a regression's is ``{"value": …}``. With
        ``"abstained"`` if abstaining was asked for.
        """
        if not self.probabilities:
            return {"value": self.label}
        return {
            "label": list(self.label) if isinstance(self.label, tuple) else self.label,
            **({} if self.abstained is None else {"abstained": self.abstained}),
            "probabilities": {str(name): round(value, 6) for name, value in self.probabilities},
        }


def prediction_of(
    row: int,
    logits: Sequence[float],
    task: Task,
    *,
    kept: Mapping[str, Any] | None = None,
    name: str | None = None,
    abstain_below: float | None = None,
) -> Prediction:
    """The prediction for one row, from its logits ``[C]``.

    Args:
        row: The number of the row in its source.
        kept: See :class:`Prediction`.
        name: The name of the row's task, if it is one of several.
        abstain_below: Abstain if the answer is less certain than this: see :class:`Predictor`.

    Raises:
        ConfigError: ``abstain_below`` for a task without probabilities.
    """
    answer = task.kind.answer(logits, task)
    label: Label | tuple[Label, ...] | None = answer.label
    abstained = None if abstain_below is None else certainty(answer, task, name) < abstain_below
    return Prediction(
        row=row,
        label=None if abstained else label,
        probabilities=answer.probabilities,
        kept=kept,
        task=name,
        abstained=abstained,
    )


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Makes predictions with a trained model.

    Args:
        model: A trained model. For a ``PeftModel``, the active adapter is used.
        batch_size: Maximum rows per batch; ``None`` for as many as ``batch_tokens`` allows.
        batch_tokens: Maximum tokens per batch, padding included.
        window: Maximum rows in memory at once, fewer if they are long; they are sorted by length.
        too_long: Whether to truncate a text that does not fit, to refuse it with an error, or to read it in
            windows; by default as in training.
        progress: Whether to show a progress bar, if this is a terminal or a notebook.
        abstain_below: Give no label to rows whose most likely class has a lower probability than this, from
            0 to 1. A task with several labels answers yes or no for each, and all of these answers must be at
            least so probable. Not for a regression.
    """

    model: PTuningModel = field(kw_only=False)
    batch_size: int | None = None
    batch_tokens: int = BATCH_TOKENS
    window: int = 1024
    too_long: TooLong | None = None
    progress: bool = False
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        given: object = self.model
        if isinstance(given, PeftModel):
            object.__setattr__(self, "model", given.active)
        elif not isinstance(given, PTuningModel):
            raise ConfigError(
                "model",
                got=f"the {type(given).__name__} {shortened(given)}",
                expected="a PTuningModel",
                remedy="load a folder or Hub id with PTuningModel.from_pretrained(…)",
            )
        for name in ("batch_size", "batch_tokens", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, got=value, expected="at least 1")
        check_abstain_below(self.abstain_below, self.model.task)

    def __call__(self, texts: Any) -> list[Prediction]:
        """Classify a text, or texts, or pairs of texts.

        Args:
            texts: A string; a list, series or array of strings or of pairs of strings; or a table with named
                columns: a data frame, a ``datasets.Dataset``, a list of mappings.

        Raises:
            ConfigError: any other input, or pairs for a single-text task and the other way round.
            DataError: a blank text, or, with ``too_long="error"``, one that is too long.
            TrainingDiverged: logits that are not finite.
        """
        return list(self.stream(self._examples(texts)))

    def _examples(self, texts: Any) -> Iterable[Example]:
        if isinstance(texts, str) or (self.model.task.pair and _is_pair(texts)):
            texts = [texts]
        elif is_table(texts):
            try:
                return stream_examples(texts, pair=self.model.task.pair).examples
            except DataError as error:
                remedy = "; ".join(filter(None, (error.remedy, "or pass only the column of texts")))
                raise DataError(
                    error.problem, got=error.got, expected=error.expected, remedy=remedy
                ) from None
        elif (column := texts_of(texts)) is not None:
            texts = column
        if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
            raise ConfigError(
                "texts",
                got=f"a {type(texts).__name__}",
                expected="a string or a list of strings (of pairs of strings, for a pair task), or a table "
                "with a column of texts",
            )
        return [example_of(number, text) for number, text in enumerate(texts, start=1)]

    def stream(self, examples: Iterable[Example | None]) -> Iterator[Prediction]:
        """Predictions in the order of ``examples``, with up to ``window`` of them in memory.

        Args:
            examples: The examples. ``None`` among them means that the next one may be slow: predictions for
                the earlier ones are made right away (:func:`~ptuning.inference.read_ahead.read_ahead`).

        Raises:
            DataError: as for a call; errors from ``examples`` are raised after the predictions for the rows
                before them.
        """
        found = self._predictions(examples)
        if not self.progress:
            return found
        return counted(found, "predicting", examples if isinstance(examples, Sized) else None)

    def _predictions(self, examples: Iterable[Example | None]) -> Iterator[Prediction]:
        for part, logits in self.logits(examples):
            yield from map(self._prediction, part, logits)

    def logits(self, examples: Iterable[Example | None]) -> Iterator[tuple[Sequence[Example], torch.Tensor]]:
        """The examples of a window, and their logits ``[N, C]`` in fp32 on the CPU, window by window.

        Args and errors are those of :meth:`stream`.
        """
        tokenise = Tokenise.for_model(self.model, self.too_long)
        prompt = prepared(self.model)  # once for all rows
        for part in windows(examples, self.window, lambda each: each.characters):
            rows, refused = self._rows(tokenise, part)
            logits = logits_of(
                self.model,
                rows,
                batch_size=self.batch_size,
                batch_tokens=self.batch_tokens,
                prompt=prompt,
            )
            check_finite(logits, [example.place for example in part].__getitem__)
            yield part[: len(rows)], logits
            if refused is not None:
                raise refused

    def refusal(self, example: Example) -> UserError | None:
        """Why an example cannot be answered, or ``None``."""
        _, refused = self._rows(Tokenise.for_model(self.model, self.too_long), [example])
        return refused

    def _rows(self, tokenise: Tokenise, part: Sequence[Example]) -> tuple[list[TokenRow], UserError | None]:
        """The tokens of ``part`` up to the first invalid row, and the error for that row."""
        try:
            self._check(part)
            return tokenise(part), None
        except UserError:
            found: list[TokenRow] = []
            for example in part:
                try:
                    self._check([example])
                    found += tokenise([example])
                except UserError as error:
                    return found, error
            raise

    def _check(self, examples: Sequence[Example]) -> None:
        for example in examples:
            refuse_wrong_number(example, self.model.task)

    def _prediction(self, example: Example, logits: torch.Tensor) -> Prediction:
        return prediction_of(
            example.row,
            logits.tolist(),
            self.model.task,
            kept=example.kept,
            abstain_below=self.abstain_below,
        )


def refuse_wrong_number(example: Example, task: Task) -> None:
    """Refuse a pair for a task with single texts, and the other way round.

    Raises:
        ConfigError: names the row.
    """
    if (example.text_b is not None) == task.pair:
        return
    got, wanted = ("one text", "two texts") if task.pair else ("two texts", "one text")
    raise ConfigError(example.place, got=got, expected=f"{wanted}, as in training")


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(text, str) for text in given)


def example_of(number: int, given: Any) -> Example:
    """A text or a pair of texts as an example.

    Raises:
        ConfigError: neither.
        DataError: a blank text.
    """
    match given.tolist() if hasattr(given, "tolist") else given:
        case str() as text:
            found = Example(row=number, text=text)
        case (str() as text, str() as text_b):
            found = Example(row=number, text=text, text_b=text_b)
        case _:
            raise ConfigError(
                f"text {number}", got=shortened(given), expected="a string or a pair of strings"
            )
    refuse_blank(f"text {number}", found.text, found.text_b)
    return found
