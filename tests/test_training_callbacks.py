"""The open training loop: callbacks, own metrics, losses, optimizers and schedules; resumed to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EvalPrediction

import ptuning
from ptuning import Callback, DeepPrompt, FitConfig, PTuningModel, RunState, Task, TrainConfig, TrainResult
from ptuning.errors import ConfigError
from ptuning.training import checkpoint
from ptuning.training.interrupt import Interrupted

Rows = Callable[..., list[dict[str, Any]]]
TASK = Task(problem_type="single_label_classification", labels=("negative", "positive"))
CONFIG = FitConfig(num_train_epochs=3, batch_size=8, learning_rate=3e-2, head_learning_rate=3e-2)


@pytest.fixture
def run(tiny_folder: Path, rows: Rows) -> Callable[..., tuple[TrainResult, PTuningModel]]:
    """``fit`` of a new model on 48 rows, 6 steps per epoch."""

    def make(
        config: FitConfig = CONFIG, kind: type[PTuningModel] = PTuningModel, **options: Any
    ) -> tuple[TrainResult, PTuningModel]:
        torch.manual_seed(0)
        model = kind.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=TASK)
        data = {"train": rows(48), "validation": rows(24, seed=1)}
        return ptuning.fit(model, data, config, **options), model

    return make


class Events(Callback):
    """Remembers what was called, and with which state."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_train_begin(self, state: RunState) -> None:
        assert state.total_steps == 18
        assert state.loss is None
        self.events.append(("begin", state.step))

    def on_step_end(self, state: RunState) -> None:
        assert state.loss is not None
        assert set(state.learning_rates) == {"prompt", "head"}
        assert state.examples_per_second > 0
        self.events.append(("step", state.step))

    def on_epoch_end(self, state: RunState) -> None:
        assert state.epoch == state.step / 6
        self.events.append(("epoch", state.step))

    def on_evaluate(self, state: RunState) -> None:
        assert state.metrics == state.history[-1].metrics
        assert state.best in state.history
        self.events.append(("evaluate", state.step))

    def on_save(self, state: RunState) -> None:
        assert state.folder is not None
        assert (state.folder / "checkpoint" / "resume" / "state.json").exists()
        self.events.append(("save", state.step))

    def on_train_end(self, state: RunState) -> None:
        assert state.result is not None
        self.events.append(("end", state.step))

    def on_exception(self, state: RunState, error: BaseException) -> None:
        self.events.append((type(error).__name__, state.step))


def test_a_callback_is_called_at_every_point_of_a_run(run: Callable[..., Any], tmp_path: Path) -> None:
    heard = Events()
    run(callbacks=[heard], output=tmp_path / "out")
    steps = [("step", step) for step in range(1, 19)]
    ends = {step: [("epoch", step), ("evaluate", step), ("save", step)] for step in (6, 12, 18)}
    expected = [event for step in steps for event in (step, *ends.get(step[1], ()))]
    assert heard.events == [("begin", 0), *expected, ("end", 18)]
    heard = Events()
    run(callbacks=[heard])
    assert ("save", 6) not in heard.events  # there is no folder


def test_a_callback_stops_saves_evaluates_and_logs(run: Callable[..., Any], tmp_path: Path) -> None:
    class Asks(Events):
        logged: list[Mapping[str, float]]

        def on_step_end(self, state: RunState) -> None:
            super().on_step_end(state)
            state.should_evaluate = state.step == 2
            state.should_save = state.step == 4
            state.should_stop = state.step == 8
            state.log({"loss now": state.loss or 0.0})

        def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
            assert state.log_history[-1] == {"step": state.step, "epoch": state.epoch, **values}
            self.logged = [*getattr(self, "logged", []), values]

    asks = Asks()
    result, _ = run(callbacks=[asks], output=tmp_path / "out")
    assert [event for event in asks.events if event[0] == "evaluate"] == [
        ("evaluate", step) for step in (2, 6, 8)
    ]
    assert [step for name, step in asks.events if name == "save"] == [2, 4, 6, 8]
    assert len(asks.logged) == 8
    assert result.stopped_early
    assert result.history[-1].step == 8
    assert (tmp_path / "out" / "ptuning.json").exists()


class Breaks(Callback):
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.at:
            raise ZeroDivisionError("mine")


class Presses(Callback):
    """As Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.at:
            state.should_save = True
            self.at = -1
        elif self.at == -1:
            raise Interrupted


def test_an_error_of_a_callback_is_the_users_and_the_run_can_be_resumed(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    straight, model = run(output=tmp_path / "straight")
    heard = Events()
    with pytest.raises(ZeroDivisionError, match="mine"):
        run(callbacks=[heard, Breaks(8)], output=tmp_path / "broken")
    assert heard.events[-1] == ("ZeroDivisionError", 8)
    resumed, again = run(output=tmp_path / "broken", resume=True)
    assert resumed.history == straight.history
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def f2(prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    assert isinstance(logits, np.ndarray)
    assert isinstance(labels, np.ndarray)
    assert logits.shape == (24, 2)
    assert labels.dtype == np.int64
    wrong = float((logits.argmax(1) != labels).mean())
    return {"f2": 1 - wrong, "errors": wrong, "nothing": float("nan")}


def test_a_metric_of_the_users_selects(run: Callable[..., Any]) -> None:
    result, _ = run(CONFIG.model_copy(update={"select_by": "f2"}), compute_metrics=f2)
    assert result.metric == "f2"
    assert result.best == max(
        result.history, key=lambda each: (each.metrics["f2"], -each.metrics["loss"], -each.step)
    )
    assert result.baseline["validation"]["f2"] == result.baseline["validation"]["accuracy"]
    assert "nothing" not in result.best.metrics
    fewest = CONFIG.model_copy(update={"select_by": "errors", "greater_is_better": False})
    found, _ = run(fewest, compute_metrics=f2)
    assert not found.greater_is_better
    assert found.best == result.best
    assert found.beats_baseline == result.beats_baseline
    assert TrainResult.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(ConfigError) as caught:
        run(CONFIG.model_copy(update={"select_by": "f3"}), compute_metrics=f2)
    assert caught.value.got == "'f3'"
    assert "f2, errors" in str(caught.value.expected)
    with pytest.raises(ConfigError, match=r"fit\.greater_is_better"):
        run(CONFIG.model_copy(update={"select_by": "accuracy", "greater_is_better": False}))


@pytest.mark.parametrize(
    ("function", "got"), [(lambda found: [1.0], "list"), (lambda found: {"a": "b"}, "b")]
)
def test_metrics_that_are_none_are_refused(run: Callable[..., Any], function: Any, got: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(compute_metrics=function)
    assert caught.value.got == got


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


def test_a_loss_of_the_users_trains_and_is_what_is_evaluated(run: Callable[..., Any]) -> None:
    built_in, model = run()
    same, again = run(loss=F.cross_entropy)
    assert same.history == built_in.history
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other, _ = run(loss=smoothed)
    assert other.history != built_in.history
    assert other.baseline["validation"]["loss"] == pytest.approx(
        built_in.baseline["validation"]["loss"], abs=0.02
    )
    with pytest.raises(ConfigError) as caught:
        run(loss=lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"))
    assert "one number" in str(caught.value.expected)
    weighted = CONFIG.model_copy(update={"class_weights": "balanced"})
    with pytest.raises(ConfigError, match="class_weights"):
        run(weighted, loss=smoothed)


def test_a_subclass_with_a_loss_of_its_own_is_trained_by_it(run: Callable[..., Any]) -> None:
    class Mine(PTuningModel):
        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            return smoothed(logits, labels)

    mine, model = run(kind=Mine)
    assert isinstance(model, Mine)
    assert mine.history == run(loss=smoothed)[0].history


class Scalars(torch.optim.SGD):
    """Keeps a plain number per parameter, as Adafactor does."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["calls"] = state.get("calls", 0) + 1
                group["lr"] *= 1 / (1 + 1e-2 * state["calls"])
        return super().step(closure)


def restarts(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=steps // 3)


@pytest.mark.parametrize(
    "parts",
    [
        {"optimizer": lambda groups: torch.optim.RMSprop(groups, momentum=0.5)},
        {"optimizer": lambda groups: torch.optim.NAdam(groups), "lr_scheduler": restarts},
        {"optimizer": lambda groups: Scalars(groups, momentum=0.9)},
        {"lr_scheduler": restarts},
    ],
    ids=["rmsprop", "nadam-restarts", "scalars", "adamw-restarts"],
)
def test_an_optimizer_of_the_users_resumes_to_the_bit(
    run: Callable[..., Any], tmp_path: Path, parts: dict[str, Any]
) -> None:
    straight, model = run(output=tmp_path / "straight", **parts)
    with pytest.raises(Interrupted):
        run(output=tmp_path / "broken", callbacks=[Presses(8)], **parts)
    with pytest.raises(ConfigError, match=r"cannot resume with another (optimizer|lr_scheduler)"):
        run(output=tmp_path / "broken", resume=True)
    resumed, again = run(output=tmp_path / "broken", resume=True, **parts)
    assert resumed.history == straight.history
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert run()[0].history != straight.history


def test_what_is_no_optimizer_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(optimizer=lambda groups: None)
    assert caught.value.got == "NoneType"
    foreign = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="parameters that the task does not train"):
        run(optimizer=lambda groups: torch.optim.SGD(foreign.parameters(), lr=1e-2))
    with pytest.raises(ConfigError, match="lr_scheduler"):
        run(lr_scheduler=lambda optimizer, steps: None)
    with pytest.raises(ConfigError, match="optimizer"):
        run(optimizer="adamw")
    with pytest.raises(ConfigError, match=r"fit\.warmup_ratio"):
        run(CONFIG.model_copy(update={"warmup_ratio": 0.5}), lr_scheduler=restarts)


@pytest.mark.parametrize("given", [Events, "console", object()])
def test_what_is_no_callback_is_refused(run: Callable[..., Any], given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        run(callbacks=[given])
    assert caught.value.expected == "instances of ptuning.Callback"
    assert caught.value.remedy == ("call the class" if given is Events else None)


def test_train_takes_them_too(tiny_folder: Path, rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(64)))
    config = TrainConfig.checked(
        {
            "data": {"train": str(tmp_path / "train.jsonl"), "validation_fraction": 0.375},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / "out"),
            "report": False,
            "precision": "fp32",
            "fit": {**CONFIG.model_dump(exclude_none=True), "select_by": "f2"},
        }
    )
    result = ptuning.train(
        config, callbacks=[Breaks(0)], compute_metrics=f2, loss=smoothed, optimizer=torch.optim.NAdam
    )
    assert result.metric == "f2"
    several = ptuning.train_several(config, seeds=[0], compute_metrics=f2, restart=True)
    assert several.metric == "f2"


# --------------------------------------------------------------------------------------------- names


def test_earlier_names_are_taken_and_never_both() -> None:
    old = FitConfig(epochs=3, accumulation=2, clip=2.0, prompt_rate=0.1, head_rate=0.2, warmup=0.1, schedule="cosine")  # type: ignore[call-arg]  # fmt: skip  # noqa: E501
    assert old == FitConfig(
        num_train_epochs=3,
        gradient_accumulation_steps=2,
        max_grad_norm=2.0,
        learning_rate=0.1,
        head_learning_rate=0.2,
        warmup_ratio=0.1,
        lr_scheduler_type="cosine",
    )
    with pytest.raises(ConfigError, match="num_train_epochs and epochs: got both, expected one of them"):
        FitConfig(epochs=3, num_train_epochs=3)  # type: ignore[call-arg]
    values = {"data": {"train": "x"}, "fit": {"clip": 2.0, "max_grad_norm": 1.0}}
    with pytest.raises(ConfigError, match="fit: max_grad_norm and clip: got both"):
        TrainConfig.checked(values)
    with pytest.raises(ConfigError, match=r"did you mean num_train_epochs\?"):
        FitConfig(epoch=1)  # type: ignore[call-arg]


def test_a_checkpoint_of_the_version_before_has_todays_names() -> None:
    now = checkpoint.as_now({"fit.epochs": 3, "fit.clip": 1.0, "data": "x"})
    assert now["fit.num_train_epochs"] == 3
    assert now["fit.max_grad_norm"] == 1.0
    assert now["optimizer"] is None
    assert now["data"] == "x"
