"""Training: it learns, it resumes to the bit, it stops cleanly, it never hides a number that is not one."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptuning import (
    DeepPrompt,
    FitConfig,
    InputPrompt,
    PTuningModel,
    Task,
    TrainConfig,
    TrainResult,
    adapters,
    fit,
    train,
)
from ptuning.errors import ConfigError, DataError, TrainingDiverged
from ptuning.model import EmbeddingEncoder, LSTMEncoder, MLPEncoder
from ptuning.training import checkpoint, trainer
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.interrupt import Interrupted
from ptuning.training.metrics import measure, standard_error
from ptuning.training.prepare import public_name
from ptuning.training.records import Evaluation
from ptuning.training.trainer import Trainer

Rows = Callable[..., list[dict[str, Any]]]
Files = Callable[..., Path]


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Files) -> Callable[..., TrainConfig]:
    """A configuration of a small run that learns; dotted options change it."""
    data = {"train": str(jsonl("train.jsonl", rows(96))), "test": str(jsonl("test.jsonl", rows(40, seed=1)))}

    def make(**options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.25},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / "out"),
            "report": False,
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 4, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2},
        }
        for key, value in options.items():
            place = values
            *above, last = key.split("__")
            for part in above:
                place = place.setdefault(part, {})
            place[last] = value
        return TrainConfig.checked(values)

    return make


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    adapter = adapters.load(folder)
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class StopAfter(Callback):
    """Presses Ctrl-C when step ``step`` is done."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class DivergeAfter(Callback):
    """Has the run end as one does whose loss is no number, after step ``step``."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.at:
            raise TrainingDiverged("the loss is no number")


class FailAfter(Callback):
    """Has the run end as one does that is killed, after step ``step``."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.at:
            raise RuntimeError("the power failed")


def test_it_learns_and_the_result_says_everything(config: Callable[..., TrainConfig]) -> None:
    made = config(fit__epochs=8)
    result = train(made)
    assert result.metrics["test"]["accuracy"] > 0.9
    assert result.beats_baseline
    assert result.advice is None
    assert result.baseline["test"]["accuracy"] == pytest.approx(0.5)
    assert result.best in result.history
    assert len(result.history) == 8
    assert result.setting["rows"] == {"train": 72, "validation": 24, "test": 40}
    assert result.setting["rates"] == {"prompt": 3e-2, "head": 3e-2}
    loaded = PTuningModel.from_pretrained(made.output)
    assert loaded.task.labels == ("negative", "positive")
    found = json.loads((made.run_folder / "result.json").read_text())
    assert found["metrics"]["test"] == pytest.approx(dict(result.metrics["test"]))


def test_the_adapter_keeps_what_it_was_trained_on_without_local_folders(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files, tmp_path: Path
) -> None:
    made = config(fit__epochs=1)
    train(made)
    extra = adapters.load(made.output).extra
    assert extra["data"] == {
        "train": {"source": "train.jsonl", "rows": 72},
        "validation": {"source": "split off", "rows": 24},
        "test": {"source": "test.jsonl", "rows": 40},
    }
    assert extra["rates"] == {"prompt": 3e-2, "head": 3e-2}
    assert str(tmp_path) not in (Path(made.output) / "ptuning.json").read_text().replace(made.backbone, "")
    held = {"data__validation": str(jsonl("held.jsonl", rows(16, seed=2))), "data__validation_fraction": 0.1}
    given = config(fit__epochs=1, **held)
    train(given)
    data = adapters.load(given.output).extra["data"]
    assert data["validation"] == {"source": "held.jsonl", "rows": 16}
    assert data["train"] == {"source": "train.jsonl", "rows": 96}


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("hf:nyu-mll/glue/mrpc:train", "hf:nyu-mll/glue/mrpc:train"),
        ("hf:/home/me/films:train", "films:train"),
        ("/home/me/film.csv", "film.csv"),
        ("C:\\Users\\me\\film.csv", "film.csv"),
        ("the rows", "the rows"),
        ("standard input", "standard input"),
    ],
)
def test_a_source_is_named_without_the_folders_above_it(source: str, public: str) -> None:
    assert public_name(source) == public


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The task's parameters at every evaluation of the runs to come."""
    found: list[dict[str, torch.Tensor]] = []
    evaluate = Trainer._evaluate

    def watched(self: Trainer) -> None:
        evaluate(self)
        found.append(checkpoint.snapshot(self.model))

    monkeypatch.setattr(Trainer, "_evaluate", watched)
    return found


def by_accuracy(found: Evaluation) -> tuple[float, float]:
    return found.metrics["accuracy"], -found.metrics["loss"]


def kept(made: TrainConfig) -> dict[str, torch.Tensor]:
    return checkpoint.snapshot(PTuningModel.from_pretrained(made.output))


def test_the_best_evaluation_is_what_is_kept(
    config: Callable[..., TrainConfig], looks: list[dict[str, torch.Tensor]]
) -> None:
    made = config(fit__epochs=6, fit__average_checkpoints=1)
    result = train(made)
    assert result.best == max(result.history, key=by_accuracy)
    assert result.metrics["validation"] == pytest.approx(result.best.metrics)
    assert result.averaged == (result.best,)
    assert result.kept == f"the checkpoint of epoch {result.best.epoch:g}"
    torch.testing.assert_close(kept(made), looks[result.history.index(result.best)])


def test_the_best_is_kept_where_the_last_is_another(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, looks: list[dict[str, torch.Tensor]]
) -> None:
    evaluate, calls = trainer.evaluate, [0]

    def ever_worse(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        return {**evaluate(*given, **named), "accuracy": 1 / calls[0]}

    monkeypatch.setattr(trainer, "evaluate", ever_worse)
    made = config(fit__epochs=3, fit__average_checkpoints=1)
    result = train(made)
    assert result.best == result.history[0]
    torch.testing.assert_close(kept(made), looks[0])
    assert not torch.allclose(looks[0]["prompt_encoder.weight"], looks[-1]["prompt_encoder.weight"])


def test_the_mean_of_the_best_evaluations_is_kept(
    config: Callable[..., TrainConfig], looks: list[dict[str, torch.Tensor]]
) -> None:
    made = config(fit__epochs=8)
    result = train(made)
    ranked = sorted(result.history, key=by_accuracy, reverse=True)
    error = standard_error("accuracy", result.best.metrics["accuracy"], 24)
    close = [
        each for each in ranked[:3] if each.metrics["accuracy"] >= result.best.metrics["accuracy"] - error
    ]
    assert result.averaged == tuple(sorted(close, key=lambda found: found.step))
    assert len(close) > 1
    mean = checkpoint.mean([looks[result.history.index(each)] for each in close])
    torch.testing.assert_close(kept(made), mean)
    assert result.metrics["validation"]["accuracy"] >= result.best.metrics["accuracy"] - error
    one, *_, last = (f"{each.epoch:g}" for each in result.averaged)
    assert result.kept.startswith(f"the mean of the checkpoints of epochs {one}")
    assert result.kept.endswith(f" and {last}")
    assert TrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_mean_that_is_worse_than_the_best_is_not_kept(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, looks: list[dict[str, torch.Tensor]]
) -> None:
    spoilt = checkpoint.mean

    def far_off(found: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: -100 * value for name, value in spoilt(found).items()}

    monkeypatch.setattr(checkpoint, "mean", far_off)
    made = config(fit__epochs=8)
    result = train(made)
    assert result.averaged == (result.best,)
    assert result.metrics["validation"] == pytest.approx(result.best.metrics)
    torch.testing.assert_close(kept(made), looks[result.history.index(result.best)])


def test_the_same_seed_gives_the_same_numbers_and_another_others(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    first = train(config(output=str(tmp_path / "a")))
    again = train(config(output=str(tmp_path / "b")))
    other = train(config(output=str(tmp_path / "c"), fit__seed=1))
    assert same(tmp_path / "a", tmp_path / "b")
    assert [each.metrics for each in first.history] == [each.metrics for each in again.history]
    assert not same(tmp_path / "a", tmp_path / "c")
    assert other.history != first.history


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (5, {}),
        (9, {}),  # exactly at an epoch's end
        (14, {"fit__accumulation": 2, "fit__epochs": 4}),
        (7, {"fit__evaluate_every": 4}),
        (11, {"prompt": {"depth": "input", "placement": "front", "num_virtual_tokens": 4,
                         "encoder": {"kind": "lstm", "num_layers": 2, "dropout": 0.5}}}),
        (6, {"prompt__encoder": {"kind": "mlp", "dropout": 0.3}, "fit__schedule": "cosine"}),
        (6, {"fit__backbone_dropout": True}),
    ],
    ids=["mid-epoch", "epoch-end", "accumulation", "every-4", "lstm-dropout", "deep-mlp-cosine", "dropout"],
)  # fmt: skip
def test_a_resumed_run_is_the_straight_run_to_the_bit(
    config: Callable[..., TrainConfig], tmp_path: Path, step: int, options: dict[str, Any]
) -> None:
    options = {"fit__epochs": 2, **options}
    straight = train(config(output=str(tmp_path / "straight"), **options))
    broken = config(output=str(tmp_path / "broken"), **options)
    with pytest.raises(Interrupted, match=rf"interrupted at step {step} of \d+ and saved; .* --resume"):
        train(broken, callbacks=[StopAfter(step)])
    assert not Path(broken.output).exists()
    torch.manual_seed(12345)  # whatever happened in between
    resumed = train(broken, resume=True)
    assert same(tmp_path / "straight", tmp_path / "broken")
    assert resumed.history == straight.history
    assert resumed.averaged == straight.averaged
    assert resumed.metrics == straight.metrics


def test_the_checkpoint_of_an_interrupted_run_is_a_usable_adapter(config: Callable[..., TrainConfig]) -> None:
    made = config()
    with pytest.raises(Interrupted):
        train(made, callbacks=[StopAfter(20)])
    model = PTuningModel.from_pretrained(made.run_folder / "checkpoint")
    assert model.task.labels == ("negative", "positive")
    names = {file.suffix for file in (made.run_folder / "checkpoint").rglob("*") if file.is_file()}
    assert names == {".json", ".safetensors", ".md"}  # nothing that would have to be unpickled


def test_resume_refuses_another_configuration_and_other_data(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files
) -> None:
    with pytest.raises(Interrupted):
        train(config(), callbacks=[StopAfter(3)])
    with pytest.raises(ConfigError, match=r"^cannot resume with another fit.learning_rate: ") as caught:
        train(config(fit__prompt_rate=0.5), resume=True)
    assert (caught.value.got, caught.value.expected) == ("0.5", "0.03, as when the run started")
    assert "use the same configuration, or start again with --restart" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="cannot resume: the data has changed"):
        train(config(data__train=str(jsonl("other.jsonl", rows(80)))), resume=True)
    with pytest.raises(ConfigError, match="cannot resume with another prompt"):
        train(config(prompt__num_virtual_tokens=5), resume=True)


OTHER_MODELS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"num_virtual_tokens": 5}, "prompt.num_virtual_tokens", "4", "5"),
    ({"num_virtual_units": 2}, "prompt.num_virtual_units", "0", "2"),
    ({"position_offset": 0}, "prompt.position_offset", "4", "0"),
    ({"pooling": "mean"}, "prompt.pooling", "'native'", "'mean'"),
    ({"class_weights": (1.0, 2.0)}, "class_weights", "None", "[1.0, 2.0]"),
    ({"dtype": torch.bfloat16}, "precision", "'torch.float32'", "'torch.bfloat16'"),
    ({"rate_scales": (30.0, 10.0)}, "rate_scales", "[1.0, 1.0]", "[30.0, 10.0]"),
]


def test_fit_resumes_the_model_that_the_run_began_with_and_no_other(
    rows: Rows, tiny_folder: Path, tmp_path: Path
) -> None:
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    config = FitConfig(epochs=2, batch_size=8, prompt_rate=3e-2, head_rate=3e-2)

    def run(
        output: str,
        *,
        dtype: torch.dtype = torch.float32,
        class_weights: tuple[float, ...] | None = None,
        rate_scales: tuple[float, float] = (1.0, 1.0),
        callbacks: Sequence[Callback] = (),
        resume: bool = False,
        **prompt: Any,
    ) -> TrainResult:
        torch.manual_seed(0)
        prompt = {"num_virtual_tokens": 4, **prompt}
        model = PTuningModel.from_backbone(
            str(tiny_folder), DeepPrompt(**prompt), task=task, dtype=dtype, class_weights=class_weights
        )
        model.scale_learning_rates(*rate_scales)
        return fit(
            model, {"train": rows(64)}, config, output=tmp_path / output, callbacks=callbacks, resume=resume
        )

    with pytest.raises(Interrupted):
        run("broken", callbacks=[StopAfter(3)])
    for changed, option, then, now in OTHER_MODELS:
        with pytest.raises(ConfigError, match=f"^cannot resume with another {option}: ") as caught:
            run("broken", resume=True, **changed)
        assert (caught.value.got, caught.value.expected) == (now, f"{then}, as when the run started")
    assert run("broken", resume=True).history == run("straight").history


@pytest.mark.parametrize(
    "file", ["resume/state.safetensors", "resume/state.json", "adapter_model.safetensors"]
)
def test_resume_refuses_an_altered_checkpoint(config: Callable[..., TrainConfig], file: str) -> None:
    made = config()
    with pytest.raises(Interrupted):
        train(made, callbacks=[StopAfter(3)])
    path = made.run_folder / "checkpoint" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(adapters_error(), match=Path(file).name):
        train(made, resume=True)


def test_a_checkpoint_without_its_best_evaluations_is_refused(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those were before there were several."""
    made = config()
    with pytest.raises(Interrupted):
        train(made, callbacks=[StopAfter(12)])
    read = checkpoint.load_file
    monkeypatch.setattr(
        checkpoint,
        "load_file",
        lambda file: {name: value for name, value in read(file).items() if not name.startswith("kept.")},
    )
    with pytest.raises(adapters_error(), match=r"cannot resume from .*: another version wrote it.*without"):
        train(made, resume=True)


def adapters_error() -> type[Exception]:
    from ptuning.errors import AdapterError

    return AdapterError


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config()
    real, calls = PTuningModel.loss, []

    def poisoned(self: PTuningModel, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found = real(self, logits, labels)
        calls.append(1)
        return found * math.nan if self.training and len(calls) > 15 else found

    monkeypatch.setattr(PTuningModel, "loss", poisoned)
    with pytest.raises(
        TrainingDiverged, match=r"diverged at step \d+ of 36: got loss nan, .* kept in .*checkpoint.*lower"
    ):
        train(made)
    kept = tensors(made.run_folder / "checkpoint")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert not Path(made.output).exists()


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resumed"])
def test_a_run_that_diverged_may_be_begun_anew_at_other_rates_and_gone_on_from_at_its_own(
    config: Callable[..., TrainConfig], resume: bool
) -> None:
    with pytest.raises(TrainingDiverged):
        train(config(), callbacks=[DivergeAfter(15)])
    assert (config().run_folder / "checkpoint").exists()
    result = json.loads((config().run_folder / "result.json").read_text())
    assert result == {"diverged": "the loss is no number"}
    found = train(config(**({} if resume else {"fit__prompt_rate": 3e-3})), resume=resume)
    assert found.setting["rates"]["prompt"] == (3e-2 if resume else 3e-3)
    assert json.loads((config().run_folder / "result.json").read_text())["history"]


def test_a_run_that_diverged_and_is_gone_on_from_is_unfinished_until_its_end(
    config: Callable[..., TrainConfig],
) -> None:
    with pytest.raises(TrainingDiverged):
        train(config(), callbacks=[DivergeAfter(15)])
    with pytest.raises(RuntimeError, match="the power failed"):
        train(config(), resume=True, callbacks=[FailAfter(20)])
    with pytest.raises(ConfigError, match="has an unfinished run"):
        train(config())
    assert train(config(), resume=True).beats_baseline


def test_a_gradient_that_is_not_finite_stops_the_run(config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(TrainingDiverged, match=r"gradient norm (inf|nan)"):
        train(config(fit__prompt_rate=1e30, fit__head_rate=1e30, fit__warmup=0.0))


def test_a_run_that_fails_before_its_first_checkpoint_leaves_none_of_the_run_before(
    config: Callable[..., TrainConfig],
) -> None:
    train(config())
    with pytest.raises(TrainingDiverged, match="no checkpoint was written"):
        train(config(fit__prompt_rate=1e30, fit__warmup=0.0))
    assert not (config().run_folder / "checkpoint").exists()
    with pytest.raises(ConfigError, match="nothing to resume"):
        train(config(), resume=True)
    train(config())


def test_a_run_that_learns_nothing_says_so(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files
) -> None:
    noise = [{**row, "label": "positive" if i % 4 else "negative"} for i, row in enumerate(rows(96, seed=3))]
    result = train(
        config(data__train=str(jsonl("noise.jsonl", noise)), fit__prompt_rate=1e-9, fit__head_rate=1e-9)
    )
    assert not result.beats_baseline
    assert result.advice is not None
    assert result.advice.startswith("NOT LEARNED: on the validation rows the best accuracy is 0.")
    assert "fit.learning_rate" in result.advice


def test_patience_stops_early(config: Callable[..., TrainConfig]) -> None:
    made = config(fit__epochs=50, fit__patience=2, fit__prompt_rate=1e-7, fit__head_rate=1e-7)
    result = train(made)
    assert result.stopped_early
    assert len(result.history) < 50
    again = train(made, resume=True)  # as after Ctrl-C while the best is put together
    assert again.stopped_early
    assert again.history == result.history
    assert again.metrics == result.metrics


def test_only_the_task_changes(config: Callable[..., TrainConfig], tiny_folder: Path) -> None:
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    fit(model, {"train": config().data.train}, FitConfig(epochs=2))
    after = model.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fit_takes_datasets_lists_and_files(rows: Rows, jsonl: Files, tiny_folder: Path) -> None:
    from datasets import Dataset

    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    histories = []
    for source in (rows(64), Dataset.from_list(rows(64)), str(jsonl("x.jsonl", rows(64)))):
        torch.manual_seed(0)
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)
        histories.append(fit(model, {"train": source}, FitConfig(epochs=1)).history)
    assert histories[0] == histories[1] == histories[2]


def test_fit_refuses_what_it_does_not_know(rows: Rows, tiny_folder: Path) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), num_labels=2)
    with pytest.raises(ConfigError, match="a split 'valid', expected train, validation and test"):
        fit(model, {"train": rows(8), "valid": rows(8)})
    with pytest.raises(ConfigError, match="no split 'train'"):
        fit(model, {"test": rows(8)})
    with pytest.raises(
        DataError, match=r"labels: got .* strings .*, because the model was created with num_labels=2"
    ):
        fit(model, {"train": [*rows(8), {"text": "so so", "label": "mixed"}]})
    with pytest.raises(ConfigError, match=r"columns\.txt: unknown option"):
        fit(model, {"train": rows(8)}, columns={"txt": "text"})
    for name, value, where in (
        ("test", "more.csv", "data"),
        ("max_length", 12, "the model's task"),
        ("problem_type", "regression", "the model's task"),
    ):
        with pytest.raises(ConfigError, match=r"^columns: got ") as caught:
            fit(model, {"train": rows(8)}, columns={name: value})
        assert (caught.value.got, caught.value.expected) == (repr(name), f"it in {where}")


def test_one_label_a_row_or_none_is_measured_by_that_label() -> None:
    """The F1 of "has it"; nothing found is nothing, however many rows have it not."""
    one = Task(problem_type="multi_label_classification", labels=("urgent",))
    two = Task(problem_type="multi_label_classification", labels=("urgent", "never"))
    truth = np.array([[1.0]] * 2 + [[0.0]] * 8)
    for said in ([-1.0] * 10, [1.0, -1.0, 1.0] + [-1.0] * 7):
        logits = np.array(said)[:, None]
        found = measure(logits, truth, one)
        wide = measure(np.hstack([logits, -np.ones_like(logits)]), np.hstack([truth, truth * 0]), two)
        assert found["f1_micro"] == found["f1_macro"] == wide["f1_micro"]
    assert found["f1_micro"] == 0.5


@pytest.mark.parametrize(
    "prompt",
    [
        DeepPrompt(num_virtual_tokens=4, first_layer=1),
        DeepPrompt(num_virtual_tokens=4, position_offset=4),
        InputPrompt(num_virtual_tokens=4, placement="between", encoder=EmbeddingEncoder()),
        InputPrompt(num_virtual_tokens=4, placement="start", encoder=MLPEncoder(width=16)),
        InputPrompt(placement="{prompt:2} {text_a} film {prompt:2} {text_b}", encoder=LSTMEncoder(width=8)),
    ],
    ids=["deep-upper", "deep-offset", "between", "start-mlp", "template-lstm"],
)
def test_save_load_is_exact_for_every_kind_of_prompt(
    prompt: Any, tiny_folder: Path, tmp_path: Path, rows: Rows
) -> None:
    pairs = [{"text": row["text"], "text_b": "good film", "label": row["label"]} for row in rows(32)]
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"), pair=True)
    model = PTuningModel.from_backbone(str(tiny_folder), prompt, task=task)
    fit(model, {"train": pairs}, FitConfig(epochs=1))
    model.save_pretrained(tmp_path / "adapter")
    loaded = PTuningModel.from_pretrained(tmp_path / "adapter").eval()
    from ptuning import Predictor

    texts = [(row["text"], row["text_b"]) for row in pairs]
    assert Predictor(model=model)(texts) == Predictor(model=loaded)(texts)
    loaded.save_pretrained(tmp_path / "again")
    assert same(tmp_path / "adapter", tmp_path / "again")
    assert adapters.load(tmp_path / "again").prompt == adapters.load(tmp_path / "adapter").prompt


def test_regression_standardises_and_undoes_it(tiny_folder: Path, rows: Rows, tmp_path: Path) -> None:
    scored = [{"text": row["text"], "label": 100.0 + 7.5 * (row["label"] == "positive")} for row in rows(96)]
    file = tmp_path / "scored.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in scored))
    made = TrainConfig.checked(
        {
            "data": {"train": str(file), "problem_type": "regression"},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / "out"),
            "report": False,
            "precision": "fp32",
            "prompt": {"num_virtual_tokens": 4},
            "fit": {"epochs": 12, "batch_size": 8, "prompt_rate": 3e-2, "head_rate": 3e-2},
        }
    )
    result = train(made)
    assert result.metrics["validation"]["pearson"] > 0.9
    model = PTuningModel.from_pretrained(made.output)
    assert model.task.mean == pytest.approx(103.75, abs=0.5)
    assert model.task.scale == pytest.approx(3.75, abs=0.1)
    from ptuning import Predictor

    low, high = Predictor(model=model)(["the bad film", "the good film"])
    assert low.label < 102 < 105 < high.label


class Told(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, message: str) -> None:
        self.said.append(message)


def test_validation_rows_without_a_correlation_select_by_the_loss(
    tiny_folder: Path, rows: Rows, tmp_path: Path
) -> None:
    scored = [{"text": row["text"], "label": float(row["label"] == "positive")} for row in rows(64)]
    data = {"train": scored, "validation": [{"text": "the good film", "label": 1.0}] * 2}
    config = FitConfig(epochs=6, batch_size=8, prompt_rate=3e-2, head_rate=3e-2)
    told = Told()
    task = Task(problem_type="regression", mean=0.5, scale=0.5)

    def model() -> PTuningModel:
        torch.manual_seed(0)
        return PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)

    result = fit(model(), data, config, callbacks=[told])
    note = "the validation rows leave pearson undefined (it needs scores that differ): the loss selects the"
    assert [message for message in told.said if message.startswith(note)] == [result.setting["select_by"]]
    assert result.metric == "loss"
    assert "pearson" not in result.baseline["validation"]
    assert result.baseline["validation"]["loss"] == pytest.approx(1.0, rel=0.1)
    assert result.best == min(result.history, key=lambda each: each.metrics["loss"])
    assert result.beats_baseline
    assert "NOT LEARNED" not in str(result.advice)
    with pytest.raises(
        ConfigError, match=r"^fit.select_by: .* leave spearman undefined, .* or select by loss$"
    ):
        fit(model(), data, config.model_copy(update={"select_by": "spearman"}))
    usual = fit(model(), {"train": scored}, config, callbacks=[(told := Told())])
    assert (usual.metric, usual.setting["select_by"]) == ("pearson", None)
    assert not any("undefined" in message for message in told.said)


def test_validation_rows_of_one_class_have_no_auc_to_select_by(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files
) -> None:
    one = str(jsonl("one.jsonl", [row for row in rows(24, seed=2) if row["label"] == "positive"]))
    with pytest.raises(ConfigError, match="validation rows leave auc undefined, expected rows of every"):
        train(config(data__validation=one, data__validation_fraction=0.1, fit__select_by="auc"))
    assert not config().run_folder.exists()


def test_validation_rows_of_one_class_select_by_the_loss(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files
) -> None:
    """Always its most frequent label is right for all of them: no accuracy could beat that."""
    most = [row for row in rows(80, seed=1) if row["label"] == "negative"]
    few = [row for row in rows(24, seed=2) if row["label"] == "positive"]
    files = {
        "data__train": str(jsonl("most.jsonl", most + few)),
        "data__validation": str(
            jsonl("one.jsonl", [r for r in rows(24, seed=3) if r["label"] == "negative"])
        ),
        "data__validation_fraction": 0.1,
        "fit__epochs": 12,
    }
    told = Told()
    result = train(config(**files), callbacks=[told])
    note = "a constant answer is right for every validation row, so accuracy cannot compare models (it needs"
    assert any(message.startswith(note) for message in told.said)
    assert result.metric == "loss"
    assert result.learned
    assert set(result.metrics["validation"]) == {"loss", "accuracy"}
    for name, said in (
        ("accuracy", "right for every validation row"),
        ("f1", "leave f1 undefined, expected"),
    ):
        with pytest.raises(ConfigError, match=rf"^fit.select_by: .*{said}.*or select by loss$"):
            train(config(**files, fit__select_by=name), restart=True)


def test_texts_that_are_cut_are_said(tiny_folder: Path, rows: Rows, jsonl: Files, tmp_path: Path) -> None:
    long = [{**row, "text": " ".join([row["text"]] * (40 if i < 7 else 1))} for i, row in enumerate(rows(24))]

    def said(**options: Any) -> list[str]:
        told = Told()
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), num_labels=2)
        model.set_task(replace(model.task, labels=("negative", "positive")))
        fit(model, {"train": long, "validation": rows(6)}, FitConfig(epochs=1), callbacks=[told], **options)
        return [message for message in told.said if "training rows have the maximum" in message]

    (message,) = said()
    assert re.fullmatch(
        r"7 of 24 training rows have the maximum of \d+ tokens; longer texts are cut .*", message
    )
    with pytest.raises(DataError, match="at most"):
        said(columns={"too_long": "error"})
    del long[:7]
    assert not said()


def test_several_labels_at_once(tiny_folder: Path, rows: Rows, tmp_path: Path) -> None:
    many = [
        {
            "text": f"{row['text']} {'red' if i % 3 else 'blue'}",
            "labels": [row["label"], *(["red"] if i % 3 else [])],
        }
        for i, row in enumerate(rows(120))
    ]
    task = Task(problem_type="multi_label_classification", labels=("negative", "positive", "red"))
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)
    result = fit(
        model,
        {"train": many},
        FitConfig(epochs=10, batch_size=8, prompt_rate=3e-2, head_rate=3e-2, class_weights="balanced"),
    )
    assert result.metrics["validation"]["f1_micro"] > 0.9
    from ptuning import Predictor

    (found,) = Predictor(model=model)("the good red film")
    assert set(found.label) == {"positive", "red"}  # type: ignore[arg-type]


def test_balanced_class_weights_are_scikit_learns(tiny_folder: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    from ptuning.training.class_weights import class_weights

    targets = np.array([0.0] * 30 + [1.0] * 10 + [2.0] * 5)
    task = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
    found = class_weights(FitConfig(class_weights="balanced"), targets, task)
    assert found == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=targets))


def test_the_test_set_is_never_selected_on(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files, tmp_path: Path
) -> None:
    flipped = [
        {**row, "label": {"positive": "negative", "negative": "positive"}[row["label"]]}
        for row in rows(40, seed=1)
    ]
    one = train(config(output=str(tmp_path / "a")))
    other = train(config(output=str(tmp_path / "b"), data__test=str(jsonl("flipped.jsonl", flipped))))
    assert same(tmp_path / "a", tmp_path / "b")
    assert one.history == other.history
    assert one.metrics["test"]["accuracy"] == pytest.approx(1 - other.metrics["test"]["accuracy"])


def test_an_output_that_is_not_ours_is_refused_before_training(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    mine = tmp_path / "out"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(Exception, match="out") as caught:
        train(config())
    assert "thesis" in str(caught.value) or "not" in str(caught.value)
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_too_long_can_be_refused_and_names_the_row(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files
) -> None:
    long = [*rows(30), {"text": "film " * 80, "label": "positive"}]
    file = str(jsonl("long.jsonl", long))
    with pytest.raises(DataError, match=r"long.jsonl, line 31: got 82 tokens, expected at most 60"):
        train(config(data__train=file, data__too_long="error"))
    assert isinstance(train(config(data__train=file, fit__epochs=1)), TrainResult)


def test_accumulating_two_batches_is_one_batch_of_their_rows(tiny_folder: Path, rows: Rows) -> None:
    """One step's gradient: mean over all rows of the group, whatever the batches' sizes. A first step of Adam
    hardly shows how they are weighted; the losses and the steps after it do."""
    found, losses = [], []
    for size, accumulation in ((24, 1), (9, 3)):
        torch.manual_seed(0)
        task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)
        config = FitConfig(
            epochs=4, batch_size=size, accumulation=accumulation, prompt_rate=1e-3, head_rate=1e-3
        )
        result = fit(model, {"train": rows(24), "validation": rows(8)}, config)
        losses.append([each.train_loss for each in result.history])
        found.append({name: value.detach().clone() for name, value in model.task_parameters().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_gradients_are_clipped(tiny_folder: Path, rows: Rows) -> None:
    """To a norm that Adam does not scale up again: below its epsilon."""
    moved = []
    for clip in (1e-12, 1.0):
        torch.manual_seed(0)
        model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), num_labels=2)
        before = model.prompt_encoder().detach().clone()
        fit(model, {"train": rows(32)}, FitConfig(epochs=1, batch_size=8, prompt_rate=3e-2, clip=clip))
        moved.append(float((model.prompt_encoder().detach() - before).abs().max()))
    assert moved[0] < 1e-4 < 1e-2 < moved[1]


def test_evaluation_reports_progress(config: Callable[..., TrainConfig]) -> None:
    class Recorder(Callback):
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.found: list[tuple[Evaluation, str, bool]] = []

        def on_step_end(self, state: RunState) -> None:
            assert state.loss is not None
            assert state.loss > 0
            assert state.examples_per_second > 0
            self.steps.append(state.step)

        def on_evaluate(self, state: RunState) -> None:
            self.found.append((state.history[-1], state.metric, state.is_best))

    recorder = Recorder()
    train(config(fit__epochs=2), callbacks=[recorder])
    assert recorder.steps == list(range(1, 19))
    assert [found.step for found, _, _ in recorder.found] == [9, 18]
    assert recorder.found[0][1:] == ("accuracy", True)


def test_rates_rise_and_fall_as_configured(config: Callable[..., TrainConfig]) -> None:
    class Rates(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_step_end(self, state: RunState) -> None:
            self.seen.append(state.learning_rates["prompt"])

    rates = Rates()
    train(config(fit__warmup=0.25), callbacks=[rates])  # 36 steps, 9 of them warm-up
    assert rates.seen[8] == pytest.approx(3e-2)
    assert rates.seen == sorted(rates.seen[:9]) + sorted(rates.seen[9:], reverse=True)
    assert rates.seen[-1] == pytest.approx(0.0, abs=1e-9)


def test_pairs_make_a_task_of_pairs(tiny_folder: Path) -> None:
    """A model that was made from a number of labels learns from its rows that they have two texts."""
    pairs = [
        {"text_a": "good film", "text_b": word, "label": i % 2} for i, word in enumerate(["bad", "good"] * 6)
    ]
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=2), num_labels=2)
    columns = {"text": "text_a", "text_b": "text_b"}
    fit(model, {"train": pairs, "validation": pairs}, FitConfig(epochs=1), columns=columns)
    assert model.task.pair
    from ptuning import Predictor

    assert len(Predictor(model=model)([("good film", "bad")])) == 1
    single = [{"text": row["text_a"], "label": row["label"]} for row in pairs]
    with pytest.raises(ConfigError, match=r"data.train: got one text per row, expected two, as the task has"):
        fit(model, {"train": single, "validation": single}, FitConfig(epochs=1))


def test_an_unfinished_run_is_not_thrown_away(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Whoever forgets --resume is told, before a night's work is overwritten."""
    run = config(output=str(tmp_path / "a"))
    train(run)
    train(run)  # a finished one may be run again
    (tmp_path / "a.run" / "result.json").unlink()  # as an interrupted one stands there
    with pytest.raises(ConfigError, match=r"a.run has an unfinished run.*--resume"):
        train(run)
    assert (tmp_path / "a.run" / "checkpoint").is_dir()
    train(run, resume=True)
    assert (tmp_path / "a.run" / "result.json").is_file()
