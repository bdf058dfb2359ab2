"""Texts to token ids, and token ids to padded batches.

Truncation shortens the longest text first and never the prompt: the limit
(``PTuningModel.max_text_tokens``) already excludes the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ptuning.data.examples import Example
from ptuning.data.options import WINDOWS, TooLong
from ptuning.data.text_windows import Windows, windows_in
from ptuning.errors import ConfigError, DataError
from ptuning.model.backbone import Backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.task import OVERLAP, Task
from ptuning.threads import TOKENIZER

_DROPPED = "the tokenizer leaves no token"

LONG = 1 << 15
"""Texts of up to so many characters are tokenised completely, even if they are truncated."""
LARGEST = 1 << 22
"""Of a longer text, only so many characters are tokenised; each takes hundreds of bytes."""
_TOGETHER = 1024
"""Windows whose rows are tokenised at the same time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One tokenised row: the model's input without padding, with segments and label.

    Attributes:
        more: The other windows of a text that is too long; the first one is this row itself, as if the text
            were cut. A window has no label of its own.
        cut: Whether tokens were left out of a row that is read in windows.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None
    segment_ids: list[int] | None
    label: Any = None
    more: tuple[TokenRow, ...] = ()
    cut: bool = False

    def __len__(self) -> int:
        """The tokens of the first window, which is a longest one."""
        return len(self.input_ids)

    @property
    def windows(self) -> tuple[TokenRow, ...]:
        """All windows in order."""
        return (self, *self.more)

    def places(self, inserted: int = 0) -> int:
        """The places in a padded batch: its windows times the longest.

        Args:
            inserted: Tokens that an input prompt adds to each window.
        """
        return (len(self) + inserted) * (1 + len(self.more))


class TextLimits(Protocol):
    """What a task says about its texts; see :class:`~ptuning.model.ptuning.PTuningModel`."""

    @property
    def task(self) -> Task: ...
    @property
    def max_text_tokens(self) -> int | None: ...
    @property
    def inserted_tokens(self) -> int: ...
    @property
    def needs_segments(self) -> bool: ...
    @property
    def wanted_texts(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Tokenise:
    """Turns the texts of one model into rows of token ids.

    Args:
        tokenizer: The tokenizer of the backbone.
        limit: Maximum number of tokens per row, special tokens included; ``None`` for no limit.
        segments: Whether the backbone uses ``token_type_ids``.
        places: Whether the prompt's placement needs to know where each text starts.
        wanted: The texts (0 for the first, 1 for the second) that must have at least one token in every row.
        too_long: Whether to truncate a text that does not fit, to refuse it with an error, or to read it in
            windows.
        max_windows, window_overlap: As in :class:`~ptuning.task.Task`, for windows.
        lock: Held while the tokenizer is called. A tokenizer that no other thread uses needs none:
            ``contextlib.nullcontext()``.
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    segments: bool = False
    places: bool = False
    wanted: tuple[int, ...] = ()
    too_long: TooLong = "truncate"
    max_windows: int = WINDOWS
    window_overlap: float = OVERLAP
    lock: AbstractContextManager[Any] = field(default=TOKENIZER, compare=False, repr=False)

    @classmethod
    def for_model(
        cls,
        model: PTuningModel,
        too_long: TooLong | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Tokenise:
        """The tokenisation for ``model``, with its own tokenizer unless another is given.

        Args:
            too_long: What happens to long texts; ``None`` for what the task says.

        Raises:
            ConfigError: the model has no tokenizer, or a slow one where a fast one is needed.
        """
        tokenizer = tokenizer or model.tokenizer
        if tokenizer is None:
            raise ConfigError("the model has no tokenizer", remedy="pass tokenizer=… when you create it")
        return cls.for_task(model, tokenizer, model.backbone, too_long)

    @classmethod
    def for_task(
        cls,
        task: TextLimits,
        tokenizer: PreTrainedTokenizerBase,
        backbone: Backbone,
        too_long: TooLong | None = None,
    ) -> Tokenise:
        """The tokenisation for a task, such as a :class:`~ptuning.model.packed.PackedTask`.

        Args:
            too_long: What happens to long texts; ``None`` for what the task says. With ``windows``, a task
                that was trained without any gets at most :data:`~ptuning.data.options.WINDOWS`.

        Raises:
            ConfigError: a slow tokenizer where a fast one is needed.
        """
        if task.needs_segments and not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} is a slow tokenizer",
                expected="a fast one, because this prompt has to know where each text starts and ends",
                remedy="set prompt.placement to start, middle or end, or for a deep prompt prompt.pooling to "
                "mean, layers or native",
            )
        windows = task.task.max_windows
        too_long = too_long or ("windows" if windows > 1 else "truncate")
        if too_long == "windows" and not tokenizer.is_fast:
            raise ConfigError(
                f"{type(tokenizer).__name__} is a slow tokenizer",
                expected="a fast one, because windows need to know where each text starts and ends",
                remedy="set data.too_long to truncate or error",
            )
        limit = task.max_text_tokens
        if limit is None and tokenizer.model_max_length < 1_000_000:  # larger values mean "unknown"
            limit = tokenizer.model_max_length - task.inserted_tokens
        return cls(
            tokenizer=tokenizer,
            limit=limit,
            segments=backbone.uses_segments,
            places=task.needs_segments,
            wanted=task.wanted_texts,
            too_long=too_long,
            max_windows=windows if windows > 1 else WINDOWS,
            window_overlap=task.task.window_overlap,
        )

    def __call__(self, examples: Sequence[Example], labels: Sequence[Any] | None = None) -> list[TokenRow]:
        """Rows in the order of ``examples``, each with its encoded label if ``labels`` are given.

        Raises:
            DataError: a text that does not fit, with ``too_long="error"``, or that has no tokens.
        """
        if not examples:
            return []
        if self.too_long == "error":
            self._refuse_long(examples)
        encoded = self._encode(examples, truncate=True)
        types = encoded.get("token_type_ids") if self.segments else None
        rows = [
            TokenRow(
                input_ids=ids,
                token_type_ids=types[i] if types else None,
                segment_ids=segments_of(encoded.sequence_ids(i)) if self.places else None,
                label=None if labels is None else labels[i],
            )
            for i, ids in enumerate(encoded["input_ids"])
        ]
        for example, row in zip(examples, rows, strict=True):
            self._refuse_empty(example, row)
        if self.too_long == "windows":
            self._add_windows(examples, rows, encoded)
        return rows

    def _add_windows(self, examples: Sequence[Example], rows: list[TokenRow], encoded: Any) -> None:
        """Give each row that was cut its other windows."""
        full = [i for i, row in enumerate(rows) if len(row) == self.limit]
        together = max(1, _TOGETHER // self.max_windows)
        for start in range(0, len(full), together):
            some = full[start : start + together]
            uncut = self._encode([examples[i] for i in some], truncate=False, windows=self.max_windows)
            for at, i in enumerate(some):
                whole = segments_of(uncut.sequence_ids(at)), uncut["input_ids"][at]
                found = windows_in(
                    segments_of(encoded.sequence_ids(i)),
                    whole,
                    maximum=self.max_windows,
                    overlap=self.window_overlap,
                    left=self.tokenizer.truncation_side == "left",
                )
                rows[i] = _windowed(rows[i], found)

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """The number of tokens of each row without truncation."""
        long = [i for i, each in enumerate(examples) if len(each.text) + len(each.text_b or "") > LONG]
        known = {i: self._count_long(examples[i]) for i in long}
        rest = [example for i, example in enumerate(examples) if i not in known]
        short = iter(self._encode(rest, truncate=False)["input_ids"] if rest else ())
        return [known[i] if i in known else len(next(short)) for i in range(len(examples))]

    def _count_long(self, example: Example) -> int:
        """The approximate number of tokens of a row that is too long to be tokenised in one piece."""
        texts = [text for text in (example.text, example.text_b) if text is not None]
        count = int(self.tokenizer.num_special_tokens_to_add(pair=len(texts) == 2))
        for text in texts:
            for start in range(0, len(text), LONG):
                piece = text[start : start + LONG]
                with self.lock:
                    count += len(self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])
        return count

    def _beginning(self, example: Example, text: str, windows: int) -> str:
        """``text``, or a part of it with more tokens than so many windows take.

        Raises:
            DataError: even :data:`LARGEST` characters of it do not have so many.
        """
        assert self.limit is not None
        size, wanted = max(LONG, 64 * self.limit), windows * self.limit + 64
        while len(text) > size:
            part = text[-size:] if self.tokenizer.truncation_side == "left" else text[:size]
            with self.lock:
                ids = self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= wanted:
                return part
            if size >= LARGEST:
                raise DataError(
                    f"{example.place}: {size:,} of the {len(text):,} characters of the text make only "
                    f"{len(ids)} tokens",
                    remedy="leave the row out, or shorten it",
                )
            size = min(8 * size, LARGEST)
        return text

    def _encode(self, examples: Sequence[Example], *, truncate: bool, windows: int | None = None) -> Any:
        """The tokenizer's output.

        Args:
            truncate: Whether to cut rows to the limit.
            windows: Without that, how many windows the tokens have to fill; ``None`` for all tokens.
        """
        firsts = [example.text for example in examples]
        seconds = [example.text_b for example in examples]
        size = 1 if truncate else windows
        if size is not None and self.limit is not None:  # or a text of megabytes would need gigabytes
            firsts = [
                text if len(text) <= LONG else self._beginning(example, text, size)
                for text, example in zip(firsts, examples, strict=True)
            ]
            seconds = [
                text if text is None or len(text) <= LONG else self._beginning(example, text, size)
                for text, example in zip(seconds, examples, strict=True)
            ]
        with self.lock:
            return self.tokenizer(
                firsts,
                seconds if seconds[0] is not None else None,
                truncation="longest_first" if truncate and self.limit is not None else False,
                max_length=self.limit if truncate else None,
                return_attention_mask=False,
                verbose=False,
            )

    def _refuse_empty(self, example: Example, row: TokenRow) -> None:
        """Refuse texts of characters that the tokenizer drops, such as zero-width spaces."""
        if not row.input_ids:
            raise DataError(f"{example.place}: {_DROPPED}", remedy="leave the row out")
        for text in self.wanted:
            if text not in (row.segment_ids or ()):
                raise DataError(
                    f"{example.place}: {_DROPPED} of the {('first', 'second')[text]} text, and the prompt is "
                    "placed before it",
                    remedy="leave the row out, or choose another prompt.placement",
                )

    def _refuse_long(self, examples: Sequence[Example]) -> None:
        if self.limit is None:
            return
        for example, length in zip(examples, self.lengths(examples), strict=True):
            if length > self.limit:
                raise DataError(
                    example.place,
                    got=f"{length} tokens",
                    expected=f"at most {self.limit} next to the prompt",
                    remedy="shorten the text, or allow truncation with too_long: truncate, or read it in "
                    "parts with too_long: windows",
                )


def segments_of(sequence_ids: list[int | None]) -> list[int]:
    """Which text each token belongs to, -1 for special tokens, from a tokenizer's ``sequence_ids``."""
    return [-1 if segment is None else segment for segment in sequence_ids]


def _windowed(row: TokenRow, windows: Windows) -> TokenRow:
    """``row``, the first window, with the others: the same tokens around another part of the text."""
    place = windows.place

    def around(values: list[int] | None, text: list[int] | None, count: int) -> list[int] | None:
        if values is None:
            return None
        inner = [values[place.start]] * count if text is None else text
        return [*values[: place.start], *inner, *values[place.stop :]]

    more = [
        TokenRow(
            input_ids=around(row.input_ids, text, len(text)) or [],
            token_type_ids=around(row.token_type_ids, None, len(text)),
            segment_ids=around(row.segment_ids, None, len(text)),
        )
        for text in windows.texts[1:]
    ]
    return replace(row, more=tuple(more), cut=windows.cut)


def collate(rows: Sequence[TokenRow], pad_id: int) -> dict[str, Tensor]:
    """A padded batch: ``input_ids``, ``attention_mask`` and, if the rows have them, ``token_type_ids`` and
    ``segment_ids``, each ``[B, T]``; ``labels`` ``[B]`` or ``[B, C]``. If a row has several windows, B counts
    the windows of all rows, and ``windows`` has the number of each row.
    """
    counts, labels = [len(row.windows) for row in rows], [row.label for row in rows]
    rows = windows_of(rows)
    width = max(map(len, rows))

    def padded(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])

    batch = {
        "input_ids": padded([row.input_ids for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
    }
    if rows[0].token_type_ids is not None:
        batch["token_type_ids"] = padded([row.token_type_ids or [] for row in rows], 0)
    if any(row.segment_ids is not None for row in rows):  # only some tasks of a mixed batch need them
        batch["segment_ids"] = padded([row.segment_ids or [-1] * len(row) for row in rows], -1)
    if all(label is not None for label in labels):  # only the first window of a row has one
        batch["labels"] = torch.tensor(labels)
    if len(rows) > len(labels):
        batch["windows"] = torch.tensor(counts)
    return batch


def windows_of(rows: Iterable[TokenRow]) -> list[TokenRow]:
    """All windows of all rows, in order, each as a row of its own."""
    return [window for row in rows for window in ((replace(row, more=()), *row.more) if row.more else (row,))]


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, batch_tokens: int | None = None
) -> list[list[int]]:
    """The batches of one epoch, as lists of row numbers; rows in a batch have similar lengths.

    Rows are shuffled, split into windows of many batches, sorted by length within each window and split into
    batches, and the batches are shuffled again: padding drops to a few per cent, and the rows of a batch
    still change from epoch to epoch. A pure function of its arguments, so a resumed run gets the same
    batches.

    Args:
        lengths: Tokens of each row.
        batch_size: Maximum rows per batch.
        batch_tokens: Maximum tokens per batch, padding included, as in :func:`cut`.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * 50
    batches = [
        batch
        for start in range(0, len(order), window)
        for part in [sorted(order[start : start + window], key=lengths.__getitem__)]
        for batch in cut(part, lengths, batch_size, batch_tokens)
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


SLACK = 0.04
"""Maximum share of padding in a batch of sorted rows."""

WORTHWHILE = 1024
"""Batches with fewer tokens than this are not split to avoid padding."""


def sorted_batches(
    lengths: Sequence[int], batch_size: int | None, batch_tokens: int | None = None
) -> list[list[int]]:
    """Batches of row numbers by length, longest first, so that running out of memory happens right away.

    The arguments are those of :func:`cut`. With ``batch_tokens``, a batch that is large enough also ends
    before padding takes more than :data:`SLACK` of it.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return cut(order, lengths, batch_size, batch_tokens, slack=1.0 if batch_tokens is None else SLACK)


def cut(
    rows: Sequence[int],
    lengths: Sequence[int] | Mapping[int, int],
    batch_size: int | None,
    batch_tokens: int | None,
    *,
    slack: float = 1.0,
) -> list[list[int]]:
    """Split ``rows``, in order, into batches that are as large as allowed, with at least one row each.

    Args:
        rows: Row numbers.
        lengths: Tokens of each row, by its number.
        batch_size: Maximum rows per batch; ``None`` for as many as ``batch_tokens`` allows.
        batch_tokens: Maximum tokens per batch, padding included: its rows times the length of the longest.
            So batches of short and of long rows take about the same time. ``None`` for no limit.
        slack: Maximum share of padding in a batch of :data:`WORTHWHILE` or more tokens.
    """
    batches: list[list[int]] = []
    longest = tokens = 0
    for row in rows:
        size = len(batches[-1]) if batches else 0
        wider = max(longest, lengths[row])
        places = (size + 1) * wider
        if (
            not size
            or size == batch_size
            or (batch_tokens is not None and places > batch_tokens)
            or (size * longest >= WORTHWHILE and places - tokens - lengths[row] > slack * places)
        ):
            batches.append([])
            wider, tokens = lengths[row], 0
        batches[-1].append(row)
        longest, tokens = wider, tokens + lengths[row]
    return batches


def shared(
    batch: Sequence[int], windows: Mapping[int, int], most: int, processes: int
) -> list[list[list[int]]]:
    """The parts of a batch that each process runs, one after another: as many parts for every process.

    Args:
        batch: Row numbers. Process p gets every row whose place in the batch is p modulo ``processes``.
        windows: The number of windows of each row.
        most: Maximum windows per part, unless a single row has more.

    Returns:
        For each process its parts, lists of row numbers; the last ones may be empty.
    """
    parts = [cut(batch[process::processes], windows, None, most) for process in range(processes)]
    count = max(map(len, parts))
    return [own + [[]] * (count - len(own)) for own in parts]
