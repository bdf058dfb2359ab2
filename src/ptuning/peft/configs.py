"""PEFT's configuration classes, with the same fields.

Their method ``prompt`` converts them to ptuning's configuration (``model/config.py``). Fields that PEFT fills
in with facts of the backbone (``token_dim``, ``num_layers``, ``num_attention_heads``) may be given, and are
then compared with the backbone. Fields that PEFT does not have come last and are marked "ptuning only".
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
    """The supported methods of prompt learning."""

    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"


class TaskType(StrEnum):
    """The only supported task type, which includes classification and regression."""

    SEQ_CLS = "SEQ_CLS"


class PromptEncoderReparameterizationType(StrEnum):
    """The prompt encoder of ``P_TUNING``."""

    MLP = "MLP"
    LSTM = "LSTM"


class PromptTuningInit(StrEnum):
    """The initialisation of the prompt of ``PROMPT_TUNING``."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass(kw_only=True)
class PeftConfig:
    """The fields of all configurations.

    Args:
        peft_type: Set by the class.
        task_type: ``"SEQ_CLS"`` or ``None``.
        base_model_name_or_path: The backbone; filled in by :func:`get_peft_model`.
        revision: Its branch, tag or commit on the Hub.
        inference_mode: Whether to freeze the adapter as well.
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
        """All fields, ready for JSON."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write only ``adapter_config.json``; a model's ``save_pretrained`` writes the complete adapter.

        Raises:
            ConfigError: the folder has an adapter with another configuration.
            OutputError: it could not be written.
        """
        folder = Path(save_directory)
        if adapters.is_adapter(folder):
            there = config_of(adapters.load(folder)).to_dict()
            given = {name: value for name, value in self.to_dict().items() if value is not None}
            for name in given.keys() - {"inference_mode"}:
                if there.get(name) != given[name]:
                    raise ConfigError(
                        f"{folder} has an adapter with {name} {there.get(name)!r}",
                        got=repr(given[name]),
                        remedy="choose another folder, or save the model: model.save_pretrained",
                    )
            return  # it is part of the adapter already
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
        """The configuration of an adapter folder or Hub repository, written by ptuning or PEFT.

        Raises:
            AdapterError: no adapter there.
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
    """The fields of all prompt configurations.

    Args:
        num_virtual_tokens: P, the number of virtual tokens.
        token_dim: E, or H_kv for a prefix; taken from the backbone, and compared with it if given.
        num_transformer_submodules: 1.
        num_attention_heads: Compared with the backbone if given.
        num_layers: L; compared with the backbone if given.
        modules_to_save: Modules of the backbone, by the end of their names, that the task trains and saves a
            copy of, in addition to the head.
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
                "num_virtual_tokens",
                got=str(self.num_virtual_tokens),
                expected="at least 1",
                remedy="20 is usual",
            )
        if self.num_transformer_submodules not in (None, 1):
            raise ConfigError(
                "num_transformer_submodules",
                got=self.num_transformer_submodules,
                expected="1, because ptuning has no encoder-decoder models",
            )

    def prompt(self) -> PromptConfig:
        """Ptuning's own configuration of this prompt."""
        raise NotImplementedError  # pragma: no cover - abstract


@dataclass(kw_only=True)
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning (arXiv:2103.10385): input virtual tokens from an MLP or an LSTM.

    Args:
        encoder_reparameterization_type: ``MLP`` or ``LSTM``.
        encoder_hidden_size: The encoder's width; the embedding width E if ``None``.
        encoder_num_layers: The number of LSTM layers. The MLP always has three linear layers, as in PEFT.
        encoder_dropout: Dropout between LSTM layers.
        placement: ptuning only. ``front`` (after ``[CLS]``, which remains the token that the head reads),
            ``between``, ``middle``, ``end``, a template, or ``start``, which is PEFT's placement: before
            ``[CLS]``, so that an encoder's head reads the first virtual token. PEFT can load adapters with
            ``start`` only; in short trainings they learn less.
        prompt_rate_scale: ptuning only. A factor on the Trainer's learning rate for the prompt. The usual
            1e-3 of P-tuning scripts is too low for prompt and head to leave the majority class.
        head_rate_scale: ptuning only. The same for the head.
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
    """Prompt tuning (arXiv:2104.08691): input virtual tokens that are trained directly.

    Args:
        prompt_tuning_init: ``RANDOM``, ``SAMPLE_VOCAB`` or ``TEXT``.
        prompt_tuning_init_text: The words for the initialisation, for ``TEXT``.
        tokenizer_name_or_path: The tokenizer for them, for ``TEXT``.
        tokenizer_kwargs: Not supported; pass the folder of a tokenizer instead.
        placement: ptuning only; as in :class:`PromptEncoderConfig`.
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
        init_weights: ``"zero"`` to initialise keys and values with zeros; random if ``None``.
        encoder_hidden_size: The width of the projection; the hidden width H if ``None``.
        prefix_projection: Whether the prompt is the output of a two-layer MLP.
        first_layer: ptuning only. The first layer with a prompt; PEFT only supports 0.
        position_offset: ptuning only. The shift of the text's position ids; P, as in PEFT, if ``None``.
        pooling: ptuning only. The input of the head: ``"mean"``, the mean of the text's tokens;
            ``"layers"``, a trained mix over all layers; ``"similarity"``, the similarity of the two texts of
            a pair. PEFT only supports the backbone's own pooled token.
        num_virtual_units: ptuning only. Additional hidden units in the feed-forward network of every layer; 0
            if ``None``.
        num_queries: ptuning only. Learned queries in the mix of ``pooling="layers"``; 0 if ``None``.
        template: ptuning only. Words around the text, such as ``"{text}\\nIn one word:"``; none if ``None``.
    """

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False
    first_layer: int = 0
    position_offset: int | None = None
    pooling: Pooling | None = None
    num_virtual_units: int | None = None
    num_queries: int | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PREFIX_TUNING
        if self.init_weights not in (None, "zero"):
            raise ConfigError("init_weights", got=repr(self.init_weights), expected="'zero' or None")
        self.prompt()

    def prompt(self) -> DeepPrompt:
        assert self.num_virtual_tokens is not None  # checked in __post_init__
        return DeepPrompt(
            num_virtual_tokens=self.num_virtual_tokens,
            first_layer=self.first_layer,
            position_offset=self.position_offset,
            pooling=self.pooling,
            num_virtual_units=self.num_virtual_units,
            num_queries=self.num_queries,
            template=self.template,
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
    """The configuration from a mapping with ``peft_type``.

    Raises:
        ConfigError: a method that is not prompt learning, or an unknown field.
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
    """The configuration of an adapter as one of PEFT's classes."""
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
            template=prompt.template,
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
        case _:  # PEFT has no residual encoder; its output is a plain prompt
            return PromptTuningConfig(**placed)


def _own(folder: Path) -> dict[str, Any] | None:
    """The file written by :meth:`PeftConfig.save_pretrained`; ``None`` for any other file."""
    try:
        values = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("auto_mapping") != adapters.WRITTEN_BY_US:
        return None
    return {**values, "auto_mapping": None}


def _of_peft(written: Mapping[str, Any]) -> PromptLearningConfig:
    """The configuration in a file that PEFT wrote; its input prompts are always placed before ``[CLS]``."""
    known = adapters.PEFT_OPTIONS[written["peft_type"]]
    values = {name: value for name, value in written.items() if name in known and value is not None}
    if values["peft_type"] != "PREFIX_TUNING":
        values["placement"] = "start"
    if values.get("encoder_reparameterization_type") == "MLP":  # PEFT writes but does not use them
        values.pop("encoder_num_layers", None)
        values.pop("encoder_dropout", None)
    return get_peft_config(values)


def _choice(kind: type[Kind], name: str, value: object) -> Kind:
    try:
        return kind(str(value))
    except ValueError:
        raise ConfigError(name, got=repr(str(value)), expected=f"one of {', '.join(kind)}") from None
