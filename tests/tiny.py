"""Tiny random models of every supported architecture, made on the spot."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

VOCAB, HIDDEN, LAYERS, HEADS, PAD = 97, 32, 3, 4, 1

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_FAR = {
    **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 4},
    "llama_4_scaling_beta": 0.5,
}

SPECIFICS: dict[str, dict[str, Any]] = {
    "bert": {},
    "electra": {"embedding_size": 20},
    "albert": {"embedding_size": 20, "num_hidden_groups": 1},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "distilbert": {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48},
    "modernbert": {
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    },
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "position_buckets": 8,
        "max_relative_positions": 16,
        "type_vocab_size": 0,
    },
    "mpnet": {},
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64},
    "gpt_neox": {},
    "opt": {"word_embed_proj_dim": 20, "ffn_dim": 48, "do_layer_norm_before": True},
    "bloom": {"n_layer": LAYERS, "n_head": HEADS},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 128},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_GROUPED, "query_pre_attn_scalar": 8},
    "phi3": _GROUPED,
    "ernie": {},
    "xlm-roberta-xl": {"type_vocab_size": 1},
    "roberta-prelayernorm": {"type_vocab_size": 1},
    "eurobert": _GROUPED,
    "nomic_bert": {},
    "gte": {},
    "jina_embeddings_v3": {},
    "gpt_bigcode": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64},
    "biogpt": {},
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED,
    "smollm3": {**_GROUPED, "no_rope_layer_interval": 2},
    "starcoder2": _GROUPED,
    "phi": _GROUPED,
    "glm": _GROUPED,
    "glm4": _GROUPED,
    "persimmon": {},
    "exaone4": _GROUPED,
    "seed_oss": _GROUPED,
    "ministral": _GROUPED,
    "helium": _GROUPED,
    "hunyuan_v1_dense": _GROUPED,
    "arcee": _GROUPED,
    "data2vec-text": {"type_vocab_size": 1},
    "ultrabert": {**_GROUPED, "sliding_window": 128},
    "ministral3": {**_GROUPED, "rope_parameters": _FAR},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen2_moe": {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_GROUPED, **_EXPERTS},
    "phimoe": {**_GROUPED, "num_local_experts": 4},
    "hunyuan_v1_moe": {**_GROUPED, "num_experts": 4, "moe_topk": 2},
    "gpt_oss": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "stablelm": {**_GROUPED, "qk_layernorm": True},
    "nemotron": {**_GROUPED, "initializer_range": 0.1},
    "gpt_neo": {
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
    },
    "gptj": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "rotary_dim": 4},
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "albert, own weights a layer": ("albert", {"num_hidden_groups": LAYERS}),
    "roberta, two segments": ("roberta", {"type_vocab_size": 2}),
    "modernbert, mean pooling": ("modernbert", {"classifier_pooling": "mean"}),
    "deberta-v3": ("deberta-v2", {"share_att_key": True, "norm_rel_ebd": "layer_norm"}),
    "deberta-v2, convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v2, segments and places": ("deberta-v2", {"type_vocab_size": 2, "position_biased_input": True}),
    "gpt2, layers scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "opt, norm behind": ("opt", {"do_layer_norm_before": False}),
    "mistral, sliding": ("mistral", {"sliding_window": 4}),
    "qwen2, sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 12}),
    "gemma2, sliding": ("gemma2", {"sliding_window": 4}),
    "gemma3_text, sliding": ("gemma3_text", {"sliding_window": 4}),
    "phi3, sliding": ("phi3", {"sliding_window": 4}),
    "ernie, task ids": ("ernie", {"use_task_id": True}),
    "gte, two segments": ("gte", {"type_vocab_size": 2}),
    "jina_embeddings_v3, two segments": ("jina_embeddings_v3", {"type_vocab_size": 2}),
    "eurobert, mean pooling": ("eurobert", {"classifier_pooling": "mean"}),
    "eurobert, first token": ("eurobert", {"classifier_pooling": "bos"}),
    "ultrabert, sliding": ("ultrabert", {"sliding_window": 4}),
    "ultrabert, mean pooling": ("ultrabert", {"classifier_pooling": "mean"}),
    "gpt_bigcode, a key for each head": ("gpt_bigcode", {"multi_query": False}),
    "stablelm, side by side": ("stablelm", {"qk_layernorm": False, "use_parallel_residual": True}),
    "gpt_neo, window": ("gpt_neo", {"window_size": 3}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "olmo3, sliding": ("olmo3", {"sliding_window": 4}),
    "smollm3, sliding": ("smollm3", {"use_sliding_window": True, "sliding_window": 4}),
    "starcoder2, sliding": ("starcoder2", {"sliding_window": 4}),
    "phi, normed": ("phi", {"qk_layernorm": True}),
    "persimmon, not normed": ("persimmon", {"qk_layernorm": False}),
    "exaone4, sliding": ("exaone4", {"sliding_window": 4, "sliding_window_pattern": 2}),
    "ministral, sliding": ("ministral", {"sliding_window": 4}),
    "mixtral, sliding": ("mixtral", {"sliding_window": 4}),
    "qwen2_moe, a dense layer": ("qwen2_moe", {"mlp_only_layers": [1]}),
    "qwen3_moe, a dense layer": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "gpt_oss, sliding": ("gpt_oss", {"sliding_window": 4}),
}
"""Configurations of real checkpoints that take another way through their architecture's code."""

CASES = (*SPECIFICS, *VARIANTS)

FAMILIES = (
    "bert",
    "roberta",
    "albert",
    "distilbert",
    "modernbert",
    "deberta-v2",
    "mpnet",
    "gpt2",
    "opt",
    "bloom",
    "llama",
    "gemma3_text, sliding",
    "stablelm",
    "gpt_neo, window",
)
"""One of each way through ptuning's code. The others differ from one of them inside transformers' code alone;
all of them are compared with the reference.
"""
TWINS = ("xlm-roberta", "camembert", "data2vec-text")
"""RoBERTa's code and RoBERTa's row of the table."""
DISTINCT = tuple(case for case in CASES if case not in TWINS)

REFERENCE_ONLY = frozenset(
    (
        *("arcee", "biogpt", "ernie", "eurobert", "exaone4", "glm", "glm4", "gpt_bigcode", "gpt_oss", "gptj"),
        *("gte", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jina_embeddings_v3", "ministral"),
        *("ministral3", "mixtral", "nemotron", "nomic_bert", "olmo", "olmo2", "olmo3", "persimmon", "phi"),
        *("phimoe", "qwen2_moe", "qwen3_moe", "roberta-prelayernorm", "seed_oss", "smollm3", "starcoder2"),
        *("ultrabert", "xlm-roberta-xl"),
    )
)
"""Architectures that take a way through ptuning's code which others take too. They are compared with the
reference and with PEFT, and spared the tests of what ptuning's own code does."""
THOROUGH = tuple(case for case in DISTINCT if case.partition(",")[0] not in REFERENCE_ONLY)


def tiny_case(name: str, **overrides: Any) -> PreTrainedModel:
    """The tiny model of an architecture, or of one of :data:`VARIANTS`."""
    kind, specifics = VARIANTS.get(name, (name, {}))
    return tiny(kind, **{**specifics, **overrides})


def tiny(kind: str, *, num_labels: int = 3, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of architecture ``kind`` in fp32, with initial weights large enough to matter."""
    torch.manual_seed(seed)
    specifics = deepcopy({"initializer_range": 0.2, **SPECIFICS[kind], **overrides})
    config = AutoConfig.for_model(kind, **{**_COMMON, **specifics}, num_labels=num_labels)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # biases and norms start at 0 and 1 everywhere: a swapped one would not be seen
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ragged(lengths: list[int], *, left: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ``input_ids`` and ``attention_mask`` ``[B, T]`` with rows of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if left else slice(0, length)
        ids[row, place] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask
