"""Tiny random language models on disk, with tokenizers of each way, for the tests of cloze heads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ptuning.model.architectures import ARCHITECTURES
from tiny import _COMMON, SPECIFICS, VARIANTS

CORPUS = (
    "It was a great film , truly wonderful and moving .",
    "It was a terrible film , dull and bad .",
    "Review : the plot is good ? no , the acting is bad .",
    "both sentences mean the same thing ; they are different .",
    "yes no not maybe okay great terrible bad good equivalent",
)
LABELS = ("negative", "positive")


@cache
def tokenizer(way: str) -> PreTrainedTokenizerFast:
    """``bytes`` as RoBERTa and GPT-2, ``pieces`` as Llama and Gemma, ``words`` as BERT; the last two letters
    say whether it closes rows (``bytes closed``).
    """
    kind, _, closes = way.partition(" ")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner = Tokenizer(
        models.BPE(unk_token="<unk>") if kind != "words" else models.WordPiece(unk_token="<unk>")
    )
    trainer: Any = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, show_progress=False, initial_alphabet=["\n", "(", ":"]
    )
    if kind == "bytes":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "pieces":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    else:
        inner.normalizer = normalizers.BertNormalizer()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if closes else "<s> $A",
        pair="<s> $A </s> $B:1 </s>:1" if closes else "<s> $A <s> $B",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>" if closes else None,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def language_model(folder: Path, case: str, *, way: str = "", **overrides: Any) -> PreTrainedModel:
    """A random masked or causal language model, saved in ``folder`` with its tokenizer."""
    kind, specifics = VARIANTS.get(case, (case, {}))
    causal = ARCHITECTURES[kind].causal
    words = tokenizer(way or ("pieces" if causal else "bytes closed"))
    torch.manual_seed(0)
    options = {"initializer_range": 0.2, **SPECIFICS[kind], **specifics, **overrides}
    config = AutoConfig.for_model(kind, **{**_COMMON, **options, "vocab_size": len(words)})
    made: Any = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model: PreTrainedModel = made.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model.eval()
