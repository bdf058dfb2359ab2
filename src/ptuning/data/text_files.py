"""From bytes to lines of text, with a look at the first bytes before reading, and a limit on line length.

A stream is not read beyond its first complete line before that line is used, so that slow streams work.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO, Any, cast

from ptuning.data.encodings import checked_encoding, find_encoding, suggestion
from ptuning.data.places import located
from ptuning.data.reading import Reading
from ptuning.errors import DataError

LONGEST = 1 << 24  # maximum characters of a line, a cell or a JSON value
SAMPLE = 1 << 20  # bytes of a file from which its encoding, separator and form are detected
_CHUNK = 1 << 16
_LINE_END = re.compile("(?<=\n)|(?<=\r)(?!\n)")
#: A byte that cannot be decoded is represented by a lone surrogate, which does not occur in text.
_UNDECODED = re.compile("[\udc00-\udcff]")


def _escape_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("ptuning.undecoded", _escape_bytes)


class Sampled(io.BufferedIOBase):
    """A binary stream, with bytes in front that have been read from it already."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream: Any = stream
        self._read1 = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        head, self._head = self._head, b""
        if size is None or size < 0:
            return head + cast(bytes, self._stream.read())
        self._head = head[size:]
        head = head[:size]
        return head if len(head) == size else head + cast(bytes, self._stream.read(size - len(head)) or b"")

    def read1(self, size: int = -1) -> bytes:
        if not self._head:
            return cast(bytes, self._read1(_CHUNK if size < 0 else size) or b"")
        size = len(self._head) if size < 0 else size
        head, self._head = self._head[:size], self._head[size:]
        return head


def sampled(stream: IO[bytes], *, wait: bool) -> tuple[bytes, bool, IO[bytes]]:
    """The first bytes of a stream, whether they are all of it, and the stream from its start.

    Args:
        wait: Whether to wait for a full sample (of a file); otherwise the first line is enough.
    """
    read: Any = getattr(stream, "read1", stream.read)
    head = b""
    while len(head) < SAMPLE:
        piece = read(SAMPLE - len(head) if wait else _CHUNK)
        if not piece:
            return head, True, cast(IO[bytes], Sampled(head, stream))
        head += piece
        if not wait and b"\n" in head.lstrip(b"\xef\xbb\xbf\xff\xfe\x00\r\n"):
            break
    return head, False, cast(IO[bytes], Sampled(head, stream))


class Lines:
    """The lines of a text, counted, each with its line end.

    A line that is too long or cannot be decoded is added to ``broken``, as (line, kind, error), when it is
    returned. A line that is too long is returned empty.
    """

    def __init__(self, text: io.TextIOWrapper, encoding: str) -> None:
        self.number = 0
        self.broken: list[tuple[int, str, DataError]] = []
        self._text = text
        self._encoding = encoding

    def __iter__(self) -> Iterator[str]:
        read = self._text.readline
        while line := read(LONGEST + 1):
            self.number += 1
            if len(line) > LONGEST:
                while (rest := read(LONGEST)) and rest[-1] not in "\r\n":
                    pass
                self.broken.append((self.number, "too long", too_long("line")))
                line = "\n"
            elif not line.isascii() and (problem := undecoded(line, self._encoding)):
                self.broken.append((self.number, "encoding", problem))
            yield line

    def sound(self, reading: Reading) -> Iterator[str]:
        """The lines that are not broken, for files with one row per line; the others are reported."""
        for line in self:
            if not (self.broken and self.report(self.number, self.number, reading)):
                yield line

    def broken_until(self, last: int) -> list[tuple[int, str, DataError]]:
        """Remove and return the broken lines up to ``last``."""
        found = [each for each in self.broken if each[0] <= last]
        self.broken = self.broken[len(found) :]
        return found

    def report(self, row: int, last: int, reading: Reading) -> bool:
        """Report ``row``, which ends in line ``last``, if one of its lines is broken."""
        found = self.broken_until(last)
        for number, kind, error in found[:1]:
            reading.bad_row(row, kind, error if number == row else located(error, f"its line {number}"))
        return bool(found)


def too_long(what: str) -> DataError:
    """The error for a line or a value that is longer than :data:`LONGEST`."""
    return DataError(
        got=f"a {what} of more than {LONGEST:,} characters",
        expected="fewer",
        remedy="check that every row ends with a line break, or shorten the text",
    )


def undecoded(line: str, encoding: str) -> DataError | None:
    """The error for a line with bytes that could not be decoded; ``None`` if it has none."""
    bad = _UNDECODED.search(line)
    if bad is None:
        return None
    byte = f"byte 0x{ord(bad.group()) - 0xDC00:02x} at character {bad.start() + 1}"
    if encoding != "utf-8-sig":
        return DataError(
            f"{byte} is not {encoding}",
            expected="text in that encoding throughout",
            remedy="correct the line, or set another encoding with --data.encoding",
        )
    around = line[max(0, bad.start() - 200) : bad.start() + 200]
    return DataError(
        f"{byte} is not UTF-8",
        expected="UTF-8 text",
        remedy="correct the line, or, if the entire file is in another encoding, set it: "
        + suggestion(_as_bytes(around)),
    )


def _as_bytes(text: str) -> bytes:
    return b"".join(
        bytes([ord(each) - 0xDC00]) if _UNDECODED.match(each) else each.encode("utf-8", "replace")
        for each in text
    )


def encoding_of(head: bytes, reading: Reading) -> str:
    """The encoding that the user set, or the detected one, with a note."""
    if reading.encoding is not None:
        return checked_encoding(reading.encoding)
    found = find_encoding(head, reading.origin.name)
    if found.note:
        reading.add_note(found.note)
    return found.name


class Text:
    """A text with a known encoding.

    Args:
        head: Its first bytes.
        complete: Whether they are all of it.
        stream: All of its bytes, including the first ones.
        reading: Has the encoding, if the user set one, and receives notes.
    """

    def __init__(self, head: bytes, complete: bool, stream: IO[bytes], reading: Reading) -> None:
        self.encoding = encoding_of(head, reading)
        self.complete = complete
        decoder = codecs.getincrementaldecoder(self.encoding)("ptuning.undecoded")
        self.beginning = decoder.decode(head, complete)
        self._stream = stream

    def opened(self, newline: str | None) -> io.TextIOWrapper:
        """The entire text, once; ``newline`` as in :func:`open`."""
        return self.of(self._stream, newline)

    def of(self, stream: IO[bytes], newline: str | None) -> io.TextIOWrapper:
        """Other bytes in the same encoding."""
        return io.TextIOWrapper(stream, encoding=self.encoding, errors="ptuning.undecoded", newline=newline)

    def lines(self, newline: str | None = "") -> Lines:
        """The lines, once."""
        return Lines(self.opened(newline), self.encoding)

    def first_lines(self) -> list[str]:
        """The complete lines in the first bytes, each with its end."""
        found = [line for line in _LINE_END.split(self.beginning) if line]
        return found if self.complete or len(found) < 2 or found[-1][-1] in "\r\n" else found[:-1]
