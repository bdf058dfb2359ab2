"""PTuningModel: prompt + placement + backbone + head.

One batch's way: tokens come padded on either side; the prompt encoder makes the prompt (``prompt.py``),
text and prompt are laid out for the backbone (``sequence.py``, ``placement.py``), which runs with the
task's head on top (``backbone.py``), and the loss is taken in fp32.

The task owns its prompt encoder and a copy of the head; the backbone is never written to, so any
number of tasks can stand on one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError, DataError, TrainingDiverged, out_of_memory
from ptuning.model import state, views
from ptuning.model.backbone import Backbone
from ptuning.model.config import (
    DeepPrompt,
    EmbeddingEncoder,
    Engine,
    InputPrompt,
    PromptConfig,
    TextInit,
    prompt_from_dict,
    prompt_to_dict,
)
from ptuning.model.drawing import drawing
from ptuning.model.head import Head, escaped, first_mix
from ptuning.model.loading import check_backbone, hold
from ptuning.model.placement import layout
from ptuning.model.prompt import Embedding, deep_encoder, initial_prompt, input_encoder, scale_learning_rate
from ptuning.model.sequence import Batch, Joined, Prepared, text_logits
from ptuning.model.targets import as_targets, refuse
from ptuning.model.tasks import known_as, loss_of, new_task, plain_task, task_of, weigh
from ptuning.model.template import Insertion
from ptuning.model.units import first_units
from ptuning.task import ProblemType, Task
from ptuning.threads import TOKENIZER

_PLAIN: ContextVar[frozenset[object]] = ContextVar("plain", default=frozenset())
"""What answers as the plain backbone here and now: the ``_identity`` of models, which their twins share."""


class PTuningModel(nn.Module):
    """A frozen backbone that has learned a task through a prompt.

    An ordinary ``nn.Module`` that returns transformers' ``SequenceClassifierOutput``: it works in
    this project's loop, in ``transformers.Trainer``, and in anyone's own. Its ``state_dict`` holds
    the task alone, by default under 1 % as many numbers as the backbone has; those never leave it.

    Args:
        backbone: The frozen model.
        config: What kind of prompt, where.
        task: What the logits mean.
        tokenizer: Needed for a template's literal words and for ``TextInit``.
        anchors: The token ids of a template's literal words, where they are known already.
        head: Values for parameters of the backbone, by name, that the task holds as its own, beside or in
            place of those of the backbone's head.
        learning_rate_scales: Factors on the learning rate of the prompt's table and of the head
            (:class:`~ptuning.model.prompt.ScaledParameter`), for loops that have one learning rate.
        class_weights: ``[C]``, the loss's weight of each class (for multi-label, of each label's positives).

    Raises:
        ConfigError: choices that contradict each other, the task or the backbone.
        UnsupportedBackbone: the architecture cannot hold such a prompt.
    """

    @drawing()
    def __init__(
        self,
        backbone: Backbone,
        config: PromptConfig,
        task: Task,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        anchors: Sequence[Sequence[int]] | None = None,
        head: Mapping[str, Tensor] | None = None,
        learning_rate_scales: tuple[float, float] = (1.0, 1.0),
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self._identity = object()
        self.backbone = backbone = backbone.view()
        self.prompt_config = config
        self.task = task
        self.tokenizer = tokenizer
        self.config = known_as(backbone.model.config, task)
        given_head = {**backbone.siblings(head or ()), **(head or {})}
        if isinstance(config, DeepPrompt):
            self.prompt_config = config = backbone.settle(config, compares=task.is_pair_similarity)
        self.head = Head(
            {**backbone.head_parameters(task.num_labels), **first_mix(config, backbone), **given_head},
            trained=config.train_head,
        ).to(backbone.device)
        backbone.cast_at([name for name in self.head.names if name != adapters.MIX])
        self.anchors: tuple[tuple[int, ...], ...] = ()
        self.units: Embedding | None = None
        if isinstance(config, DeepPrompt):
            shape = (
                backbone.num_layers - config.first_layer,
                2,
                config.num_virtual_tokens,
                backbone.key_value_size,
            )
            made = deep_encoder(config.encoder, shape, backbone.hidden_size, torch.device("cpu"))
            self.prompt_encoder = made.to(backbone.device)  # drawn here, so the device does not matter
            if count := config.num_virtual_units:
                self.units = Embedding(first_units(shape[0], count, backbone.hidden_size)).to(backbone.device)
        else:
            given = [tuple(ids) for ids in anchors] if anchors is not None else None
            self.anchors = tuple(given if given is not None else self._tokenised_anchors(config.insertions))
            if len(self.anchors) != (wanted := sum(bool(piece.anchor) for piece in config.insertions)):
                raise ConfigError(
                    f"anchors: got token ids for {len(self.anchors)} literal texts, but the placement "
                    f"{config.placement!r} holds {wanted}"
                )
            text_ids = (
                self._token_ids(config.init.text, "init.text") if isinstance(config.init, TextInit) else None
            )
            start = initial_prompt(
                config.init, config.virtual_tokens, backbone.embedding, backbone.vocab_size, text_ids
            )
            self.prompt_encoder = input_encoder(config.encoder, start)
        self.learning_rate_scales = (1.0, 1.0)
        self.scale_learning_rates(*learning_rate_scales)
        self.register_buffer("class_weights", None, persistent=False)
        self.set_class_weights(class_weights)
        state.leave_backbone_out(self)
        if (limit := self.max_text_tokens) is not None and limit < 3:
            narrow = task.max_length is not None and limit == task.max_length - self.inserted_tokens
            places = task.max_length if narrow else backbone.max_positions
            raise ConfigError(
                f"{config.virtual_tokens} virtual tokens and a position offset of {self.position_offset} "
                f"leave {limit} of {places} places for the text; use fewer virtual tokens"
                + (", or a longer max_length" if narrow else "")
            )

    # -------------------------------------------------------------------------------- making one

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel | Backbone,
        config: PromptConfig | None = None,
        *,
        num_labels: int | None = None,
        problem_type: ProblemType | None = None,
        task: Task | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        class_weights: Sequence[float] | None = None,
        engine: Engine | None = None,
    ) -> PTuningModel:
        """An untrained task on a backbone.

        Args:
            backbone: A Hub id, a folder, ``demo``; or an ``AutoModelForSequenceClassification``, which
                is adopted: frozen in place, its attention sent through ours.
            config: The prompt; ``DeepPrompt()`` if left out.
            num_labels: C, the number of classes; or give ``task``. 1 means regression. If left out, the
                task is what the backbone's configuration says. Labels are called as its ``id2label`` does,
                where that has as many names; otherwise they are numbers, until ``fit`` finds names in rows.
            problem_type: transformers' own; told from ``num_labels`` if left out.
            task: Everything about the task, labels included, in place of these two.
            tokenizer: By default the backbone's own, loaded where it is needed.
            revision: A branch, tag or commit of the Hub.
            token: The Hub's access token; the one that was logged in with if left out.
            dtype: What to hold the frozen weights in; prompt and head are always fp32.
            class_weights: ``[C]``, for unbalanced classes.
            engine: How the backbone computes for this task; see :class:`Engine`.
        """
        if task is not None and (
            num_labels not in (None, task.num_labels) or problem_type not in (None, task.problem_type)
        ):
            raise ConfigError(
                f"got num_labels {num_labels} and problem_type {problem_type} beside a {task.problem_type} "
                f"task of {task.num_labels}; leave them out, the task says both"
            )
        asked = task or (None if num_labels is None else plain_task(num_labels, problem_type))
        width = 1 if problem_type == "regression" else num_labels
        held, tokenizer = hold(
            backbone,
            width if asked is None else asked.num_labels,
            problem_type if asked is None else asked.problem_type,
            tokenizer,
            revision,
            dtype,
            token,
        )
        task = task or new_task(held.model.config, num_labels, problem_type)
        model = cls(held, config or DeepPrompt(), task, tokenizer=tokenizer, class_weights=class_weights)
        model.backbone.engine = engine or model.backbone.engine
        return model

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        backbone: str | PreTrainedModel | Backbone | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        task: Task | None = None,
        allow_pickle: bool = False,
        engine: Engine | None = None,
    ) -> PTuningModel:
        """A trained task from its folder, in eval mode.

        Args:
            folder_or_hub_id: What :meth:`save_pretrained` wrote, here or on the Hub; an adapter that PEFT
                wrote (``P_TUNING``, ``PROMPT_TUNING``, ``PREFIX_TUNING`` for sequence classification); or
                a folder that ``transformers.Trainer`` saved this model in, whose prompt encoder comes along.
            backbone: The backbone's name or module; by default the one that the adapter names.
            tokenizer: By default the backbone's own, where the backbone is given by name.
            revision: The adapter's branch, tag or commit on the Hub.
            token: The Hub's access token, for the adapter and the backbone that it names; the one that was
                logged in with if left out.
            dtype: What to hold the frozen weights in.
            task: What the logits mean, where the adapter cannot say (PEFT keeps no labels); as wide as it.
            allow_pickle: Read PEFT's old ``adapter_model.bin``, and the ``pytorch_model.bin`` of a backbone
                that the adapter names, with torch's restricted unpickler, where there are no safetensors. A
                backbone that is named here is read either way.
            engine: How the backbone computes, for this task.

        Raises:
            AdapterError: no adapter there, or one altered or cut short.
            AdapterMismatch: the backbone is not the one that the task was trained on.
        """
        folder = adapters.locate(folder_or_hub_id, revision=revision, token=token, allow_pickle=allow_pickle)
        model = cls._opened(folder, backbone, tokenizer, token, dtype, task, allow_pickle)
        model.backbone.engine = engine or model.backbone.engine
        return model.eval()

    @classmethod
    def _opened(
        cls,
        folder: Path,
        backbone: str | PreTrainedModel | Backbone | None,
        tokenizer: PreTrainedTokenizerBase | None,
        token: str | bool | None,
        dtype: torch.dtype | None,
        task: Task | None,
        allow_pickle: bool,
    ) -> PTuningModel:
        """A trained task from a folder that is here."""
        if not adapters.is_adapter(folder) and (found := state.read_file(folder)) is not None:
            model = cls._from_state(
                *found,
                backbone=backbone,
                tokenizer=tokenizer,
                token=token,
                dtype=dtype,
                allow_pickle=allow_pickle,
            )
            if task is not None:
                model.set_task(task)
            return model
        adapter = adapters.load(folder, allow_pickle=allow_pickle)
        ours = adapters.is_adapter(folder)
        kind = adapter.task.problem_type if ours else None  # PEFT keeps none: the backbone may know
        held, tokenizer = _held(
            backbone, adapter.backbone, adapter.task.num_labels, kind, tokenizer, token, dtype, allow_pickle
        )
        check_backbone(held, adapter)
        own = held.model.config
        if task is None and not ours and own.num_labels == adapter.task.num_labels:
            task = task_of(own)
        return cls.from_adapter(adapter, held, task=task, tokenizer=tokenizer)

    @classmethod
    def from_adapter(
        cls,
        adapter: adapters.Adapter,
        backbone: Backbone,
        *,
        task: Task | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> PTuningModel:
        """A trained task from its record, on a backbone that :func:`check_backbone` has found to fit."""
        config = prompt_from_dict(adapter.prompt)
        # What made the prompt is not needed to use it, and its own initialisation is overwritten below.
        plain: PromptConfig = (
            replace(config, encoder=EmbeddingEncoder())
            if isinstance(config, DeepPrompt)
            else replace(config, encoder=EmbeddingEncoder(), init=InputPrompt().init)
        )
        parameters = backbone.model.named_parameters()
        words = {name for name, value in parameters if value is backbone.embedding.weight}
        head = {name: value for name, value in adapter.head.items() if name not in words}
        with _as_recorded(backbone):
            model = cls(
                backbone, plain, adapter.task, tokenizer=tokenizer, anchors=adapter.anchors, head=head
            )
        if task is not None:
            model.set_task(task)
        _take(cast(Embedding, model.prompt_encoder), adapter.prompt_tensor, "prompt")
        if model.units is not None and adapter.units is not None:
            _take(model.units, adapter.units, "virtual units")
        model.provenance = config
        model.loaded = adapter
        return model

    @classmethod
    def _from_state(
        cls,
        record: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        backbone: str | PreTrainedModel | Backbone | None,
        tokenizer: PreTrainedTokenizerBase | None,
        token: str | bool | None,
        dtype: torch.dtype | None,
        allow_pickle: bool,
    ) -> PTuningModel:
        """A task from a bare state dict that says of itself what it is."""
        task = Task.from_dict(record["task"])
        held, tokenizer = _held(
            *(backbone, record["backbone"], task.num_labels, task.problem_type),
            *(tokenizer, token, dtype, allow_pickle),
        )
        own = dict(held.model.named_parameters())
        config, anchors = prompt_from_dict(record["prompt"]), record["anchors"]
        provenance = config
        if isinstance(config, InputPrompt):  # what it started from is overwritten below
            config = replace(config, init=InputPrompt().init)
        # The head's names are the record's; its values, like the prompt's, come with the state.
        values = {name: own[name] for name in record["head"] if name in own and name not in held.head_names}
        prompt_scale, head_scale = record["rate_scales"]
        with _as_recorded(held):
            model = cls(
                held,
                config,
                task,
                tokenizer=tokenizer,
                anchors=anchors,
                head=values,
                learning_rate_scales=(prompt_scale, head_scale),
            )
            state.compare(_as_now(record), model._record())
            model.load_state_dict(tensors)
            model.set_class_weights(record.get("class_weights"))
        model.provenance = provenance
        return model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        peft: bool = False,
    ) -> Path:
        """Write the adapter folder, whole or not at all.

        Args:
            folder: Where; an adapter that stands there is replaced. Anything else is refused, and so is one
                whose model card was edited.
            metrics: What was measured, for the model card.
            extra: Anything else worth keeping, as JSON.
            peft: Make sure that ``peft.PeftModel.from_pretrained`` can load it: a regression's scaling goes
                into the head, and what PEFT cannot hold is refused.

        Raises:
            OutputError: it could not be written; what stood there is untouched.
            AdapterError: with ``peft``: what PEFT cannot hold, why, and the option that would let it.
        """
        adapter = self.to_adapter(metrics=metrics, extra=extra)
        return adapters.save(adapters.for_peft(adapter) if peft else adapter, Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        backbone: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the adapter, with its model card, in one commit.

        Args:
            repo_id: ``"owner/name"``; made if it is not there.
            private: Whether a new repository is private; by default as the account has it.
            token: The Hub's access token; the one that was logged in with if left out.
            revision: A branch, made if it is not there.
            commit_message: What the commit says.
            create_pr: Propose it instead, where there is no right to write.
            license: What the adapter may be used for, as the Hub names licences (``"apache-2.0"``).
            backbone: The backbone's name for others, where it was a folder of this machine.
            metrics: As :meth:`save_pretrained` takes them.
            extra: As :meth:`save_pretrained` takes it.

        Returns:
            The address of what was made.

        Raises:
            AdapterError: the Hub said no, or is out of reach; what to do.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "adapter", metrics=metrics, extra=extra)
            return adapters.push(
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
                license=license,
                backbone=backbone,
            )

    def to_adapter(
        self, *, metrics: Mapping[str, Any] | None = None, extra: Mapping[str, Any] | None = None
    ) -> adapters.Adapter:
        """The task as plain data: what :meth:`save_pretrained` writes."""
        with torch.no_grad():
            prompt = views.view(self.prompt_encoder).eval()().float().cpu().clone()
            units = None if self.units is None else self.units().float().cpu().clone()
        head = {name: value.detach().float().cpu().clone() for name, value in self.head.named().items()}
        if self.learning_rate_scales != (1.0, 1.0):
            extra = {**(extra or {}), "rate_scales": list(self.learning_rate_scales)}
        if (source := self.loaded) is not None and _same(source, prompt, units, head):
            # As it was loaded, what was measured then is still true of it.
            metrics = source.metrics if metrics is None else metrics
            extra = {**source.extra, **(extra or {})}
        return adapters.Adapter(
            prompt=prompt_to_dict(self.provenance),
            task=self.task,
            backbone=asdict(self.backbone.facts(without=head)),
            prompt_tensor=prompt,
            units=units,
            head=head,
            anchors=self.anchors,
            metrics=dict(metrics or {}),
            extra=dict(extra or {}),
        )

    # ------------------------------------------------------------------------------------- facts

    @property
    def provenance(self) -> PromptConfig:
        """The configuration that the prompt was trained with; a loaded adapter has dropped the encoder."""
        return self._provenance if self._provenance is not None else self.prompt_config

    @provenance.setter
    def provenance(self, config: PromptConfig) -> None:
        self._provenance = config

    _provenance: PromptConfig | None = None
    loaded: adapters.Adapter | None = None
    """The adapter that this was loaded from, as it was then; ``None`` for a task that was made here."""

    class_weights: Tensor | None
    check_loss: bool = True
    """Whether a loss that is not finite raises :class:`TrainingDiverged` while training, instead of going
    unseen into the parameters. A loop that looks for itself may turn it off."""

    config: Any
    """A copy of the backbone's configuration with the task's labels, for tools that look for one."""

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights; prompt, head and logits are fp32."""
        return self.backbone.dtype

    @property
    def inserted_tokens(self) -> int:
        """P + A at input depth: what stands among the text's own tokens. 0 deep."""
        return 0 if (joined := self._joined) is None else joined.inserted_tokens

    @property
    def max_text_tokens(self) -> int | None:
        """The most tokens that a text, or pair, may have, special tokens included; ``None`` for no limit."""
        limits = []
        if (places := self.backbone.max_positions) is not None:
            limits.append(places - self.position_offset)  # the offset takes up positions, not tokens
        if self.task.max_length is not None:
            limits.append(self.task.max_length)
        return min(limits) - self.inserted_tokens if limits else None

    @property
    def position_offset(self) -> int:
        """How far a deep prompt moves the text's positions; 0 at input depth."""
        config = self.prompt_config
        return config.position_offset or 0 if isinstance(config, DeepPrompt) else 0

    @property
    def needs_segments(self) -> bool:
        """Whether it matters where a text begins, so that rows come best with ``segment_ids``."""
        if isinstance(self.prompt_config, DeepPrompt):
            return self.prompt_config.pooling == "similarity"
        return self._joined is not None and self._joined.needs_segments

    @property
    def wanted_texts(self) -> tuple[int, ...]:
        """The texts, 0 for the first and 1 for the second, that the prompt stands before."""
        return () if (joined := self._joined) is None else joined.wanted_texts

    def task_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: the one definition that freezing, the optimizer,
        counting and checkpoints share. They are the task's own; none of the backbone's is among them.
        """
        return {
            f"{part}.{name}": value
            for part, module in self.named_children()
            if module is not self.backbone
            for name, value in module.named_parameters()
            if value.requires_grad
        }

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The :meth:`task_parameters` with the prompt's learning rate, and those with the head's.

        The head's layer mix has the prompt's learning rate.
        """
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, value in self.task_parameters().items():
            groups[name.startswith("head.") and escaped(adapters.MIX) not in name].append(value)
        return groups

    def get_extra_state(self) -> Tensor:
        """What a ``state_dict`` says of itself (``state.py``)."""
        own = self.prompt_encoder.state_dict(prefix="prompt_encoder.")
        if self.units is not None:
            own |= self.units.state_dict(prefix="units.")
        return state.write(self._record(), {**own, **self.head.state_dict(prefix="head.")})

    def set_extra_state(self, given: Any) -> None:
        """Nothing to set: :func:`_check_state` has held it against this model already."""

    def _load_from_state_dict(
        self,
        given: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        # An override and no hook: torch ties a hook to the one module that it was registered on, so that a
        # copy.copy would be held against its original, and fail once that is gone.
        _check_state(self, given, prefix)
        super()._load_from_state_dict(given, prefix, metadata, strict, missing, unexpected, errors)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PTuningModel:
        """What ``to``, ``half`` and their like do; the task's own numbers move, and are never rounded."""

        def exact(value: Tensor) -> Tensor:
            moved = fn(value)
            return value.to(moved.device) if moved.dtype.itemsize < value.dtype.itemsize else moved

        for child in self.children():
            child._apply(fn if child is self.backbone else exact, recurse)
        super()._apply(exact, recurse=False)  # type: ignore[no-untyped-call]
        return self

    def _record(self) -> dict[str, Any]:
        return {
            "task": self.task.to_dict(),
            "prompt": prompt_to_dict(self.prompt_config),
            "backbone": asdict(self.backbone.facts(without=self.head.names)),
            "anchors": [list(ids) for ids in self.anchors],
            "head": list(self.head.names),
            "rate_scales": list(self.learning_rate_scales),
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
        }

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model has, as transformers' models say it.

        Every one counts once: the task's head stands for the backbone's own.

        Args:
            only_trainable: Those that training changes.
            exclude_embeddings: Without the backbone's embedding tables.
        """
        if only_trainable:
            return sum(value.numel() for value in self.task_parameters().values())
        prompt = sum(value.numel() for value in self.prompt_encoder.parameters())
        prompt += 0 if self.units is None else sum(value.numel() for value in self.units.parameters())
        prompt += sum(value.numel() for name, value in self.head.named().items() if name == adapters.MIX)
        tables = (each for each in self.backbone.modules() if isinstance(each, nn.Embedding))
        embedding = sum(table.weight.numel() for table in tables)
        whole = sum(value.numel() for value in self.backbone.parameters())
        return prompt + whole - (embedding if exclude_embeddings else 0)

    def print_trainable_parameters(self) -> None:
        """Print the line that everyone knows."""
        trained, total = self.num_parameters(only_trainable=True), self.num_parameters()
        print(f"trainable params: {trained} || all params: {total} || trainable%: {100 * trained / total}")

    # --------------------------------------------------------------------------------------- use

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        prompt: Tensor | Prepared | None = None,
        stem: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify a batch.

        Args:
            input_ids: ``[B, T]``, padded on either side.
            attention_mask: ``[B, T]``, 1 at real tokens; all of them if left out.
            token_type_ids: ``[B, T]``, as the tokenizer gives them; ignored where the backbone has none.
            labels: ``[B]`` class indices (-100 for a row that does not count), ``[B, C]`` zeros and ones for
                several labels, or ``[B]`` targets in their own unit for regression.
            segment_ids: ``[B, T]``: 0 first text, 1 second, -1 special; told from the other
                arguments where that is possible.
            prompt: In place of the task's own: ``[P, E]`` or one a row ``[B, P, E]``; deep
                ``[L−s, 2, P, H_kv]`` or ``[B, L−s, 2, P, H_kv]``; or what :meth:`prepared` gave. All else,
                the head and virtual units, stays this task's; so with units there is none a row.
            stem: ``[B, T, H]``, what :meth:`stem` gave for these tokens.

        Returns:
            ``logits`` ``[B, C]`` in fp32, a regression's in the target's unit; ``loss`` if labels were given.

        Raises:
            DataError: text and prompt together are longer than the backbone's limit; labels that the task
                cannot take.
            TrainingDiverged: while training, a loss that is not finite.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        attention_mask = attention_mask.to(torch.long)
        if token_type_ids is not None and not self.backbone.uses_segments:
            token_type_ids = None
        batch = Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            segment_ids=segment_ids,
        )
        plain = self._identity in _PLAIN.get()
        if plain:
            logits = text_logits(self.backbone, batch)
        else:
            self._check_length(attention_mask)
            logits = self._prompted(batch, prompt, stem)
        logits = logits.float()
        if self.task.is_regression and not plain:
            logits = logits * self.task.scale + self.task.mean
        loss = None if labels is None else self.loss(logits, labels)
        if loss is not None and self.check_loss:
            self._check_loss(loss.detach(), logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def for_inference(self) -> PTuningModel:
        """The task in eval mode: this model if it is in eval mode already, otherwise a twin.

        So threads can predict at the same time without changing each other's mode.
        """
        if not (self.training or any(module.training for module in self.modules())):
            return self
        made = self.twin(backbone=any(module.training for module in self.backbone.modules()))
        return made.eval()

    def twin(self, *, backbone: bool = True) -> PTuningModel:
        """The same task over the same tensors, as a module tree of its own.

        Args:
            backbone: Whether it sees the backbone through a view of its own, too; that takes milliseconds.
        """
        made = views.shallow(self)
        children = {
            name: child and views.view(child) for name, child in self._modules.items() if name != "backbone"
        }
        vars(made)["_modules"] = {"backbone": self.backbone.twin() if backbone else self.backbone, **children}
        return made

    def prepared(self) -> Prepared:
        """The prompt with all computed that does not depend on the text.

        For many batches of one task: the prompt encoder runs once, and so does a decoder's prompt in front of
        the text.
        It holds for as long as the task's parameters stay as they are.
        """
        made: Tensor = self.prompt_encoder()
        joined = self._joined
        return (
            Prepared(prompt=made)
            if joined is None
            else joined.prepared(made, self.tokenizer, self.head.named())
        )

    @property
    def stem_layer(self) -> int:
        """s, if the layers below it give a text the same whatever the task; 0 if there is nothing to keep."""
        config = self.prompt_config
        if not isinstance(config, DeepPrompt) or not self.backbone.has_stem(self.head.names):
            return 0
        if config.pooling == "similarity":  # a token that both texts are read with is two things there
            return 0
        return config.first_layer

    def stem(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """``[B, T, H]``: what enters layer :attr:`stem_layer`, token for token as they were given.

        Arguments are those of :meth:`forward`. Nothing of the task is in it; see :meth:`Backbone.stem`.

        Raises:
            ConfigError: :attr:`stem_layer` is 0.
        """
        self._check_stem()
        attention_mask = attention_mask.long()
        rows = layout(attention_mask, (), (), None, pad_left=self.backbone.architecture.causal)
        types = token_type_ids if self.backbone.uses_segments else None
        found = self.backbone.stem(
            input_ids=rows.arrange(input_ids),
            attention_mask=rows.mask,
            positions=rows.positions + self.position_offset,
            token_type_ids=None if types is None else rows.arrange(types),
            first_layer=self.stem_layer,
        )
        return replace(rows, index=rows.index.argsort(dim=1)).arrange(found)

    def _check_stem(self) -> None:
        if self.stem_layer == 0:
            raise ConfigError(
                "stem: what is below this model's first prompt cannot be kept; that takes a deep prompt with "
                "first_layer above 0, a pooling other than similarity, the backbone's dropout off, a head "
                "that holds nothing of the transformer's layers, and an architecture with an attention "
                "interface"
            )

    def _prompted(self, batch: Batch, prompt: Tensor | Prepared | None, stem: Tensor | None) -> Tensor:
        """``[B, C]`` of the text with the prompt where it belongs, by the task's head."""
        if stem is not None:
            self._check_stem()
        head = self.head.named()
        mix = head.pop(adapters.MIX, None)
        if not isinstance(prompt, Prepared):
            prompt = Prepared(prompt=self.prompt_encoder() if prompt is None else prompt)
        if (joined := self._joined) is not None:
            return joined.logits(batch, prompt, head)
        made, config = prompt.prompt, self.prompt_config
        assert isinstance(config, DeepPrompt)
        assert config.pooling is not None  # settled
        if self.units is not None and made.dim() == 5:
            raise ConfigError(
                "prompt: got one a row, but this task has virtual units, which are the same for all rows; "
                "run the rows of each task by themselves, or name an adapter a row (ptuning.peft)"
            )
        if config.pooling == "similarity":
            batch = batch.apart(self.backbone)
            if made.dim() == 5:
                made = made.repeat(2, 1, 1, 1, 1)
        return text_logits(
            self.backbone,
            batch,
            made,
            first_layer=config.first_layer,
            offset=self.position_offset,
            stem=stem,
            units=None if self.units is None else self.units(),
            pooling=config.pooling,
            mix=mix,
            head=head,
        )

    @property
    def _joined(self) -> Joined | None:
        """How prompt and text are one sequence; ``None`` where the prompt is deep."""
        if isinstance(self.prompt_config, DeepPrompt):
            return None
        return Joined(backbone=self.backbone, config=self.prompt_config, anchors=self.anchors)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The task's loss: cross-entropy, binary cross-entropy, or the squared error of standardised targets.

        Args:
            logits: ``[B, C]``, as :meth:`forward` gives them.
            labels: As :meth:`forward` takes them.

        Returns:
            A number in fp32; on an accelerator NaN if a label's value is out of range.

        Raises:
            DataError: labels of a kind or shape that the task does not have; on the CPU also such a value.
        """
        return loss_of(logits, labels, self.task, self.class_weights)

    def _check_loss(self, loss: Tensor, logits: Tensor, labels: Any) -> None:
        if not self.training and (loss.device.type == "cpu" or self.task.is_regression):
            return  # the labels were looked at; an evaluation may go on with a loss of NaN
        if bool(loss.isfinite()):
            return
        if isinstance(labels, Tensor):
            refuse(as_targets(labels, logits, self.task), self.task)
        if self.training:
            raise TrainingDiverged(
                f"the loss is {float(loss)}; nothing was learned from this batch. Lower the "
                "learning rate, or go back to the last good checkpoint"
            )

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Keep each layer's input alone, and compute the rest again on the way back.

        The Trainer asks for it where its arguments say so; its options are torch's, and change nothing here.
        """
        self._checkpoint_activations(True)

    def activation_checkpointing_disable(self) -> None:
        """Keep the layers' activations, as it is by default."""
        self._checkpoint_activations(False)

    # Their names before transformers 5.
    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    def _checkpoint_activations(self, wanted: bool) -> None:
        self.backbone.engine = replace(self.backbone.engine, checkpoint_activations=wanted)

    def scale_learning_rates(self, prompt: float, head: float) -> None:
        """Multiply the learning rates of the prompt's table and of the head.

        Their values do not change. Make the optimizer afterwards: the parameters are new ones.

        Raises:
            ConfigError: they are scaled already.
        """
        if self.learning_rate_scales != (1.0, 1.0):
            raise ConfigError(
                "learning_rate_scales",
                got=self.learning_rate_scales,
                expected="(1.0, 1.0): they can be set once",
                remedy="make the model again with other learning_rate_scales",
            )
        self.learning_rate_scales = (prompt, head)
        scale_learning_rate(self.prompt_encoder, "weight", prompt)
        if self.units is not None:
            scale_learning_rate(self.units, "weight", prompt)
        if self.prompt_config.train_head:
            self.head.scale_learning_rates(head, mix=prompt)

    def set_prompt(self, prompt: Tensor) -> None:
        """Replace the prompt encoder by a plain table with these values.

        Args:
            prompt: ``[P, E]``, deep ``[L−s, 2, P, H_kv]``, as the encoder returns it.
        """
        old, config = self.prompt_encoder, self.prompt_config
        trained = any(value.requires_grad for value in old.parameters())
        self.provenance = self.provenance
        self.prompt_config = replace(config, encoder=EmbeddingEncoder())
        self.prompt_encoder = Embedding(prompt.detach().float().to(self.device).clone()).train(old.training)
        scale_learning_rate(self.prompt_encoder, "weight", self.learning_rate_scales[0])
        self.prompt_encoder.requires_grad_(trained)

    def set_task(self, task: Task) -> None:
        """Change what the logits mean: label names, pair or single texts, scaling.

        Raises:
            ConfigError: another number of labels.
        """
        if task.num_labels != self.task.num_labels:
            raise ConfigError(
                "task.num_labels",
                got=task.num_labels,
                expected=f"{self.task.num_labels}, as many as the head has logits",
            )
        self.task = task
        self.config = known_as(self.backbone.model.config, task)

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """Set the loss weight per class, ``[C]``; for multi-label per label, for its positives."""
        found = weigh(weights, self.task)
        self.class_weights = None if found is None else found.to(self.device)

    def _check_length(self, attention_mask: Tensor) -> None:
        limit = self.max_text_tokens
        if limit is None or attention_mask.shape[1] <= limit:
            return  # the common case costs no look at the values
        lengths = attention_mask.sum(1)
        if bool((lengths > limit).any()):
            row = int(lengths.argmax())
            raise DataError(
                f"row {row} of the batch has {int(lengths[row])} tokens, expected at most {limit}: "
                f"{self.backbone.name} takes {self.backbone.max_positions}, the task {self.task.max_length} "
                f"(None: no limit), of which {self.inserted_tokens} are inserted and "
                f"{self.position_offset} skipped. "
                "Truncate the text (never the prompt), or use fewer virtual tokens"
            )

    @contextmanager
    def disabled(self) -> Iterator[PTuningModel]:
        """In the ``with`` block this is the plain backbone, with its original head; in this thread alone."""
        token = _PLAIN.set(_PLAIN.get() | {self._identity})
        try:
            yield self
        finally:
            _PLAIN.reset(token)

    # ------------------------------------------------------------------------------- tokenisation

    def _tokenised_anchors(self, pieces: Sequence[Insertion]) -> list[tuple[int, ...]]:
        return [tuple(self._token_ids(piece.anchor, "prompt.placement")) for piece in pieces if piece.anchor]

    def _token_ids(self, text: str, option: str) -> list[int]:
        if self.tokenizer is None:
            raise ConfigError(f"{option} holds words ({text!r}), which need a tokenizer; pass tokenizer=…")
        with TOKENIZER:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


# ------------------------------------------------------------------------------------------ helpers


def _held(
    backbone: str | PreTrainedModel | Backbone | None,
    facts: Mapping[str, Any],
    num_labels: int,
    problem_type: ProblemType | None,
    tokenizer: PreTrainedTokenizerBase | None,
    token: str | bool | None,
    dtype: torch.dtype | None,
    allow_pickle: bool,
) -> tuple[Backbone, PreTrainedTokenizerBase | None]:
    """The backbone that was asked for, or else the one that the task was trained on.

    Its weights are a pickle only if that is allowed: whoever wrote the adapter chose it.
    """
    if backbone is not None:
        return hold(backbone, num_labels, problem_type, tokenizer, None, dtype, token)
    if not facts["name"]:
        raise AdapterError(
            "the adapter does not say on which backbone it was trained; name it with --backbone "
            "(in Python: backbone=…)"
        )
    return hold(
        facts["name"], num_labels, problem_type, tokenizer, facts["revision"], dtype, token, allow_pickle
    )


def _same(
    adapter: adapters.Adapter, prompt: Tensor, units: Tensor | None, head: Mapping[str, Tensor]
) -> bool:
    pairs = [(adapter.prompt_tensor, prompt)]
    pairs += [(adapter.head[name], value) for name, value in head.items() if name in adapter.head]
    if units is not None and adapter.units is not None:
        pairs.append((adapter.units, units))
    return all(torch.equal(one, other) for one, other in pairs)


def _take(table: Embedding, value: Tensor, name: str) -> None:
    """Give the table ``value``, which has its shape."""
    if table.weight.shape != value.shape:
        raise AdapterError(
            f"the adapter's {name} has the shape {list(value.shape)}, expected {list(table.weight.shape)}; "
            "it was altered, or was trained on another backbone"
        )
    with torch.no_grad():
        table.weight.copy_(value)


@contextmanager
def _as_recorded(backbone: Backbone) -> Iterator[None]:
    """Say of choices and shapes that contradict each other that they are a record's, and not the caller's."""
    try:
        yield
    except (ConfigError, RuntimeError) as error:  # RuntimeError: torch's, of a shape
        if out_of_memory(error):
            raise
        raise AdapterError(
            f"the adapter cannot be put on {backbone.name}: {' '.join(str(error).split())}; it was altered, "
            "or was trained on another backbone"
        ) from error


def _as_now(record: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict's record with what was the only choice when it was written."""
    return {**record, "prompt": prompt_to_dict(prompt_from_dict(record["prompt"]))}


def _check_state(module: PTuningModel, given: Mapping[str, Any], prefix: str) -> None:
    """Before anything is loaded: the tensors are those that were saved, of this task."""
    if (stored := given.get(prefix + state.KEY)) is None:
        return
    own = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    own = {
        name: value for name, value in own.items() if not name.startswith("backbone.") and name != state.KEY
    }
    record = state.read(stored)
    state.check(record, own)
    state.compare(_as_now(record), module._record())
