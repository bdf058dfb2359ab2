"""Experiment trackers: what they are given, read back from their own files; runs that go on without them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import ptuning
from ptuning import (
    Callback,
    DeepPrompt,
    FitConfig,
    PTuningModel,
    RunState,
    Task,
    TrackerCallback,
    TrainConfig,
    TrainResult,
)
from ptuning.cli import main
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.training import trackers, tracking
from ptuning.training.interrupt import Interrupted

Rows = Callable[..., list[dict[str, Any]]]
Run = Callable[..., tuple[TrainResult, PTuningModel]]
TASK = Task(problem_type="single_label_classification", labels=("negative", "positive"))
CONFIG = FitConfig(num_train_epochs=3, batch_size=8, learning_rate=3e-2, head_learning_rate=3e-2)
VARIABLES = [
    *("TENSORBOARD_LOGGING_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"),
    *("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "TRACKIO_PROJECT"),
]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tiny_folder: Path, rows: Rows) -> Run:
    """``fit`` of a new model on 48 rows, 6 steps per epoch."""

    def make(config: FitConfig = CONFIG, **options: Any) -> tuple[TrainResult, PTuningModel]:
        torch.manual_seed(0)
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=TASK)
        data = {"train": rows(48), "validation": rows(24, seed=1)}
        return ptuning.fit(model, data, config, **{"report": False, **options}), model

    return make


@pytest.fixture
def config(tiny_folder: Path, rows: Rows, jsonl: Callable[..., Path]) -> Callable[..., TrainConfig]:
    def make(**options: Any) -> TrainConfig:
        return TrainConfig.checked(
            {
                "data": {
                    "train": str(jsonl("train.jsonl", rows(48))),
                    "validation": str(jsonl("validation.jsonl", rows(24, seed=1))),
                    "test": str(jsonl("test.jsonl", rows(24, seed=2))),
                },
                "backbone": str(tiny_folder),
                "output": "out",
                "precision": "fp32",
                "device": "cpu",
                "prompt": {"num_virtual_tokens": 4},
                "fit": CONFIG.model_dump(exclude_none=True),
                **options,
            }
        )

    return make


class Heard(Callback):
    """Loss and learning rates of each step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[float, Mapping[str, float]]] = {}

    def on_step_end(self, state: RunState) -> None:
        assert state.loss is not None
        self.steps[state.step] = state.loss, dict(state.learning_rates)


class Stops(Callback):
    """Raises at a step, as Ctrl-C or an error would end the run."""

    def __init__(self, step: int, error: type[BaseException] = Interrupted, *, save: bool = False) -> None:
        self.at, self.error, self.save = step, error, save

    def on_step_end(self, state: RunState) -> None:
        state.should_save = self.save and state.step == self.at - 1
        if state.step == self.at:
            raise self.error("stopped")


class WritesReport(Callback):
    def on_evaluate(self, state: RunState) -> None:
        assert state.folder is not None
        state.folder.mkdir(exist_ok=True)
        (state.folder / "report.html").write_text("<p>Größe", encoding="utf-8")


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard reads from a run's folder."""
    return EventAccumulator(str(folder)).Reload()


def curve(found: EventAccumulator, tag: str) -> dict[int, float]:
    scalars = found.Scalars(tag)
    assert len({each.step for each in scalars}) == len(scalars)
    return {each.step: each.value for each in scalars}


def text(found: EventAccumulator, tag: str) -> str:
    (value,) = found.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val
    return str(value.decode())


# ----------------------------------------------------------------------------------- TensorBoard


@pytest.mark.slow
def test_tensorboard_reads_what_the_run_found(config: Callable[..., TrainConfig]) -> None:
    heard = Heard()
    result = ptuning.train(config(track="tensorboard"), callbacks=[heard, WritesReport()])
    (folder,) = Path("out.run/tracking").iterdir()
    assert folder.name.startswith("out-20")
    found = events(folder)
    losses = {step: loss for step, (loss, _) in heard.steps.items()}
    assert len(losses) == 18
    assert curve(found, "train/loss") == pytest.approx(losses, rel=1e-6)
    for name in ("prompt", "head"):
        rates = {step: rates[name] for step, (_, rates) in heard.steps.items()}
        assert curve(found, f"learning_rate/{name}") == pytest.approx(rates, rel=1e-6)
    for name in result.best.metrics:
        values = {each.step: each.metrics[name] for each in result.history}
        assert curve(found, f"validation/{name}") == pytest.approx(values, rel=1e-6)
    for split, metrics in result.metrics.items():
        for name, value in metrics.items():
            assert curve(found, f"final/{split}/{name}") == pytest.approx({18: value}, rel=1e-6)
        assert curve(found, f"baseline/{split}/loss") == pytest.approx(
            {18: result.baseline[split]["loss"]}, rel=1e-6
        )
    assert result.calibration is not None
    for when, measured in result.calibration["validation"].items():
        assert curve(found, f"calibration/validation/{when}/ece") == pytest.approx(
            {18: measured["ece"]}, rel=1e-6
        )
    assert "validation" in result.metrics
    assert "test" in result.metrics
    described = text(found, "configuration")
    assert "    fit.learning_rate: 0.03\n" in described
    assert "    fit.warmup_ratio: 0.06\n" in described
    assert "    data.train: " in described
    assert "    prompt.num_virtual_tokens: 4\n" in described
    record = json.loads(Path("out/ptuning.json").read_text())
    assert text(found, "adapter") == str(Path("out").resolve())
    assert text(found, "adapter_digest") == record["sha256_self"]
    assert text(found, "report") == str(Path("out.run/report.html").resolve())
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    parameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert parameters["fit.learning_rate"].number_value == 0.03
    assert parameters["task.problem_type"].string_value == "single_label_classification"


@pytest.mark.parametrize(("error", "save", "kept"), [(Interrupted, True, 8), (ZeroDivisionError, False, 6)])
def test_a_resumed_run_continues_its_curves(
    run: Run, error: type[BaseException], save: bool, kept: int
) -> None:
    """Also after a crash, with steps that were logged after the checkpoint and are done again."""
    straight, _ = run(output="straight", callbacks=[TrackerCallback("tensorboard")])
    with pytest.raises(error):
        run(output="broken", callbacks=[TrackerCallback("tensorboard"), Stops(9, error, save=save)])
    (before,) = Path("broken.run/tracking").iterdir()
    (file,) = before.iterdir()
    file.rename(file.with_name(file.name.replace("tfevents.", "tfevents.0")))  # TensorBoard sorts by seconds
    heard = Heard()
    resumed, _ = run(output="broken", callbacks=[TrackerCallback("tensorboard"), heard], resume=True)
    assert min(heard.steps) == kept + 1
    assert resumed.history == straight.history
    (one,), (other,) = Path("straight.run/tracking").iterdir(), Path("broken.run/tracking").iterdir()
    assert other == before
    assert [len(list(each.iterdir())) for each in (one, other)] == [1, 2], "one file each time it is begun"
    ours, theirs = events(one), events(other)
    for tag in ("train/loss", "learning_rate/prompt", "validation/loss", "final/validation/loss"):
        assert curve(ours, tag) == curve(theirs, tag), tag


def test_a_new_run_does_not_continue_the_one_before(run: Run) -> None:
    for _ in range(2):
        run(output="out", callbacks=[TrackerCallback("tensorboard")])
    one, other = Path("out.run/tracking").iterdir()
    assert curve(events(one), "train/loss") == curve(events(other), "train/loss")


def test_long_runs_have_points_with_the_mean_loss(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "POINTS", 4)
    heard = Heard()
    run(callbacks=[TrackerCallback("tensorboard", folder="logs", name="mine"), heard])
    (folder,) = Path("logs").iterdir()
    assert folder.name.startswith("mine-20")
    loss = {step: value for step, (value, _) in heard.steps.items()}
    every = {5: range(1, 6), 10: range(6, 11), 15: range(11, 16), 18: range(16, 19)}
    means = {step: sum(loss[i] for i in steps) / len(steps) for step, steps in every.items()}
    assert curve(events(folder), "train/loss") == pytest.approx(means, rel=1e-6)


def test_what_a_callback_logs_is_tracked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Logs(Callback):
        def on_evaluate(self, state: RunState) -> None:
            state.log({"größe (%)": torch.tensor(2.0)})  # type: ignore[dict-item]

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    run(callbacks=[TrackerCallback("tensorboard"), Logs()])
    (folder,) = Path("elsewhere").iterdir()
    assert curve(events(folder), "größe ___") == {6: 2.0, 12: 2.0, 18: 2.0}


# ----------------------------------------------------------------------------------------- MLflow


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow with a store of files, which is made faster than a database."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return pytest.importorskip("mlflow")


def test_mlflow_has_the_run_and_goes_on_with_it(run: Run, mlflow: Any) -> None:
    straight, _ = run()
    with pytest.raises(Interrupted):
        run(output="out", callbacks=[TrackerCallback("mlflow"), Stops(9, save=True)])
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'ptuning'")
    (stopped,) = client.search_runs([experiment.experiment_id])
    assert stopped.info.status == "KILLED"
    result, _ = run(output="out", callbacks=[TrackerCallback("mlflow"), WritesReport()], resume=True)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == stopped.info.run_id
    assert found.info.run_name.startswith("out-20")
    assert found.info.status == "FINISHED"
    assert found.data.params["fit.learning_rate"] == "0.03"
    assert found.data.params["task.labels"] == "2"
    for name in ("loss", "accuracy"):
        history = client.get_metric_history(found.info.run_id, f"validation/{name}")
        assert {each.step: each.value for each in history} == {
            each.step: each.metrics[name] for each in straight.history
        }
        assert found.data.metrics[f"final/validation/{name}"] == result.metrics["validation"][name]
    assert {each.step for each in client.get_metric_history(found.info.run_id, "train/loss")} == {
        *range(1, 19)
    }
    assert found.data.tags["adapter"] == str(Path("out").resolve())
    assert (
        found.data.tags["adapter_digest"] == json.loads(Path("out/ptuning.json").read_text())["sha256_self"]
    )
    assert [each.path for each in client.list_artifacts(found.info.run_id)] == ["report.html"]
    logged = mlflow.artifacts.load_text(f"runs:/{found.info.run_id}/report.html")
    assert logged == Path("out.run/report.html").read_text(encoding="utf-8")
    assert mlflow.active_run() is None


def test_mlflow_nests_a_run_in_the_users_own(run: Run, mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mlflow.set_experiment("mine")
    with mlflow.start_run() as own:
        with pytest.raises(TrainingDiverged):
            run(callbacks=[TrackerCallback("mlflow"), Stops(2, TrainingDiverged)])
        assert mlflow.active_run().info.run_id == own.info.run_id
    runs = mlflow.MlflowClient().search_runs([own.info.experiment_id])
    (found,) = [each for each in runs if each.info.run_id != own.info.run_id]
    assert found.data.tags["mlflow.parentRunId"] == own.info.run_id
    assert found.info.status == "FAILED"


def test_mlflow_that_fails_leaves_nothing_open(
    run: Run, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its run nor its tracking URI; the user's own run goes on."""

    def fails(*given: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers.MLflowTracker, "log", fails)
    result, _ = run(callbacks=[TrackerCallback("mlflow")])
    assert result.history
    assert mlflow.active_run() is None
    (found,) = mlflow.search_runs(experiment_names=["ptuning"], output_format="list")
    assert found.info.status == "FAILED"
    before = mlflow.get_tracking_uri()
    mlflow.set_experiment("mine")
    with mlflow.start_run() as own:
        monkeypatch.setattr(trackers.MLflowTracker, "start", fails)
        with pytest.raises(ConfigError, match="mlflow could not be started"):
            run(callbacks=[TrackerCallback("mlflow", folder="logs")])
        assert mlflow.get_tracking_uri() == before
        assert mlflow.active_run().info.run_id == own.info.run_id


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_mlflow_has_a_database_of_its_own_by_default(run: Run) -> None:
    mlflow = pytest.importorskip("mlflow")
    before = mlflow.get_tracking_uri()
    run(output="out", callbacks=[TrackerCallback("mlflow", project="paraphrases")])
    assert not mlflow.is_tracking_uri_set()
    assert mlflow.get_tracking_uri() == before
    client = mlflow.MlflowClient(f"sqlite:///{Path('out.run/tracking/mlflow.db').resolve()}")
    (experiment,) = client.search_experiments(filter_string="name = 'paraphrases'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.artifact_uri.startswith(Path("out.run/tracking/mlartifacts").resolve().as_uri())


# ------------------------------------------------------- wandb and trackio, by what they are called with


class FakeRun:
    """A run of wandb or trackio: remembers what is logged."""

    def __init__(self, options: dict[str, Any], number: int) -> None:
        self.options, self.id = options, options.get("id", f"id-{number}")
        self.name = options["name"]
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.finished = False

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        assert not self.finished
        self.logged.append((values, step))

    def finish(self, exit_code: int | None = None) -> None:
        self.exit_code, self.finished = exit_code, True

    def of(self, name: str) -> dict[int | None, Any]:
        return {step: values[name] for values, step in self.logged if name in values}


class FakeTool:
    """The parts of wandb and trackio that are used."""

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []
        self.config = SimpleNamespace(
            update=lambda values, allow_val_change: self.runs[-1].config.update(values)
        )
        self.Html = lambda page, inject: ("html", page, inject)
        self.Markdown = lambda text: ("markdown", text)

    @property
    def run(self) -> FakeRun | None:
        return self.runs[-1] if self.runs and not self.runs[-1].finished else None

    def init(self, **options: Any) -> FakeRun:
        if self.run is None:
            print("hello from the tracker")
            self.runs.append(FakeRun(options, len(self.runs)))
        assert self.run is not None
        return self.run


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeTool]:
    found = {name: FakeTool() for name in ("wandb", "trackio")}
    for name, tool in found.items():
        monkeypatch.setitem(sys.modules, name, tool)  # type: ignore[arg-type]
        monkeypatch.setattr(trackers, f"is_{name}_available", lambda: True)
    return found


def test_wandb_and_trackio_are_given_a_run(
    config: Callable[..., TrainConfig], fakes: dict[str, FakeTool], capsys: pytest.CaptureFixture[str]
) -> None:
    result = ptuning.train(config(track=["wandb", "trackio"]), callbacks=[WritesReport()])
    (one,), (other,) = fakes["wandb"].runs, fakes["trackio"].runs
    assert one.options == {
        "project": "ptuning",
        "name": one.name,
        "group": None,
        "dir": str(Path("out.run/tracking").resolve()),
    }
    assert other.options == {
        "project": "ptuning",
        "name": other.name,
        "group": None,
        "resume": "never",
        "embed": False,
    }
    assert Path("out.run/tracking").is_dir()
    for each in (one, other):
        assert each.name.startswith("out-20")
        assert each.finished
        assert each.config["fit.learning_rate"] == 0.03
        assert each.config["precision"] == "fp32"
        steps = [step for _, step in each.logged if step is not None]
        assert steps == sorted(steps)  # wandb ignores what is logged for an earlier step
        assert each.of("validation/loss") == {each.step: each.metrics["loss"] for each in result.history}
        assert each.of("final/test/loss") == {18: result.metrics["test"]["loss"]}
    assert one.exit_code == 0
    assert one.summary["adapter"] == str(Path("out").resolve())
    page = Path("out.run/report.html").read_text(encoding="utf-8")
    assert one.logged[-1][0] == {"report": ("html", page, False)}
    assert other.logged[-2][0]["adapter"] == str(Path("out").resolve())
    assert str(Path("out.run/report.html").resolve()) in other.logged[-1][0]["report"][1]
    printed = capsys.readouterr()
    assert "hello" not in printed.out  # the command's own output is there
    assert "hello" in printed.err


def test_wandb_and_trackio_continue_a_run(run: Run, fakes: dict[str, FakeTool]) -> None:
    def callback() -> Callback:
        return TrackerCallback(["wandb", "trackio"], project="mine")

    with pytest.raises(Interrupted):
        run(output="out", callbacks=[callback(), Stops(9, save=True)])
    assert fakes["wandb"].runs[0].exit_code == 1
    run(output="out", callbacks=[callback()], resume=True)
    first, second = fakes["wandb"].runs
    assert (second.options["id"], second.options["resume"]) == (first.id, "allow")
    first, second = fakes["trackio"].runs
    assert (second.options["name"], second.options["resume"]) == (first.name, "allow")
    assert second.options["project"] == "mine"
    assert json.loads(Path("out.run/tracking.json").read_text()) == {"wandb": "id-0", "trackio": first.name}


def test_a_run_of_the_users_own_stays_open(
    run: Run, fakes: dict[str, FakeTool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    own = fakes["wandb"].init(name="own")
    run(callbacks=[TrackerCallback("wandb")])
    assert fakes["wandb"].runs == [own]
    assert own.logged
    assert not own.finished


def test_several_runs_are_runs_of_one_group(
    config: Callable[..., TrainConfig], fakes: dict[str, FakeTool]
) -> None:
    found = ptuning.train_several(config(track="wandb,tensorboard"), seeds=[3, 4])
    runs = fakes["wandb"].runs
    assert [each.options["group"] for each in runs] == ["out", "out"]
    assert [each.config["fit.seed"] for each in runs] == [3, 4]
    names = ["out-seed-3-20", "out-seed-4-20"]
    assert [each.name[: len(names[0])] for each in runs] == names
    assert sorted(each.name[: len(names[0])] for each in Path("out.run/tracking").iterdir() if "seed" in each.name) == names  # fmt: skip  # noqa: E501
    for ran, each in zip(found.runs, runs, strict=True):
        assert ran.result is not None
        assert each.of("final/test/loss") == {18: ran.result.metrics["test"]["loss"]}
        assert each.summary["adapter"].endswith(f"out.run/{ran.name}")
        assert each.finished


def test_an_option_wins_over_wandb_s_variables(
    config: Callable[..., TrainConfig], fakes: dict[str, FakeTool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_NAME", "theirs")
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
    callback, runs = TrackerCallback("wandb", name="mine"), fakes["wandb"].runs
    ptuning.train_several(config(report=False), seeds=[3, 4], callbacks=[callback])
    assert [each.name[:13] for each in runs] == ["mine-seed-3-2", "mine-seed-4-2"]
    assert [each.options["group"] for each in runs] == ["mine", "mine"]
    monkeypatch.delenv("WANDB_RUN_GROUP")
    ptuning.train(config(output="one", report=False), callbacks=[callback])  # a single run, no group
    assert runs[-1].name.startswith("mine-20")
    assert runs[-1].options["group"] is None
    ptuning.train(config(output="two", report=False, track="wandb"))
    assert runs[-1].name == "theirs"
    ptuning.train_several(config(output="more", report=False, track="wandb"), seeds=[3])
    assert runs[-1].name.startswith("more-seed-3-20")


@pytest.mark.slow
def test_each_trial_of_a_search_is_a_run_of_its_group(
    config: Callable[..., TrainConfig], fakes: dict[str, FakeTool]
) -> None:
    pytest.importorskip("optuna")
    options = {"num_train_epochs": 2, "batch_size": 8}
    searched = config(
        recipe="search", search={"trials": 2, "epochs": 1}, track=["wandb", "tensorboard"], fit=options
    )
    found = ptuning.train_search(searched)
    *trials, last = fakes["wandb"].runs
    assert len(trials) == 2
    assert [each.options["group"] for each in (*trials, last)] == ["out"] * 3
    for trial, each in zip(found.trials, trials, strict=True):
        assert each.name.startswith(f"out-trial-{trial.number}-20")
        assert each.config["fit.learning_rate"] == trial.values["learning_rate"]
        assert each.of("validation/loss") == {one.step: one.metrics["loss"] for one in trial.history}
        steps = [step for _, step in each.logged if step is not None]
        assert steps == sorted(steps)
        assert each.summary == {"state": trial.state}
        assert each.exit_code == (1 if trial.state == "diverged" else 0)
    assert last.name.startswith("out-20")
    assert [*last.of("final/test/loss").values()] == [found.result.metrics["test"]["loss"]]
    assert len([*Path("out.run/tracking").glob("out-*")]) == 3


# ------------------------------------------------------------------------- trackers of the user's own


class Mine(GeneralTracker):
    """Writes nothing, and fails when it is told to."""

    name = "mine"
    requires_logging_directory = False

    def __init__(self, fails: str = "", after: int = 0) -> None:
        super().__init__()
        self.fails, self.after = fails, after
        self.called: list[str] = []

    @property
    def tracker(self) -> None:
        return None

    def _call(self, name: str) -> None:
        self.called.append(name)
        if name == self.fails and self.called.count(name) > self.after:
            raise OSError(28, "No space left on device")

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("config")

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize(("fails", "after"), [("log", 5), ("finish", 0), ("log", 22)])
def test_a_tracker_that_fails_does_not_cost_the_training(
    run: Run, caplog: pytest.LogCaptureFixture, fails: str, after: int
) -> None:
    straight, _ = run()
    broken, other = Mine(fails, after), Mine()
    with caplog.at_level(logging.WARNING):
        result, _ = run(output="out", callbacks=[TrackerCallback([broken, other])])
    assert result.history == straight.history
    assert Path("out/ptuning.json").exists()
    (warning,) = [each for each in caplog.records if each.name == "ptuning.training.tracking"]
    assert "mine could not" in warning.getMessage()
    assert "No space left on device" in warning.getMessage()
    if fails == "log":
        assert broken.called[-1] == "finish"
        assert broken.called.count("log") == after + 1
    assert broken.called.count("finish") == (2 if fails == "finish" else 1)
    assert other.called.count("log") == 23
    assert other.called[-1] == "finish"


@pytest.mark.parametrize("fails", ["start", "config"])
def test_a_tracker_that_cannot_start_is_reported_before_the_first_step(run: Run, fails: str) -> None:
    heard = Heard()
    with pytest.raises(ConfigError, match=r"mine could not be started: .*No space left on device"):
        run(callbacks=[TrackerCallback(Mine(fails)), heard])
    assert heard.steps == {}


def test_a_run_that_was_deleted_is_not_continued(
    run: Run, fakes: dict[str, FakeTool], caplog: pytest.LogCaptureFixture
) -> None:
    class Forgot(FakeTool):
        def init(self, **options: Any) -> FakeRun:
            if "id" in options:
                raise ValueError("no such run")
            return super().init(**options)

    with pytest.raises(Interrupted):
        run(output="out", callbacks=[TrackerCallback("wandb"), Stops(9, save=True)])
    sys.modules["wandb"] = forgot = Forgot()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        run(output="out", callbacks=[TrackerCallback("wandb")], resume=True)
    assert forgot.runs[0].finished
    assert "wandb could not continue the run, and starts a new one: no such run" in caplog.text


def test_only_the_main_process_logs() -> None:
    mine = Mine()
    callback, state = TrackerCallback(mine), SimpleNamespace(is_main_process=False, step=1, result=None)
    for method in ("on_train_begin", "on_step_end", "on_train_end"):
        getattr(callback, method)(state)
    callback.on_exception(state, Interrupted())  # type: ignore[arg-type]
    assert mine.called == []


@pytest.mark.parametrize("started", [True, False])
def test_the_trackers_of_an_accelerator_are_used_and_left_open(run: Run, started: bool) -> None:
    accelerator = Accelerator(log_with="tensorboard", project_dir="logs")
    if started:
        accelerator.init_trackers("mine")
    result, _ = run(accelerator=accelerator)
    accelerator.log({"after": 1.0}, step=19)
    accelerator.end_training()
    found = events(Path("logs") / ("mine" if started else "ptuning"))
    assert curve(found, "after") == {19: 1.0}
    assert curve(found, "validation/loss") == pytest.approx(
        {each.step: each.metrics["loss"] for each in result.history}, rel=1e-6
    )
    assert curve(found, "final/validation/loss") == pytest.approx(
        {18: result.metrics["validation"]["loss"]}, rel=1e-6
    )


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("given", "problem", "remedy"),
    [
        ("tensorbord", "track", "did you mean tensorboard?"),
        ("Mlflow", "track", "did you mean mlflow?"),
        ("wandb", "track: wandb is not installed", "pip install wandb"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(
    config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
    problem: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(trackers, "is_wandb_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        TrackerCallback(given)
    assert caught.value.problem == problem
    assert caught.value.remedy == remedy
    file = config().data.train
    assert main(["train", file, "--track", f"tensorboard,{given}", "--backbone", config().backbone]) == 2
    printed = capsys.readouterr()
    assert remedy in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not Path("adapter.run").exists()


def test_the_options_of_tracking(
    config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "x.csv", "--track", "tensorboard, mlflow,tensorboard", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "track:\n- tensorboard\n- mlflow\ntrack_project: null\n" in printed
    assert config(track="wandb").track == ("wandb",)
    for name in ("track_project", "track_folder"):
        with pytest.raises(ConfigError, match=f"{name}: there is no tracker"):
            config(**{name: "x"})
    with pytest.raises(ConfigError):
        config(track=3)
