"""Public text uses the field's own words: docstrings, messages, help, the pages and the model card.

``BANNED`` has the words that were replaced, with what to write instead; the glossary is in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from ptuning import adapters
from ptuning.cli import COMMANDS
from test_adapters_record import an_adapter

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "ptuning"

_EACH = "row|class|batch|label|line|text|file|epoch|layer|step|split|run|trial|task|pair|token"
_COUNTED = (
    "once|twice|one number|one text|one|two|three|rows?|tokens|labels|logits|texts|objects?|weights?"
    "|sub-folder|columns?|vectors?|steps|looks|passes|times"
)
BANNED: tuple[tuple[str, str], ...] = (
    (r"\b(?:trained|trainable|as many|fewer) numbers\b", "parameters"),
    (r"\bnumbers (?:of|in) (?:the|a|its) (?:model|prompt|head|backbone)\b", "parameters"),
    (r"\blooks? at (?:the )?validation\b", "evaluation on the validation rows"),
    (r"\b(?:a|an|one|best|last|each|every|dozen|of|few|several) looks?\b(?! at| like|ing)", "evaluation"),
    (r"\bnought\b", "zero"),
    (r"\banew\b", "again, from scratch"),
    (r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|such\b|better\b|worse\b|problem\b)",
     "is not a …, has no …"),
    (r"\bof which\b", "rewrite the sentence"),
    (r", but for\b", "except"),
    (r"\b(?:prompt's|head's|optimizer's|several|short|high|low|lower|higher|peak|two) rates?\b",
     "learning rate"),
    (r"\bthe rates\b", "the learning rates"),
    (rf"\b(?:{_COUNTED}) an? (?:{_EACH})\b", "per row, per class, per batch"),
    (r"\bweigh(?:s|ed|ing)?\b", "weight, weighted"),
    (r"\btold (?:from|by|apart)\b", "inferred from, detected"),
    (r"\bcomes? by\b", "is passed"),
    (r"\bgoes along\b", "is passed"),
    (r"\bgreatest\b", "maximum"),
)  # fmt: skip
"""Regular expressions of words that are not used, and what to write instead."""

NOT_YET = ("docs/trials.md",)
"""Prefixes of places that still have such words. The list only gets shorter."""


class Found(NamedTuple):
    """A banned word: where it is, and what to write instead."""

    place: str
    words: str
    instead: str

    def __str__(self) -> str:
        return f"{self.place}: {self.words!r} (write: {self.instead})"


def banned(place: str, text: str) -> Iterator[Found]:
    """The banned words of a text."""
    line = " ".join(text.split())
    for pattern, instead in BANNED:
        for match in re.finditer(pattern, line):
            yield Found(place, line[max(match.start() - 30, 0) : match.end() + 30], instead)


def in_code(file: Path) -> Iterator[Found]:
    """Docstrings of public names, and the other strings: messages, notes, help."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(first.value)
                if getattr(node, "name", "").startswith("_"):
                    continue
                yield from banned(f"{file.relative_to(ROOT)}:{first.lineno}", str(first.value.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield from banned(f"{file.relative_to(ROOT)}:{node.lineno}", node.value)


def everywhere() -> list[Found]:
    """All banned words in public text."""
    found = [each for file in sorted(SOURCE.rglob("*.py")) for each in in_code(file)]
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, text in enumerate(page.read_text(encoding="utf-8").split("\n\n"), 1):
            found += banned(f"{page.relative_to(ROOT)}, paragraph {number}", text)
    for command in COMMANDS:
        parser = import_module(f"ptuning.cli.{command.replace('-', '_')}").parser()
        found += banned(f"ptuning {command} --help", parser.format_help())
    for depth in ("input", "deep"):
        found += banned(
            "the model card", adapters.model_card(an_adapter({"depth": depth}), name="someone/refunds")
        )
    return found


def test_public_text_has_no_banned_words() -> None:
    found = [str(each) for each in everywhere() if not each.place.startswith(NOT_YET)]
    assert not found, "\n".join(found)


def test_what_is_clean_leaves_the_list() -> None:
    places = [each.place for each in everywhere()]
    clean = [prefix for prefix in NOT_YET if not any(place.startswith(prefix) for place in places)]
    assert not clean, f"remove {clean} from NOT_YET"


@pytest.mark.parametrize(
    "text",
    [
        "the number of rows", "numbers from 0 to 5", "whole numbers", "the weights of the backbone",
        "there is no such file", "this looks like JSON", "it looks at the first line", "the error rate",
        "a lower learning rate", "a row has a label", "label a row as spam", "it is no longer needed",
        "the largest value", "a class of texts", "if there is no label", "one row per line",
        "the rate of change",
    ],
)  # fmt: skip
def test_ordinary_english_is_allowed(text: str) -> None:
    assert not list(banned("", text))


@pytest.mark.parametrize(
    "text",
    [
        "under 1 % as many numbers as the model has", "the numbers of the prompt", "each look costs an epoch",
        "the best look", "begins at nought", "written anew", "it is no file", "logits of which nothing is",
        "all, but for the last", "the prompt's rate", "how the rates fall", "one number a row",
        "one text a line",
        "it weighs dimensions", "told from the file", "the pass that comes by", "the greatest value",
    ],
)  # fmt: skip
def test_a_riddle_is_found(text: str) -> None:
    assert list(banned("", text))
