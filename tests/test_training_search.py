"""``recipe: search``: short trials on one backbone, the best of them trained in full, all of it resumable."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptuning import (
    SearchResult,
    TrainConfig,
    adapters,
    train,
    train_search,
    train_several,
)
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.model import loading
from ptuning.model.ports import PORTS
from ptuning.training import trials
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import SearchConfig
from ptuning.training.interrupt import Interrupted
from ptuning.training.plot import plot
from ptuning.training.records import Evaluation
from ptuning.training.trials import Space, Trial, best_of, chance, proposal, winner
from test_training_head_init import scored

pytestmark = pytest.mark.usefixtures("any_features")  # the rates below are around MiniLM's

Rows = Callable[..., list[dict[str, Any]]]
Made = Callable[..., TrainConfig]

TRIALS = 7


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny search; those that look at the picture ask for ``picture``."""
    monkeypatch.setattr("ptuning.training.search.plot", lambda *args: b"")


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptuning.training.search.plot", plot)


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows as here tell no trial from the first; those that want the best ask for this."""
    monkeypatch.setattr(trials, "standard_error", lambda *args: 0.0)


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Callable[..., Path]) -> Made:
    """A configuration of a small search; dotted options change it."""
    data = {"train": str(jsonl("train.jsonl", rows(64))), "test": str(jsonl("test.jsonl", rows(24, seed=1)))}

    def make(output: str = "out", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.375},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / output),
            "report": False,
            "precision": "fp32",
            "device": "cpu",
            "recipe": "search",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 4, "batch_size": 8},
            "search": {"trials": TRIALS, "epochs": 3},
        }
        for key, value in options.items():
            section, _, name = key.partition("__")
            values[section] = {**values[section], name: value} if name else value
        return TrainConfig.checked(values)

    return make


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: str | Path, other: str | Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def told(found: SearchResult) -> list[tuple[Any, ...]]:
    """Everything of the trials but the time."""
    return [(each.number, each.values, each.state, each.history) for each in found.trials]


def begin_with(monkeypatch: pytest.MonkeyPatch, *values: Mapping[str, Any]) -> None:
    """Let the first trials have these values."""
    monkeypatch.setattr(Space, "beginning", property(lambda self: list(values)))
    monkeypatch.setattr(trials, "RANGE", 1e33)  # all of them in range


class Pressed(Callback):
    """Presses Ctrl-C at a step of a trial (0: when it begins), or of the run after the trials."""

    def __init__(self, trial: int | None, step: int) -> None:
        self.wanted, self.at, self.now = trial, step, 0

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        self.now = number
        self._press(0)

    def on_train_begin(self, state: RunState) -> None:
        self.now = -1

    def on_step_end(self, state: RunState) -> None:
        self._press(state.step)

    def on_trial_step(self, state: RunState) -> None:
        self._press(state.step)

    def _press(self, step: int) -> None:
        if (self.now, step) == (self.wanted or -1, self.at):
            os.kill(os.getpid(), signal.SIGINT)


class Heard(Callback):
    def __init__(self) -> None:
        self.trials: list[int] = []
        self.stems = 0
        self.runs: list[int] = []
        self.said: list[str] = []

    def on_trial_begin(self, number: int, count: int, steps: int) -> None:
        self.trials.append(number)

    def on_progress(self, what: str, done: int, total: int) -> None:
        self.stems += done == total

    def on_train_begin(self, state: RunState) -> None:
        self.runs.append(state.step)

    def on_message(self, message: str) -> None:
        self.said.append(message)


# ------------------------------------------------------------------------------------- end to end


@pytest.mark.usefixtures("no_chance")
def test_it_tries_compares_draws_and_trains_the_best_in_full(
    config: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda *args, **options: loaded.append(1) or load(*args, **options))
    made, heard = config(engine={"stem_disk": 0.0}), Heard()
    found = train_search(made, callbacks=[heard])
    assert len(loaded) == 1
    assert heard.trials == list(range(1, TRIALS + 1))
    assert heard.stems == 1  # of first layer 1, over all the trials and the winner's run
    assert heard.said[1] == f"search: {TRIALS} trials of 3 epochs; the first as recipe: auto chooses"

    assert [trial.number for trial in found.trials] == heard.trials
    auto = {"first_layer": 0, "learning_rate": 0.06, "head_learning_rate": 0.01}
    assert [trial.values for trial in found.trials[:2]] == [auto, {**auto, "first_layer": 1}]
    drawn = [tuple(trial.values.values()) for trial in found.trials]
    assert len(set(drawn)) == TRIALS
    for layer, prompt, head in drawn:
        assert layer in (0, 1)
        assert 0.012 <= prompt <= 0.3
        assert 0.002 <= head <= 0.05
    assert all(trial.history[-1].epoch == 3 for trial in found.trials if trial.state == "complete")
    assert all("test" not in evaluation.metrics for trial in found.trials for evaluation in trial.history)

    best = found.trials[found.winner - 1]
    values = [trial.value("accuracy") for trial in found.trials if trial.state == "complete"]
    assert best.value("accuracy") == max(value for value in values if value is not None)
    assert f"trial {best.number} is the best: {best}; trained in full" in heard.said
    assert len(found.result.history) == 4
    chose = {**best.values, "backbone_dropout": False, "evaluate_every": "epoch"}  # epochs were given
    assert found.result.setting["recipe"] == {"name": "search", "chose": chose}
    adapter = adapters.load(made.output)
    assert adapter.extra["recipe"] == found.result.setting["recipe"]
    assert adapter.prompt["first_layer"] == best.values["first_layer"]
    assert set(found.result.metrics) == {"validation", "test"}


@pytest.mark.usefixtures("picture")
def test_the_files_it_leaves(config: Made) -> None:
    from PIL import Image

    made = config()
    found = train_search(made)
    assert found.folder == made.run_folder / "search"
    assert sorted(file.name for file in found.folder.iterdir()) == ["result.json", "search.png"]
    table = json.loads((found.folder / "result.json").read_text())
    assert (table["metric"], table["winner"]) == ("accuracy", found.winner)
    assert [Trial.read(each) for each in table["trials"]] == list(found.trials)
    with Image.open(found.folder / "search.png") as picture:
        assert min(picture.size) > 400
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert json.loads((made.run_folder / "result.json").read_text())["metrics"]


def test_what_may_be_chance_leaves_it_the_auto_run(config: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "best_of", lambda found, metric: found[-1])  # whichever is the better one
    monkeypatch.setattr(trials, "standard_error", lambda *args: 1.0)
    heard = Heard()
    found = train_search(config(search__trials=2), callbacks=[heard])
    assert found.winner == 1
    values = [each.value("accuracy") for each in found.trials]
    assert heard.said[2] == (
        f"trial 2 is the best, but accuracy {values[1]:.4f} instead of {values[0]:.4f} may be chance (the "
        "validation rows' standard error is 1); trial 1 is kept: first layer 0, learning rate 0.06, head "
        "learning rate 0.01; trained in full"
    )
    alone = train(config("alone", recipe="auto", search={}))
    assert found.result.history == alone.history
    assert found.result.metrics == alone.metrics
    assert same(config().output, config("alone").output)


@pytest.mark.usefixtures("no_chance")
def test_the_winners_run_is_the_single_run_of_its_values(config: Made) -> None:
    made = config(prompt__first_layer=1, search__trials=2)
    found = train_search(made)
    best = found.trials[found.winner - 1].values
    assert set(best) == {"learning_rate", "head_learning_rate"}
    alone = train(
        config(
            "alone",
            recipe="auto",
            search={},
            prompt__first_layer=1,
            **{f"fit__{k}": v for k, v in best.items()},
        )
    )
    assert found.result.history == alone.history
    assert same(made.output, config("alone").output)


@pytest.mark.parametrize(
    ("options", "searched"),
    [
        ({"fit__learning_rate": 0.02}, {"first_layer", "head_learning_rate"}),
        ({"prompt__train_head": False}, {"first_layer", "learning_rate"}),
        ({"prompt__first_layer": 2}, {"learning_rate", "head_learning_rate"}),
        ({"search__first_layers": [2]}, {"first_layer", "learning_rate", "head_learning_rate"}),
        ({"prompt": {"depth": "input", "num_virtual_tokens": 2}}, {"learning_rate", "head_learning_rate"}),
    ],
)
def test_what_is_given_is_not_searched(config: Made, options: dict[str, Any], searched: set[str]) -> None:
    made = config(fit__epochs=1, search__epochs=1, search__trials=2, **options)
    found = train_search(made)
    assert {name for trial in found.trials for name in trial.values} == searched
    if "fit__learning_rate" in options:
        assert found.result.setting["rates"]["prompt"] == 0.02
    if "search__first_layers" in options:
        assert {trial.values["first_layer"] for trial in found.trials} == {2}
        assert adapters.load(made.output).prompt["first_layer"] == 2


@pytest.mark.usefixtures("picture")
def test_where_few_trials_are_possible_no_more_are_made(config: Made) -> None:
    made = config(fit__epochs=1, search__epochs=1, fit__learning_rate=0.02, fit__head_rate=0.02)
    found = train_search(made)
    assert [trial.values for trial in found.trials] == [{"first_layer": 0}, {"first_layer": 1}]
    assert (found.folder / "search.png").stat().st_size > 5000


# ------------------------------------------------------------------------------- stopped, diverged


GOOD = [{"first_layer": 0, "learning_rate": rate, "head_learning_rate": 0.03} for rate in (0.1, 0.11, 0.12)]


def test_a_hopeless_trial_is_stopped(config: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_with(monkeypatch, *GOOD, {"first_layer": 0, "learning_rate": 1e-9, "head_learning_rate": 1e-9})
    found = train_search(config(search__trials=4, search__epochs=6, fit__select_by="loss"))
    assert [trial.state for trial in found.trials] == ["complete"] * 3 + ["pruned"]
    assert found.trials[3].epochs == 2  # not before a quarter of the trial
    assert found.winner < 4


def test_no_trial_is_stopped_for_the_head_that_it_begins_with(
    config: Made, monkeypatch: pytest.MonkeyPatch, jsonl: Callable[..., Path]
) -> None:
    """It says nothing about the rates that are tried."""
    values = [{"first_layer": 0, "learning_rate": rate, "head_learning_rate": 0.001} for rate in (0.01, 0.02)]
    begin_with(monkeypatch, *values)
    monkeypatch.setattr(
        trials.Proposal, "should_prune", lambda self, reached, share: self.values == values[1]
    )
    pairs = {"train": str(jsonl("pairs.jsonl", scored(48))), "validation_fraction": 0.25}
    prompt = {"num_virtual_tokens": 4, "pooling": "similarity"}
    found = train_search(config(data=pairs, prompt=prompt, search={"trials": 2, "epochs": 2}))
    assert [[each.epoch for each in trial.history] for trial in found.trials] == [[0, 1, 2], [0, 1]]
    assert [trial.state for trial in found.trials] == ["complete", "pruned"]


@pytest.mark.usefixtures("picture")
def test_one_that_diverges_is_the_worst_and_the_others_go_on(
    config: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_with(monkeypatch, {"first_layer": 0, "learning_rate": 1e30, "head_learning_rate": 1e30}, GOOD[0])
    made = config(fit__warmup=0.0, search__trials=3, search__epochs=2)
    found = train_search(made)
    assert [trial.state for trial in found.trials][:2] == ["diverged", "complete"]
    assert found.winner > 1
    assert (found.folder / "search.png").stat().st_size > 5000
    begin_with(
        monkeypatch,
        *[{"first_layer": 0, "learning_rate": 1e30, "head_learning_rate": rate} for rate in (1e30, 1e31)],
    )
    with pytest.raises(
        TrainingDiverged, match=r"all 2 trials of the search diverged, the first with first layer 0,"
    ):
        train_search(config("bad", fit__warmup=0.0, search__trials=2))
    assert not Path(config("bad").output).exists()
    begin_with(monkeypatch, GOOD[0])
    train_search(config("bad", search__trials=2, search__epochs=1, fit__epochs=1))  # and may be begun anew


@pytest.mark.usefixtures("picture")
def test_validation_rows_without_a_correlation_are_searched_by_the_loss(
    config: Made, rows: Rows, jsonl: Callable[..., Path]
) -> None:
    made = [{"text": row["text"], "label": float(row["label"] == "positive")} for row in rows(64)]
    data = {
        "train": str(jsonl("scores.jsonl", made)),
        "validation": str(jsonl("one.jsonl", [{"text": "the good film", "label": 1.0}])),
        "problem_type": "regression",
    }
    heard = Heard()
    found = train_search(
        config(data=data, search__trials=2, search__epochs=1, fit__epochs=1), callbacks=[heard]
    )
    assert (found.metric, found.result.metric) == ("loss", "loss")
    assert any("leave pearson undefined" in message for message in heard.said)
    assert all(trial.value("loss") is not None for trial in found.trials)
    assert (found.folder / "search.png").stat().st_size > 5000


def test_trials_without_the_metric_have_their_place_in_the_picture() -> None:
    """As where a model answers every row alike, so that nothing correlates."""
    trials = [trial(1, "complete", loss=1.0), trial(2, "pruned", loss=1.0)]
    none = plot(trials, trials[0], "pearson", 20)
    trials.append(trial(3, "complete", loss=0.9, pearson=0.4))
    assert len(none) > 5000
    assert none != plot(trials, trials[2], "pearson", 20)


def test_a_budget_of_minutes_begins_no_further_trial(config: Made) -> None:
    found = train_search(config(fit__epochs=1, search__epochs=1, search__minutes=1e-9))
    assert [trial.number for trial in found.trials] == [1]
    assert found.winner == 1


# --------------------------------------------------------------------------------------- the winner


def trial(number: int, state: str, **metrics: float) -> Trial:
    look = Evaluation(epoch=1, step=1, train_loss=1.0, metrics=metrics)
    return Trial(number=number, values={"learning_rate": 0.1}, state=state, history=(look,), seconds=1.0)  # type: ignore[arg-type]


def test_the_best_is_of_those_that_ran_to_their_end() -> None:
    assert best_of([], "accuracy") is None
    assert best_of([trial(1, "diverged", accuracy=1.0)], "accuracy") is None
    tried = [
        trial(1, "complete", accuracy=0.8, loss=0.5),
        trial(2, "pruned", accuracy=0.9, loss=0.1),
        trial(3, "complete", accuracy=0.8, loss=0.4),
        trial(4, "complete", accuracy=0.8, loss=0.4),
    ]
    assert best_of(tried, "accuracy") is tried[2]
    assert best_of([trial(1, "complete", mse=2.0), found := trial(2, "complete", mse=1.0)], "mse") is found


def test_the_best_is_kept_if_it_is_ahead_of_the_first_by_more_than_chance() -> None:
    def kept(rows: int, *tried: Trial, metric: str = "accuracy") -> Trial | None:
        found = winner(tried, metric, rows)
        return found and found[0]

    first, second = trial(1, "complete", accuracy=0.80), trial(2, "complete", accuracy=0.84)
    assert kept(80, first, second) is first  # a standard error of 0.041
    assert kept(1000, first, second) is second  # 0.012
    assert kept(80, second, first) is second
    low, lower = trial(1, "complete", mse=1.0), trial(2, "complete", mse=0.9)
    assert kept(80, low, lower, metric="mse") is low  # 0.14
    assert kept(1000, low, lower, metric="mse") is lower  # 0.04
    assert kept(80, trial(1, "diverged"), second) is second
    assert kept(80, trial(1, "complete", loss=1.0), second) is second  # it has no accuracy
    assert kept(80, trial(1, "diverged")) is None


def test_draws_depend_on_the_trials_and_the_seed_alone() -> None:
    space = Space(
        auto={"first_layer": 0, "learning_rate": 0.03},
        layers=(0, 2, 3),
        rates={"learning_rate": (0.006, 0.15)},
        epochs=2,
    )
    seen: list[Trial] = []
    for number in range(1, 41):
        values = proposal(space, seen, "accuracy", 7).values
        assert values == proposal(space, list(seen), "accuracy", 7).values
        metrics = {"accuracy": 1 - abs(math.log(values["learning_rate"] / 0.1))}
        look = Evaluation(epoch=1, step=1, train_loss=1.0, metrics=metrics)
        seen.append(Trial(number=number, values=values, state="complete", history=(look,), seconds=0.0))
    assert [each.values["first_layer"] for each in seen[:3]] == [0, 2, 3]
    assert seen[3].values != proposal(space, seen[:3], "accuracy", 8).values
    off = [1 - each.history[0].metrics["accuracy"] for each in seen]
    assert sum(off[20:]) / 20 < 0.7 * sum(off[:20]) / 20  # it learns where the good ones are


def test_nothing_is_left_over_in_optuna(config: Made) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    train_search(config(fit__epochs=1, search__epochs=1, search__trials=2))
    assert optuna.logging.get_verbosity() == before


# -------------------------------------------------------------------------- interrupted and gone on


@pytest.mark.parametrize(
    ("trial", "step", "kept"), [(1, 3, 0), (3, 0, 2), (4, 7, 3), (5, 10, 5)],
    ids=["first", "begin", "middle", "last-step"],
)  # fmt: skip
def test_a_resumed_search_is_the_straight_search(config: Made, trial: int, step: int, kept: int) -> None:
    options: dict[str, Any] = {
        "search": {"trials": 6, "epochs": 2},
        "fit__select_by": "loss",
        "fit__epochs": 2,
    }
    if trial == 5:
        options |= {"fit__evaluate_every": 100}  # no trial is stopped before its last step
    straight = train_search(config("straight", **options))
    broken = config("broken", **options)
    handler = signal.getsignal(signal.SIGINT)  # a test run in the background has another than Python's own
    with pytest.raises(
        Interrupted, match=rf"interrupted at trial {trial} of 6; finished trials .* --resume$"
    ):
        train_search(broken, callbacks=[Pressed(trial, step)])
    assert not Path(broken.output).exists()
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(ConfigError, match=r"broken.run has an unfinished run; continue .* --resume"):
        train_search(broken)
    torch.manual_seed(12345)  # whatever happened in between
    heard = Heard()
    resumed = train_search(broken, resume=True, callbacks=[heard])
    assert heard.trials == list(range(kept + 1, 7))
    assert (heard.said[1].endswith(f"; {kept} finished before")) == (kept > 0)
    assert told(resumed) == told(straight)
    assert resumed.winner == straight.winner
    assert resumed.result.history == straight.result.history
    assert same(broken.output, config("straight").output)


def test_the_winners_run_is_gone_on_with(config: Made) -> None:
    straight = train_search(config("straight", fit__epochs=2, search={"trials": 2, "epochs": 1}))
    broken = config("broken", fit__epochs=2, search={"trials": 2, "epochs": 1})
    with pytest.raises(Interrupted, match=r"interrupted at step 7 of 10 and saved; .* --resume"):
        train_search(broken, callbacks=[Pressed(None, 7)])
    heard = Heard()
    resumed = train_search(broken, resume=True, callbacks=[heard])
    assert (heard.trials, heard.runs) == ([], [7])
    assert resumed.result.history == straight.result.history
    assert same(broken.output, config("straight").output)
    again = train_search(broken, resume=True, callbacks=[heard])  # a finished one has nothing left to do
    assert (heard.trials, heard.runs) == ([], [7, 10])
    assert told(again) == told(resumed)


def test_ctrl_c_before_anything_was_begun_is_only_that(config: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ptuning.training.search.Space.of", pressed)
    with pytest.raises(KeyboardInterrupt) as early:
        train_search(config())
    assert not isinstance(early.value, Interrupted)
    assert not config().run_folder.exists()


def test_what_is_unfinished_is_not_thrown_away(config: Made) -> None:
    small: dict[str, Any] = {"fit__epochs": 1, "search__epochs": 1, "search__trials": 2}
    made = config(**small)
    auto = config(recipe="auto", search={}, fit__epochs=1)
    with pytest.raises(Interrupted):
        train_search(made, callbacks=[Pressed(2, 0)])
    with pytest.raises(ConfigError, match="has an unfinished run"):
        train(auto)
    with pytest.raises(ConfigError, match="has an unfinished single run"):
        train_several(auto, seeds=[0, 1])
    heard = Heard()
    train_search(made, restart=True, callbacks=[heard])
    assert heard.trials == [1, 2]
    train_search(made)  # a finished one may be run again
    train(auto)  # and so may another run in its place, which leaves nothing of it
    assert not (made.run_folder / "search").exists()
    with pytest.raises(
        ConfigError, match=r"nothing to resume: there is no .*search/result.json; leave --resume"
    ):
        train_search(made, resume=True)
    with pytest.raises(Interrupted):  # what a single run left is not the search's to go on from
        train_search(made, callbacks=[Pressed(1, 2)])
    assert not (made.run_folder / "checkpoint").exists()
    train_search(made, resume=True)


def test_resume_refuses_other_choices_and_other_data(
    config: Made, rows: Rows, jsonl: Callable[..., Path]
) -> None:
    small: dict[str, Any] = {"fit__epochs": 1, "search__epochs": 1, "search__trials": 3}
    with pytest.raises(Interrupted):
        train_search(config(**small), callbacks=[Pressed(2, 0)])
    for change, said in (
        (
            {"search__trials": 4},
            r"search.trials: got 4, expected 3, as when the search started; use the same configuration",
        ),
        ({"fit__learning_rate": 0.1}, r"fit.learning_rate: got 0.1, expected None, as when the search"),
        ({"fit__seed": 1}, r"fit.seed: got 1, expected 0, as when the search started"),
    ):
        with pytest.raises(ConfigError, match=rf"^cannot resume with another {said}"):
            train_search(config(**{**small, **change}), resume=True)
    file = config().run_folder / "search" / "result.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(ConfigError, match=r"cannot resume: .*search/result.json cannot be read"):
        train_search(config(**small), resume=True)
    file.write_text(text)
    jsonl("train.jsonl", rows(64, seed=5))
    with pytest.raises(ConfigError, match="cannot resume: the data has changed"):
        train_search(config(**small), resume=True)
    assert file.read_text() == text


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "auto"}, "search: these options need recipe: search; got recipe: auto"),
        ({"recipe": "random"}, "recipe: got 'random', expected 'auto' or 'search'"),
        ({"search__trials": 1}, "search.trials: got 1, expected greater than or equal to 2"),
        ({"search__minutes": 0}, "search.minutes: got 0, expected greater than 0"),
        ({"search__first_layers": [0, 0]}, r"search.first_layers: got \[0, 0\], expected each layer once"),
        ({"search__first_layers": []}, "search.first_layers: got "),
        ({"search__first_layers": [-1]}, "search.first_layers.0: got -1"),
        ({"search__first_layers": [1], "prompt__first_layer": 1}, ".*prompt.first_layer: got both"),
        ({"search__first_layers": [1], "prompt": {"depth": "input"}}, ".*an input prompt has no first"),
        ({"search__rates": [1]}, "search.rates: unknown option"),
    ],
)  # fmt: skip
def test_options_that_make_no_search_are_refused(config: Made, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{said}"):
        config(**options)


def test_without_the_bottom_layer_the_first_trial_is_not_the_auto_recipes(config: Made) -> None:
    heard = Heard()
    train_search(config(search__first_layers=[1, 2], search__trials=2), callbacks=[heard])
    assert heard.said[1] == "search: 2 trials of 3 epochs; the first as recipe: auto chooses, from layer 1"


def test_the_pictures_band_is_the_rule() -> None:
    for rows in (84, 300):
        for reached in np.arange(0.70, 0.80, 0.001):
            tried = [trial(1, "complete", accuracy=0.7024), trial(2, "complete", accuracy=float(reached))]
            band, found = chance(tried, "accuracy", rows), winner(tried, "accuracy", rows)
            assert band is not None
            assert found is not None
            assert (found[0] is tried[1]) == (reached - 0.7024 > band)
    assert chance([trial(1, "pruned", accuracy=0.7), tried[1]], "accuracy", 84) is None


def test_a_search_with_nothing_to_search_or_a_layer_too_many_is_refused(config: Made) -> None:
    given = {"fit__learning_rate": 0.1, "fit__head_rate": 0.1, "prompt__first_layer": 1}
    with pytest.raises(ConfigError, match="recipe: search: learning rates and first layer are given"):
        train_search(config(**given))
    with pytest.raises(ConfigError, match=r"prompt.first_layer: .* has 3 layers.* got 3, expected at most 2"):
        train_search(config(search__first_layers=[0, 3]))
    assert not config().run_folder.exists()


def test_each_recipe_has_its_function(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"^recipe: got 'search', expected 'auto'; .*ptuning.train_search"):
        train(config())
    with pytest.raises(ConfigError, match=r"^recipe: got 'auto', expected 'search'; use ptuning.train for"):
        train_search(config(recipe="auto", search={}))
    with pytest.raises(ConfigError, match="recipe: search tries learning rates itself"):
        train_several(config(), seeds=[0, 1])


@pytest.mark.parametrize("name", ["optuna", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(
    config: Made, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = trials.find_spec
    monkeypatch.setattr(trials, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    with pytest.raises(
        ConfigError, match=rf"needs {name}, which is not installed; .*pip install 'ptuning\[search\]'"
    ):
        train_search(config())


def test_a_backbone_that_takes_no_first_layer_has_none_to_search(tmp_path: Path) -> None:
    class Backbone:
        port = PORTS["cache"]
        num_layers = 12

    made = TrainConfig.checked({"data": {"train": "x"}, "recipe": "search"})
    assert trials._layers(made, Backbone()) == ()  # type: ignore[arg-type]
    Backbone.port = PORTS["interface"]
    assert trials._layers(made, Backbone()) == (0, 4, 6)  # type: ignore[arg-type]


def test_the_defaults_are_a_dozen_trials() -> None:
    assert SearchConfig().trials == 12
