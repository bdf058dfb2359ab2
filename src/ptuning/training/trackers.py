"""The experiment trackers: how each is started, which run it continues, and how it takes texts and a page.

The trackers themselves are Accelerate's (``accelerate.tracking``). What differs between them and is not in
Accelerate's interface is here: folders, projects, groups, resuming, the report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar, Literal

import yaml
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from accelerate.utils import (
    is_mlflow_available,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

PROJECT = "ptuning"
"""The project if neither an option nor the tool's environment variable names one."""
Value = str | int | float | bool
Ending = Literal["finished", "failed", "killed"]


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a tracker is started with.

    Attributes:
        name: The name of the run.
        group: The name that several runs have in common; ``None`` for a single run.
        project: The project that the user named, if any.
        folder: The folder that the user named, if any.
        default_folder: The folder otherwise.
        continued: The :attr:`Tracker.identity` of the run that is continued.
        step: The optimizer step at which a continued run goes on.
        named: Whether the user chose the name.
    """

    name: str
    group: str | None
    project: str | None
    folder: Path | None
    default_folder: Path
    continued: str | None = None
    step: int = 0
    named: bool = False

    def called(self, variable: str) -> str:
        """The run's name: a variable would name several runs the same."""
        chosen = self.named or self.group is not None
        return self.name if chosen else os.environ.get(variable) or self.name

    def in_group(self, variable: str) -> str | None:
        return (self.group if self.named else None) or os.environ.get(variable) or self.group

    def in_project(self, variable: str) -> str:
        return self.project or os.environ.get(variable) or PROJECT

    def in_folder(self, variable: str) -> Path:
        given = os.environ.get(variable)
        return self.folder or (Path(given) if given else self.default_folder)


class Tracker:
    """One run in a tracker: what every ``GeneralTracker`` of Accelerate can do.

    Args:
        inner: Accelerate's tracker, or the user's own.
    """

    def __init__(self, inner: GeneralTracker) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return str(self.inner.name)

    @property
    def identity(self) -> str | None:
        """What a resumed run has to be started with to be the same run; ``None`` if it cannot be."""
        return None

    def start(self, config: Mapping[str, Value]) -> None:
        self.inner.start()
        self.inner.store_init_configuration(dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.inner.log(dict(values), step=step)

    def final(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the final metrics."""
        self.log(metrics, step)

    def facts(self, facts: Mapping[str, str]) -> None:
        """Log texts about the finished run."""
        self.inner.log(dict(facts))

    def report(self, file: Path) -> None:
        """Log the HTML page of the finished run."""
        self.inner.log({"report": str(file)})

    def finish(self, ending: Ending) -> None:
        """Close the tracker."""
        self.inner.finish()


class BuiltIn(Tracker):
    """A tracker that is started by its name.

    Attributes:
        package: What to install.
    """

    package: ClassVar[str]

    @staticmethod
    def available() -> bool:
        """Whether the package is installed."""
        raise NotImplementedError

    @classmethod
    def begin(cls, run: Beginning) -> BuiltIn:
        """The tracker of a run, not started."""
        raise NotImplementedError


class TensorBoard(BuiltIn):
    """Event files, one folder per run."""

    package = "tensorboard"

    @staticmethod
    def available() -> bool:
        return bool(is_tensorboard_available())

    @classmethod
    def begin(cls, run: Beginning) -> TensorBoard:
        folder = run.in_folder("TENSORBOARD_LOGGING_DIR").absolute()
        if run.continued is not None and (folder / run.continued).is_dir():
            # Hides what the interrupted run logged after the checkpoint; it is logged again.
            return cls(TensorBoardTracker(run.continued, folder, purge_step=run.step + 1))
        name, number = run.name, 1
        while (folder / name).exists():
            number += 1
            name = f"{run.name}-{number}"
        return cls(TensorBoardTracker(name, folder))

    @property
    def identity(self) -> str | None:
        return str(self.inner.run_name)

    def start(self, config: Mapping[str, Value]) -> None:
        # Accelerate's store_init_configuration would create two more folders, which are shown as runs.
        self.config = dict(config)
        self.inner.start()
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        self.inner.log({"configuration": indent(text, "    ")})  # Markdown: a block of code

    def final(self, metrics: Mapping[str, float], step: int) -> None:
        from torch.utils.tensorboard.summary import hparams

        # The tab HPARAMS compares runs by these. add_hparams would write them to a second file; TensorBoard
        # may read that one first, and then a resumed run's purge_step hides the final metrics.
        writer = self.inner.writer
        for summary in hparams(self.config, dict(metrics)):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)


def _put_back(uri: str | None) -> None:
    """Set MLflow's tracking URI as it was.

    MLflow keeps a URI that is set in a variable of its own, and in the environment for child processes. The
    one in the environment alone gives the same, and lets later changes of the environment count.
    """
    import mlflow

    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri


class MLflow(BuiltIn):
    """A run of MLflow, in a database in the folder unless the user has a tracking server."""

    package = "mlflow"

    def __init__(self, inner: GeneralTracker, restore: Callable[[], None]) -> None:
        super().__init__(inner)
        self.restore = restore

    @staticmethod
    def available() -> bool:
        return bool(is_mlflow_available())

    @classmethod
    def begin(cls, run: Beginning) -> MLflow:
        import mlflow

        parent = mlflow.active_run()  # the user's own
        artifacts, restore = None, lambda: None
        if run.folder is not None or not (parent or mlflow.is_tracking_uri_set()):
            before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
            restore = partial(_put_back, before)
            folder = (run.folder or run.default_folder).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            artifacts = (folder / "mlartifacts").as_uri()
        inner = MLflowTracker(
            run.in_project("MLFLOW_EXPERIMENT_NAME"),
            logging_dir=artifacts,
            run_id=run.continued,
            run_name=run.name,
            nested_run=parent is not None,
            tags=None if run.group is None else {"group": run.group},
        )
        if run.project is not None:  # Accelerate prefers the environment variable to what is passed
            inner.experiment_name = run.project
        return cls(inner, restore)

    @property
    def identity(self) -> str | None:
        return str(self.inner.active_run.info.run_id)

    def facts(self, facts: Mapping[str, str]) -> None:
        import mlflow

        mlflow.set_tags(dict(facts))

    def report(self, file: Path) -> None:
        self.inner.log_artifact(str(file))

    def finish(self, ending: Ending) -> None:
        import mlflow

        ours, current = getattr(self.inner, "active_run", None), mlflow.active_run()
        try:
            if ours is not None and current is not None and ours.info.run_id == current.info.run_id:
                mlflow.end_run(ending.upper())  # else the user's own run would end
        finally:
            self.restore()


class WandB(BuiltIn):
    """A run of Weights & Biases."""

    package = "wandb"

    def __init__(self, inner: GeneralTracker, *, is_ours: bool) -> None:
        super().__init__(inner)
        self.is_ours = is_ours

    @staticmethod
    def available() -> bool:
        return bool(is_wandb_available())

    @classmethod
    def begin(cls, run: Beginning) -> WandB:
        import wandb

        folder = run.in_folder("WANDB_DIR")
        folder.mkdir(parents=True, exist_ok=True)
        same: dict[str, Any] = {} if run.continued is None else {"id": run.continued, "resume": "allow"}
        inner = WandBTracker(
            run.in_project("WANDB_PROJECT"),
            name=run.called("WANDB_NAME"),
            group=run.in_group("WANDB_RUN_GROUP"),
            dir=str(folder),
            **same,
        )
        return cls(inner, is_ours=wandb.run is None)  # else wandb.init returns the run that the user began

    @property
    def identity(self) -> str | None:
        return str(self.inner.run.id)

    def facts(self, facts: Mapping[str, str]) -> None:
        self.inner.run.summary.update(dict(facts))

    def report(self, file: Path) -> None:
        import wandb

        page = file.read_text(encoding="utf-8")
        self.inner.run.log({"report": wandb.Html(page, inject=False)})

    def finish(self, ending: Ending) -> None:
        if self.is_ours:
            self.inner.run.finish(exit_code=0 if ending == "finished" else 1)


class Trackio(BuiltIn):
    """A run of trackio, which keeps its runs in a folder of its own (``TRACKIO_DIR``)."""

    package = "trackio"

    @staticmethod
    def available() -> bool:
        return bool(is_trackio_available())

    @classmethod
    def begin(cls, run: Beginning) -> Trackio:
        inner = TrackioTracker(
            run.in_project("TRACKIO_PROJECT"),
            name=run.continued or run.name,
            group=run.group,
            resume="never" if run.continued is None else "allow",
            embed=False,  # in a notebook, no dashboard that nobody asked for
        )
        return cls(inner)

    @property
    def identity(self) -> str | None:
        return str(self.inner.run.name)

    def report(self, file: Path) -> None:
        import trackio

        self.inner.run.log({"report": trackio.Markdown(f"The report of this run is {file}")})


BUILT_IN: Mapping[str, type[BuiltIn]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""By their names in Accelerate."""
