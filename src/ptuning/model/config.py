"""The options of a prompt and of the engine. Nothing here is read from a backbone.

There is one frozen dataclass per choice, so an option that a choice does not have cannot be written. Types
and bounds are checked (:func:`~ptuning.validation.checked`). Nothing here imports torch: ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ptuning.errors import ConfigError
from ptuning.model.template import (
    DEFAULT_PLACEMENT,
    Insertion,
    cloze_insertions,
    insertions,
    template_texts,
    template_words,
)
from ptuning.validation import Float, Int, checked, validated

Width = Annotated[Int, Field(ge=1, le=65_536)]
"""Of an encoder's layer."""
Dropout = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[Int, Field(ge=0, le=65_536)]
"""Of virtual tokens, units, queries or layers; the bound is more than any backbone has positions for."""
Some = Annotated[Int, Field(ge=1, le=65_536)]
"""A :data:`Count` of at least one."""
GiB = Annotated[Float, Field(ge=0, le=1_048_576)]


# ------------------------------------------------------------------------------- prompt encoders


@checked
@dataclass(frozen=True, kw_only=True)
class EmbeddingEncoder:
    """The prompt itself is trained, P × E parameters (prompt tuning, arXiv:2104.08691)."""

    kind: Literal["embedding"] = "embedding"


@checked
@dataclass(frozen=True, kw_only=True)
class MLPEncoder:
    """Three linear layers make the prompt, as PEFT's ``PromptEncoder`` does.

    Args:
        width: The width of the two hidden layers; the embedding size E if left out.
        residual: Add a residual connection, ``p + MLP(p)``, zero-initialised, so that training starts from
            the initial prompt (arXiv:2305.03937).
    """

    kind: Literal["mlp"] = "mlp"
    width: Width | None = None
    residual: bool = False


@checked
@dataclass(frozen=True, kw_only=True)
class LSTMEncoder:
    """A bidirectional LSTM, then an MLP: the encoder of the P-tuning paper (arXiv:2103.10385).

    Args:
        width: The LSTM's hidden size in each direction; the embedding size E if left out.
        num_layers: Number of LSTM layers; the paper has two.
        dropout: Between LSTM layers, while training.
    """

    kind: Literal["lstm"] = "lstm"
    width: Width | None = None
    num_layers: Annotated[Int, Field(ge=1, le=64)] = 2
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        if self.num_layers == 1 and self.dropout != 0:
            raise ConfigError(
                "encoder.dropout",
                got=self.dropout,
                expected="0 with encoder.num_layers 1, because it acts between LSTM layers",
            )


@checked
@dataclass(frozen=True, kw_only=True)
class ResidualEncoder:
    """``p + MLP(p)``, with one bottleneck shared by all tokens (residual prompt tuning, arXiv:2305.03937).

    Args:
        width: The bottleneck's width.
        dropout: On the bottleneck, while training.
    """

    kind: Literal["residual"] = "residual"
    width: Width = 128
    dropout: Dropout = 0.0


@checked
@dataclass(frozen=True, kw_only=True)
class DeepMLPEncoder:
    """Deep prompts from one ``[P, H]`` table through linear–tanh–linear (prefix tuning, arXiv:2101.00190).

    Args:
        width: The hidden layer's width; the backbone's hidden size H if left out.
        dropout: After the tanh, while training.
    """

    kind: Literal["mlp"] = "mlp"
    width: Width | None = None
    dropout: Dropout = 0.0


InputEncoderConfig = Annotated[
    EmbeddingEncoder | MLPEncoder | LSTMEncoder | ResidualEncoder, Field(discriminator="kind")
]
DeepEncoderConfig = Annotated[EmbeddingEncoder | DeepMLPEncoder, Field(discriminator="kind")]


# -------------------------------------------------------------------------------- initialisation


@checked
@dataclass(frozen=True, kw_only=True)
class RandomInit:
    """Normally distributed, with the mean and standard deviation of the backbone's word embeddings."""

    kind: Literal["random"] = "random"


@checked
@dataclass(frozen=True, kw_only=True)
class VocabularyInit:
    """The embeddings of P tokens sampled from the backbone's vocabulary."""

    kind: Literal["vocabulary"] = "vocabulary"


@checked
@dataclass(frozen=True, kw_only=True)
class TextInit:
    """The embeddings of a text, repeated or cut to P tokens.

    Args:
        text: Words that describe the task, such as ``"do these two sentences mean the same?"``.
    """

    text: str
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ConfigError(
                "init.text", got=repr(self.text), expected="words to initialise the prompt with"
            )


InitConfig = Annotated[RandomInit | VocabularyInit | TextInit, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------ heads


def label_name(label: Any) -> str:
    """A label as a verbalizer has it: as text, a boolean as JSON and YAML write it."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def _by_name(value: Any) -> Any:
    """A verbalizer with labels as text, and a list of words for each."""
    if not isinstance(value, Mapping):
        raise PydanticCustomError("verbalizer", "Input should be a mapping from label to words")
    found: dict[str, Any] = {}
    for label, words in value.items():
        if (name := label_name(label)) in found:
            raise PydanticCustomError(
                "verbalizer",
                "Input should be a mapping with each label once, and two of them are {name}",
                {"name": repr(name)},
            )
        found[name] = (words,) if isinstance(words, str) else words
    return found


Verbalizer = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_by_name)]


@checked
@dataclass(frozen=True, kw_only=True)
class ClozeHead:
    """The language model's own head, frozen, which scores words for the labels (PET, arXiv:2001.07676).

    The text is put into a template, and the model predicts the word there. A label's score is the mean of the
    scores of its words, a word's score the mean of the logits of its tokens, all at the one place. Nothing is
    trained except the prompt, as in P-tuning's own form (arXiv:2103.10385).

    Args:
        template: The words around the text, such as ``"{text} It was {mask}."``. A masked language model
            predicts the word at ``{mask}``, a decoder after the last word. For pairs with ``{text_a}`` and
            ``{text_b}``. ``{prompt:4}`` puts virtual tokens of an input prompt there; without such a slot,
            ``placement`` says where they are.
        verbalizer: The word of each label, or several, such as ``{negative: terrible, positive: great}``;
            the label's own name, with spaces for underscores.
    """

    kind: Literal["cloze"] = "cloze"
    template: str
    verbalizer: Verbalizer = field(default_factory=dict)

    def __post_init__(self) -> None:
        cloze_insertions(self.template, DEFAULT_PLACEMENT, None)  # refuses a malformed template
        for label, words in self.verbalizer.items():
            if not words or not all(word.strip() for word in words):
                raise ConfigError(
                    f"head.verbalizer: the words of {label!r}", got=repr(list(words)), expected="at least one"
                )


# --------------------------------------------------------------------------------------- prompts


@checked
@dataclass(frozen=True, kw_only=True)
class InputPrompt:
    """Virtual tokens among the text's own, at the embeddings: P-tuning (arXiv:2103.10385).

    Args:
        num_virtual_tokens: P, the number of virtual tokens (a template has its own count); 20 if left out.
        placement: Where they are: ``start`` (before ``[CLS]``, as in PEFT), ``front``, ``between``,
            ``middle``, ``end``, or a template such as ``"{prompt:4} {text_a} {prompt:8} {text_b}"``.
        encoder: The network that makes the prompt while training.
        init: The initial values. With ``embedding`` and ``residual`` the prompt starts as exactly these; the
            ``mlp`` and ``lstm`` encoders transform them. The first virtual token of the placement ``start``,
            which an encoder's head reads, starts as ``[CLS]``, except with ``text``.
        train_head: Train the head too; otherwise it stays frozen.
        head: A cloze head, for masked and causal language models; the classification head if left out.
    """

    depth: Literal["input"] = "input"
    num_virtual_tokens: Some | None = None
    placement: str = DEFAULT_PLACEMENT
    encoder: InputEncoderConfig = field(default_factory=EmbeddingEncoder)
    init: InitConfig = field(default_factory=VocabularyInit)
    train_head: bool = True
    head: ClozeHead | None = None

    def __post_init__(self) -> None:
        _ = self.insertions  # so that a malformed template is refused here, not at the first batch

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """What is inserted where, in the order of the row."""
        if self.head is not None:
            return cloze_insertions(self.head.template, self.placement, self.num_virtual_tokens)
        return insertions(self.placement, self.num_virtual_tokens)

    @property
    def written(self) -> str:
        """The template that has the words, wherever it is given; a named placement if there is none."""
        return self.placement if self.head is None else self.head.template

    @property
    def template_texts(self) -> int | None:
        """The number of texts in a template whose words become a part of them; ``None`` without one."""
        return None if self.head is None else template_texts(self.head.template)

    @property
    def virtual_tokens(self) -> int:
        """P."""
        return sum(piece.tokens for piece in self.insertions)


Pooling = Literal["native", "mean", "layers", "similarity"]
"""What a head reads (:class:`DeepPrompt`)."""


@checked
@dataclass(frozen=True, kw_only=True)
class DeepPrompt:
    """A prompt in every layer from ``first_layer`` on, as keys and values: P-tuning v2 (arXiv:2110.07602).

    Args:
        num_virtual_tokens: P, the number of virtual tokens per layer.
        first_layer: s, the first layer with a prompt, counted from 0.
        position_offset: Added to the text's position ids. If left out: P if every layer has a prompt, as
            PEFT's ``PREFIX_TUNING`` has it, so that PEFT can load the adapter; otherwise 0.
        pooling: What the head reads. ``native``: the token that the backbone's own head reads. ``mean``: the
            mean of the text's tokens. ``layers``: a trained mix of the tokens' means and maxima in every
            layer from ``first_layer`` on, which starts as the mean (after ELMo, arXiv:1802.05365).
            ``similarity``, for pairs: each text is encoded separately, and the head reads their similarity
            in every dimension; on a decoder, that of their last tokens. If left out: for a sentence embedding
            model that uses mean pooling, ``similarity`` for pairs with a score or two classes and ``layers``
            otherwise; ``native`` for other backbones, but ``ptuning train`` compares such pairs on a decoder,
            too, unless there are 1,000 or more with a score. PEFT can only load ``native``.
        num_virtual_units: U, the number of trained hidden units added to the feed-forward network of every
            prompted layer (a parallel adapter, arXiv:2110.04366). If left out: none in Python;
            ``ptuning train`` chooses from the data (docs/recipes.md). PEFT can load none.
        num_queries: Q, the number of learned attention queries per layer, a further way to pool the tokens
            with ``layers`` (self-attentive embeddings, arXiv:1703.03130). If left out: none in Python;
            ``ptuning train`` adds some for 5,000 rows or more.
        template: Words around the text, such as ``"{text}\\nIn one word:"``, frozen as the text's own tokens
            are. The head of a decoder reads the last token, so what comes behind the text decides what it can
            read (PromptEOL, arXiv:2307.16645). For pairs with ``{text_a}`` and ``{text_b}``; ``"{text}"``
            adds none. If left out: none in Python; ``ptuning train`` adds some for a decoder and single texts
            (docs/recipes.md). PEFT can load none.
        encoder: The network that makes the prompt while training.
        train_head: Train the head too; otherwise it stays frozen.
        head: A cloze head, for masked and causal language models; the classification head if left out.
    """

    depth: Literal["deep"] = "deep"
    num_virtual_tokens: Some = 20
    first_layer: Count = 0
    position_offset: Count | None = None
    pooling: Pooling | None = None
    num_virtual_units: Count | None = None
    num_queries: Count | None = None
    template: str | None = None
    encoder: DeepEncoderConfig = field(default_factory=EmbeddingEncoder)
    train_head: bool = True
    head: ClozeHead | None = None

    def __post_init__(self) -> None:
        if self.template is not None and self.head is not None:
            raise ConfigError(
                "prompt.template",
                got=f"{self.template!r}, beside prompt.head.template {self.head.template!r}",
                expected="one template",
                remedy="leave prompt.template out",
            )
        _ = self.insertions  # so that a malformed template is refused here, not at the first batch

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """The words that a template inserts where, in the order of the row."""
        if self.head is None and self.template is None:
            return ()
        return template_words(self.written, mask=self.head is not None)

    @property
    def written(self) -> str:
        """The template that has the words, wherever it is given; empty if there is none."""
        return self.template or "" if self.head is None else self.head.template

    @property
    def template_texts(self) -> int | None:
        """The number of texts in a template whose words become a part of them; ``None`` without one."""
        return template_texts(self.written) if self.insertions or self.head is not None else None

    @property
    def virtual_tokens(self) -> int:
        """P."""
        return self.num_virtual_tokens


def trains_head(config: InputPrompt | DeepPrompt) -> bool:
    """Whether the head is trained; a cloze head never is."""
    return config.train_head and config.head is None


PromptConfig = Annotated[InputPrompt | DeepPrompt, Field(discriminator="depth")]


# --------------------------------------------------------------------------------------- the engine


@checked
@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a backbone computes. What frozen weights make constant is computed once.

    None of these options changes the result: the logits stay the same within rounding.

    Args:
        attention: ``plain`` (matmul, softmax, matmul), ``fused`` (torch's kernels), or ``auto``: plain in
            half precision on a CPU, where it is faster, and fused otherwise.
        pooled_layer: Run the last layer only for the token that the head reads.
        shared_prompt: Compute a decoder's input prompt in front of the text once per batch, not per row.
        reuse_stem: Run the layers below ``first_layer`` once per text, not once per epoch.
        stem_memory: GiB of their outputs to keep in memory. The rest is mapped from disk.
        stem_disk: GiB of their outputs to keep on disk for later runs and other tasks; 0 for none.
        packed_memory: GiB for packed copies of frozen weights, shared by all tasks on a backbone. They save
            laying the weights out in every call, on a CPU in half precision. A copy takes 2 bytes per
            parameter of the layers, and training uses two. If they do not fit, none is made; 0 for none.
        checkpoint_activations: Activation checkpointing: store each layer's input only, and recompute the
            rest in the backward pass. Less memory, a third more work.
        compile: ``torch.compile`` the layers, for any text length; needs a C++ compiler, and a minute at the
            start. The layers of DeBERTa, MPNet, GPT-J, GPT-Neo, StableLM and Nemotron are never compiled.
    """

    attention: Literal["auto", "plain", "fused"] = "auto"
    pooled_layer: bool = True
    shared_prompt: bool = True
    reuse_stem: bool = True
    stem_memory: GiB = 2.0
    stem_disk: GiB = 4.0
    packed_memory: GiB = 0.5
    checkpoint_activations: bool = False
    compile: bool = False


# ------------------------------------------------------------------------------- to and from dicts


def prompt_to_dict(config: PromptConfig) -> dict[str, Any]:
    """Every option by name, ready for JSON; without ``head`` if there is no cloze head, and without
    ``template`` if there is none, as earlier versions wrote it.
    """
    values = asdict(config)
    if values.get("template", "") is None:
        del values["template"]
    if (head := values.pop("head")) is not None:
        values["head"] = {**head, "verbalizer": {name: list(x) for name, x in head["verbalizer"].items()}}
    return values


def prompt_from_dict(values: Mapping[str, Any]) -> PromptConfig:
    """The inverse of :func:`prompt_to_dict`.

    Raises:
        ConfigError: an unknown key, kind or depth, or a value of the wrong type.
    """
    # Records older than these options mean the backbone's own token, no units and no queries.
    before = {"pooling": "native", "num_virtual_units": 0, "num_queries": 0}
    before = before if values.get("depth") == "deep" else {}
    given = {**before, **values}
    config: PromptConfig = validated(PromptConfig, given, "prompt")
    return config
