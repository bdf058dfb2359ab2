"""Experiment trackers as a callback: a run's configuration, curves, final metrics and report are logged.

A tracker must not cost a training: one that fails is reported once and left out from then on.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptuning.adapters import RECORD, atomic
from ptuning.adapters.seal import SELF
from ptuning.errors import ConfigError
from ptuning.model.config import prompt_to_dict
from ptuning.training.callbacks import Callback, CallbackList, RunState
from ptuning.training.config import tracker_names
from ptuning.training.run_files import REPORT
from ptuning.training.trackers import BUILT_IN, PROJECT, Beginning, Ending, Tracker, Value

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    from ptuning.training.config import TrainConfig
    from ptuning.training.extensions import Extensions
    from ptuning.training.records import Evaluation, TrainResult
    from ptuning.training.trials import Trial

_LOG = logging.getLogger(__name__)
FOLDER = "tracking"
"""In the run's folder: what trackers write there."""
IDENTITIES = "tracking.json"
"""In the run's folder: the trackers' names of the run, to continue it."""
POINTS = 500
"""About how many points of the training loss are logged per run."""
LONGEST = 250
"""Characters of a logged option; older MLflow servers take no more."""
_STRANGE = re.compile(r"[^\w./ :-]")
"""What MLflow does not allow in a metric's name."""


class TrackerCallback(Callback):
    """Logs runs to experiment trackers, through Accelerate.

    Logged are: the configuration, the mean training loss since the last point and the learning rates (about
    :data:`POINTS` points), each evaluation's metrics, the final metrics by split with the baseline's, the
    adapter's folder and digest, and the run's ``report.html``, if there is one. In
    :func:`ptuning.train_several` and :func:`ptuning.train_search` every run, or trial, is a run of its own in
    one group. A resumed run is continued, where the tracker can do that. Only the main process logs.

    If a tracker fails during a run, this is reported once (logger ``ptuning.training.tracking``), and the
    training goes on without it.

    Args:
        trackers: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``, or instances of Accelerate's
            ``GeneralTracker``, one or several.
        project: The project (MLflow's experiment). If it is left out, the tool's environment variable counts
            (``WANDB_PROJECT``, ``MLFLOW_EXPERIMENT_NAME``, ``TRACKIO_PROJECT``), and else it is ``ptuning``.
        folder: Where TensorBoard, MLflow and wandb write. If it is left out, the tool's environment variable
            counts (``TENSORBOARD_LOGGING_DIR``, ``MLFLOW_TRACKING_URI``, ``WANDB_DIR``), and else it is
            ``tracking`` in the run's folder, or in the working directory if the run writes nothing.
        name: The name of the run, to which the time is added; by default that of the adapter's folder.
        config: More options to log, nested or not.

    Raises:
        ConfigError: an unknown tracker, or one whose package is not installed.
    """

    def __init__(
        self,
        trackers: str | GeneralTracker | Iterable[str | GeneralTracker],
        *,
        project: str | None = None,
        folder: str | Path | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        given = [trackers] if isinstance(trackers, str) or hasattr(trackers, "log") else list(trackers)
        self.trackers = [checked_tracker(each) for each in given]
        self.project, self.name, self.config = project, name, config or {}
        self.folder = None if folder is None else Path(folder)
        self._open: list[Tracker] = []
        self._failed: set[str] = set()
        self._started = False
        self._default_run: Path | None = None
        self._grouped = False
        self._part: str | None = None  # which of several runs, or which trial
        self._losses: list[float] = []
        self._logged = 0  # evaluations of a trial

    # ---------------------------------------------------------------------------------- one run

    def on_train_begin(self, state: RunState) -> None:
        if state.is_main_process:
            self._begin(state)

    def on_step_end(self, state: RunState) -> None:
        if not self._open:
            return
        self._losses.append(state.loss or 0.0)
        every = math.ceil(state.total_steps / POINTS)
        if state.step % every == 0 or state.step == state.total_steps:
            rates = {f"learning_rate/{name}": rate for name, rate in state.learning_rates.items()}
            mean = sum(self._losses) / len(self._losses)
            self._losses = []
            self._log({"train/loss": mean, "train/epoch": state.epoch, **rates}, state.step)

    def on_evaluate(self, state: RunState) -> None:
        self._log(_named("validation", state.metrics), state.step)

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        self._log(values, state.step)

    def on_train_end(self, state: RunState) -> None:
        self._grouped = False  # until several runs, or a search, say otherwise
        if not self._open or state.result is None:
            return
        self._final(_final(state.result), state.step)
        facts = _facts(state.result)
        self._each("log the adapter", lambda tracker: tracker.facts(facts))
        report = None if state.folder is None else state.folder / REPORT
        if report is not None and report.is_file():
            self._each("log the report", lambda tracker: tracker.report(report))
        self._end("finished")

    def on_exception(self, state: RunState, error: BaseException) -> None:
        self._grouped = False
        self._end("killed" if isinstance(error, KeyboardInterrupt) else "failed")

    # --------------------------------------------------------------------- several runs, a search

    def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
        self._part, self._grouped = name, True

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        self._part, self._grouped, self._logged = f"trial-{number}", True, 0

    def on_trial_step(self, state: RunState) -> None:
        if state.is_main_process and not self._open and state.step == 1:
            self._begin(state)
        self._log_history(state.history)
        self.on_step_end(state)

    def on_trial_end(self, trial: Trial | None, count: int, metric: str) -> None:
        if trial is not None:
            self._log_history(trial.history)
            if (value := trial.value(metric)) is not None:
                self._final({f"final/validation/{metric}": value}, trial.history[-1].step)
            self._each("log the trial's state", lambda tracker: tracker.facts({"state": trial.state}))
        ending: Ending = "killed" if trial is None else "failed" if trial.state == "diverged" else "finished"
        self._end(ending)
        self._part, self._grouped = None, trial is not None  # the winner's run is in the group, too

    def _log_history(self, history: Sequence[Evaluation]) -> None:
        """Log the evaluations of a trial that are not logged yet."""
        for each in history[self._logged :]:
            self._log(_named("validation", each.metrics), each.step)
        self._logged = len(history)

    # ----------------------------------------------------------------------------------- trackers

    def _begin(self, state: RunState) -> None:
        self._losses = []
        file = None if state.folder is None else state.folder / IDENTITIES
        resumed = bool(state.step or state.history) and file is not None
        known = _read(file) if resumed and file is not None else {}
        config = _flat({**self.config, **_decided(state)})
        begin = self._beginning(state)
        for wanted in self.trackers:
            name = wanted if isinstance(wanted, str) else wanted.name
            if name not in self._failed:
                opened = self._start(wanted, replace(begin, continued=known.get(name)), config)
                self._open += [] if opened is None else [opened]
        self._started = True
        identities = {each.name: each.identity for each in self._open if each.identity is not None}
        if file is not None and identities:
            self._guarded(None, "write the names of the run", lambda: _write(file, {**known, **identities}))

    def _beginning(self, state: RunState) -> Beginning:
        above = state.folder
        if above is not None and self._part is not None:  # not a trial: those write nothing
            several = above.name == f"{self._part}.run"
            self._part, above = (self._part, above.parent) if several else (None, above)
            self._grouped = several
        above = self._default_run or above
        base = self.name or (PROJECT if above is None else above.name.removesuffix(".run"))
        part = "" if self._part is None else f"-{self._part}"
        return Beginning(
            name=f"{base}{part}-{datetime.now():%Y%m%d-%H%M%S}",
            group=base if self._grouped else None,
            project=self.project,
            folder=self.folder,
            default_folder=Path(FOLDER) if above is None else above / FOLDER,
            step=state.step,
            named=self.name is not None,
        )

    def _start(
        self, wanted: str | GeneralTracker, begin: Beginning, config: Mapping[str, Value]
    ) -> Tracker | None:
        """A started tracker; ``None`` if it cannot be started, though it could before the first run."""
        try:
            with redirect_stdout(sys.stderr):  # the commands' own output is there
                tracker = BUILT_IN[wanted].begin(begin) if isinstance(wanted, str) else Tracker(wanted)
                try:
                    tracker.start(config)
                except BaseException:  # Ctrl-C too: nobody else knows this tracker yet
                    _abandon(tracker)
                    raise
        except Exception as error:
            name = wanted if isinstance(wanted, str) else wanted.name
            if begin.continued is not None:  # the run may have been deleted
                _LOG.warning("%s could not continue the run, and starts a new one: %s", name, _line(error))
                return self._start(wanted, replace(begin, continued=None), config)
            if self._started:
                self._failed.add(name)
                _LOG.warning("%s could not be started; training goes on without it: %s", name, _line(error))
                return None
            raise ConfigError(
                f"{name} could not be started: {_line(error)}",
                remedy="correct that, or leave the tracker out",
            ) from error
        return tracker

    def _log(self, values: Mapping[str, float], step: int) -> None:
        plain = _plain(values)
        self._each("log", lambda tracker: tracker.log(plain, step))

    def _final(self, values: Mapping[str, float], step: int) -> None:
        plain = _plain(values)
        self._each("log the final metrics", lambda tracker: tracker.final(plain, step))

    def _end(self, ending: Ending) -> None:
        with redirect_stdout(sys.stderr):
            self._each("finish", lambda tracker: tracker.finish(ending))
        self._open = []

    def _each(self, what: str, act: Callable[[Tracker], None]) -> None:
        for tracker in self._open[:]:
            self._guarded(tracker, what, lambda tracker=tracker: act(tracker))  # type: ignore[misc]

    def _guarded(self, tracker: Tracker | None, what: str, act: Callable[[], None]) -> None:
        """Call ``act``; if it fails, report it, and use the tracker no more."""
        try:
            act()
        except Exception as error:
            name = "tracking" if tracker is None else tracker.name
            _LOG.warning("%s could not %s; training goes on without it: %s", name, what, _line(error))
            if tracker is not None:
                self._open.remove(tracker)
                self._failed.add(tracker.name)
                _abandon(tracker)


def _abandon(tracker: Tracker) -> None:
    """Finish a tracker that failed, as far as it can be: what it changed in the process ends with it."""
    with suppress(Exception), redirect_stdout(sys.stderr):
        tracker.finish("failed")


class _OfAccelerator(TrackerCallback):
    """Logs to the trackers of the user's own ``Accelerator``, whose ``end_training`` is the user's call."""

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(())
        self._accelerator = accelerator

    def _begin(self, state: RunState) -> None:
        config = _flat(_decided(state))
        if self._accelerator.trackers:
            self._open = [_Borrowed(each) for each in self._accelerator.trackers]
            self._each("store the configuration", lambda tracker: tracker.start(config))
        else:
            self._accelerator.init_trackers(PROJECT, config=config)
            self._open = [_Borrowed(each) for each in self._accelerator.trackers]


class _Borrowed(Tracker):
    """A tracker that is started and finished elsewhere."""

    def start(self, config: Mapping[str, Value]) -> None:
        self.inner.store_init_configuration(dict(config))

    def finish(self, ending: Ending) -> None:
        pass


def tracked(extensions: Extensions, config: TrainConfig) -> Extensions:
    """``extensions`` with the trackers of ``config.track``."""
    if not config.track:
        return extensions
    options = config.model_dump(mode="json", exclude={"fit", "prompt", "track"}, exclude_none=True)
    callback = TrackerCallback(
        config.track,
        project=config.track_project,
        folder=config.track_folder,
        config=options,
    )
    callback._default_run = config.run_folder  # a trial has no folder
    return _with(extensions, callback)


def tracked_by(extensions: Extensions, accelerator: Accelerator | None) -> Extensions:
    """``extensions`` with the trackers of a user's ``Accelerator(log_with=…)``, if it has any."""
    if accelerator is None or not (accelerator.log_with or accelerator.trackers):
        return extensions
    return _with(extensions, _OfAccelerator(accelerator))


def _with(extensions: Extensions, callback: Callback) -> Extensions:
    """``extensions`` with one more callback, which is called first.

    The user's own may raise an exception, or log values.
    """
    return replace(extensions, callbacks=CallbackList((callback, *extensions.callbacks.callbacks)))


def checked_tracker(wanted: Any) -> str | GeneralTracker:
    """A tracker's name, or the user's own tracker.

    Raises:
        ConfigError: an unknown tracker, or one whose package is not installed.
    """
    from accelerate.tracking import GeneralTracker

    if isinstance(wanted, GeneralTracker):
        return wanted
    (name,) = tracker_names(wanted) or ("",)
    if not BUILT_IN[name].available():
        raise ConfigError(f"track: {name} is not installed", remedy=f"pip install {BUILT_IN[name].package}")
    return name


# ----------------------------------------------------------------------------------- what is logged


def _decided(state: RunState) -> dict[str, Any]:
    """The options of the run as they were decided, and what it trains."""
    model = state.model
    return {
        "backbone": model.backbone.name,
        "task": {"problem_type": model.task.problem_type, "labels": model.task.num_labels},
        "prompt": prompt_to_dict(model.prompt_config),
        "fit": state.plan.fit.model_dump(mode="json"),
        "steps": state.total_steps,
        "trained_parameters": model.num_parameters(only_trainable=True),
    }


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Value]:
    """Nested options by dotted names: numbers, booleans, bounded texts. ``None`` is left out."""
    found: dict[str, Value] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        elif isinstance(value, bool | int | float):
            found[above + name] = value
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found[above + name] = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return found


def _named(part: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{part}/{name}": value for name, value in metrics.items()}


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as plain numbers, with names that every tracker takes."""
    return {_STRANGE.sub("_", name): float(value) for name, value in metrics.items()}


def _final(result: TrainResult) -> dict[str, float]:
    """The adapter's metrics by split, and the baseline's."""
    found: dict[str, float] = {
        "final/seconds": result.seconds,
        "final/examples_per_second": result.examples_per_second,
    }
    for split, metrics in result.metrics.items():
        found |= _named(f"final/{split}", metrics)
        found |= _named(f"baseline/{split}", result.baseline.get(split, {}))
    for name, value in _flat(result.calibration or {}).items():  # before and after
        if not isinstance(value, str):
            found[f"calibration/{name.replace('.', '/')}"] = value
    return found


def _facts(result: TrainResult) -> dict[str, str]:
    """The adapter's folder and digest, and the diagnosis, if there is one."""
    facts = {} if result.advice is None else {"diagnosis": result.advice}
    if result.adapter is None:
        return facts
    record = json.loads((result.adapter / RECORD).read_text(encoding="utf-8"))
    return {"adapter": str(result.adapter), "adapter_digest": str(record[SELF]), **facts}


def _read(file: Path) -> dict[str, str]:
    """The names of a run by tracker; empty if they cannot be read."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in values.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _write(file: Path, names: Mapping[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic.atomic_file(file) as new:
        atomic.write_bytes(new, (json.dumps(names, indent=1) + "\n").encode())


def _line(error: Exception) -> str:
    """An exception as one line."""
    return " ".join(str(error).split())[:500] or type(error).__name__
