"""Which encoding a text file is in, told from a sample of its bytes.

A byte order mark says it. Otherwise what is valid UTF-8 is UTF-8: no other encoding looks like it by
chance. Of the rest, chardet ranks what the bytes may be; a choice is made only where the best reading is
clearly ahead of every other reading *of this text* (two encodings that give the same text are one reading).
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

SURE = 1.08  # how far ahead of the next reading the best has to be
FEW_BYTES = 3  # with fewer bytes beyond ASCII nothing is decided from them
_EVIDENCE = 1 << 14  # bytes of lines beyond ASCII that are looked at
_LEAST = 0.02  # chardet's confidence, below which it has seen nothing
_NEAR = 0.6  # readings below this share of the best one's confidence are out of the question
_MARKS = (  # UTF-32 first: its little-endian mark begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: What files are still found in, and how likely before a byte is seen: western Windows before the rest; after
#: them what DOS and old Macintoshes wrote, and the East Asian ones, which a few accents can look like.
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
_SAME = {  # a subset of another encoding is called by the wider name
    **{"iso8859_1": "cp1252", "shift_jis": "cp932", "euc_kr": "cp949", "tis_620": "cp874"},
    **{"gbk": "gb18030", "gb2312": "gb18030"},
}
_CONTROL = re.compile("[\x7f-\x9f]")
_WORDS_OF_ONE = frozenset("àáåæéèêíìóòôöÀÁÅÆÉÈÊÍÓÒÔÖ")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """An encoding as Python calls it, and whether to tell the user (UTF-8 needs no word)."""

    name: str
    note: str = ""


def checked_encoding(name: str) -> str:
    """An encoding that the user named.

    Raises:
        ConfigError: Python knows none of that name.
    """
    try:
        found = codecs.lookup(name)
        if not found._is_text_encoding:
            raise LookupError
    except (LookupError, ValueError, TypeError):
        raise ConfigError(
            f"data.encoding: got {name!r}, expected the name of a text encoding, such as 'utf-8', 'cp1252' "
            "(western Windows), 'cp1251' (Cyrillic), 'shift_jis' or 'gb18030'"
        ) from None
    return {"utf-8": "utf-8-sig"}.get(found.name, found.name)  # a mark at the beginning is never text


def find_encoding(sample: bytes, source_name: str) -> Encoding:
    """The encoding of a text that begins with ``sample`` (which may end within a character).

    Raises:
        DataError: Several encodings could be meant, and they read the text differently.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return Encoding(name=name, note="" if name == "utf-8-sig" else f"read as {name.upper()}")
    if (wide := _without_mark(sample)) is not None:
        return Encoding(name=wide, note=f"read as {wide.upper()}, told from its zero bytes")
    beyond, damaged = _not_utf8(sample)
    if not damaged:
        if b"\x1b$" in sample and _decodes(sample, "iso2022_jp"):
            return Encoding(name="iso2022_jp", note="read as iso2022_jp (Japanese)")
        return Encoding(name="utf-8-sig")
    # Rows that are not UTF-8 in a file that is, or too little to tell: an error for the row, never a guess.
    if beyond > damaged or damaged < FEW_BYTES:
        return Encoding(name="utf-8-sig")
    readings = _readings(sample)
    second = readings[1][0] if len(readings) > 1 else 0.0
    if readings and readings[0][0] >= max(SURE * second, _LEAST):
        _, name, text = readings[0]
        example = _excerpt(text)
        return Encoding(
            name=name,
            note=f"not UTF-8, read as {name}, in which it says {shortened(example, 60)}; if that is wrong, "
            "name the encoding with --data.encoding",
        )
    if not readings:
        return Encoding(name="utf-8-sig")
    raise DataError(
        f"{source_name}: the text is not UTF-8, and which encoding it is in is not certain; {suggestion(sample)}"
    )


def suggestion(sample: bytes) -> str:
    """Which encodings ``sample`` may be in, how it would read in each, and what to do about it."""
    readings = _readings(sample)[:3]
    if not readings:
        return "save the file as UTF-8, or name its encoding with --data.encoding"
    looks = ", or ".join(
        f"{name}, in which it says {shortened(_excerpt(text), 50)}" for _, name, text in readings
    )
    return f"it may be in {looks}: name the right one, for example with --data.encoding {readings[0][1]}"


def _without_mark(sample: bytes) -> str | None:
    """UTF-16 without its mark: nearly every other byte of a European text is zero then."""
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
    """How many characters beyond ASCII are valid UTF-8, and how many bytes are not."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    if text.isascii():
        return 0, 0
    beyond = len(re.findall("[^\x00-\x7f]", text))
    damaged = len(re.findall("[\udc80-\udcff]", text))
    return beyond - damaged, damaged


def _readings(sample: bytes) -> list[tuple[float, str, str]]:
    """What the lines beyond ASCII may say: (weight, encoding, text), the likeliest first, each text once."""
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
            break  # they come best first
        weight = guess["confidence"] * _PRIOR[name]
        if not _CONTROL.search(text) and weight > found.get(text, (0.0, ""))[0]:
            found[text] = weight, name
    near = [(weight, name, text, _oddities(text)) for text, (weight, name) in found.items()]
    least = min((odd for *_, odd in near), default=0)
    return sorted(((weight, name, text) for weight, name, text, odd in near if odd == least), reverse=True)


def _beyond_ascii(sample: bytes) -> Iterator[bytes]:
    """Whole lines that hold more than ASCII, up to a bound."""
    size = 0
    for line in re.split(b"[\r\n]+", sample)[: -1 if len(sample) > _EVIDENCE else None]:
        if not line.isascii():
            yield line
            size += len(line)
            if size > _EVIDENCE:
                return


def _excerpt(text: str) -> str:
    """What stands around the first character beyond ASCII."""
    at = next((index for index, character in enumerate(text) if character > "\x7f"), 0)
    start = max(text.rfind("\n", 0, at) + 1, at - 20)
    return text[start : at + 30].split("\n")[0].strip()


def _oddities(text: str) -> int:
    """How often the text reads as no text does: symbols grown onto letters, capitals within words."""
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
