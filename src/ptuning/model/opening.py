"""Creates a task: untrained on a backbone, or trained from a folder, the Hub or an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError, out_of_memory
from ptuning.kinds import BY_FORM, LabelForm
from ptuning.model import state
from ptuning.model.backbone import Backbone
from ptuning.model.config import (
    DeepPrompt,
    EmbeddingEncoder,
    Engine,
    InputPrompt,
    PromptConfig,
    prompt_from_dict,
)
from ptuning.model.loading import check_backbone, load_backbone
from ptuning.model.prompt import Embedding
from ptuning.model.task_module import TaskModule
from ptuning.model.task_parts import PASS_TOKENIZER
from ptuning.model.tasks import new_task, plain_task, task_of, width_of
from ptuning.task import Task


class OpeningMixin(TaskModule):
    """The ways to create a :class:`~ptuning.model.ptuning.PTuningModel`."""

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel | Backbone,
        config: PromptConfig | None = None,
        *,
        num_labels: int | None = None,
        problem_type: str | None = None,
        task: Task | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        class_weights: Sequence[float] | None = None,
        engine: Engine | None = None,
    ) -> Self:
        """An untrained task on a backbone.

        Args:
            backbone: A Hub id, a folder, ``demo``; or an ``AutoModelForSequenceClassification``, which
                is adopted: frozen in place, with ptuning's attention function.
            config: The prompt; ``DeepPrompt()`` if left out.
            num_labels: C, the number of classes; or pass ``task``. 1 means regression. If left out, the
                backbone's configuration decides. Label names come from a cloze head's verbalizer, or from
                the configuration's ``id2label`` if that has as many; otherwise labels are numbers until
                ``fit`` finds names in the rows.
            problem_type: As in transformers; inferred from ``num_labels`` if left out.
            task: The complete task, labels included; replaces these two.
            tokenizer: By default the backbone's own, loaded when needed.
            revision: A branch, tag or commit on the Hub.
            token: The Hub's access token; by default the one you logged in with.
            dtype: The dtype of the frozen weights; prompt and head are always fp32.
            class_weights: ``[C]``, for unbalanced classes.
            engine: How the backbone computes for this task; see :class:`Engine`.
        """
        if task is not None and (
            num_labels not in (None, task.num_labels) or problem_type not in (None, task.problem_type)
        ):
            raise ConfigError(
                "num_labels and problem_type",
                got=f"{num_labels} and {problem_type}",
                expected=f"{task.num_labels} and {task.problem_type}, as in task",
                remedy="leave them out",
            )
        if task is None and problem_type in (None, BY_FORM[LabelForm.ONE].name):
            task = _named_by_words(config, num_labels)
        requested = task or (None if num_labels is None else plain_task(num_labels, problem_type))
        loaded, tokenizer = load_backbone(
            backbone,
            width_of(problem_type) if requested is None else requested.num_labels,
            problem_type if requested is None else requested.problem_type,
            tokenizer,
            revision,
            dtype,
            token,
        )
        task = task or new_task(loaded.model.config, num_labels, problem_type)
        model = cls(loaded, config or DeepPrompt(), task, tokenizer=tokenizer, class_weights=class_weights)
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
    ) -> Self:
        """A trained task from its folder, in eval mode.

        Args:
            folder_or_hub_id: A folder of :meth:`save_pretrained`, local or on the Hub; an adapter that PEFT
                wrote (``P_TUNING``, ``PROMPT_TUNING``, ``PREFIX_TUNING`` for sequence classification); or
                a folder that ``transformers.Trainer`` saved this model in, prompt encoder included.
            backbone: The backbone's name or module; by default the one that the adapter names.
            tokenizer: By default the backbone's own, if the backbone is given by name.
            revision: The adapter's branch, tag or commit on the Hub.
            token: The Hub's access token, for the adapter and the backbone that it names; by default the one
                you logged in with.
            dtype: The dtype of the frozen weights.
            task: What the logits mean, if the adapter does not record it (PEFT's have no labels). It must
                have the same number of labels.
            allow_pickle: If there are no safetensors, read PEFT's old ``adapter_model.bin``, and the
                ``pytorch_model.bin`` of a backbone that the adapter names, with torch's restricted unpickler.
                A backbone that you name here is always read.
            engine: How the backbone computes, for this task.

        Raises:
            AdapterError: no adapter there, or one that was altered or cut short.
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
    ) -> Self:
        """A trained task from a local folder."""
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
        kind = adapter.task.problem_type if ours else None  # PEFT records no kind; the backbone may
        loaded, tokenizer = _backbone_of(
            backbone, adapter.backbone, adapter.task.num_labels, kind, tokenizer, token, dtype, allow_pickle
        )
        check_backbone(loaded, adapter)
        backbone_config = loaded.model.config
        if task is None and not ours and backbone_config.num_labels == adapter.task.num_labels:
            task = task_of(backbone_config)
        return cls.from_adapter(adapter, loaded, task=task, tokenizer=tokenizer)

    @classmethod
    def from_adapter(
        cls,
        adapter: adapters.Adapter,
        backbone: Backbone,
        *,
        task: Task | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Self:
        """A trained task from plain data, on a backbone that :func:`check_backbone` has accepted."""
        config = prompt_from_dict(adapter.prompt)
        # The encoder is not needed to use the prompt, and initial values are overwritten below.
        without_encoder: PromptConfig = (
            replace(config, encoder=EmbeddingEncoder())
            if isinstance(config, DeepPrompt)
            else replace(config, encoder=EmbeddingEncoder(), init=InputPrompt().init)
        )
        table = backbone.embedding.weight
        words = {name for name, value in backbone.model.named_parameters() if value is table}
        head = {name: value for name, value in adapter.head.items() if name not in words}
        with _as_recorded(backbone):
            model = cls(
                backbone,
                without_encoder,
                adapter.task,
                tokenizer=tokenizer,
                anchors=adapter.anchors,
                cloze=adapter.cloze,
                head=head,
            )
        if task is not None:
            model.set_task(task)
        _copy_into(cast(Embedding, model.prompt_encoder), adapter.prompt_tensor, "prompt")
        if model.units is not None and adapter.units is not None:
            _copy_into(model.units, adapter.units, "virtual units")
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
    ) -> Self:
        """A task from a state dict and the record in it."""
        task = Task.from_dict(record["task"])
        loaded, tokenizer = _backbone_of(
            *(backbone, record["backbone"], task.num_labels, task.problem_type),
            *(tokenizer, token, dtype, allow_pickle),
        )
        parameters = dict(loaded.model.named_parameters())
        config, anchors, cloze = prompt_from_dict(record["prompt"]), record["anchors"], record.get("cloze")
        provenance = config
        if isinstance(config, InputPrompt):  # initial values are overwritten below
            config = replace(config, init=InputPrompt().init)
        # The head's names are in the record; its values, like the prompt's, in the state dict.
        values = {
            name: parameters[name]
            for name in record["head"]
            if name in parameters and name not in loaded.head_names
        }
        prompt_scale, head_scale = record["rate_scales"]
        with _as_recorded(loaded):
            model = cls(
                loaded,
                config,
                task,
                tokenizer=tokenizer,
                anchors=anchors,
                cloze=None if cloze is None else adapters.ClozeTokens.from_dict(cloze),
                head=values,
                learning_rate_scales=(prompt_scale, head_scale),
            )
            state.compare(record, model.record())
            model.load_state_dict(tensors)
            model.set_class_weights(record.get("class_weights"))
        model.provenance = provenance
        return model


def _named_by_words(config: PromptConfig | None, num_labels: int | None) -> Task | None:
    """A task with the labels that a cloze head's verbalizer names; ``None`` if it names none or numbers."""
    labels = () if config is None or config.head is None else tuple(config.head.verbalizer)
    if not labels:
        return None
    numbers = {str(number) for number in range(num_labels if isinstance(num_labels, int) else len(labels))}
    if set(labels) <= numbers:
        return None
    if num_labels not in (None, len(labels)):
        raise ConfigError(
            "num_labels",
            got=num_labels,
            expected=f"{len(labels)}, the number of labels in prompt.head.verbalizer",
            remedy="leave num_labels out, or name all labels there",
        )
    return Task(problem_type=BY_FORM[LabelForm.ONE].name, labels=labels)


def _backbone_of(
    backbone: str | PreTrainedModel | Backbone | None,
    facts: Mapping[str, Any],
    num_labels: int,
    problem_type: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    token: str | bool | None,
    dtype: torch.dtype | None,
    allow_pickle: bool,
) -> tuple[Backbone, PreTrainedTokenizerBase | None]:
    """The given backbone, or the one that the adapter names.

    For the latter, pickled weights need ``allow_pickle``, because the adapter's author chose that backbone.
    """
    if backbone is not None:
        return load_backbone(backbone, num_labels, problem_type, tokenizer, None, dtype, token)
    if not facts["name"]:
        raise AdapterError(
            "the adapter does not name its backbone",
            remedy="name it with --backbone (in Python: backbone=…)",
        )
    return load_backbone(
        facts["name"], num_labels, problem_type, tokenizer, facts["revision"], dtype, token, allow_pickle
    )


def _copy_into(table: Embedding, value: Tensor, name: str) -> None:
    """Copy ``value`` into the table."""
    if table.weight.shape != value.shape:
        raise AdapterError(
            f"the adapter's {name}",
            got=f"the shape {list(value.shape)}",
            expected=f"{list(table.weight.shape)}",
            remedy="it was altered, or was trained on another backbone",
        )
    with torch.no_grad():
        table.weight.copy_(value)


@contextmanager
def _as_recorded(backbone: Backbone) -> Iterator[None]:
    """Turn errors about options and shapes into errors about the adapter that has them."""
    try:
        yield
    except (ConfigError, RuntimeError) as error:  # RuntimeError: torch's, for a wrong shape
        if out_of_memory(error):
            raise
        wants_tokenizer = isinstance(error, ConfigError) and error.remedy == PASS_TOKENIZER
        raise AdapterError(
            f"the adapter cannot be put on {backbone.name}: {' '.join(str(error).split())}",
            remedy=None if wants_tokenizer else "it was altered, or was trained on another backbone",
        ) from error
