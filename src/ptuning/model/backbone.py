"""The frozen model, and what each architecture asks for; ``architectures.py`` says what that is.

:class:`Backbone` adopts any ``AutoModelForSequenceClassification``: it freezes it, sends its
attention through ``attention.py``, and answers one question, :meth:`Backbone.logits`, in one way for
all of them: rows come aligned, with explicit positions, and the pooled token is the native one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ptuning import adapters
from ptuning.errors import ConfigError, UnsupportedBackbone
from ptuning.model import attention, disentangled, layers, views
from ptuning.model.architectures import ARCHITECTURES
from ptuning.model.config import DeepPrompt, Engine, Pooling
from ptuning.model.embedded import canonical
from ptuning.model.facts import BackboneFacts, Weights
from ptuning.model.fresh import fresh_parameters
from ptuning.model.layers import ForwardPass
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
"""Of a configuration: what changes no hidden state."""


class Backbone(nn.Module):
    """A frozen ``AutoModelForSequenceClassification``.

    Each task has a :meth:`view` of its own: a module tree over the same weights, so that dropout, the engine,
    hooks and the training flag of one task are not another's. A task's head is handed to each call of
    :meth:`logits`; nothing is written to a module while it runs, so threads may use a backbone, or one view
    of it, at the same time.

    The module is adopted: its parameters are frozen in place, it is kept in eval mode (dropout off)
    unless asked, and its attention implementation is set. No value of its weights or of its public
    configuration is ever changed, the head's included: a task's head is a copy.

    Args:
        model: The model.
        name: Its Hub id or folder.
        revision: Its commit, if it came from the Hub.
        missing: Names of the parameters that the checkpoint did not hold, and that were therefore made at
            random; they are the task's to train.
        pooling: How it was made to be read: ``mean`` for a sentence embedding model of that kind.

    Raises:
        UnsupportedBackbone: an architecture that is not in the table, or a model for something else.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str = "",
        revision: str | None = None,
        missing: frozenset[str] = frozenset(),
        pooling: Literal["native", "mean"] = "native",
    ) -> None:
        super().__init__()
        config = model.config
        if config.model_type not in ARCHITECTURES:
            raise UnsupportedBackbone(
                f"{config.model_type!r} ({type(model).__name__}) is not supported; "
                f"expected one of {', '.join(ARCHITECTURES)} (docs/backbones.md)"
            )
        if not any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).__mro__):
            raise UnsupportedBackbone(
                f"got a {type(model).__name__}, whose outputs are no classes of a text; expected a model "
                "for sequence classification: AutoModelForSequenceClassification.from_pretrained(…)"
            )
        self.model = model.requires_grad_(False).eval()
        for module in model.modules():  # the engine has its own checkpointing, which knows what a pass is
            if "gradient_checkpointing" in vars(module):
                vars(module)["gradient_checkpointing"] = False
        self.architecture = ARCHITECTURES[config.model_type]
        if self.architecture.deep == "attention":
            model.set_attn_implementation(attention.NAME)
        elif self.architecture.deep == "disentangled":
            disentangled.install(self.base.encoder)
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
        )
        self._private = tuple(name for name, module in model.named_modules() if _writes_to_itself(module))
        self._origin: tuple[Backbone, ...] = ()

    def _install(self) -> None:
        """Let every layer ask the pass that comes by, where this architecture's layers are asked."""
        if self.architecture.deep != "cache":
            layers.install(
                self.base.get_submodule(self.architecture.layers).children(),
                self.architecture.feed_forward,
                disentangled=self.architecture.deep == "disentangled",
            )

    # ------------------------------------------------------------------------------------ views

    def view(self) -> Backbone:
        """The same weights for another task: a module tree of its own over the same Parameters and buffers.

        It begins in eval mode with dropout off, with this one's engine, and with the hooks of the model that
        was adopted. It costs no memory for weights, and about 2 KiB a module.
        """
        origin = self._origin[0] if self._origin else self
        made = origin._viewed()
        made.engine, made.dropout = self.engine, False
        made._origin = (origin,)  # in a tuple, so that torch does not take it for a part of this module
        return made.eval()

    def twin(self) -> Backbone:
        """The same view once more, hooks, engine and dropout included."""
        return self._viewed()

    def _viewed(self) -> Backbone:
        made = views.shallow(self, new_tree=True)
        vars(made)["_modules"] = {"model": views.view(self.model, keep=lambda hook: not reads_units(hook))}
        made._install()
        return made

    # ------------------------------------------------------------------------------------ facts

    @property
    def config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def base(self) -> Any:
        """The transformer without its head."""
        return self.model.base_model

    @property
    def embedding(self) -> nn.Module:
        """The word embedding, ``[V, E]``."""
        found: nn.Module = self.model.get_input_embeddings()
        return found

    @property
    def embedding_size(self) -> int:
        """E; other than the hidden width in ALBERT, ELECTRA and OPT-350m."""
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
        """The width of one attention head."""
        own = getattr(self.config, "head_dim", None)
        return int(own or self.config.hidden_size // self.config.num_attention_heads)

    @property
    def key_value_size(self) -> int:
        """H_kv: the width of a layer's keys; grouped-query models have fewer key heads than heads."""
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
        """The longest sequence in tokens; ``None`` where nothing bounds it (BLOOM's ALiBi)."""
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
        """What an adapter records; ``without`` are further parameters that the task has of its own."""
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
        """See :meth:`Weights.fingerprint`: of the model that was adopted, whatever was done to this view."""
        return self.weights.fingerprint(without)

    def digest(self) -> str:
        """A SHA-256 of what the layers' outputs depend on, to the last bit, as it is held now.

        Unlike :meth:`fingerprint` it tells fp32 weights from their bf16 rounding, and it is never remembered:
        about a second for each gigabyte.
        """
        told = {name: value for name, value in self.config.to_dict().items() if name not in _NAMES_ONLY}
        whole = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        held = {**dict(self.base.named_parameters()), **dict(self.base.named_buffers())}
        for name, value in sorted(held.items()):
            if name.startswith("pooler."):
                continue  # above all layers, and where a checkpoint lacks it another one each time
            whole.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return whole.hexdigest()

    def siblings(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Every parameter of the modules outside the head that own ``names``: what PEFT saves together."""
        owners = {name.rpartition(".")[0] for name in names if name not in self.head_names}
        return {
            name: value for name, value in self.model.named_parameters() if name.rpartition(".")[0] in owners
        }

    def cast_at(self, names: Iterable[str]) -> None:
        """Let the modules that own these parameters take fp32 parameters in place of their own."""
        inside = {name.rpartition(".")[0] for name in names if name not in self.head_names}
        for owner in sorted({name.rpartition(".")[0] for name in names}):
            module = self.model.get_submodule(owner)
            if _to_own_dtype not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_to_own_dtype)
            if owner in inside and self._back_to_own_dtype not in module._forward_hooks.values():
                module.register_forward_hook(self._back_to_own_dtype)

    def _back_to_own_dtype(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """What an fp32 module inside a bf16 backbone gives goes on in bf16."""
        return output.to(self.dtype) if isinstance(output, Tensor) else output

    def head_parameters(self, num_labels: int | None = None) -> dict[str, Tensor]:
        """The head, by name: what stands outside the transformer, and what its checkpoint lacked.

        Args:
            num_labels: C, for a task to begin with. What the checkpoint lacked is then made anew for every
                task, and so is the output layer if C is not the width of the backbone's own, so that tasks of
                any width share a backbone.
        """
        found: dict[str, Tensor] = {name: self.model.get_parameter(name) for name in self.head_names}
        if num_labels is None:
            return found
        shapes = {name: tuple(found[name].shape) for name in self.head_names if name in self.missing}
        if num_labels != self.model.config.num_labels:
            output = self.head_names[-1].rpartition(".")[0]  # the layer that is applied last is named last
            for name in self.head_names:
                if name.rpartition(".")[0] == output:
                    shapes[name] = (num_labels, *found[name].shape[1:])
        fresh = fresh_parameters(self.model, shapes, self.head_names) if shapes else {}
        # In the backbone's precision, as if it had been loaded with it.
        return {**found, **{name: value.to(self.dtype) for name, value in fresh.items()}}

    # ------------------------------------------------------------------------------------- use

    @property
    def engine(self) -> Engine:
        """How it computes, for the one task whose view this is.

        Raises:
            UnsupportedBackbone: where it is set: the architecture has no layers of ours to do what is asked.
        """
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        if self.architecture.deep == "cache":
            for name in ("checkpoint_activations", "compile"):
                if getattr(engine, name):
                    raise UnsupportedBackbone(
                        f"{self.config.model_type} takes deep prompts through its key/value cache, and its "
                        f"layers are not the engine's to run; leave engine.{name} out"
                    )
        self._engine = engine

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        """What ``to``, ``half`` and their like do, with two things kept from rounding.

        The fingerprint is taken before the weights are; and what no checkpoint holds, such as the frequencies
        of rotary positions, stays as exact as it was made, as it does where transformers loads a model in
        half precision: the angles are these times the position.
        """
        if fn(torch.zeros(1, dtype=self.dtype, device=self.device)).dtype != self.dtype:
            self.fingerprint()
        made = [
            (module, name, value)
            for module in self.model.modules()
            for name, value in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, value in made:
            if (now := module.get_buffer(name)).dtype != value.dtype:
                setattr(module, name, value.to(now.device))
        return self

    def embed(self, input_ids: Tensor) -> Tensor:
        """``[B, T]`` → ``[B, T, E]``, word embeddings alone: positions and segments come later, once."""
        found: Tensor = self.embedding(input_ids)
        return found

    def segments(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """``[B, T]``: which text each token belongs to, as far as it can be told without its tokenizer.

        Encoders begin with one special token, and decoders with ``bos_token_id`` where their tokenizer sets
        it; ``token_type_ids`` tell the second text where they exist.
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

    def logits(
        self,
        *,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor,
        positions: Tensor,
        token_type_ids: Tensor | None = None,
        prompts: Tensor | None = None,
        first_layer: int = 0,
        stem: Tensor | None = None,
        units: Tensor | None = None,
        pooling: Pooling = "native",
        mix: Tensor | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """``[B, C]``: what the head says of each row.

        Args:
            input_ids: ``[B, S]``; or
            inputs_embeds: ``[B, S, E]``.
            attention_mask: ``[B, S]``; padding behind the row for encoders, in front for decoders.
            positions: ``[B, S]``, from 0.
            token_type_ids: ``[B, S]``; ignored where the architecture has no segments.
            prompts: ``[L−s, 2, P, H_kv]`` or ``[B, L−s, 2, P, H_kv]``, deep prompts.
            first_layer: s.
            stem: ``[B, S, H]``, what :meth:`stem` gave; the layers below s are not run again.
            units: ``[L−s, 2, U, H]``, virtual units of the feed-forward networks.
            pooling: What of the last layer the head reads: its own token, the mean of the row's tokens, or
                the similarity of two rows' means. For that the rows are the first texts of all pairs, then
                the second ones, and the answer has half as many. With ``layers`` it is a mix of all layers.
            mix: ``[L−s+1, 2+2Q, H]``, its weights (:class:`~ptuning.model.layers.ForwardPass`).
            head: Parameters that stand in for the backbone's own, by name.
        """
        shared = self._pass(
            prompts,
            first_layer=first_layer,
            stem=stem,
            units=units,
            pooled=self._pooled,
            spread=self.architecture.whole,
            mean=None if pooling == "native" else attention_mask,
            mix=mix,
            similarity=pooling == "similarity",
        )
        inputs = self._inputs(input_ids, inputs_embeds, positions, token_type_ids, attention_mask)
        if prompts is not None and self.architecture.deep == "cache":
            attention_mask, inputs["past_key_values"] = self._cached(shared, attention_mask, prompts)
        inputs["attention_mask"] = attention_mask
        model = views.placed(self.model, head or {}, self._private)
        out: Tensor
        with self._under_way(shared, inputs):
            if self.architecture.causal:  # the head reads the last token; padding stands in front of the text
                hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
                out = model.score(hidden[:, -1])
            else:
                out = model(**inputs).logits
        if self.architecture.deep != "cache":
            shared.check_read(type(self.model).__name__)
        return out

    def stem(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        token_type_ids: Tensor | None = None,
        first_layer: int,
    ) -> Tensor:
        """``[B, S, H]``: the hidden states that enter layer ``first_layer``; arguments as for :meth:`logits`.

        They depend on the frozen weights and the text alone: there is no gradient, and they can be kept.
        """
        shared = self._pass(None, first_layer=first_layer, stop=first_layer)
        inputs = self._inputs(input_ids, None, positions, token_type_ids, attention_mask)
        if self.architecture.causal:
            inputs["use_cache"] = False
        # In the precision that the weights are held in, so that it does not matter who asks.
        exact = torch.autocast(self.device.type, enabled=False)
        model = views.placed(self.model, {}, self._private)
        with torch.no_grad(), exact, self._under_way(shared, inputs):
            model.base_model(**inputs, attention_mask=attention_mask)
        assert shared.entered is not None  # every architecture with a stem asks its layers, all of them
        return shared.entered

    def leading(self, inputs_embeds: Tensor, head: Mapping[str, Tensor] | None = None) -> Tensor:
        """``[L, 2, P, H_kv]``: in every layer the keys and values of a prompt ``[P, E]`` before any text.

        In a decoder nothing that stands behind them changes them: one computation serves every row.

        Args:
            head: As :meth:`logits` takes it; a head may hold parameters of the layers.
        """
        shared = self._pass(None, record=True)
        places = torch.arange(len(inputs_embeds), device=inputs_embeds.device)[None]
        everywhere = torch.ones_like(places)
        inputs = self._inputs(None, inputs_embeds[None], places, None, everywhere)
        model = views.placed(self.model, head or {}, self._private)
        with self._under_way(shared, inputs):
            model.base_model(**inputs, attention_mask=everywhere, use_cache=False)
        if len(shared.recorded) != self.num_layers:
            raise UnsupportedBackbone(
                f"{type(self.model).__name__} showed the keys and values of {len(shared.recorded)} of its "
                f"{self.num_layers} layers: it does not go through transformers' attention interface; set "
                "engine.shared_prompt to false"
            )
        # Each layer's keys and values are [1, h_kv, P, d].
        return torch.stack(
            [
                torch.stack([states[0].transpose(0, 1).flatten(1) for states in keys_values])
                for keys_values in shared.recorded
            ]
        )

    def shares_leading(self, length: int) -> bool:
        """Whether rows of ``length`` tokens, prompt included, may be run behind :meth:`leading`.

        Not where layers with a sliding window would have lost sight of it.
        """
        if not (self.engine.shared_prompt and self.architecture.causal):
            return False
        both_ways = getattr(self.config, "use_bidirectional_attention", None)
        if both_ways or getattr(self.config, "is_causal", None) is False:
            return False  # a decoder made into an encoder: its prompt sees the text
        window = getattr(self.config, "sliding_window", None)
        return self.architecture.deep == "attention" and (window is None or length <= int(window))

    def has_stem(self, head: Iterable[str]) -> bool:
        """Whether the layers below the first prompt are the same for every task: none of their weights is in
        the task's head, and dropout is off.
        """
        inside = f"{self.model.base_model_prefix}."
        own = any(name.startswith(inside) and ".pooler." not in name for name in head)
        return not own and not self.dropout and self.architecture.deep != "cache"

    @property
    def _pooled(self) -> Literal["first", "last"] | None:
        """The token that the head reads."""
        if self.architecture.causal:
            return "last"
        if getattr(self.config, "inner_group_num", 1) > 1:  # an ALBERT layer that attends more than once
            return None
        return "first" if getattr(self.config, "classifier_pooling", "cls") == "cls" else None

    def _pass(self, prompts: Tensor | None, **options: Any) -> ForwardPass:
        return ForwardPass(
            self.num_layers,
            prompts,
            head_dim=self.head_dim,
            engine=self.engine,
            **options,
        )

    def _inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        positions: Tensor,
        token_type_ids: Tensor | None,
        attention_mask: Tensor,
    ) -> dict[str, Any]:
        """The transformer's arguments, but for the mask."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        if self.architecture.takes_positions:
            inputs["position_ids"] = (positions + self.first_position) * attention_mask + (
                (1 - attention_mask) * max(self.first_position - 1, 0)
            )
        if self.uses_segments and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return inputs

    def _under_way(self, shared: ForwardPass, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        """Let the layers find the pass: among the ``inputs``, or in the block that this gives."""
        if self.architecture.deep == "attention":
            inputs[attention.ARGUMENT] = shared
        return disentangled.bound(shared) if self.architecture.deep == "disentangled" else nullcontext()

    def _cached(
        self, shared: ForwardPass, attention_mask: Tensor, prompts: Tensor
    ) -> tuple[Tensor, DynamicCache]:
        """A key/value cache that holds the prompt, and the mask that covers it."""
        cache = DynamicCache()
        batch = attention_mask.shape[0]
        for layer in range(self.num_layers):
            keys_values = shared.keys_values(layer, batch, self.dtype)
            assert keys_values is not None  # settle refused a first_layer above 0
            cache.update(*keys_values, layer)
        tokens = attention_mask.new_ones(batch, prompts.shape[-2])
        return torch.cat((tokens, attention_mask), dim=1), cache

    def settle(self, config: DeepPrompt, *, compares: bool = False) -> DeepPrompt:
        """``config`` with pooling and position offset decided; refuses what this architecture cannot hold.

        Args:
            compares: The task is to say of two texts how alike they are, or whether.

        Raises:
            ConfigError: no layer left to prompt.
            UnsupportedBackbone: the architecture cannot do it.
        """
        kind = self.config.model_type
        if config.first_layer >= self.num_layers:
            raise ConfigError(
                f"prompt.first_layer is {config.first_layer}, but {self.name} has {self.num_layers} layers, "
                f"counted from 0; expected at most {self.num_layers - 1}"
            )
        if self.architecture.deep == "cache" and config.first_layer > 0:
            raise UnsupportedBackbone(
                f"{kind} takes deep prompts through its key/value cache, which needs one in every layer; "
                "set prompt.first_layer to 0"
            )
        if getattr(self.config, "inner_group_num", 1) > 1:
            raise UnsupportedBackbone(
                f"{kind} with inner_group_num {self.config.inner_group_num} attends more than once a layer; "
                "use an input-depth prompt (prompt.depth: input)"
            )
        # A similarity stands where the head looks for its first token.
        can = self._pooled == "first" and self.architecture.deep != "cache"
        if config.pooling is None:
            averaged = self.pooling == "mean" and self.architecture.deep != "cache"
            read: Pooling = "layers" if averaged else "native"
            config = replace(config, pooling="similarity" if averaged and compares and can else read)
        if config.pooling == "similarity" and not can:
            raise UnsupportedBackbone(
                f"{self.name} ({kind}) has no head that reads its first token, in whose place the "
                "similarity of two texts stands; set prompt.pooling to mean or native"
            )
        if config.pooling in ("mean", "layers") and self.architecture.deep == "cache":
            raise UnsupportedBackbone(
                f"{kind} takes deep prompts through its key/value cache, and its layers are not asked for "
                "the tokens' mean; set prompt.pooling to native"
            )
        if config.num_queries and config.pooling != "layers":
            raise ConfigError(
                f"prompt.num_queries is {config.num_queries}, but prompt.pooling is {config.pooling!r}, "
                "which asks none; leave it out, or set prompt.pooling to layers"
            )
        config = replace(
            config, num_virtual_units=config.num_virtual_units or 0, num_queries=config.num_queries or 0
        )
        if config.num_virtual_units and self.architecture.deep == "cache":
            raise UnsupportedBackbone(
                f"{kind} takes deep prompts through its key/value cache, and its layers are not asked for "
                "virtual units; set prompt.num_virtual_units to 0"
            )
        if config.position_offset is None:
            like_peft = (
                config.first_layer == 0
                and self.architecture.takes_positions
                and kind not in adapters.NO_CACHE
            )
            config = replace(config, position_offset=config.num_virtual_tokens if like_peft else 0)
        if config.position_offset and not self.architecture.takes_positions:
            raise UnsupportedBackbone(f"{kind} has no position ids to move; set prompt.position_offset to 0")
        return config


def _writes_to_itself(module: nn.Module) -> bool:
    """Whether a module keeps something of the last text: rotary positions that depend on its length do."""
    kinds = getattr(module, "rope_type", "")
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)


def _to_own_dtype(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A task's head is fp32 on a backbone that may be bf16: cast what comes in, never the weights."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
