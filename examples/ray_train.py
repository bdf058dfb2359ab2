"""Train an adapter with Ray Train: several workers, and a run that goes on after the loss of one.

On the cluster that the environment variable RAY_ADDRESS names, or on this machine::

    python examples/ray_train.py /shared/reviews.csv /shared/runs --workers 2

Every node has to be able to read the rows and the folder of the runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ptuning import Callback, DeepPrompt, FitConfig, PTuningModel, RunState, adapters, fit


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
    last = ray.train.get_checkpoint()
    with TemporaryDirectory() as folder:
        adapter, run = Path(folder, "adapter"), Path(folder, "adapter.run")
        if last is not None:
            last.to_directory(str(run))
            if adapters.is_adapter(run):
                return  # a worker was lost after the last report, and there is nothing left to do
        torch.manual_seed(0)  # a new prompt and head are drawn
        prompt = DeepPrompt(num_virtual_tokens=8)
        model = PTuningModel.from_backbone(options["backbone"], prompt, num_labels=options["num_labels"])
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
        options: ``rows``, ``num_labels``, ``backbone``, options of ``FitConfig`` as ``fit``, and further
            ``callbacks``.
        folder: Where Ray Train writes: a folder that all nodes share.
    """
    trainer = TorchTrainer(
        work,
        train_loop_config=options,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            storage_path=folder,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    checkpoint = trainer.fit().checkpoint
    assert checkpoint is not None  # the last report of the first worker has one: the adapter
    return Path(checkpoint.path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train an adapter with Ray Train.")
    parser.add_argument("rows", help="labelled rows")
    parser.add_argument("folder", help="of the runs")
    parser.add_argument("--num_labels", type=int, default=2, help="how many labels the rows have")
    parser.add_argument("--backbone", default="demo")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    given = parser.parse_args()
    options = {
        **{name: getattr(given, name) for name in ("rows", "num_labels", "backbone")},
        "fit": {"batch_size": 32},
        "callbacks": [],
    }
    print(train(options, folder=given.folder, workers=given.workers, gpu=given.gpu))
