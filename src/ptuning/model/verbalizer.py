"""A cloze head's words: which tokens stand for which label, and their scores.

Shapes: B rows, H hidden size, E embedding size, K tokens of all words, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ptuning.errors import ConfigError
from ptuning.kinds import LabelForm
from ptuning.model.backbone import Backbone
from ptuning.model.config import ClozeHead, PromptConfig, label_name
from ptuning.model.language_head import LanguageHead
from ptuning.model.template import MASK, Insertion, Landmark
from ptuning.task import Label, Task
from ptuning.threads import TOKENIZER

Words = tuple[tuple[tuple[int, ...], ...], ...]
"""For each label its words, each as token ids."""

_SOME_WORD = "a"
"""In place of a text: words behind it are tokenised as words inside a sentence."""


class Verbalizer(nn.Module):
    """The rows of the language model head for the words of a task. They are not trained, and not saved.

    Args:
        head: The backbone's language model head.
        words: The token ids of each label's words.
        embedding: ``[V, E]``, the backbone's word embeddings.
    """

    weight: Tensor
    bias: Tensor | None
    shares: Tensor

    def __init__(self, head: LanguageHead, words: Words, embedding: Tensor) -> None:
        super().__init__()
        ids, shares = token_shares(words)
        weight, bias = head.rows(torch.tensor(ids, device=embedding.device), embedding)
        for name, value in (("weight", weight), ("bias", bias), ("shares", shares.to(embedding.device))):
            self.register_buffer(name, value, persistent=False)

    def forward(self, head: LanguageHead, states: Tensor) -> Tensor:
        """``[B, H]`` → ``[B, C]`` in fp32."""
        return cloze_scores(head, states, dict(self.named_buffers()))


def cloze_scores(head: LanguageHead, states: Tensor, words: Mapping[str, Tensor]) -> Tensor:
    """``[B, C]`` in fp32: the labels' scores.

    Args:
        head: The backbone's language model head.
        states: ``[B, H]``.
        words: The tensors of a :class:`Verbalizer`, by name.
    """
    return head.logits(states, words["weight"], words.get("bias")) @ words["shares"].T


class ClozeScores:
    """A cloze head: what turns a readout into the scores of the labels' words.

    Args:
        verbalizer: The words.
        head: The backbone's language model head.
    """

    def __init__(self, verbalizer: Verbalizer, head: LanguageHead) -> None:
        self._verbalizer, self._head = verbalizer, head

    def __call__(self, read: Tensor, mask: Tensor) -> Tensor:
        """``[B, H]`` → ``[B, C]``; ``mask`` is not used."""
        found: Tensor = self._verbalizer(self._head, read)
        return found


def token_shares(words: Words) -> tuple[list[int], Tensor]:
    """The ids of all tokens, K of them; and ``[C, K]``, the share of each in each label's score.

    A label's score is the mean over its words, a word's the mean over its tokens.
    """
    ids = sorted({each for label in words for word in label for each in word})
    place = {each: i for i, each in enumerate(ids)}
    shares = torch.zeros(len(words), len(ids))
    for row, label in enumerate(words):
        for word in label:
            for each in word:
                shares[row, place[each]] += 1 / (len(label) * len(word))
    return ids, shares


def check_cloze(config: PromptConfig, task: Task, backbone: Backbone) -> None:
    """Refuse a cloze head that the task or the backbone cannot have.

    Raises:
        ConfigError: says why.
    """
    head = config.head
    assert head is not None
    if task.kind.form is not LabelForm.ONE:
        why = (
            "a number has no word"
            if task.is_regression
            else "words compete for one place, so they cannot answer yes or no each"
        )
        raise ConfigError(
            f"prompt.head: a cloze head is for one label per row ({why})",
            got=f"a {task.kind.title}",
            remedy="leave prompt.head out",
        )
    pooling = getattr(config, "pooling", None)
    if pooling not in (None, "native"):
        raise ConfigError(
            "prompt.pooling",
            got=repr(pooling),
            expected="none with a cloze head, which reads the one token that predicts the word",
            remedy="leave it out",
        )
    anchors = [piece.anchor for piece in config.insertions]
    masked = [anchor for anchor in anchors if MASK in anchor]
    if not backbone.architecture.causal and not masked:
        raise ConfigError(
            f"prompt.head.template: {backbone.name} is a masked language model",
            got=f"{head.template!r} without {MASK}",
            expected=f"{MASK} where it should predict the word",
        )
    if backbone.architecture.causal and masked and not _at_end(config.insertions):
        raise ConfigError(
            f"prompt.head.template: {backbone.name} is a decoder, which cannot see the words after {MASK}",
            got=repr(head.template),
            expected=f"a template that ends with {MASK}, or one without it, which predicts the next word",
        )


def _at_end(pieces: Sequence[Insertion]) -> bool:
    last = pieces[-1]
    return last.before is Landmark.CLOSE and last.anchor.rstrip(" ").endswith(MASK)


def template_ids(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Insertion], *, causal: bool
) -> tuple[tuple[tuple[int, ...], ...], int | None]:
    """The token ids of a template's words, one tuple per piece, and the id of the mask (encoders have one).

    Raises:
        ConfigError: the tokenizer has no mask, or does not know the words.
    """
    mask = None if causal else tokenizer.mask_token_id
    if not causal and mask is None:
        raise ConfigError(
            "prompt.head: the backbone's tokenizer has no mask token, so it is not a masked language model",
            remedy="use another backbone, or leave prompt.head out",
        )
    written = "" if mask is None else str(tokenizer.mask_token)
    found = piece_ids(tokenizer, pieces, "prompt.head.template", mask=written)
    if mask is not None and (masks := [each for ids in found for each in ids].count(mask)) != 1:
        raise ConfigError(
            f"prompt.head.template: the backbone's tokenizer finds {masks} masks in its words",
            expected=f"one, written as {MASK}",
        )
    return found, mask


def piece_ids(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Insertion], option: str, *, mask: str = ""
) -> tuple[tuple[int, ...], ...]:
    """The token ids of a template's words, one tuple per piece, as they follow a text.

    Args:
        option: The template's, for the error message.
        mask: What the tokenizer writes in place of :data:`~ptuning.model.template.MASK`.

    Raises:
        ConfigError: the tokenizer does not know the words.
    """
    found: list[tuple[int, ...]] = []
    for at, piece in enumerate(pieces):
        if piece.tokens:
            continue
        text = piece.anchor.replace(MASK, mask).rstrip(" ")
        ids = tuple(_ids_behind(tokenizer, "" if _is_first(pieces, at) else _SOME_WORD, text))
        if tokenizer.unk_token_id in ids or (text.strip() and not ids):
            raise ConfigError(
                f"{option}: the backbone's tokenizer does not know all of {piece.anchor!r}",
                remedy="choose other words",
            )
        found.append(ids)
    return tuple(found)


def _is_first(pieces: Sequence[Insertion], at: int) -> bool:
    """Whether nothing is in front of a piece."""
    return at == 0 and pieces[at].before in (Landmark.START, Landmark.TEXT_A)


def words_of(
    head: ClozeHead, task: Task, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Insertion]
) -> Words:
    """The token ids of each label's words, as they follow the template's words in front of them.

    Raises:
        ConfigError: a verbalizer with a label that the task does not have, a word without a token, or labels
            whose scores would be the same.
    """
    names = [label_name(label) for label in task.labels]
    if unknown := [label for label in head.verbalizer if label not in names]:
        close = get_close_matches(unknown[0], names, n=1)
        raise ConfigError(
            f"prompt.head.verbalizer: the task has no label {unknown[0]!r}",
            expected=f"labels such as {', '.join(map(repr, names[:4]))}",
            remedy=f"did you mean {close[0]!r}?" if close else None,
        )
    before, space = _in_front(pieces)
    found = tuple(
        tuple(_word_ids(tokenizer, before, space, word, label) for word in words_for(head, label))
        for label in task.labels
    )
    _refuse_same(found, task.labels, head)
    return found


def words_for(head: ClozeHead, label: Label) -> tuple[str, ...]:
    """The words of a label: those of the verbalizer, or its own name with spaces for underscores."""
    name = label_name(label)
    return head.verbalizer.get(name) or (name.replace("_", " "),)


def _in_front(pieces: Sequence[Insertion]) -> tuple[str, str]:
    """What is in front of the word, and the space between them."""
    for at, piece in enumerate(pieces):
        if MASK in piece.anchor:
            words = piece.anchor[: piece.anchor.index(MASK)]
            before = ("" if _is_first(pieces, at) else _SOME_WORD) + words.rstrip(" ")
            return before, " " if words.endswith(" ") else ""
    last = pieces[-1] if pieces else None
    if last is None or not last.anchor or last.before is not Landmark.CLOSE:
        return _SOME_WORD, " "
    words = last.anchor.rstrip(" ")
    return _SOME_WORD + words, "" if words[-1].isspace() else " "


def _word_ids(
    tokenizer: PreTrainedTokenizerBase, before: str, space: str, word: str, label: Label
) -> tuple[int, ...]:
    ids = tuple(_ids_behind(tokenizer, before, space + word.strip()))
    if not ids or tokenizer.unk_token_id in ids:
        raise ConfigError(
            f"prompt.head.verbalizer: the backbone's tokenizer does not know the word {word!r} of the label "
            f"{label!r}",
            remedy="choose another word for it in prompt.head.verbalizer",
        )
    return ids


def _ids_behind(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """The token ids of ``text`` where it follows ``before``."""
    with TOKENIZER:
        base: list[int] = tokenizer(before, add_special_tokens=False)["input_ids"]
        both: list[int] = tokenizer(before + text, add_special_tokens=False)["input_ids"]
        if both[: len(base)] == base:
            return both[len(base) :]
        alone: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return alone  # it would be one token with what is in front of it


def _refuse_same(words: Words, labels: Sequence[Label], head: ClozeHead) -> None:
    """Refuse two labels whose scores are always the same."""
    known: dict[tuple[float, ...], Label] = {}
    for label, row in zip(labels, token_shares(words)[1].tolist(), strict=True):
        key = tuple(round(share, 9) for share in row)
        if key in known:
            one = known[key]
            raise ConfigError(
                f"prompt.head.verbalizer: the labels {one!r} and {label!r} would always have the same score, "
                "because their words are the same tokens",
                got=f"{list(words_for(head, one))} and {list(words_for(head, label))}",
                remedy="give them different words",
            )
        known[key] = label
