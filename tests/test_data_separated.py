"""CSV and TSV: separators, quotes, headers and rows of the wrong length; no row is lost without a word."""

from __future__ import annotations

import csv
import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptuning.data import Problem, Table, load_examples, open_table, text_files
from ptuning.errors import ConfigError, DataError

ROWS = [
    (f"{text}, visit {visit}", label)
    for visit in range(5)
    for text, label in [
        ("the kettle boils fast", "good"),
        ("the jacket tore", "bad"),
        ("best soup in town", "good"),
        ("the courier lost my box", "bad"),
    ]
]


def written(
    rows: Sequence[Sequence[Any]], head: Sequence[str] | None = ("text", "label"), sep: str = ",", **how: Any
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sep, **how)
    writer.writerows([head, *rows] if head is not None else rows)
    return text.getvalue()


def unquoted(rows: Sequence[Sequence[str]], head: Sequence[str] = ("text", "label"), sep: str = "\t") -> str:
    return "".join(sep.join(row) + "\n" for row in [head, *rows])


def opened(path: Path, content: str | bytes, **options: Any) -> Table:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(path, **options)


def cells(table: Table) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for _, row in table.rows]


def collected(
    path: Path, content: str, **options: Any
) -> tuple[list[tuple[int, tuple[str, ...]]], list[Problem]]:
    problems: list[Problem] = []
    table = opened(path, content, problems=problems, **options)
    return [(number, tuple(row.values())) for number, row in table.rows], problems


# Quotes ------------------------------------------------------------------------------------------


def with_halves(opens: int, closes: int) -> list[tuple[str, str]]:
    """Texts without commas, of which one begins with a quotation mark and a later one ends with one."""
    rows = [(text.replace(",", ""), label) for text, label in ROWS]
    rows[opens] = '"half quoted ' + rows[opens][0], rows[opens][1]
    rows[closes] = rows[closes][0] + '"', rows[closes][1]
    return rows


@pytest.mark.parametrize(("opens", "closes"), [(3, 4), (0, 19), (2, 12)])
@pytest.mark.parametrize("text_first", [True, False])
def test_a_tsv_loses_no_row_between_two_quotation_marks(
    tmp_path: Path, opens: int, closes: int, text_first: bool
) -> None:
    rows = [row if text_first else row[::-1] for row in with_halves(opens, closes)]
    table = opened(tmp_path / "a.tsv", unquoted(rows, ("text", "label") if text_first else ("label", "text")))
    assert cells(table) == rows
    assert "quotes are read as characters of the text" in table.notes[0]


@pytest.mark.parametrize(("opens", "closes"), [(3, 4), (0, 19), (2, 12)])
@pytest.mark.parametrize("text_first", [True, False])
def test_a_csv_names_the_lines_that_a_quote_swallowed_and_keeps_them(
    tmp_path: Path, opens: int, closes: int, text_first: bool
) -> None:
    rows = [row if text_first else row[::-1] for row in with_halves(opens, closes)]
    content = unquoted(rows, ("text", "label") if text_first else ("label", "text"), ",")
    first, last = opens + 2, closes + 2
    with pytest.raises(
        DataError, match=f"line {first}: a quote opens here and closes in line {last}, so that"
    ) as caught:
        list(opened(tmp_path / "a.csv", content).rows)
    assert "--data.quoting none" in str(caught.value)
    found, problems = collected(tmp_path / "a.csv", content)
    assert [(problem.row, problem.kind) for problem in problems] == [(first, "quotes")]
    assert found == [(number, row) for number, row in enumerate(rows, 2) if number != first]
    assert cells(opened(tmp_path / "a.csv", content, quoting="none")) == rows


def test_a_tsv_that_quotes_as_csv_does_is_read_so(tmp_path: Path) -> None:
    rows = [('he said "fine"', "good"), ("two\nlines", "bad"), ("a\ttab", "good"), ("plain", "bad")]
    table = opened(tmp_path / "a.tsv", written(rows, sep="\t"))
    assert cells(table) == rows
    assert "read as CSV quoting" in table.notes[0]
    assert "1 row spans several lines, as a quoted cell may (the first: lines 3 to 4)" in table.notes[1]
    quoted = written(ROWS, sep="\t", quoting=csv.QUOTE_ALL)
    assert cells(opened(tmp_path / "a.tsv", quoted)) == ROWS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('a 15" screen', "line 3 are not well formed"),
        ('"Yes" she said', "line 3 are not well formed"),
        ('"never closed', "line 3 are not well formed"),
        ('"Quite"', "in column 1, line 3 has quotes and line 2 has none"),
    ],
)
def test_a_tsv_is_read_without_quoting_where_its_quotes_are_not_csvs(
    tmp_path: Path, text: str, told: str
) -> None:
    rows = [("plain", "good"), (text, "bad"), ("more", "good")]
    table = opened(tmp_path / "a.tsv", unquoted(rows))
    assert cells(table) == rows
    assert told in table.notes[0]


WORDS = st.text(st.sampled_from('"\tab ,\n'), max_size=6)


@given(
    st.lists(
        st.tuples(WORDS.map(lambda text: text.replace("\n", "")), st.sampled_from(["x", "y"])), min_size=1
    )
)
def test_unquoted_tsv_gives_every_row_or_an_error(rows: list[tuple[str, str]]) -> None:
    stream = io.BytesIO(unquoted(rows).encode())
    try:
        table = open_table(stream, format="tsv", header="first")
        found = cells(table)
    except DataError:
        return
    assert len(found) == len(rows)
    as_csv = list(csv.reader(io.StringIO(unquoted(rows), newline=""), delimiter="\t"))[1:]
    assert found in (rows, [tuple(row) for row in as_csv])


@given(st.lists(st.tuples(WORDS, st.sampled_from(["x", "y"])), min_size=1))
@example([('"', "x"), ('"""', "x"), ('"\t"', "x")])  # well-formed CSV of two rows as well
@example([('"', "x"), ('""', "x"), ('\n"', "x")])  # of one row
def test_unquoted_tsv_never_has_fewer_rows_whatever_is_in_it(rows: list[tuple[str, str]]) -> None:
    try:
        found = cells(open_table(io.BytesIO(unquoted(rows).encode()), format="tsv", header="first"))
    except DataError:
        return
    assert len(found) >= len(rows)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1), st.sampled_from(["csv", "tsv"]), st.booleans())
@example([("", "\n"), ("\t\n", "")], "tsv", False)  # a line that is a quote and nothing else
def test_what_a_csv_writer_wrote_comes_back(
    rows: list[tuple[str, str]], format: Any, all_quoted: bool
) -> None:
    how = {"quoting": csv.QUOTE_ALL} if all_quoted else {}
    content = written(rows, sep="," if format == "csv" else "\t", **how).encode()
    certain = open_table(io.BytesIO(content), format=format, header="first", quoting="csv")
    assert cells(certain) == rows
    several_lines = any(set("\r\n") & set(cell) for row in rows for cell in row)
    told = ""
    try:
        table = open_table(io.BytesIO(content), format=format, header="first")
        found, notes = cells(table), table.notes
    except DataError as error:
        told = str(error)
    if told:  # what could be rows of their own
        assert several_lines
        assert "pass --data.quoting csv" in told
    elif found != rows:  # what are rows of their own in a TSV, whose quotes need not be CSV's
        assert several_lines
        assert format == "tsv"
        assert len(found) >= len(rows)
        assert any("quotes are read as characters" in note for note in notes)


def test_a_cell_over_several_lines_stays_one_cell(tmp_path: Path) -> None:
    letters = [
        (f"Dear all,\nI was in town, and {text}.\n\nYours, {number}", label)
        for number, (text, label) in enumerate(ROWS)
    ]
    table = opened(tmp_path / "a.csv", written(letters))
    assert cells(table) == letters
    assert table.notes == [
        f"{tmp_path}/a.csv: 20 rows span several lines, as a quoted cell may (the first: lines 2 to 5)"
    ]


def test_reading_goes_on_after_a_row_with_broken_quotes(tmp_path: Path) -> None:
    found, problems = collected(tmp_path / "a.csv", 'text,label\n"a"b,x\nc,y\n"open,z\nd,x\n')
    assert found == [(3, ("c", "y")), (5, ("d", "x"))]
    assert [(problem.row, problem.kind) for problem in problems] == [(2, "quotes"), (4, "quotes")]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ('label, text\ngood, "fine, and more"\nbad,  "worse"\n', "spaces before cells are left out"),
        ('label,text\ngood,"fine, \\"and\\" more"\nbad,"worse"\n', 'quotes inside cells are written \\"'),
    ],
)
def test_other_ways_of_writing_quotes_are_told_and_said(tmp_path: Path, content: str, note: str) -> None:
    table = opened(tmp_path / "a.csv", content)
    assert [row[0] for row in cells(table)] == ["good", "bad"]
    assert note in table.notes[0]
    standard = 'label,text\ngood,"ends so: \\"\nbad,"worse ""x"""\n'
    assert cells(opened(tmp_path / "a.csv", standard)) == [("good", "ends so: \\"), ("bad", 'worse "x"')]


# Separators --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sep", "rows", "note"),
    [
        ("a.csv", ";", ROWS, "separated by semicolons (';')"),
        ("a.csv", ";", [(text.replace(",", ""), label) for text, label in ROWS], "separated by semicolons"),
        ("a.csv", "\t", ROWS, "separated by tabs ('\\t')"),
        ("a.tsv", ",", ROWS, "separated by commas (',')"),
        ("a.csv", "|", ROWS, "separated by vertical bars ('|')"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_separator_is_told_from_the_file_and_said(
    tmp_path: Path, name: str, sep: str, rows: list[tuple[str, str]], note: str, mark: bytes
) -> None:
    content = mark + written(rows, sep=sep).encode()
    table = opened(tmp_path / name, content)
    assert cells(table) == rows
    assert note in table.notes[0]
    given_too = open_table(tmp_path / name, separator=sep)
    assert cells(given_too) == rows
    assert not given_too.notes
    stream = open_table(io.BytesIO(content), format=name[2:])
    assert cells(stream) == rows


def test_the_line_that_tells_excel_the_separator_is_no_row(tmp_path: Path) -> None:
    table = opened(tmp_path / "a.csv", "sep=;\r\n" + written(ROWS, sep=";"))
    assert [number for number, _ in table.rows] == list(range(3, 23))
    assert "separated by ';', as stated in its first line" in table.notes[0]


@pytest.mark.parametrize(("given_as", "sep"), [("tab", "\t"), ("\\t", "\t"), ("^", "^"), (":", ":")])
def test_a_separator_can_be_given(tmp_path: Path, given_as: str, sep: str) -> None:
    assert cells(opened(tmp_path / "a.csv", written(ROWS, sep=sep), separator=given_as)) == ROWS


@pytest.mark.parametrize("separator", ["", "::", '"', "\n"])
def test_what_cannot_separate_is_refused(tmp_path: Path, separator: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.separator: got .*, expected one character, such as ';'"):
        opened(tmp_path / "a.csv", written(ROWS), separator=separator)


def test_two_separators_that_could_be_meant_are_asked_about(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"separated by ';' or by '\|'.* choose one with --data\.separator"):
        opened(tmp_path / "a.csv", "a;b|c\n" + "x;y|z\n" * 9)


def test_a_file_of_one_column_stays_one(tmp_path: Path) -> None:
    assert cells(opened(tmp_path / "a.csv", "text\none; two\n\nthree\n")) == [
        ("one; two",),
        ("",),
        ("three",),
    ]


# Headers -----------------------------------------------------------------------------------------

NO_HEADER = {
    "two columns": written(ROWS, None),
    "news": written(
        [(1 + index % 2, text[:12], text) for index, (text, _) in enumerate(ROWS)],
        None,
        quoting=csv.QUOTE_ALL,
    ),
    "scores": written([(text, f"{index / 7:.2f}") for index, (text, _) in enumerate(ROWS)], None),
    "pairs": written([("entailment", text, text[::-1]) for text, _ in ROWS], None, "\t"),
    "a label called as a text is": written(
        [(text, ["question", "answer"][index % 2]) for index, (text, _) in enumerate(ROWS)], None
    ),
}
WITH_HEADER = {
    "known": written(ROWS),
    "unknown": written(
        [(text, number, "shop") for number, (text, _) in enumerate(ROWS)], ("reviewText", "overall", "asin")
    ),
    "spam": written([(label, text, "", "", "") for text, label in ROWS], ("v1", "v2", "", "", "")),
    "pandas' index": written(
        [(number, text, label) for number, (text, label) in enumerate(ROWS)], ("", "words", "verdict")
    ),
    "pandas without names": written(
        [(number, text, label) for number, (text, label) in enumerate(ROWS)], ("", "0", "1")
    ),
    "one row": written(ROWS[:1]),
    "one column": written([(text,) for text, _ in ROWS], ("review",)),
}


@pytest.mark.parametrize("case", NO_HEADER)
def test_a_missing_header_is_told_from_the_rows(tmp_path: Path, case: str) -> None:
    table = opened(tmp_path / "a.csv", NO_HEADER[case])
    rows = list(table.rows)
    assert [number for number, _ in rows] == list(range(1, 21))
    assert table.columns == tuple(str(number) for number in range(1, len(table.columns) + 1))
    assert "no header: the first row (" in table.notes[-1]
    assert "pass --data.header first" in table.notes[-1]
    assert len(list(open_table(tmp_path / "a.csv", header="none").rows)) == 20
    assert len(list(open_table(tmp_path / "a.csv", header="first").rows)) == 19


@pytest.mark.parametrize("case", WITH_HEADER)
def test_a_header_stays_one(tmp_path: Path, case: str) -> None:
    table = opened(tmp_path / "a.csv", WITH_HEADER[case])
    assert next(table.rows)[0] == 2
    assert not table.notes


@pytest.mark.parametrize(
    "content",
    [
        written(
            [(f"{text} and so on and on", f"{label} {number}") for number, (text, label) in enumerate(ROWS)],
            None,
        ),
        written([("1", "good") for _ in ROWS], ("name", "good")),
        "nice tea here\nvery bad soup\n",
    ],
)
def test_what_may_be_a_header_or_not_is_asked_about(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"has the column names or data.* pass --data\.header none"):
        opened(tmp_path / "a.csv", content)
    assert next(opened(tmp_path / "a.csv", content, header="first").rows)[0] == 2
    assert next(opened(tmp_path / "a.csv", content, header="none").rows)[0] == 1


def test_columns_without_a_header_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text(NO_HEADER["news"])
    loaded = load_examples(path, text="3", label="1")
    assert loaded.examples[0].text == ROWS[0][0]
    assert loaded.examples[0].label == "1"
    assert loaded.examples[0].place == f"{path}, line 1"
    assert "no header" in loaded.notes[0]
    # Of a single row nothing could be told, but that the user names columns by number says it.
    path.write_text(written([("3", "a", "b")], None))
    assert load_examples(path, text="3", label="1").examples[0].text == "b"
    path.write_text(written([("a b", "3", "b")], ("words", "1", "3")))
    assert load_examples(path, text="words", label="1").examples[0].label == "3"


def test_spaces_around_names_are_removed_and_said(tmp_path: Path) -> None:
    table = opened(tmp_path / "a.csv", "text , label\na, b\n")
    assert table.columns == ("text", "label")
    assert table.notes == [f"{tmp_path}/a.csv: spaces around column names were removed: 'text ', ' label'"]


def test_unused_columns_may_be_called_anything_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("label,,text,,note,note\ngood,1,fine,2,3,4\n")
    assert open_table(path).columns == (
        "label",
        "column 2",
        "text",
        "column 4",
        "note (column 5)",
        "note (column 6)",
    )
    assert load_examples(path).examples[0].text == "fine"
    assert "more than one column is named 'note'" in load_examples(path).notes[0]


@pytest.mark.parametrize("options", [{}, {"text": "text"}])
def test_a_used_name_that_repeats_is_an_error(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,text\na,b,c\n")
    with pytest.raises(DataError, match=r"'text \(column 1\)', 'label', 'text \(column 3\)'"):
        load_examples(path, **options)
    assert load_examples(path, text="text (column 3)").examples[0].text == "c"


# Rows --------------------------------------------------------------------------------------------


def test_a_row_of_the_wrong_length_is_a_problem_and_reading_goes_on(tmp_path: Path) -> None:
    found, problems = collected(tmp_path / "a.csv", "text,label\na,x\nshort\nb,y,z\nc,x\n")
    assert found == [(2, ("a", "x")), (5, ("c", "x"))]
    assert [(problem.row, problem.kind) for problem in problems] == [(3, "cells"), (4, "cells")]
    assert "line 3: got 1 cell, expected 2 ('text', 'label')" in problems[0].message


def test_empty_cells_at_the_end_may_be_too_many_or_missing(tmp_path: Path) -> None:
    assert cells(opened(tmp_path / "a.csv", "text,label\na,x,\nb,y, ,\n")) == [("a", "x"), ("b", "y")]
    table = opened(tmp_path / "a.csv", "v1,v2,,\nham,hello\nspam,win,now,\n")
    assert cells(table) == [("ham", "hello", "", ""), ("spam", "win", "now", "")]


def test_the_names_again_are_no_row(tmp_path: Path) -> None:
    found, problems = collected(tmp_path / "a.csv", "text,label\na,x\ntext,label\nb,x\n")
    assert found == [(2, ("a", "x")), (4, ("b", "x"))]
    assert [(problem.row, problem.kind) for problem in problems] == [(3, "header")]


def test_only_bad_rows_are_an_error_that_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: got 1 cell, .*; no other row can be used either"):
        collected(tmp_path / "a.csv", "text,label\na\nb\n")


def test_a_line_without_end_is_refused_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LONGEST", 100)
    for name, content in {
        "a.csv": "text,label\na,x\n" + "b" * 300 + ",y\nc,x\n",
        "a.tsv": "text\tlabel\na\tx\n" + "b" * 300 + "\ty\nc\tx\n",
        "a.jsonl": '{"text": "a"}\n{"text": "c"}\n{"text": "' + "b" * 300 + '"}\n{"text": "c"}\n',
        "a.txt": "a\nc\n" + "b" * 300 + "\nc\n",
    }.items():
        found, problems = collected(tmp_path / name, content)
        assert [number for number, _ in found] == (
            [1, 2, 4] if name[2] in "jt" and name != "a.tsv" else [2, 4]
        )
        assert [problem.row for problem in problems] == [3]
        assert f"{name}, line 3: got a line of more than 100 characters" in problems[0].message


def test_a_line_without_end_is_not_held(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        """A gigabyte without a line break, given piece by piece."""

        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if self.given > 1 << 27:
                return 0
            buffer[:] = b"a" * len(buffer)
            self.given += len(buffer)
            return len(buffer)

    tracemalloc.start()
    with pytest.raises(DataError, match=r"line 1: got a line of more than 16,777,216 characters"):
        open_table(io.BufferedReader(Endless()), format="text")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 27
