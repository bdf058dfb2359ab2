"""From a form of the page to what is shown below it: one text, all tasks, many rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptuning.serving.keys import Caller
from ptuning.serving.page.curl import rows_curl, task_curl, tasks_curl
from ptuning.serving.page.forms import Asked
from ptuning.serving.page.tables import NAMES, RowsRead, answers_csv, read_rows
from ptuning.serving.page.views import (
    AnswerView,
    Trouble,
    answer_or_trouble,
    answer_view,
    stages,
    together,
    totals,
    trouble,
)
from ptuning.serving.rows import Refusal, Row, RowAnswer, Timing
from ptuning.serving.service import Service
from ptuning.serving.tasks import ServedTask
from ptuning.visible import visible

SHOWN_ROWS = 200
"""Rows of a table that the page shows; the file has all."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the page shows below a form.

    Attributes:
        template: Its template.
        values: What the template shows.
        said: The result in a sentence, for screen readers.
    """

    template: str
    values: Mapping[str, Any]
    said: str = ""
    status: int = 200
    retry_after: int | None = None


def refused(problem: Trouble, status: int) -> Result:
    """A refusal in place of an answer."""
    return Result(
        template="_trouble.html",
        values={"trouble": problem},
        status=status,
        retry_after=problem.retry_after,
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """One form of one caller.

    Args:
        service: Answers rows.
        caller: Who asks.
        asked: The form.
        base: The server's address, for curl.
        key: Whether the server asks for keys.
        answered: The rows, answers and time so far; it grows.
    """

    service: Service
    caller: Caller
    asked: Asked
    base: str
    key: bool
    answered: list[tuple[Sequence[Row], Sequence[RowAnswer | Refusal], Timing]] = field(default_factory=list)

    async def one(self) -> Result:
        """The answer to one text or pair.

        Raises:
            Refusal: there is none.
        """
        task = self.service.tasks.get(self.asked.task, self.caller.may)
        if task.task.pair and not self.asked.text_pair.strip():
            raise Refusal(status=422, kind="no_pair", message="This task compares two texts: type both.")
        row = self._row(task, self.asked.text, self.asked.text_pair)
        (found,) = await self._answer([row])
        if isinstance(found, Refusal):
            return refused(trouble(found), found.status)
        answer = await asyncio.to_thread(answer_view, found)
        return Result(
            template="_one.html",
            said=" ".join(filter(None, (f"{task.name}: {answer.headline}", answer.sure))),
            values={
                "answer": answer,
                "max_tokens": task.max_tokens,
                "stages": self._stages(),
                "curl": task_curl(self.base, row, truncate=self.asked.truncate, key=self.key),
            },
        )

    async def all(self, tasks: Sequence[ServedTask]) -> Result:
        """What all of ``tasks`` say, or those that were ticked. Without a second text, those that compare two
        are left out.

        Raises:
            Refusal: nothing can be asked, or the request is refused.
        """
        if not self.asked.text.strip():
            raise Refusal(status=422, kind="empty", message="Type a text first.")
        chosen = set(self.asked.only)
        tasks = [task for task in tasks if not chosen or task.name in chosen]
        pair = bool(self.asked.text_pair.strip())
        able = [task for task in tasks if pair or not task.task.pair]
        if not able:
            reason = "These tasks compare two texts: type the second one, too."
            raise Refusal(status=422, kind="no_task", message=reason if tasks else "There are no tasks.")
        rows = [self._row(task, self.asked.text, self.asked.text_pair) for task in able]
        found = await self._answer(rows)
        answers = await asyncio.to_thread(
            lambda: [answer_or_trouble(row.task, each) for row, each in zip(rows, found, strict=True)]
        )
        if self.asked.order == "sure":
            answers.sort(key=_certainty)
        good = [each for each in answers if isinstance(each, AnswerView)]
        return Result(
            template="_all.html",
            said=f"{len(good)} tasks answered",
            values={
                "answers": answers,
                "refused": len(answers) - len(good),
                "unasked": len(tasks) - len(able),
                "tokens": sum(each.tokens for each in good),
                "cut": sum(each.truncated for each in good),
                "stages": self._stages(),
                "curl": tasks_curl(
                    self.base,
                    rows,
                    every=not chosen and not pair,
                    truncate=self.asked.truncate,
                    key=self.key,
                ),
            },
        )

    async def rows(self) -> Result:
        """A table of the answers to many rows of one task.

        Raises:
            Refusal: nothing was sent, or the request is refused.
            DataError: the rows cannot be read.
        """
        task, file = self.service.tasks.get(self.asked.task, self.caller.may), self.asked.file
        content = self.asked.rows.encode("utf-8", "replace") if file is None else await file.read()
        if not content.strip():
            raise Refusal(status=422, kind="empty", message="Paste rows, or choose a file first.")
        read = await asyncio.to_thread(
            read_rows,
            content,
            "" if file is None else file.filename or "",
            form=self.asked.form,
            pair=task.task.pair,
            text=self.asked.column,
            text_b=self.asked.column_pair,
            header=self.asked.header,
            limit=self.service.settings.max_rows,
        )
        rows = [self._row(task, each.text, each.text_b or "") for each in read.examples]
        found = await self._answer(rows)
        values = await asyncio.to_thread(self._table, task, read, found)
        return Result(
            template="_rows.html",
            said=f"{values['totals'].answered} rows answered",
            values={
                **values,
                "stages": self._stages(),
                "curl": rows_curl(self.base, rows, truncate=self.asked.truncate, key=self.key),
            },
        )

    def _table(
        self, task: ServedTask, read: RowsRead, found: Sequence[RowAnswer | Refusal]
    ) -> Mapping[str, Any]:
        shown = list(zip(read.examples, found, strict=True))[:SHOWN_ROWS]
        return {
            "table": [(example, answer_or_trouble(task.name, answer)) for example, answer in shown],
            "totals": totals(found),
            "rows": len(found),
            "notes": read.notes,
            "form": NAMES[read.form],
            "source": "" if self.asked.file is None else visible(self.asked.file.filename or ""),
            "csv": answers_csv(task.task, read.examples, found, keep=self.asked.keep),
            "file_name": f"{task.name}.csv",
        }

    def _row(self, task: ServedTask, text: str, text_pair: str) -> Row:
        return Row(task=task.name, text=text, text_pair=text_pair if task.task.pair else None)

    async def _answer(self, rows: Sequence[Row]) -> Sequence[RowAnswer | Refusal]:
        """The answers to any number of rows, in as many requests as the server's limit needs."""
        answers: list[RowAnswer | Refusal] = []
        for start in range(0, len(rows), self.service.settings.max_rows):
            part = rows[start : start + self.service.settings.max_rows]
            found, timing = await self.service.answer(
                part, truncate=self.asked.truncate, caller=self.caller.name, visible=self.caller.may
            )
            answers += found
            self.answered.append((part, found, timing))
        return answers

    def _stages(self) -> tuple[tuple[str, str], ...]:
        return stages(together([timing for _, _, timing in self.answered]))


def _certainty(found: AnswerView | Trouble) -> tuple[int, float]:
    """Most certain first, then numbers, then refusals."""
    if isinstance(found, Trouble):
        return 2, 0.0
    return (1, 0.0) if found.score is None else (0, -found.score)
