"""PEFT's model: one backbone, named adapters, one of them active; each is a :class:`PTuningModel`.

The adapters share the backbone and change neither it nor each other, so switching, adding and deleting are
free. ``parameters()`` and ``state_dict()`` have the adapters alone, prompt encoders included.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ptuning import adapters
from ptuning.errors import ConfigError
from ptuning.model.backbone import Backbone
from ptuning.model.ptuning import PTuningModel
from ptuning.peft.arguments import check_others, subfolder_of
from ptuning.peft.batches import run_mixed
from ptuning.peft.configs import PeftType, PromptLearningConfig, config_of
from ptuning.peft.loading_arguments import LoadingArguments
from ptuning.peft.tasks import set_trainable, untrained_task

BASE = "__base__"
"""The adapter name for no adapter: the backbone with its own head."""

DEFAULT = "default"


class PeftModel(nn.Module):
    """A frozen backbone with named prompts.

    Args:
        model: An ``AutoModelForSequenceClassification``; it is adopted: frozen in place, with ptuning's
            attention function.
        peft_config: The kind of prompt.
        adapter_name: The first adapter's name.

    Raises:
        ConfigError: choices that contradict each other or the backbone.
        UnsupportedBackbone: the architecture cannot have such a prompt.
    """

    def __init__(
        self,
        model: PreTrainedModel | Backbone,
        peft_config: PromptLearningConfig | None = None,
        adapter_name: str = DEFAULT,
    ) -> None:
        super().__init__()
        if not isinstance(model, PreTrainedModel | Backbone):
            raise ConfigError(
                "model",
                got=f"a {type(model).__name__}",
                expected="an AutoModelForSequenceClassification",
                remedy="to add a second adapter to a model, use model.add_adapter",
            )
        backbone = model if isinstance(model, Backbone) else Backbone(model)
        self._backbone = (backbone,)  # in a tuple, because torch would make a module a child of this one
        self.adapters = nn.ModuleDict()
        self.peft_config: dict[str, PromptLearningConfig] = {}
        self.active_adapter = adapter_name
        if peft_config is not None:
            self.add_adapter(adapter_name, peft_config)
            self.set_adapter(adapter_name, inference_mode=peft_config.inference_mode)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel | Backbone,
        model_id: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
        **others: Any,
    ) -> PeftModel:
        """A backbone with a trained adapter, written by ptuning or PEFT.

        Args:
            model: The backbone, which is adopted.
            model_id: The adapter's folder or Hub id.
            adapter_name: The name of the adapter in this model.
            is_trainable: Whether to continue training. An adapter has no prompt encoder, so the prompt
                continues as a plain table with exactly these values.
            revision: The adapter's branch, tag or commit on the Hub.
            subfolder: The folder within ``model_id`` that has the adapter, as :meth:`save_pretrained` writes
                all except ``default``; only for local folders.
            token: The Hub's access token.
            allow_pickle: Whether to read an old ``adapter_model.bin`` if there is no safetensors file.
            others: Those of :data:`HARMLESS`, and facts that agree with the adapter and the backbone
                (:mod:`ptuning.peft.loading_arguments`): ``num_labels``, ``id2label``, ``torch_dtype``,
                ``device_map`` …

        Raises:
            AdapterError: no adapter there, or one altered or cut short.
            AdapterMismatch: trained on another backbone.
            ConfigError: an argument that is not supported, or that contradicts the adapter or the backbone.
        """
        arguments = LoadingArguments.of(others)
        check_others("from_pretrained", arguments.others)
        made = cls(model)
        if arguments.dtype not in (None, made.dtype):
            raise ConfigError(
                "from_pretrained, torch_dtype",
                got=f"{arguments.dtype}, but the backbone has {made.dtype}",
                remedy="load the backbone in that dtype",
            )
        made.load_adapter(
            model_id,
            adapter_name,
            is_trainable=is_trainable,
            revision=revision,
            subfolder=subfolder,
            token=token,
            allow_pickle=allow_pickle,
        )
        made.set_adapter(adapter_name, inference_mode=not is_trainable)
        arguments.check_against(made.active, made.active_peft_config)
        arguments.move(made, given=True)
        return made.eval()

    # ---------------------------------------------------------------------------------- adapters

    def add_adapter(self, adapter_name: str, peft_config: PromptLearningConfig) -> None:
        """Add an untrained adapter; :meth:`set_adapter` makes it the active one."""
        self._check_new(adapter_name)
        if not isinstance(peft_config, PromptLearningConfig):
            raise ConfigError(
                "peft_config",
                got=f"a {type(peft_config).__name__}",
                expected="a configuration of ptuning.peft, such as PromptEncoderConfig",
            )
        peft_config = replace(peft_config)  # the caller's own stays unchanged, to be used again
        task = untrained_task(self.backbone, peft_config)
        peft_config.base_model_name_or_path = peft_config.base_model_name_or_path or self.backbone.name
        self._add(adapter_name, task, peft_config)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
        **others: Any,
    ) -> None:
        """Add a trained adapter; :meth:`set_adapter` makes it the active one.

        Args and errors are those of :meth:`from_pretrained`.
        """
        check_others("load_adapter", others)
        self._check_new(adapter_name)
        task = PTuningModel.from_pretrained(
            model_id if subfolder is None else subfolder_of(model_id, subfolder),
            backbone=self.backbone,
            revision=revision,
            token=token,
            allow_pickle=allow_pickle,
        )
        self.add_task(adapter_name, task, is_trainable)

    def add_task(self, adapter_name: str, task: PTuningModel, is_trainable: bool) -> None:
        """Add a trained task as an adapter."""
        adapter = task.to_adapter()
        if (
            (scales := adapter.extra.get("rate_scales"))
            and is_trainable
            and task.learning_rate_scales == (1.0, 1.0)
        ):
            task.scale_learning_rates(*scales)  # the learning rates it was trained with
        config = config_of(adapter)
        config.inference_mode = not is_trainable
        self._add(adapter_name, task, config)
        set_trainable(task, is_trainable and adapter_name == self.active_adapter)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter the active one, and the only one that training changes.

        Args:
            adapter_name: Its name.
            inference_mode: Freeze it too.
        """
        self.task_named(adapter_name)
        self.active_adapter = adapter_name
        for name, task in self.adapters.items():
            set_trainable(cast(PTuningModel, task), name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter. If it was the active one, the first of the others becomes active."""
        self.task_named(adapter_name)
        if len(self.adapters) == 1:
            raise ConfigError(
                f"{adapter_name!r} is the only adapter",
                remedy="to use the plain backbone, use model.get_base_model() or the block with "
                "model.disable_adapter():",
            )
        del self.adapters[adapter_name], self.peft_config[adapter_name]
        if adapter_name == self.active_adapter:
            left = next(iter(self.adapters))
            self.set_adapter(left, inference_mode=self.peft_config[left].inference_mode)

    @property
    def active_adapters(self) -> list[str]:
        return [self.active_adapter]

    @property
    def peft_type(self) -> PeftType | None:
        return self.active_peft_config.peft_type

    @property
    def active_peft_config(self) -> PromptLearningConfig:
        return self.peft_config[self.active_adapter]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """In the ``with`` block this model is the plain backbone with its own head, in this thread alone."""
        with ExitStack() as stack:
            for task in self.adapters.values():  # whichever is the active one inside
                stack.enter_context(cast(PTuningModel, task).disabled())
            yield

    @property
    def active(self) -> PTuningModel:
        """The active adapter, as ptuning's own model."""
        return self.task_named(self.active_adapter)

    def task_named(self, adapter_name: str) -> PTuningModel:
        """An adapter, as ptuning's own model."""
        if adapter_name not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise ConfigError(f"there is no adapter {adapter_name!r}", remedy=f"this model has {known}")
        return cast(PTuningModel, self.adapters[adapter_name])

    def _check_new(self, adapter_name: str) -> None:
        if adapter_name in self.adapters:
            raise ConfigError(
                f"there is an adapter {adapter_name!r} already",
                remedy="choose another name, or delete it first with model.delete_adapter",
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter_name) or adapter_name in (BASE, *dir(nn.ModuleDict)):
            raise ConfigError(
                f"{adapter_name!r} is not a valid adapter name",
                expected="letters, digits, _ and -: 'refunds'",
            )

    def _add(self, name: str, task: PTuningModel, config: PromptLearningConfig) -> None:
        task.train(self.training)
        set_trainable(task, name == self.active_adapter)
        self.adapters[name] = task
        self.peft_config[name] = config

    # --------------------------------------------------------------------------------------- use

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        windows: Tensor | None = None,
        adapter_names: Sequence[str] | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify a batch with the active adapter, or each row with its own.

        Args:
            input_ids: ``[B, T]``, padded on either side.
            attention_mask: ``[B, T]``, 1 at real tokens; all of them if left out.
            token_type_ids: ``[B, T]``.
            labels: As for :meth:`PTuningModel.forward`.
            segment_ids: ``[B, T]``: 0 first text, 1 second, -1 special.
            windows: As for :meth:`PTuningModel.forward`; not together with ``adapter_names``.
            adapter_names: One name per row; ``"__base__"`` for the plain backbone.
            return_dict: ``False`` for a tuple.

        Returns:
            ``logits`` ``[B, C]``; ``loss`` if labels were given.

        Raises:
            ConfigError: unknown names, or adapters whose logits differ in width; windows with names.
        """
        if windows is not None and adapter_names is not None:
            raise ConfigError(
                "windows",
                got="them together with adapter_names",
                expected="one of them",
                remedy="run the rows of each adapter separately, or use ptuning.MultiPredictor",
            )
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "labels": labels,
            "segment_ids": segment_ids,
        }
        if adapter_names is None:
            return self.active(**inputs, windows=windows, return_dict=return_dict)  # type: ignore[no-any-return]
        out = run_mixed(inputs, list(adapter_names), self._model_of)
        return out.to_tuple() if return_dict is False else out

    def _model_of(self, name: str) -> PTuningModel:
        return self.active.plain() if name == BASE else self.task_named(name)

    # ------------------------------------------------------------------------------------- facts

    @property
    def base_model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.backbone.model)

    def get_base_model(self) -> PreTrainedModel:
        """The frozen model."""
        return cast(PreTrainedModel, self.backbone.model)

    @property
    def config(self) -> Any:
        """The active adapter's: the backbone's with the task's labels."""
        return self.active.config

    @property
    def backbone(self) -> Backbone:
        """The frozen model. It is not a child of this module, but moves with it."""
        return self._backbone[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PeftModel:
        """What ``to``, ``half`` and their like do. The adapters move it too, if there are any."""
        self.backbone._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """As :meth:`PTuningModel.num_parameters`, of the active adapter on the backbone."""
        return self.active.num_parameters(only_trainable, exclude_embeddings)

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """As :meth:`PTuningModel.activation_checkpointing_enable`, for every adapter."""
        self._checkpoint_activations(True)

    def activation_checkpointing_disable(self) -> None:
        """As :meth:`PTuningModel.activation_checkpointing_disable`."""
        self._checkpoint_activations(False)

    def _checkpoint_activations(self, wanted: bool) -> None:
        for backbone in self._views():
            backbone.engine = replace(backbone.engine, checkpoint_activations=wanted)

    def _views(self) -> list[Backbone]:
        """The backbone that new adapters are made on, and each adapter's view of it."""
        return [self.backbone, *(cast(PTuningModel, task).backbone for task in self.adapters.values())]

    gradient_checkpointing_enable = activation_checkpointing_enable
    gradient_checkpointing_disable = activation_checkpointing_disable

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """The number of trainable parameters, and of all, each counted once."""
        return self.num_parameters(only_trainable=True), self.num_parameters()

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: trainable parameters, all parameters, percentage."""
        self.active.print_trainable_parameters()

    # -------------------------------------------------------------------------------------- save

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        is_main_process: bool = True,
        peft: bool = False,
        **others: Any,
    ) -> None:
        """Write the adapters: ``default`` into the folder itself, the others into subfolders of their names.

        Adapters of other names in the folder are kept. Of input prompts PEFT itself can only load those with
        ``placement="start"``; for all others it raises ``KeyError: 'PTUNING'``.

        Args:
            save_directory: The destination. An adapter there is replaced, anything else is refused.
            safe_serialization: ``True``; there are no pickles here.
            selected_adapters: Which; all if left out.
            is_main_process: ``False`` writes nothing.
            peft: ptuning only. As for :meth:`PTuningModel.save_pretrained`: refuse what PEFT cannot load.
            others: Those of :data:`HARMLESS`.

        Raises:
            OutputError: it could not be written; what was there before is unchanged.
            AdapterError: with ``peft``, an adapter that PEFT cannot load; names the option to change.
        """
        check_others("save_pretrained", others)
        if not safe_serialization:
            raise ConfigError(
                "safe_serialization",
                got="False",
                expected="True, because ptuning writes no pickles",
                remedy="leave it out",
            )
        names = list(self.adapters) if selected_adapters is None else list(selected_adapters)
        tasks = {name: self.task_named(name).to_adapter() for name in names}
        if peft:
            tasks = {name: adapters.for_peft(adapter) for name, adapter in tasks.items()}
        if not is_main_process:
            return
        folder = Path(save_directory)
        for name in tasks:
            if name != DEFAULT:
                adapters.check_destination(folder / name)  # what is replaced below is asked for here
        own = tasks.pop(DEFAULT, None)
        kept = () if own is None else _inner(folder) - set(tasks)

        def rest(below: Path) -> None:
            for name in kept:
                shutil.copytree(folder / name, below / name, symlinks=True)
            for name, adapter in tasks.items():
                adapters.save(adapter, below / name)

        if own is None:
            rest(folder)
        else:
            adapters.save(own, folder, extra_files=rest, apart={*kept, *tasks})

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the active adapter; the options are those of :meth:`PTuningModel.push_to_hub`."""
        return self.active.push_to_hub(repo_id, **options)


PeftModelForSequenceClassification = PeftModel
"""PEFT's name for what :func:`get_peft_model` returns."""


def _inner(folder: Path) -> set[str]:
    """The names of the subfolders that are adapters."""
    if not folder.is_dir():
        return set()
    return {child.name for child in folder.iterdir() if child.is_dir() and adapters.is_adapter(child)}
