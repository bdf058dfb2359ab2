"""Train an adapter with Ray Train: several workers, and a run that goes on after the loss of one.

On the cluster that the environment variable RAY_ADDRESS names, or on this machine::

    python examples/ray_train.py /shared/reviews.csv /shared/runs --workers 2

Every node has to be able to read the rows and the folder of the runs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ptuning import Callback, DeepPrompt, FitConfig, PTuningModel, RunState, fit


class ReportToRay(Callback):
    """Gives Ray Train the metrics, and the files that the run can be resumed from, at every checkpoint."""

    def __init__(self, files: Path) -> None:
        self.files = files

    def on_save(self, state: RunState) -> None:
        report(dict(state.metrics), self.files)


def report(metrics: dict[str, float], files: Path) -> None:
    """Every worker calls this; the files are those of the first."""
    first = ray.train.get_context().get_world_rank() == 0
    ray.train.report(metrics, checkpoint=Checkpoint.from_directory(str(files)) if first else None)


def work(options: dict[str, Any]) -> None:
    """What each worker does; again from the start, with the last checkpoint, if one was lost."""
    adapter = Path(tempfile.mkdtemp()) / "adapter"
    run = adapter.with_name("adapter.run")
    last = ray.train.get_checkpoint()
    if last is not None:
        last.to_directory(str(run))
    torch.manual_seed(0)  # a new prompt and head are drawn
    model = PTuningModel.from_backbone(options["backbone"], DeepPrompt(num_virtual_tokens=8), num_labels=2)
    result = fit(
        model,
        options["rows"],
        FitConfig(**options["fit"]),
        output=adapter,
        resume=last is not None,
        callbacks=[ReportToRay(run), *options["callbacks"]],
    )
    report(dict(result.metrics["validation"]), adapter)


def train(options: dict[str, Any], *, folder: str, workers: int = 2, gpu: bool = False) -> Path:
    """Train on a cluster, and return the folder of the adapter.

    Args:
        options: ``rows``, ``backbone``, options of ``FitConfig`` as ``fit``, and further ``callbacks``.
        folder: Where Ray Train writes: a folder that all nodes share.
    """
    trainer = TorchTrainer(
        work,
        train_loop_config=options,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=3)),
    )
    checkpoint = trainer.fit().checkpoint
    assert checkpoint is not None  # the last report of the first worker has one: the adapter
    return Path(checkpoint.path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train an adapter with Ray Train.")
    parser.add_argument("rows", help="labelled rows")
    parser.add_argument("folder", help="of the runs")
    parser.add_argument("--backbone", default="demo")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    given = parser.parse_args()
    options = {"rows": given.rows, "backbone": given.backbone, "fit": {"batch_size": 32}, "callbacks": []}
    print(train(options, folder=given.folder, workers=given.workers, gpu=given.gpu))
