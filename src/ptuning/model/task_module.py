"""TaskModule: everything that a task trains and saves, as one ``nn.Module``.

Prompt encoder, virtual units, head (with the layer mix) and class weights are its children; the frozen
backbone is not. So ``parameters()``, ``state_dict()`` and ``requires_grad_()`` are torch's own and concern
the task alone. The backbone is a view of the module's own (``Backbone.view``), next to the module tree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.errors import ConfigError
from ptuning.model import state, task_parts, views
from ptuning.model.backbone import Backbone
from ptuning.model.config import DeepPrompt, EmbeddingEncoder, PromptConfig, prompt_to_dict
from ptuning.model.drawing import drawing
from ptuning.model.head import escaped
from ptuning.model.limits import TextLimits, joined_of, text_limits
from ptuning.model.prompt import Embedding, PromptEncoder, scale_learning_rate
from ptuning.model.sequence import Joined
from ptuning.model.settling import settle_prompt
from ptuning.model.tasks import class_weights_of, known_as
from ptuning.model.verbalizer import Verbalizer
from ptuning.model.wording import Wording, wording_of
from ptuning.task import Task
from ptuning.validation import shortened


class TaskModule(nn.Module):
    """The parameters of one task on a frozen backbone.

    Args:
        backbone: The frozen model. The task gets a view of it.
        config: The kind of prompt, and its place.
        task: What the logits mean.
        tokenizer: Needed for a template's literal words and for ``TextInit``.
        anchors: The token ids of a template's literal words, if they are known already.
        cloze: A cloze head's words in tokens, if they are known already.
        head: Values for parameters of the backbone, by name, that the task has of its own, in addition to or
            in place of those of the backbone's head.
        learning_rate_scales: Factors on the learning rate of the prompt's table and of the head
            (:class:`~ptuning.model.prompt.ScaledParameter`), for loops that have one learning rate.
        class_weights: ``[C]``, the loss weight per class (for multi-label, of each label's positives).

    Raises:
        ConfigError: choices that contradict each other, the task or the backbone.
        UnsupportedBackbone: the architecture cannot have such a prompt.
    """

    prompt_encoder: PromptEncoder
    units: Embedding | None
    cloze: adapters.ClozeTokens | None
    verbalizer: Verbalizer | None
    class_weights: Tensor | None
    _borrows_backbone = False

    new_rows: tuple[int, ...]
    """The rows of the output layer whose labels have not been trained: those that ``with_labels`` added."""

    config: Any
    """A copy of the backbone's configuration with the task's labels, for tools that look for one."""

    @drawing()
    def __init__(
        self,
        backbone: Backbone,
        config: PromptConfig,
        task: Task,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        anchors: Sequence[Sequence[int]] | None = None,
        cloze: adapters.ClozeTokens | None = None,
        head: Mapping[str, Tensor] | None = None,
        learning_rate_scales: tuple[float, float] = (1.0, 1.0),
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        backbone = backbone.view()
        self._key = object()  # shared by all twins of this task
        self._backbone = (backbone,)  # in a tuple: torch would make a module a child of this one
        self.task = task
        self.tokenizer = tokenizer
        self.config = known_as(backbone.model.config, task)
        if isinstance(config, DeepPrompt):
            config = settle_prompt(config, backbone, is_pair_similarity=task.is_pair_similarity)
        self.prompt_config = config
        self._provenance: PromptConfig | None = None
        self.loaded: adapters.Adapter | None = None
        self.new_rows = ()
        self.head = task_parts.make_head(backbone, config, task.num_labels, head)
        self.anchors: tuple[tuple[int, ...], ...] = ()
        self.cloze = self.verbalizer = self.units = None
        if config.head is not None:
            made = task_parts.make_cloze(backbone, config, task, tokenizer, anchors, cloze)
            self.anchors, self.cloze = made
            self.verbalizer = task_parts.verbalizer_of(backbone, self.cloze, self.anchors)
        else:
            self.anchors = task_parts.anchors_of(config, tokenizer, anchors)
        if isinstance(config, DeepPrompt):
            self.prompt_encoder, self.units = task_parts.make_deep(backbone, config)
        else:
            self.prompt_encoder = task_parts.make_input(backbone, config, tokenizer)
        self.learning_rate_scales = (1.0, 1.0)
        self.scale_learning_rates(*learning_rate_scales)
        self.register_buffer("class_weights", None, persistent=False)
        self.set_class_weights(class_weights)
        self._check_limit()

    # ------------------------------------------------------------------------------- parameters

    def task_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: the one definition for freezing, the optimizer,
        counting and checkpoints.
        """
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The :meth:`task_parameters` with the prompt's learning rate, and those with the head's.

        The head's layer mix has the prompt's learning rate.
        """
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, value in self.task_parameters().items():
            groups[name.startswith("head.") and escaped(adapters.MIX) not in name].append(value)
        return groups

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters of the model, backbone included, as transformers' models count them.

        Each counts once: the task's head in place of the backbone's.

        Args:
            only_trainable: Only those that training changes.
            exclude_embeddings: Without the backbone's embedding tables.
        """
        if only_trainable:
            return sum(value.numel() for value in self.task_parameters().values())
        prompt = sum(value.numel() for value in self.prompt_encoder.parameters())
        prompt += 0 if self.units is None else sum(value.numel() for value in self.units.parameters())
        prompt += sum(value.numel() for name, value in self.head.named().items() if name == adapters.MIX)
        tables = (each for each in self.backbone.modules() if isinstance(each, nn.Embedding))
        embedding = sum(table.weight.numel() for table in tables)
        frozen = sum(value.numel() for value in self.backbone.parameters())
        return prompt + frozen - (embedding if exclude_embeddings else 0)

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: trainable parameters, all parameters, percentage."""
        trained, total = self.num_parameters(only_trainable=True), self.num_parameters()
        print(f"trainable params: {trained} || all params: {total} || trainable%: {100 * trained / total}")

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
        if self.cloze is not None and task.labels != self.task.labels:
            given = replace(self.cloze, words=())
            self.anchors, self.cloze = task_parts.make_cloze(
                self.backbone, self.prompt_config, task, self.tokenizer, self.anchors, given
            )
            self.verbalizer = task_parts.verbalizer_of(self.backbone, self.cloze, self.anchors)
        self.task = task
        self.config = known_as(self.backbone.model.config, task)

    def set_class_weights(self, weights: Sequence[float] | None) -> None:
        """Set the loss weight per class, ``[C]``; for multi-label per label, for its positives."""
        found = class_weights_of(weights, self.task)
        self.class_weights = None if found is None else found.to(self.device)

    # ------------------------------------------------------------------------------------ facts

    @property
    def backbone(self) -> Backbone:
        """The task's view of the frozen model. It is not a child of this module, but moves with it, and its
        mode follows.
        """
        return self._backbone[0]

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights; prompt, head and logits are fp32."""
        return self.backbone.dtype

    @property
    def provenance(self) -> PromptConfig:
        """The configuration that the prompt was trained with; a loaded adapter has no encoder any more."""
        return self._provenance if self._provenance is not None else self.prompt_config

    @provenance.setter
    def provenance(self, config: PromptConfig) -> None:
        self._provenance = config

    @property
    def inserted_tokens(self) -> int:
        """A, or P + A at input depth: tokens added to the text's own."""
        return self._limits.inserted_tokens

    @property
    def max_text_tokens(self) -> int | None:
        """The maximum number of tokens of a text, or pair, special tokens included; ``None`` for no limit."""
        return self._limits.max_text_tokens

    @property
    def position_offset(self) -> int:
        """How far a deep prompt moves the text's positions; 0 at input depth."""
        return self._limits.position_offset

    @property
    def needs_segments(self) -> bool:
        """Whether it matters where a text starts; then batches should have ``segment_ids``."""
        return self._limits.needs_segments

    @property
    def wanted_texts(self) -> tuple[int, ...]:
        """The texts, 0 for the first and 1 for the second, that the prompt is put in front of."""
        return self._limits.wanted_texts

    @property
    def _limits(self) -> TextLimits:
        return text_limits(self.backbone, self.prompt_config, self.task, self.anchors)

    @property
    def _joined(self) -> Joined | None:
        """How prompt and text become one sequence; ``None`` for a deep prompt."""
        return joined_of(self.backbone, self.prompt_config, self.anchors, self._wording)

    @property
    def _wording(self) -> Wording | None:
        """The words that are inserted into the text first."""
        return wording_of(self.prompt_config, self.anchors, self.cloze)

    def _check_limit(self) -> None:
        """Refuse a prompt that leaves no room for a text."""
        limit, task = self.max_text_tokens, self.task
        if limit is None or limit >= 3:
            return
        narrow = task.max_length is not None and limit == task.max_length - self.inserted_tokens
        places = task.max_length if narrow else self.backbone.max_positions
        config, longer = self.prompt_config, ", or a longer max_length" if narrow else ""
        inserted = f"{config.virtual_tokens} virtual tokens and a position offset of {self.position_offset}"
        if words := sum(map(len, self.anchors)):
            inserted = f"the {words} tokens of the template {shortened(config.written, 100)}, {inserted}"
        raise ConfigError(
            f"{inserted} leave too few of {places} places for the text",
            got=max(limit, 0),
            expected="at least 3",
            remedy=("use a shorter template" if words else "use fewer virtual tokens") + longer,
        )

    # ------------------------------------------------------------------------- moving and mode

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``to``, ``half`` and their like do: the task's parameters move, and are never rounded.

        The override also moves the backbone, which torch does not find among the children.
        """

        def exact(value: Tensor) -> Tensor:
            moved = fn(value)
            return value.to(moved.device) if moved.dtype.itemsize < value.dtype.itemsize else moved

        before = self.dtype
        self.backbone._apply(fn, recurse)
        super()._apply(exact, recurse)  # type: ignore[no-untyped-call]
        if self.cloze is not None and self.dtype != before:  # its rows are those of the rounded weights
            self.verbalizer = task_parts.verbalizer_of(self.backbone, self.cloze, self.anchors)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The backbone stays in eval mode unless ``backbone.dropout`` is set: with few trained
        parameters its dropout only adds noise.
        """
        if not self._borrows_backbone:
            self.backbone.train(mode and self.backbone.dropout)
        return super().train(mode)

    def for_inference(self) -> Self:
        """The task in eval mode: this model if it is in eval mode already, otherwise a twin.

        So threads can predict at the same time without changing each other's mode.
        """
        dropping = any(module.training for module in self.backbone.modules())
        if not dropping and not any(module.training for module in self.modules()):
            return self
        return self.twin(backbone=dropping).eval()

    def twin(self, *, backbone: bool = True) -> Self:
        """The same task over the same tensors, as a module tree of its own.

        Args:
            backbone: Whether its view of the backbone is its own, too; that takes milliseconds. Otherwise it
                shares this one's, and leaves its mode alone.
        """
        made = views.shallow(self)
        children = {name: child and views.view(child) for name, child in self._modules.items()}
        vars(made)["_modules"] = children
        vars(made)["_backbone"] = (self.backbone.twin() if backbone else self.backbone,)
        vars(made)["_borrows_backbone"] = not backbone
        return made

    def with_values(self, values: Mapping[str, Tensor]) -> Self:
        """The same task with other values of its :meth:`task_parameters`; this one keeps its own."""
        made = views.shallow(self)
        vars(made)["_modules"] = {
            name: child and copy.deepcopy(views.view(child, keep=lambda _: False))
            for name, child in self._modules.items()
        }
        vars(made)["_borrows_backbone"] = True
        with torch.no_grad():
            for name, parameter in made.task_parameters().items():
                parameter.copy_(values[name])
        return made

    # ------------------------------------------------------------------------------- state dict

    def get_extra_state(self) -> Tensor:
        """What a ``state_dict`` says about itself (``state.py``)."""
        own = {
            name: value
            for part, module in self.named_children()
            for name, value in module.state_dict(prefix=f"{part}.").items()
        }
        return state.write(self.record(), own)

    def set_extra_state(self, given: Any) -> None:
        """Nothing to set: :meth:`_load_from_state_dict` has checked it against this task."""

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
        # torch's place for a class's own rules: checks before any value is loaded, whatever wraps the model.
        # A hook would be bound to this one module, and a copy.copy would check against its original.
        state.check_given(given, prefix, self.record)
        super()._load_from_state_dict(given, prefix, metadata, strict, missing, unexpected, errors)
        missing[:] = [name for name in missing if name != prefix + state.KEY]  # optional

    def record(self) -> dict[str, Any]:
        """The task, prompt and backbone that the parameters belong to, as JSON."""
        return {
            "task": self.task.to_dict(),
            "prompt": prompt_to_dict(self.prompt_config),
            "backbone": asdict(self.backbone.facts(without=self.head.names)),
            "anchors": [list(ids) for ids in self.anchors],
            **({} if self.cloze is None else {"cloze": self.cloze.to_dict()}),
            "head": list(self.head.names),
            "rate_scales": list(self.learning_rate_scales),
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
        }
