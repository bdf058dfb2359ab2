"""From bytes to lines of text: the beginning is looked at before anything is read, and no line is unbounded.

A stream is never asked for more than it has sent before its first line is complete, so that rows that come
slowly are read as they come.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import IO, Any, cast

from ptuning.data.encodings import checked_encoding, find_encoding, suggestion
from ptuning.data.reading import Reading

LONGEST = 1 << 24  # characters of a line, a cell or a JSON value
SAMPLE = 1 << 20  # bytes of a file that tell its encoding, its separator and its form
_CHUNK = 1 << 16
#: How a byte that cannot be decoded is shown: half a surrogate pair, which no text holds.
_LINE_END = re.compile("(?<=\n)|(?<=\r)(?!\n)")
_UNDECODED = re.compile("[\udc00-\udcff]")


def _escape_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("ptuning.undecoded", _escape_bytes)


class Sampled(io.BufferedIOBase):
    """A binary stream whose first bytes have been read, and are read again."""

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
    """The first bytes of a stream, whether they are all of it, and the stream with them still in it.

    Args:
        wait: Whether a whole sample is worth waiting for (a file); otherwise a first line is enough.
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

    A line that is too long or cannot be decoded is put on ``broken`` when it is given: as (line, kind,
    message). Of one that is too long only its end is given.
    """

    def __init__(self, text: io.TextIOWrapper, encoding: str) -> None:
        self.number = 0
        self.broken: list[tuple[int, str, str]] = []
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
        """The lines that are not broken, where a line is a row; the others are reported."""
        for line in self:
            if not (self.broken and self.report(self.number, self.number, reading)):
                yield line

    def broken_until(self, last: int) -> list[tuple[int, str, str]]:
        """The broken lines up to ``last``, which are then forgotten."""
        found = [each for each in self.broken if each[0] <= last]
        self.broken = self.broken[len(found) :]
        return found

    def report(self, row: int, last: int, reading: Reading) -> bool:
        """Report ``row``, which ends in line ``last``, if one of its lines is broken."""
        found = self.broken_until(last)
        for number, kind, message in found[:1]:
            reading.bad(row, kind, message if number == row else f"its line {number}: {message}")
        return bool(found)


def too_long(what: str) -> str:
    """What is wrong with a line or a value that is longer than :data:`LONGEST`."""
    return (
        f"a {what} of more than {LONGEST:,} characters, expected fewer; check that every row ends with a "
        "line break, or cut the text"
    )


def undecoded(line: str, encoding: str) -> str | None:
    """What is wrong with a line that holds bytes that could not be decoded, if it does."""
    bad = _UNDECODED.search(line)
    if bad is None:
        return None
    byte = ord(bad.group()) - 0xDC00
    if encoding != "utf-8-sig":
        return (
            f"byte 0x{byte:02x} at character {bad.start() + 1} is not {encoding}, expected text in that "
            "encoding throughout; mend the line, or name another with --data.encoding"
        )
    around = line[max(0, bad.start() - 200) : bad.start() + 200]
    return (
        f"byte 0x{byte:02x} at character {bad.start() + 1} is not UTF-8, expected UTF-8 text; mend the line, "
        f"or, if the whole file is in another encoding, say so: {suggestion(_as_bytes(around))}"
    )


def _as_bytes(text: str) -> bytes:
    return b"".join(
        bytes([ord(each) - 0xDC00]) if _UNDECODED.match(each) else each.encode("utf-8", "replace")
        for each in text
    )


def encoding_of(head: bytes, reading: Reading) -> str:
    """The encoding that the user named, or the one found, which is said."""
    if reading.encoding is not None:
        return checked_encoding(reading.encoding)
    found = find_encoding(head, reading.origin.name)
    if found.note:
        reading.say(found.note)
    return found.name


class Text:
    """A text whose encoding is known.

    Args:
        head: Its first bytes.
        whole: Whether they are all of it.
        stream: All of its bytes, the first ones too.
        reading: Says the encoding, if the user named one, and is told.
    """

    def __init__(self, head: bytes, whole: bool, stream: IO[bytes], reading: Reading) -> None:
        self.encoding = encoding_of(head, reading)
        self.whole = whole
        self.beginning = codecs.getincrementaldecoder(self.encoding)("ptuning.undecoded").decode(head, whole)
        self._stream = stream

    def opened(self, newline: str | None) -> io.TextIOWrapper:
        """All of it, once; ``newline`` as in :func:`open`."""
        return self.of(self._stream, newline)

    def of(self, stream: IO[bytes], newline: str | None) -> io.TextIOWrapper:
        """Other bytes in the same encoding."""
        return io.TextIOWrapper(stream, encoding=self.encoding, errors="ptuning.undecoded", newline=newline)

    def lines(self, newline: str | None = "") -> Lines:
        """The lines, once."""
        return Lines(self.opened(newline), self.encoding)

    def first_lines(self) -> list[str]:
        """The whole lines that are known before anything is read, each with its end."""
        found = [line for line in _LINE_END.split(self.beginning) if line]
        return found if self.whole or len(found) < 2 or found[-1][-1] in "\r\n" else found[:-1]
