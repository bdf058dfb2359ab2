"""``ptuning.pipeline`` is transformers' pipeline: its answers for every input, from our own logits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TextClassificationPipeline,
)
from transformers import logging as transformers_logging
from transformers import pipeline as plain_pipeline
from transformers.pipelines.pt_utils import KeyDataset, KeyPairDataset

import ptuning
from ptuning import DeepPrompt, InputPrompt, Predictor, PTuningModel, Task, pipeline
from ptuning.errors import AdapterError, ConfigError, DataError
from ptuning.model import PromptConfig

SINGLE = Task(problem_type="single_label_classification", labels=("negative", "neutral", "positive"))
PAIR = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
MULTI = Task(problem_type="multi_label_classification", labels=("b", "a", "c"))
SCORE = Task(problem_type="regression", mean=100.0, scale=4.0)
TEXTS = ["good film", "bad awful film in the shop", "the", "two cheap cards and one kind door", "very slow"]
PAIRS = [{"text": text, "text_pair": other} for text, other in zip(TEXTS, TEXTS[::-1], strict=True)]
DEEP = DeepPrompt(num_virtual_tokens=4)


def perturbed(folder: Path, task: Task, prompt: PromptConfig = DEEP, **options: Any) -> PTuningModel:
    """A model whose prompt and head are random: answers differ from text to text without any training."""
    torch.manual_seed(1)
    model = PTuningModel.from_backbone(str(folder), prompt, task=task, **{"dtype": torch.float32, **options})
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model.eval()


def logits(model: PTuningModel, inputs: Any) -> np.ndarray[Any, Any]:
    """The model's own logits of one input, by hand."""
    given = {"text": inputs} if isinstance(inputs, str) else inputs
    assert model.tokenizer is not None
    with torch.no_grad():
        return model(**model.tokenizer(**given, return_tensors="pt")).logits[0].double().numpy()


def scores(row: np.ndarray[Any, Any], function: str) -> np.ndarray[Any, Any]:
    match function:
        case "softmax":
            return np.exp(row) / np.exp(row).sum()
        case "sigmoid":
            return 1 / (1 + np.exp(-row))
    return row


def form(found: Any) -> Any:
    """What an answer looks like without its numbers and names."""
    if isinstance(found, dict):
        return {name: type(value).__name__ for name, value in found.items()}
    return [form(each) for each in found]


# ------------------------------------------------------- the oracle: transformers' own pipeline


@pytest.fixture(scope="module")
def twins(tiny_folder: Path) -> dict[bool, tuple[Any, Any]]:
    """By pair: transformers' pipeline over the plain model, and ours over the same weights."""
    found = {}
    for pair in (False, True):
        plain = AutoModelForSequenceClassification.from_pretrained(
            tiny_folder, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
        )
        theirs = plain_pipeline(
            "text-classification", plain, tokenizer=AutoTokenizer.from_pretrained(tiny_folder), device="cpu"
        )
        task = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=pair)
        found[pair] = (theirs, pipeline(perturbed(tiny_folder, task)))
    return found


def generated(values: list[Any]) -> Iterator[Any]:
    yield from values


INPUTS: dict[str, tuple[bool, Callable[[], Any]]] = {
    "a string": (False, lambda: TEXTS[0]),
    "strings": (False, lambda: list(TEXTS)),
    "one string in a list": (False, lambda: TEXTS[:1]),
    "a dict of one text": (False, lambda: {"text": TEXTS[0]}),
    "dicts of one text": (False, lambda: [{"text": text} for text in TEXTS]),
    "a generator": (False, lambda: generated(TEXTS)),
    "an empty generator": (False, lambda: generated([])),
    "a KeyDataset": (False, lambda: KeyDataset(Dataset.from_dict({"words": TEXTS}), "words")),
    "a dict": (True, lambda: dict(PAIRS[0])),
    "dicts": (True, lambda: [dict(each) for each in PAIRS]),
    "one dict in a list": (True, lambda: [dict(PAIRS[0])]),
    "a nested list, the old form": (True, lambda: [[[TEXTS[0], TEXTS[1]]]]),
    "a generator of dicts": (True, lambda: generated(PAIRS)),
    "a KeyPairDataset": (True, lambda: KeyPairDataset(Dataset.from_list(PAIRS), "text", "text_pair")),
}  # fmt: skip


IN_FULL = ("a string", "strings", "a generator", "dicts")
TOP_K = ("absent", 1, 2, None)
FUNCTIONS = (None, "softmax", "sigmoid", "none", "SOFTMAX")


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_and_option_gives_what_transformers_gives(
    twins: dict[bool, tuple[Any, Any]], name: str
) -> None:
    pair, make = INPUTS[name]
    theirs, ours = twins[pair]
    sizes = cycle((None, 1, 4))  # 20 combinations and 3 sizes: each top_k and each function meets every size
    few = zip(cycle(TOP_K), FUNCTIONS, strict=False)  # every choice, of an input that is much like another
    for top_k, function in product(TOP_K, FUNCTIONS) if name in IN_FULL else few:
        said = {"function_to_apply": function, "batch_size": next(sizes)}
        options = {name: value for name, value in said.items() if value is not None}
        if top_k != "absent":
            options["top_k"] = top_k
        expected, found = theirs(make(), **options), ours(make(), **options)
        lazy = not isinstance(expected, list | dict)
        assert lazy == (not isinstance(found, list | dict))
        if lazy:
            expected, found = list(expected), list(found)
        assert form(found) == form(expected), options
        with ours.model.disabled():  # now the model is the plain one, and the numbers have to agree as well
            same = ours(make(), **options)
            same = list(same) if lazy else same
        near = [(label, pytest.approx(score, abs=1e-5)) for label, score in flat(expected)]
        assert flat(same) == near, options


def flat(found: Any) -> list[tuple[str, float]]:
    if isinstance(found, dict):
        return [(found["label"], found["score"])]
    return [pair for each in found for pair in flat(each)]


@pytest.mark.parametrize("made", [{}, {"top_k": None}, {"top_k": 1}, {"function_to_apply": "sigmoid"}])
@pytest.mark.parametrize("called", [{}, {"top_k": 2}, {"function_to_apply": "none"}])
def test_options_given_where_it_is_made_act_as_transformers_do(
    twins: dict[bool, tuple[Any, Any]], made: dict[str, Any], called: dict[str, Any]
) -> None:
    theirs, ours = twins[False]
    one = TextClassificationPipeline(
        model=theirs.model, tokenizer=theirs.tokenizer, task="text-classification", device="cpu", **made
    )
    other = pipeline(ours.model, **made)
    with other.model.disabled():
        for given in (TEXTS[0], TEXTS):
            expected, found = one(given, **called), other(given, **called)
            assert form(found) == form(expected)
            assert flat(found) == [(label, pytest.approx(score, abs=1e-5)) for label, score in flat(expected)]


def test_it_is_transformers_own_class_with_the_model_in_it(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, SINGLE)
    made = pipeline(model, batch_size=2)
    assert isinstance(made, TextClassificationPipeline)
    assert made.model is model
    assert made.tokenizer is model.tokenizer
    assert made.task == "text-classification"
    assert "single_label_classification, num_labels=3, device='cpu'" in repr(made)
    assert made.dtype == torch.float32
    assert made.predict(TEXTS) == made(TEXTS)  # scikit-learn's name, which transformers gives its pipelines


# ------------------------------------------------------------------------------ our own logits


@pytest.mark.parametrize("task", [SINGLE, PAIR, MULTI, SCORE], ids=["single", "pair", "multi", "score"])
@pytest.mark.parametrize("function", [None, "default", "softmax", "sigmoid", "none"])
def test_scores_are_the_function_of_the_models_logits(
    tiny_folder: Path, task: Task, function: str | None
) -> None:
    model = perturbed(tiny_folder, task)
    default = {"multi_label_classification": "sigmoid", "regression": "none"}.get(
        task.problem_type, "softmax"
    )
    applied = default if function in (None, "default") else str(function)
    labels = [str(label) for label in task.labels] or ["LABEL_0"]
    for given in PAIRS if task.pair else TEXTS:
        expected = dict(zip(labels, scores(logits(model, given), applied), strict=True))
        (found,) = pipeline(model, function_to_apply=function)([given], top_k=None)
        assert {each["label"]: each["score"] for each in found} == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
        (best,) = pipeline(model)([given], function_to_apply=function)
        assert best == found[0]


def test_default_takes_back_the_function_the_pipeline_was_made_with(tiny_folder: Path) -> None:
    made = pipeline(perturbed(tiny_folder, SINGLE), function_to_apply="none")
    plain = pipeline(made.model)
    assert made(TEXTS) != plain(TEXTS)
    assert made(TEXTS, function_to_apply="default") == plain(TEXTS)


def test_a_regression_answers_in_the_targets_unit(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, SCORE)
    (found,) = pipeline(model)("good film")
    (expected,) = Predictor(model=model)("good film")
    assert found == {"label": "LABEL_0", "score": pytest.approx(expected.label, rel=1e-6)}
    assert found["score"] > 50  # not a number about 0: the mean is 100


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((0, 1, 2), ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ((1, 0, 2), ["1", "0", "2"]),
        ((1, 2), ["1", "2"]),
        ((False, True), ["False", "True"]),
        (("refund", "other"), ["refund", "other"]),
    ],
)
def test_labels_are_the_tasks_names(tiny_folder: Path, labels: tuple[Any, ...], names: list[str]) -> None:
    model = perturbed(tiny_folder, Task(problem_type="single_label_classification", labels=labels))
    before = model.backbone.model.config.to_dict()
    (found,) = pipeline(model)([TEXTS[0]], top_k=None)
    assert sorted(each["label"] for each in found) == sorted(names)
    by_logit = sorted(range(len(names)), key=lambda i: -logits(model, TEXTS[0])[i])
    assert [each["label"] for each in found] == [names[i] for i in by_logit]
    assert model.backbone.model.config.to_dict() == before


def test_two_tasks_on_one_backbone_keep_their_labels_apart(tiny_folder: Path) -> None:
    first = perturbed(tiny_folder, SINGLE)
    second = PTuningModel.from_backbone(first.backbone, DEEP, task=MULTI, tokenizer=first.tokenizer)
    one, other = pipeline(first), pipeline(second)
    assert {each["label"] for each in other(TEXTS[:1], top_k=None)[0]} == {"b", "a", "c"}
    assert {each["label"] for each in one(TEXTS[:1], top_k=None)[0]} == {"negative", "neutral", "positive"}


# ------------------------------------------------------------------ batches, places and lengths

PROMPTS: dict[str, tuple[Task, PromptConfig]] = {
    "deep": (SINGLE, DEEP),
    "start": (SINGLE, InputPrompt(num_virtual_tokens=4)),
    "front": (SINGLE, InputPrompt(num_virtual_tokens=4, placement="front")),
    "between": (PAIR, InputPrompt(num_virtual_tokens=4, placement="between")),
    "template": (PAIR, InputPrompt(placement="{prompt:2} {text_a} is {prompt:2} {text_b}")),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("segments", [True, False], ids=["token types", "no token types"])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_batch_of_ragged_texts_is_its_single_calls(
    tiny_folder: Path, name: str, segments: bool, side: str
) -> None:
    """Without token types only ``segment_ids`` tell where the second text begins, in padded rows too."""
    task, prompt = PROMPTS[name]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, padding_side=side)
    if not segments:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    made = pipeline(perturbed(tiny_folder, task, prompt), tokenizer=tokenizer)
    asked: list[Any] = PAIRS if task.pair else TEXTS
    alone = [made([each], top_k=None)[0] for each in asked]
    assert len({round(each[0]["score"], 4) for each in alone}) == len(asked)  # or the next line says little
    for size in (2, len(asked)):
        found = made(asked, top_k=None, batch_size=size)
        assert flat(found) == [(label, pytest.approx(score, abs=1e-5)) for label, score in flat(alone)]


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_model_is_told_where_texts_begin_and_that_padding_is_none_of_them(
    tiny_folder: Path, side: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, padding_side=side)
    made = pipeline(perturbed(tiny_folder, *PROMPTS["between"]), tokenizer=tokenizer)
    seen: list[dict[str, torch.Tensor]] = []
    hook = made.model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    made(
        [{"text": "good film", "text_pair": "bad"}, {"text": "the", "text_pair": "two red cards"}],
        batch_size=2,
    )
    made([{"text": "good", "text_pair": "bad"}, {"text": "the", "text_pair": "red"}], batch_size=1)
    hook.remove()
    first, second = [-1, 0, 0, -1, 1, -1], [-1, 0, -1, 1, 1, 1, -1]
    padded = [*first, -1] if side == "right" else [-1, *first]
    assert seen[0]["segment_ids"].tolist() == [padded, second]
    assert [each["segment_ids"].tolist() for each in seen[1:]] == [[[-1, 0, -1, 1, -1]]] * 2


@pytest.mark.parametrize("name", PROMPTS)
def test_it_says_what_the_predictor_says(tiny_folder: Path, name: str) -> None:
    task, prompt = PROMPTS[name]
    model = perturbed(tiny_folder, task, prompt)
    asked: list[Any] = [tuple(each.values()) for each in PAIRS] if task.pair else TEXTS
    found = pipeline(model)(PAIRS if task.pair else TEXTS, top_k=None, batch_size=3)
    for each, expected in zip(found, Predictor(model=model)(asked), strict=True):
        assert {one["label"]: one["score"] for one in each} == pytest.approx(
            dict(expected.probabilities), abs=1e-5
        )


@pytest.mark.parametrize("name", PROMPTS)
def test_a_long_text_is_cut_to_what_fits_beside_the_prompt(tiny_folder: Path, name: str) -> None:
    task, prompt = PROMPTS[name]
    model = perturbed(tiny_folder, task, prompt)
    long, other = "film good bad " * 60, "shop " * 70
    given: Any = {"text": long, "text_pair": other} if task.pair else long
    (found,) = pipeline(model)([given], top_k=None)
    (expected,) = Predictor(model=model)([(long, other) if task.pair else long])
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(expected.probabilities), abs=1e-5
    )
    assert pipeline(model)([given], top_k=None, truncation=True) == [found]  # their option, our limit
    with pytest.raises(DataError, match=f"tokens, expected at most {model.max_text_tokens}"):
        pipeline(model)([given], truncation=False)


def test_a_length_that_is_asked_for_is_the_length(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, SINGLE)
    short = " ".join(TEXTS[3].split()[:3])
    for options in ({"max_length": 5}, {"max_length": 5, "truncation": True}):  # [CLS] and [SEP] count
        assert pipeline(model, **options)(TEXTS[3]) == pipeline(model)(short)
    assert pipeline(model)(TEXTS[3], max_length=5) == pipeline(model)(short)
    assert pipeline(model)(TEXTS[3]) != pipeline(model)(short)


def test_padding_asked_for_changes_nothing(tiny_folder: Path) -> None:
    task, prompt = PROMPTS["between"]
    made = pipeline(perturbed(tiny_folder, task, prompt))
    padded = made(PAIRS, padding="max_length")
    assert flat(padded) == [(label, pytest.approx(score, abs=1e-5)) for label, score in flat(made(PAIRS))]


# ----------------------------------------------------------------------- where the model comes from


def test_from_a_folder_or_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    model = perturbed(tiny_folder, SINGLE)
    expected = pipeline(model)(TEXTS, top_k=None)
    model.save_pretrained(tmp_path / "adapter")
    for source in (tmp_path / "adapter", str(tmp_path / "adapter")):
        made = ptuning.pipeline(source, dtype=torch.float32, device="cpu")
        assert not made.model.training
        assert made(TEXTS, top_k=None) == expected
    other = pipeline(tmp_path / "adapter", backbone=model.backbone, tokenizer=model.tokenizer)
    assert other.model.backbone.weights is model.backbone.weights
    assert other(TEXTS, top_k=None) == expected
    made.save_pretrained(tmp_path / "again")
    assert pipeline(tmp_path / "again", device="cpu")(TEXTS, top_k=None) == expected
    with pytest.raises(AdapterError):
        pipeline(tmp_path / "nowhere")


def test_the_hub_gets_the_adapter(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own would hand options of its models' files to ``save_pretrained``."""
    pushed: list[Any] = []
    monkeypatch.setattr(
        PTuningModel, "push_to_hub", lambda self, *names, **given: pushed.extend((names, given))
    )
    pipeline(perturbed(tiny_folder, SINGLE)).push_to_hub("someone/task", private=True)
    assert pushed == [("someone/task",), {"private": True}]


def test_it_answers_in_eval_mode_without_gradients_and_leaves_the_mode(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, SINGLE)
    model.backbone.dropout = True
    made, expected = pipeline(model), pipeline(model)(TEXTS)
    seen: list[tuple[bool, bool]] = []
    modes: list[bool] = []

    def look(each: Any, *_: Any) -> None:
        seen.append((each.training, torch.is_inference_mode_enabled()))
        modes.append(model.training)  # what another thread sees meanwhile

    hook = model.register_forward_hook(look)
    model.train()
    assert made(TEXTS) == expected
    assert model.training
    assert seen == [(False, True)] * len(TEXTS)
    assert all(modes)
    hook.remove()


def test_a_bf16_backbone_answers(tiny_folder: Path) -> None:
    made = pipeline(perturbed(tiny_folder, SINGLE, dtype=torch.bfloat16))
    exact = pipeline(perturbed(tiny_folder, SINGLE))
    assert made.dtype == torch.bfloat16
    for one, other in zip(made(TEXTS, top_k=None, batch_size=2), exact(TEXTS, top_k=None), strict=True):
        near = {each["label"]: each["score"] for each in other}
        assert {each["label"]: each["score"] for each in one} == pytest.approx(near, abs=0.1)


def test_a_model_stays_where_it_is(tiny_folder: Path) -> None:
    """The meta device stands for an accelerator: transformers' default would move the model off it."""
    model = perturbed(tiny_folder, SINGLE).to("meta")
    assert pipeline(model).device == torch.device("meta")
    assert model.device == torch.device("meta")


def test_it_makes_no_noise(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = perturbed(tiny_folder, SINGLE)
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            pipeline(model)([*TEXTS, "film " * 100], batch_size=2, top_k=2)
    finally:
        transformers_logging.disable_propagation()
    assert caplog.messages == []


# ------------------------------------------------------------- what transformers trips over, or lets pass


def test_nothing_asked_nothing_answered(twins: dict[bool, tuple[Any, Any]]) -> None:
    theirs, ours = twins[False]
    with pytest.raises(IndexError):  # once transformers mends it, this joins the inputs above
        theirs([])
    assert ours([]) == []
    assert ours(KeyDataset(Dataset.from_dict({"words": []}), "words")) == []


def test_a_data_sets_column_is_a_list_of_texts(tiny_folder: Path) -> None:
    made = pipeline(perturbed(tiny_folder, SINGLE))
    assert made(Dataset.from_dict({"words": TEXTS})["words"]) == made(TEXTS)


def test_one_text_for_two_and_two_for_one_are_one_sentence(tiny_folder: Path) -> None:
    pairs, singles = pipeline(perturbed(tiny_folder, PAIR)), pipeline(perturbed(tiny_folder, SINGLE))
    for given in ("good film", {"text": "good film"}, {"text": "good film", "text_pair": None}):
        with pytest.raises(
            ConfigError, match=r"got one text .*good film.*, expected two texts, as in training"
        ):
            pairs(given)
    for given in (PAIRS[0], [PAIRS[0]], [[["good film", "bad"]]]):
        with pytest.raises(ConfigError, match=r"got two texts.*, expected one text, as in training"):
            singles(given)
    assert isinstance(singles({"text": "good film", "text_pair": None}), dict)


@pytest.mark.parametrize(
    "given",
    [
        7,
        None,
        [7],
        ("good", "bad"),
        [["good", "bad"]],
        {"words": "good"},
        {"text": ["good", "bad"]},
        {"text": "good", "label": 1},
        {"text": "good", "text_pair": 3},
    ],
)
def test_what_is_no_text_is_refused(tiny_folder: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"the input: got .*expected a string, or a mapping with"):
        pipeline(perturbed(tiny_folder, SINGLE))(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"function_to_apply": "soft"},
            "function_to_apply: got 'soft', expected one of 'default', 'sigmoid', ",
        ),
        ({"function_to_apply": 3}, "function_to_apply: got 3"),
        ({"top_k": 0}, "top_k: got 0, expected a whole number of at least 1, or None"),
        ({"top_k": "2"}, "top_k: got '2'"),
        ({"top_k": True}, "top_k: got True"),
        ({"return_all_scores": True}, "'return_all_scores' is unknown.*top_k=None gives every label"),
        ({"max_lenght": 8}, "'max_lenght' is unknown.*did you mean 'max_length'"),
        ({"return_tensors": "np"}, "'return_tensors' is unknown"),
    ],
)
def test_a_wrong_option_is_refused_where_it_is_given(
    tiny_folder: Path, options: dict[str, Any], message: str
) -> None:
    model = perturbed(tiny_folder, SINGLE)
    with pytest.raises(ConfigError, match=message):
        pipeline(model, **options)
    with pytest.raises(ConfigError, match=message):
        pipeline(model)(TEXTS, **options)


def test_what_other_pipelines_know_is_not_dropped_in_silence(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="'torch_dtype' is unknown"):
        pipeline(perturbed(tiny_folder, SINGLE), torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "option",
    [{"backbone": "demo"}, {"revision": "main"}, {"dtype": torch.float32}],
    ids=lambda each: next(iter(each)),
)
def test_choices_of_loading_are_refused_beside_a_model(tiny_folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))}: got .* together with a model"):
        pipeline(perturbed(tiny_folder, SINGLE), **option)


def test_a_model_without_a_tokenizer_says_so(tiny_folder: Path) -> None:
    model = perturbed(tiny_folder, SINGLE)
    bare = PTuningModel.from_backbone(model.backbone, DEEP, task=SINGLE).eval()
    with pytest.raises(ConfigError, match="the model has no tokenizer; pass tokenizer="):
        pipeline(bare)
    (found,) = pipeline(bare, tokenizer=model.tokenizer)("good film")
    assert math.isfinite(found["score"])
