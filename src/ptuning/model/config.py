"""The choices that make a prompt. Choices only: no fact read from a backbone stands here.

One frozen class a choice, so that an option its part does not take cannot be written. The classes
are dataclasses whose options are held to their types and bounds (:func:`~ptuning.validation.checked`).
Nothing here imports torch: ``--help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from ptuning.errors import ConfigError
from ptuning.model.template import Insertion, insertions
from ptuning.validation import Float, Int, checked, validated

Width = Annotated[Int, Field(ge=1, le=65_536)]
"""Of a layer of an encoder."""
Dropout = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[Int, Field(ge=0, le=65_536)]
"""Of virtual tokens, units, queries or layers: more than any backbone has places for."""
Some = Annotated[Int, Field(ge=1, le=65_536)]
"""A :data:`Count` of one and more."""
GiB = Annotated[Float, Field(ge=0, le=1_048_576)]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# ------------------------------------------------------------------------------- prompt encoders


@checked
@dataclass(frozen=True, kw_only=True)
class EmbeddingEncoder:
    """The prompt itself is trained: P × E numbers (prompt tuning, arXiv:2104.08691)."""

    kind: Literal["embedding"] = "embedding"


@checked
@dataclass(frozen=True, kw_only=True)
class MLPEncoder:
    """Three linear layers make the prompt, as PEFT's ``PromptEncoder`` does.

    Args:
        width: The width of the two hidden layers; ``None`` for the embedding width E.
        residual: Whether the layers' output is added to what goes in, ``p + MLP(p)``, and begins at nought,
            so that the prompt begins as what it starts from (arXiv:2305.03937).
    """

    kind: Literal["mlp"] = "mlp"
    width: Width | None = None
    residual: bool = False


@checked
@dataclass(frozen=True, kw_only=True)
class LSTMEncoder:
    """A bidirectional LSTM, then an MLP: the encoder of the P-tuning paper (arXiv:2103.10385).

    Args:
        width: The LSTM's hidden width in each direction; ``None`` for the embedding width E.
        num_layers: LSTM layers; the paper has two.
        dropout: Between LSTM layers, while training.
    """

    kind: Literal["lstm"] = "lstm"
    width: Width | None = None
    num_layers: Annotated[Int, Field(ge=1, le=64)] = 2
    dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        _require(
            self.num_layers > 1 or self.dropout == 0,
            "encoder.dropout acts between LSTM layers, so with encoder.num_layers 1 it must be 0",
        )


@checked
@dataclass(frozen=True, kw_only=True)
class ResidualEncoder:
    """``p + MLP(p)``, one shared bottleneck for all tokens (residual prompt tuning, arXiv:2305.03937).

    Args:
        width: The bottleneck's width.
        dropout: Before the bottleneck's way back up, while training.
    """

    kind: Literal["residual"] = "residual"
    width: Width = 128
    dropout: Dropout = 0.0


@checked
@dataclass(frozen=True, kw_only=True)
class DeepMLPEncoder:
    """Deep prompts from one ``[P, H]`` table through linear–tanh–linear (prefix tuning, arXiv:2101.00190).

    Args:
        width: The hidden layer's width; ``None`` for the backbone's hidden width H.
        dropout: Behind the tanh, while training.
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
    """Normal numbers with the mean and the deviation of the backbone's own vocabulary."""

    kind: Literal["random"] = "random"


@checked
@dataclass(frozen=True, kw_only=True)
class VocabularyInit:
    """P rows sampled from the backbone's vocabulary."""

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
        _require(bool(self.text.strip()), "init.text is blank; give the words to start from")


InitConfig = Annotated[RandomInit | VocabularyInit | TextInit, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------- prompts


@checked
@dataclass(frozen=True, kw_only=True)
class InputPrompt:
    """Virtual tokens that join the text once, at the embeddings: P-tuning (arXiv:2103.10385).

    Args:
        num_virtual_tokens: P. A template counts its own; ``None`` for 20.
        placement: ``start`` (PEFT's place, before ``[CLS]``), ``front``, ``between``, ``middle``,
            ``end``, or a template such as ``"{prompt:4} {text_a} {prompt:8} {text_b}"``.
        encoder: What makes the prompt while training.
        init: What it starts from. The ``mlp`` and ``lstm`` encoders transform it at once; with
            ``embedding`` and ``residual`` the prompt begins as exactly this.
        train_head: ``False`` freezes the head as well, as the notebook does.
    """

    depth: Literal["input"] = "input"
    num_virtual_tokens: Some | None = None
    placement: str = "front"
    encoder: InputEncoderConfig = field(default_factory=EmbeddingEncoder)
    init: InitConfig = field(default_factory=VocabularyInit)
    train_head: bool = True

    def __post_init__(self) -> None:
        _ = self.insertions  # a malformed template is refused here, not at the first batch

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """What stands where, in the order of the row."""
        return insertions(self.placement, self.num_virtual_tokens)

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
        num_virtual_tokens: P.
        first_layer: s, counted from 0; the layers below it have no prompt.
        position_offset: How far the text's position ids are moved up. If left out, P where every layer
            has a prompt, which is what PEFT's ``PREFIX_TUNING`` implies, so that PEFT reads the adapter;
            0 elsewhere, and for backbones without position ids.
        pooling: What the head reads: ``native``, the token that the backbone's own head reads; ``mean``,
            the mean of the text's tokens in that token's place; ``layers``, a mix of the means and greatest
            values of the tokens in every layer from ``first_layer`` on, dimension by dimension, which begins
            as the mean and is trained (after ELMo, arXiv:1802.05365); or ``similarity``, for pairs:
            each text is read by itself, and the head reads in each dimension how well they agree
            (:func:`~ptuning.model.similarity.pair_similarity`). If left out, a model that was made
            to be read by the mean and says it (sentence-transformers' ``1_Pooling``) gets ``similarity`` for
            pairs with a score or one of two classes, and ``layers`` for all else; others get ``native``. PEFT
            reads ``native`` alone.
        num_virtual_units: U, hidden units that the feed-forward network of every prompted layer has beside
            its own, each a trained key and value (a parallel adapter, arXiv:2110.04366); no encoder makes
            them. If left out, none; but ``ptuning train`` gives some to thousands of rows that are read by
            ``layers``, and to few single texts with a score or one of three classes and more
            (docs/recipes.md). PEFT reads none.
        num_queries: Q, learned queries whose finds among each layer's tokens are in the mix of ``layers``
            too (self-attentive embeddings, arXiv:1703.03130). If left out, none; but ``ptuning train`` gives
            some to thousands of rows.
        encoder: What makes the prompt while training.
        train_head: ``False`` freezes the head as well.
    """

    depth: Literal["deep"] = "deep"
    num_virtual_tokens: Some = 20
    first_layer: Count = 0
    position_offset: Count | None = None
    pooling: Pooling | None = None
    num_virtual_units: Count | None = None
    num_queries: Count | None = None
    encoder: DeepEncoderConfig = field(default_factory=EmbeddingEncoder)
    train_head: bool = True

    @property
    def virtual_tokens(self) -> int:
        """P."""
        return self.num_virtual_tokens


PromptConfig = Annotated[InputPrompt | DeepPrompt, Field(discriminator="depth")]


# --------------------------------------------------------------------------------------- the engine


@checked
@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a backbone computes: what frozen weights make constant is not computed again.

    None of it changes what is computed: with any of it switched off the logits are the same within the
    precision's rounding.

    Args:
        attention: ``plain`` (matmul, softmax, matmul), ``fused`` (torch's kernels), or ``auto``: plain in
            half precision on a CPU, where it is faster, fused elsewhere.
        pooled_layer: The last layer runs for the one token that the head reads.
        shared_prompt: A decoder's input prompt in front of the text is computed once a batch, not once a row.
        reuse_stem: The layers below ``first_layer`` run once a text, not once an epoch.
        stem_memory: GiB of stem outputs held in memory; what is larger is mapped from disk.
        stem_disk: GiB of stem outputs kept on disk for later runs and further tasks; 0 for none.
        checkpoint_activations: Keep each layer's input alone and compute the rest again on the way back: less
            memory, a third more work.
        compile: ``torch.compile`` the layers, for any length; needs a C++ compiler, and a minute to begin.
            DeBERTa's are left as they are.
    """

    attention: Literal["auto", "plain", "fused"] = "auto"
    pooled_layer: bool = True
    shared_prompt: bool = True
    reuse_stem: bool = True
    stem_memory: GiB = 2.0
    stem_disk: GiB = 4.0
    checkpoint_activations: bool = False
    compile: bool = False


# ------------------------------------------------------------------------------- to and from dicts


def prompt_to_dict(config: PromptConfig) -> dict[str, Any]:
    """Every choice, by name, ready for JSON."""
    return asdict(config)


def prompt_from_dict(values: Mapping[str, Any]) -> PromptConfig:
    """The inverse of :func:`prompt_to_dict`.

    Raises:
        ConfigError: an unknown key, kind or depth, or a value of the wrong type.
    """
    # What was written before there was a choice meant the backbone's own token, no units and no queries.
    before = {"pooling": "native", "num_virtual_units": 0, "num_queries": 0}
    before = before if values.get("depth") == "deep" else {}
    given = {**before, **values}
    config: PromptConfig = validated(PromptConfig, given, "prompt")
    return config
