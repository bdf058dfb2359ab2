"""Detects the encoding of a text file from a sample of its bytes.

A byte order mark decides. Otherwise, valid UTF-8 is UTF-8: no other encoding looks like it by chance. For the
rest, chardet ranks the candidates; one is chosen only if it is clearly ahead of every candidate that reads
*this text* differently (two encodings that give the same text count as one).
"""

from __future__ import annotations

import codecs
import importlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from ptuning.data.places import shortened
from ptuning.errors import ConfigError, DataError

SURE = 1.08  # how far ahead of the second candidate the best must be
FEW_BYTES = 3  # with fewer non-ASCII bytes, nothing is decided
_EVIDENCE = 1 << 14  # bytes of lines with non-ASCII characters that are inspected
_MIN_CONFIDENCE = 0.02  # of chardet; below it there is no evidence
_NEAR = 0.6  # candidates below this share of the best confidence are dropped
_MARKS = (  # UTF-32 first: its little-endian mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: The supported encodings and their prior weights: western Windows first, then the others, then those of DOS
#: and old Macintoshes, then East Asian ones, which a few accented letters can resemble.
_PRIOR = {
    "cp1252": 1.25,
    **dict.fromkeys(["mac_roman", "cp437", "cp850", "cp852"], 0.8),
    **dict.fromkeys(
        [
            *("cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
            *("iso8859_2", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_8", "iso8859_9", "iso8859_13"),
            *("iso8859_15", "koi8_r", "koi8_u", "cp866"),
        ],
        1.0,
    ),
    **dict.fromkeys(["cp932", "euc_jp", "gb18030", "big5", "cp949"], 0.7),
}
_SAME = {  # a subset of another encoding is replaced by the wider one
    **{"iso8859_1": "cp1252", "shift_jis": "cp932", "euc_kr": "cp949", "tis_620": "cp874"},
    **{"gbk": "gb18030", "gb2312": "gb18030"},
}
_CONTROL = re.compile("[\x7f-\x9f]")
_WORDS_OF_ONE = frozenset("àáåæéèêíìóòôöÀÁÅÆÉÈÊÍÓÒÔÖ")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Python's name of an encoding, and a note for the user unless it is UTF-8."""

    name: str
    note: str = ""


def checked_encoding(name: str) -> str:
    """An encoding that the user named.

    Raises:
        ConfigError: Python has no encoding of that name.
    """
    try:
        found = codecs.lookup(name)
        if not found._is_text_encoding:
            raise LookupError
    except (LookupError, ValueError, TypeError):
        raise ConfigError(
            "data.encoding",
            got=repr(name),
            expected="the name of a text encoding, such as 'utf-8', 'cp1252' (western Windows), 'cp1251' "
            "(Cyrillic), 'shift_jis' or 'gb18030'",
        ) from None
    return {"utf-8": "utf-8-sig"}.get(found.name, found.name)  # a byte order mark is never text


def find_encoding(sample: bytes, source_name: str) -> Encoding:
    """The encoding of a text with the first bytes ``sample`` (which may end within a character).

    Raises:
        DataError: Several encodings are possible, and they read the text differently.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return Encoding(name=name, note="" if name == "utf-8-sig" else f"read as {name.upper()}")
    if (wide := _without_mark(sample)) is not None:
        return Encoding(name=wide, note=f"read as {wide.upper()}, detected from its zero bytes")
    beyond, damaged = _not_utf8(sample)
    if not damaged:
        if b"\x1b$" in sample and _decodes(sample, "iso2022_jp"):
            return Encoding(name="iso2022_jp", note="read as iso2022_jp (Japanese)")
        return Encoding(name="utf-8-sig")
    # Some bad rows in a UTF-8 file, or too little evidence: an error for those rows rather than a guess.
    if beyond > damaged or damaged < FEW_BYTES:
        return Encoding(name="utf-8-sig")
    readings = _readings(sample)
    second = readings[1][0] if len(readings) > 1 else 0.0
    if readings and readings[0][0] >= max(SURE * second, _MIN_CONFIDENCE):
        _, name, text = readings[0]
        example = _excerpt(text)
        return Encoding(
            name=name,
            note=f"not UTF-8, read as {name}, which gives {shortened(example, 60)}; if that is wrong, set "
            f"the "
            "encoding with --data.encoding",
        )
    if not readings:
        return Encoding(name="utf-8-sig")
    raise DataError(
        f"{source_name}: the text is not UTF-8, and its encoding is not certain", remedy=suggestion(sample)
    )


def suggestion(sample: bytes) -> str:
    """A remedy: the possible encodings of ``sample``, and what the text would be in each."""
    readings = _readings(sample)[:3]
    if not readings:
        return "save the file as UTF-8, or set its encoding with --data.encoding"
    candidates = ", or ".join(
        f"{name}, which gives {shortened(_excerpt(text), 50)}" for _, name, text in readings
    )
    return f"it may be {candidates}: set the right one, for example with --data.encoding {readings[0][1]}"


def _without_mark(sample: bytes) -> str | None:
    """UTF-16 without a byte order mark: nearly every second byte of a European text is zero."""
    head = sample[: len(sample) // 2 * 2][:2000]
    half = len(head) // 2
    if half < 4:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    name = (
        "utf-16-le"
        if odd > 0.4 * half and not even
        else "utf-16-be"
        if even > 0.4 * half and not odd
        else None
    )
    return name if name is not None and _decodes(sample[: len(head)], name) else None


def _decodes(sample: bytes, name: str) -> bool:
    try:
        codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(sample: bytes) -> tuple[int, int]:
    """The number of valid non-ASCII characters if read as UTF-8, and the number of invalid bytes."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    if text.isascii():
        return 0, 0
    beyond = len(re.findall("[^\x00-\x7f]", text))
    damaged = len(re.findall("[\udc80-\udcff]", text))
    return beyond - damaged, damaged


def _readings(sample: bytes) -> list[tuple[float, str, str]]:
    """Candidates for the non-ASCII lines: (weight, encoding, text), most likely first, each text once."""
    evidence = b"\n".join(_beyond_ascii(sample))
    found: dict[str, tuple[float, str]] = {}
    best = 0.0
    for guess in importlib.import_module("chardet").detect_all(evidence, ignore_threshold=True):
        try:
            name = codecs.lookup(guess["encoding"] or "").name.replace("-", "_")
        except LookupError:
            continue
        name = _SAME.get(name, name)
        if name not in _PRIOR:
            continue
        try:
            text = evidence.decode(name)
        except UnicodeDecodeError:
            continue
        best = max(best, guess["confidence"])
        if guess["confidence"] < _NEAR * best:
            break  # they are sorted by confidence
        weight = guess["confidence"] * _PRIOR[name]
        if not _CONTROL.search(text) and weight > found.get(text, (0.0, ""))[0]:
            found[text] = weight, name
    near = [(weight, name, text, _oddities(text)) for text, (weight, name) in found.items()]
    least = min((odd for *_, odd in near), default=0)
    return sorted(((weight, name, text) for weight, name, text, odd in near if odd == least), reverse=True)


def _beyond_ascii(sample: bytes) -> Iterator[bytes]:
    """Complete lines with non-ASCII characters, up to a limit."""
    size = 0
    for line in re.split(b"[\r\n]+", sample)[: -1 if len(sample) > _EVIDENCE else None]:
        if not line.isascii():
            yield line
            size += len(line)
            if size > _EVIDENCE:
                return


def _excerpt(text: str) -> str:
    """The text around the first non-ASCII character."""
    at = next((index for index, character in enumerate(text) if character > "\x7f"), 0)
    start = max(text.rfind("\n", 0, at) + 1, at - 20)
    return text[start : at + 30].split("\n")[0].strip()


def _oddities(text: str) -> int:
    """The number of implausible places in the text: symbols inside words, capitals inside words."""
    count = 0
    padded = f" {text} "
    for match in re.finditer("[^\x00-\x7f]", padded):
        before, this, after = padded[match.start() - 1], match[0], padded[match.start() + 1]
        kind = unicodedata.category(this)
        letters = before.isalpha() + after.isalpha()
        if kind[0] == "L":
            latin = "LATIN" in unicodedata.name(this, "")
            alone = not letters and latin and this not in _WORDS_OF_ONE
            count += alone or (latin and (before.isdigit() or after.isdigit()))
            count += (before.islower() and this.isupper()) or (this.islower() and after.isupper())
        elif kind in ("So", "Sk", "Sm", "No", "Cn", "Co", "Cf"):
            count += letters > 0
        elif kind in ("Sc", "Zs") or kind[0] == "P":
            count += (letters == 2 and this not in "’‘–—‐-·・") or (this in "‚„" and before.isalpha())
    return count
