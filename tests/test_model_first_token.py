"""A virtual token that the head reads starts as the token that the head has read before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ptuning import InputPrompt, PTuningModel
from ptuning.model.config import EmbeddingEncoder, MLPEncoder, RandomInit, ResidualEncoder, TextInit
from ptuning.peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tiny import tiny

P = 3
FIRST = 0  # the bos_token_id of tests/tiny.py


def initial(case: str = "bert", **options: Any) -> tuple[Tensor, Tensor]:
    """The initial prompt, and the backbone's word embeddings."""
    tokenizer = options.pop("tokenizer", None)
    backbone = tiny(case)
    torch.manual_seed(0)
    config = InputPrompt(num_virtual_tokens=P, **options)
    model = PTuningModel.from_backbone(backbone, config, num_labels=3, tokenizer=tokenizer)
    with torch.no_grad():
        return model.prompt_encoder(), backbone.get_input_embeddings().weight


@pytest.mark.parametrize("encoder", [EmbeddingEncoder(), ResidualEncoder(), MLPEncoder(residual=True)])
@pytest.mark.parametrize("case", ["bert", "roberta", "electra"])
def test_the_token_that_the_head_reads_starts_as_the_first_one(case: str, encoder: Any) -> None:
    found, words = initial(case, placement="start", encoder=encoder)
    assert torch.equal(found[0], words[FIRST])
    assert torch.equal(found[1:], initial(case, placement="front", encoder=encoder)[0][1:])


def test_random_values_leave_room_for_it() -> None:
    found, words = initial(placement="start", init=RandomInit())
    assert torch.equal(found[0], words[FIRST])
    assert not (words == found[1]).all(dim=1).any()


def test_the_tokenizer_knows_better_than_the_configuration() -> None:
    known = SimpleNamespace(cls_token_id=5, bos_token_id=None)
    found, words = initial(placement="start", tokenizer=known)
    assert torch.equal(found[0], words[5])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("bert", {"placement": "front"}),
        ("bert", {"placement": "end"}),
        ("gpt2", {"placement": "start"}),
        ("llama", {"placement": "start"}),
    ],
)
def test_no_other_virtual_token_does(case: str, options: dict[str, Any]) -> None:
    """A decoder's head reads the last token."""
    plain, words = initial(case, **options)
    assert not torch.equal(plain[0], words[FIRST])


def test_words_that_are_given_are_kept() -> None:
    def tokenizer(_: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [7, 8]}

    found, words = initial(placement="start", init=TextInit(text="two words"), tokenizer=tokenizer)
    assert torch.equal(found, words[[7, 8, 7]])


@pytest.mark.parametrize("config", [PromptEncoderConfig, PromptTuningConfig])
def test_under_pefts_names_it_is_that_of_the_backbones_own_tokenizer(config: Any, tiny_folder: Path) -> None:
    """Even where the configuration does not have it, as BERT's."""
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    base.config.bos_token_id = None
    words = base.get_input_embeddings().weight.detach().clone()
    made = get_peft_model(base, config(num_virtual_tokens=P, placement="start")).active
    with torch.no_grad():
        found = made.prompt_encoder()
    assert torch.equal(found[0], words[AutoTokenizer.from_pretrained(tiny_folder).cls_token_id])


def test_a_backbone_without_a_tokenizer_has_the_usual_values(tmp_path: Path) -> None:
    base = tiny("bert")
    base.config.bos_token_id = None
    base.save_pretrained(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    words = base.get_input_embeddings().weight.detach().clone()
    config = PromptTuningConfig(num_virtual_tokens=P, placement="start", prompt_tuning_init="SAMPLE_VOCAB")
    made = get_peft_model(base, config)
    with torch.no_grad():
        assert bool((words == made.active.prompt_encoder()[0]).all(dim=1).any())
