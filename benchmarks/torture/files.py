"""Files that nobody meant to write: configurations, and data of every format through every command."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ptuning.data import load_examples
from torture.damage import changed
from torture.lab import WORDS, Lab, check, command, held, refused, rows, state
from torture.trials import Draw, Line, Trial

Case = tuple[str, bytes]
"""A file's name and what is in it."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    configs = [Trial(name, _configured(lab, text), len(text)) for name, text in _configs(lab).items()]
    yield Line("configurations", configs, limit=30)
    trials = []
    for i in range(draw.count(150)):
        text, what, size = _shaken(_yaml(lab).encode(), draw.random("yaml", i))
        trials.append(Trial(f"configuration: {what}", _configured(lab, text), size))
    yield Line("random changes of a configuration", trials, limit=30)
    commands = ("train", "evaluate", "predict", "check-data")
    cases = {**_tables(), **_json_lines(), **_parquets()}
    data = [
        Trial(f"{how}: {name}", _read_by(lab, how, case), len(case[1]))
        for name, case in cases.items()
        for how in commands
    ]
    yield Line("data files", data, limit=30)
    trials, sound = [], list(_sound().values())
    for i in range(draw.count(500)):
        (name, data_), random = sound[i % len(sound)], draw.random("data", i)
        new, what, size = _shaken(data_, random)
        how = random.choice(commands)
        trials.append(Trial(f"{how}: {name}: {what}", _read_by(lab, how, (name, new)), size))
    yield Line("random changes of data files", trials, limit=30)
    trials = [
        Trial(f"texts {i} as {name}", _same_rows(draw.random("texts", i), write))
        for i in range(draw.count(24))
        for name, write in WRITERS.items()
    ]
    yield Line("the same rows in every format", trials)


def _shaken(data: bytes, random: Random) -> tuple[bytes, str, int]:
    """A few changes, of the kinds that text files suffer as well as of bits."""
    what, size = [], 0
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        if not data:
            break
        if random.random() < 0.4:
            at = random.randrange(len(data))
            more = random.choice(
                [b"\0", b'"', b",", b"\n", b"\xff", b"\r", b"{", b"[", b"\x1b[31m", b"1e400"]
            )
            data, said, count = data[:at] + more + data[at:], f"{more!r} put before byte {at}", len(more)
        else:
            data, said, count = changed(data, random)
        what.append(said)
        size += count
    return data, ", ".join(what), size


# -------------------------------------------------------------------------------- configurations


def _yaml(lab: Lab) -> str:
    return (
        f"data:\n  train: {lab.few}\n  validation: {lab.few}\nbackbone: {lab.backbone}\noutput: out\n"
        "device: cpu\nprompt:\n  num_virtual_tokens: 2\n  pooling: native\n  num_virtual_units: 0\n"
        "fit:\n  epochs: 1\n"
    )


def _configured(lab: Lab, text: str | bytes) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (place / "c.yaml").write_bytes(data)
        ran = command(["train", "--config", "c.yaml"])
        held(not (place / "ran").exists(), "code in it ran")
        check(ran, (0, 1, 2), [place / "out"])
        if ran.code == 0 and (place / "out").exists():
            state(place / "out")

    return attempt


def _configs(lab: Lab) -> dict[str, str | bytes]:
    base = _yaml(lab)

    def instead(key: str, value: str) -> str:
        """The configuration with another value at a top-level key or a key of a section."""
        return "".join(
            f"{line[: len(line) - len(line.lstrip())]}{key}: {value}\n"
            if line.strip().startswith(f"{key}:")
            else f"{line}\n"
            for line in base.splitlines()
        )

    def laughs(first: str, each: str, depth: int = 9) -> str:
        return first + "".join(
            f"a{i}: &a{i} {each.replace('*', f'*a{i - 1}')}\n" for i in range(1, depth + 1)
        )

    ten = f"[{','.join(['*'] * 10)}]"
    bomb = laughs("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n", ten)
    flow = "".join(f"    - &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    cases: dict[str, str | bytes] = {
        **{
            f"only {text!r}": text
            for text in ("", "[1]", "5", "null", "data:\n\ttrain: x\n", "5: 3\n", "true: 3\n")
        },
        "no UTF-8": b"\xff\xfe\x00",
        "Latin-1": "output: é".encode("latin1"),
        "UTF-16": base.encode("utf-16"),
        "behind a BOM": b"\xef\xbb\xbf" + base.encode(),
        "NUL in it": b"output: a\0b\n",
        "a section twice": base + "fit:\n  epochs: 2\n",
        "an option twice": base + "  epochs: 2\n",
        "two documents": f"{base}---\n{base}",
        "a Python object": "output: !!python/object/apply:os.mkdir ['ran']\n",
        "an unknown tag": "output: !foo x\n",
        "a billion laughs": bomb,
        "a billion laughs as the output": bomb + "output: *a9\n",
        "a billion laughs as data": bomb + "data: {train: *a9}\n",
        "a billion laughs of maps": laughs(
            "a0: &a0 {k: v}\n", "{" + ",".join(f"k{j}: *" for j in range(10)) + "}", 8
        ),
        "a billion laughs as class weights": f"fit:\n  class_weights:\n    - &a0 [1,1]\n{flow}",
        "a list in itself": "output: &a [*a]\n",
        "a map in itself": "fit: &a {epochs: *a}\n",
        "all of it in itself": "&a {data: *a}\n",
        "a merge": "base: &b {epochs: 1}\nfit:\n  <<: *b\n",
        "lists nested deep": "output: " + "[" * 3000 + "]" * 3000,
        "lists nested deep, open": "output: " + "[" * 100_000,
        "maps nested deep": "".join("  " * i + "a:\n" for i in range(1500)),
        "a text of 5 MB": "output: " + "a" * 5_000_000 + "\n",
        "20,000 unknown keys": "".join(f"k{i}: 1\n" for i in range(20_000)),
        "a key that is a list": "? [1, 2]\n: 3\n",
        "a key of escapes": '"\\e[31mred": 3\n',
        "a key of 1 MB": "k" * 1_000_000 + ": 3\n",
        "a value of escapes": 'recipe: "\\e[31mred"\n',
        "a dotted key": base + "fit.epochs: 2\n",
    }
    tags = (
        "!!int abc",
        "!!float abc",
        "!!bool abc",
        "!!timestamp abc",
        "!!binary '***'",
        "!!set {a, b}",
        "!!omap [a: 1]",
    )
    cases |= {f"output: {tag}": f"output: {tag}\n" for tag in tags}
    dates = ("2024-13-45", "2024-01-01", "0x", "1_0", "1" * 5000, "1e3", "[1]", "{a: 1}", "null", ".nan")
    cases |= {f"epochs: {value[:20]}": instead("epochs", value) for value in dates}
    places = (
        *(
            '"a\\0b"',
            '"a\\nb"',
            '"a\\ud800"',
            "'~nosuchuser/x'",
            "''",
            ".",
            "..",
            "/",
            "/dev/null",
            "/proc/x",
        ),
        *("a" * 300, "/" + "a" * 6000, "5", "[x]", "hf:", "'hf:  '", "'hf:a/b/c/d:e:f'", '"hf:a\\0b"', "'-'"),
        *("https://127.0.0.1/x", "2024-01-01", "loop/loop", "c.yaml/x"),
    )
    for key in ("output", "train", "validation", "backbone"):
        cases |= {f"{key}: {value[:30]}": instead(key, value) for value in places}
    cases |= {f"revision: {value}": f"{base}revision: {value}\n" for value in ('"../../x"', '"a\\0b"', "5")}
    for key in ("data", "fit", "prompt", "engine", "search", "recipe", "precision", "device"):
        lines_ = []
        inside = False
        for line in base.splitlines():
            inside = line.startswith(f"{key}:") or (inside and line.startswith(" "))
            lines_ += [] if inside else [line]
        for value in ("5", "'x'", "[]", "[1]", "null", "true", "{zzz: 1}", "{}"):
            if key == "fit" and value in ("null", "{}"):
                continue  # right, and as many epochs as the recipe thinks
            cases[f"{key}: {value}"] = "\n".join([*lines_, f"{key}: {value}", ""])
    return cases


# --------------------------------------------------------------------------------- data files


def _read_by(lab: Lab, how: str, case: Case) -> Callable[[Path], None]:
    """Whatever is in a file, a command ends with a sentence, or does what it is for."""
    name, data = case

    def attempt(place: Path) -> None:
        file = place / name
        file.write_bytes(data)
        output = place / "out"
        small = lab.argv(output, fit={"epochs": 1})
        argv = {
            "train": ["train", str(file), *(o for o in small[1:] if not o.startswith("--data."))],
            "evaluate": ["evaluate", str(lab.reference), str(file)],
            "predict": ["predict", str(lab.reference), "--input", str(file), "--output", str(output)],
            "check-data": ["check-data", str(file)],
        }[how]
        ran = command(argv)
        check(ran, (0, 2), [output])
        if how == "train" and ran.code == 0:
            state(output)
        if how == "predict" and ran.code == 0:
            for line in output.read_text(encoding="utf-8").splitlines():
                json.loads(line, parse_constant=lambda constant: held(False, f"answered {constant}"))

    return attempt


def _sound() -> dict[str, Case]:
    """One small sound file of every format."""
    made = rows(30)
    table = pa.table({name: [row[name] for row in made] for name in ("text", "label")})
    return {
        "csv": ("d.csv", _csv(made)),
        "quoted csv": ("d.csv", _csv(made, quoting=csv.QUOTE_ALL)),
        "tsv": ("d.tsv", _csv(made, delimiter="\t")),
        "jsonl": ("d.jsonl", _jsonl(made)),
        "json": ("d.json", json.dumps(made).encode()),
        "csv.gz": ("d.csv.gz", gzip.compress(_csv(made), mtime=0)),
        "zip": ("d.zip", _zip("d.csv", _csv(made))),
        "parquet": ("d.parquet", _parquet(table)),
    }


def _csv(made: Sequence[Mapping[str, str]], **how: Any) -> bytes:
    stream = io.StringIO()
    table = csv.DictWriter(stream, ["text", "label"], lineterminator="\n", **how)
    table.writeheader()
    table.writerows(made)
    return stream.getvalue().encode()


def _jsonl(made: Sequence[Mapping[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def _zip(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def _tables() -> dict[str, Case]:
    """CSV, TSV and text, and other things under their names."""
    good = _csv(rows(30))
    head = b"text,label\n"
    cases = {
        "empty": b"",
        "only a header": head,
        "random bytes": Random(1).randbytes(5000),
        "all NUL": b"\0" * 10_000,
        "NUL in a text": good.replace(b"film", b"fi\0lm"),
        "NUL for a label": good.replace(b",pos", b",\0", 1),
        "a line of 10 MB": head + b"a " * 5_000_000 + b",pos\n" + good[len(head) :],
        "a word of 10 MB": head + b"a" * 10_000_000 + b",pos\n" + good[len(head) :],
        "a quoted cell of 20 MB": head + b'"' + b"a" * 20_000_000 + b'",pos\n' + good[len(head) :],
        "a quote that is not closed": head + b'"good,pos\n' + good[len(head) :] * 100,
        "10,000 columns": _wide(10_000),
        "10,000 columns without names": b"," * 10_000 + b"\n" + b"," * 10_000 + b"\n",
        "a longer row": head + b"a,b,c\n",
        "a column twice": b"text,text,label\na,b,c\n",
        "UTF-16": good.decode().encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + good,
        "two BOMs": b"\xef\xbb\xbf" * 2 + good,
        "carriage returns": good.replace(b"\n", b"\r"),
        "a label of escapes": good.replace(b"pos", b"\x1b[31mpos\x1b]0;t\x07"),
        "a column of escapes": good.replace(b"text", b"\x1b[31mtext", 1),
        "labels of markup": good.replace(b"pos", b"[bold red]pos[/]").replace(b"neg", b"[link=x]neg"),
        "a label with a line break": good.replace(b"pos", b'"po\ns"'),
        "a label that turns the line": good.replace(b"pos", "p\u202eos".encode()),
        "half a letter": good.replace(b"pos", b"\xed\xa0\x80"),
        "labels of formulas": good.replace(b"pos", b"=1+1").replace(b"neg", b"@SUM(A1)"),
        "empty labels": good.replace(b"pos", b""),
        "a text of spaces": head + b"   ,pos\n" + good[len(head) :],
        "a text of no width": head + "\u200b,pos\n".encode() + good[len(head) :],
        "one class": good.replace(b"neg", b"pos"),
        "one row": head + b"a,b\n",
        "two rows": head + b"a,b\nc,d\n",
        "gzip under a name of CSV": gzip.compress(good, mtime=0),
    }
    made = {name: ("d.csv", data) for name, data in cases.items()}
    packed = gzip.compress(good, mtime=0)
    bomb = gzip.compress(head + b"a" * 300_000_000, mtime=0)
    return {
        **made,
        "CSV under a name of gzip": ("d.csv.gz", good),
        "gzip cut short": ("d.csv.gz", packed[:-12]),
        "gzip with a byte turned": ("d.csv.gz", packed[:40] + bytes([packed[40] ^ 255]) + packed[41:]),
        "gzip with more behind it": ("d.csv.gz", packed + b"xyz"),
        "gzip of 300 MB": ("d.csv.gz", bomb),
        "zip of no file": ("d.zip", _zip("", b"")[-22:]),
        "zip with a file above": ("d.zip", _zip("../../d.csv", good)),
        "zip of a program": ("d.zip", _zip("d.exe", b"MZ")),
        "zip cut short": ("d.zip", _zip("d.csv", good)[:-30]),
        "a text file": ("d.txt", b"good film\nbad film\n"),
        "a spreadsheet that is none": ("d.xlsx", good),
        "a name without an ending": ("d", good),
    }


def _wide(columns: int) -> bytes:
    names = ",".join(["text", "label", *(f"c{i}" for i in range(columns))])
    body = "".join(f"good film {i},{'pos' if i % 2 else 'neg'}{',1' * columns}\n" for i in range(8))
    return f"{names}\n{body}".encode()


def _json_lines() -> dict[str, Case]:
    """A line of every kind, first in a file and last."""
    good = _jsonl(rows(30))
    odd = {
        "array": "[1]",
        "number": "5",
        "null": "null",
        "string": '"x"',
        "NaN": "NaN",
        "a text that is a number": '{"text": 5, "label": "pos"}',
        "a text that is null": '{"text": null, "label": "pos"}',
        "a text that is a list": '{"text": ["a"], "label": "pos"}',
        "a text that is an object": '{"text": {"a": 1}, "label": "pos"}',
        "a label that is an object": '{"text": "a", "label": {"a": 1}}',
        "a label that is null": '{"text": "a", "label": null}',
        "a label that is a list": '{"text": "a", "label": ["pos"]}',
        "a label that is nested": '{"text": "a", "label": [["pos"]]}',
        "a label of 400 digits": f'{{"text": "a", "label": 1{"0" * 400}}}',
        "a label of 5,000 digits": f'{{"text": "a", "label": 1{"0" * 5000}}}',
        "a label that is true": '{"text": "a", "label": true}',
        "a label that is Infinity": '{"text": "a", "label": Infinity}',
        "a name twice": '{"text": "a", "text": "b", "label": "pos"}',
        "no text": '{"label": "pos"}',
        "no label": '{"text": "a"}',
        "a column more": '{"text": "a", "label": "pos", "z": 1}',
        "half a letter": '{"text": "\\ud800", "label": "pos"}',
        "a label of half a letter": '{"text": "a", "label": "\\ud800"}',
        "nested deep": '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "nested deep and open": '{"text":' * 100_000,
        "cut short": '{"text": "a"',
        "two objects": '{"text": "a", "label": "pos"}{"text": "a", "label": "pos"}',
        "NUL": '{"text": "a\\u0000b", "label": "pos"}',
        "a name of nothing": '{"": "a", "label": "pos"}',
        "10 MB": f'{{"text": "{"a b " * 2_500_000}", "label": "pos"}}',
    }
    cases = {}
    for name, line in odd.items():
        cases[f"first line: {name}"] = ("d.jsonl", line.encode() + b"\n" + good)
        cases[f"last line: {name}"] = ("d.jsonl", good + line.encode() + b"\n")
    array = b"[" + good.strip().replace(b"\n", b",\n")
    return {
        **cases,
        "an array": ("d.json", array + b"]"),
        "an array that is not closed": ("d.json", array),
        "an array of an odd row": ("d.json", array + b",{}]"),
        "an array of arrays": ("d.json", b"[[1], [2]]"),
        "an empty array": ("d.json", b"[]"),
        "an array nested deep": ("d.json", b"[" * 100_000),
        "an object over several lines": ("d.json", b'{\n "text": "a"\n}'),
    }


def _parquets() -> dict[str, Case]:
    """Parquet that is cut, of every type, with metadata of datasets' that is wrong."""
    texts, labels = [row["text"] for row in rows(30)], [row["label"] for row in rows(30)]
    plain = pa.table({"text": texts, "label": labels})
    data = _parquet(plain)
    value, names = (
        '"text": {"dtype": "string", "_type": "Value"}',
        '{"names": ["a", "b"], "_type": "ClassLabel"}',
    )
    metadata = {
        "not JSON": "{{{",
        "a list": "[]",
        "null": "null",
        "nested deep": "[" * 50_000,
        "an unknown feature": '{"info": {"features": {"text": {"_type": "Nope"}}}}',
        "features that are text": '{"info": {"features": "x"}}',
        "class labels for text": f'{{"info": {{"features": {{{value}, "label": {names}}}}}}}',
    }
    tables = {f"metadata: {name}": _hf(plain, text) for name, text in metadata.items()}
    far = _hf(pa.table({"text": texts, "label": [7] * 30}), metadata["class labels for text"])
    columns: dict[str, Any] = {
        "bytes": [b"x"] * 30,
        "dates": [datetime.date(2020, 1, 1 + i) for i in range(30)],
        "times in ns": pa.array([2**62 + i for i in range(30)], pa.timestamp("ns")),
        "times far away": pa.array([2**50 + i for i in range(30)], pa.timestamp("ms")),
        "durations": pa.array([2**60 + i for i in range(30)], pa.duration("us")),
        "decimals": [decimal.Decimal(i) for i in range(30)],
        "structs": [{"a": i} for i in range(30)],
        "maps": pa.array([[("a", 1)]] * 30, pa.map_(pa.string(), pa.int64())),
        "nulls": pa.nulls(30),
        "a dictionary": pa.array(labels).dictionary_encode(),
        "NaN": [float("nan")] * 30,
        "lists": [["pos"]] * 30,
        "unsigned": pa.array([2**64 - 1 - i for i in range(30)], pa.uint64()),
    }
    tables |= {
        f"labels of {name}": pa.table({"text": texts, "label": column}) for name, column in columns.items()
    }
    tables |= {
        f"texts of {name}": pa.table({"text": column, "label": labels}) for name, column in columns.items()
    }
    tables |= {
        "class labels out of range": far,
        "a column twice": pa.Table.from_arrays([pa.array(texts)] * 2, names=["text", "text"]),
        "no columns": pa.table({}),
        "no rows": plain.slice(0, 0),
    }
    raw = {
        "cut at the end": data[:-20],
        "cut in the middle": data[: len(data) // 2],
        "empty": b"",
        "only its mark": b"PAR1PAR1",
        "a footer that is too large": b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1",
    }
    made = {f"parquet, {name}": _parquet(table) for name, table in tables.items()}
    return {
        name: ("d.parquet", each)
        for name, each in {**made, **{f"parquet, {name}": each for name, each in raw.items()}}.items()
    }


def _hf(table: pa.Table, text: str) -> pa.Table:
    return table.replace_schema_metadata({b"huggingface": text.encode()})


# ---------------------------------------------------------------------------- the same rows


def _bare(made: Sequence[Mapping[str, str]], separator: str) -> bytes:
    """As many programs write them: nothing is quoted."""
    return "".join(
        f"{row['text']}{separator}{row['label']}\n" for row in [{"text": "text", "label": "label"}, *made]
    ).encode()


WRITERS: dict[str, Callable[[Sequence[Mapping[str, str]]], Case]] = {
    "CSV": lambda made: ("d.csv", _csv(made)),
    "CSV, all quoted": lambda made: ("d.csv", _csv(made, quoting=csv.QUOTE_ALL)),
    "CSV with semicolons": lambda made: ("d.csv", _csv(made, delimiter=";")),
    "CSV behind a BOM": lambda made: ("d.csv", b"\xef\xbb\xbf" + _csv(made)),
    "CSV in UTF-16": lambda made: ("d.csv", _csv(made).decode().encode("utf-16")),
    "CSV, nothing quoted": lambda made: ("d.csv", _bare(made, ",")),
    "TSV": lambda made: ("d.tsv", _csv(made, delimiter="\t")),
    "TSV, nothing quoted": lambda made: ("d.tsv", _bare(made, "\t")),
    "JSON lines": lambda made: ("d.jsonl", _jsonl(made)),
    "a JSON array": lambda made: ("d.json", json.dumps(made).encode()),
    "gzip": lambda made: ("d.csv.gz", gzip.compress(_csv(made), mtime=0)),
    "zip": lambda made: ("d.zip", _zip("d.csv", _csv(made))),
    "Parquet": lambda made: (
        "d.parquet",
        _parquet(pa.table({name: [row[name] for row in made] for name in ("text", "label")})),
    ),
}
MUST_READ = {"CSV", "CSV, all quoted", "TSV", "JSON lines", "gzip", "Parquet"}


def _same_rows(
    random: Random, write: Callable[[Sequence[Mapping[str, str]]], Case]
) -> Callable[[Path], None]:
    """Every row is read as it was written, or the file is refused: none is lost, or joined to another."""
    seed = random.random()

    def attempt(place: Path) -> None:
        draw = Random(seed)
        marks = draw.sample(['"', '" ', ' "', ",", ";", "'", "\t", "\n", "é", "=", "|", '""', "\\", "#"], 3)
        made = []
        for i in range(40):
            words = draw.choices(WORDS, k=draw.randint(1, 6)) + draw.choices(
                marks, k=draw.choice([0, 0, 1, 2])
            )
            draw.shuffle(words)
            made.append({"text": f"row {i} {' '.join(words)} end", "label": ("pos", "neg")[i % 2]})
        name, data = write(made)
        bare = write is WRITERS["TSV, nothing quoted"] or write is WRITERS["CSV, nothing quoted"]
        file = place / name
        file.write_bytes(data)
        found: list[Any] = []
        why = refused(lambda: found.extend(load_examples(file).examples))
        if why is not None:
            must = any(write is WRITERS[each] for each in MUST_READ)
            lines = any("\n" in row["text"] for row in made)  # that may be rows of their own
            asked = lines and "--data.quoting csv" in why
            held(asked or not must, f"refused: {why}")
            return
        if bare and any(mark in row["text"] for row in made for mark in ("\n", "\t", ",")):
            return  # nobody could tell which cells these were
        got = [(example.text, example.label) for example in found]
        want = [(row["text"], row["label"]) for row in made]
        held(len(got) == len(want), f"{len(want)} rows were read as {len(got)}")
        wrong = [pair for pair in zip(got, want, strict=True) if pair[0] != pair[1]]
        held(not wrong, f"{len(wrong)} rows were read otherwise, such as {wrong[:1]}")

    return attempt
