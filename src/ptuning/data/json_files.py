"""Rows of JSON files of any form: an object per line, objects one after another, or one document.

A document is an array of objects, read item by item; an object with such an array in it (``{"data": [...]}``,
pandas' ``split`` and ``table``); or an object of columns, each a list or, as pandas writes it, an object
by row (``{"text": {"0": …}, "label": {"0": …}}``). Duplicate names in an object are refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ptuning.data.columns import LABEL_NAMES, TEXT_NAMES
from ptuning.data.places import listing, shortened
from ptuning.data.reading import Reading, Row, Rows
from ptuning.data.text_files import LONGEST, Text, undecoded
from ptuning.errors import DataError

MAX_DOCUMENT = 1 << 28  # characters of a document that is not an array, which is read into memory
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_NAMES = frozenset({*TEXT_NAMES, *LABEL_NAMES})


def json_rows(text: Text, reading: Reading) -> Rows:
    """The rows of a JSON file of any of these forms."""
    beginning = text.beginning.lstrip()
    if beginning.startswith("["):
        reading.count_in("item")
        yield from _array_rows(text, reading)
    elif _is_multi_line(beginning, text.complete):
        reading.count_in("item")
        yield from _table(_object_rows(text, reading), reading)
    else:
        yield from _table(_line_rows(text, reading), reading)


def _is_multi_line(beginning: str, complete: bool) -> bool:
    """Whether the text starts with an object that spans several lines."""
    if not beginning.startswith("{"):
        return False
    first, end, _ = beginning.partition("\n")
    if not end:
        return not complete  # longer than any line should be
    try:
        _plain.raw_decode(first)
    except RecursionError:
        return False
    except json.JSONDecodeError:
        pass
    except ValueError:  # a number with thousands of digits
        return False
    else:
        return False
    try:
        _plain.raw_decode(beginning)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.pos > len(first) + 1 and _is_unfinished(first)
    except ValueError:
        pass
    return True


def _is_unfinished(line: str) -> bool:
    """Whether a line is the first line of an indented object rather than a damaged row."""
    try:
        _plain.raw_decode(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip())
    return False


# Values -------------------------------------------------------------------------------------------


_plain = json.JSONDecoder()


def _twice(pairs: list[tuple[str, Any]]) -> str:
    """The duplicate name among an object's pairs."""
    return next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)


class _Values:
    """Parses JSON values one after another from a text of any length."""

    def __init__(self, read: Callable[[int], str], longest: int) -> None:
        self._read = read
        self._longest = longest
        self._text = ""
        self._at = 0
        self._ended = False
        self._repeated: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            self._repeated = _twice(pairs)
        return row

    def _more(self, size: int) -> bool:
        piece = self._read(size)
        self._ended = not piece
        self._text = self._text[self._at :] + piece
        self._at = 0
        return not self._ended

    def next_character(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended or not self._more(_CHUNK):
                return ""

    def skip(self) -> None:
        """Skip the character that :meth:`next_character` returned."""
        self._at += 1

    def value(self) -> tuple[Any, str, str | None]:
        """The next value, its source text, and what is wrong with it if reading can continue after it.

        Raises:
            ValueError: There is no value here, or it is too long.
        """
        self.next_character()
        size = _CHUNK
        while True:
            self._repeated = None
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A truncated value fails at its end, a truncated string at its start.
                cut = error.pos >= len(self._text) - 16 or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    written = shortened(self._text[self._at : self._at + 200])
                    raise ValueError(
                        f"{error.msg} at character {error.pos - self._at + 1} of {written}"
                    ) from None
            except (ValueError, RecursionError) as error:  # nested too deep, a number too long
                raise ValueError(str(error)) from None
            else:
                if self._ended or end < len(self._text):
                    written = self._text[self._at : end]
                    self._at = end
                    return value, written, _repeated(self._repeated)
            if len(self._text) - self._at > self._longest:
                raise ValueError(f"a JSON value of more than {self._longest:,} characters")
            self._more(size)
            size *= 2


def _repeated(name: str | None) -> str | None:
    return None if name is None else f"the name {name!r} occurs twice"


# Objects ------------------------------------------------------------------------------------------


def _line_rows(text: Text, reading: Reading) -> Rows:
    """One object per line."""
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> Row:
        row = dict(items)
        if len(row) != len(items):
            repeated.append(f"the name {_twice(items)!r} occurs twice")
        return row

    decode = json.JSONDecoder(object_pairs_hook=pairs).decode
    lines = text.lines("\n")
    for line in lines.sound(reading):
        if not line.strip():
            continue
        try:
            value = decode(line)
        except json.JSONDecodeError as error:
            _bad_line(line, lines.number, f"{error.msg} at character {error.pos + 1}", reading)
        except (ValueError, RecursionError) as error:  # nested too deep, a number too long
            _bad_line(line, lines.number, str(error), reading)
        else:
            if repeated:
                _bad_line(line, lines.number, repeated[0], reading)
            elif (row := _object(value, lines.number, line.strip(), reading)) is not None:
                yield lines.number, row
        repeated.clear()


def _bad_line(line: str, number: int, problem: str, reading: Reading) -> None:
    reading.bad_row(
        number,
        "json",
        DataError(
            f"not a JSON object ({problem}): {shortened(line.strip())}",
            expected="one complete object per line",
            remedy="correct the line, or remove it",
        ),
    )


def _object(value: Any, number: int, written: str, reading: Reading) -> Row | None:
    if isinstance(value, dict):
        return value
    reading.bad_row(
        number,
        "json",
        DataError(
            got=f"a JSON {type(value).__name__}: {shortened(written)}",
            expected='an object such as {"text": "…", "label": "…"}',
        ),
    )
    return None


def _checked(values: _Values, number: int, text: Text, reading: Reading) -> Row | None:
    """The next value as a row; ``None`` if it is not a row, which is reported."""
    try:
        value, written, problem = values.value()
    except ValueError as error:
        raise DataError(
            f"{reading.origin.at(number)}: not JSON ({error})",
            expected="a sequence of complete objects",
            remedy="correct the file, or write it again",
        ) from None
    if not written.isascii() and problem is None and (broken := undecoded(written, text.encoding)):
        reading.bad_row(number, "encoding", broken)
        return None
    if problem is not None:
        reading.bad_row(
            number,
            "json",
            DataError(
                f"{problem}, in {shortened(written)}",
                remedy="correct the row, or remove it",
            ),
        )
        return None
    return _object(value, number, written, reading)


def _object_rows(text: Text, reading: Reading) -> Rows:
    """Objects one after another, each on one or more lines."""
    values = _Values(text.opened(None).read, MAX_DOCUMENT)
    number = 0
    while values.next_character():
        number += 1
        row = _checked(values, number, text, reading)
        if row is not None:
            yield number, row


def _array_rows(text: Text, reading: Reading) -> Rows:
    """The objects of an array."""
    values = _Values(text.opened(None).read, LONGEST)
    values.next_character()
    values.skip()
    number = 0
    going_on = values.next_character() != "]"
    while going_on:
        number += 1
        row = _checked(values, number, text, reading)
        if row is not None:
            yield number, row
        following = values.next_character()
        going_on = following == ","
        if going_on:
            values.skip()
        elif following != "]":
            got = repr(following) if following else "the end of the file"
            raise DataError(
                f"{reading.origin.name}, after item {number}",
                got=got,
                expected="',' or the ']' that ends the array",
                remedy="check that whatever wrote the file finished",
            )
    values.skip()
    if rest := values.next_character():
        raise DataError(
            f"{reading.origin.name}, after the array of {number} items",
            got=repr(rest),
            expected="the end of the file",
            remedy="write one array, or one object per line",
        )


# Documents ----------------------------------------------------------------------------------------


def _table(rows: Rows, reading: Reading) -> Rows:
    """``rows``; or, if a single object is a table, the rows in it."""
    first = next(rows, None)
    if first is None:
        return
    if _is_row(first[1]):
        yield first
    else:
        second = next(rows, None)
        inner = None if second is not None else _rows_in(first[1], reading.origin.name)
        if inner is not None:
            reading.count_in("item")
            for number, value in enumerate(inner, 1):
                row = _object(value, number, repr(value), reading)
                if row is not None:
                    yield number, row
            return
        yield first
        if second is not None:
            yield second
    yield from rows


def _is_row(found: Mapping[str, Any]) -> bool:
    """Whether an object is certainly a row: it has no nested values, or it has a text of its own."""
    nested = any(isinstance(value, list | Mapping) for value in found.values())
    return not nested or any(isinstance(found.get(name), str) for name in _NAMES)


def _rows_in(document: Mapping[str, Any], source_name: str) -> Iterable[Any] | None:
    """The rows of an object that is a table; ``None`` if it is a row."""
    names: Any = document.get("columns")
    data: Any = document.get("data")
    if _is_list_of(names, str) and _is_list_of(data, list):  # pandas' "split"
        columns = [dict(enumerate(column)) for column in zip(*data, strict=False)]
        return _columns(dict(zip(names, columns, strict=False)), source_name)
    tables = [name for name, value in document.items() if _is_list_of(value, Mapping)]
    if len(tables) > 1:
        raise DataError(
            f"{source_name}: it has several tables ({listing(tables)})",
            expected="one",
            remedy="save the one to be read as a file of its own",
        )
    if tables:
        return list(document[tables[0]])
    values = list(document.values())
    if all(isinstance(value, list) for value in values):
        return _columns({name: dict(enumerate(value)) for name, value in document.items()}, source_name)
    if all(isinstance(value, Mapping) for value in values) and len({tuple(value) for value in values}) == 1:
        inner = list(values[0])
        if _NAMES & {name.casefold() for name in inner} and not all(name.isdecimal() for name in inner):
            return values  # pandas' "index": an object per row
        return _columns(document, source_name)
    return None


def _columns(columns: Mapping[str, Mapping[Any, Any]], source_name: str) -> list[Row]:
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        sizes_in_words = ", ".join(f"{name!r} has {size}" for name, size in list(sizes.items())[:6])
        raise DataError(
            f"{source_name}: its columns have different lengths ({sizes_in_words})",
            expected="the same number of values in each",
            remedy="write the file again",
        )
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*(each.values() for each in columns.values()), strict=True)
    ]


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, kind) for each in value)
