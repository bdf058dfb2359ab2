"""One run of the quality study, in a process of its own on one thread: its last line is what it found.

PTUNING_DATA=... PYTHONPATH=benchmarks python -m quality.worker --json-run '{"dataset": …, "method": …, …}'
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import machine
from ptuning import TrainConfig, train
from ptuning.data.labels import encode_labels
from ptuning.errors import TrainingDiverged
from ptuning.model.config import prompt_to_dict
from ptuning.model.embedded import resolve
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import DataConfig
from ptuning.training.metrics import Baseline, measure
from ptuning.training.prepare import read
from quality.data import home, loadable, write_rows
from quality.plan import Run, data_set, given, recorded, schedule, setfit_python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json-run", required=True, help="the fields of quality.plan.Run")
    run = Run(**json.loads(parser.parse_args().json_run))
    print(json.dumps(perform(run, home(data_set(run.dataset)))), flush=True)


def perform(run: Run, source: Path) -> dict[str, Any]:
    """What ``run`` found; of one that diverged, that it did."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        files = write_rows(data_set(run.dataset), run.seed, source, Path(scratch) / "rows")
        try:
            found = _train(run, files, Path(scratch))
        except TrainingDiverged as diverged:
            found = {"metrics": None, "diverged": str(diverged), "cpu_seconds": 0.0, "wall_seconds": 0.0}
    on = machine()
    on["versions"] |= {"peft": version("peft"), **found.pop("versions", {})}
    return {"peak_mib": peak_mib(), **found, "machine": on}


def _train(run: Run, files: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    match run.setting["kind"]:
        case "majority":
            return answer_constantly(files)
        case "frozen":
            from quality.frozen import regress

            return regress(run.setting, files, run.seed)
        case "peer":
            from quality.peers import train_peer  # PEFT's imports are no part of the other methods' memory

            return train_peer(run.setting, files, run.seed)
        case "ptuning":
            rows = Path(files["train"]).read_bytes().count(b"\n")
            return train_prompt(_explicit(run.setting, rows), files, run.seed, scratch)
        case "setfit":
            return train_setfit(run.setting, files, run.seed, scratch)
        case "default" if "recipe" in run.setting:
            options = {name: run.setting[name] for name in ("prompt",) if name in run.setting}
            backbone = loadable(run.setting["backbone"])
            return train_prompt({"backbone": backbone, **options}, files, run.seed, scratch)
        case "default":
            return train_prompt({}, files, run.seed, scratch, expected=run.setting)
        case kind:
            raise ValueError(f"no such kind of method here: {kind}")


def answer_constantly(files: Mapping[str, str]) -> dict[str, Any]:
    """What the training rows' majority class, or mean, scores."""
    examples, task = read(DataConfig(**files), seed=0)
    train, held, test = (
        np.asarray(encode_labels(rows, task), dtype=np.float64)
        for rows in (examples.train, examples.validation, examples.test)
    )
    baseline = Baseline.of(train, task)
    found = {"validation": baseline.measure(held, task), "test": baseline.measure(test, task)}
    return {
        "metrics": found,
        "baseline": found,
        "baseline_rule": baseline.rule,
        "trained": 0,
        "total": 0,
        "cpu_seconds": 0.0,
        "wall_seconds": 0.0,
    }


def _explicit(setting: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A setting of the plan as options of ``TrainConfig``."""
    epochs, _, every = schedule(setting, rows)
    return {
        "backbone": loadable(setting["backbone"]),
        "prompt": setting["prompt"],
        "fit": {
            "epochs": epochs,
            "evaluate_every": every,
            "prompt_rate": setting["rate"],
            "head_rate": setting["rate"] * setting["head_share"],
            **{name: setting[name] for name in ("batch_size", "warmup", "schedule", "clip", "weight_decay")},
        },
    }


def train_prompt(
    options: Mapping[str, Any],
    files: Mapping[str, str],
    seed: int,
    scratch: Path,
    *,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``ptuning.train`` with ``options``; without any its default recipe, which has to be as ``expected``."""
    config = TrainConfig.checked(
        {
            **options,
            "data": dict(files),
            "output": str(scratch / "adapter"),
            "report": False,
            "fit": {**options.get("fit", {}), "seed": seed},
        }
    )
    watch = Watch(expected)
    result = train(config, callbacks=[watch])
    return {
        "metrics": result.metrics,
        "baseline": result.baseline,
        "trained": result.trained,
        "total": result.total,
        "cpu_seconds": watch.cpu,
        "wall_seconds": watch.wall,
        "best_epoch": result.best.epoch,
        "epochs": result.history[-1].epoch,
        "steps": result.history[-1].step,
        "history": [
            {"epoch": each.epoch, "value": each.metrics.get(result.metric)} for each in result.history
        ],
        "rates": result.setting["rates"],
    }


def train_setfit(
    setting: Mapping[str, Any], files: Mapping[str, str], seed: int, scratch: Path
) -> dict[str, Any]:
    """What SetFit reaches, in the environment that ``make quality-setfit`` makes."""
    order = {
        **{name: setting[name] for name in ("rate", "most_steps")},
        "backbone": resolve(setting["backbone"]),
        "files": dict(files),
        "seed": seed,
        "scratch": str(scratch / "setfit"),
    }
    script = Path(__file__).with_name("setfit_run.py")
    done = subprocess.run([setfit_python(), script, json.dumps(order)], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    examples, task = read(DataConfig(**files), seed=seed)
    targets = {
        name: np.asarray(encode_labels(rows, task), dtype=np.float64)
        for name, rows in (
            ("train", examples.train),
            ("validation", examples.validation),
            ("test", examples.test),
        )
    }
    baseline = Baseline.of(targets.pop("train"), task)
    metrics = {}
    for name, values in found.pop("probabilities").items():
        logits = np.log(np.maximum(np.asarray(values), 1e-12))
        loss = -logits[np.arange(len(logits)), targets[name].astype(int)].mean()
        metrics[name] = {"loss": float(loss), **measure(logits, targets[name], task)}
    return {
        **found,
        "metrics": metrics,
        "baseline": {name: baseline.measure(each, task) for name, each in targets.items()},
        "total": found["trained"],
    }


class Watch(Callback):
    """Measures from the first thing that a run computes to its last evaluation; loading and test are outside.

    Attributes:
        expected: The setting that this run is recorded under; another is refused before the first step.
    """

    cpu = wall = 0.0

    def __init__(self, expected: Mapping[str, Any] | None) -> None:
        self.expected = expected

    def on_train_begin(self, state: RunState) -> None:
        if self.expected is not None:
            fit = given(recorded(state.plan.fit))
            prompt = prompt_to_dict(state.model.prompt_config)
            if fit != self.expected["fit"] or not self.expected["prompt"].items() <= prompt.items():
                raise RuntimeError(
                    f"the default recipe chose {fit} and {prompt}, and quality.plan.default_setting expected "
                    f"{self.expected}"
                )
        self._began = time.process_time(), time.perf_counter()

    def on_evaluate(self, state: RunState) -> None:
        self.cpu = time.process_time() - self._began[0]
        self.wall = time.perf_counter() - self._began[1]


def peak_mib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")  # Linux counts a parent's memory into getrusage
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    main()
