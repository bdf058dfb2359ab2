"""The architectures that can be a backbone: a row of :data:`ARCHITECTURES` has all that differs between them.

``backbone.py`` reads it, and docs/backbones.md shows it. Plain data: it does not need torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What differs between one family of models and another.

    Args:
        layers: Where in the transformer its layers are.
        feed_forward: The first and the last linear layer of a layer's feed-forward network.
        final: What the transformer applies behind its last layer, in this order; where a configuration goes
            without one of them, it is skipped.
        causal: A decoder: it pools its last token, and padding belongs in front of the text.
        attention: How a deep prompt reaches the attention: through transformers' attention interface, with
            keyword arguments or, where the layers hand none on, a context variable; through a replacement of
            the attention modules; or as a key/value cache (:data:`ptuning.model.ports.PORTS`).
        takes_positions: Whether its forward takes ``position_ids``.
        after_padding: Whether the first position is ``pad_token_id + 1`` (RoBERTa's habit).
        segments: Whether ``token_type_ids`` mean the two texts.
        same_length: Whether its code behind the layers needs as many tokens as went in.
    """

    layers: str = "layers"
    feed_forward: tuple[str, str] = ("mlp.gate_proj", "mlp.down_proj")
    final: tuple[str, ...] = ()
    causal: bool = False
    attention: Literal["interface", "context", "replaced", "cache"] = "interface"
    takes_positions: bool = True
    after_padding: bool = False
    segments: bool = False
    same_length: bool = False


_BERT = Architecture(
    layers="encoder.layer", feed_forward=("intermediate.dense", "output.dense"), segments=True
)
_ROBERTA = replace(_BERT, after_padding=True)
_DECODER = Architecture(final=("norm",), causal=True)
_EXPERTS = replace(_DECODER, feed_forward=("mlp", "mlp"))

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": _BERT,
    "electra": _BERT,
    "albert": replace(
        _BERT,
        layers="encoder.albert_layer_groups",
        feed_forward=("albert_layers.0.ffn", "albert_layers.0.ffn_output"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Architecture(layers="transformer.layer", feed_forward=("ffn.lin1", "ffn.lin2")),
    "modernbert": Architecture(feed_forward=("mlp.Wi", "mlp.Wo"), final=("final_norm",)),
    "deberta-v2": replace(_BERT, attention="replaced"),
    "mpnet": replace(_ROBERTA, attention="replaced", segments=False),
    "ernie": _BERT,
    "xlm-roberta-xl": replace(_ROBERTA, final=("encoder.LayerNorm",)),
    "roberta-prelayernorm": replace(_ROBERTA, final=("LayerNorm",)),
    "eurobert": Architecture(final=("norm",)),
    "nomic_bert": Architecture(segments=True),
    "gte": Architecture(segments=True),
    "jina_embeddings_v3": Architecture(feed_forward=("mlp.fc1", "mlp.fc2"), segments=True),
    "data2vec-text": _ROBERTA,
    "ultrabert": Architecture(final=("norm",)),
    "gpt2": replace(
        _DECODER, layers="h", feed_forward=("mlp.c_fc", "mlp.c_proj"), final=("ln_f",), same_length=True
    ),
    "opt": replace(
        _DECODER,
        layers="decoder.layers",
        feed_forward=("fc1", "fc2"),
        final=("decoder.final_layer_norm", "decoder.project_out"),
    ),
    "gpt_neox": replace(
        _DECODER, feed_forward=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), final=("final_layer_norm",)
    ),
    "bloom": Architecture(layers="h", final=("ln_f",), causal=True, attention="cache", takes_positions=False),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "gemma3_text": _DECODER,
    "phi3": replace(_DECODER, feed_forward=("mlp.gate_up_proj", "mlp.down_proj")),
    "gpt_bigcode": replace(
        _DECODER, layers="h", feed_forward=("mlp.c_fc", "mlp.c_proj"), final=("ln_f",), same_length=True
    ),
    "biogpt": replace(_DECODER, feed_forward=("fc1", "fc2"), final=("layer_norm",)),
    "olmo": _DECODER,
    "olmo2": _DECODER,
    "olmo3": _DECODER,
    "smollm3": _DECODER,
    "starcoder2": replace(_DECODER, feed_forward=("mlp.c_fc", "mlp.c_proj")),
    "phi": replace(_DECODER, feed_forward=("mlp.fc1", "mlp.fc2"), final=("final_layernorm",)),
    "glm": replace(_DECODER, feed_forward=("mlp.gate_up_proj", "mlp.down_proj")),
    "glm4": replace(_DECODER, feed_forward=("mlp.gate_up_proj", "mlp.down_proj")),
    "persimmon": replace(
        _DECODER, feed_forward=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), final=("final_layernorm",)
    ),
    "exaone4": _DECODER,
    "seed_oss": _DECODER,
    "ministral": _DECODER,
    "helium": _DECODER,
    "hunyuan_v1_dense": _DECODER,
    "arcee": replace(_DECODER, feed_forward=("mlp.up_proj", "mlp.down_proj")),
    "ministral3": _DECODER,
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "phimoe": _EXPERTS,
    "hunyuan_v1_moe": _EXPERTS,
    "gpt_oss": replace(_DECODER, feed_forward=("mlp.experts", "mlp.experts")),
    "stablelm": replace(_DECODER, attention="context"),
    "nemotron": replace(_DECODER, feed_forward=("mlp.up_proj", "mlp.down_proj"), attention="context"),
    "gpt_neo": replace(
        _DECODER,
        layers="h",
        feed_forward=("mlp.c_fc", "mlp.c_proj"),
        final=("ln_f",),
        attention="replaced",
    ),
    "gptj": replace(
        _DECODER,
        layers="h",
        feed_forward=("mlp.fc_in", "mlp.fc_out"),
        final=("ln_f",),
        attention="replaced",
    ),
}
"""By ``config.model_type``. What is not here is refused by name; what is here is in the oracle tests."""

EXPECTED = (
    f"one of {len(ARCHITECTURES)} architectures (docs/backbones.md), such as bert, roberta, llama or qwen3"
)
"""What errors say about any other ``model_type``; all names would be too many for a line."""
