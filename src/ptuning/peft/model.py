"""PEFT's model: one backbone, named adapters, one of them active; each is a :class:`PTuningModel`.

The adapters share the backbone and do not touch it or each other, so switching, adding and deleting move no
weight. ``state_dict`` holds the adapters alone, their prompt encoders included.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ptuning import adapters
from ptuning.errors import AdapterError, ConfigError
from ptuning.model.backbone import Backbone
from ptuning.model.config import TextInit
from ptuning.model.loading import load_tokenizer
from ptuning.model.prompt import DeepMLP, Embedding, PromptEncoder
from ptuning.model.ptuning import PTuningModel
from ptuning.model.state import KEY
from ptuning.model.tasks import task_of
from ptuning.peft.configs import PeftConfig, PeftType, PrefixTuningConfig, PromptLearningConfig, config_of
from ptuning.peft.said import Said

BASE = "__base__"
"""The adapter name that means none: the backbone with its own head."""

DEFAULT = "default"

HARMLESS = frozenset(
    {
        *("autocast_adapter_dtype", "low_cpu_mem_usage", "ephemeral_gpu_offload", "torch_device", "mixed"),
        *("use_safetensors", "ignore_mismatched_sizes", "save_embedding_layers", "state_dict"),
        "trust_remote_code",
    }
)
"""Arguments of PEFT's that programs pass, and that change no number here: prompts and heads are always fp32
and small, files always safetensors, what is saved is always the model's own, and no code of a repository is
run."""

_PARTS = "parametrizations."
"""The prefix of torch's names for the parts of a :class:`ScaledParameter`."""


class IncompatibleKeys(NamedTuple):
    """What :func:`set_peft_model_state_dict` returns, as torch does: two empty lists, or it had raised."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class PeftModel(nn.Module):
    """A frozen backbone with named prompts.

    Args:
        model: An ``AutoModelForSequenceClassification``; it is adopted: frozen in place, its attention sent
            through ptuning's.
        peft_config: What kind of prompt.
        adapter_name: The first adapter's name.

    Raises:
        ConfigError: choices that contradict each other or the backbone.
        UnsupportedBackbone: the architecture cannot hold such a prompt.
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
                f"model: got a {type(model).__name__}, expected an AutoModelForSequenceClassification; to "
                "add a second adapter to a model, use model.add_adapter"
            )
        held = model if isinstance(model, Backbone) else Backbone(model)
        self._backbone = (held,)  # in a tuple: torch would make a module a child of this one
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
        """A backbone with a trained adapter: a folder or Hub id of ours, or one that PEFT wrote.

        Args:
            model: The backbone, which is adopted.
            model_id: The adapter's folder or Hub id.
            adapter_name: What to call it.
            is_trainable: Let training go on. What made the prompt is not in an adapter, so the prompt goes on
                as a plain one, from exactly where it is.
            revision: The adapter's branch, tag or commit on the Hub.
            subfolder: The folder within ``model_id`` where the adapter is, as :meth:`save_pretrained` writes
                any but ``default``; on this machine only.
            token: The Hub's access token.
            allow_pickle: Read an old ``adapter_model.bin`` where there are no safetensors.
            others: Those of :data:`HARMLESS`, and facts that agree with the adapter and the backbone
                (:mod:`ptuning.peft.said`): ``num_labels``, ``id2label``, ``torch_dtype``, ``device_map`` …

        Raises:
            AdapterError: no adapter there, or one altered or cut short.
            AdapterMismatch: trained on another backbone.
            ConfigError: an argument that is not taken, or that contradicts the adapter or the backbone.
        """
        said = Said.of(others)
        _check_others("from_pretrained", said.others)
        made = cls(model)
        if said.dtype not in (None, made.dtype):
            raise ConfigError(
                f"from_pretrained: torch_dtype: got {said.dtype}, but the backbone is held in {made.dtype}; "
                "load the backbone in it"
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
        said.hold_against(made.active, made.active_peft_config)
        said.move(made, given=True)
        return made.eval()

    # ---------------------------------------------------------------------------------- adapters

    def add_adapter(self, adapter_name: str, peft_config: PromptLearningConfig) -> None:
        """An untrained adapter beside the others; :meth:`set_adapter` makes it the active one."""
        self._check_new(adapter_name)
        if not isinstance(peft_config, PromptLearningConfig):
            raise ConfigError(
                f"peft_config: got a {type(peft_config).__name__}, expected one of ptuning.peft's, such as "
                "PromptEncoderConfig"
            )
        peft_config = replace(peft_config)  # the caller's stays as it is, to be used again
        _check_facts(peft_config, self.backbone)
        choice = peft_config.prompt()
        init = getattr(choice, "init", None)
        named = getattr(peft_config, "tokenizer_name_or_path", None)
        task = PTuningModel(
            self.backbone,
            choice,
            task_of(self.backbone.model.config),
            tokenizer=load_tokenizer(str(named)) if isinstance(init, TextInit) else None,
            head=_modules(self.backbone, peft_config.modules_to_save or ()),
            learning_rate_scales=(
                getattr(peft_config, "prompt_rate_scale", 1.0),
                getattr(peft_config, "head_rate_scale", 1.0),
            ),
        )
        if isinstance(peft_config, PrefixTuningConfig) and peft_config.init_weights == "zero":
            _start_at_zero(task.prompt_encoder)
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
        """A trained adapter beside the others; :meth:`set_adapter` makes it the active one.

        Args and errors are those of :meth:`from_pretrained`.
        """
        _check_others("load_adapter", others)
        self._check_new(adapter_name)
        task = PTuningModel.from_pretrained(
            model_id if subfolder is None else _inside(model_id, subfolder),
            backbone=self.backbone,
            revision=revision,
            token=token,
            allow_pickle=allow_pickle,
        )
        self._take(adapter_name, task, is_trainable)

    def _take(self, adapter_name: str, task: PTuningModel, is_trainable: bool) -> None:
        """A loaded task, as one of the adapters."""
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
        _train(task, is_trainable and adapter_name == self.active_adapter)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter the active one, and the only one that training changes.

        Args:
            adapter_name: Its name.
            inference_mode: Freeze it too.
        """
        self._task(adapter_name)
        self.active_adapter = adapter_name
        for name, task in self.adapters.items():
            _train(cast(PTuningModel, task), name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. If it was the active one, the first that is left becomes active."""
        self._task(adapter_name)
        if len(self.adapters) == 1:
            raise ConfigError(
                f"{adapter_name!r} is the only adapter; for the plain backbone use model.get_base_model() or "
                "the block with model.disable_adapter():"
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
        """Inside the ``with`` block this is the plain backbone, with its original head."""
        with ExitStack() as stack:
            for task in self.adapters.values():  # whichever is the active one inside
                stack.enter_context(cast(PTuningModel, task).disabled())
            yield

    @property
    def active(self) -> PTuningModel:
        """The active adapter, as ptuning's own model."""
        return self._task(self.active_adapter)

    def _task(self, adapter_name: str) -> PTuningModel:
        if adapter_name not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise ConfigError(f"there is no adapter {adapter_name!r}; this model has {known}")
        return cast(PTuningModel, self.adapters[adapter_name])

    def _check_new(self, adapter_name: str) -> None:
        if adapter_name in self.adapters:
            raise ConfigError(
                f"there is an adapter {adapter_name!r} already; choose another name, or delete it first with "
                "model.delete_adapter"
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter_name) or adapter_name in (BASE, *dir(nn.ModuleDict)):
            raise ConfigError(
                f"{adapter_name!r} cannot be an adapter's name; expected letters, digits, _ and -: 'refunds'"
            )

    def _add(self, name: str, task: PTuningModel, config: PromptLearningConfig) -> None:
        task.train(self.training)
        _train(task, name == self.active_adapter)
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
        adapter_names: Sequence[str] | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify a batch with the active adapter, or each row with its own.

        Args:
            input_ids: ``[B, T]``, padded on either side.
            attention_mask: ``[B, T]``, 1 at real tokens; all of them if left out.
            token_type_ids: ``[B, T]``.
            labels: As :meth:`PTuningModel.forward` takes them.
            segment_ids: ``[B, T]``: 0 first text, 1 second, -1 special.
            adapter_names: One name a row; ``"__base__"`` for the plain backbone.
            return_dict: ``False`` for a tuple.

        Returns:
            ``logits`` ``[B, C]``; ``loss`` if labels were given.

        Raises:
            ConfigError: unknown names, or adapters whose logits differ in width.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "labels": labels,
            "segment_ids": segment_ids,
        }
        out = self.active(**inputs) if adapter_names is None else self._mixed(inputs, list(adapter_names))
        return out.to_tuple() if return_dict is False else out

    def _mixed(self, inputs: Mapping[str, Tensor | None], names: list[str]) -> SequenceClassifierOutput:
        """Rows of one adapter go through together; what comes back stands in the rows' order."""
        rows = cast(Tensor, inputs["input_ids"]).shape[0]
        if len(names) != rows:
            raise ConfigError(f"adapter_names: got {len(names)} names, expected one for each of {rows} rows")
        parts: list[tuple[Tensor, Tensor, Tensor | None]] = []  # which rows, their logits, their loss
        for name in dict.fromkeys(names):
            mine = torch.tensor([i for i, other in enumerate(names) if other == name])
            part = {
                key: None if value is None else value[mine.to(value.device)] for key, value in inputs.items()
            }
            out = (self.active.plain() if name == BASE else self._task(name))(**part)
            parts.append((mine, out.logits, out.loss))
        widths = {int(logits.shape[1]) for _, logits, _ in parts}
        if len(widths) > 1:
            raise ConfigError(
                f"adapter_names: these adapters give {sorted(widths)} logits a row, which do not fit into "
                "one tensor; put the rows of each width into a batch of their own"
            )
        order = torch.cat([mine for mine, _, _ in parts]).argsort()
        together = torch.cat([logits for _, logits, _ in parts])
        shares = [len(mine) / rows * loss for mine, _, loss in parts if loss is not None]
        return SequenceClassifierOutput(
            loss=cast(Any, sum(shares)) if shares else None, logits=together[order.to(together.device)]
        )

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
        """As :meth:`PTuningModel.activation_checkpointing_enable`; it holds for every adapter here."""
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
        """How many numbers training changes, and how many there are, each counted once."""
        return self.num_parameters(only_trainable=True), self.num_parameters()

    def print_trainable_parameters(self) -> None:
        """Print the line that everyone knows."""
        self.active.print_trainable_parameters()

    # -------------------------------------------------------------------------------------- save

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        is_main_process: bool = True,
        **others: Any,
    ) -> None:
        """Write the adapters: ``default`` into the folder itself, any other into a folder of its name below.

        Adapters of other names that stand there are kept as they are.

        Args:
            save_directory: Where; an adapter that stands there is replaced, anything else is refused.
            safe_serialization: ``True``; there are no pickles here.
            selected_adapters: Which; all if left out.
            is_main_process: ``False`` writes nothing.
            others: Those of :data:`HARMLESS`.

        Raises:
            OutputError: it could not be written; what stood there is untouched.
        """
        _check_others("save_pretrained", others)
        if not safe_serialization:
            raise ConfigError("safe_serialization: got False, and ptuning writes no pickles; leave it out")
        names = list(self.adapters) if selected_adapters is None else list(selected_adapters)
        tasks = {name: self._task(name).to_adapter() for name in names}
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


class AutoPeftModelForSequenceClassification:
    """An adapter on the backbone that it names, in one call."""

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        adapter_name: str = DEFAULT,
        is_trainable: bool = False,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
        dtype: torch.dtype | str | None = None,
        **others: Any,
    ) -> PeftModel:
        """As :meth:`PeftModel.from_pretrained`; ``dtype``, or ``torch_dtype``, is that of the backbone."""
        said = Said.of({"dtype": dtype, **others})
        _check_others("from_pretrained", said.others)
        task = PTuningModel.from_pretrained(
            model_id, revision=revision, token=token, allow_pickle=allow_pickle, dtype=said.dtype
        )
        made = PeftModel(task.backbone)
        made._take(adapter_name, task, is_trainable)
        made.set_adapter(adapter_name, inference_mode=not is_trainable)
        said.hold_against(made.active, made.active_peft_config)
        said.move(made, given=False)
        return made.eval()


def get_peft_model(
    model: PreTrainedModel,
    peft_config: PeftConfig,
    adapter_name: str = DEFAULT,
    *,
    revision: str | None = None,
    **others: Any,
) -> PeftModel:
    """A model with an untrained prompt.

    Args:
        model: An ``AutoModelForSequenceClassification``, which is adopted: frozen in place.
        peft_config: One of this package's configurations.
        adapter_name: What to call the adapter.
        revision: The backbone's branch, tag or commit, to be remembered.
        others: Those of :data:`HARMLESS`.
    """
    _check_others("get_peft_model", others)
    if not isinstance(peft_config, PromptLearningConfig):
        raise ConfigError(
            f"peft_config: got a {type(peft_config).__module__}.{type(peft_config).__name__}, expected "
            "one of ptuning.peft's PromptEncoderConfig, PromptTuningConfig and PrefixTuningConfig"
        )
    made = PeftModel(model, peft_config, adapter_name)
    if revision is not None:
        peft_config.revision = revision
        made.backbone.revision = revision
    return made


# ------------------------------------------------------------------------------------------ state


def get_peft_model_state_dict(
    model: PeftModel | PTuningModel, state_dict: None = None, adapter_name: str = DEFAULT
) -> dict[str, Tensor]:
    """An adapter's parameters: the prompt encoder as ``prompt_encoder.*``, virtual units as ``units.*``, the
    head as PEFT names it.

    Args:
        model: The model.
        state_dict: Not taken: the model's own are meant.
        adapter_name: Which adapter.
    """
    if state_dict is not None:
        raise ConfigError(
            "state_dict: a given one is not taken apart; leave it out, and name the adapter: adapter_name=…"
        )
    task = _of(model, adapter_name)
    encoder = {f"prompt_encoder.{name}": value for name, value in _values(task.prompt_encoder).items()}
    if task.units is not None:
        encoder |= {f"units.{name}": value for name, value in _values(task.units).items()}
    head = {f"base_model.{name}": value.detach() for name, value in task.head.named().items()}
    return {**encoder, **head}


def set_peft_model_state_dict(
    model: PeftModel | PTuningModel, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = DEFAULT
) -> IncompatibleKeys:
    """The inverse of :func:`get_peft_model_state_dict`.

    What PEFT's function of that name returns is taken too: its ``prompt_embeddings`` are the prompt as its
    encoder made it, so they take the place of the encoder, and give the same logits.

    Raises:
        AdapterError: keys that are missing or too many, or of another shape; nothing is changed then.
    """
    task = _of(model, adapter_name)
    given = {name: value for name, value in peft_model_state_dict.items() if name != KEY}
    made = given.pop("prompt_embeddings", None)
    wanted = get_peft_model_state_dict(model, adapter_name=adapter_name)
    if made is not None:
        wanted = {name: value for name, value in wanted.items() if not name.startswith("prompt_encoder.")}
    if odd := sorted(wanted.keys() ^ given.keys()):
        where = "lacks" if odd[0] in wanted else "holds"
        raise AdapterError(
            f"the state dict {where} {odd[0]!r}, expected {', '.join(wanted)}; make the model with the same "
            "configuration as the one that it came from"
        )
    for name, value in wanted.items():
        if given[name].shape != value.shape:
            raise AdapterError(
                f"the state dict's {name} has the shape {list(given[name].shape)}, expected "
                f"{list(value.shape)}"
            )
    if made is not None:
        task.set_prompt(_unpacked(task, made))
    with torch.no_grad():
        for part in ("prompt_encoder", "units"):
            inner = {
                name.removeprefix(f"{part}."): value
                for name, value in given.items()
                if name.startswith(f"{part}.")
            }
            if inner:
                _set_values(getattr(task, part), inner)
        task.head.copy_({name: given[f"base_model.{name}"] for name in task.head.names})
    return IncompatibleKeys([], [])


def _values(encoder: PromptEncoder) -> dict[str, Tensor]:
    """An encoder's parameters by their plain names, scaled ones included."""
    state = {name: value for name, value in encoder.state_dict().items() if not name.startswith(_PARTS)}
    if parametrize.is_parametrized(encoder, "weight"):
        state["weight"] = cast(Embedding, encoder).weight.detach()
    return state


def _set_values(encoder: PromptEncoder, values: Mapping[str, Tensor]) -> None:
    if parametrize.is_parametrized(encoder, "weight"):
        cast(Any, encoder).weight = values["weight"].to(cast(Embedding, encoder).weight)
    encoder.load_state_dict(dict(values), strict=False)  # the names have been compared


def _of(model: PeftModel | PTuningModel, adapter_name: str) -> PTuningModel:
    return model if isinstance(model, PTuningModel) else model._task(adapter_name)


def _unpacked(task: PTuningModel, made: Tensor) -> Tensor:
    """What PEFT calls ``prompt_embeddings``, in our shape."""
    with torch.no_grad():
        now = task.prompt_encoder()
    tokens, numbers = now.shape[-2], now.numel()
    if made.shape != (tokens, numbers // tokens):
        raise AdapterError(
            f"the state dict's prompt_embeddings have the shape {list(made.shape)}, expected "
            f"{[tokens, numbers // tokens]}"
        )
    return adapters.unpack_layers(made, now.shape[0]) if now.dim() == 4 else made


# ---------------------------------------------------------------------------------------- helpers


def _check_others(where: str, others: Mapping[str, Any]) -> None:
    """Refuse arguments that PEFT would act on, and that nothing here does."""
    for name, value in others.items():
        if name not in HARMLESS:
            raise ConfigError(
                f"{where}: {name} ({type(value).__name__}) is not taken by ptuning.peft; set it where the "
                "backbone is loaded, or leave it out"
            )
    if others.get("mixed"):
        raise ConfigError(f"{where}: mixed adapters of several methods are PEFT's own; leave it out")


def _inner(folder: Path) -> set[str]:
    """The adapters that stand in a folder's own folders, by their names."""
    if not folder.is_dir():
        return set()
    return {child.name for child in folder.iterdir() if child.is_dir() and adapters.is_adapter(child)}


def _inside(model_id: str | Path, subfolder: str) -> Path:
    """A folder within an adapter's folder; what is on the Hub has none, because a push is one adapter."""
    folder = Path(model_id).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"subfolder {subfolder!r}: {model_id} is no folder here; on the Hub an adapter has a repository "
            "of its own"
        )
    return folder / subfolder


def _train(task: PTuningModel, on: bool) -> None:
    """Whether training changes a task; a head that its configuration freezes stays frozen."""
    task.prompt_encoder.requires_grad_(on)
    if task.units is not None:
        task.units.requires_grad_(on)
    task.head.requires_grad_(on and task.prompt_config.train_head)


def _check_facts(config: PromptLearningConfig, backbone: Backbone) -> None:
    """Facts that PEFT lets a user say must be the backbone's own."""
    deep = isinstance(config, PrefixTuningConfig)
    facts = {
        "num_layers": (backbone.num_layers,),
        "num_attention_heads": (
            backbone.config.num_attention_heads,
            backbone.key_value_size // backbone.head_dim,
        ),
        "token_dim": (backbone.key_value_size, backbone.hidden_size) if deep else (backbone.embedding_size,),
    }
    for name, expected in facts.items():
        if (given := getattr(config, name)) is not None and given not in expected:
            raise ConfigError(
                f"{name}: got {given}, but {backbone.name} has {expected[0]}; leave it out, it is found"
            )


def _modules(backbone: Backbone, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The parameters of the modules that ``modules_to_save`` names by their ends."""
    found: dict[str, Tensor] = {}
    known = [name for name, _ in backbone.model.named_modules() if name]
    for each in wanted:
        owners = [name for name in known if name == each or name.endswith(f".{each}")]
        if not owners and each not in ("classifier", "score"):  # PEFT lists both, whichever there is
            ends = sorted(
                {name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()}
            )
            close = difflib.get_close_matches(each, ends, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(ends)}"
            raise ConfigError(f"modules_to_save: {backbone.name} has no module {each!r}; {hint}")
        for owner in owners:
            for name, value in backbone.model.get_submodule(owner).named_parameters(prefix=owner):
                if name not in backbone.head_names:
                    found[name] = value
    if any(value is backbone.embedding.weight for value in found.values()):
        raise ConfigError(
            "modules_to_save: the word embeddings stay as they are; leave out the modules that hold them"
        )
    return found


def _start_at_zero(encoder: PromptEncoder) -> None:
    last = encoder.layers[-1] if isinstance(encoder, DeepMLP) else encoder
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
