"""Predictions: a window of examples at a time, each window in batches of similar length, order kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ptuning.data import Example, stream_examples
from ptuning.data.memory import is_table, texts_of
from ptuning.data.places import shortened
from ptuning.data.tokens import Tokenise, TokenRow, TooLong
from ptuning.errors import ConfigError, DataError, UserError
from ptuning.inference.blank import refuse_blank
from ptuning.inference.evaluate import BATCH_TOKENS, check_finite, logits_of, prepared
from ptuning.model.ptuning import PTuningModel
from ptuning.peft import PeftModel
from ptuning.task import Label

CHARACTERS = 1 << 20
"""Of all texts of a window: with longer ones it has fewer rows, so that memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one row.

    Attributes:
        row: The row's number in its source.
        label: The likeliest class; a tuple of labels above one half for several labels; the value,
            in the target's unit, for a regression.
        probabilities: By class, in the task's order; empty for a regression.
        kept: The example's :attr:`~ptuning.data.Example.kept`: columns that were to be carried through.
    """

    row: int
    label: Label | tuple[Label, ...]
    probabilities: tuple[tuple[Label, float], ...] = ()
    kept: Mapping[str, Any] | None = field(default=None, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """``{"label": …, "probabilities": {…}}``, ready for JSON; a regression's is ``{"value": …}``."""
        if not self.probabilities:
            return {"value": self.label}
        return {
            "label": list(self.label) if isinstance(self.label, tuple) else self.label,
            "probabilities": {str(name): round(value, 6) for name, value in self.probabilities},
        }


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model, ready to be asked.

    Args:
        model: A trained model; of a ``PeftModel``, the active adapter.
        batch_size: The most rows that go through the backbone together, if the budget allows more.
        batch_tokens: The budget: the most places that go through it together, padding included.
        window: Rows held in memory at once, fewer where they are long; sorted by length among themselves.
        too_long: Cut a text that does not fit, or refuse it, naming the row.
    """

    model: PTuningModel = field(kw_only=False)
    batch_size: int | None = None
    batch_tokens: int = BATCH_TOKENS
    window: int = 1024
    too_long: TooLong = "truncate"

    def __post_init__(self) -> None:
        given: object = self.model
        if isinstance(given, PeftModel):
            object.__setattr__(self, "model", given.active)
        elif not isinstance(given, PTuningModel):
            raise ConfigError(
                f"model: got the {type(given).__name__} {shortened(given)}, expected a PTuningModel; of a "
                "folder or Hub id, PTuningModel.from_pretrained(…)"
            )
        for name in ("batch_size", "batch_tokens", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: got {value}, expected at least 1")

    def __call__(self, texts: Any) -> list[Prediction]:
        """Classify a text, or texts, or pairs of texts.

        Args:
            texts: A string; strings, or pairs of strings, in a list, a series or an array; or a table whose
                columns are known by their names: a data frame, a ``datasets.Dataset``, a list of mappings.

        Raises:
            ConfigError: what is none of these, or pairs for a task of single texts and the other way round.
            DataError: a text that is blank, or that is too long where that is refused.
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
                raise DataError(f"{error}; or pass the column of texts alone") from None
        elif (column := texts_of(texts)) is not None:
            texts = column
        if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
            raise ConfigError(
                f"the texts are a {type(texts).__name__}, expected a string or a list of strings (of pairs "
                "of strings, for a task of pairs), or a table with a column of texts"
            )
        return [_example(number, text) for number, text in enumerate(texts, start=1)]

    def stream(self, examples: Iterable[Example | None]) -> Iterator[Prediction]:
        """Predictions in the order of ``examples``, of which ``window`` are held at a time.

        Args:
            examples: ``None`` among them means that the next one may take its time: what is held is answered
                (:func:`~ptuning.inference.arriving.arriving`).

        Raises:
            DataError: as of a call, and what reading ``examples`` raises; the rows before are answered first.
        """
        tokenise = Tokenise.for_model(self.model, self.too_long)
        prompt = prepared(self.model)  # once for the task, however long the stream
        for part in self._windows(examples):
            rows, refused = self._rows(tokenise, part)
            logits = logits_of(
                self.model,
                rows,
                batch_size=self.batch_size,
                batch_tokens=self.batch_tokens,
                prompt=prompt,
            )
            check_finite(logits, [example.place for example in part].__getitem__)
            yield from map(self._prediction, part, logits)
            if refused is not None:
                raise refused

    def _windows(self, examples: Iterable[Example | None]) -> Iterator[list[Example]]:
        """``examples`` as many at a time as are held, and what is held before an error of reading ends it."""
        part: list[Example] = []
        characters = 0
        left = iter(examples)
        while True:
            try:
                example = next(left)
            except StopIteration:
                break
            except Exception:
                if part:
                    yield part
                raise
            if example is not None:
                part.append(example)
                characters += len(example.text) + len(example.text_b or "")
            if part and (example is None or len(part) == self.window or characters >= CHARACTERS):
                yield part
                part, characters = [], 0
        if part:
            yield part

    def _rows(self, tokenise: Tokenise, part: Sequence[Example]) -> tuple[list[TokenRow], UserError | None]:
        """The tokens of ``part``; of those before the first that cannot be answered, and why it cannot."""
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
            if (example.text_b is not None) != self.model.task.pair:
                got, trained = (
                    ("one text", "pairs") if self.model.task.pair else ("two texts", "single texts")
                )
                raise ConfigError(f"{example.place}: got {got}, but this task was trained on {trained}")

    def _prediction(self, example: Example, logits: torch.Tensor) -> Prediction:
        task, row, kept = self.model.task, example.row, example.kept
        label, probabilities = task.kind.answer(logits, task)
        return Prediction(row=row, label=label, probabilities=probabilities, kept=kept)


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(text, str) for text in given)


def _example(number: int, given: Any) -> Example:
    """A text or a pair, as a user hands it over."""
    match given.tolist() if hasattr(given, "tolist") else given:
        case str() as text:
            found = Example(row=number, text=text)
        case (str() as text, str() as text_b):
            found = Example(row=number, text=text, text_b=text_b)
        case _:
            raise ConfigError(f"text {number} is {shortened(given)}, expected a string or a pair of strings")
    refuse_blank(f"text {number}", found.text, found.text_b)
    return found
