"""A short slice of every torture campaign, sound and with a fault planted.

A program, which ``test_torture.py`` runs: forks need a process that has started no threads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torture.__main__ import CAMPAIGNS, campaign  # first: it sets the environment before torch is imported
from torture.lab import Lab, ended, fork, made
from torture.trials import Draw


def half_written() -> None:
    """An adapter is written where it stands, file after file."""
    import shutil

    from ptuning.adapters import folder

    def careless(target: Path, fill: Callable[[Path], None], *rest: Any, **more: Any) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        fill(target)

    folder.replace_folder = careless


def no_digests() -> None:
    """An adapter's files are read whatever their digests."""
    from ptuning.adapters import folder

    folder.checked = lambda place, name, listed: (place / name).read_bytes()


def no_moments() -> None:
    """A run is gone on from as if the optimizer had not stepped, and whatever its checkpoint's digests."""
    from ptuning import adapters
    from ptuning.training import checkpoint

    sound = checkpoint._under
    checkpoint._under = lambda prefix, tensors: {} if prefix.startswith("optim") else sound(prefix, tensors)
    checkpoint._check_tensors = lambda *given: None
    adapters.verify = lambda folder: (checkpoint.STATE, checkpoint.TENSORS)


def any_logits() -> None:
    """What is asked of a model is answered, finite or not."""
    from ptuning.inference import evaluate, pipelines, predictor

    for module in (evaluate, pipelines, predictor):
        for name in [each for each in vars(module) if "finite" in each]:
            setattr(module, name, lambda *given, **named: None)


def lost_rows() -> None:
    """Every seventh row of a file is lost."""
    from ptuning.data import dataset

    sound = dataset.open_table

    def losing(*given: Any, **named: Any) -> Any:
        table = sound(*given, **named)
        return replace(table, rows=(row for n, row in enumerate(table.rows, start=1) if n % 7))

    dataset.open_table = losing


def anything_goes() -> None:
    """No destination is refused, whatever stands there."""
    import os

    from ptuning import adapters
    from ptuning.adapters import folder

    adapters.check_destination = folder.check_destination = lambda place, *rest: Path(os.path.realpath(place))


def no_signals() -> None:
    """Signals do what they do by default."""
    from ptuning.training import interrupt

    interrupt._can_replace = lambda *given: False


def whole_windows() -> None:
    """Rows are answered when all of them have come."""
    from ptuning.inference.predictor import Predictor

    sound = Predictor.stream
    Predictor.stream = lambda self, examples, *rest, **more: sound(self, list(examples), *rest, **more)


def foreign_errors() -> None:
    """What transformers raises for a backbone goes through."""
    from ptuning.model import loading, source

    loading.reading = source.reading = lambda *given, **named: nullcontext()


def live_text() -> None:
    """Text is printed as it stands."""
    from ptuning import visible

    visible._code = lambda found: found[0]


def shared_dropout() -> None:
    """Every fourth prediction is made with other numbers, as a training beside it might."""
    from ptuning.inference import predictor

    sound, calls = predictor.logits_of, [0]

    def disturbed(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        found = sound(*given, **named)
        found[:, 0] += 0.1 * (calls[0] % 4 == 0)
        return found

    predictor.logits_of = disturbed


PLANTS: dict[str, tuple[Callable[[], None], str]] = {
    "kill": (half_written, "while an adapter is saved"),
    "adapter": (no_digests, "bytes of its files"),
    "resume": (no_moments, "bytes of a checkpoint"),
    "numbers": (any_logits, "what is asked of a model that is not finite"),
    "files": (lost_rows, "the same rows in every format"),
    "disk": (anything_goes, "things in the way"),
    "signals": (no_signals, "once, of train"),
    "stream": (whole_windows, "a producer that waits"),
    "backbones": (foreign_errors, "odd folders"),
    "text": (live_text, "labels"),
    "threads": (shared_dropout, "predictions in threads"),
}
"""By campaign, a fault and the line that has to find it."""


def planted(lab: Lab, name: str, report: Path) -> None:
    """In a child, whose faults go with it."""
    plant, line = PLANTS[name]
    plant()
    found = campaign(name, lab, Draw(0, 8), 2, line)
    report.write_text(json.dumps([each.to_dict() for each in found]))


def main(trials: int, results: Path) -> None:
    found: dict[str, Any] = {}
    with made() as lab:
        for name in CAMPAIGNS:
            report = lab.root / f"{name}.json"
            sound = [each.to_dict() for each in campaign(name, lab, Draw(0, trials), 2)]
            ended(fork(partial(planted, lab, name, report)), 120, must=0)
            found[name] = {"sound": sound, "planted": json.loads(report.read_text())}
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
