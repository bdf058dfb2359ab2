"""Finds the columns of the text, the second text and the label.

A column that the user names is used, or refused with a list of the columns. Otherwise columns are found by
well-known names, then by their values in the first rows, and only if there is one candidate: two candidates
are an error that asks the user to choose. What was detected from values is in :attr:`Columns.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from ptuning.data.column_values import ONE_WORD, WORDS, Facts, facts, is_unnamed
from ptuning.data.places import listing, option
from ptuning.errors import DataError
from ptuning.task import Label

#: Names of a first text, and for each the names of its second text, if it has one.
TEXT_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("text_b", "text_pair", "text2", "text_2"),
    "text_a": ("text_b",),
    "text1": ("text2",),
    "text_1": ("text_2",),
    "sentence": ("sentence_b", "sentence_pair"),
    "sentence1": ("sentence2",),
    "sentence_1": ("sentence_2",),
    "sentence_a": ("sentence_b",),
    "premise": ("hypothesis",),
    "question": ("sentence", "passage", "context", "answer"),
    "question1": ("question2",),
    "question_1": ("question_2",),
    "query": ("passage", "document"),
    **dict.fromkeys(
        (
            *("abstract", "body", "comment", "content", "description", "document", "headline", "message"),
            *("post", "review", "review_body", "title", "tweet", "utterance"),
        ),
        (),
    ),
}
#: Used if none of the above is present.
OTHER_TEXT_NAMES: tuple[str, ...] = (
    *("comment_text", "reviewtext", "review_text", "review_content", "tweet_text", "full_text", "sms"),
    *(
        "article",
        "email",
        "news",
        "news_headline",
        "sentence_text",
        "text_content",
        "selftext",
        "input",
        "doc",
    ),
)
LABEL_NAMES: tuple[str, ...] = (
    *("label", "labels", "class", "category", "intent", "score", "target", "rating", "sentiment"),
    *("y", "stars", "topic", "emotion", "emotions"),
)
#: Used if none of the above is present.
OTHER_LABEL_NAMES: tuple[str, ...] = (
    *("gold_label", "is_duplicate", "overall", "verdict", "polarity", "airline_sentiment", "tgt", "targets"),
    *(
        "review_score",
        "review_rating",
        "star_rating",
        "classification",
        "categories",
        "topics",
        "tags",
        "tag",
    ),
    *("tag", "gold", "genre", "genres", "relatedness_score", "similarity", "label_id", "label_ids"),
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of one task, named as the source names them.

    Args:
        text: The text, or the first of two.
        text_b: The second text of a pair.
        label: The label; ``None`` if no label is needed, or if ``labels`` is given.
        labels: Columns of 0 and 1, one per label of a multi-label task.
        task: The name of each row's task, if rows of different tasks are mixed. Each row then has one text or
            two, as its task needs: a second text that is missing, null or blank is none.
        seconds: Possible names of a second text, if one was looked for and the first row has none.
        notes: What was detected from the values of the first rows, one sentence each.
    """

    text: str
    text_b: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    task: str | None = None
    seconds: tuple[str, ...] = field(default=(), compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def pair(self) -> bool:
        """Whether a row has two texts."""
        return self.text_b is not None

    def overlooked(self, names: Iterable[str]) -> str | None:
        """A second text among a later row's columns: some writers leave out null values."""
        return next(iter(_matching(names, self.seconds)), None) if self.seconds else None


def find_columns(
    names: Sequence[str],
    text: str | None = None,
    text_b: str | None = None,
    label: str | Sequence[str] | None = None,
    need_label: bool = True,
    *,
    source_name: str = "the rows",
    rows: Sequence[Mapping[str, Any]] = (),
    known_labels: Sequence[Label] = (),
) -> Columns:
    """Find or check the columns of a task.

    Well-known names are compared ignoring case. A second text is looked for only if ``text`` is not named: a
    user who names the first text names the second one too.

    Args:
        names: All columns.
        text, text_b: Columns that the user named.
        label: The label column that the user named; or several columns of 0 and 1, one per label: a list,
            names separated by commas, or patterns such as ``label_*``.
        need_label: Whether a label has to be found; otherwise only a named one is used.
        source_name: The name of the source in messages.
        rows: The first rows, inspected if the names do not decide.
        known_labels: The labels of a trained task, which help to find their column.

    Raises:
        DataError: A named column is missing or named twice, or there are no or several candidates.
    """
    _check_given(names, {"text": text, "text_b": text_b}, source_name)
    labels = () if label is None else label_columns(names, label, [text, text_b], source_name)
    _check_given(names, {"text": text, "text_b": text_b, **_roles(labels)}, source_name)
    given = [name for name in (text, text_b, *labels) if name is not None]
    find = _Finder(names, [name for name in names if name not in given], rows, source_name)
    seconds: tuple[str, ...] = ()
    if text is None:
        text = find.text()
        if text_b is None:
            seconds = TEXT_NAMES.get(_plain(text), ())
            text_b = find.second(seconds)
    if not labels and need_label:
        labels = find.labels(known_labels, text)
    others = set(map(_plain, labels))
    missed = tuple(name for name in seconds if name not in others) if text_b is None else ()
    one = labels[0] if len(labels) == 1 else None
    return Columns(
        text=text,
        text_b=text_b,
        label=one,
        labels=labels if one is None else (),
        seconds=missed,
        notes=tuple(find.notes),
    )


class UnclearColumns(DataError):
    """The names do not say which column is which. The values of the first rows may."""


class _Finder:
    """Finds one column after another; a column that was found is no longer free."""

    def __init__(
        self, names: Sequence[str], free: list[str], rows: Sequence[Mapping[str, Any]], source_name: str
    ) -> None:
        self.names, self.free, self.rows, self.source_name = names, free, rows, source_name
        self.notes: list[str] = []
        self._facts: dict[str, Facts] = {}

    def text(self) -> str:
        candidates = _text_candidates(self.free) or _matching(self.free, OTHER_TEXT_NAMES)
        if not candidates and self.rows:
            candidates = [name for name in self.free if self._facts_of(name).is_prose and not _is_data(name)]
            if len(candidates) == 1:
                self.notes.append(f"text: {candidates[0]!r}, the only column that looks like texts")
            elif len(self.names) == 1 and self._facts_of(self.names[0]).all_text:
                candidates = list(self.names)
                self.notes.append(f"text: {candidates[0]!r}, the only column")
        return self._taken(self._one(candidates, "text"))

    def second(self, known: Sequence[str]) -> str | None:
        partners = _matching(self.free, known)
        return self._taken(self._one(partners, "text_b")) if partners else None

    def labels(self, known: Sequence[Label], text: str) -> tuple[str, ...]:
        """The label column, or the label columns."""
        for names in (LABEL_NAMES, OTHER_LABEL_NAMES):
            if candidates := self._usable(_matching(self.free, names)):
                return (self._taken(self._one(candidates, "label")),)
        if not self.rows or any(map(_is_data, self.names)):
            return (self._one([], "label"),)
        named = [name for name in self.free if not is_unnamed(name) and self._facts_of(name).filled]
        if len(named) == 1 and self._facts_of(named[0]).flat:
            self.notes.append(f"label: {named[0]!r}, the only other column")
            return (self._taken(named[0]),)
        candidates = [
            name for name in named if self._facts_of(name).is_label and not self._is_part_of(text, name)
        ]
        if len(candidates) > 1 and known:
            words = {str(label) for label in known}
            candidates = [
                name for name in candidates if {str(row.get(name)).strip() for row in self.rows} <= words
            ] or candidates
        if len(candidates) == 1:
            self.notes.append(f"label: {candidates[0]!r}, the only candidate")
            return (self._taken(candidates[0]),)
        switches = [name for name in named if self._facts_of(name).switches]
        if len(switches) > 1 and set(candidates) <= set(switches):
            raise UnclearColumns(
                f"{self.source_name}: cannot tell which column is the label; {listing(switches, 40)} "
                "contain only 0 and 1",
                expected="one label",
                remedy=f"if each of them is a label, name them all: --data.label {_pasted(switches)} (in "
                f"Python: label={switches!r})",
            )
        return (self._one(candidates, "label"),)

    def _is_part_of(self, text: str, name: str) -> bool:
        """Whether a column's values are part of the text in the same row, as an article's title may be."""
        pairs = [(str(row.get(name)).strip(), str(row.get(text))) for row in self.rows]
        long = self._facts_of(name).words > ONE_WORD
        return long and all(value and value in of_row for value, of_row in pairs)

    def _facts_of(self, name: str) -> Facts:
        if name not in self._facts:
            self._facts[name] = facts(name, self.rows)
        return self._facts[name]

    def _taken(self, name: str) -> str:
        self.free.remove(name)
        return name

    def _usable(self, candidates: list[str]) -> list[str]:
        """The columns with values like labels, of several with names like labels."""
        if len(candidates) < 2 or not self.rows:
            return candidates
        usable = [name for name in candidates if self._facts_of(name).is_label]
        if len(usable) == 1:
            self.notes.append(
                f"label: {usable[0]!r}, the only one of {listing(candidates)} with values like labels"
            )
            return usable
        return candidates

    def _one(self, candidates: Sequence[str], role: str) -> str:
        if len(candidates) == 1:
            return candidates[0]
        what = {"text": "the text", "text_b": "the second text", "label": "the label"}[role]
        if candidates:
            pair = f" (and {option('text_b')}, for a pair)" if role == "text" else ""
            raise UnclearColumns(
                f"{self.source_name}: {listing(candidates)} could each be {what}",
                expected="one candidate",
                remedy=f"name the column with {option(role)}{pair}",
            )
        raise UnclearColumns(
            f"{self.source_name}: cannot tell which column is {what}",
            expected=f"one called {listing(TEXT_NAMES if role == 'text' else LABEL_NAMES, 4)}",
            remedy=f"name it with {option(role)}, one of {listing(self.names, 40)}",
        )


def _is_data(name: str) -> bool:
    """Whether a column name is a text of the first row rather, as in a file without a header."""
    return len(name.split()) > WORDS


def _pasted(names: Sequence[str]) -> str:
    """The names for the command line, in quotes if necessary."""
    joined = ",".join(names)
    return joined if joined.replace(",", "").replace("_", "").isalnum() else f"'{joined}'"


def label_columns(
    names: Sequence[str], label: str | Sequence[str], texts: Sequence[str | None], source_name: str
) -> tuple[str, ...]:
    """The columns that ``label`` names: one, a list, names separated by commas, or a pattern."""
    if isinstance(label, str):
        if label in names:  # even if it contains a comma
            return (label,)
        label = [part.strip() for part in label.split(",")]
    found: list[str] = []
    for part in label:
        if part not in names and any(sign in part for sign in "*?["):
            matched = [name for name in names if fnmatchcase(name, part) and name not in texts]
            if not matched:
                raise DataError(
                    f"{source_name}: no column matches the pattern {part!r} for label",
                    expected=f"some of {listing(names, 40)}",
                    remedy="correct it, or name the columns separated by commas",
                )
            found += [name for name in matched if name not in found]
        else:
            found.append(part)
    return tuple(found)


def _roles(labels: Sequence[str]) -> dict[str, str]:
    """The label columns by their roles in messages."""
    return {"label" if not place else f"label {place + 1}": name for place, name in enumerate(labels)}


def _check_given(names: Sequence[str], given: Mapping[str, str | None], source_name: str) -> None:
    taken: dict[str, str] = {}
    for role, name in given.items():
        if name is None:
            continue
        asked = role.split()[0]
        if name not in names:
            close = get_close_matches(name.lower(), [known.lower() for known in names], n=1, cutoff=0.7)
            near = next((known for known in names if close and known.lower() == close[0]), None)
            hint = (
                f"did you mean {near!r}?" if near is not None else f"name one of these with {option(asked)}"
            )
            raise DataError(
                f"{source_name}: no column {name!r} for {asked}",
                expected=f"one of {listing(names, 40)}",
                remedy=hint,
            )
        if name in taken:
            raise DataError(
                f"{source_name}: column {name!r} is named both {taken[name]} and {role}",
                expected="two different columns",
                remedy=f"the columns are {listing(names, 40)}",
            )
        taken[name] = role


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _matching(names: Iterable[str], known: Iterable[str]) -> list[str]:
    wanted = set(known)
    return [name for name in names if _plain(name) in wanted]


def _text_candidates(names: Sequence[str]) -> list[str]:
    """Candidates for the first text: columns with a known name that are not the second text of another."""
    found = _matching(names, TEXT_NAMES)
    seconds = {partner for name in found for partner in TEXT_NAMES[_plain(name)]}
    return [name for name in found if _plain(name) not in seconds]
