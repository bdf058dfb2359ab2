"""Encodings: told from the bytes where it is certain, asked about where not."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Problem, load_examples, open_table
from ptuning.errors import ConfigError, DataError

TEXTS = {
    "English": [
        "the kettle boils fast – “naïve” 5 €",
        "the courier’s box was lost again…",
        "£5 for a café, fine",
    ],
    "French": ["la bouilloire est très rapide et déjà usée", "le livreur a perdu mon colis, c'est gênant"],
    "German": ["Die Küche ist schön und groß", "Der Kessel läuft über und ist häßlich"],
    "Spanish": ["el niño comió mañana y está bien", "¿dónde está mi paquete?"],
    "Polish": ["żółta łódka pływa źle", "świetny czajnik, gotuje się szybko", "nie działa, zwróciłem"],
    "Czech": ["příliš žluťoučký kůň úpěl ďábelské ódy", "konvice teče a je špatná"],
    "Hungarian": ["árvíztűrő tükörfúrógép", "a vízforraló gyorsan működik"],
    "Russian": ["чайник кипит быстро", "курьер потерял мою коробку"],
    "Greek": ["ο βραστήρας είναι γρήγορος", "χάθηκε το δέμα μου"],
    "Turkish": ["çaydanlık çok hızlı kaynıyor", "kurye kutumu kaybetti, şaşırdım"],
    "Japanese": ["やかんはすぐに沸きます", "宅配便がまた荷物を失くした"],
    "Chinese": ["水壶烧得很快", "快递员又把我的箱子弄丢了"],
    "Taiwanese": ["水壺燒得很快", "快遞員又把我的箱子弄丟了"],
    "Korean": ["주전자가 빨리 끓어요", "택배 기사가 또 상자를 잃어버렸어요"],
    "Hebrew": ["הקומקום רותח מהר", "השליח איבד את החבילה שלי"],
    "Arabic": ["الغلاية تغلي بسرعة", "فقد الساعي صندوقي"],
    "Thai": ["กาต้มน้ำเดือดเร็ว", "คนส่งของทำกล่องหาย"],
}
NATIONAL = {
    "English": ["cp1252", "mac_roman"],
    "French": ["cp1252", "iso8859_15", "mac_roman"],
    "German": ["cp1252", "latin1", "cp850", "mac_roman"],
    "Spanish": ["cp1252", "latin1"],
    "Polish": ["cp1250"],
    "Czech": ["cp1250", "iso8859_2"],
    "Hungarian": ["cp1250", "iso8859_2"],
    "Russian": ["cp1251", "koi8_r", "iso8859_5", "cp866"],
    "Greek": ["cp1253", "iso8859_7"],
    "Turkish": ["cp1254", "iso8859_9"],
    "Japanese": ["shift_jis", "euc_jp", "cp932", "iso2022_jp"],
    "Chinese": ["gb18030", "gbk"],
    "Taiwanese": ["big5"],
    "Korean": ["euc_kr", "cp949"],
    "Hebrew": ["cp1255"],
    "Arabic": ["cp1256"],
    "Thai": ["cp874"],
}
CASES = [(language, encoding) for language, encodings in NATIONAL.items() for encoding in encodings]


def csv_of(texts: list[str]) -> str:
    return "text,label\n" + "".join(
        f'"{text}",{"good" if n % 2 else "bad"}\n' for n, text in enumerate(texts)
    )


def texts_in(table: Any) -> list[str]:
    return [row["text"] for _, row in table.rows]


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_a_national_encoding_is_told_and_said(tmp_path: Path, language: str, encoding: str) -> None:
    texts = TEXTS[language]
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(texts).encode(encoding))
    table = open_table(path)
    assert texts_in(table) == texts
    assert re.search("not UTF-8, read as .*, which gives|read as iso2022_jp", table.notes[0])
    stream = open_table(io.BytesIO("\n".join(texts).encode(encoding)), format="text", encoding=encoding)
    assert texts_in(stream) == texts
    assert not stream.notes


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8-sig", b""),
        ("utf-16", b""),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32", b""),
        ("utf-32-be", b"\x00\x00\xfe\xff"),
    ],
)
@pytest.mark.parametrize("sep", [",", "\t"])
def test_unicode_is_known_by_its_mark_or_its_zeros(
    tmp_path: Path, encoding: str, mark: bytes, sep: str
) -> None:
    content = "text,label\r\n".replace(",", sep) + "".join(f"déjà vu {n}{sep}good\r\n" for n in range(9))
    path = tmp_path / "a.csv"
    path.write_bytes(mark + content.encode(encoding))
    for table in (open_table(path), open_table(io.BytesIO(path.read_bytes()), format="csv")):
        assert texts_in(table) == [f"déjà vu {n}" for n in range(9)]
        assert ("UTF" in "".join(table.notes)) == (encoding != "utf-8-sig")


def test_an_encoding_that_is_given_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(["naïve"]).encode("latin1"))
    loaded = load_examples(path, encoding="ISO-8859-1")
    assert loaded.examples[0].text == "naïve"
    assert loaded.notes == ()
    for name in ("nothing", "hex", "a\0b", ""):
        with pytest.raises(
            ConfigError, match=r"data\.encoding: got .*, expected the name of a text encoding"
        ):
            open_table(path, encoding=name)


def test_a_byte_that_the_given_encoding_has_not_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\nfine,a\nb\x81d,b\n")
    with pytest.raises(DataError, match=r"line 3: byte 0x81 at character 2 is not cp1252"):
        list(open_table(path, encoding="cp1252").rows)


@pytest.mark.parametrize("where", [1, 50, 40_000])
@pytest.mark.parametrize("end", ["", "é"])
def test_one_bad_byte_in_utf8_is_an_error_for_its_row(tmp_path: Path, where: int, end: str) -> None:
    rows = [f"the café number {n}{end}".encode() for n in range(where + 3)]
    rows[where] = b"caf\xe9"
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n".join(rows))
    problems: list[Problem] = []
    found = texts_in(open_table(path, problems=problems))
    assert len(found) == where + 2
    assert [(problem.row, problem.kind) for problem in problems] == [(where + 1, "encoding")]
    assert "byte 0xe9 at character 4 is not UTF-8" in problems[0].message
    assert "cp1252, which gives 'café'" in problems[0].message
    with pytest.raises(DataError, match=f"line {where + 1}: byte 0xe9"):
        texts_in(open_table(path))


def test_a_bad_byte_within_a_cell_over_several_lines_costs_that_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        'text,label\nété,a\n"one\ntwö\nthree",b\nfine,a\n'.encode().replace("ö".encode(), b"\xf6")
    )
    problems: list[Problem] = []
    assert texts_in(open_table(path, problems=problems)) == ["été", "fine"]
    assert [problem.row for problem in problems] == [3]
    assert ", line 3: its line 4: byte 0xf6" in problems[0].message


def test_what_could_be_several_encodings_is_asked_about_with_how_each_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(["déjà", "à", "là"]).encode("cp1252"))
    with pytest.raises(DataError) as caught:
        open_table(path)
    message = str(caught.value)
    assert "cp1252, which gives" in message
    assert "déjà" in message
    assert "set the right one, for example with --data.encoding" in message
    assert "iconv" not in message
    assert texts_in(open_table(path, encoding="cp1252")) == ["déjà", "à", "là"]


@given(st.lists(st.text(st.characters(codec="cp1252", exclude_categories=["Cc"]), min_size=1), min_size=1))
def test_utf8_is_never_read_as_anything_else(texts: list[str]) -> None:
    table = open_table(io.BytesIO("\n".join(texts).encode()), format="text")
    assert texts_in(table) == texts
    assert not table.notes
