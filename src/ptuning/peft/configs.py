"""PEFT's configurations, field by field, and what they mean here.

A configuration is a choice; ``prompt`` turns it into ours (``model/config.py``). Fields that PEFT fills in
with facts of the backbone (``token_dim``, ``num_layers``, ``num_attention_heads``) may be given and are then
held against the backbone. Fields that are ours come last and say so.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError, OutputError
from ptuning.model import state
from ptuning.model.config import (
    DeepMLPEncoder,
    DeepPrompt,
    EmbeddingEncoder,
    InitConfig,
    InputPrompt,
    LSTMEncoder,
    MLPEncoder,
    Pooling,
    PromptConfig,
    RandomInit,
    TextInit,
    VocabularyInit,
    prompt_from_dict,
)

FILE = "adapter_config.json"

Kind = TypeVar("Kind", bound=StrEnum)


class PeftType(StrEnum):
    """The kinds of prompt learning that ptuning does."""

    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"


class TaskType(StrEnum):
    """The kinds of task that ptuning does: one, for classification and regression."""

    SEQ_CLS = "SEQ_CLS"


class PromptEncoderReparameterizationType(StrEnum):
    """What makes the prompt of ``P_TUNING``."""

    MLP = "MLP"
    LSTM = "LSTM"


class PromptTuningInit(StrEnum):
    """What the prompt of ``PROMPT_TUNING`` starts from."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass(kw_only=True)
class PeftConfig:
    """What every configuration has.

    Args:
        peft_type: Set by the class.
        task_type: ``"SEQ_CLS"``, or left out.
        base_model_name_or_path: The backbone; filled in by :func:`get_peft_model`.
        revision: Its branch, tag or commit on the Hub.
        inference_mode: Freeze the adapter as well.
    """

    peft_type: PeftType | None = None
    task_type: TaskType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        if self.task_type is None:
            self.task_type = TaskType.SEQ_CLS
        self.task_type = _choice(TaskType, "task_type", self.task_type)

    @property
    def is_prompt_learning(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write ``adapter_config.json`` alone; a model's ``save_pretrained`` writes the whole adapter.

        Raises:
            ConfigError: a whole adapter stands there, and it is of another configuration.
            OutputError: it could not be written.
        """
        folder = Path(save_directory)
        if adapters.is_adapter(folder):
            there = config_of(adapters.load(folder)).to_dict()
            said = {name: value for name, value in self.to_dict().items() if value is not None}
            for name in said.keys() - {"inference_mode"}:
                if there.get(name) != said[name]:
                    raise ConfigError(
                        f"{folder} has an adapter with {name} {there.get(name)!r}",
                        got=repr(said[name]),
                        remedy="choose another folder, or save the model: model.save_pretrained",
                    )
            return  # it is a part of the adapter, and written with it
        try:
            folder.mkdir(parents=True, exist_ok=True)
            values = {**self.to_dict(), "auto_mapping": adapters.WRITTEN_BY_US}
            (folder / FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{folder / FILE} could not be written: {error.strerror}") from error

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> PeftConfig:
        """The configuration of an adapter folder or Hub repository: one of ours, or one that PEFT wrote.

        Raises:
            AdapterError: there is none.
        """
        folder = adapters.locate(pretrained_model_name_or_path, revision=revision, token=token)
        if not adapters.is_adapter(folder) and (own := _own(folder)) is not None:
            return get_peft_config(own)
        if adapters.is_adapter(folder):
            return config_of(adapters.load(folder))
        if (folder / state.FILE).is_file():
            raise AdapterError(
                f"{folder} is a Trainer checkpoint without a PEFT configuration",
                remedy="open it with PeftModel.from_pretrained, and save it with save_pretrained",
            )
        return _of_peft(adapters.peft_config(folder))


@dataclass(kw_only=True)
class PromptLearningConfig(PeftConfig):
    """What every kind of prompt has.

    Args:
        num_virtual_tokens: P.
        token_dim: E, or H_kv for a prefix; found from the backbone, and held against it if given.
        num_transformer_submodules: 1.
        num_attention_heads: Held against the backbone if given.
        num_layers: L; held against the backbone if given.
        modules_to_save: Modules of the backbone, by the end of their names, of which the task trains and
            keeps a copy, besides the head.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_virtual_tokens is None or self.num_virtual_tokens < 1:
            raise ConfigError(
                "num_virtual_tokens", got=self.num_virtual_tokens, expected="at least 1", remedy="20 is usual"
            )
        if self.num_transformer_submodules not in (None, 1):
            raise ConfigError(
                "num_transformer_submodules",
                got=self.num_transformer_submodules,
                expected="1, because ptuning has no encoder-decoder models",
            )

    def prompt(self) -> PromptConfig:
        """The choice as ptuning's own configuration."""
        raise NotImplementedError  # pragma: no cover - abstract


@dataclass(kw_only=True)
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning (arXiv:2103.10385): input virtual tokens from an MLP or an LSTM.

    Args:
        encoder_reparameterization_type: ``MLP`` or ``LSTM``.
        encoder_hidden_size: The encoder's width; the embedding width E if left out.
        encoder_num_layers: LSTM layers. The MLP always has three linear layers, as PEFT's.
        encoder_dropout: Between LSTM layers.
        placement: Ours. ``front`` (after ``[CLS]``, which stays the pooled token), ``between``, ``middle``,
            ``end``, a template, or ``start``: PEFT's place, where the first virtual token is pooled, and the
            only one whose files PEFT can read.
        prompt_rate_scale: Ours. How many times as far as the Trainer's one learning rate says the prompt
            moves; 1 for just as far. Everyone's P-tuning script says 1e-3, which moves neither the prompt nor
            the head enough to leave the majority class.
        head_rate_scale: Ours. The same for the head.
    """

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    placement: str = "front"
    prompt_rate_scale: float = 30.0
    head_rate_scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.P_TUNING
        kind = _choice(
            PromptEncoderReparameterizationType,
            "encoder_reparameterization_type",
            self.encoder_reparameterization_type,
        )
        self.encoder_reparameterization_type = kind
        if kind == "MLP" and (self.encoder_num_layers, self.encoder_dropout) != (2, 0.0):
            raise ConfigError(
                f"encoder_num_layers {self.encoder_num_layers} and encoder_dropout {self.encoder_dropout} "
                "are options of the LSTM; the MLP always has three linear layers and no dropout",
                remedy="leave them out, or set encoder_reparameterization_type to 'LSTM'",
            )
        for name in ("prompt_rate_scale", "head_rate_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(name, got=getattr(self, name), expected="a number above 0")
        self.prompt()

    def prompt(self) -> InputPrompt:
        width = self.encoder_hidden_size
        encoder = (
            MLPEncoder(width=width, residual=True)
            if self.encoder_reparameterization_type == "MLP"
            else LSTMEncoder(width=width, num_layers=self.encoder_num_layers, dropout=self.encoder_dropout)
        )
        return InputPrompt(
            num_virtual_tokens=self.num_virtual_tokens, placement=self.placement, encoder=encoder
        )


@dataclass(kw_only=True)
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning (arXiv:2104.08691): input virtual tokens that are trained as they are.

    Args:
        prompt_tuning_init: ``RANDOM``, ``SAMPLE_VOCAB`` or ``TEXT``.
        prompt_tuning_init_text: The words to start from, for ``TEXT``.
        tokenizer_name_or_path: What turns them into tokens, for ``TEXT``.
        tokenizer_kwargs: Not taken: give the tokenizer's folder instead.
        placement: Ours; as in :class:`PromptEncoderConfig`.
    """

    prompt_tuning_init: PromptTuningInit | str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None
    placement: str = "front"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PROMPT_TUNING
        kind = _choice(PromptTuningInit, "prompt_tuning_init", self.prompt_tuning_init)
        self.prompt_tuning_init = kind
        if kind == "TEXT" and not (self.prompt_tuning_init_text and self.tokenizer_name_or_path):
            raise ConfigError(
                "prompt_tuning_init 'TEXT' needs prompt_tuning_init_text and tokenizer_name_or_path"
            )
        if self.tokenizer_kwargs:
            raise ConfigError(
                "tokenizer_kwargs are not supported",
                remedy="save the tokenizer with these options, and name its folder in tokenizer_name_or_path",
            )
        self.prompt()

    def prompt(self) -> InputPrompt:
        init: InitConfig
        match self.prompt_tuning_init:
            case "TEXT":
                init = TextInit(text=self.prompt_tuning_init_text or "")
            case "SAMPLE_VOCAB":
                init = VocabularyInit()
            case _:
                init = RandomInit()
        return InputPrompt(num_virtual_tokens=self.num_virtual_tokens, placement=self.placement, init=init)


@dataclass(kw_only=True)
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning (arXiv:2101.00190), P-tuning v2 (arXiv:2110.07602): keys and values in every layer.

    Args:
        init_weights: ``"zero"`` for keys and values of nought; random if left out.
        encoder_hidden_size: The projection's width; the hidden width H if left out.
        prefix_projection: Whether a two-layer MLP makes the prompt.
        first_layer: Ours. The first layer that has a prompt; PEFT reads only 0.
        position_offset: Ours. How far the text's positions are moved up; P, as PEFT has it, if left out.
        pooling: Ours. ``"mean"`` lets the head read the mean of the text's tokens, ``"layers"`` a trained mix
            of every layer's, ``"similarity"`` how well a pair's two texts agree; PEFT knows only the
            backbone's own pooled token.
        num_virtual_units: Ours. Hidden units that every layer's feed-forward network has beside its own; none
            if left out. PEFT has no place for them.
        num_queries: Ours. Learned queries in the mix of ``pooling="layers"``; none if left out.
    """

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False
    first_layer: int = 0
    position_offset: int | None = None
    pooling: Pooling | None = None
    num_virtual_units: int | None = None
    num_queries: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PREFIX_TUNING
        if self.init_weights not in (None, "zero"):
            raise ConfigError("init_weights", got=repr(self.init_weights), expected="'zero' or None")
        self.prompt()

    def prompt(self) -> DeepPrompt:
        assert self.num_virtual_tokens is not None  # checked when this was made
        return DeepPrompt(
            num_virtual_tokens=self.num_virtual_tokens,
            first_layer=self.first_layer,
            position_offset=self.position_offset,
            pooling=self.pooling,
            num_virtual_units=self.num_virtual_units,
            num_queries=self.num_queries,
            encoder=DeepMLPEncoder(width=self.encoder_hidden_size)
            if self.prefix_projection
            else EmbeddingEncoder(),
        )


CONFIGS: Mapping[str, type[PromptLearningConfig]] = {
    "P_TUNING": PromptEncoderConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
}


def get_peft_config(config_dict: Mapping[str, Any]) -> PromptLearningConfig:
    """The configuration that a mapping with ``peft_type`` describes.

    Raises:
        ConfigError: a method that is not a prompt, or a key that its configuration does not have.
    """
    values = dict(config_dict)
    kind = values.pop("peft_type", None)
    if kind not in CONFIGS:
        raise ConfigError(
            "peft_type",
            got=repr(kind),
            expected=f"one of {', '.join(CONFIGS)}",
            remedy="use PEFT for other methods",
        )
    known = [field.name for field in fields(CONFIGS[kind])]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            raise ConfigError(f"{CONFIGS[kind].__name__} has no {name!r}", remedy=hint)
    return CONFIGS[kind](**values)


def config_of(adapter: adapters.Adapter) -> PromptLearningConfig:
    """The configuration that an adapter was trained with, in PEFT's words."""
    prompt = prompt_from_dict(adapter.prompt)
    facts = adapter.backbone
    shared: dict[str, Any] = {
        "num_virtual_tokens": adapter.virtual_tokens,
        "base_model_name_or_path": facts.get("name"),
        "revision": facts.get("revision"),
        "num_layers": facts.get("num_layers"),
        "inference_mode": True,
        "modules_to_save": adapters.modules_to_save(adapter) or None,
    }
    if isinstance(prompt, DeepPrompt):
        projection = prompt.encoder if isinstance(prompt.encoder, DeepMLPEncoder) else None
        return PrefixTuningConfig(
            **shared,
            first_layer=prompt.first_layer,
            position_offset=prompt.position_offset,
            pooling=prompt.pooling,
            num_virtual_units=prompt.num_virtual_units,
            num_queries=prompt.num_queries,
            prefix_projection=projection is not None,
            encoder_hidden_size=projection.width if projection else None,
        )
    placed = {**shared, "placement": prompt.placement, "token_dim": facts.get("embedding_size")}
    scales = dict(
        zip(
            ("prompt_rate_scale", "head_rate_scale"),
            adapter.extra.get("rate_scales", (1.0, 1.0)),
            strict=True,
        )
    )
    match prompt.encoder:
        case MLPEncoder(width=width):
            return PromptEncoderConfig(**placed, **scales, encoder_hidden_size=width)
        case LSTMEncoder(width=width, num_layers=layers, dropout=dropout):
            return PromptEncoderConfig(
                **placed,
                **scales,
                encoder_reparameterization_type="LSTM",
                encoder_hidden_size=width,
                encoder_num_layers=layers,
                encoder_dropout=dropout,
            )
        case _:  # PEFT has no residual encoder; what it made is a plain prompt
            return PromptTuningConfig(**placed)


def _own(folder: Path) -> dict[str, Any] | None:
    """What :meth:`PeftConfig.save_pretrained` wrote, if it is that."""
    try:
        values = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("auto_mapping") != adapters.WRITTEN_BY_US:
        return None
    return {**values, "auto_mapping": None}


def _of_peft(written: Mapping[str, Any]) -> PromptLearningConfig:
    """The configuration in a file that PEFT wrote: every input prompt of its stands before ``[CLS]``."""
    known = adapters.PEFT_OPTIONS[written["peft_type"]]
    values = {name: value for name, value in written.items() if name in known and value is not None}
    if values["peft_type"] != "PREFIX_TUNING":
        values["placement"] = "start"
    if values.get("encoder_reparameterization_type") == "MLP":  # PEFT writes them, and does not read them
        values.pop("encoder_num_layers", None)
        values.pop("encoder_dropout", None)
    return get_peft_config(values)


def _choice(kind: type[Kind], name: str, value: object) -> Kind:
    try:
        return kind(str(value))
    except ValueError:
        raise ConfigError(name, got=repr(str(value)), expected=f"one of {', '.join(kind)}") from None
