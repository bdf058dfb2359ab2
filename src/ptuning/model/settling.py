"""Deciding what a deep prompt leaves open, and refusing what an architecture cannot do."""

from __future__ import annotations

from dataclasses import replace

from ptuning import adapters
from ptuning.errors import ConfigError, UnsupportedBackbone
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, Pooling


def settle_prompt(config: DeepPrompt, backbone: Backbone, *, is_pair_similarity: bool = False) -> DeepPrompt:
    """``config`` with pooling and position offset decided.

    Args:
        config: The prompt, as the user wrote it.
        backbone: The model that it is for.
        is_pair_similarity: The task's (:class:`~ptuning.task.Task`).

    Raises:
        ConfigError: no layer left to prompt, or options that contradict each other.
        UnsupportedBackbone: the architecture cannot do it.
    """
    kind, can = backbone.config.model_type, backbone.port.can
    if config.first_layer >= backbone.num_layers:
        raise ConfigError(
            f"prompt.first_layer: {backbone.name} has {backbone.num_layers} layers, counted from 0",
            got=config.first_layer,
            expected=f"at most {backbone.num_layers - 1}",
        )
    if not backbone.attends_once:
        raise UnsupportedBackbone(
            f"{kind} with inner_group_num {backbone.config.inner_group_num} attends more than once per layer",
            remedy="use an input-depth prompt (prompt.depth: input)",
        )
    if config.head is not None and config.pooling is None:
        config = replace(config, pooling="native")
    causal = backbone.architecture.causal
    # A head that reads one token can read a similarity in its place.
    similarity = (backbone.reads_first_token or causal) and can.layers
    if config.pooling is None:
        by_mean = backbone.pooling == "mean" and can.layers
        read: Pooling = "layers" if by_mean else "native"
        apart = by_mean and is_pair_similarity and similarity and not causal
        config = replace(config, pooling="similarity" if apart else read)
    if config.pooling == "similarity" and not similarity:
        raise UnsupportedBackbone(
            f"{backbone.name} ({kind}) has no head that reads one token, which the similarity of two texts "
            "would replace",
            remedy="set prompt.pooling to mean or native",
        )
    if config.num_queries and config.pooling != "layers":
        raise ConfigError(
            f"prompt.num_queries is {config.num_queries}, but prompt.pooling {config.pooling!r} uses no "
            "queries",
            remedy="leave it out, or set prompt.pooling to layers",
        )
    config = replace(
        config, num_virtual_units=config.num_virtual_units or 0, num_queries=config.num_queries or 0
    )
    if not can.layers:
        _refuse_what_needs_layers(config, kind)
    if config.position_offset is None:
        like_peft = (
            config.first_layer == 0
            and backbone.architecture.takes_positions
            and kind not in adapters.NO_CACHE
        )
        config = replace(config, position_offset=config.num_virtual_tokens if like_peft else 0)
    if config.position_offset and not backbone.architecture.takes_positions:
        raise UnsupportedBackbone(
            f"{kind} has no position ids to move", remedy="set prompt.position_offset to 0"
        )
    return config


def _refuse_what_needs_layers(config: DeepPrompt, kind: str) -> None:
    """Refuse options that need the layers to be run one by one."""
    for name, wanted, remedy in (
        ("first_layer above 0", config.first_layer > 0, "prompt.first_layer to 0"),
        ("pooling other than native", config.pooling != "native", "prompt.pooling to native"),
        ("virtual units", config.num_virtual_units, "prompt.num_virtual_units to 0"),
    ):
        if wanted:
            raise UnsupportedBackbone(
                f"{kind} takes deep prompts as a key/value cache, which allows no {name}",
                remedy=f"set {remedy}",
            )
