"""Rows of CSV and TSV: detects the separator and the meaning of quotes, and loses no row to a stray quote.

**Separator.** The format's default, unless the first row would then be a single cell and another of ``,``
``;`` tab ``|`` splits all rows into the same number of cells.

**Quotes** have their CSV meaning: a cell that starts with a quote ends with one, quotes inside are doubled,
and separators and line breaks inside belong to the cell. But many files are written without quoting, usually
tab-separated ones, and there a text that starts with a quotation mark would swallow all rows up to the next
one. So a tab-separated file is read without quoting unless all its quotes are well formed and consistent, and
no quoted cell contains both a tab and a line break. In other files, a cell that spans several lines is
refused, with their numbers, if two or more of these lines look like rows of their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ptuning.data.cells import Cells, Column, is_number, rows_of
from ptuning.data.reading import Quoting, Reading, Rows
from ptuning.data.text_files import LONGEST, Lines, Text
from ptuning.errors import ConfigError, DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_NAMED = {"tab": "\t", "\\t": "\t"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # Excel's convention
_WORD = re.compile(r"\w")
_SAMPLE_ROWS = 500
_PROFILED_ROWS = 10_000
_MAX_QUOTED = 1 << 20  # maximum characters of a quoted cell in a TSV


def separated_rows(
    text: Text,
    default: str,
    reading: Reading,
    reopen: Callable[[], AbstractContextManager[Iterator[str]]] | None,
) -> Rows:
    """The rows of a CSV or TSV.

    Args:
        text: The file.
        default: The separator of its format.
        reading: The user's options, and the notes.
        reopen: Opens the lines a second time, if possible.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    beginning = text.first_lines()
    stated = next((line for line in beginning if line.strip()), "")
    marked = _SEPARATOR_LINE.fullmatch(stated)
    if marked:
        beginning = beginning[beginning.index(stated) + 1 :]
    separator = _separator(beginning, default, marked[1] if marked else None, reading)
    quoting = _quoting(beginning, separator, text.complete, reading, reopen)
    lines = text.lines()
    if quoting == "none":
        cells = _plain_cells(lines, separator, reading)
        sample = _split(beginning, separator)
    else:
        dialect = _dialect(beginning, separator, text.complete, reading)
        sample = _parsed(beginning, separator, **dialect)
        cells = _quoted_cells(lines, separator, dialect, reading, sample)
    if marked:
        next(cells, None)
    yield from rows_of(
        _filled(cells),
        [row for row in sample if row][:_SAMPLE_ROWS],
        reading,
        quotes_are_text=quoting == "none" and reading.quoting == "auto",
    )


def _filled(cells: Cells) -> Cells:
    """``cells`` without empty lines; in a file with one column, an empty line is an empty cell."""
    one_column = False
    started = False
    for number, row in cells:
        if not row:
            if not (started and one_column):
                continue
            row = [""]
        one_column = one_column if started else len(row) == 1
        started = True
        yield number, row


# Separator -----------------------------------------------------------------------------------------


def checked_separator(separator: str) -> str:
    """A separator that the user gave.

    Raises:
        ConfigError: It is not one character, or a character that cannot be a separator.
    """
    found = _NAMED.get(separator.lower(), separator)
    if len(found) != 1 or found in '"\r\n':
        raise ConfigError(
            "data.separator", got=repr(separator), expected="one character, such as ';' or '|', or 'tab'"
        )
    return found


def _separator(lines: Sequence[str], default: str, marked: str | None, reading: Reading) -> str:
    if reading.separator is not None:
        return checked_separator(reading.separator)
    if marked is not None:
        reading.add_note(f"separated by {marked!r}, as stated in its first line")
        return marked
    scores = {each: row_width(lines, each) for each in dict.fromkeys([default, *SEPARATORS])}
    if scores[default][0] > 1 and scores[default][1] > 0.9:
        return default
    width, share = scores[default]
    better = {
        each: score
        for each, score in scores.items()
        if score[0] > 1 and score[1] > max(0.5, share * (width > 1))
    }
    best = max((share for _, share in better.values()), default=0.0)
    chosen = [each for each, score in better.items() if score[1] == best]
    if not chosen or default in chosen:
        return default
    if len(chosen) > 1:
        raise DataError(
            f"{reading.origin.name}: cannot tell whether the cells are separated by "
            f"{' or by '.join(map(repr, chosen))}",
            remedy="choose one with --data.separator",
        )
    reading.add_note(f"separated by {SEPARATORS[chosen[0]]} ({chosen[0]!r}), detected from its first lines")
    return chosen[0]


def row_width(lines: Sequence[str], separator: str) -> tuple[int, float]:
    """The number of cells in the first row with this separator, and the share of rows with as many."""
    best = (0, 0.0)
    for rows in (_parsed(lines, separator), _split(lines, separator)):
        rows = [row for row in rows[:_SAMPLE_ROWS] if row]
        if rows:
            found = len(rows[0]), sum(len(row) == len(rows[0]) for row in rows) / len(rows)
            best = max(best, found, key=lambda score: (score[0] > 1, score[1]))
    return best


def _parsed(lines: Sequence[str], separator: str, **dialect: Any) -> list[list[str]]:
    try:
        return list(islice(csv.reader(lines, delimiter=separator, **dialect), _SAMPLE_ROWS * 2))
    except csv.Error:
        return _split(lines, separator)


def _split(lines: Iterable[str], separator: str) -> list[list[str]]:
    found = (line.rstrip("\r\n") for line in islice(lines, _SAMPLE_ROWS * 2))
    return [line.split(separator) if line else [] for line in found]


# Dialects of CSV ----------------------------------------------------------------------------------

_DIALECTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    ("spaces before cells are left out", {"skipinitialspace": True}),
    ('quotes inside cells are written \\"', {"escapechar": "\\"}),
)


def _dialect(lines: Sequence[str], separator: str, complete: bool, reading: Reading) -> dict[str, Any]:
    """The first dialect in which the first rows are well formed and have the same number of cells."""
    for note, dialect in _DIALECTS:
        if _well_formed(lines, separator, complete, dialect):
            if note:
                reading.add_note(f"{note}, detected from its first lines")
            return dialect
    return {}


def _well_formed(lines: Sequence[str], separator: str, complete: bool, dialect: Mapping[str, Any]) -> bool:
    reader = csv.reader(lines, delimiter=separator, strict=True, **dialect)
    width = None
    try:
        for row in islice(reader, _SAMPLE_ROWS):
            if row and len(row) != (width := width or len(row)):
                return False
    except csv.Error as error:
        return not complete and reader.line_num == len(lines) and "unexpected end" in str(error)
    return True


# What quotes mean in a TSV ------------------------------------------------------------------------


def _quoting(
    beginning: Sequence[str],
    separator: str,
    complete: bool,
    reading: Reading,
    reopen: Callable[[], AbstractContextManager[Iterator[str]]] | None,
) -> Quoting:
    if reading.quoting != "auto":
        return reading.quoting
    if separator != "\t":
        return "csv"
    if complete or reopen is None:
        found = _Quotes().read(beginning)
    else:
        with reopen() as lines:
            found = _Quotes().read(lines)
    if not found.any:
        return "none"
    if (reason := found.why_not_csv()) is not None:
        reading.add_note(f"quotes are read as characters of the text, not as CSV quoting: {reason}")
        return "none"
    reading.add_note(
        "double quotes are read as CSV quoting; if they belong to the text, pass --data.quoting none"
    )
    return "csv"


_CELL = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^"\t\r\n]*))(\t|\r\n|\n|\r|\Z)')
_OPEN = re.compile(r'"[^"]*(?:""[^"]*)*\Z')
_NEEDS_QUOTES = re.compile('[\t\r\n",;]|^\\s|\\s$')  # Excel quotes cells with a comma, in a TSV too


@dataclass
class _Quotes:
    """Statistics of the quotes in a TSV."""

    any: bool = False
    broken: int | None = None
    swallowing: list[tuple[int, int, bool]] = field(default_factory=list)
    quoted: dict[int, int] = field(default_factory=dict)
    plain: dict[int, int] = field(default_factory=dict)
    certain: bool = False

    def read(self, lines: Iterable[str]) -> _Quotes:
        """Inspect all lines, up to the first that is not valid CSV."""
        held, start = "", 0
        width: int | None = None
        for number, line in enumerate(lines, 1):
            if not held and '"' not in line:
                cells = line.rstrip("\r\n").split("\t")
                if width is None:
                    width = len(cells) if line.strip() else None
                else:
                    self._add_plain(cells, number)
                continue
            self.any = True
            start = start if held else number
            held += line
            if '"' not in line and len(held) <= _MAX_QUOTED:
                continue  # the cell goes on
            cells_found = _csv_cells(held)
            if cells_found is None:
                if len(held) > _MAX_QUOTED:
                    self.broken = start
                    break
                continue
            if not cells_found:
                self.broken = start
                break
            self._add_row(cells_found, held, start, number, width)
            width = width or len(cells_found)
            held = ""
        else:
            if held:
                self.broken = start
        return self

    def _add_plain(self, cells: Sequence[str], line: int) -> None:
        for at, cell in enumerate(cells):
            if at not in self.plain and cell and not is_number(cell):
                self.plain[at] = line

    def _add_row(
        self, cells: Sequence[tuple[str, bool]], held: str, start: int, end: int, width: int | None
    ) -> None:
        for at, (cell, quoted) in enumerate(cells):
            if not quoted:
                if width is not None:
                    self._add_plain([""] * at + [cell], start)
            elif "\t" in cell and ("\n" in cell or "\r" in cell):
                alone = all(line.count("\t") + 1 == (width or len(cells)) for line in held.splitlines())
                self.swallowing.append((start, end, alone))
            elif '"' in cell or "\t" in cell:
                self.certain = True
            elif width is not None and cell and not _NEEDS_QUOTES.search(cell):
                self.quoted.setdefault(at, start)

    def why_not_csv(self) -> str | None:
        """The reason why the quotes are not CSV quoting; ``None`` if they are."""
        if self.broken is not None:
            return f"those in line {self.broken} are not well formed"
        for at, line in self.quoted.items():
            if at in self.plain:
                return f"in column {at + 1}, line {line} has quotes and line {self.plain[at]} has none"
        if self.swallowing and not self.certain and all(alone for *_, alone in self.swallowing):
            start, end, _ = self.swallowing[0]
            return f"a cell would span lines {start} to {end}, which look like separate rows"
        return None


def _csv_cells(text: str) -> list[tuple[str, bool]] | None:
    """The cells of one row of CSV, and whether each was quoted.

    ``None`` if the row is incomplete, and an empty list if it is not valid CSV.
    """
    found: list[tuple[str, bool]] = []
    at = 0
    while True:
        match = _CELL.match(text, at)
        if match is None:
            return None if _OPEN.match(text, at) else []
        quoted = match[1] is not None
        found.append((match[1].replace('""', '"') if quoted else match[2], quoted))
        at = match.end()
        if match[3] != "\t":
            return found if at == len(text) else []


# Cells --------------------------------------------------------------------------------------------


def _plain_cells(lines: Lines, separator: str, reading: Reading) -> Cells:
    for line in lines.sound(reading):
        line = line.rstrip("\r\n")
        yield lines.number, line.split(separator) if line else []


class _Rereadable:
    """Lines for ``csv.reader``. Remembers those of the current row and can return them again."""

    def __init__(self, lines: Lines) -> None:
        self._lines = iter(lines)
        self._back: list[str] = []
        self.row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.pop() if self._back else next(self._lines)
        self.row.append(line)
        return line

    def give_back(self) -> None:
        """Let all lines of this row except the first be read again, as rows of their own."""
        self._back += self.row[:0:-1]


def _quoted_cells(
    lines: Lines,
    separator: str,
    dialect: Mapping[str, Any],
    reading: Reading,
    sample: Sequence[Sequence[str]],
) -> Cells:
    """Rows of CSV with quoting, each with the number of its first line."""
    taken = _Rereadable(lines)
    reader = csv.reader(taken, delimiter=separator, strict=True, **dialect)
    known = _RowProfile(separator, sample, reading.quoting)
    multi_line = _MultiLineRows(reading)
    start = 1
    while True:
        taken.row.clear()
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            taken.give_back()
            number, start = start, start + 1
            lines.broken_until(number)
            reading.bad_row(
                number,
                "quotes",
                DataError(
                    f"not a row of cells ({error})",
                    expected="every opening quote to be closed and quotes inside a quoted cell to be "
                    'doubled ("")',
                    remedy="write the file with a CSV writer, or, if its quotes are characters of the "
                    "text, pass "
                    "--data.quoting none",
                ),
            )
            continue
        number, start = start, start + len(taken.row)
        if lines.broken and lines.report(number, start - 1, reading):
            continue
        if len(taken.row) == 1:
            known.add(row)
            yield number, row
        elif known.swallowed(row, taken.row):
            last, start = start - 1, number + 1
            taken.give_back()
            reading.bad_row(
                number,
                "quotes",
                DataError(
                    f"a quote opens here and closes in line {last}, so that lines {number} to {last} were "
                    f"read "
                    "as one row, although they look like separate rows",
                    expected="quotes to close in the row they open in",
                    remedy="double the quotes that belong to a text, or, if all of them do, pass "
                    "--data.quoting "
                    "none; if it is one row, pass --data.quoting csv",
                ),
            )
        else:
            multi_line.add(number, start - 1)
            yield number, row
    multi_line.add_note()


@dataclass
class _MultiLineRows:
    """Counts rows that span several lines, for a note: they are usually right, but not always."""

    reading: Reading
    count: int = 0
    first: tuple[int, int] = (0, 0)

    def add(self, start: int, end: int) -> None:
        self.first = self.first if self.count else (start, end)
        self.count += 1

    def add_note(self) -> None:
        if self.count:
            start, end = self.first
            rows = "1 row spans" if self.count == 1 else f"{self.count:,} rows span"
            self.reading.add_note(
                f"{rows} several lines, as a quoted cell may (the first: lines {start} to {end})"
            )


class _RowProfile:
    """What rows look like, to tell a cell with line breaks from one that swallowed rows."""

    def __init__(self, separator: str, sample: Sequence[Sequence[str]], quoting: Quoting) -> None:
        self._separator = separator
        self._trusted = quoting == "csv"
        self._columns = [Column() for _ in (sample[0] if sample else ())]
        self._rows = 0
        self._width = len(self._columns)
        self._seen = len(sample)
        for row in islice(sample, 1, None):  # the first may be the header
            if not any("\n" in cell or "\r" in cell for cell in row):
                self._add(row)

    def add(self, row: Sequence[str]) -> None:
        """Add a row that is on one line, unless it is one of the sample."""
        self._seen -= 1
        if self._seen < 0:
            self._add(row)

    def _add(self, row: Sequence[str]) -> None:
        if self._rows < _PROFILED_ROWS and len(row) == self._width:
            self._rows += 1
            for column, cell in zip(self._columns, row, strict=True):
                column.add(cell)

    def swallowed(self, row: Sequence[str], lines: Sequence[str]) -> bool:
        """Whether a row over several lines has swallowed other rows."""
        if self._trusted or self._width < 2:
            return False
        multi_line = [cell for cell in row if "\n" in cell or "\r" in cell]
        doubled = any('"' in cell for cell in multi_line)  # which CSV does, and hardly anything else
        if self._separator == "\t":
            whole = sum(line.count("\t") + 1 >= self._width for line in lines)
            return any("\t" in cell for cell in multi_line) and (whole > 1 or not doubled)
        if doubled:
            return False
        typed = any(column.is_typed for column in self._columns)
        alone = [self._is_row(line.rstrip("\r\n"), typed) for line in lines]
        return sum(alone) > 1 if typed else all(alone)

    def _is_row(self, line: str, typed: bool) -> bool:
        cells = line.split(self._separator)
        if len(cells) != self._width:
            return False
        if not typed:  # prose has a space after commas
            return all(_WORD.search(cell) for cell in cells) and not any(
                cell[0].isspace() for cell in cells[1:]
            )
        return all(
            column.fits(cell.strip(' "'))
            for cell, column in zip(cells, self._columns, strict=True)
            if column.is_typed
        )
