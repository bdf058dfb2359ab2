"""Predictions for rows of many tasks, each row for its own, in shared batches."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ptuning.data import Example
from ptuning.data.options import TooLong
from ptuning.data.places import shortened
from ptuning.data.tokens import Tokenise, TokenRow, collate, sorted_batches, windows_of
from ptuning.errors import ConfigError, PTuningError, TrainingDiverged, UserError
from ptuning.inference.abstaining import check_abstain_below
from ptuning.inference.evaluate import BATCH_TOKENS
from ptuning.inference.predictor import Prediction, example_of, prediction_of, refuse_wrong_number
from ptuning.inference.windows import windows
from ptuning.model import mixed
from ptuning.model.backbone import Backbone
from ptuning.model.batch import Batch
from ptuning.model.packed import PackedTask
from ptuning.model.table import TaskTable
from ptuning.model.windows import mean_of_windows


def mixed_logits(
    backbone: Backbone, rows: Sequence[TokenRow], tasks: Sequence[PackedTask], *, pad_id: int = 0
) -> list[Tensor]:
    """Each row's logits, ``[C]`` of its task in fp32 on the CPU: one batch, one pass per different key.

    Args:
        backbone: The tasks' backbone.
        rows: Of :class:`~ptuning.data.tokens.Tokenise`, each made for its task. Each is one window.
        tasks: The task of each row.
        pad_id: Any token; padding is masked.
    """
    inputs = {name: value.to(backbone.device) for name, value in collate(rows, pad_id).items()}
    inputs.pop("labels", None)
    with torch.inference_mode():
        found = mixed.mixed_logits(backbone, Batch(**inputs), tasks)
        if backbone.device.type == "cpu":
            return found
        together = torch.cat(found).cpu()  # one transfer
    return list(together.split([len(each) for each in found]))


@dataclass(frozen=True, kw_only=True)
class MultiPredictor:
    """Makes predictions for rows of different tasks on one backbone.

    In fp32 each is the one that its task's :class:`~ptuning.inference.predictor.Predictor` makes, to 1e-5. In
    half precision the rows of a batch move each other's logits by its rounding, as they do in a batch of one
    task.

    Args:
        table: The tasks.
        tokenizer: The backbone's.
        batch_size: Maximum rows per batch; ``None`` for as many as ``batch_tokens`` allows.
        batch_tokens: Maximum tokens per batch, padding included.
        window: Maximum rows in memory at once, fewer if they are long; they are sorted by length. Rows are
            also answered in parts if all of their tasks together exceed the table's memory limit.
        too_long: Whether to truncate a text that does not fit, to refuse it with an error, or to read it in
            windows; by default as in training.
        abstain_below: As :class:`~ptuning.inference.predictor.Predictor` takes it. The row of a task without
            probabilities, a regression's, is then an error.
    """

    table: TaskTable = field(kw_only=False)
    tokenizer: PreTrainedTokenizerBase = field(kw_only=False)
    batch_size: int | None = None
    batch_tokens: int = BATCH_TOKENS
    window: int = 1024
    too_long: TooLong | None = None
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_tokens", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, got=value, expected="at least 1")
        check_abstain_below(self.abstain_below)

    @overload
    def predict(
        self, rows: Sequence[Any], tasks: Sequence[str], *, errors: Literal["raise"] = "raise"
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, rows: Sequence[Any], tasks: Sequence[str], *, errors: Literal["return"]
    ) -> list[Prediction | PTuningError]: ...

    def predict(
        self, rows: Sequence[Any], tasks: Sequence[str], *, errors: Literal["raise", "return"] = "raise"
    ) -> Sequence[Prediction | PTuningError]:
        """Predictions in the order of ``rows``.

        Args:
            rows: Texts, or pairs of texts, as the task of each row needs them.
            tasks: The name of each row's task.
            errors: ``return`` to have a row's error in place of its prediction; the other rows are answered.

        Raises:
            ConfigError: not one task for each row.
            PTuningError: the first row's error: an unknown task, a blank text, a pair for a single-text task,
                logits that are not finite.
        """
        if isinstance(rows, str) or len(rows) != len(tasks):
            raise ConfigError(
                "tasks", got=f"{len(tasks)} names", expected=f"one for each of {len(rows)} rows"
            )
        found: list[Prediction | PTuningError] = []
        numbered = zip(range(1, len(rows) + 1), rows, tasks, strict=True)
        for answer in self.stream(_examples(numbered)):
            if errors == "raise" and isinstance(answer, PTuningError):
                raise answer
            found.append(answer)
        return found

    def stream(
        self, rows: Iterable[tuple[Example | PTuningError, str] | None]
    ) -> Iterator[Prediction | PTuningError]:
        """Predictions, or the errors of single rows, in the order of ``rows``, ``window`` rows at a time.

        Args:
            rows: Each with its task's name; an error in place of a row is passed on. ``None`` among them
                means that the next one may be slow: the earlier ones are answered right away. An error that
                is raised while reading them is raised here, after the answers for the rows before it.
        """
        for part in windows(rows, self.window, _characters):
            yield from self._window(part)

    def _window(
        self, part: Sequence[tuple[Example | PTuningError, str]]
    ) -> Iterator[Prediction | PTuningError]:
        found: list[Prediction | PTuningError | None] = [None] * len(part)
        tasks: dict[str, PackedTask] = {}  # one version of each, however often it is moved out meanwhile
        nbytes = 0  # of these tasks
        ready: list[_Ready] = []
        for place, (example, name) in enumerate(part):
            try:
                if isinstance(example, PTuningError):
                    raise example
                if name not in tasks:
                    task = self._task(example, name)
                    if tasks and nbytes + task.nbytes > (self.table.memory_limit or math.inf):
                        self._answer(ready, found)
                        tasks, ready, nbytes = {}, [], 0
                    tasks[name] = task
                    nbytes += task.nbytes
                refuse_wrong_number(example, tasks[name].task)
                ready.append(_Ready(place=place, example=example, task=tasks[name]))
            except PTuningError as error:
                found[place] = error
        self._answer(ready, found)
        yield from filter(None, found)  # each has one by now

    def _answer(self, given: Sequence[_Ready], found: list[Prediction | PTuningError | None]) -> None:
        """Put the answers of rows into their places."""
        alike: dict[tuple[Tokenise, bool], list[_Ready]] = {}  # rows that are tokenised in the same way
        for ready in given:
            try:
                key = Tokenise.for_task(ready.task, self.tokenizer, self.table.backbone, self.too_long)
                alike.setdefault((key, ready.task.task.pair), []).append(ready)
            except PTuningError as error:
                found[ready.place] = error
        rows: list[_Ready] = []
        for (tokenise, _), group in alike.items():
            try:
                for ready, row in zip(group, tokenise([each.example for each in group]), strict=True):
                    ready.row = row
            except UserError:  # one of them cannot be tokenised: find out which
                for ready in group:
                    try:
                        (ready.row,) = tokenise([ready.example])
                    except UserError as error:
                        found[ready.place] = error
            rows += (ready for ready in group if ready.row is not None)
        for answered in self._answered(rows):
            found[answered.place] = answered.prediction(self.abstain_below)

    def _task(self, example: Example, name: str) -> PackedTask:
        try:
            return self.table[name]
        except KeyError:
            raise ConfigError(
                f"{example.place}: the task",
                got=repr(name),
                expected=f"one of {shortened(', '.join(self.table.names))}",
            ) from None

    def _answered(self, ready: Sequence[_Ready]) -> Iterator[_Ready]:
        pad_id = int(self.tokenizer.pad_token_id or 0)
        by_key: dict[Hashable, list[tuple[_Ready, int, TokenRow]]] = {}
        for each in ready:
            assert each.row is not None
            windows = windows_of([each.row])
            each.windows = [torch.empty(0)] * len(windows)
            for number, window in enumerate(windows):
                by_key.setdefault(each.task.key, []).append((each, number, window))
        for group in by_key.values():
            lengths = [len(row) + each.task.inserted_tokens for each, _, row in group]
            for batch in sorted_batches(lengths, self.batch_size, self.batch_tokens):
                rows, tasks = [group[i][2] for i in batch], [group[i][0].task for i in batch]
                found = mixed_logits(self.table.backbone, rows, tasks, pad_id=pad_id)
                for i, logits in zip(batch, found, strict=True):
                    each, number, _ = group[i]
                    each.windows[number] = logits
        yield from ready


@dataclass(kw_only=True)
class _Ready:
    """A row on its way to an answer."""

    place: int
    example: Example
    task: PackedTask
    row: TokenRow | None = None
    windows: list[Tensor] = field(default_factory=list)

    def prediction(self, abstain_below: float | None) -> Prediction | PTuningError:
        (logits,) = mean_of_windows(torch.stack(self.windows), [len(self.windows)])
        if not bool(logits.isfinite().all()):
            return TrainingDiverged(
                f"{self.example.place}: the logits of the task {self.task.name!r} are not finite",
                remedy="train its adapter again with a lower learning rate, or try precision fp32",
            )
        try:
            return prediction_of(
                self.example.row,
                logits.tolist(),
                self.task.task,
                kept=self.example.kept,
                name=self.task.name,
                abstain_below=abstain_below,
            )
        except ConfigError as error:  # a task without probabilities
            return error


def _characters(row: tuple[Example | PTuningError, str]) -> int:
    return row[0].characters if isinstance(row[0], Example) else 0


def _examples(rows: Iterable[tuple[int, Any, str]]) -> Iterator[tuple[Example | PTuningError, str]]:
    for number, given, task in rows:
        try:
            yield example_of(number, given), task
        except UserError as error:
            yield error, task
