"""Interprets the label cells of a source: one rule for files, rows in memory and token ids.

A single cell does not show whether ``[1, 0]`` lists two labels or has a switch for each of two labels, or
whether ``3,5`` is a number or two labels. All cells of a column together do, and a known task decides the
rest. Any conversion is reported in a :class:`Note`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from ptuning.data import label_cells as cells
from ptuning.data.examples import Example
from ptuning.data.places import Note, Problem, counted, listing, option, shortened
from ptuning.errors import DataError
from ptuning.kinds import BY_FORM, LabelForm, kind_named
from ptuning.task import Label, Task

#: Minimum share of cells that look like lists in a column of lists.
NEARLY_ALL = 0.9
SEPARATORS = ("|", ";", ",")
#: Names of a column with several labels per row.
SEVERAL = re.compile(r"(?i)(labels|tags|genres|topics|categories|classes|emotions|keywords)$")
#: A part of a cell with more characters than this is not one of several labels.
LONGEST_PART = 40

_Example = TypeVar("_Example", bound=Example)


@dataclass(frozen=True, kw_only=True)
class Read:
    """Interpreted labels.

    Attributes:
        examples: The examples with labels that could be read.
        names: All labels in order, if the form of the column defines them.
        notes: The conversions, for the user.
        problems: The rows with labels that cannot be read like the others.
    """

    examples: list[Example]
    names: tuple[Label, ...] | None = None
    notes: tuple[Note, ...] = ()
    problems: tuple[Problem, ...] = ()


def read_labels(
    examples: Sequence[Example],
    *,
    problem_type: str = "auto",
    names: Sequence[Label] | None = None,
    task: Task | None = None,
    column: str | None = None,
) -> Read:
    """Read the labels of one source.

    Args:
        examples: Its rows, with labels as in the source.
        problem_type: The kind of task, or ``auto``; with ``single_label_classification`` every string is one
            label.
        names: The class names of the column, if it has class labels, which are not changed.
        task: The task, if it is known; its kind takes precedence over ``problem_type``.
        column: The name of the label column, for the notes.
    """
    form: LabelForm | None
    if task is not None:
        form = task.kind.form
    else:
        form = None if problem_type == "auto" else kind_named(problem_type, "auto").form
    read = _Reader(list(examples), form, None if names is None else tuple(names), task, column)
    if any(example.label is not None for example in examples):
        read.all()
    return Read(
        examples=read.examples, names=read.names, notes=tuple(read.notes), problems=tuple(read.problems)
    )


class _Reader:
    """Interprets the labels of one source, step by step.

    Args:
        form: The form of a row's label; ``None`` to detect it.
    """

    def __init__(
        self,
        examples: list[Example],
        form: LabelForm | None,
        names: tuple[Label, ...] | None,
        task: Task | None,
        column: str | None,
    ) -> None:
        self.examples, self.form, self.names, self.task, self.column = examples, form, names, task, column
        self.notes: list[Note] = []
        self.problems: list[Problem] = []

    def all(self) -> None:
        if self.names is None:
            self._stripped()
            if self.form is not LabelForm.NUMBER:
                self._lists_in_text()
                self._switches_in_text()
        self._switches()
        if self.names is None or self.task is not None:
            if self.form in (None, LabelForm.SEVERAL):
                self._separated()
            if self.form in (None, LabelForm.NUMBER):
                self._numbers()
        if self.task is not None and self.task.labels:
            self._spelled_as_known(self.task)

    # What is the same for all steps ----------------------------------------------------------------

    def _texts(self) -> list[str] | None:
        """The labels, if all of them are text."""
        texts = [example.label for example in self.examples if isinstance(example.label, str)]
        return texts if len(texts) == len(self.examples) else None

    def _say(self, message: str, level: Literal["warning", "note"] = "note") -> None:
        name = self.examples[0].origin.name if self.examples else "the rows"
        self.notes.append(Note(f"{name}: {message}", level=level))

    def _change(self, change: Callable[[Any], Any]) -> int:
        """Replace each label. Returns how many have changed."""
        count = 0
        for place, example in enumerate(self.examples):
            label = change(example.label)
            if label is not example.label and (type(label), label) != (type(example.label), example.label):
                self.examples[place] = replace(example, label=label)
                count += 1
        return count

    # Steps -----------------------------------------------------------------------------------------

    def _stripped(self) -> None:
        known = set(self.task.labels) if self.task is not None else set()

        def strip(label: Any) -> Any:
            if isinstance(label, tuple):
                return tuple(strip(item) for item in label)
            return label.strip() if isinstance(label, str) and label not in known else label

        if count := self._change(strip):
            self._say(f"spaces around the label were removed in {counted(count)}")

    def _lists_in_text(self) -> None:
        """Convert ``"['a', 'b']"`` to a list."""
        texts = self._texts()
        if not texts or (self.task is not None and not set(texts).isdisjoint(self.task.labels)):
            return
        if sum(map(cells.looks_like_list, texts)) < NEARLY_ALL * len(texts):
            return
        lists = [cells.list_in(text) for text in texts]
        if sum(found is not None for found in lists) < NEARLY_ALL * len(texts):
            return
        if self.form is LabelForm.ONE and not hot_width([found for found in lists if found is not None]):
            return  # each string is a class, as the user set
        kept = []
        for example, found in zip(self.examples, lists, strict=True):
            if found is None:
                error = DataError(
                    f"{example.place}, the label",
                    got=shortened(example.label),
                    expected="a list as in the other rows, such as \"['a', 'b']\"",
                    remedy="correct or remove the row",
                )
                self.problems.append(Problem(row=example.row, kind="label that is not a list", error=error))
            else:
                kept.append(replace(example, label=found))
        shown = next(text for text, found in zip(texts, lists, strict=True) if found is not None)
        self.examples = kept
        self._say(f"the labels are lists that were written as text, such as {shown!r}, and are read as lists")

    def _switches_in_text(self) -> None:
        """Convert ``1|0|0`` and ``1 0 0`` to a list of zeros and ones; ``1,0`` may be a number."""
        texts = self._texts()
        if not texts or self.form not in (None, LabelForm.SEVERAL):
            return
        for separator in (*SEPARATORS, None):
            if hot_width([texts[0].split(separator)]) is None:
                continue
            rows = [tuple(text.split(separator)) for text in texts]
            if hot_width(rows, least=3 if separator == "," and self.form is None else 2):
                self._change(partial(_split, separator))
                return

    def _switches(self) -> None:
        """Convert rows of zeros and ones, one per label, to the labels that apply."""
        rows = [example.label for example in self.examples if isinstance(example.label, tuple)]
        if len(rows) < len(self.examples):
            return
        width = hot_width(rows)
        if self.task is not None:
            names: tuple[Label, ...] = self.task.labels
            if width != len(names):
                return
        elif width is None or self.names is not None:
            return  # class labels are given by name
        else:
            names = tuple(range(width))
        if self.form is LabelForm.ONE:
            if all(sum(map(bool, map(cells.switch, row))) == 1 for row in rows):
                self._change(lambda row: names[[cells.switch(item) for item in row].index(True)])
                self.names = names if self.task is None else self.names
                self._say(
                    f"the labels are rows of {width} zeros and ones, one of them on: {listing(names, 20)}"
                )
            return
        self.examples = [replace(each, label=switched_on(each.label or (), names)) for each in self.examples]
        self.names = names if self.task is None else self.names
        self._say(f"the labels are rows of {width} zeros and ones, one per label: {listing(names, 20)}")

    def _separated(self) -> None:
        """Convert ``a|b`` to two labels if that is certain; otherwise a note says which option would do
        it.
        """
        texts = self._texts()
        if not texts:
            return
        if self.task is not None:
            self._change(lambda text: _known_parts(text, self.task.labels if self.task else ()))
            return
        for separator in SEPARATORS:
            held = [text for text in texts if separator in text]
            if not held:
                continue
            if separator == "," and self._are_decimals(texts):
                return
            several = f"{option('label_separator', separator)}"
            if self.form is LabelForm.SEVERAL or _recombine(texts, separator, self.column):
                if not all(all(cells.parts(text, separator)) for text in texts):
                    continue
                self._change(partial(cells.parts, separator=separator))
                single = option("problem_type", BY_FORM[LabelForm.ONE].name)
                self._say(
                    f"the labels are read as several, separated by {separator!r}, such as {held[0]!r}; if "
                    f"each "
                    f"cell is one label, pass {single}"
                )
                return
            if len(held) > 1 or separator != ",":
                self._say(
                    f"{len(held)} labels contain {separator!r}, such as {shortened(held[0])}, and are "
                    f"read as "
                    f"one label each; if they are several labels, {several} separates them",
                    "warning",
                )
                return
        if self.form is LabelForm.SEVERAL:
            self._change(lambda text: (text,))

    def _numbers(self) -> None:
        """Convert ``3,5`` and ``80%`` to numbers if all labels are written like that."""
        texts = self._texts()
        if not texts:
            return
        if self._are_decimals(texts):
            if all(map(cells.could_be_thousands, (text for text in texts if "," in text))):
                shown = next(text for text in texts if "," in text)
                self._say(
                    f"labels such as {shown!r} could be decimals or thousands, and are read as classes; "
                    "write them with a point, or without commas",
                    "warning",
                )
                return
            self._change(cells.decimal_comma)
            shown = next(text for text in texts if "," in text)
            self._say(
                f"the labels are read as numbers with a decimal comma, such as {shown!r}; if they are "
                f"several labels, {option('label_separator', ',')} separates them"
            )
        elif all("%" in text and cells.percentage(text) is not None for text in texts):
            self._change(cells.percentage)
            shares = f"{texts[0]!r} is {cells.percentage(texts[0])}"
            self._say(f"the labels are percentages, and are read as fractions: {shares}")

    def _are_decimals(self, texts: Sequence[str]) -> bool:
        """Whether all are numbers, most of them with a comma, and the column does not have several labels."""
        commas = sum("," in text for text in texts)
        several = self.column is not None and SEVERAL.search(self.column.strip())
        mostly = (
            commas > 0 and 2 * commas >= len(texts) and not (several and self.form is not LabelForm.NUMBER)
        )
        return (
            mostly and self.form is not LabelForm.SEVERAL and all(cells.decimal_comma(text) for text in texts)
        )

    def _spelled_as_known(self, task: Task) -> None:
        """Replace labels by the task's spelling: ``1.0`` by ``1``, ``neg`` by `` neg``."""
        alike = _alike(task.labels)
        if not alike:
            return
        known = set(map(_key, task.labels))

        def as_known(label: Any) -> Any:
            if isinstance(label, tuple):
                return tuple(as_known(item) for item in label)
            if type(label) is not str or _key(label) in known:
                return label
            return alike.get(_comparable(label), label)

        before = {repr(example.label): example.label for example in self.examples}
        if self._change(as_known):
            was = next(label for label in before.values() if as_known(label) != label)
            self._say(f"the label {was!r} is read as {as_known(was)!r}, as in training")


def hot_width(rows: Sequence[Any], least: int = 2) -> int | None:
    """The common width of rows of zeros and ones; ``None`` if the rows are lists of labels.

    Args:
        least: Rows that are shorter are never treated as zeros and ones.
    """
    widths = {len(row) for row in rows}
    if len(widths) != 1 or (width := widths.pop()) < least:
        return None
    if not all(_is_switch(item) for row in rows for item in row):
        return None
    return width


def _split(separator: str | None, text: str) -> tuple[str, ...]:
    return tuple(text.split(separator))


def switched_on(row: Sequence[Any], names: Sequence[Label]) -> tuple[Label, ...]:
    """The names with a one in a row of zeros and ones, one per name."""
    return tuple(name for name, on in zip(names, row, strict=True) if cells.switch(on))


def _is_switch(item: object) -> bool:
    return (isinstance(item, int | float) and item in (0, 1)) or item in ("0", "1")


def _recombine(texts: Sequence[str], separator: str, column: str | None) -> bool:
    """Whether the parts between separators are certainly labels: short, and in many combinations."""
    within: dict[str, set[str]] = defaultdict(set)
    several = {text for text in texts if separator in text}
    for text in dict.fromkeys(texts):
        for part in cells.parts(text, separator):
            if not part or len(part) > LONGEST_PART:
                return False
            within[part].add(text)
    met = {part for text in several for part in cells.parts(text, separator)}
    again = sum(len(within[part]) > 1 for part in met)
    if column is not None and SEVERAL.search(column.strip()):
        return again > 0
    return len(several) > 2 and again >= NEARLY_ALL * len(met)


def _known_parts(text: str, known: Sequence[Label]) -> tuple[str, ...]:
    """The labels of a cell, separated so that the task has them all; otherwise the cell itself."""
    if text not in known:
        for separator in SEPARATORS:
            found = cells.parts(text, separator)
            if len(found) > 1 and all(part in known for part in found):
                return found
    return (text,)


def _key(label: object) -> tuple[type, object]:
    return type(label), label  # because 1 == 1.0 == True


def _comparable(label: str) -> str | float:
    """A label as it is compared: the value of a number, or the stripped text."""
    try:
        return label.strip() if "_" in label else float(label)
    except ValueError:
        return label.strip()


def _alike(labels: Sequence[Label]) -> dict[str | float, str]:
    """The task's labels by :func:`_comparable`; empty if two of them are equal, or not all are strings."""
    texts = [label for label in labels if isinstance(label, str)]
    found = {_comparable(label): label for label in texts}
    return found if len(found) == len(labels) else {}
