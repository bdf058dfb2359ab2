"""Cloze heads: the scores are those of a hand-made template through plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cloze import LABELS, language_model
from ptuning import ClozeHead, DeepPrompt, InputPrompt, PTuningModel, Task
from ptuning.data.examples import Example
from ptuning.data.tokens import Tokenise, collate
from reference import SlowReference

VERBALIZER = {"negative": ("terrible", "dull"), "positive": "great"}
TASK = Task(problem_type="single_label_classification", labels=LABELS)
PAIRS = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
TEXTS = ("a great film", "dull", "the plot is good , and the acting is bad")
SECONDS = ("a film", "good and bad", "no")

MASKED = (
    *("bert", "roberta", "albert", "distilbert", "electra", "modernbert", "deberta-v2"),
    *("roberta, two segments", "modernbert, mean pooling"),
)
CAUSAL = ("gpt2", "gpt_neox", "opt", "bloom", "llama", "qwen3", "gemma2", "gemma3_text, sliding")


def template(model: PreTrainedModel) -> str:
    return "{text} It was {mask}." if "Masked" in type(model).__name__ else "{text} It was"


def batch(model: PTuningModel, texts: Any, seconds: Any = None) -> dict[str, Tensor]:
    assert model.tokenizer is not None
    examples = [
        Example(row=i + 1, text=text, text_b=None if seconds is None else seconds[i])
        for i, text in enumerate(texts)
    ]
    return collate(Tokenise.for_model(model)(examples), model.tokenizer.pad_token_id)


def by_hand(
    model: PreTrainedModel, words: PreTrainedTokenizerBase, filled: str | tuple[str, str], verbalizer: Any
) -> Tensor:
    """``[C]``: the logits of the whole vocabulary at the mask, or at the last token; then the means."""
    pair = (filled,) if isinstance(filled, str) else filled
    inputs = words(*pair, return_tensors="pt", return_token_type_ids=True)
    if getattr(model.config, "type_vocab_size", 0) < 2:
        del inputs["token_type_ids"]
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    return scores(logits, inputs["input_ids"][0], words, verbalizer)


def scores(logits: Tensor, ids: Tensor, words: PreTrainedTokenizerBase, verbalizer: Any) -> Tensor:
    place = -1 if words.mask_token_id is None else ids.tolist().index(words.mask_token_id)
    found = []
    for of_label in verbalizer:
        means = []
        for word in of_label:
            tokens = words("It was " + word, add_special_tokens=False)["input_ids"]
            tokens = tokens[len(words("It was", add_special_tokens=False)["input_ids"]) :]
            means.append(logits[place][tokens].mean())
        found.append(torch.stack(means).mean())
    return torch.stack(found)


@pytest.fixture(params=[*MASKED, *CAUSAL])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """Every architecture's head, with a language model's own tokenizer."""
    return on_disk(request.param, tmp_path), tmp_path


@pytest.fixture(params=["bert", "roberta", "deberta-v2", "gpt2", "bloom", "gemma3_text, sliding"])
def some(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """Each way through the layers."""
    return on_disk(request.param, tmp_path), tmp_path


def on_disk(case: str, folder: Path) -> PreTrainedModel:
    return language_model(folder, case, way="words closed" if case == "bert" else "")


def test_without_a_prompt_it_is_the_hand_made_template(made: tuple[PreTrainedModel, Path]) -> None:
    plain, folder = made
    head = ClozeHead(template=template(plain), verbalizer=VERBALIZER)
    model = PTuningModel.from_backbone(str(folder), InputPrompt(head=head), task=TASK).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        found = model.plain()(**batch(model, TEXTS)).logits
    for text, logits in zip(TEXTS, found, strict=True):
        filled = head.template.format(text=text, mask=words.mask_token)
        expected = by_hand(plain, words, filled, (("terrible", "dull"), ("great",)))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slots", ["", "{prompt:2} "], ids=["front", "among words"])
def test_an_input_prompt_is_among_the_embeddings(some: tuple[PreTrainedModel, Path], slots: str) -> None:
    plain, folder = some
    written = template(plain).replace("It", f"{slots}It")
    head = ClozeHead(template=written, verbalizer=VERBALIZER)
    config = InputPrompt(head=head, num_virtual_tokens=2)
    model = PTuningModel.from_backbone(str(folder), config, task=TASK).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        found = model(**batch(model, TEXTS)).logits
        prompt = model.prompt_encoder()
    for text, logits in zip(TEXTS, found, strict=True):
        inputs = words(template(plain).format(text=text, mask=words.mask_token), return_tensors="pt")
        ids = inputs["input_ids"]
        place = len(words(text)["input_ids"]) - (words.mask_token_id is not None) if slots else 1
        embedded = plain.get_input_embeddings()(ids)[0]
        joined = torch.cat((embedded[:place], prompt, embedded[place:]))[None]
        with torch.no_grad():
            out = plain(inputs_embeds=joined, attention_mask=torch.ones(joined.shape[:2]).long()).logits[0]
        out = torch.cat((out[:place], out[place + 2 :])) if words.mask_token_id is not None else out
        expected = scores(out, ids[0], words, (("terrible", "dull"), ("great",)))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_deep_prompt_is_in_the_layers(some: tuple[PreTrainedModel, Path]) -> None:
    plain, folder = some
    head = ClozeHead(template=template(plain), verbalizer=VERBALIZER)
    config = DeepPrompt(head=head, num_virtual_tokens=3)
    model = PTuningModel.from_backbone(str(folder), config, task=TASK).eval()
    words: Any = model.tokenizer
    with torch.no_grad():
        model.prompt_encoder.weight.normal_(0, 0.5)
        found = model(**batch(model, TEXTS)).logits
        prompt = model.prompt_encoder()
    reference = SlowReference(plain)
    if reference.kind == "bloom":  # the reference returns what its score makes of the last token
        reference.model.score = reference.model.lm_head
    for text, logits in zip(TEXTS, found, strict=True):
        ids = words(head.template.format(text=text, mask=words.mask_token), return_tensors="pt")["input_ids"][0]
        out = reference.logits(ids.tolist(), prompt, position_offset=model.position_offset)
        out = out[None] if out.dim() == 1 else out
        expected = scores(out, ids, words, (("terrible", "dull"), ("great",))).float()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
