"""Several runs on one backbone: each is its own single run to the bit, and what they share is made once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from ptuning import PTuningModel, SeveralResult, TrainConfig, adapters, train, train_several
from ptuning.data import tokens
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.model import loading
from ptuning.training import prepare
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.interrupt import Interrupted
from ptuning.training.records import Evaluation, OneRun, TrainResult

Rows = Callable[..., list[dict[str, Any]]]
Files = Callable[..., Path]
Made = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def headless(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone as most are published: its checkpoint has neither a pooler nor a head."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("backbone") / "headless"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_folder / "model.safetensors")
    lacks = ("bert.pooler.", "classifier.")
    kept = {name: value for name, value in weights.items() if not name.startswith(lacks)}
    assert len(kept) == len(weights) - 4
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def config(headless: Path, tmp_path: Path, rows: Rows, jsonl: Files) -> Made:
    """A configuration of a small run; dotted options change it."""
    data = {"train": str(jsonl("train.jsonl", rows(64))), "test": str(jsonl("test.jsonl", rows(24, seed=1)))}

    def make(output: str = "set", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.25},
            "backbone": str(headless),
            "output": str(tmp_path / output),
            "report": False,
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 2, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2},
        }
        for key, value in options.items():
            section, _, name = key.partition("__")
            values[section] = {**values[section], name: value} if name else value
        return TrainConfig.checked(values)

    return make


@pytest.fixture
def held_out(rows: Rows, jsonl: Files) -> str:
    return str(jsonl("held.jsonl", rows(24, seed=2)))


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: str | Path, other: str | Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def found(run: OneRun) -> TrainResult:
    assert run.result is not None
    return run.result


def run_folder(config: TrainConfig, name: str) -> Path:
    return config.run_folder / name


def assert_is_the_single_run(config: TrainConfig, run: OneRun, alone: TrainResult) -> None:
    result = found(run)
    assert result.history == alone.history
    assert result.best == alone.best
    assert result.metrics == alone.metrics
    assert result.baseline == alone.baseline
    assert alone.adapter is not None
    assert same(run_folder(config, run.name), alone.adapter)


class StopAt(Callback):
    """Presses Ctrl-C when step ``step`` of run ``number`` is done."""

    def __init__(self, number: int, step: int) -> None:
        self.wanted, self.number, self.at = number, 0, step

    def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
        self.number = number

    def on_step_end(self, state: RunState) -> None:
        if (self.number, state.step) == (self.wanted, self.at):
            os.kill(os.getpid(), signal.SIGINT)


class DivergeAt(StopAt):
    """Has the run end there as one does whose loss is no number, and the others after it likewise."""

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.at and self.number >= self.wanted:
            raise TrainingDiverged("the loss is no number")


class Told(Callback):
    """Remembers which runs were announced, and which of them trained."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int, int, bool]] = []
        self.trained: list[str] = []

    def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
        self.runs.append((name, number, count, finished))

    def on_train_begin(self, state: RunState) -> None:
        self.trained.append(f"{self.runs[-1][0]} from {state.step}")


# ------------------------------------------------------------------------- each is its own single run


@pytest.mark.parametrize(
    ("own_head", "file"),
    [(False, False), (True, True)],
    ids=["fresh-head-split-by-seed", "own-head-validation-file"],
)
def test_each_seed_is_its_own_single_run_to_the_bit(
    config: Made, held_out: str, tiny_folder: Path, file: bool, own_head: bool
) -> None:
    held: dict[str, Any] = {"data__validation": held_out, "data__validation_fraction": 0.1}
    options: dict[str, Any] = held if file else {}
    if own_head:  # the checkpoint's own head and pooler, of the task's width: those are where all runs begin
        options["backbone"] = str(tiny_folder)
    made = config(**options)
    several = train_several(made, seeds=[0, 1, 2])
    assert [run.name for run in several.runs] == ["seed-0", "seed-1", "seed-2"]
    for seed, run in enumerate(several.runs):
        alone = train(config(f"alone-{seed}", fit__seed=seed, **options))
        assert_is_the_single_run(made, run, alone)
    results = [found(run) for run in several.runs]
    assert results[0].history != results[1].history  # the seed does something
    assert not same(run_folder(made, "seed-0"), run_folder(made, "seed-1"))
    files = {run_folder(made, f"seed-{seed}.run") / "result.json" for seed in range(3)}
    assert all(json.loads(each.read_text())["metrics"] for each in files)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": {"depth": "input", "num_virtual_tokens": 3, "encoder": {"kind": "lstm", "dropout": 0.5}}},
        {"prompt": {"depth": "input", "num_virtual_tokens": 3, "init": {"kind": "random"}}},
        {"prompt": {"num_virtual_tokens": 3, "encoder": {"kind": "mlp", "dropout": 0.3}}},
        {"prompt": {"num_virtual_tokens": 3, "first_layer": 1}},
        {"prompt": {"num_virtual_tokens": 3, "first_layer": 1}, "fit__backbone_dropout": True},
        {"precision": "bf16", "fit__class_weights": "balanced", "fit__patience": 1},
    ],
    ids=["lstm", "random", "deep-mlp", "first-layer", "first-layer-dropout", "bf16"],
)
def test_so_is_every_kind_of_prompt(config: Made, options: dict[str, Any]) -> None:
    made = config(fit__epochs=1, **options) if "fit__patience" not in options else config(**options)
    several = train_several(made, seeds=[4, 5])
    alone = train(made.model_copy(update={"fit": made.fit.model_copy(update={"seed": 5}),
                                          "output": f"{made.output}-alone"}))  # fmt: skip
    assert_is_the_single_run(made, several.runs[1], alone)


def test_rates_and_seeds_are_every_combination(config: Made) -> None:
    made = config(fit__epochs=1)
    several = train_several(made, seeds=[0, 1], prompt_rates=[1e-5, 0.03], head_rates=[0.01])
    assert [run.name for run in several.runs] == [
        "seed-0_learning_rate-1e-05_head_learning_rate-0.01",
        "seed-0_learning_rate-0.03_head_learning_rate-0.01",
        "seed-1_learning_rate-1e-05_head_learning_rate-0.01",
        "seed-1_learning_rate-0.03_head_learning_rate-0.01",
    ]
    assert several.runs[3].values == {"seed": 1, "learning_rate": 0.03, "head_learning_rate": 0.01}
    assert found(several.runs[3]).setting["rates"] == {"prompt": 0.03, "head": 0.01}
    alone = train(config("alone", fit__epochs=1, fit__seed=1, fit__head_rate=0.01))
    assert_is_the_single_run(made, several.runs[3], alone)
    groups = several.over_seeds
    assert [(group.values, group.runs) for group in groups] == [
        ({"learning_rate": 1e-5, "head_learning_rate": 0.01}, (several.runs[0].name, several.runs[2].name)),
        ({"learning_rate": 0.03, "head_learning_rate": 0.01}, (several.runs[1].name, several.runs[3].name)),
    ]
    losses = [found(several.runs[number]).metrics["validation"]["loss"] for number in (0, 2)]
    assert groups[0].metrics["validation"]["loss"] == (fmean(losses), stdev(losses))


def test_rates_alone_have_no_mean_over_seeds(config: Made) -> None:
    several = train_several(config(fit__epochs=1), prompt_rates=[0.01, 0.03])
    assert [run.name for run in several.runs] == ["learning_rate-0.01", "learning_rate-0.03"]
    assert several.over_seeds == ()
    assert {found(run).setting["rates"]["head"] for run in several.runs} == {0.03}  # the configuration's own


# ----------------------------------------------------------------------------------- what is shared


def test_the_backbone_is_loaded_once_and_every_text_is_read_and_tokenised_once(
    config: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, read, seen = [], [], list[str]()
    load, load_examples, encode = loading.load, prepare.load_examples, tokens.Tokenise._encode

    def counted_load(*args: Any, **options: Any) -> Any:
        loaded.append(args)
        return load(*args, **options)

    def counted_read(source: Any, **options: Any) -> Any:
        read.append(source)
        return load_examples(source, **options)

    def counted_encode(self: Any, examples: Any, **options: Any) -> Any:
        seen.extend(example.place for example in examples)
        return encode(self, examples, **options)

    monkeypatch.setattr(loading, "load", counted_load)
    monkeypatch.setattr(prepare, "load_examples", counted_read)
    monkeypatch.setattr(tokens.Tokenise, "_encode", counted_encode)
    made = config(fit__epochs=1)
    train_several(made, seeds=[0, 1, 2], prompt_rates=[0.01, 0.03])
    assert len(loaded) == 1
    assert sorted(read) == sorted([made.data.train, made.data.test])
    assert len(seen) == len(set(seen)) == 64 + 24


def test_no_run_writes_to_the_backbone(config: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Any, dict[str, torch.Tensor]]] = []
    load = loading.load

    def remembered(*args: Any, **options: Any) -> Any:
        backbone = load(*args, **options)
        held.append((backbone, {name: value.clone() for name, value in backbone.state_dict().items()}))
        return backbone

    monkeypatch.setattr(loading, "load", remembered)
    train_several(config(fit__epochs=1), seeds=[0, 1])
    ((backbone, before),) = held
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------------------------- what is written


def test_the_best_runs_adapter_is_the_output_and_the_table_has_them_all(config: Made) -> None:
    made = config()
    several = train_several(made, seeds=[0, 1, 2])
    accuracies = [found(run).metrics["validation"]["accuracy"] for run in several.runs]
    best = several.runs[accuracies.index(max(accuracies))]
    assert several.best is best
    assert several.metric == "accuracy"
    assert several.adapter == Path(made.output)
    assert same(made.output, run_folder(made, best.name))
    assert adapters.verify(made.output)
    mine, original = adapters.load(made.output), adapters.load(run_folder(made, best.name))
    assert (mine.metrics, mine.extra, mine.task) == (original.metrics, original.extra, original.task)
    assert PTuningModel.from_pretrained(made.output).task.labels == ("negative", "positive")
    table = json.loads((made.run_folder / "result.json").read_text())
    assert table == json.loads(json.dumps(several.to_dict()))
    assert (table["metric"], table["best"]) == ("accuracy", best.name)
    assert [run["name"] for run in table["runs"]] == ["seed-0", "seed-1", "seed-2"]
    assert table["runs"][1]["values"] == {"seed": 1}
    assert table["runs"][1]["metrics"] == found(several.runs[1]).metrics
    assert table["runs"][1]["best_epoch"] == found(several.runs[1]).best.epoch
    assert table["over_seeds"][0]["runs"] == ["seed-0", "seed-1", "seed-2"]
    spread = table["over_seeds"][0]["metrics"]["validation"]["accuracy"]
    assert spread == pytest.approx({"mean": fmean(accuracies), "sd": stdev(accuracies)})


def result_with(**validation: float) -> TrainResult:
    look = Evaluation(epoch=1, step=1, train_loss=1.0, metrics=validation)
    metric = "loss" if set(validation) == {"loss"} else "accuracy"
    return TrainResult(
        metric=metric,
        best=look,
        history=(look,),
        metrics={"validation": validation, "test": {name: 1 - value for name, value in validation.items()}},
        baseline={"validation": {}, "test": {}},
        baseline_rule="always 'a'",
        trained=1,
        total=2,
        seconds=1.0,
        examples_per_second=1.0,
        adapter=Path("somewhere"),
    )


@pytest.mark.parametrize(
    ("looks", "best"),
    [
        ([{"accuracy": 0.5, "loss": 0.1}, {"accuracy": 0.7, "loss": 0.9}], 1),
        ([{"accuracy": 0.7, "loss": 0.9}, {"accuracy": 0.7, "loss": 0.1}], 0),  # of equals the first
        ([{"loss": 0.9}, {"loss": 0.1}, {"loss": 0.1}], 1),  # less is better
        ([None, {"accuracy": 0.1, "loss": 2.0}], 1),  # one that diverged
        ([{"accuracy": 0.9, "loss": 0.5}, {"loss": 0.1}], 1),  # what both have, where rows left one no other
    ],
)
def test_the_best_is_chosen_on_the_validation_rows(looks: list[dict[str, float] | None], best: int) -> None:
    from ptuning.training.several import _best, _metric

    runs = [
        OneRun(name=str(i), values={"seed": i}, result=None if look is None else result_with(**look))
        for i, look in enumerate(looks)
    ]
    assert _best(runs, _metric(runs)) is runs[best]


def test_a_result_comes_back_from_json_as_it_was() -> None:
    result = result_with(accuracy=0.25, loss=1.5)
    assert TrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_metric_that_a_run_lacks_has_no_mean() -> None:
    runs = tuple(
        OneRun(name=f"seed-{i}", values={"seed": i}, result=result_with(accuracy=0.5 + i / 4, **more))
        for i, more in enumerate([{"auc": 0.5}, {}])
    )
    (group,) = SeveralResult(metric="accuracy", runs=runs, best=runs[0], adapter=Path("x")).over_seeds
    assert group.metrics["validation"] == {"accuracy": (0.625, pytest.approx(0.125 * 2**0.5))}


def test_a_run_that_diverges_is_said_and_the_others_go_on(config: Made) -> None:
    made = config(fit__epochs=1, fit__warmup=0.0, fit__head_rate=1e-3)
    several = train_several(made, prompt_rates=[1e30, 0.03])
    bad, good = several.runs
    assert bad.result is None
    assert bad.diverged is not None
    assert "diverged at step" in bad.diverged
    assert several.best is good
    assert same(made.output, run_folder(made, good.name))
    table = json.loads((made.run_folder / "result.json").read_text())
    assert table["runs"][0] == {"name": bad.name, "values": {"learning_rate": 1e30}, "diverged": bad.diverged}
    train_several(made, prompt_rates=[1e30, 0.03])  # the set was finished, so it may be run again
    with pytest.raises(TrainingDiverged, match=r"all 1 runs diverged; the first, learning_rate-1e\+30: "):
        train_several(config("bad", fit__warmup=0.0), prompt_rates=[1e30])
    assert not Path(config("bad").output).exists()


def test_a_set_that_diverged_as_a_whole_may_be_begun_anew_at_other_rates(config: Made) -> None:
    with pytest.raises(
        TrainingDiverged, match="all 2 runs diverged; the first, seed-0: the loss is no number"
    ):
        train_several(config(), seeds=[0, 1], callbacks=[DivergeAt(1, 9)])
    table = json.loads((config().run_folder / "result.json").read_text())
    assert table["best"] is None
    assert [run["diverged"] for run in table["runs"]] == ["the loss is no number"] * 2
    assert len(train_several(config(fit__head_rate=1e-3), seeds=[0, 1]).runs) == 2


# ------------------------------------------------------------------------- interrupted and gone on


@pytest.mark.parametrize("step", [3, 8], ids=["mid-epoch", "epoch-end"])
def test_a_resumed_set_is_the_straight_set(config: Made, step: int) -> None:
    straight = train_several(config("straight"), seeds=[0, 1, 2])
    broken = config("broken")
    message = rf"run 2 of 3, seed-1: interrupted at step {step} of \d+ and saved; .* --resume"
    with pytest.raises(Interrupted, match=message):
        train_several(broken, seeds=[0, 1, 2], callbacks=[StopAt(2, step)])
    assert not Path(broken.output).exists()
    assert not (broken.run_folder / "result.json").exists()
    first = (run_folder(broken, "seed-0") / "ptuning.json").read_bytes()
    torch.manual_seed(12345)  # whatever happened in between
    told = Told()
    resumed = train_several(broken, seeds=[0, 1, 2], resume=True, callbacks=[told])
    assert told.runs == [("seed-0", 1, 3, True), ("seed-1", 2, 3, False), ("seed-2", 3, 3, False)]
    assert told.trained == [f"seed-1 from {step}", "seed-2 from 0"]
    assert (run_folder(broken, "seed-0") / "ptuning.json").read_bytes() == first
    for one, other in zip(resumed.runs, straight.runs, strict=True):
        assert found(one).history == found(other).history
        assert found(one).metrics == found(other).metrics
        assert same(run_folder(broken, one.name), run_folder(config("straight"), other.name))
    assert resumed.best.name == straight.best.name
    assert same(broken.output, config("straight").output)


def test_a_resumed_set_tries_again_what_diverged(config: Made) -> None:
    class Pressed(DivergeAt):
        """Run 1 diverges, and somebody presses Ctrl-C as run 2 begins."""

        def on_train_begin(self, state: RunState) -> None:
            if self.number == 2:
                raise KeyboardInterrupt

    made = config()
    straight = train_several(made, seeds=[0, 1])
    with pytest.raises(Interrupted):
        train_several(made, seeds=[0, 1], callbacks=[Pressed(1, 9)])
    told = Told()
    resumed = train_several(made, seeds=[0, 1], resume=True, callbacks=[told])
    assert told.trained == ["seed-0 from 6", "seed-1 from 0"]
    assert [found(run).history for run in resumed.runs] == [found(run).history for run in straight.runs]


def test_a_finished_set_can_be_extended(config: Made) -> None:
    made = config(fit__epochs=1)
    first = train_several(made, seeds=[0, 1])
    told = Told()
    more = train_several(made, seeds=[0, 1, 2], resume=True, callbacks=[told])
    assert told.trained == ["seed-2 from 0"]
    assert [found(run).history for run in more.runs[:2]] == [found(run).history for run in first.runs]
    again = train_several(made, seeds=[0, 1, 2], resume=True, callbacks=[told])
    assert told.trained == ["seed-2 from 0"]
    assert again.to_dict() == more.to_dict()


def test_an_unfinished_set_is_not_thrown_away(config: Made) -> None:
    made = config(fit__epochs=1)
    train_several(made, seeds=[0, 1])
    train_several(made, seeds=[0, 1])  # a finished one may be run again
    with pytest.raises(Interrupted):
        train_several(made, seeds=[0, 1], callbacks=[StopAt(2, 2)])
    with pytest.raises(ConfigError, match=r"set.run has an unfinished set of runs \(seed-0 is"):
        train_several(made, seeds=[0, 1])
    told = Told()
    train_several(made, seeds=[0, 1], restart=True, callbacks=[told])
    assert told.trained == ["seed-0 from 0", "seed-1 from 0"]


def test_what_an_earlier_set_left_is_not_taken_for_this_ones(config: Made) -> None:
    """A set of other choices stood there, finished; the new one was interrupted before it came to seed 1."""
    train_several(config(fit__epochs=1), seeds=[0, 1])
    made = config()
    with pytest.raises(Interrupted):
        train_several(made, seeds=[0, 1], callbacks=[StopAt(1, 3)])
    told = Told()
    train_several(made, seeds=[0, 1], resume=True, callbacks=[told])
    assert told.trained == ["seed-0 from 3", "seed-1 from 0"]


def test_a_single_run_that_was_not_finished_is_not_thrown_away(config: Made) -> None:
    made = config(fit__epochs=1)
    single = StopAt(0, 2)
    with pytest.raises(Interrupted):
        train(made, callbacks=[single])
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"set.run has an unfinished single run; continue"):
            train_several(made, seeds=[0, 1], resume=resume)
    train(made, resume=True)
    with pytest.raises(Interrupted):  # the single run is finished, and stays so
        train_several(made, seeds=[0, 1], callbacks=[StopAt(2, 2)])
    several = train_several(made, seeds=[0, 1], resume=True)
    assert json.loads((made.run_folder / "result.json").read_text())["best"] == several.best.name


def test_resume_refuses_other_choices_before_it_touches_anything(config: Made) -> None:
    with pytest.raises(Interrupted):
        train_several(config(), seeds=[0, 1], callbacks=[StopAt(2, 2)])
    kept = (run_folder(config(), "seed-0.run") / "result.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"another fit.num_train_epochs: got 3, expected 2, as when seed-0 started; use the"
    ):
        train_several(config(fit__epochs=3), seeds=[0, 1], resume=True)
    with pytest.raises(ConfigError, match=r"another prompt.num_virtual_tokens: got 5, expected 4, as"):
        train_several(config(prompt__num_virtual_tokens=5), seeds=[0, 1], resume=True)
    (run_folder(config(), "seed-1.run") / "config.yaml").write_text("fit: [")
    with pytest.raises(ConfigError, match=r"cannot resume: .*seed-1.run/config.yaml, line 1: while parsing"):
        train_several(config(), seeds=[0, 1], resume=True)
    assert (run_folder(config(), "seed-0.run") / "result.json").read_bytes() == kept


@pytest.mark.parametrize("text", ["", '{"metric": "accuracy"}', "[]", "[" * 9999])
def test_a_run_whose_result_was_cut_short_is_gone_on_with(config: Made, text: str) -> None:
    """As a kill left it, when results were not written in one step."""
    made = config(fit__epochs=1)
    straight = train_several(made, seeds=[0])
    for file in (made.run_folder / "result.json", run_folder(made, "seed-0.run") / "result.json"):
        file.write_text(text)
    told = Told()
    resumed = train_several(made, seeds=[0], resume=True, callbacks=[told])
    assert told.trained == [f"seed-0 from {found(straight.runs[0]).history[-1].step}"]
    assert found(resumed.runs[0]).history == found(straight.runs[0]).history


def test_resume_with_nothing_to_resume(config: Made) -> None:
    with pytest.raises(ConfigError, match=r"nothing to resume: there is no .*seed-0.run/checkpoint"):
        train_several(config(), seeds=[0, 1], resume=True)


def test_ctrl_c_outside_the_steps_says_how_to_go_on_where_something_was_saved(config: Made) -> None:
    class Pressed(Callback):
        def __init__(self, number: int) -> None:
            self.wanted, self.number = number, 0

        def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
            self.number = number

        def on_train_begin(self, state: RunState) -> None:
            if self.number == self.wanted:
                raise KeyboardInterrupt

    made = config(fit__epochs=1)
    with pytest.raises(KeyboardInterrupt) as early:
        train_several(made, seeds=[0, 1], callbacks=[Pressed(1)])
    assert not isinstance(early.value, Interrupted)
    message = r"run 2 of 2, seed-1: interrupted; the last checkpoint is kept; .* --resume"
    with pytest.raises(Interrupted, match=message):
        train_several(made, seeds=[0, 1], callbacks=[Pressed(2)])
    told = Told()
    train_several(made, seeds=[0, 1], resume=True, callbacks=[told])
    assert told.trained == ["seed-1 from 0"]


def test_ctrl_c_at_the_end_of_a_run_stops_the_set(config: Made) -> None:
    made = config(fit__epochs=1)
    straight = train_several(config("straight", fit__epochs=1), seeds=[0, 1])
    steps = found(straight.runs[0]).history[-1].step
    message = r"^interrupted after run 1 of 2, seed-0; finished runs are kept; .* --resume$"
    with pytest.raises(Interrupted, match=message):
        train_several(made, seeds=[0, 1], callbacks=[StopAt(1, steps)])
    told = Told()
    resumed = train_several(made, seeds=[0, 1], resume=True, callbacks=[told])
    assert told.trained == ["seed-1 from 0"]
    assert [found(run).history for run in resumed.runs] == [found(run).history for run in straight.runs]
    train_several(made, seeds=[0, 1], callbacks=[StopAt(2, steps)])  # too late for the set


def test_ctrl_c_while_a_model_is_made_stops_the_set_before_its_first_step(config: Made) -> None:
    class Pressed(Told):
        def on_run_begin(self, name: str, number: int, count: int, finished: bool) -> None:
            super().on_run_begin(name, number, count, finished)
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)

    told = Pressed()
    with pytest.raises(Interrupted, match=r"run 2 of 2, seed-1: interrupted; the last checkpoint is kept"):
        train_several(config(fit__epochs=1), seeds=[0, 1], callbacks=[told])
    assert told.trained == ["seed-0 from 0"]


# --------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({}, "nothing to vary: got no list, expected seeds, learning_rates or head_learning_rates"),
        ({"seeds": []}, r"seeds: got \[\], expected one value or more"),
        ({"seeds": [1, 1]}, r"seeds: got \[1, 1\], expected one value or more, without repetition"),
        ({"seeds": [0, -1]}, "fit.seed: got -1, expected greater than or equal to 0"),
        ({"prompt_rates": [0.1, 0.0]}, "fit.learning_rate: got 0.0, expected greater than 0"),
        (
            {"seeds": range(13), "head_rates": [0.1, 0.2, 0.3, 0.4, 0.5]},
            "13 seeds x 5 head_learning_rates: got 65 runs, expected at most 64",
        ),
    ],
)
def test_lists_that_make_no_set_are_refused(config: Made, lists: dict[str, Any], said: str) -> None:
    made = config()
    with pytest.raises(ConfigError, match=said):
        train_several(made, **lists)
    assert not made.run_folder.exists()


def test_rates_of_a_frozen_head_are_refused(config: Made) -> None:
    made = config(prompt__train_head=False, fit__head_rate=None)
    with pytest.raises(ConfigError, match="head_learning_rates: the head is frozen"):
        train_several(made, head_rates=[0.1, 0.2])


def test_an_output_that_holds_other_things_is_refused_before_any_training(config: Made) -> None:
    made = config()
    for folder in (Path(made.output), run_folder(made, "seed-1")):
        folder.mkdir(parents=True)
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(Exception, match=rf"{folder.name} is not empty and is not an adapter"):
            train_several(made, seeds=[0, 1])
        (folder / "thesis.tex").unlink()
    assert not run_folder(made, "seed-0").exists()
