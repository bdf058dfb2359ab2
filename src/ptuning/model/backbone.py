"""The frozen model; ``architectures.py`` has a row for each supported architecture.

:class:`Backbone` adopts any ``AutoModelForSequenceClassification``: it freezes the model and gives forward
passes access to its layers and attention (``ports/``). ``encoder.py`` runs all architectures in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptuning.errors import UnsupportedBackbone
from ptuning.model import layers, packed_weights, views
from ptuning.model.architectures import ARCHITECTURES, EXPECTED
from ptuning.model.config import Engine
from ptuning.model.drawing import drawing
from ptuning.model.embedded import canonical
from ptuning.model.facts import BackboneFacts, Weights
from ptuning.model.fresh import fresh_parameters
from ptuning.model.language_head import LanguageHead
from ptuning.model.ports import PORTS, AttentionPort
from ptuning.model.units import reads_units

_NAMES_ONLY = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "transformers_version",
    }
)
"""Entries of a configuration that do not affect the hidden states."""


class Backbone(nn.Module):
    """A frozen ``AutoModelForSequenceClassification``.

    Each task has a :meth:`view` of its own: a module tree over the same weights, so dropout, the engine,
    hooks and the training flag belong to one task. A forward pass puts the task's head into a tree of its own
    (:class:`~ptuning.model.encoder.Encoder`) and writes to no module, so threads can use a backbone, or one
    view of it, at the same time.

    The module is adopted: its parameters are frozen in place, it stays in eval mode (dropout off) by default,
    and its attention implementation is set. Its weights, head included, and its public configuration never
    change: a task's head is a copy.

    Args:
        model: The model.
        name: Its Hub id or folder.
        revision: Its commit on the Hub.
        missing: Names of the parameters that the checkpoint lacked, so that they are random; each task trains
            its own.
        pooling: ``mean`` for a sentence embedding model that uses mean pooling.
        load_language_head: Loads the checkpoint's language model head, for cloze heads.

    Raises:
        UnsupportedBackbone: an architecture that is not in the table, or no classification head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str = "",
        revision: str | None = None,
        missing: frozenset[str] = frozenset(),
        pooling: Literal["native", "mean"] = "native",
        load_language_head: Callable[[], LanguageHead] | None = None,
    ) -> None:
        super().__init__()
        config = model.config
        if config.model_type not in ARCHITECTURES:
            raise UnsupportedBackbone(
                f"{config.model_type!r} ({type(model).__name__}) is not supported",
                got=repr(config.model_type),
                expected=EXPECTED,
            )
        if not any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).__mro__):
            raise UnsupportedBackbone(
                "the backbone has no sequence classification head",
                got=type(model).__name__,
                expected="a model from AutoModelForSequenceClassification.from_pretrained(…)",
            )
        self.model = model.requires_grad_(False).eval()
        for module in model.modules():  # the engine has its own, which supports prompts
            if "gradient_checkpointing" in vars(module):
                vars(module)["gradient_checkpointing"] = False
        self.architecture = ARCHITECTURES[config.model_type]
        self.packed_weights = packed_weights.PackedWeights(self._layers)
        self.port.install(model)
        self._install()
        self.engine = Engine()
        inside = f"{model.base_model_prefix}."
        self.missing = missing
        self.pooling = pooling
        self.head_names = tuple(
            name for name, _ in model.named_parameters() if not name.startswith(inside) or name in missing
        )
        self.dropout = False
        self.weights = Weights(
            model=model,
            name=canonical(name or str(getattr(config, "_name_or_path", "") or config.model_type)),
            revision=revision or getattr(config, "_commit_hash", None),
            head_names=self.head_names,
            load_language_head=load_language_head,
        )
        self.private = tuple(name for name, module in model.named_modules() if _writes_to_itself(module))
        self._origin: tuple[Backbone, ...] = ()

    def _install(self) -> None:
        """Give forward passes access to every layer, if the architecture supports it."""
        if self.port.can.layers:
            layers.install(self._layers.children(), self.architecture.feed_forward, self.port)

    # ------------------------------------------------------------------------------------ views

    def view(self) -> Backbone:
        """The same weights for another task: a module tree of its own over the same Parameters and buffers.

        It starts in eval mode with dropout off, with the same engine and the hooks of the adopted model. It
        needs no memory for weights, and about 2 KiB per module.
        """
        origin = self._origin[0] if self._origin else self
        made = origin._viewed()
        made.engine, made.dropout = self.engine, False
        made._origin = (origin,)  # in a tuple, so that torch does not register it
        return made.eval()

    def same_weights(self, other: Backbone) -> bool:
        """Whether both are views of one adopted model."""
        return (self._origin or (self,))[0] is (other._origin or (other,))[0]

    def twin(self) -> Backbone:
        """A copy of this view, hooks, engine and dropout included."""
        made = self._viewed()
        made.engine = self.engine
        return made

    def _viewed(self) -> Backbone:
        made = views.shallow(self, new_tree=True)
        vars(made)["_modules"] = {"model": views.view(self.model, keep=lambda hook: not reads_units(hook))}
        made._install()
        return made

    # ------------------------------------------------------------------------------------ facts

    @property
    def port(self) -> AttentionPort:
        """How deep prompts enter its attention."""
        return PORTS[self.architecture.attention]

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def base(self) -> Any:
        """The transformer without its head."""
        return self.model.base_model

    @property
    def _layers(self) -> nn.Module:
        """The transformer's layers."""
        found: nn.Module = self.base.get_submodule(self.architecture.layers)
        return found

    @property
    def embedding(self) -> nn.Module:
        """The word embedding, ``[V, E]``."""
        found: nn.Module = self.model.get_input_embeddings()
        return found

    @property
    def embedding_size(self) -> int:
        """E; not the hidden size in ALBERT, ELECTRA and OPT-350m."""
        return int(next(self.embedding.parameters()).shape[1])

    @property
    def vocab_size(self) -> int:
        return int(next(self.embedding.parameters()).shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def num_layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def head_dim(self) -> int:
        """d, the size of one attention head."""
        own = getattr(self.config, "head_dim", None)
        return int(own or self.config.hidden_size // self.config.num_attention_heads)

    @property
    def key_value_size(self) -> int:
        """H_kv, the size of a layer's keys; grouped-query models have fewer key heads than query heads."""
        heads = getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads
        return int(heads) * self.head_dim

    @property
    def dtype(self) -> torch.dtype:
        return next(self.embedding.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.embedding.parameters()).device

    @property
    def first_position(self) -> int:
        return int(self.config.pad_token_id) + 1 if self.architecture.after_padding else 0

    @property
    def max_positions(self) -> int | None:
        """The maximum sequence length in tokens; ``None`` without a limit (BLOOM's ALiBi)."""
        table = getattr(self.config, "max_position_embeddings", None)
        return None if table is None else int(table) - self.first_position

    @property
    def uses_segments(self) -> bool:
        return self.architecture.segments and int(getattr(self.config, "type_vocab_size", 0) or 0) > 1

    @property
    def name(self) -> str:
        """The Hub id or folder of the weights."""
        return self.weights.name

    @name.setter
    def name(self, name: str) -> None:
        self.weights.name = name

    @property
    def revision(self) -> str | None:
        """The commit of the weights on the Hub."""
        return self.weights.revision

    @revision.setter
    def revision(self, revision: str | None) -> None:
        self.weights.revision = revision

    def facts(self, without: Iterable[str] = ()) -> BackboneFacts:
        """What an adapter records; ``without`` names further parameters that belong to the task."""
        return BackboneFacts(
            name=self.name,
            revision=self.revision,
            model_type=self.config.model_type,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            embedding_size=self.embedding_size,
            key_value_size=self.key_value_size,
            vocab_size=self.vocab_size,
            num_parameters=self.weights.num_parameters,
            fingerprint=self.fingerprint(without),
        )

    def fingerprint(self, without: Iterable[str] = ()) -> str | None:
        """See :meth:`Weights.fingerprint`; of the adopted model, even if this view was changed."""
        return self.weights.fingerprint(without)

    @property
    def language_head(self) -> LanguageHead:
        """The checkpoint's own language model head, which all views share; loaded when it is first needed.

        Raises:
            UnsupportedBackbone: the checkpoint has none, or the backbone was not loaded by name.
        """
        weights = self.weights
        if weights.language_head is not None:
            return weights.language_head
        with drawing():  # so that two threads do not load it twice
            if weights.language_head is None:
                if weights.load_language_head is None:
                    raise UnsupportedBackbone(
                        "a cloze head needs the checkpoint's language model head, and a model for sequence "
                        "classification does not have it",
                        remedy="pass the backbone by its name or folder",
                    )
                loaded = weights.load_language_head()
                loaded.apply(
                    lambda value: value.to(self.device, self.dtype if value.is_floating_point() else None)
                )
                weights.language_head = loaded  # last: other threads read it without the lock
            return weights.language_head

    def digest(self) -> str:
        """A SHA-256 of everything that the layers' outputs depend on, to the bit.

        Unlike :meth:`fingerprint` it differs between fp32 weights and their bf16 rounding, and it is not
        cached: about one second per gigabyte.
        """
        settings = {name: value for name, value in self.config.to_dict().items() if name not in _NAMES_ONLY}
        found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        tensors = {**dict(self.base.named_parameters()), **dict(self.base.named_buffers())}
        for name, value in sorted(tensors.items()):
            if name.startswith("pooler."):
                continue  # not below any layer, and random if the checkpoint lacks it
            found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def siblings(self, names: Iterable[str]) -> dict[str, Tensor]:
        """All parameters of the modules outside the head that own ``names``: PEFT saves them together."""
        owners = {name.rpartition(".")[0] for name in names if name not in self.head_names}
        return {
            name: value for name, value in self.model.named_parameters() if name.rpartition(".")[0] in owners
        }

    def cast_at(self, names: Iterable[str]) -> None:
        """Let the modules that own these parameters accept fp32 parameters in their place."""
        inside = {name.rpartition(".")[0] for name in names if name not in self.head_names}
        for owner in sorted({name.rpartition(".")[0] for name in names}):
            module = self.model.get_submodule(owner)
            if _to_own_dtype not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_to_own_dtype)
            if owner in inside and self._back_to_own_dtype not in module._forward_hooks.values():
                module.register_forward_hook(self._back_to_own_dtype)

    def _back_to_own_dtype(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Cast the output of an fp32 module inside a bf16 backbone to bf16."""
        return output.to(self.dtype) if isinstance(output, Tensor) else output

    def head_parameters(self, num_labels: int | None = None) -> dict[str, Tensor]:
        """The head, by name: the parameters outside the transformer, and those that the checkpoint lacked.

        Args:
            num_labels: C, for a new task. Parameters that the checkpoint lacked then get new values, and so
                does the output layer if its width is not C. So tasks of any width can share a backbone.
        """
        found: dict[str, Tensor] = {name: self.model.get_parameter(name) for name in self.head_names}
        if num_labels is None:
            return found
        shapes = {name: tuple(found[name].shape) for name in self.head_names if name in self.missing}
        if num_labels != self.model.config.num_labels:
            output = self.head_names[-1].rpartition(".")[0]  # the last name belongs to the last layer
            for name in self.head_names:
                if name.rpartition(".")[0] == output:
                    shapes[name] = (num_labels, *found[name].shape[1:])
        fresh = fresh_parameters(self.model, shapes, self.head_names) if shapes else {}
        # In the backbone's dtype, as if they had been loaded with it.
        return {**found, **{name: value.to(self.dtype) for name, value in fresh.items()}}

    # ------------------------------------------------------------------------------------- use

    @property
    def engine(self) -> Engine:
        """The engine options of the task that this view belongs to.

        Raises:
            UnsupportedBackbone: on assignment, if the architecture does not support an option.
        """
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        if not self.port.can.layers:
            for name in ("checkpoint_activations", "compile"):
                if getattr(engine, name):
                    raise UnsupportedBackbone(
                        f"{self.config.model_type} takes deep prompts as a key/value cache, and the engine "
                        "does not run its layers",
                        remedy=f"leave engine.{name} out",
                    )
        self._engine = engine
        self.packed_weights.install(self._layers, self._packed_ways)

    @property
    def _packed_ways(self) -> int:
        compiled = self.engine.compile and self.port.can.compile  # torch.compile gets the layers' own code
        return 0 if compiled else self.packed_weights.ways(self.engine.packed_memory)

    @property
    def packs(self) -> bool:
        """Whether the layers multiply by packed weights (:mod:`~ptuning.model.packed_weights`)."""
        return self._packed_ways > 0 and self.device.type == "cpu" and packed_weights.is_supported(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        """Called by ``to``, ``half`` and similar methods; two things are not rounded.

        The fingerprint is computed before the weights are rounded. Buffers that are not in checkpoints, such
        as the frequencies of rotary positions, stay exact, as they do when transformers loads a model in half
        precision, because the angles are these frequencies times the position.
        """
        if fn(torch.zeros(1, dtype=self.dtype, device=self.device)).dtype != self.dtype:
            self.fingerprint()
        made = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set
        ]
        self.packed_weights.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weights.language_head is not None:
            self.weights.language_head.apply(fn)
        for module, name, value in made:
            if (now := module.get_buffer(name)).dtype != value.dtype:
                setattr(module, name, value.to(now.device))
        return self

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` → ``[B, T, E]``, word embeddings only: the transformer adds positions and segments."""
        found: Tensor = self.embedding(input_ids)
        return found

    def segments(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """``[B, T]``: the text that each token belongs to, inferred without the tokenizer.

        An encoder's row starts with one special token, a decoder's with ``bos_token_id`` if the tokenizer
        adds it. ``token_type_ids``, if present, mark the second text.
        """
        real = attention_mask.bool()
        second = (
            token_type_ids if token_type_ids is not None and self.uses_segments else torch.zeros_like(real)
        )
        special = real & (real.cumsum(1) == 1)
        if self.architecture.causal:
            begin = getattr(self.config, "bos_token_id", None)
            special = special & (input_ids == (-1 if begin is None else begin))
        return torch.where(real & ~special, second.long(), -1)

    def shares_leading(self, length: int) -> bool:
        """Whether rows of ``length`` tokens, prompt included, can share a prompt that was computed once
        (:meth:`~ptuning.model.encoder.Encoder.leading`).

        They cannot if a sliding window would exclude it.
        """
        if not (self.engine.shared_prompt and self.architecture.causal):
            return False
        both_ways = getattr(self.config, "use_bidirectional_attention", None)
        if both_ways or getattr(self.config, "is_causal", None) is False:
            return False  # a decoder used as an encoder: its prompt sees the text
        window = getattr(self.config, "sliding_window", None)
        return self.port.can.record and (window is None or length <= int(window))

    def has_stem(self, head: Iterable[str]) -> bool:
        """Whether the output of the layers below the first prompt is the same for every task: dropout is off,
        and ``head`` has none of their parameters.
        """
        inside = f"{self.model.base_model_prefix}."
        own = any(name.startswith(inside) and ".pooler." not in name for name in head)
        return not own and not self.dropout and self.port.can.layers

    @property
    def attends_once(self) -> bool:
        """Whether each layer has one attention; ALBERT with ``inner_group_num`` above 1 has more."""
        return int(getattr(self.config, "inner_group_num", 1)) == 1

    @property
    def reads_first_token(self) -> bool:
        """Whether its own head reads the first token only."""
        if self.architecture.causal:
            return False
        return getattr(self.config, "classifier_pooling", "cls") in ("cls", "bos")

    def has_module(self, name: str) -> bool:
        """Whether the transformer has a module of that name; some are ``None`` in some configurations."""
        owner, _, child = name.rpartition(".")
        return getattr(self.base.get_submodule(owner), child, None) is not None


def _writes_to_itself(module: nn.Module) -> bool:
    """Whether a module stores state in a forward pass, as dynamic rotary positions do."""
    kinds = getattr(module, "rope_type", "")
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)


def _to_own_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A task's head is fp32, the backbone may be bf16: cast the inputs, never the weights."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
