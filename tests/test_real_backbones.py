"""The two real backbones of ``make backbones`` against plain transformers; skipped where they are not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DynamicCache

from mixed import alone, assert_close, batch_of, unlike
from ptuning.model import Backbone, DeepPrompt, PTuningModel
from ptuning.model.loading import load, load_tokenizer
from ptuning.model.mixed import mixed_logits
from ptuning.model.packed import pack
from reference import SlowReference

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from get_backbones import SOURCES, backbones

P = 8
PAIRS = [
    ("A man is eating food.", "He eats."),
    ("The weather in Paris was lovely all through the month of May, they said.", "It rained."),
]


def folder(name: str) -> str:
    found = backbones() / name
    if not found.is_dir():
        pytest.skip(f"{found} is made by make backbones")
    return str(found)


def plain(name: str, like: Backbone, dtype: torch.dtype) -> Any:
    """Transformers' own, with the same head."""
    model = AutoModelForSequenceClassification.from_pretrained(folder(name), num_labels=3, dtype=dtype).eval()
    with torch.no_grad():
        for each in like.head_names:
            model.get_parameter(each).copy_(like.model.get_parameter(each))
    return model


def task_on(name: str, dtype: torch.dtype) -> tuple[PTuningModel, dict[str, Tensor], list[Tensor]]:
    """A task with a prompt that matters and the backbone's head; a padded batch; and its rows."""
    found = load(folder(name), num_labels=3, problem_type=None, dtype=dtype).to(dtype)
    torch.manual_seed(0)
    prompt = DeepPrompt(num_virtual_tokens=P, pooling="native")
    model = PTuningModel.from_backbone(found, prompt, num_labels=3)
    with torch.no_grad():
        model.prompt_encoder.weight.normal_()
        for each, value in model.head.named().items():
            value.copy_(found.model.get_parameter(each))
    first, second = map(list, zip(*PAIRS, strict=True))
    texts = load_tokenizer(folder(name))(first, second, padding=True, return_tensors="pt")
    batch = {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
    rows = [ids[mask.bool()] for ids, mask in zip(*batch.values(), strict=True)]
    return model.eval(), batch, rows


@pytest.mark.parametrize("name", SOURCES)
def test_without_a_prompt_the_logits_are_transformers(name: str) -> None:
    model, batch, rows = task_on(name, torch.float32)
    peer = plain(name, model.backbone, torch.float32)
    with torch.no_grad(), model.disabled():
        assert_close(model(**batch).logits, torch.cat([peer(input_ids=row[None]).logits for row in rows]))


def test_mpnets_prompt_is_the_slow_references() -> None:
    name = "all-mpnet-base-v2"
    model, batch, rows = task_on(name, torch.float32)
    assert model.backbone.pooling == "mean"  # its 1_Pooling says so
    slow = SlowReference(plain(name, model.backbone, torch.float32))
    prompt = model.prompt_encoder.weight.detach()
    with torch.no_grad():
        expected = torch.stack([slow.logits(row.tolist(), prompt) for row in rows])
        assert_close(model(**batch).logits, expected.float())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_gemmas_prompt_is_transformers_own_cache(dtype: torch.dtype, tolerance: float) -> None:
    name = "gemma-3-270m"
    model, batch, rows = task_on(name, dtype)
    peer, found = plain(name, model.backbone, dtype), []
    prompt = model.prompt_encoder.weight.detach().to(dtype)
    assert model.position_offset == P  # the text's positions are behind a cache
    with torch.no_grad():
        for row in rows:
            cache = DynamicCache(config=peer.config)
            for layer, states in enumerate(prompt):
                keys, values = (
                    each.unflatten(1, (-1, model.backbone.head_dim)).transpose(0, 1)[None] for each in states
                )
                cache.update(keys, values, layer)
            mask = torch.ones(1, P + len(row), dtype=torch.long)
            found.append(peer(input_ids=row[None], attention_mask=mask, past_key_values=cache).logits[0])
        expected, got = torch.stack(found).float(), model(**batch).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", SOURCES)
def test_unlike_tasks_share_a_batch(name: str) -> None:
    found = load(folder(name), num_labels=2, problem_type=None, dtype=torch.float32)
    models, batch = unlike(found)[:6], batch_of([9, 4, 7, 5, 8, 6])
    tasks = [pack(model, str(n)) for n, model in enumerate(models)]
    with torch.inference_mode():
        answers = mixed_logits(found, batch, tasks)
    for n, (model, answer) in enumerate(zip(models, answers, strict=True)):
        expected = alone(model, batch, n)
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-4 * scale)  # 12 or 18 layers round more
