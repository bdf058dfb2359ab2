"""``ptuning predict`` as a stream: slow producers, closed ends, bad rows between good ones, long lines."""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from torture.lab import Lab, check, command, console, ended, fork, held, strays
from torture.trials import Draw, Line, Trial

PATIENCE = 10.0
"""Seconds in which rows that have come are answered while their producer waits."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    slow = [
        Trial(f"{count} rows, then silence, {form}", _slow(lab, count, form), count)
        for form in ("text", "jsonl", "csv")
        for count in (1, 3, 20, 100)
    ]
    yield Line("a producer that waits", slow)
    yield Line("ends that are closed", [Trial(name, attempt) for name, attempt in _closed(lab).items()])
    bad = [
        Trial(f"{what} at row {at} of {count}, {form}", _bad_row(lab, form, text, at, count), count)
        for i, (what, form, text) in enumerate(BAD * 3)
        for random in [draw.random("bad", i)]
        for count in [random.choice([10, 300, 1500])]
        for at in [random.randrange(count)]
    ]
    yield Line("a bad row between good ones", bad)
    mixed = [
        Trial(f"lengths {i}", _mixed(lab, draw.random("mixed", i).random())) for i in range(draw.count(12))
    ]
    yield Line("texts of every length, in order", mixed)
    few, many = (4000, 40_000) if draw.most is None else (2000, 8000)
    memory = [
        Trial(f"{many:,} rows take no more memory than {few:,}", _flat(lab, few, many)),
        Trial("a line of 8 MB takes no more than 400 MB", _long(lab)),
    ]
    yield Line("memory", memory, limit=120)


class Program:
    """``ptuning predict`` in a child, its standard streams at the ends of pipes."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        inward, outward = os.pipe(), os.pipe()

        def work() -> None:
            for standard, (near, far) in ((0, inward), (1, outward)):
                os.dup2((near, far)[standard], standard)
                os.close(near)
                os.close(far)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            console(argv)()

        self.child = fork(work, log)
        self.stdin, self.stdout = inward[1], outward[0]
        os.close(inward[0])
        os.close(outward[1])

    def read(self, count: int, seconds: float) -> list[str]:
        """What came until there are so many lines, or the time is over."""
        data, end = b"", time.monotonic() + seconds
        while data.count(b"\n") < count and (left := end - time.monotonic()) > 0:
            if select.select([self.stdout], [], [], left)[0]:
                more = os.read(self.stdout, 1 << 16)
                if not more:
                    break
                data += more
        return data.decode().splitlines()

    def close(self) -> int:
        os.close(self.stdin)
        os.set_blocking(self.stdout, True)
        while os.read(self.stdout, 1 << 16):
            pass
        os.close(self.stdout)
        return ended(self.child)


def _row(form: str, text: str) -> str:
    return json.dumps({"text": text}) if form == "jsonl" else text


def _slow(lab: Lab, count: int, form: str) -> Callable[[Path], None]:
    """Rows are answered when they come, not when a window is full or their producer ends."""

    def attempt(place: Path) -> None:
        program = Program(["predict", str(lab.reference), "--input_format", form], place / "log")
        head = ["text"] if form == "csv" else []
        rows = [_row(form, f"good film {i}") for i in range(count)]
        os.write(program.stdin, "".join(f"{row}\n" for row in [*head, *rows]).encode())
        found = program.read(count, PATIENCE)
        held(len(found) == count, f"{len(found)} of {count} rows were answered in {PATIENCE:.0f} s")
        os.write(program.stdin, f"{_row(form, 'awful bill')}\n".encode())
        held(len(program.read(1, PATIENCE)) == 1, "the next row was not answered")
        held((code := program.close()) == 0, f"exit code {code}")

    return attempt


def _closed(lab: Lab) -> dict[str, Callable[[Path], None]]:
    reference = str(lab.reference)

    def case(argv: Sequence[str], close: Sequence[int], codes: Sequence[int]) -> Callable[[Path], None]:
        def attempt(place: Path) -> None:
            log = place / "log"

            def work() -> None:
                for standard in close:
                    os.close(standard)
                for name, standard in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
                    if standard in close:
                        setattr(sys, name, None)  # as Python itself has it then
                console(argv)()

            code = ended(fork(work, log))
            text = log.read_text(errors="replace")
            held("Traceback" not in text, f"a traceback: {text.strip().splitlines()[-1:]}")
            held(code in codes, f"exit code {code}, expected {' or '.join(map(str, codes))}: {text[-200:]}")

        return attempt

    def gone(rows: int, read: int) -> Callable[[Path], None]:
        def attempt(place: Path) -> None:
            program = Program(["predict", reference], place / "log")
            os.write(program.stdin, b"good film\n" * rows)
            program.read(read, 5 if read else 0)
            os.close(program.stdout)
            os.close(program.stdin)
            code = ended(program.child)
            text = (place / "log").read_text(errors="replace")
            held("Traceback" not in text and "Exception ignored" not in text, f"said {text[-200:]}")
            held(code in (0, 1, 141), f"exit code {code}")

        return attempt

    validation = str(lab.validation)
    return {
        "standard input": case(["predict", reference], [0], (0, 2)),
        "standard output": case(["predict", reference, "--input", validation], [1], (0, 1, 2)),
        "standard error": case(["predict", reference, "--input", validation], [2], (0, 1, 2)),
        "all three": case(["predict", reference, "--input", validation], [0, 1, 2], (0, 1, 2)),
        "standard output of check-data": case(["check-data", validation], [1], (0, 1, 2)),
        "standard output of inspect": case(["inspect", reference], [1], (0, 1, 2)),
        "standard output of evaluate": case(["evaluate", reference, validation], [1], (0, 1, 2)),
        "nothing at standard input": case(["predict", reference], [], (0, 2)),
        "a reader that goes at once": gone(3000, 0),
        "a reader that goes after a line": gone(3000, 1),
    }


BAD: tuple[tuple[str, str, bytes], ...] = (
    ("no UTF-8", "text", b"bad \xff\n"),
    ("no UTF-8", "jsonl", b'{"text": "\xff"}\n'),
    ("a list", "jsonl", b"[1]\n"),
    ("half an object", "jsonl", b'{"text": \n'),
    ("a text that is null", "jsonl", b'{"text": null}\n'),
    ("no text", "jsonl", b'{"label": 3}\n'),
    ("nested deep", "jsonl", b"[" * 50_000 + b"\n"),
    ("a row too long", "csv", b"a,b,c\n"),
    ("no UTF-8", "csv", b"bad \xff\n"),
)


def _bad_row(lab: Lab, form: str, text: bytes, at: int, count: int) -> Callable[[Path], None]:
    """The rows before a bad one are answered, all of them; then comes a sentence that names the line."""

    def attempt(place: Path) -> None:
        head = b"text\n" if form == "csv" else b""
        rows = [f"{_row(form, f'good film {i}')}\n".encode() for i in range(count)]
        rows[at:at] = [text]
        file = place / "rows"
        file.write_bytes(head + b"".join(rows))
        ran = command(["predict", str(lab.reference), "--input_format", form], stdin=file)
        check(ran, (2,))
        line = at + 1 + bool(head)
        held(f"{line}" in ran.err, f"the error does not name line {line}: {ran.said}")
        answered = [json.loads(each)["row"] for each in ran.out.splitlines()]
        held(len(answered) == at, f"{len(answered)} of {at} good rows before it were answered")
        held(answered == sorted(answered), "out of order")

    return attempt


def _mixed(lab: Lab, seed: float) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        random = Random(seed)
        count = random.choice([1, 10, 1023, 1024, 1025, 3000])
        texts = [" ".join(["good"] * int(2 ** random.uniform(0, 8))) for _ in range(count)]
        file, output = place / "rows.txt", place / "out"
        file.write_text("".join(f"{text}\n" for text in texts))
        window = random.choice([1024, 100, 7 if count < 1000 else 300])
        argv = ["predict", str(lab.reference), "--input", str(file), "--output", str(output)]
        check(command([*argv, "--window", str(window)]), (0,))
        rows = [json.loads(line)["row"] for line in output.read_text().splitlines()]
        held(
            rows == list(range(1, count + 1)),
            f"{count} rows in, {len(rows)} out, in order {rows == sorted(rows)}",
        )
        held(not strays(place), "left something behind")

    return attempt


def _peak(lab: Lab, file: Path, log: Path) -> float:
    """The most memory, in MB, of predicting a file."""

    def work() -> int:
        command(["predict", str(lab.reference), "--input", str(file), "--output", os.devnull])
        log.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        return 0

    ended(fork(work), 110, must=0)
    return float(log.read_text())


def _flat(lab: Lab, few: int, many: int) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        peaks: list[Any] = []
        for count in (few, many):
            file = place / f"{count}.txt"
            file.write_text("".join(f"good film {i % 977} bill\n" for i in range(count)))
            peaks.append(_peak(lab, file, place / "log"))
        held(peaks[1] < peaks[0] + 50, f"{peaks[0]:.0f} MB for {few:,} rows, {peaks[1]:.0f} MB for {many:,}")

    return attempt


def _long(lab: Lab) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        short, long = place / "short.txt", place / "long.txt"
        short.write_text("good film\n")
        long.write_text(f"good film\n{'good ' * 1_600_000}\n")
        before, after = _peak(lab, short, place / "log"), _peak(lab, long, place / "log")
        held(after < before + 400, f"{before:.0f} MB for a short line, {after:.0f} MB for a long one")

    return attempt
