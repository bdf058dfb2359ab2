"""Text that is not to be believed, such as labels and an adapter's words: in terminal, card, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torture.lab import RECORD, Lab, check, command, copy, held, reseal, state
from torture.trials import Draw, Line, Trial

LABELS: dict[str, tuple[str, str]] = {
    "escapes": ("\x1b[31mred\x1b[0m", "\x1b]0;title\x07x"),
    "C1 and bidi": ("\x9b31mred", "\u202eabc\u2066"),
    "NUL": ("a\x00b", "c"),
    "markup of rich": ("[bold red]a[/]", "[link=http://x]b[/link]"),
    "line breaks": ("a\nb", "c\r\nd"),
    "formulas": ("=cmd|'/c calc'!A1", "@SUM(1)"),
    "formulas of signs": ("+1+cmd", "-1+cmd"),
    "HTML": ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>"),
    "Markdown": ("`` ` ``|x|", "](http://evil)![x](http://evil/x.png)"),
    "Markdown of links": ("[click](http://evil)", "![x](http://evil/x.png)"),
    "YAML": ("---\nlicense: mit", "a: [b"),
    "shell": ("$(mkdir ran)", "`mkdir ran`"),
    "half letters' neighbours": ("\ufeffa", "b\u2028c"),
}
FORMULA = re.compile(r"^[=+\-@\t\r](?!\d*\.?\d+$)")
"""How a cell begins that a spreadsheet runs, but for a number."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    commands = [Trial(name, _labels(lab, *pair)) for name, pair in LABELS.items()]
    yield Line("labels", commands, limit=60)
    words = [
        Trial(f"{where} of {what}", _words(lab, where, text))
        for where in WORDS
        for what, text in TEXTS.items()
    ]
    yield Line("an adapter's own words", words)
    names = [Trial(repr(name), _named(lab, name)) for name in NAMES]
    yield Line("names of folders", names)


def _card(folder: Path) -> None:
    """A model card's front matter is read, and nothing outside code is live."""
    from huggingface_hub import ModelCard

    text = (folder / "README.md").read_text(encoding="utf-8")
    found: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    held(found.get("library_name"), "the card's front matter says nothing")
    held(found.get("license") != "mit", "a label wrote the card's licence")
    body = text.split("---", 2)[2]
    bare = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"(?ms)^```.*?^```", "", body), flags=re.S)
    live = [each for each in ("<script", "<img", "](http://evil", "javascript:") if each in bare]
    held(not live, f"live in the card: {', '.join(live)}")


def _labels(lab: Lab, one: str, other: str) -> Callable[[Path], None]:
    """Rows with these labels through every command: refused, or written so that nothing obeys them."""

    def attempt(place: Path) -> None:
        file, output = place / "d.jsonl", place / "adapter"
        rows = [{"text": f"good film {i}", "label": (one, other)[i % 2]} for i in range(24)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        check(command(["check-data", str(file)]))
        argv = [o for o in lab.argv(output, fit={"epochs": 1}) if not o.startswith("--data.")]
        ran = command([*argv, f"--data.train={file}"])
        check(ran, (0, 2), [output])
        if ran.code:
            return
        state(output)
        _card(output)
        check(command(["inspect", str(output)]), (0,))
        check(command(["evaluate", str(output), str(file)]), (0,))
        ran = command(["predict", str(output), "--input", str(file), "--format", "jsonl"])
        check(ran, (0,))
        for line in ran.out.strip("\n").split("\n"):
            answer = json.loads(line)
            held(set(answer["probabilities"]) == {one, other}, f"labels {list(answer['probabilities'])}")
        ran = command(["predict", str(output), "--input", str(file), "--format", "csv"])
        check(ran, (0,))
        cells = [cell for row in csv.reader(io.StringIO(ran.out, newline="")) for cell in row]
        live = [cell for cell in cells if FORMULA.match(cell)]
        held(not live, f"a cell that a spreadsheet runs: {live[:1]}")
        held(not (place / "ran").exists(), "a shell ran a label")

    return attempt


TEXTS = {
    "escapes": "\x1b]0;pwn\x07\x1b[31mx",
    "C1": "\x9b31mx",
    "bidi": "\u202ex",
    "markup": "[bold]x[/]",
    "HTML": "<img src=x>",
    "NUL": "a\0b",
    "line breaks": "a\nptuning: error: b",
}
WORDS = ("backbone.name", "metrics", "baseline_rule", "created", "versions", "source", "licence", "labels")


def _words(lab: Lab, where: str, text: str) -> Callable[[Path], None]:
    """A record with a text in one place, sealed: no command prints what a terminal obeys."""

    def change(record: dict[str, Any]) -> None:
        match where:
            case "backbone.name":
                record["backbone"]["name"] = text
            case "metrics":
                record["metrics"][text] = {text: 1.0}
            case "baseline_rule":
                record["metrics"]["baseline_rule"] = text
            case "created":
                record["created"] = text
            case "versions":
                record["versions"]["ptuning"] = text
            case "source":
                record["extra"]["data"] = {text: {"source": text, "rows": 3}}
            case "licence":
                record["extra"]["license"] = text
            case "labels":
                record["task"]["labels"] = [text, "b"]

    def attempt(place: Path) -> None:
        folder = copy(lab.reference, place / "adapter")
        held((folder / RECORD).is_file(), "no record")
        reseal(folder, change)
        rows = str(lab.validation)
        for argv in (
            ["inspect", str(folder)],
            ["inspect", str(folder), "--backbone", str(lab.backbone)],
            ["predict", str(folder), "--input", rows],
            ["evaluate", str(folder), rows],
            ["export-peft", str(folder), str(place / "export")],
        ):
            check(command(argv), (0, 1, 2))
        if (place / "export" / "README.md").exists():
            _card(place / "export")

    return attempt


NAMES = (
    "a'; mkdir ran; '",
    "$(mkdir ran)",
    "a\nb",
    "-rf",
    "a`b`",
    'a"b',
    "a b",
    "\x1b[31mred",
    "[bold]a",
    "é",
    "#a",
)


def _named(lab: Lab, name: str) -> Callable[[Path], None]:
    """A card's examples name the folder so that a shell takes it for one word."""

    def attempt(place: Path) -> None:
        import shlex

        output = place / "names" / name
        ran = command(lab.argv(output, fit={"epochs": 1}))
        check(ran, (0, 2))
        if ran.code:
            return
        check(command(["inspect", str(output)]), (0,))
        text = (output / "README.md").read_text(encoding="utf-8")
        for line in text.splitlines():
            if line.startswith("ptuning predict") and name.isprintable():
                given = shlex.split(line)
                held(given[2] in (name, f"./{name}"), f"a shell reads {given[2:3]} in the card's example")

    return attempt
