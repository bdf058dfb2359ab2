"""Words around the text, with a deep prompt and a classification head: as if they were in the text."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from language_models import LABELS, language_model
from mixed import shaken
from ptuning import ClozeHead, DeepPrompt, InputPrompt, PTuningModel, Task, TaskTable, adapters
from ptuning.data.examples import Example
from ptuning.data.tokens import Tokenise, collate
from ptuning.errors import AdapterError, ConfigError
from ptuning.inference import MultiPredictor
from ptuning.model.config import prompt_to_dict
from ptuning.peft import PeftModel
from ptuning.training import recipe
from ptuning.training.plan import Earlier, plan_prompt
from ptuning.training.recipe import WORDS
from test_adapters_schema import record, write

TASK = Task(problem_type="single_label_classification", labels=LABELS)
PAIRS = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
TEXTS = ("a great film", "dull", "the plot is good , and the acting is bad")
SECONDS = ("a film", "good and bad", "no")
CASES = ("bert", "deberta-v2", "gpt2", "gemma3_text, sliding", "llama", "qwen2")


def made(case: str, folder: Path, config: Any, task: Task = TASK) -> PTuningModel:
    language_model(folder, case, way="words closed" if case == "bert" else "")
    return shaken(PTuningModel.from_backbone(str(folder), config, task=task)).eval()


def batch(model: PTuningModel, texts: Any, seconds: Any = None) -> dict[str, Tensor]:
    assert model.tokenizer is not None
    examples = [
        Example(row=i + 1, text=text, text_b=None if seconds is None else seconds[i])
        for i, text in enumerate(texts)
    ]
    return collate(Tokenise.for_model(model)(examples), model.tokenizer.pad_token_id)


def without(model: PTuningModel) -> PTuningModel:
    """The same parameters, and no words."""
    config = replace(model.prompt_config, template=None)
    adapter = replace(model.to_adapter(), prompt=prompt_to_dict(config), anchors=())
    return PTuningModel.from_adapter(adapter, model.backbone, tokenizer=model.tokenizer).eval()


def logits(model: PTuningModel, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize(
    ("case", "pooling"),
    [
        *((case, pooling) for case in CASES for pooling in ("native", "mean", "layers")),
        ("bloom", "native"),  # a cache has no layers to pool
    ],
)
def test_words_are_as_if_they_were_in_the_text(case: str, pooling: Any, tmp_path: Path) -> None:
    config = DeepPrompt(num_virtual_tokens=3, pooling=pooling, template="{text} . It was")
    model = made(case, tmp_path, config)
    plain, words = without(model), model.tokenizer
    assert words is not None
    found = logits(model, batch(model, TEXTS))
    for text, each in zip(TEXTS, found, strict=True):
        ids = words(text)["input_ids"]
        end = len(ids) - (words.mask_token_id is not None)  # in front of an encoder's closing token
        behind = words(" . It was", add_special_tokens=False)["input_ids"]
        row = torch.tensor([[*ids[:end], *behind, *ids[end:]]])
        expected = logits(plain, {"input_ids": row, "attention_mask": torch.ones_like(row)})[0]
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(plain, batch(plain, TEXTS)), atol=1e-3)


def test_pairs_have_words_between_them(tmp_path: Path) -> None:
    config = DeepPrompt(num_virtual_tokens=2, template="{text_a} . {text_b} . It was")
    model = made("llama", tmp_path, config, PAIRS)
    words: Any = model.tokenizer
    found = logits(model, batch(model, TEXTS, SECONDS))
    for text, second, each in zip(TEXTS, SECONDS, found, strict=True):
        ids = [words.bos_token_id]
        for part in (text, " .", second, " . It was"):
            ids += words(part, add_special_tokens=False)["input_ids"]
        row = torch.tensor([ids])
        expected = logits(without(model), {"input_ids": row, "attention_mask": torch.ones_like(row)})[0]
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)


def together(first: PTuningModel, configs: Any) -> tuple[list[PTuningModel], MultiPredictor]:
    """Tasks on the backbone of ``first``, ``task-0``, ``task-1``, …, and what answers for all of them."""
    assert first.tokenizer is not None
    models, table = [first], TaskTable(first.backbone, first.tokenizer)
    for config in configs:
        model = PTuningModel.from_backbone(first.backbone, config, task=first.task, tokenizer=first.tokenizer)
        models.append(shaken(model).eval())
    for number, model in enumerate(models):
        table.put(f"task-{number}", model)
    return models, MultiPredictor(table, first.tokenizer)


def test_tasks_with_and_without_words_share_passes(tmp_path: Path) -> None:
    first = made("llama", tmp_path, DeepPrompt(num_virtual_tokens=3, template="{text} It was"))
    configs: list[Any] = [
        DeepPrompt(num_virtual_tokens=2),
        DeepPrompt(num_virtual_tokens=2, template="Review: {text} . It was", pooling="mean"),
        DeepPrompt(num_virtual_tokens=1, head=ClozeHead(template="{text} It was")),
        InputPrompt(num_virtual_tokens=3),
    ]
    models, predictor = together(first, configs)
    rows = [(text, f"task-{number}", model) for number, model in enumerate(models) for text in TEXTS]
    answers = predictor.predict([r[0] for r in rows], [r[1] for r in rows])
    for (text, _, model), answer in zip(rows, answers, strict=True):
        expected = logits(model, batch(model, [text]))[0].softmax(-1).tolist()
        assert [p for _, p in answer.probabilities] == pytest.approx(expected, abs=1e-5)


def test_an_adapter_keeps_its_words(tmp_path: Path) -> None:
    model = made("llama", tmp_path / "backbone", DeepPrompt(num_virtual_tokens=2, template="{text} It was"))
    folder = model.save_pretrained(tmp_path / "adapter")
    assert record(folder)["prompt"]["template"] == "{text} It was"
    inputs = batch(model, TEXTS)
    loaded = PTuningModel.from_pretrained(folder).eval()
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert "'{text} It was' has words" in str(adapters.why_not_peft(adapters.load(folder)))
    opened = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone"), folder
    )
    assert opened.peft_config["default"].template == "{text} It was"
    assert torch.equal(logits(opened, inputs), logits(model, inputs))
    whole = record(folder)
    for anchors, message in (([], "anchors: got 0, expected 1"), ([[]], "anchors: got no tokens")):
        write(folder, {**whole, "anchors": anchors})
        with pytest.raises(AdapterError, match=message):
            PTuningModel.from_pretrained(folder)
    none = without(model).save_pretrained(tmp_path / "without")
    assert "template" not in record(none)["prompt"]  # as earlier versions wrote it
    assert adapters.why_not_peft(adapters.load(none)) is None


def test_layers_below_the_prompt_are_not_cached_with_words(tmp_path: Path) -> None:
    config = DeepPrompt(num_virtual_tokens=2, first_layer=1, template="{text} It was")
    model = made("llama", tmp_path, config)
    assert (model.stem_layer, without(model).stem_layer) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{text} It was {mask}"}, "a classification head predicts no word"),
        ({"template": "{prompt:3} {text}"}, "a deep prompt is in the layers"),
        ({"template": "It was"}, r"no \{text\}"),
        ({"template": ""}, r"no \{text\}"),
        ({"template": "{text} so", "head": ClozeHead(template="{text} It was")}, "expected one template"),
    ],
)
def test_what_a_template_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepPrompt(**options)


def test_the_recipe_adds_words_for_a_decoder_and_single_texts(tmp_path: Path) -> None:
    decoder, encoder = (made(case, tmp_path / case, DeepPrompt()) for case in ("llama", "bert"))
    given, head = DeepPrompt(), ClozeHead(template="{text} It was")
    for model, prompt, task, expected in (
        (decoder, given, TASK, WORDS),
        (decoder, given, Task(problem_type="regression"), WORDS),
        (decoder, replace(given, template="{text} so"), TASK, "{text} so"),
        (decoder, replace(given, template="{text}"), TASK, "{text}"),
        (decoder, replace(given, pooling="native"), TASK, None),
        (decoder, replace(given, first_layer=1), TASK, None),
        (decoder, replace(given, head=head), TASK, None),
        (decoder, given, replace(PAIRS, labels=("a", "b", "c")), None),
        (encoder, given, TASK, None),
    ):
        planned = plan_prompt(prompt, model.backbone, task, 100, tokenizer=model.tokenizer)
        assert isinstance(planned.config, DeepPrompt)
        assert planned.config.template == expected
        said = " ".join(planned.recipe_says)
        assert ("prompt.template; '{text}' switches it off" in said) == (expected == WORDS)
    for resumed, expected in (
        (DeepPrompt(pooling="native", template=WORDS), WORDS),
        (DeepPrompt(pooling="native"), None),  # begun by an earlier version
    ):
        earlier = Earlier(resumed=replace(resumed, num_virtual_units=0, num_queries=0))
        planned = plan_prompt(
            given, decoder.backbone, TASK, 100, tokenizer=decoder.tokenizer, earlier=earlier
        )
        assert isinstance(planned.config, DeepPrompt)
        assert planned.config.template == expected


def test_words_that_the_tokenizer_does_not_know_are_not_added(tmp_path: Path) -> None:
    model = made("llama", tmp_path, DeepPrompt())
    words: Any = model.tokenizer
    words.unk_token = "I"  # as if its vocabulary had none of these letters
    planned = plan_prompt(DeepPrompt(), model.backbone, TASK, 100, tokenizer=words)
    assert isinstance(planned.config, DeepPrompt)
    assert planned.config.template is None


# ----------------------------------------------------------------------- pairs that are read apart


def test_each_text_of_a_pair_that_is_read_apart_has_the_words(tmp_path: Path) -> None:
    config = DeepPrompt(num_virtual_tokens=2, template="{text} . It was", pooling="similarity")
    model = made("llama", tmp_path, config, PAIRS)
    words: Any = model.tokenizer
    found = logits(model, batch(model, TEXTS, SECONDS))
    behind = words(" . It was", add_special_tokens=False)["input_ids"]
    for text, second, each in zip(TEXTS, SECONDS, found, strict=True):
        one, other = (
            [*words(part, add_special_tokens=False)["input_ids"], *behind] for part in (text, second)
        )
        ids = torch.tensor([[words.bos_token_id, *one, *other]])
        places = torch.tensor([[-1, *(0 for _ in one), *(1 for _ in other)]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "segment_ids": places}
        torch.testing.assert_close(each, logits(without(model), inputs)[0], rtol=1e-4, atol=1e-4)


def test_pairs_read_apart_share_passes_with_other_tasks(tmp_path: Path) -> None:
    first = made("llama", tmp_path, DeepPrompt(pooling="similarity", template="{text} It was"), PAIRS)
    configs: list[Any] = [
        DeepPrompt(num_virtual_tokens=2, pooling="similarity"),
        DeepPrompt(num_virtual_tokens=3, template="{text_a} so {text_b} . It was"),
        DeepPrompt(num_virtual_tokens=1, pooling="mean"),
        DeepPrompt(num_virtual_tokens=1, head=ClozeHead(template="{text_a} \n {text_b} \n same ?")),
        InputPrompt(num_virtual_tokens=3),
    ]
    models, predictor = together(first, configs)
    pairs = list(zip(TEXTS, SECONDS, strict=True))
    rows = [(pair, f"task-{i}", model) for i, model in enumerate(models) for pair in pairs]
    answers = predictor.predict([r[0] for r in rows], [r[1] for r in rows])
    for ((text, second), name, model), answer in zip(rows, answers, strict=True):
        expected = logits(model, batch(model, [text], [second]))[0].softmax(-1).tolist()
        assert [p for _, p in answer.probabilities] == pytest.approx(expected, abs=1e-5), name
    for which in ("task-0", "task-1"):  # alone in their pass, as well
        its = [(pair, answer) for (pair, name, _), answer in zip(rows, answers, strict=True) if name == which]
        alone = predictor.predict([pair for pair, _ in its], [which] * len(its))
        for (_, among), own in zip(its, alone, strict=True):
            assert [p for _, p in own.probabilities] == pytest.approx(
                [p for _, p in among.probabilities], abs=1e-5
            )


def given_as(pooling: Any, prompt: DeepPrompt) -> Any:
    """What the rows are said to speak for."""
    return pooling


def test_the_recipe_compares_pairs_on_a_decoder(tmp_path: Path) -> None:
    model, given = made("llama", tmp_path, DeepPrompt()), DeepPrompt()
    score, several = Task(problem_type="regression", pair=True), replace(PAIRS, labels=("a", "b", "c"))
    for prompt, task, measured, expected in (
        (given, PAIRS, None, ("similarity", WORDS)),
        (given, score, None, ("similarity", WORDS)),
        (given, PAIRS, "native", ("native", None)),
        (given, PAIRS, "similarity", ("similarity", WORDS)),
        (replace(given, template="{text} so"), PAIRS, None, ("similarity", "{text} so")),
        (replace(given, template="{text_a} ? {text_b}"), PAIRS, None, ("native", "{text_a} ? {text_b}")),
        (replace(given, first_layer=1), PAIRS, None, ("similarity", WORDS)),
        (replace(given, pooling="similarity"), PAIRS, None, ("similarity", WORDS)),
        (replace(given, pooling="native"), PAIRS, None, ("native", None)),
        (replace(given, head=ClozeHead(template="{text_a} {text_b}")), PAIRS, None, ("native", None)),
        (given, several, None, ("native", None)),
    ):
        planned = plan_prompt(
            *(prompt, model.backbone, task, 100),
            tokenizer=model.tokenizer,
            measure=partial(given_as, measured),
        )
        assert isinstance(planned.config, DeepPrompt)
        assert (planned.config.pooling, planned.config.template) == expected


def test_a_decoder_reads_many_scored_pairs_together_with_virtual_units(tmp_path: Path) -> None:
    model, given, many = made("llama", tmp_path, DeepPrompt()), DeepPrompt(), recipe.PAIRS_TOGETHER
    score, several = Task(problem_type="regression", pair=True), replace(PAIRS, labels=("a", "b", "c"))
    head, units = ClozeHead(template="{text_a} {text_b}"), recipe.UNITS
    both = "{text_a} ? {text_b}"
    for prompt, task, rows, expected in (
        (given, score, many, ("native", None, units)),
        (given, score, many - 1, ("similarity", WORDS, 0)),
        (given, several, many, ("native", None, units)),
        (given, several, many - 1, ("native", None, 0)),
        (given, PAIRS, recipe.MANY_ROWS, ("similarity", WORDS, 0)),
        (replace(given, num_virtual_units=0), score, many, ("similarity", WORDS, 0)),
        (replace(given, num_virtual_units=3), score, many, ("native", None, 3)),
        (replace(given, template="{text} so"), score, many, ("similarity", "{text} so", 0)),
        (replace(given, template=both), score, many, ("native", both, units)),
        (replace(given, template=both), PAIRS, many, ("native", both, 0)),
        (replace(given, first_layer=1), score, many, ("native", None, units)),
        (replace(given, pooling="similarity"), score, many, ("similarity", WORDS, 0)),
        (replace(given, pooling="native"), score, many, ("native", None, 0)),  # what PEFT reads
        (replace(given, head=head), several, many, ("native", None, 0)),
        (given, TASK, many, ("native", WORDS, 0)),
        (given, TASK, recipe.MANY_ROWS, ("native", WORDS, units)),
        (given, replace(TASK, labels=("a", "b", "c")), 10, ("native", WORDS, units)),
        (given, Task(problem_type="regression"), 10, ("native", WORDS, units)),
    ):
        planned = plan_prompt(prompt, model.backbone, task, rows, tokenizer=model.tokenizer)
        found = planned.config
        assert isinstance(found, DeepPrompt)
        assert (found.pooling, found.template, found.num_virtual_units) == expected, (prompt, task, rows)
        assert found.num_queries == 0
        said = " ".join(planned.recipe_says)
        assert ("virtual units" in said) == (found.num_virtual_units == units)
        together = planned.chosen_by.get("pooling") == "recipe" and found.pooling == "native"
        assert ("both texts read together" in said) == together
        assert together == (task == score and found.num_virtual_units > 0 and found.template is None)


def test_a_decoder_without_virtual_units_has_none_however_many_rows(tmp_path: Path) -> None:
    model = made("bloom", tmp_path, DeepPrompt())
    for task in (PAIRS, replace(TASK, labels=("a", "b", "c"))):
        planned = plan_prompt(DeepPrompt(), model.backbone, task, recipe.MANY_ROWS, tokenizer=model.tokenizer)
        assert isinstance(planned.config, DeepPrompt)
        assert (planned.config.pooling, planned.config.num_virtual_units) == ("native", 0)
