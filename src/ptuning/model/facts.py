"""What a frozen model is: where its weights come from, and how to recognise them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from ptuning.adapters.tensors import on_cpu
from ptuning.model.language_head import LanguageHead


@dataclass(frozen=True, kw_only=True)
class BackboneFacts:
    """What an adapter records about its backbone, so that it is only put on the same one again.

    ``fingerprint`` is a SHA-256 over the SHA-256 of each pretrained weight's name, shape and bf16-rounded
    values, without those that the task's head has of its own: the same for fp32 and bf16 weights; ``None``
    if there are no values (the meta device).
    """

    name: str
    revision: str | None
    model_type: str
    num_layers: int
    hidden_size: int
    embedding_size: int
    key_value_size: int
    vocab_size: int
    num_parameters: int
    fingerprint: str | None


@dataclass(eq=False)
class Weights:
    """What all views of a backbone share besides the tensors: one object per backbone.

    Attributes:
        model: The module tree of the model that was adopted. No view and no forward pass changes it.
        name: Its Hub id or folder.
        revision: Its commit on the Hub.
        head_names: Its parameters that every task has a copy of.
        load_language_head: Loads the checkpoint's language model head; ``None`` if that is not possible.
        language_head: That head, after a task has needed it.
    """

    model: nn.Module
    name: str
    revision: str | None
    head_names: tuple[str, ...]
    load_language_head: Callable[[], LanguageHead] | None = None
    language_head: LanguageHead | None = None
    _digests: dict[str, bytes] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.model.parameters())

    def fingerprint(self, without: Iterable[str] = ()) -> str | None:
        """See :class:`BackboneFacts`. Takes about one second per gigabyte of fp32 weights, once.

        Args:
            without: Parameters that the task has of its own, in addition to :attr:`head_names`.
        """
        pretrained = {
            name: value for name, value in self.model.named_parameters() if name not in self.head_names
        }
        if any(value.is_meta for value in pretrained.values()):
            return None
        left_out, found = frozenset(without), hashlib.sha256()
        for name, weight in sorted(pretrained.items()):
            if name not in self._digests:
                digest = hashlib.sha256(f"{name}{tuple(weight.shape)}".encode())
                rounded = on_cpu(weight).to(torch.bfloat16).contiguous()
                digest.update(rounded.view(torch.uint8).numpy().data)
                self._digests[name] = digest.digest()
            if name not in left_out:
                found.update(self._digests[name])
        return found.hexdigest()
