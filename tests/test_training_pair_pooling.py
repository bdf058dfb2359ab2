"""Whether pairs are read by their similarity or together is measured where nothing says it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from conftest import WORDS
from ptuning import PTuningModel, TrainConfig, adapters, train
from ptuning.model import DeepPrompt
from ptuning.training import head_init, pair_pooling
from ptuning.training.callbacks import Callback
from ptuning.training.head_init import explained
from ptuning.training.interrupt import Interrupted
from ptuning.training.job import make_job
from ptuning.training.plan import Earlier
from ptuning.training.prepare import tokenised
from ptuning.training.run_cache import RunCache
from test_training import StopAfter
from test_training_head_init import alike, scored

Rows = list[dict[str, Any]]


def second(rows: int) -> Rows:
    """Pairs of which the second text alone is asked for: which of two words it holds."""
    draw, found = random.Random(0), []
    for number in range(rows):
        texts = [draw.sample(WORDS[2:], 4) for _ in range(2)]
        texts[1][draw.randrange(4)] = WORDS[number % 2]
        found.append({"text_a": " ".join(texts[0]), "text_b": " ".join(texts[1]), "label": number % 2})
    return found


def by_chance(rows: int) -> Rows:
    draw = random.Random(1)
    return [{**row, "label": draw.randrange(2)} for row in alike(rows)]


@pytest.fixture
def backbone(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model that says that it was made to be read by the mean."""
    folder = shutil.copytree(tiny_folder, tmp_path / "averaged")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return Path(folder)


@pytest.fixture
def config(backbone: Path, tmp_path: Path, jsonl: Callable[..., Path]) -> Callable[..., TrainConfig]:
    number = count()

    def make(rows: Rows, prompt: dict[str, Any] | None = None, **fit: Any) -> TrainConfig:
        return TrainConfig.checked(
            {
                "data": {"train": str(jsonl(f"{next(number)}.jsonl", rows))},
                "backbone": str(backbone),
                "output": str(tmp_path / "out"),
                "report": False,
                "precision": "fp32",
                "device": "cpu",
                "prompt": {"num_virtual_tokens": 2, **(prompt or {})},
                "fit": {"epochs": 1, **fit},
            }
        )

    return make


class Told(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, message: str) -> None:
        self.said.append(message)


def chosen(config: TrainConfig) -> tuple[str, list[str]]:
    told = Told()
    model = make_job(RunCache(), config, Accelerator(cpu=True), say=told.on_message).model
    assert isinstance(model.prompt_config, DeepPrompt)
    return str(model.prompt_config.pooling), told.said


@pytest.mark.parametrize(
    ("rows", "pooling"),
    [(alike, "similarity"), (scored, "similarity"), (second, "layers"), (by_chance, "layers")],
)
def test_the_rows_say_how_they_are_read(
    rows: Callable[[int], Rows], pooling: str, config: Callable[..., TrainConfig]
) -> None:
    made = config(rows(700))
    found, said = chosen(made)
    assert found == pooling
    assert len(said) == 1
    assert "similarity explains" in said[0]
    assert said[0].endswith(f"prompt.pooling {pooling}")
    assert chosen(made) == (found, said)


def test_rows_that_stand_in_turns_are_not_taken_for_one_class(
    config: Callable[..., TrainConfig], tmp_path: Path, jsonl: Callable[..., Path]
) -> None:
    """Every second row of two thousand would be."""
    rows = alike(4000)
    classes = [[row for row in rows if row["label"] == label][:1000] for label in (0, 1)]
    turns = [row for pair in zip(*classes, strict=True) for row in pair]
    made = config(turns)
    data = made.data.model_copy(update={"validation": str(jsonl("held.jsonl", rows[:50]))})
    assert chosen(made.model_copy(update={"data": data}))[0] == "similarity"


def test_too_few_rows_of_a_class_tell_nothing(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is seen by counting them, before the model is run on any."""
    monkeypatch.setattr(head_init, "_features", lambda *given: pytest.fail("the model was run"))
    rows = [row for row in alike(2000) if row["label"] == 0][:600] + [
        row for row in alike(200) if row["label"] == 1
    ][:15]
    pooling, said = chosen(config(rows))
    assert pooling == "similarity"
    assert said == [
        "pairs: too few rows of one class to measure the pooling: prompt.pooling similarity "
        "(layers reads both texts together)"
    ]


def test_rows_of_a_rare_class_are_taken_until_they_tell(config: Callable[..., TrainConfig]) -> None:
    """Of a thousand rows drawn from these, about eleven are of the second class."""
    rows = [row for row in second(9000) if row["label"] == 0][:4000]
    rows += [row for row in second(300) if row["label"] == 1][:45]
    pooling, (said,) = chosen(config(rows))
    assert pooling == "layers"
    assert "both read together" in said


def test_what_a_run_takes_its_reading_takes(config: Callable[..., TrainConfig]) -> None:
    """An offset that the probe had and the run has not would leave no room for the longest text."""
    rows = alike(600)
    rows[0]["text_a"] = " ".join(WORDS[2:5] * 17)  # 51 words: 59 tokens of 64
    for prompt in ({"position_offset": 0}, {"first_layer": 1}):
        made = config(rows, {"num_virtual_tokens": 6, **prompt})
        data = made.data.model_copy(update={"too_long": "error"})
        assert chosen(made.model_copy(update={"data": data}))[0] == "similarity"


def test_a_resumed_run_has_the_reading_that_it_began_with(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(alike(600), epochs=3, prompt_rate=0.01, head_rate=0.001)
    with pytest.raises(Interrupted):
        train(made, callbacks=[StopAfter(20)])
    monkeypatch.setattr(pair_pooling, "explained", lambda model, split: pytest.fail("measured again"))
    train(made, resume=True)
    assert adapters.load(made.output).prompt["pooling"] == "similarity"


def test_nothing_is_measured_where_nothing_is_open(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(pair_pooling, "explained", never)
    few, many = second(400), second(600)
    three = [{**row, "label": number % 3} for number, row in enumerate(many)]
    single = [{"text": row["text_b"], "label": row["label"]} for row in many]
    for made, pooling in (
        (config(few), "similarity"),
        (config(many, {"pooling": "mean"}), "mean"),
        (config(three), "layers"),
        (config(single), "layers"),
    ):
        assert chosen(made) == (pooling, [])
    with pytest.raises(AssertionError, match="measured"):
        chosen(config(many))


def test_a_choice_is_measured_once_for_runs_that_share_it(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search's trials have first layers of their own, and one reading."""
    measured: list[PTuningModel] = []

    def counted(model: PTuningModel, split: Any) -> float:
        measured.append(model)
        return float(len(measured))

    monkeypatch.setattr(pair_pooling, "explained", counted)
    cache, made = RunCache(), config(alike(600))
    for layer in (0, 1, 2):
        make_job(cache, made, Accelerator(cpu=True), Earlier(found={"first_layer": layer}))
    assert len(measured) == 2
    other = made.model_copy(update={"fit": made.fit.model_copy(update={"seed": 1})})
    make_job(cache, other, Accelerator(cpu=True))
    assert len(measured) == 4


def test_a_measured_run_is_the_run_with_that_choice(config: Callable[..., TrainConfig]) -> None:
    """To the bit: what was measured leaves nothing behind, neither in the model nor in what is drawn."""
    rows, found = alike(600), []
    for prompt in ({}, {"pooling": "similarity"}):
        made = config(rows, prompt)
        train(made)
        found.append(adapters.load(made.output))
        shutil.rmtree(made.output)
    assert found[0].prompt["pooling"] == "similarity"
    assert np.array_equal(found[0].prompt_tensor.numpy(), found[1].prompt_tensor.numpy())


@pytest.mark.parametrize("rows", [alike, scored])
def test_what_is_explained_is_a_share_of_the_constant_answers_loss(
    rows: Callable[[int], Rows], config: Callable[..., TrainConfig]
) -> None:
    job = make_job(RunCache(), config(rows(400)), Accelerator(cpu=True))
    model, split = job.model, tokenised(job.model, job.examples.train)
    share = explained(model, split)
    assert share is not None
    assert 0.05 < share < 1
    shuffled = type(split)(rows=split.rows, targets=np.random.default_rng(0).permutation(split.targets))
    left = explained(model, shuffled)
    assert left is not None
    assert left < 0.02
    one = type(split)(rows=split.rows, targets=np.zeros_like(split.targets))
    assert explained(model, one) is None
    order = np.argsort(split.targets)
    by_label = type(split)(rows=[split.rows[i] for i in order], targets=split.targets[order])
    assert explained(model, by_label) == pytest.approx(share, abs=0.1)
