"""Texts to token ids in a few threads, each with its own copy of the tokenizer: they need no lock.

What is wrong with a row is found here, and is that row's refusal alone.
"""

from __future__ import annotations

import asyncio
import copy
import math
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ptuning.data import Example
from ptuning.data.tokens import Tokenise, TokenRow
from ptuning.errors import UserError
from ptuning.model import PackedTask
from ptuning.model.backbone import Backbone
from ptuning.serving.engine import Job
from ptuning.serving.rows import Refusal, Row
from ptuning.serving.settings import Settings

PIECE = 64
"""Rows that one thread takes at a time, so that the threads share large requests."""
_SURROGATE = re.compile("[\ud800-\udfff]")

Find = Callable[[str], PackedTask | Refusal]
"""The version of a task that answers a request, by name, or why there is none."""


class Tokenising:
    """The threads.

    Args:
        tokenizer: The backbone's; it is copied.
        backbone: Says whether there are token types.
        settings: The limits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, backbone: Backbone, settings: Settings) -> None:
        self._backbone, self._settings = backbone, settings
        self._own = threading.local()
        copies = [copy.deepcopy(tokenizer) for _ in range(settings.tokenise_threads)]

        def begin() -> None:
            self._own.tokenizer = copies.pop()

        self._pool = ThreadPoolExecutor(settings.tokenise_threads, "ptuning-tokenise", initializer=begin)

    async def __call__(
        self, rows: Sequence[Row], find: Find, *, truncate: bool, most: float = math.inf
    ) -> list[Job | Refusal]:
        """A job, or the refusal, of each row, in order.

        Args:
            find: Called in the threads, for a task as often as there are pieces.
            truncate: Whether a text that is too long is cut; otherwise its row is refused.
            most: Maximum windows of all rows together.

        Raises:
            Refusal: 413, the rows have more windows.
        """
        places = _Places(most - len(rows))
        loop = asyncio.get_running_loop()
        pieces = [
            loop.run_in_executor(
                self._pool, self._jobs, start, rows[start : start + PIECE], find, truncate, places
            )
            for start in range(0, len(rows), PIECE)
        ]
        return [job for piece in await asyncio.gather(*pieces) for job in piece]

    def close(self) -> None:
        """End the threads; rows that have not been started are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------------------------ in one of the threads

    def _jobs(
        self, start: int, rows: Sequence[Row], find: Find, truncate: bool, places: _Places
    ) -> list[Job | Refusal]:
        places.take(0)  # the pieces after one that is refused are not tokenised
        found: list[Job | Refusal | None] = [None] * len(rows)
        tasks = {name: find(name) for name in {row.task for row in rows}}
        alike: dict[tuple[Tokenise, bool], list[tuple[int, PackedTask]]] = {}  # tokenised in the same way
        for place, row in enumerate(rows):
            packed = tasks[row.task]
            if isinstance(packed, Refusal):
                found[place] = packed
            elif (refusal := self._problem(row, packed)) is not None:
                found[place] = refusal
            else:
                tokenise = Tokenise.for_task(packed, self._own.tokenizer, self._backbone)
                alike.setdefault((tokenise, packed.task.pair), []).append((place, packed))
        for (tokenise, _), group in alike.items():
            examples = [_example(start + place, rows[place]) for place, _ in group]
            # One more than allowed shows that there are too many.
            windows = min(tokenise.max_windows, self._settings.max_windows + 1)
            tokens = _tokens(replace(tokenise, max_windows=windows, lock=nullcontext()), examples)
            for (place, packed), each in zip(group, tokens, strict=True):
                job = each if isinstance(each, Refusal) else self._job(each, packed, truncate)
                if isinstance(job, Job):
                    job.place = start + place
                    if job.row.more:
                        places.take(len(job.row.more))
                found[place] = job
        return [each for each in found if each is not None]

    def _problem(self, row: Row, packed: PackedTask) -> Refusal | None:
        """What is wrong with a row's texts before they are tokenised."""
        if (row.text_pair is not None) != packed.task.pair:
            got, wanted = "one text", "a pair of texts"
            if not packed.task.pair:
                got, wanted = wanted, got
            return _wrong("pair_mismatch", f"the task {packed.name} takes {wanted}, and got {got}")
        for text in (row.text, row.text_pair):
            if text is None:
                continue
            if len(text) > self._settings.max_text_characters:
                return Refusal(
                    status=413,
                    kind="text_too_long",
                    message=f"the text has {len(text):,} characters, and the server takes at most "
                    f"{self._settings.max_text_characters:,}; shorten it",
                )
            if not text.strip():
                return _wrong("empty_text", "the text is empty; leave the row out")
            if _SURROGATE.search(text):
                return _wrong("invalid_text", "the text has a lone surrogate, which is not a character")
        return None

    def _job(self, tokens: _Tokens, packed: PackedTask, truncate: bool) -> Job | Refusal:
        row, length = tokens
        if len(row.windows) > self._settings.max_windows:  # first: of such a row not all windows were made
            return Refusal(
                status=413,
                kind="too_many_windows",
                message=f"the text has {length:,} tokens, which are more than {self._settings.max_windows:,} "
                "windows, the server's maximum; shorten it",
            )
        several = len(row.windows) > 1
        job = Job(row=row, packed=packed, truncated=row.cut if several else length > len(row))
        if job.truncated and not truncate:
            most = f"{len(row.windows)} windows of {len(row):,} tokens" if several else f"{len(row):,}"
            return _wrong(
                "too_many_tokens",
                f"the text has {length:,} tokens, and the task {packed.name} takes at most {most}; "
                "shorten it, or allow that it is cut",
            )
        if job.length > self._settings.batch_tokens:
            return Refusal(
                status=413,
                kind="too_many_tokens",
                message=f"the text has {job.length:,} tokens with the prompt, and the server runs at most "
                f"{self._settings.batch_tokens:,} at once; shorten it",
            )
        return job


class _Places:
    """The places that are left for further windows of a request's rows. Any thread may call it."""

    def __init__(self, left: float) -> None:
        self._left, self._lock, self._refused = left, threading.Lock(), False

    def take(self, count: int) -> None:
        """Take places; once there were too few, every call is refused.

        Raises:
            Refusal: 413 ``too_many_windows``.
        """
        with self._lock:
            self._left -= count
            self._refused = self._refused or (count > 0 and self._left < 0)
            if self._refused:
                raise Refusal(
                    status=413,
                    kind="too_many_windows",
                    message="the texts of the request have more windows than the server takes at once; "
                    "send several requests",
                )


_Tokens = tuple[TokenRow, int]
"""A row's tokens, and how many there were before it was cut."""


def _tokens(tokenise: Tokenise, examples: Sequence[Example]) -> list[_Tokens | Refusal]:
    try:
        rows = tokenise(examples)
    except UserError as error:  # one of them cannot be tokenised
        if len(examples) == 1:
            return [_wrong("invalid_text", str(error))]
        return [found for each in examples for found in _tokens(tokenise, [each])]
    full = [place for place, row in enumerate(rows) if len(row) == tokenise.limit]
    lengths = dict(zip(full, tokenise.lengths([examples[place] for place in full]), strict=True))
    return [(row, lengths.get(place, len(row))) for place, row in enumerate(rows)]


def _example(number: int, row: Row) -> Example:
    return Example(row=number + 1, text=row.text, text_b=row.text_pair)


def _wrong(kind: str, message: str) -> Refusal:
    return Refusal(status=422, kind=kind, message=message)
