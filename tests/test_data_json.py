"""JSON in every form that is in use: lines, arrays, indented, one object with the rows in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import Problem, json_files, load_examples, open_table, text_files
from ptuning.errors import DataError

ROWS = [{"text": f'a "text" {n}, é', "label": ["good", "bad"][n % 2], "tags": ["x", "y"]} for n in range(30)]
FRAME = pandas.DataFrame([{"text": row["text"], "label": row["label"]} for row in ROWS])
FORMS = {
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "array on a line": json.dumps(ROWS),
    "indented array": json.dumps(ROWS, indent=2),
    "array with a row a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "indented objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "data": json.dumps({"version": "1.0", "data": ROWS}),
    "indented data": json.dumps({"version": "1.0", "data": ROWS}, indent=1),
    "columns": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(FORMS[form], encoding="utf-8")
    assert [row for _, row in open_table(path).rows] == ROWS
    stream = open_table(io.BytesIO(("\ufeff" + FORMS[form]).encode()), format="jsonl")
    assert [row for _, row in stream.rows] == ROWS
    example = load_examples(path).examples[2]
    assert example.place == f"{path}, {'line' if form == 'lines' else 'item'} 3"


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [None, 2])
def test_whatever_pandas_writes_is_read(tmp_path: Path, orient: Any, indent: int | None) -> None:
    path = tmp_path / "a.json"
    FRAME.to_json(path, orient=orient, indent=indent)
    rows = [(row["text"], row["label"]) for _, row in open_table(path).rows]
    assert rows == list(zip(FRAME["text"], FRAME["label"], strict=True))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('[{"text": "a"}, 5]', ["item 2: got a JSON int: '5', expected an object"]),
        ('[{"text": "a"}, {"a": 1, "a": 2}]', ["item 2: the name 'a' occurs twice"]),
        ('[{"text": "a"}, {"text": b}]', ["item 2: not JSON (Expecting value at character 10 of"]),
        ('[{"text": "a"}, {"text": "b', ["item 2: not JSON (Unterminated string"]),
        ('[{"text": "a"}', ["after item 1: got the end of the file", "whatever wrote the file finished"]),
        ('[{"text": "a"} {"text": "b"}]', ["after item 1: got '{', expected ','"]),
        ('[{"text": "a"}]{"text": "b"}', ["after the array of 1 items: got '{'"]),
        ("[]", ["no rows"]),
        ("[" * 100_000, ["item 1: not JSON"]),
        ('{\n "text": "a"\n}\n{\n "text": ', ["item 2: not JSON"]),
        (
            '{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
            ["several tables ('train', 'test')", "save the one"],
        ),
        ('{"text": ["a", "b"], "label": [1]}', ["have different lengths ('text' has 2, 'label' has 1)"]),
        ('{"text": "a", "text": "b"}', ["line 1", "the name 'text' occurs twice"]),
        ('{"text": "a"\n{"text": "b"}\n', ["line 1: not a JSON object"]),
    ],
)
def test_errors_name_the_item(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        list(open_table(path).rows)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_reading_goes_on_after_a_bad_line_or_item(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, unit in {
        '{"a": 1}\n{"a": \n[1]\n{"a": 1, "a": 2}\n{"a": 2}\n': "line",
        '[{"a": 1}, 2, [1], {"a": 1, "a": 2}, {"a": 2}]': "item",
    }.items():
        path.write_text(content)
        problems: list[Problem] = []
        assert [row["a"] for _, row in open_table(path, problems=problems).rows] == [1, 2]
        assert [(problem.row, problem.kind) for problem in problems] == [
            (2, "json"),
            (3, "json"),
            (4, "json"),
        ]
        assert all(f"{unit} {problem.row}" in problem.message for problem in problems)


def test_a_row_with_lists_in_it_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"review": "fine", "spans": [{"from": 1}], "tags": [{"name": "x"}]}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    assert [found for _, found in open_table(path).rows] == [row, row]
    row = {"text": "fine", "label": ["x"]}
    path.write_text(json.dumps(row))
    assert [found for _, found in open_table(path).rows] == [row]


@given(
    st.lists(
        st.dictionaries(
            st.text(), st.none() | st.floats(allow_nan=False) | st.text() | st.lists(st.text()), min_size=1
        ),
        min_size=1,
    ),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_an_array_comes_back_however_it_is_cut(
    rows: list[dict[str, Any]], indent: int | None, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "_CHUNK", chunk)
        stream = io.BytesIO(json.dumps(rows, indent=indent, ensure_ascii=False).encode())
        assert [row for _, row in open_table(stream, format="jsonl").rows] == rows


def test_an_item_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LONGEST", 1000)
    monkeypatch.setattr(json_files, "_CHUNK", 100)
    monkeypatch.setattr(text_files, "LONGEST", 1000)
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "' + "b" * 10_000 + '"}]')
    with pytest.raises(DataError, match=r"item 2: not JSON \(a JSON value of more than"):
        list(open_table(path).rows)


@pytest.mark.parametrize(
    "content", ['{{"text": "a", "label": {}}}', '{{\n"text": "a",\n"label": {}}}', "[{}]"]
)
def test_a_number_of_thousands_of_digits_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content.format("1" * 5_001) + "\n")
    with pytest.raises(DataError, match=r"not (JSON|a JSON object)"):
        list(open_table(path).rows)
