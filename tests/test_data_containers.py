"""What rows are kept in: compressed files, archives, folders, workbooks, Parquet and Arrow."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from ptuning.data import Problem, Table, load_examples, open_table
from ptuning.errors import DataError

CSV = "text,label\n" + "".join(f"a text of {n},{['good', 'bad'][n % 2]}\n" for n in range(20))
ROWS = [{"text": f"a text of {n}", "label": ["good", "bad"][n % 2]} for n in range(20)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return bytes(buffer.getvalue().to_pybytes())


COMPRESS = {
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def values(source: Any, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in open_table(source, **options).rows]


def failure(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        list(open_table(source, **options).rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def archive(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


# Compression and archives ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", CSV), ("a.tsv", CSV.replace(",", "\t")), ("a.json", JSONL)]
)
def test_compressed_files_and_streams(tmp_path: Path, name: str, content: str, suffix: str) -> None:
    packed = COMPRESS[suffix](content.encode())
    for called in (f"{name}{suffix}", name, f"data{suffix}"):  # by its extension, or by its first bytes
        path = tmp_path / called
        path.write_bytes(packed)
        assert values(path) == ROWS
    format = "jsonl" if name == "a.json" else name[2:]
    assert values(io.BytesIO(packed), format=format) == ROWS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_damaged_compressed_file_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(COMPRESS[suffix]((CSV * 500).encode())[:-20])
    assert "a.csv" in failure(path)
    path.write_bytes(b"text,label\nnot packed,x\n")
    assert "a.csv" in failure(path)


def test_an_archive_of_one_table(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.zip", {"data/reviews.csv": CSV, "README.md": "x", "__MACOSX/reviews.csv": "x"}
    )
    table = open_table(path)
    assert [row for _, row in table.rows] == ROWS
    assert table.notes == [f"{path}: the file 'data/reviews.csv' in it is read"]
    assert table.origin.at(3) == f"{path}/data/reviews.csv, line 3"


def test_an_archive_of_several_tables_says_how_to_name_one(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"train.csv": CSV, "in/test.jsonl": JSONL})
    message = failure(path)
    assert "got 2 files ('train.csv', 'in/test.jsonl'), expected one file of rows" in message
    assert f"name the one to be read, such as {path}/train.csv" in message
    assert values(path / "train.csv") == values(path / "in" / "test.jsonl") == ROWS
    assert f"{path} has no file 'x.csv', expected one of 'train.csv'" in failure(path / "x.csv")


def test_damaged_and_odd_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a.csv": CSV})
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert "not a complete zip file" in failure(path)
    path.write_bytes(content[:60] + b"\xff\xff\xff\xff" + content[64:])
    assert "a.zip" in failure(path)
    assert "got 0 files" in failure(archive(tmp_path / "b.zip", {}))
    assert "an archive in an archive" in failure(archive(tmp_path / "c.zip", {"a.zip": content}))
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"]}), sink)
    packed = archive(tmp_path / "d.zip", {"a.parquet": sink.getvalue()})
    assert "is compressed or in an archive" in failure(packed)


def test_a_bomb_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("a.csv", "w") as stream,
    ):
        stream.write(b"text,label\nfine,x\n")
        for _ in range(40):
            stream.write(b"a" * (1 << 20))
    rows = open_table(path).rows
    assert next(rows)[1]["text"] == "fine"
    with pytest.raises(DataError, match="line 3: got a line of more than"):
        next(rows)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel file (.xls) or one with a password"),
        (b"%PDF-1.7", "a PDF"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x80\x04\x95\x10", "a pickle, which is never read because it could run code"),
        (b"a.csv".ljust(257, b"\0") + b"ustar", "a tar archive"),
    ],
)
def test_what_is_known_and_not_read_is_named(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(head + bytes(500))
    assert f"{path} is {what}, expected a file of rows; open it where it was made" in failure(path)
    (tmp_path / "b.gz").write_bytes(gzip.compress(head + bytes(500)))
    assert f"is {what}" in failure(tmp_path / "b.gz")


def test_an_open_document_is_named(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.ods", {"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": ""}
    )
    assert "is an OpenDocument file (.ods)" in failure(path)


@pytest.mark.parametrize("name", ["a", "a.data", "a.dat"])
@pytest.mark.parametrize(
    "content", [CSV, CSV.replace(",", "\t"), CSV.replace(",", ";"), JSONL, json.dumps(ROWS)]
)
def test_a_name_that_says_nothing_leaves_it_to_the_content(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    table = open_table(path)
    assert [row for _, row in table.rows] == ROWS
    assert "read as" in table.notes[0]


# Text files --------------------------------------------------------------------------------------


def test_fasttext_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("__label__good a fine kettle\n__label__bad, worse\n\n__label__very_bad   two  spaces\n")
    table = open_table(path)
    assert "read as fastText" in table.notes[0]
    assert list(table.rows) == [
        (1, {"text": "a fine kettle", "label": "good"}),
        (2, {"text": "worse", "label": "bad,"}),
        (4, {"text": "two  spaces", "label": "very_bad"}),
    ]
    path.write_text("__label__a __label__b x\n__label__c y\n")
    assert values(path) == [{"text": "x", "label": ["a", "b"]}, {"text": "y", "label": ["c"]}]
    assert values(io.BytesIO(path.read_bytes()), format="text")[0] == {"text": "__label__a __label__b x"}


def test_a_text_file_of_tabs_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{row['text']}\t{row['label']}\n" for row in ROWS))
    table = open_table(path)
    assert table.columns == ("1", "2")
    assert "read as tab-separated" in table.notes[0]
    path.write_text("one\ttab\nnone\n")
    assert values(path) == [{"text": "one\ttab"}, {"text": "none"}]


# Folders -----------------------------------------------------------------------------------------


def folder(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


REVIEWS = {
    "pos/1.txt": "fine\nand good\n",
    "pos/2.txt": "lovely",
    "neg/1.txt": "bad\r\nand worse",
    "README": "x",
}


def test_a_folder_with_a_sub_folder_a_label(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "train", {**REVIEWS, "unsup/1.txt": "so", "urls_pos.txt": "x", ".hidden/1.txt": "x"}
    )
    loaded = load_examples(path)
    assert [(example.text, example.label, example.place) for example in loaded.examples] == [
        ("bad\nand worse", "neg", f"{path}/neg/1.txt"),
        ("fine\nand good", "pos", f"{path}/pos/1.txt"),
        ("lovely", "pos", f"{path}/pos/2.txt"),
    ]
    assert "its 2 sub-folders the labels: 'neg', 'pos'; left out: 'unsup'" in loaded.notes[0]
    assert values(path / "pos") == [{"text": "fine\nand good"}, {"text": "lovely"}]


def test_a_folder_of_splits_asks_for_one(tmp_path: Path) -> None:
    path = folder(
        tmp_path, {f"{split}/{name}": text for split in ("test", "train") for name, text in REVIEWS.items()}
    )
    assert (
        f"a sub-folder per split ('test', 'train'), expected the rows of one split; name one, such as {path}"
        in (failure(path))
    )
    parts = folder(tmp_path / "parts", {"train.csv": CSV, "test.csv": CSV})
    assert "files of several splits ('test.csv', 'train.csv')" in failure(parts)
    mixed = folder(tmp_path / "mixed", {"a.csv": CSV, "a.jsonl": JSONL})
    assert "files of several kinds ('a.csv', 'a.jsonl')" in failure(mixed)
    for other in ("model.safetensors", "code.py"):
        adapter = folder(tmp_path / other, {"a.csv": CSV, other: b"x"})
        assert "is a folder, expected a file of rows" in failure(adapter)
    assert "is a folder" in failure(folder(tmp_path / "json", {"config.json": "{}", "state.json": "{}"}))
    empty = folder(tmp_path / "empty", {"image.png": b"x"})
    assert "is a folder, expected a file of rows" in failure(empty)


def test_a_folder_of_texts_in_one_national_encoding(tmp_path: Path) -> None:
    texts = ["Die Küche ist schön und groß", "Der Kessel läuft über", "häßlich", "ein Gruß"]
    path = folder(
        tmp_path,
        {f"{'gut' if n % 2 else 'übel'}/{n}.txt": text.encode("cp1252") for n, text in enumerate(texts)},
    )
    assert sorted(row["text"] for row in values(path)) == sorted(texts)
    folder(tmp_path, {"gut/9.txt": b"caf\x81"})
    problems: list[Problem] = []
    assert len(values(path, problems=problems, encoding="cp1252")) == 4
    assert [problem.message.split(": ")[0] for problem in problems] == [f"{path}/gut/9.txt"]


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "a", {"part-1.csv": CSV, "part-2.csv": CSV.replace("of 3,", "of 3,,"), "part-3.csv": CSV}
    )
    problems: list[Problem] = []
    table = open_table(path, problems=problems)
    rows = list(table.rows)
    assert [row for _, row in rows] == ROWS + ROWS[:3] + ROWS[4:] + ROWS
    assert len({number for number, _ in rows}) == len(rows)
    assert table.origin.at(rows[25][0]) == f"{path}/part-2.csv, line 8"
    assert [problem.message.split(": ")[0] for problem in problems] == [f"{path}/part-2.csv, line 5"]
    assert problems[0].row not in {number for number, _ in rows}
    folder(path, {"part-4.csv": CSV.replace("label", "mark", 1)})
    assert "part-4.csv: its columns are 'text', 'mark', expected 'text', 'label' as in part-1.csv" in failure(
        path, problems=[]
    )
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    for number in range(2):
        pq.write_table(pa.Table.from_pylist(ROWS), parquet / f"train-0000{number}-of-00002.parquet")
    assert values(parquet) == ROWS + ROWS


# Workbooks ---------------------------------------------------------------------------------------


def workbook(path: Path, sheets: dict[str, list[list[Any]]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_read_as_its_csv_would_be(tmp_path: Path) -> None:
    rows = [
        ["text", "label", "when", None],
        ["one\nand a half", 1, None, None],
        [None, None, None],
        ["two", 2.0, None],
        [3, 2.5, datetime.datetime(2026, 1, 2)],
        ["four", True, datetime.datetime(2026, 1, 2, 3, 4)],
        ["five", "x", None, "too much"],
    ]
    path = workbook(tmp_path / "a.xlsx", {"first": rows, "second": [["x"]]})
    problems: list[Problem] = []
    table = open_table(path, problems=problems)
    assert [(number, tuple(row.values())) for number, row in table.rows] == [
        (2, ("one\nand a half", "1", "")),
        (4, ("two", "2", "")),
        (5, ("3", "2.5", "2026-01-02")),
        (6, ("four", "TRUE", "2026-01-02 03:04:00")),
    ]
    assert [problem.message for problem in problems] == [
        f"{path}, row 7: got 4 cells, expected 3 ('text', 'label', 'when'); correct the row, or name all "
        "columns"
    ]
    assert "only the first of 2 sheets is read, 'first'; save the others ('second')" in table.notes[0]


def test_a_workbook_without_a_header(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", {"a": [[row["text"], row["label"]] for row in ROWS]})
    table = open_table(path)
    assert table.columns == ("1", "2")
    assert len(list(table.rows)) == 20
    assert table.origin.at(3) == f"{path}, row 3"


def test_a_workbook_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.xlsx", {"xl/workbook.xml": "<x/>"})
    assert "not a readable Excel workbook" in failure(path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "run: pip install 'ptuning[excel]', or save the sheet as CSV (UTF-8)" in failure(path)


# Parquet and Arrow -------------------------------------------------------------------------------

TEXTS = [f"good {n}" for n in range(30)]
LABELS = ["pos" if n % 2 else "neg" for n in range(30)]


def with_metadata(table: pa.Table, said: bytes) -> pa.Table:
    return table.replace_schema_metadata({b"huggingface": said})


def parquet(path: Path, table: pa.Table) -> Table:
    pq.write_table(table, path)
    return open_table(path)


@pytest.mark.parametrize(
    "said",
    [
        b"{{{",
        b"[]",
        b'{"info": 5}',
        b'{"info": {"features": {"text": {"_type": "Nope"}}}}',
        b'{"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}',
        b'{"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, '
        b'"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}',
    ],
)
def test_what_a_parquet_says_of_itself_may_be_wrong(tmp_path: Path, said: bytes) -> None:
    table = parquet(tmp_path / "a.parquet", with_metadata(pa.table({"text": TEXTS, "label": LABELS}), said))
    assert [row["label"] for _, row in table.rows] == LABELS
    assert table.label_names == {}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62 + n for n in range(30)], pa.timestamp("ns")),
        pa.array([2**50 + n for n in range(30)], pa.timestamp("ms")),
        pa.array([-(2**60)] * 30, pa.timestamp("us", "UTC")),
        pa.array([2**30] * 30, pa.date32()),
        pa.array([{"a": n} for n in range(30)]),
        pa.array([[("a", 1)]] * 30, pa.map_(pa.string(), pa.int64())),
        pa.nulls(30),
        pa.array([b"\xff"] * 30),
        pa.array([[2**50]] * 30, pa.list_(pa.timestamp("s"))),
    ],
    ids=lambda column: str(column.type),
)
def test_an_odd_column_beside_the_used_ones_is_no_trouble(tmp_path: Path, column: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS, "label": LABELS, "odd": column}), path)
    assert [example.label for example in load_examples(path).examples] == LABELS
    pq.write_table(pa.table({"text": TEXTS, "label": column}), path)
    with pytest.raises(DataError, match=r"a\.parquet"):
        load_examples(path)


def test_columns_that_repeat_in_a_parquet(tmp_path: Path) -> None:
    table = parquet(
        tmp_path / "a.parquet", pa.Table.from_arrays([pa.array(["x"])] * 3, names=["text", "", "text"])
    )
    assert table.columns == ("text (column 1)", "column 2", "text (column 3)")
    assert "no rows" in failure_of_empty(tmp_path / "b.parquet")


def failure_of_empty(path: Path) -> str:
    pq.write_table(pa.table({}), path)
    return failure(path)


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
@pytest.mark.parametrize("as_stream", [True, False])
def test_arrow_files(tmp_path: Path, name: str, as_stream: bool) -> None:
    path = tmp_path / name
    table = pa.Table.from_pylist(ROWS)
    with (ipc.new_stream if as_stream else ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table)
    assert values(path) == ROWS
    path.write_bytes(b"nothing")
    assert "not an Arrow file" in failure(path)


def test_a_parquet_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "data"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert values(path) == ROWS


# Damage ------------------------------------------------------------------------------------------


def whole_files(folder: Path) -> dict[str, bytes]:
    """A file of every kind."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(ROWS)
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, folder / "whole.parquet")
    archive(folder / "whole.zip", {"a.csv": CSV})
    workbook(folder / "whole.xlsx", {"a": [["text", "label"], *(list(row.values()) for row in ROWS)]})
    quoted = CSV.replace("a text", '"a ""text""\nof').replace(",", '",')
    return {
        **{f"packed.csv{suffix}": pack(CSV.encode()) for suffix, pack in COMPRESS.items()},
        **{f"a.{suffix}": (folder / f"whole.{suffix}").read_bytes() for suffix in ("parquet", "zip", "xlsx")},
        "a.arrow": bytes(sink.getvalue().to_pybytes()),
        "a.csv": quoted.encode(),
        "a.tsv": CSV.replace(",", "\t").encode(),
        "utf16.csv": CSV.encode("utf-16"),
        "cp1252.csv": CSV.replace("text", "tëxt").encode("cp1252"),
        "a.jsonl": JSONL.encode(),
        "array.json": json.dumps(ROWS, indent=1).encode(),
        "data.json": json.dumps({"data": ROWS}).encode(),
        "a.txt": b"__label__x text\n" * 9,
    }


def damaged(content: bytes, chance: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(found))
        kind = chance.choice(["bit", "byte", "cut", "insert"])
        if kind == "bit":
            found[at] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            found[at] = chance.choice(b'\0\n\r",\\\xff\xc3\x80')
        elif kind == "cut":
            del found[at : min(at + chance.choice([1, 5, 200]), len(found) - 1)]
        else:
            found[at:at] = chance.choice(
                [b"\0", b'"', b",", b"\n", b"{", b"[", b"1e400", b"\xff\xfe", b'"\t']
            )
    return bytes(found)


def test_damage_of_any_kind_is_read_or_one_sentence(tmp_path: Path) -> None:
    chance = random.Random(5)
    for name, content in whole_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        assert values(path)
        for _ in range(20):
            path.write_bytes(damaged(content, chance))
            problems: list[Problem] | None = chance.choice([None, []])
            try:
                values(path, problems=problems)
            except DataError as error:
                assert "\n" not in str(error)  # noqa: PT017, it may also be read
