"""What both estimators are: parameters, training, logits, pickling, and adapters."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from ptuning import adapters
from ptuning.data import Example
from ptuning.data.continued import Continued, continued_task
from ptuning.errors import ConfigError
from ptuning.estimators.backbones import Keeper, SharedBackbone, shared_backbone
from ptuning.estimators.inputs import examples_of
from ptuning.estimators.settings import configuration, data_options, seed_of, takes_its_backbone
from ptuning.inference import Predictor
from ptuning.kinds import LabelForm
from ptuning.model.backbone import Backbone
from ptuning.model.config import Engine, PromptConfig
from ptuning.model.ptuning import PTuningModel
from ptuning.task import Task
from ptuning.threads import BACKBONES
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import TrainConfig
from ptuning.training.console import ConsoleCallback
from ptuning.training.extensions import Extensions
from ptuning.training.job import make_job, precision
from ptuning.training.plan import Plan
from ptuning.training.prepare import Gathered, reading_long_texts
from ptuning.training.run import adapter_details, run
from ptuning.training.run_cache import Loaded, RunCache, new_accelerator
from ptuning.training.warm_start import Source


class _PlanOf(Callback):
    """Keeps the plan of a run."""

    plan: Plan

    def on_train_end(self, state: RunState) -> None:
        self.plan = state.plan


class TextEstimator(BaseEstimator):  # type: ignore[misc]
    """A prompt on a frozen backbone, as scikit-learn's estimators are: see the two subclasses."""

    def __init__(
        self,
        backbone: str = "demo",
        *,
        revision: str | None = None,
        init_from: str | os.PathLike[str] | None = None,
        init_head: str = "auto",
        prompt: PromptConfig | Mapping[str, Any] | None = None,
        num_virtual_tokens: int | None = None,
        first_layer: int | None = None,
        num_train_epochs: int | None = None,
        learning_rate: float | None = None,
        head_learning_rate: float | None = None,
        batch_size: int = 16,
        validation_fraction: float = 0.1,
        max_length: int | None = None,
        too_long: str | None = None,
        max_windows: int | None = None,
        window_overlap: float | None = None,
        fit_options: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
        precision: str = "auto",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.revision = revision
        self.init_from = init_from
        self.init_head = init_head
        self.prompt = prompt
        self.num_virtual_tokens = num_virtual_tokens
        self.first_layer = first_layer
        self.num_train_epochs = num_train_epochs
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.max_length = max_length
        self.too_long = too_long
        self.max_windows = max_windows
        self.window_overlap = window_overlap
        self.fit_options = fit_options
        self.engine = engine
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------------------------ training

    def _train(
        self,
        examples: Sequence[Example],
        task: Task,
        class_weights: Callable[[Task], str | tuple[float, ...] | None] = lambda task: None,
    ) -> None:
        """Train a model; everything that it sets is set at the end.

        Args:
            examples: The rows, labelled.
            task: What the labels mean, without what the parameters say.
            class_weights: Gives the weights for the labels of the task that is trained, which may be more.
        """
        parameters, seed = self.get_params(deep=False), seed_of(self.random_state)
        config = configuration(parameters, seed=seed)
        accelerator = new_accelerator(cpu=config.device == "cpu")

        def load(config: TrainConfig, task: Task, dtype: Any, device: Any) -> Loaded:
            allowed = "backbone" not in config.left_open  # else the adapter's author chose it
            shared = shared_backbone(
                config.backbone, config.revision, task, dtype, device, allow_pickle=allowed
            )
            return self._kept(shared)

        cache = RunCache(load=load)
        rows = _gathered(examples, task, config, cache.source(config))
        config = configuration(parameters, seed=seed, class_weights=class_weights(rows.task))
        cache.keep(config, rows)
        planned = _PlanOf()
        shown = [ConsoleCallback(Console(markup=False, emoji=False))] if self.verbose else []
        extensions = Extensions.checked([planned, *shown])
        say = extensions.callbacks.on_message
        job = make_job(cache, config, accelerator, say=say)
        cache.say_notes(config, say)
        result = run(job, accelerator, extensions=extensions, cache=cache)
        self._model, self.result_ = job.model.eval(), result
        self._details: dict[str, Any] = adapter_details(job, planned.plan, result)
        self.__dict__.pop("_files", None)

    # ----------------------------------------------------------------------------------- the model

    @property
    def model_(self) -> PTuningModel:
        """The trained model. After unpickling, it is loaded when it is needed first.

        Raises:
            NotFittedError: nothing was fitted.
        """
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate "
                "arguments before using this estimator."
            )
        with BACKBONES:  # two threads load it once
            if "_model" not in self.__dict__:
                with tempfile.TemporaryDirectory() as scratch:
                    for name, data in self._files.items():
                        (Path(scratch) / name).write_bytes(data)
                    own = takes_its_backbone(self.get_params(deep=False))
                    self._model = self._opened(
                        Path(scratch), None if own else self.backbone, allow_pickle=not own
                    )
                del self._files
        found: PTuningModel = self._model
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return "_model" in self.__dict__ or "_files" in self.__dict__

    def _logits(self, given: Any) -> NDArray[np.float64]:
        """``[N, C]``, the logits of ``X``."""
        model = self.model_
        predictor = Predictor(model, too_long="error" if self.too_long == "error" else None)
        examples = examples_of(given, pair=model.task.pair)
        parts = [logits.numpy() for _, logits in predictor.logits(examples)]
        return np.concatenate(parts).astype(np.float64)

    # ------------------------------------------------------------------------------------ adapters

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the adapter folder, as ``ptuning train`` does: the command line and the server read it.

        Raises:
            NotFittedError: nothing was fitted.
            AdapterError: a folder that cannot be replaced.
        """
        return self.model_.save_pretrained(folder, **self.__dict__.get("_details", {}))

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        hub_revision: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
        **parameters: Any,
    ) -> Self:
        """A fitted estimator from an adapter, whoever trained it.

        Args:
            folder_or_hub_id: As ``PTuningModel.from_pretrained`` takes it.
            hub_revision: The adapter's branch, tag or commit on the Hub.
            token: The Hub's access token, for the adapter and its backbone.
            allow_pickle: As ``PTuningModel.from_pretrained`` takes it.
            parameters: Parameters of the estimator, such as ``device="cpu"``. Those that say how texts are
                read (``max_length``, ``too_long``, ``max_windows``, ``window_overlap``) apply to the adapter,
                too. By default they, ``backbone`` and ``prompt`` are the adapter's, so that ``fit`` trains
                such a prompt again.

        Raises:
            AdapterError: no adapter, or one that was altered or cut short.
            ConfigError: the task is not one of this estimator, or a parameter is wrong.
        """
        made = cls(**parameters)
        folder = adapters.locate(
            folder_or_hub_id, revision=hub_revision, token=token, allow_pickle=allow_pickle
        )
        model = made._opened(
            folder,
            parameters.get("backbone"),
            revision=parameters.get("revision"),
            token=token,
            allow_pickle=allow_pickle,
        )
        made._model, made._details = model, {}
        made._set_task(model.task)
        own: dict[str, Any] = {
            "backbone": model.backbone.name,
            "revision": model.backbone.revision,
            "prompt": model.provenance,
            "max_length": model.task.max_length,
        }
        if "backbone" in parameters:
            del own["revision"]
        if model.task.max_windows > 1 and parameters.get("too_long", "windows") == "windows":
            own["too_long"] = "windows"
            own |= {name: getattr(model.task, name) for name in ("max_windows", "window_overlap")}
        made.set_params(**{name: value for name, value in own.items() if name not in parameters})
        data = data_options(made.get_params(deep=False))
        model.set_task(reading_long_texts(replace(model.task, max_length=data.max_length), data))
        return made

    def _set_task(self, task: Task) -> None:
        """Set the fitted attributes that say what is predicted.

        Raises:
            ConfigError: a task that is not one of this estimator.
        """
        raise NotImplementedError

    def _opened(
        self,
        folder: Path,
        backbone: str | None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        allow_pickle: bool = False,
    ) -> PTuningModel:
        """The model of an adapter, on a backbone that other estimators may use too.

        Args:
            backbone: The one that the user named, if any.
            revision: In place of the backbone's revision that the adapter records.
        """
        device = new_accelerator(cpu=self.device == "cpu").device
        dtype = precision(self.precision, device)
        view: Backbone | None = None
        tokenizer = None
        if adapters.is_adapter(folder):
            adapter = adapters.load(folder)
            name, recorded = adapter.backbone["name"], adapter.backbone["revision"]
            if backbone is not None and backbone != name:
                name, recorded = backbone, self.revision
            if name:
                allowed = allow_pickle or backbone is not None
                revision = revision or recorded
                shared = shared_backbone(
                    name, revision, adapter.task, dtype, device, token=token, allow_pickle=allowed
                )
                view, tokenizer = self._kept(shared)
        return PTuningModel.from_pretrained(
            folder,
            backbone=view or backbone,
            tokenizer=tokenizer,
            token=token,
            dtype=dtype,
            allow_pickle=allow_pickle,
            engine=self.engine,
        ).to(device)

    # -------------------------------------------------------------------------- clone and pickle

    @property
    def _keeper(self) -> Keeper:
        """Keeps the backbone that this estimator and its clones used last."""
        made: Keeper = self.__dict__.setdefault("_kept_for_clones", Keeper())  # atomic, for threads
        return made

    def _kept(self, shared: SharedBackbone) -> Loaded:
        """A view of a backbone for this estimator, which stays in memory for it and for its clones."""
        self._shared = self._keeper.shared = shared
        return shared.backbone.view(), shared.tokenizer

    def __sklearn_clone__(self) -> Self:
        made: Self = super().__sklearn_clone__()
        made._kept_for_clones = self._keeper
        return made

    def __getstate__(self) -> dict[str, Any]:
        """The parameters and, if fitted, the files of the adapter; not the backbone."""
        state: dict[str, Any] = dict(super().__getstate__())
        for name in ("_kept_for_clones", "_shared"):
            state.pop(name, None)
        details = state.pop("_details", {})
        if (model := state.pop("_model", None)) is not None:
            with tempfile.TemporaryDirectory() as scratch:
                folder = model.save_pretrained(Path(scratch) / "adapter", **details)
                state["_files"] = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False  # scikit-learn means numbers
        return tags


def _gathered(
    examples: Sequence[Example], task: Task, config: TrainConfig, source: Source | None
) -> Gathered:
    """The rows for a run.

    Args:
        task: What the labels mean.
        source: The adapter that the run starts from. If the rows are of its task, that task continues,
            perhaps with more labels.

    Raises:
        ConfigError: no row has a label of the adapter, or texts differ from pairs.
        DataError: labels that differ from the adapter's by type alone.
    """
    found: Continued | None = None
    if source is not None:
        found = continued_task(
            examples,
            source.task,
            problem_type=task.problem_type,
            head=config.init_head,
            names=task.labels or None,
        )
        task = found.task if found.same else task
    task = replace(task, max_length=config.data.max_length or task.max_length)
    return Gathered(
        train=examples,
        validation=None,
        test=(),
        sources={"train": examples[0].origin.name},
        task=reading_long_texts(task, config.data),
        continues=found is not None and found.same,
        notes=() if found is None else found.notes,
    )


def refuse_form(task: Task, forms: Sequence[LabelForm], remedy: str) -> None:
    """Refuse an adapter whose task belongs to the other estimator.

    Raises:
        ConfigError: names its kind.
    """
    if task.kind.form not in forms:
        raise ConfigError(f"the adapter's task is a {task.kind.title}", remedy=remedy)
