"""From an estimator's parameters to a training configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from ptuning.errors import ConfigError
from ptuning.model.config import DeepPrompt, InputPrompt, PromptConfig
from ptuning.training.config import OLD_NAMES, DataConfig, FitConfig, TrainConfig
from ptuning.validation import current_names, validated

OWN_FIT = ("num_train_epochs", "learning_rate", "head_learning_rate", "batch_size")
"""Options of ``fit`` that are parameters of an estimator under the same name."""
OTHER_NAMES = {"seed": "random_state", "class_weights": "class_weight"}
"""Options of ``fit`` that are parameters under scikit-learn's name."""
OWN_DATA = ("validation_fraction", "max_length", "too_long", "max_windows", "window_overlap")
RUN = ("backbone", "revision", "init_from", "init_head", "precision", "device")
OF_PROMPT = ("num_virtual_tokens", "first_layer")
"""Options of a prompt that are parameters of an estimator."""


def configuration(
    given: Mapping[str, Any], *, seed: int, class_weights: str | tuple[float, ...] | None = None
) -> TrainConfig:
    """A training configuration.

    Args:
        given: The parameters of an estimator.
        seed: The random seed.
        class_weights: As ``fit.class_weights``.

    Raises:
        ConfigError: names the first parameter that is wrong.
    """
    values = {name: _plain(value) for name, value in given.items()}
    fit = {name: values[name] for name in OWN_FIT} | _other_options(values["fit_options"])
    run = {name: values[name] for name in RUN}
    if values["engine"] is not None:
        run["engine"] = values["engine"]
    run["prompt"] = _prompt(values)
    if isinstance(values["init_from"], os.PathLike):
        run["init_from"] = os.fspath(values["init_from"])
    if takes_its_backbone(values):
        del run["backbone"], run["revision"]
    if values["init_from"] is not None and values["prompt"] is None:
        run["prompt"] = {name: values[name] for name in OF_PROMPT if values[name] is not None}
    config: TrainConfig = TrainConfig(
        **run,
        data=data_options(given),
        fit=validated(FitConfig, {**fit, "seed": seed, "class_weights": class_weights}),
    )
    return config


def takes_its_backbone(given: Mapping[str, Any]) -> bool:
    """Whether the adapter of ``init_from`` decides the backbone; the default value counts as left out.

    Args:
        given: The parameters of an estimator.
    """
    return given["init_from"] is not None and (given["backbone"], given["revision"]) == ("demo", None)


def data_options(given: Mapping[str, Any]) -> DataConfig:
    """The options of ``data``.

    Args:
        given: The parameters of an estimator.

    Raises:
        ConfigError: names the first parameter that is wrong.
    """
    values = {name: _plain(given[name]) for name in OWN_DATA}
    options: DataConfig = validated(DataConfig, {"train": "X", **values})
    return options


def seed_of(random_state: Any) -> int:
    """The seed that scikit-learn's ``random_state`` stands for: itself, or the generator's next number.

    Raises:
        ValueError: scikit-learn's, for anything else.
    """
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def _plain(value: Any) -> Any:
    """A number of numpy as Python's, because a grid of parameters often has them."""
    return value.item() if isinstance(value, np.generic) else value


def _other_options(given: Any) -> dict[str, Any]:
    """``fit_options``, checked: options without a parameter of their own."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            "fit_options", got=given, expected="a dictionary of options of fit, such as {'patience': 3}"
        )
    options: dict[str, Any] = dict(current_names(given, OLD_NAMES))
    for name in options:
        if name in OWN_FIT or name in OTHER_NAMES:
            own = OTHER_NAMES.get(name, name)
            raise ConfigError(f"fit_options: {name} is the parameter {own}", remedy=f"pass {own}=…")
    return {name: _plain(value) for name, value in options.items()}


def _prompt(values: Mapping[str, Any]) -> PromptConfig:
    """The prompt: ``prompt``, with the parameters that are options of a prompt."""
    prompt = values["prompt"]
    if prompt is None:
        prompt = DeepPrompt()
    elif not isinstance(prompt, DeepPrompt | InputPrompt):
        options = {"depth": "deep", **prompt} if isinstance(prompt, Mapping) else prompt
        prompt = validated(PromptConfig, options, "prompt")
    changed = {name: values[name] for name in OF_PROMPT if values[name] is not None}
    found: PromptConfig = replace(prompt, **changed) if changed else prompt
    return found
