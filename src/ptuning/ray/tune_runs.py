"""A run that a worker trains: its files are written here, as :func:`ptuning.train` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from accelerate import Accelerator

from ptuning.adapters import atomic
from ptuning.errors import TrainingDiverged, UserError
from ptuning.ray.tune_worker import Files, Report, Task
from ptuning.training import run_files
from ptuning.training.config import TrainConfig
from ptuning.training.records import TrainResult
from ptuning.training.resumption import recording_divergence
from ptuning.training.run import start_files
from ptuning.training.run_files import CHECKPOINT, REPORT, RESULT
from ptuning.training.trials import Values


class RunHere:
    """The files and the result of a run that is trained elsewhere.

    Args:
        number: Of its task.
        resume: Whether it continues from the checkpoint that is here.
        values: What a search chose.
        say: Takes its messages.
        on_start: Called before its first step.
    """

    def __init__(
        self,
        *,
        number: int,
        config: TrainConfig,
        resume: bool,
        values: Values | None,
        say: Callable[[str], None],
        accelerator: Accelerator,
        on_start: Callable[[], None],
    ) -> None:
        self.number, self.config, self.resume, self.values = number, config, resume, values
        self.say, self.accelerator, self.on_start = say, accelerator, on_start
        self.folder = config.run_folder
        self.result: TrainResult | None = None
        self.diverged: TrainingDiverged | None = None

    def task(self) -> Task:
        """The task of a worker."""
        checkpoint = Files.of(self.folder / CHECKPOINT) if self.resume else None
        return Task(number=self.number, config=self.config, values=self.values, checkpoint=checkpoint)

    def take(self, task: Task, report: Report) -> Task | None:
        """Do what a report says; returns the task as it would have to be tried again, if it is not over.

        Raises:
            Exception: what ended the run, unless it diverged.
            OutputError: a file could not be written.
        """
        for message in report.messages:
            self.say(message)
        if report.started:
            self.on_start()
            start_files(self.config, self.accelerator, resume=self.resume, search=self.values is None)
        if report.checkpoint is not None:
            atomic.replace_folder(self.folder / CHECKPOINT, report.checkpoint.write)
            self.resume = True
            return replace(task, checkpoint=report.checkpoint)
        if not report.ended:
            return task
        if isinstance(report.error, TrainingDiverged):
            self._diverge(report.error)
        else:
            raise_reported(report)
            self._finish(report)
        return None

    def _diverge(self, error: TrainingDiverged) -> None:
        try:
            with recording_divergence(self.folder, self.accelerator):
                raise error
        except TrainingDiverged:
            self.diverged = error

    def _finish(self, report: Report) -> None:
        """Write the adapter, then the result, which marks the run as finished, then the page."""
        assert report.adapter is not None
        assert report.result is not None
        output = run_files.prepared(self.config.output)
        atomic.replace_folder(output, report.adapter.write)
        self.result = replace(report.result, adapter=output)
        content = json.dumps(self.result.to_dict(), indent=1) + "\n"
        run_files.write(self.folder / RESULT, content, self.accelerator)
        if report.page is not None:
            run_files.write(self.folder / REPORT, report.page, self.accelerator)


def raise_reported(report: Report) -> None:
    """Raise the error of a task, and say on which node if the user can correct it there.

    Raises:
        Exception: the one that the worker reported.
    """
    error = report.error
    if isinstance(error, UserError) and report.node not in error.problem:
        raise type(error)(
            f"on the node {report.node}: {error.problem}",
            got=error.got,
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    if error is not None:
        raise error
