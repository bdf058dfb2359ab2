"""Tables: every source gives the same rows, every damaged source one clear error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptuning.data import open_table
from ptuning.data.hub import parse_hub
from ptuning.errors import ConfigError, DataError

ROWS = [{"text": "NA", "label": "null"}, {"text": 'a "b",\n c', "label": "nan"}, {"text": "ü", "label": "1"}]


def write_csv(path: Path, rows: list[dict[str, str]] = ROWS, delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(source: Any, **options: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    return open_table(source, **options).rows


def values(source: Any, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(source, **options)]


def failure(source: Any, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        list(read_rows(source, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


def saved(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_import_is_light() -> None:
    heavy = ("torch", "transformers", "datasets", "pandas", "pyarrow", "numpy")
    program = f"import sys, ptuning.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("zipped", [False, True])
def test_separated_files_keep_every_word(tmp_path: Path, delimiter: str, zipped: bool) -> None:
    path = write_csv(tmp_path / ("a.csv" if delimiter == "," else "a.tsv"), delimiter=delimiter)
    if zipped:
        path = saved(tmp_path / f"{path.name}.gz", gzip.compress(path.read_bytes()))
    assert values(path) == ROWS
    assert values(str(path)) == ROWS


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text("a,\"\r\n'\t")), min_size=1)
)
def test_csv_round_trip(cells: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *cells])
    stream = io.BytesIO(text.getvalue().encode())
    assert values(stream, format="csv", quoting="csv") == [{"a": a, "b": b} for a, b in cells]
    assert not stream.closed


@given(
    st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()), min_size=1)
)
def test_json_lines_round_trip(rows: list[dict[str, Any]]) -> None:
    stream = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
    assert values(stream, format="jsonl") == rows


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, end: str) -> None:
    path = saved(tmp_path / "a.csv", b"\xef\xbb\xbf" + end.join(["text,label", "x,y", ""]).encode())
    assert values(path) == [{"text": "x", "label": "y"}]


def test_rows_are_numbered_by_the_line_they_start_on(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", 'text,label\n"one\ntwo",x\n\nthree,y\n')
    assert [number for number, _ in read_rows(path)] == [2, 5]
    path = saved(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [number for number, _ in read_rows(path)] == [1, 3]


def test_an_empty_line_is_an_empty_cell_where_there_is_one_column(tmp_path: Path) -> None:
    assert values(saved(tmp_path / "a.csv", "text\nx\n\ny\n")) == [{"text": "x"}, {"text": ""}, {"text": "y"}]


def test_empty_lines_before_the_names_are_skipped(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.csv", "\n\ntext,label\na,b\n")
    assert list(read_rows(path)) == [(4, {"text": "a", "label": "b"})]


def test_a_pandas_frame_is_told_how() -> None:
    with pytest.raises(DataError, match=r"for a pandas frame pass frame.to_dict\('records'\)"):
        read_rows(pandas.DataFrame({"text": ["a"]}))


def test_long_cells_are_read(tmp_path: Path) -> None:
    assert values(write_csv(tmp_path / "a.csv", [{"text": "x" * 300_000}]))[0]["text"] == "x" * 300_000


def test_text_lines() -> None:
    stream = io.BytesIO("a,b\r\n\nü".encode())
    assert values(stream, format="text") == [{"text": "a,b"}, {"text": ""}, {"text": "ü"}]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standard:
        buffer = io.BytesIO(b'{"text": "x"}\n{"text": 1')

    monkeypatch.setattr(sys, "stdin", Standard)
    assert "standard input has no format, expected one of" in failure("-")
    message = failure("-", format="jsonl")
    assert message.startswith("standard input, line 2: not a JSON object")


@pytest.mark.parametrize(
    ("format", "head", "row"),
    [
        ("text", "", "a\n"),
        ("csv", "text;label\n", "a;x\n"),
        ("tsv", "text\tlabel\n", "a\tx\n"),
        ("jsonl", "", '{"text": "a"}\n'),
    ],
)
def test_rows_that_come_slowly_are_read_as_they_come(format: Any, head: str, row: str) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as stream, open(writer, "wb", buffering=0) as slow:
        slow.write((head + row).encode())
        rows = open_table(stream, format=format).rows  # would wait for ever for a row that has not been sent
        assert next(rows)[1]["text"] == "a"
        for _ in range(3):
            slow.write(row.encode())
            assert next(rows)[1]["text"] == "a"


def test_reading_is_lazy(tmp_path: Path) -> None:
    rows = read_rows(saved(tmp_path / "a.jsonl", '{"a": 1}\nbroken\n'))
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not a JSON object"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", "", ["no rows", "check that this is the right file"]),
        ("a.csv", "text,label\n", ["no rows"]),
        ("a.jsonl", "\n\n", ["no rows"]),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ["line 3: got 3 cells, expected 2 ('a', 'b')", "double quotes"]),
        ("a.tsv", "a\tb\n1\n", ["line 2: got 1 cell, expected 2", "correct the row"]),
        ("a.csv", 'a,b\n1,2\n"open,2\n3,4\n', ["line 3: not a row of cells", "doubled"]),
        ("a.csv", 'a,b\n"x"y,2\n', ["line 2: not a row of cells", "doubled"]),
        (
            "a.csv",
            b"a,b\nok,1\nd\xe9j\xe0,2\n",
            [
                "line 3: byte 0xe9 at character 2",
                "cp1252, which gives 'déjà,2'",
                "--data.encoding cp1252",
            ],
        ),
        ("a.jsonl", b'{"a": "\xff"}\n', ["line 1: byte 0xff at character 8"]),
        ("a.jsonl", '{"a": 1}\n{"a": \n', ["line 2: not a JSON object", "at character", "correct the line"]),
        ("a.jsonl", '{"a": 1, "a": 2}\n', ["line 1", "the name 'a' occurs twice"]),
        ("a.jsonl", '"word"\n', ["line 1: got a JSON str"]),
        ("a.jsonl", "[" * 100_000 + "\n", ["item 1: not JSON"]),
        ("a.jsonl.gz", "not gzip", ["not a complete gzip file", "compress it again"]),
        # mtime: the bytes are part of the test's name, which has to be the same in every process
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], ["not a complete gzip file"]),
        ("a.parquet", "not parquet", ["not a Parquet file", "write or copy it again"]),
        ("a.xlsx", "x", ["not a readable Excel workbook", "save the sheet as CSV"]),
        ("a", "x", ["extension 'none'", "'.csv'", "rename the file"]),
        ("a.parquet.gz", "x", ["is compressed", "unpack it first"]),
    ],
)
def test_a_damaged_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | str, parts: list[str]
) -> None:
    path = saved(tmp_path / name, content)
    message = failure(path)
    assert message.startswith(str(path))
    assert [part for part in parts if part not in message] == []


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "is a folder, expected a file of rows, or a folder with a sub-folder of .txt files" in failure(
        tmp_path
    )
    message = failure(tmp_path / "a.csv")
    assert "a.csv does not exist" in message
    assert "check the path" in message


def test_format_overrides_an_extension_and_is_checked(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dat", "text,label\nx,y\n")
    assert values(path, format="csv") == [{"text": "x", "label": "y"}]
    assert "format 'xml' is unknown, expected one of 'csv'" in failure(path, format="xml")
    assert "leave it out" in failure([{"a": 1}], format="csv")
    assert "cannot be read as parquet" in failure(io.BytesIO(), format="parquet")
    assert "expected a binary one" in failure(io.StringIO("a"), format="csv")


def test_rows_in_memory() -> None:
    assert list(read_rows({"a": n} for n in (5, 6))) == [(1, {"a": 5}), (2, {"a": 6})]
    assert open_table([{"a": 1, "b": 2}]).columns == ("a", "b")
    assert "the rows, row 2: got a str: 'x', expected a mapping" in failure([{"a": 1}, "x"])
    assert "of several splits, pass one" in failure({"train": []})
    assert "no rows" in failure([])


def test_parquet_keeps_types_and_names_classes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 3000, "n": [1, None, 2.5] * 1000}), path)
    rows = list(read_rows(path))
    assert rows[1] == (2, {"text": "x", "n": None})
    assert rows[-1] == (3000, {"text": "x", "n": 2.5})
    pq.write_table(pa.table([["x"], ["y"]], names=["a", "a"]), path)
    table = open_table(path)
    assert list(table.rows) == [(1, {"a (column 1)": "x", "a (column 2)": "y"})]
    assert "more than one column is named 'a'" in table.notes[0]


def test_a_damaged_parquet_page_is_an_error(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    texts = [f"text {number}" for number in range(2000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1000, use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 100] = b"\xff" * 100
    path.write_bytes(content)
    message = failure(path)
    assert message.startswith(f"{path}: damaged after row ")
    assert "write or copy it again" in message


def test_a_class_without_a_name_is_an_error(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    schema = classes().data.table.schema
    table = pa.table({"text": ["x"], "label": [2], "tags": [[0]]}).replace_schema_metadata(schema.metadata)
    pq.write_table(table, path)
    message = failure(path)
    assert f"{path}, row 1, column 'label': got class 2, expected a number below 2 ('no', 'yes')" in message
    assert "correct the features or the rows of the data set" in message


def classes() -> Any:
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["z", "a"])),
        }
    )
    columns = {"text": ["x", "y", "z"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("kind", ["map", "stream", "numpy", "parquet"])
def test_class_labels_become_names(tmp_path: Path, kind: str) -> None:
    dataset = source = classes()
    if kind == "stream":
        source = dataset.to_iterable_dataset()
    if kind == "numpy":
        source = dataset.with_format("numpy")
    if kind == "parquet":
        import pyarrow.parquet as pq

        source = tmp_path / "a.parquet"
        pq.write_table(dataset.data.table, source)
    table = open_table(source)
    assert table.label_names == {"label": ("no", "yes"), "tags": ("z", "a")}
    assert [row for _, row in table.rows] == [
        {"text": "x", "label": "yes", "tags": ["z", "a"]},
        {"text": "y", "label": "no", "tags": []},
        {"text": "z", "label": None, "tags": ["a"]},
    ]


@pytest.mark.parametrize(
    ("source", "tries", "split"),
    [
        ("hf:imdb", [("imdb", None)], None),
        ("hf:imdb:train[:10%]", [("imdb", None)], "train[:10%]"),
        ("hf:glue/mrpc:train", [("glue/mrpc", None), ("glue", "mrpc")], "train"),
        ("hf:nyu-mll/glue/mrpc:test", [("nyu-mll/glue", "mrpc")], "test"),
    ],
)
def test_hub_names(source: str, tries: list[tuple[str, str | None]], split: str | None) -> None:
    assert parse_hub(source) == (tries, split)


@pytest.mark.parametrize("source", ["hf:", "hf:a//b", "hf:a/b/c/d", "hf:a:", "hf::train"])
def test_wrong_hub_names(source: str) -> None:
    assert "expected hf:NAME[/CONFIG][:SPLIT], for example" in failure(source)


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[Any] = []

    def load(name: str, config: str | None, split: str | None) -> Any:
        calls.append((name, config, split))
        if name == "glue":
            return classes()
        if name == "both":
            return datasets.DatasetDict(train=classes(), test=classes())
        if name == "one":
            return datasets.DatasetDict(train=classes())
        raise datasets.exceptions.DatasetNotFoundError(f"no {name}\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = open_table("hf:glue/mrpc:train")
    assert calls == [("glue/mrpc", None, "train"), ("glue", "mrpc", "train")]
    assert table.origin.at(3) == "hf:glue/mrpc:train, row 3"
    assert table.label_names["label"] == ("no", "yes")
    assert len(values("hf:one")) == 3
    assert "hf:both has 2 splits ('train', 'test'), expected one; name it: hf:both:train" in failure(
        "hf:both"
    )
    message = failure("hf:a/b")
    assert "'a/b': DatasetNotFoundError: no a/b; 'a' with configuration 'b': " in message
    assert "check the name, configuration and split, and the network" in message
