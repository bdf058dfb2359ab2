"""Arguments of ``from_pretrained`` that repeat facts of the adapter: accepted if they agree with it.

PEFT passes ``num_labels``, ``id2label``, ``label2id``, ``problem_type``, ``torch_dtype`` and ``device_map``
on to the backbone. Here the adapter has its own labels, so the arguments have to agree with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ptuning.errors import ConfigError
from ptuning.model.ptuning import PTuningModel
from ptuning.model.tasks import is_numbered
from ptuning.peft.configs import PeftConfig, PromptLearningConfig

_NAMES = frozenset({"num_labels", "id2label", "label2id", "problem_type", "config"})
_AUTOMATIC = ("auto", "balanced", "sequential")
"""Device maps that choose devices automatically: here, one device for the entire model."""


@dataclass(frozen=True, kw_only=True)
class LoadingArguments:
    """The arguments of a call.

    Attributes:
        facts: Arguments that repeat facts of the adapter, by name.
        dtype: The dtype of the backbone; ``None`` for no change.
        device: The device of the model; ``None`` for no change, ``"auto"`` for the first accelerator.
        others: All other arguments.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LoadingArguments:
        """Sort the keyword arguments of a call.

        Raises:
            ConfigError: an unknown dtype or device, or several devices.
        """
        left = dict(given)
        facts = {name: left.pop(name) for name in _NAMES if name in left}
        dtypes = [_dtype(name, left.pop(name)) for name in ("dtype", "torch_dtype") if name in left]
        return cls(
            facts={name: value for name, value in facts.items() if value is not None},
            dtype=next((each for each in dtypes if each is not None), None),
            device=_device(left.pop("device_map", None)),
            others=left,
        )

    def check_against(self, task: PTuningModel, config: PromptLearningConfig) -> None:
        """Compare the facts with a loaded adapter. Label names replace labels that are only numbered.

        Raises:
            ConfigError: a fact differs.
        """
        own = task.task
        for name, given in self.facts.items():
            match name:
                case "num_labels":
                    _agree(name, given, own.num_labels)
                case "problem_type":
                    _agree(name, given, own.problem_type)
                case "config":
                    _agree_on_config(given, config)
                case _:
                    names = _names(name, given)
                    if is_numbered(own) and len(names) == own.num_labels:
                        task.set_task(replace(own, labels=names))
                    elif own.labels or len(names) != 1:
                        _agree(name, names, tuple(task.config.id2label.values()))

    def move(self, model: torch.nn.Module, *, given: bool) -> None:
        """Move the model to the requested device.

        Args:
            model: The loaded model.
            given: Whether the caller passed the backbone; then ``"auto"`` leaves it on its device.
        """
        if self.device == "auto":
            found = torch.accelerator.current_accelerator(check_available=True)
            if not given and found is not None:
                model.to(found)
        elif self.device is not None:
            model.to(self.device)


def _agree(name: str, given: Any, own: Any) -> None:
    if given != own:
        raise ConfigError(
            f"from_pretrained, {name}",
            got=repr(given),
            expected=f"{own!r}, as in the adapter",
            remedy="leave it out",
        )


def _names(name: str, given: Any) -> tuple[str, ...]:
    """The label names in order, from an ``id2label`` or a ``label2id``."""
    try:
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        by_index = {int(key): str(label) for key, label in pairs} if name == "id2label" else None
        if by_index is None:
            by_index = {int(index): str(label) for label, index in pairs}
        return tuple(by_index[index] for index in range(len(by_index)))
    except (TypeError, ValueError, KeyError):
        expected = "{0: …, 1: …}" if name == "id2label" else "{…: 0, …: 1}"
        raise ConfigError(f"from_pretrained, {name}", got=repr(given), expected=expected) from None


def _agree_on_config(given: Any, own: PromptLearningConfig) -> None:
    if not isinstance(given, PeftConfig):
        raise ConfigError(
            "from_pretrained, config",
            got=f"a {type(given).__module__}.{type(given).__name__}",
            expected="a configuration of ptuning.peft",
            remedy="leave it out, it is read from the adapter",
        )
    for name in ("peft_type", "num_virtual_tokens"):
        _agree(f"config.{name}", getattr(given, name, None), getattr(own, name))


def _dtype(name: str, given: Any) -> torch.dtype | None:
    if given is None or given == "auto" or isinstance(given, torch.dtype):
        return None if given == "auto" else given
    found = getattr(torch, str(given).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(
            f"from_pretrained, {name}",
            got=repr(given),
            expected="'auto' or a torch dtype, such as torch.bfloat16",
        )
    return found


def _device(given: Any) -> torch.device | str | None:
    if given is None or (isinstance(given, str) and given in _AUTOMATIC):
        return None if given is None else "auto"
    places = set(given.values()) if isinstance(given, Mapping) else {given}
    try:
        (place,) = places
        return torch.device(place)
    except (ValueError, TypeError, RuntimeError):
        raise ConfigError(
            "from_pretrained, device_map",
            got=repr(given),
            expected="one device for the entire model, such as 'cuda:0', or 'auto'",
            remedy="to distribute a backbone, load it yourself and pass it",
        ) from None
