"""Predictions: in order, the same whatever the window and the batch, with labels as they were trained."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import WORDS
from ptuning import (
    DeepPrompt,
    FitConfig,
    InputPrompt,
    Prediction,
    Predictor,
    PTuningModel,
    Task,
    fit,
    pipeline,
)
from ptuning.data import Example
from ptuning.data.tokens import Tokenise
from ptuning.errors import ConfigError, DataError, TrainingDiverged
from ptuning.inference.evaluate import logits_of
from tiny import tiny

SINGLE = Task(problem_type="single_label_classification", labels=("negative", "positive"))
MULTI = Task(problem_type="multi_label_classification", labels=("b", "a", "c"))
SCORE = Task(problem_type="regression", mean=100.0, scale=4.0)

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
many_texts = st.lists(texts, min_size=1, max_size=25)


def perturbed(folder: Path, task: Task, prompt: DeepPrompt | InputPrompt | None = None) -> PTuningModel:
    """A model whose prompt and head are random: answers differ from text to text without any training."""
    torch.manual_seed(1)
    prompt = prompt or DeepPrompt(num_virtual_tokens=4, position_offset=0)
    model = PTuningModel.from_backbone(str(folder), prompt, task=task, dtype=torch.float32)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PTuningModel:
    return perturbed(tiny_folder, SINGLE)


@pytest.fixture(scope="module", params=["deep", "front", "between"])
def any_prompt(tiny_folder: Path, request: pytest.FixtureRequest) -> PTuningModel:
    placed = InputPrompt(num_virtual_tokens=4, placement=request.param) if request.param != "deep" else None
    pair = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    return perturbed(tiny_folder, pair if request.param == "between" else SINGLE, placed)


def close(found: list[Prediction], expected: list[Prediction]) -> None:
    assert [each.row for each in found] == [each.row for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=1e-5)
        first, second = sorted((chance for _, chance in other.probabilities), reverse=True)[:2]
        assert one.label == other.label or first - second < 1e-4  # a tie may fall either way


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_texts=many_texts, window=st.integers(1, 9), batch_size=st.integers(1, 9))
def test_window_and_batch_size_change_nothing(
    any_prompt: PTuningModel, given_texts: list[str], window: int, batch_size: int
) -> None:
    asked: list[Any] = (
        [(text, text[::-1]) for text in given_texts] if any_prompt.task.pair else list(given_texts)
    )
    whole = Predictor(model=any_prompt)(asked)
    assert [each.row for each in whole] == list(range(1, len(asked) + 1))
    close(Predictor(model=any_prompt, window=window, batch_size=batch_size)(asked), whole)


@settings(max_examples=15, deadline=None)
@given(given_texts=many_texts, seed=st.randoms(use_true_random=False))
def test_a_text_gets_its_own_answer_in_any_order(
    model: PTuningModel, given_texts: list[str], seed: Any
) -> None:
    """Rows are sorted by length inside: each answer must come back to the text that it is about."""
    alone = {text: Predictor(model=model)(text)[0] for text in given_texts}
    seed.shuffle(given_texts)
    found = Predictor(model=model)(given_texts)
    for text, each in zip(given_texts, found, strict=True):
        assert dict(each.probabilities) == pytest.approx(dict(alone[text].probabilities), abs=1e-5)


def test_the_model_answers_differently_to_different_texts(model: PTuningModel) -> None:
    """Guards the tests above: a model that always says the same would pass them."""
    found = Predictor(model=model)(["good", "bad awful film", "the the the the red", "two cheap cards"])
    assert len({round(each.probabilities[0][1], 3) for each in found}) == 4


@settings(max_examples=15, deadline=None)
@given(given_texts=many_texts)
def test_probabilities_sum_to_one_and_the_label_is_the_likeliest(
    model: PTuningModel, given_texts: list[str]
) -> None:
    for each in Predictor(model=model)(given_texts):
        chances = dict(each.probabilities)
        assert list(chances) == ["negative", "positive"]  # the task's order
        assert sum(chances.values()) == pytest.approx(1.0, abs=1e-9)
        assert chances[str(each.label)] == max(chances.values())


def test_logits_are_the_models_own(model: PTuningModel) -> None:
    rows = Tokenise.for_model(model)([Example(row=1, text="good film"), Example(row=2, text="bad")])
    found = logits_of(model, rows, batch_size=1)
    assert found.dtype == torch.float32
    for row, logits in zip(rows, found, strict=True):
        with torch.no_grad():
            plain = model(torch.tensor([row.input_ids]), torch.ones(1, len(row), dtype=torch.long)).logits[0]
        torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-6)
    expected = found.double().softmax(1)[:, 1].tolist()
    predicted = Predictor(model=model)(["good film", "bad"])
    assert [dict(each.probabilities)["positive"] for each in predicted] == pytest.approx(expected, abs=1e-6)


def test_predicting_leaves_the_model_in_the_mode_it_was_in(model: PTuningModel) -> None:
    for mode in (True, False):
        model.train(mode)
        Predictor(model=model)("good film")
        assert model.training is mode


@pytest.mark.parametrize("pair", [False, True])
def test_one_text_for_two_and_two_for_one_are_errors_that_name_the_row(tiny_folder: Path, pair: bool) -> None:
    task = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=pair)
    right, wrong = (("good", "bad"), "film") if pair else ("film", ("good", "bad"))
    got = "got one text, expected two texts" if pair else "got two texts, expected one text"
    with pytest.raises(ConfigError, match=f"the rows, row 3: {got}"):
        Predictor(model=perturbed(tiny_folder, task))([right, right, wrong])


@pytest.mark.parametrize(
    ("given_texts", "said"),
    [
        (["a", math.nan], "text 2: got nan, expected a string or a pair of strings"),
        (["a", None], "text 2: got None, expected a string"),
        ([("a",)], r"text 1: got \('a',\), expected a string"),
        ([("a", "b", "c")], r"text 1: got \('a', 'b', 'c'\), expected a string"),
        ([b"a"], "text 1: got b'a', expected a string"),
    ],
)
def test_what_is_no_text_is_named(model: PTuningModel, given_texts: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Predictor(model=model)(given_texts)


@pytest.mark.parametrize(
    ("given_texts", "kind"),
    [
        ({"text": "a good film"}, "dict"),
        (None, "NoneType"),
        (Path("texts.txt"), "PosixPath"),
    ],
)
def test_what_holds_no_texts_is_refused(model: PTuningModel, given_texts: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"texts: got a {kind}, expected a string or a list of strings"):
        Predictor(model=model)(given_texts)
    assert len(Predictor(model=model)(pandas.Series(["a", "b"]))) == 2


def test_threads_do_not_cut_each_others_texts(model: PTuningModel) -> None:
    """Tasks on one backbone share its tokenizer, which remembers how far it last cut."""
    short = PTuningModel(
        model.backbone, model.prompt_config, replace(SINGLE, max_length=4), tokenizer=model.tokenizer
    )
    long = PTuningModel(
        model.backbone, model.prompt_config, replace(SINGLE, max_length=24), tokenizer=model.tokenizer
    )
    rows = [Example(row=1, text=" ".join([WORDS[0]] * 50))]
    wrong: list[int] = []

    def ask(task: PTuningModel, length: int) -> None:
        tokenise = Tokenise.for_model(task)
        wrong.extend(found for _ in range(400) if (found := len(tokenise(rows)[0])) != length)

    threads = [threading.Thread(target=ask, args=args) for args in 2 * [(short, 4), (long, 24)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


NOTHING = "\u200b"
"""A space of no width: not blank to Python, and nothing to many a tokenizer."""


@pytest.mark.parametrize(("placement", "which"), [("front", "first"), ("between", "second")])
def test_a_text_that_leaves_no_token_to_stand_before_is_named(placement: str, which: str) -> None:
    """By its own row: batches are sorted by length, and that row may be another's."""
    pair = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    config = InputPrompt(num_virtual_tokens=4, placement=placement)
    model = PTuningModel.from_backbone("demo", config, task=pair)
    odd = (NOTHING, "bad") if which == "first" else ("bad", NOTHING)
    rows = [("a good film", "a film"), odd, ("good", "film")]
    labelled = [{"text": a, "text_b": b, "label": "no"} for a, b in rows]
    with pytest.raises(DataError, match=f"row 2: the tokenizer leaves no token of the {which} text"):
        Predictor(model=model)(rows)
    with pytest.raises(DataError, match=f"row 2: the tokenizer leaves no token of the {which} text"):
        fit(model, {"train": labelled, "validation": labelled[2:]}, FitConfig(epochs=1))


def test_a_pair_is_answered_by_itself_as_beside_others() -> None:
    """Whatever the tokenizer leaves of its second text."""
    pair = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    model = PTuningModel.from_backbone("demo", DeepPrompt(num_virtual_tokens=4), task=pair)
    assert model.needs_segments  # read by similarity
    odd = ("good film", NOTHING)
    close(Predictor(model=model)([odd]), Predictor(model=model)([odd, ("good", "film")])[:1])


def test_a_row_without_any_token_is_named(tiny_folder: Path) -> None:
    """A tokenizer without special tokens, as many a decoder's is, makes nothing of nothing."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "good": 3, "film": 4}, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace("…", "")
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")
    model = PTuningModel.from_backbone(tiny("gpt2"), num_labels=3, tokenizer=plain)
    assert len(Predictor(model=model)(["good film", "film"])) == 2
    with pytest.raises(DataError, match="row 2: the tokenizer leaves no token; leave the row out"):
        Predictor(model=model)(["good film", "…"])


@pytest.mark.parametrize(
    ("prompt", "can"),
    [
        (InputPrompt(num_virtual_tokens=4), False),
        (InputPrompt(num_virtual_tokens=4, placement="start"), True),
        (DeepPrompt(num_virtual_tokens=4), True),
    ],
)
def test_a_tokenizer_in_python_serves_what_it_can(
    prompt: DeepPrompt | InputPrompt, can: bool, tmp_path: Path
) -> None:
    from transformers import BertJapaneseTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    slow = BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), word_tokenizer_type="basic")
    model = PTuningModel.from_backbone(tiny("bert"), prompt, num_labels=3, tokenizer=slow)
    if can:
        assert len(Predictor(model=model)(["good film", "film"])) == 2
        return
    with pytest.raises(
        ConfigError, match=r"BertJapaneseTokenizer is a slow tokenizer.* set prompt.placement"
    ):
        Predictor(model=model)("good film")
    with pytest.raises(ConfigError, match=r"BertJapaneseTokenizer is a slow tokenizer"):
        pipeline(model)


def test_a_pairs_second_text_counts(tiny_folder: Path) -> None:
    pair = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    one, other = Predictor(model=perturbed(tiny_folder, pair))([("good film", "bad"), ("good film", "good")])
    assert one.probabilities != other.probabilities


def test_several_labels_are_those_above_one_half(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, MULTI)
    rows = Tokenise.for_model(model)(
        [Example(row=n, text=text) for n, text in enumerate(("good", "bad film"))]
    )
    with torch.no_grad():  # half of what they say is above one half
        model.head.named()["classifier.bias"].sub_(logits_of(model, rows).mean(0))
    found = Predictor(model=model)(["good", "bad film", "the red card", "two three"])
    for each in found:
        assert [name for name, _ in each.probabilities] == ["b", "a", "c"]
        assert each.label == tuple(name for name, chance in each.probabilities if chance > 0.5)
        assert each.to_dict()["label"] == list(each.label)  # type: ignore[arg-type]
    assert len({each.label for each in found}) > 1


def test_a_regression_answers_in_the_targets_unit(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, SCORE)
    plain = perturbed(tiny_folder, Task(problem_type="regression"))
    (found,), (raw,) = Predictor(model=model)("good film"), Predictor(model=plain)("good film")
    assert found.label == pytest.approx(100 + 4 * float(raw.label), rel=1e-5)  # type: ignore[arg-type]
    assert found.to_dict() == {"value": found.label}
    assert found.probabilities == ()


@pytest.mark.parametrize("labels", [(0, 1), (3, 7), (False, True)])
def test_labels_keep_their_type_in_json(tiny_folder: Path, labels: tuple[Any, ...]) -> None:
    task = Task(problem_type="single_label_classification", labels=labels)
    (found,) = Predictor(model=perturbed(tiny_folder, task))("good film")
    back = json.loads(json.dumps(found.to_dict()))
    assert type(back["label"]) is type(labels[0])
    assert back["label"] in labels
    assert list(back["probabilities"]) == list(map(str, labels))


def test_labels_keep_their_type_and_order_through_training_and_saving(
    tiny_folder: Path, tmp_path: Path, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    task = Task(problem_type="single_label_classification", labels=(2, 10))
    model = PTuningModel.from_backbone(str(tiny_folder), DeepPrompt(num_virtual_tokens=4), task=task)
    numbered = [{**row, "label": {"negative": 10, "positive": 2}[row["label"]]} for row in rows(96)]
    fit(model, {"train": numbered}, FitConfig(epochs=6, batch_size=8, head_rate=3e-2))
    model.save_pretrained(tmp_path / "adapter")
    bad, good = Predictor(model=PTuningModel.from_pretrained(tmp_path / "adapter"))(["bad film", "good film"])
    assert (bad.label, good.label) == (10, 2)


def test_only_a_window_is_taken_before_the_first_answer(model: PTuningModel) -> None:
    taken = []

    def source() -> Iterator[Example]:
        for number in range(1, 1001):
            taken.append(number)
            yield Example(row=number, text="good film")

    stream = Predictor(model=model, window=3).stream(source())
    assert taken == []
    assert next(stream).row == 1
    assert taken == [1, 2, 3]
    assert [next(stream).row for _ in range(3)] == [2, 3, 4]
    assert taken == [1, 2, 3, 4, 5, 6]


def test_nothing_asked_nothing_answered(model: PTuningModel) -> None:
    assert Predictor(model=model)([]) == []


def test_long_texts_are_cut_or_refused(model: PTuningModel) -> None:
    long = "film " * 100
    (found,) = Predictor(model=model)([long])
    assert math.isfinite(found.probabilities[0][1])
    with pytest.raises(DataError, match="the rows, row 2: got 102 tokens, expected at most 64"):
        Predictor(model=model, too_long="error")(["good", long])


@pytest.mark.parametrize("option", ["window", "batch_size"])
def test_sizes_below_one_are_refused(model: PTuningModel, option: str) -> None:
    """A window of 0 would answer nothing, in silence."""
    with pytest.raises(ConfigError, match=f"{option}: got 0, expected at least 1"):
        Predictor(model=model, **{option: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [SINGLE, MULTI, SCORE], ids=lambda task: task.problem_type)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_logits_that_are_not_finite_are_no_answer(tiny_folder: Path, task: Task, value: float) -> None:
    """Every number of the head is finite at 3e38; what it makes of a text is not."""
    model = perturbed(tiny_folder, task)
    with torch.no_grad():
        model.head.get_parameter("classifier-weight")[0] = value
    message = "the logits of 2 of 2 rows are not finite .*the first of them for {}.*; try precision"
    with pytest.raises(TrainingDiverged, match=message.format("the rows, row 1")):
        Predictor(model=model)(["good film", "bad film"])
    with pytest.raises(TrainingDiverged, match=r"logits of .* the first of them for"):
        pipeline(model)(["good film", "bad film"])


def test_one_row_that_is_not_finite_is_named(model: PTuningModel, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(3, 2)
    logits[1, 0] = math.nan
    monkeypatch.setattr("ptuning.inference.predictor.logits_of", lambda *_, **__: logits)
    with pytest.raises(
        TrainingDiverged,
        match=r"the logits of 1 of 3 rows are not finite .*the first of them for the rows, row 2",
    ):
        Predictor(model=model)(["good", "bad", "good"])
