"""One run: ``train(config)`` from a configuration, ``fit(model, data)`` for a model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from ptuning.data.places import listing
from ptuning.errors import ConfigError
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.model.tasks import is_numbered, label_names
from ptuning.peft import PeftModel
from ptuning.training import run_files
from ptuning.training.callbacks import Callback
from ptuning.training.config import DataConfig, FitConfig, TrainConfig, dump, run_folder
from ptuning.training.diagnosis import diagnose
from ptuning.training.evaluation import evaluate
from ptuning.training.extensions import (
    NO_EXTENSIONS,
    ComputeMetrics,
    Extensions,
    Loss,
    MakeOptimizer,
    MakeScheduler,
)
from ptuning.training.job import Job, make_job
from ptuning.training.plan import Earlier, Plan, SettledPrompt, plan_run
from ptuning.training.prepare import TrainingData, full_rows, gather
from ptuning.training.records import TrainResult
from ptuning.training.resumption import over_if_diverged, saying_how_to_go_on
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.run_files import CHECKPOINT, CONFIG, RESULT, refuse_unfinished, write
from ptuning.training.trainer import Trainer
from ptuning.validation import validated


def fit(
    model: PTuningModel | PeftModel,
    data: Any,
    config: FitConfig | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    callbacks: Iterable[Callback] | None = None,
    compute_metrics: ComputeMetrics | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    lr_scheduler: MakeScheduler | None = None,
    accelerator: Accelerator | None = None,
) -> TrainResult:
    """Train ``model`` in place; it ends with the mean of the best evaluations' parameters.

    Args:
        model: From ``PTuningModel.from_backbone``; its task says what the labels mean, and where nobody named
            its labels it takes over the names in the training rows (:mod:`ptuning.data.task_labels`). Of a
            ``PeftModel`` the active adapter is trained, at ``config``'s learning rates times its own scales.
        data: A mapping of splits (a ``DatasetDict`` is one): ``train``, and if wanted ``validation``
            (otherwise split off from ``train``) and ``test``; or the training split alone. Each is a file,
            an ``hf:`` name, a frame or table, a ``datasets.Dataset``, ``(texts, labels)``, or a list of
            mappings or tuples (:mod:`ptuning.data.memory`). Rows with ``input_ids`` are taken as they are;
            texts beside them are not read again.
        config: How to train.
        columns: Options of :class:`~ptuning.training.config.DataConfig` other than the files and what the
            model's task says, such as ``{"text": "review", "label": "stars"}``.
        output: The adapter folder to write; ``None`` keeps the result in memory only.
        resume: Continue from the checkpoint beside ``output``.
        callbacks: Instances of :class:`~ptuning.Callback`, called in order.
        compute_metrics: Further metrics, as transformers' Trainer takes them: from an ``EvalPrediction``
            with ``predictions`` (logits ``[N, C]``) and ``label_ids`` to a dictionary of numbers.
        loss: In place of the task's: from logits ``[B, C]`` and labels to the mean over the batch's rows.
        optimizer: In place of AdamW: makes a ``torch.optim.Optimizer`` from parameter groups, each with its
            ``params``, ``lr``, ``weight_decay`` and ``name``.
        lr_scheduler: In place of ``lr_scheduler_type``: makes a scheduler from the optimizer and the number
            of steps.
        accelerator: Yours, if you have one.

    Raises:
        ConfigError: options that contradict each other, the task or the rows.
        DataError: data of no such form, or rows and labels that this model cannot take.
        TrainingDiverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved where it was.
    """
    if isinstance(model, PeftModel):
        model = model.active
    config = config or FitConfig()
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    if resume and output is None:
        raise ConfigError("resume needs an output folder: the checkpoint is beside it")
    options = _columns(columns)
    target = None if output is None else run_files.prepared(output)
    say = extensions.callbacks.on_message
    examples, task = gather(data, options, seed=config.seed, task=model.task, unnamed=_unnamed(model))
    if task.labels != model.task.labels:
        say(f"labels: {listing(task.labels)}, as the training rows name them")
    if "validation" not in examples.sources:
        held, rows = len(examples.validation), len(examples.train)
        say(
            f"{held:,} of {rows + held:,} rows put aside for validation "
            "(columns={'validation_fraction': …}, or pass {'train': …, 'validation': …})"
        )
    model.set_task(task)
    for note in examples.notes:
        say(note)
    job = Job(
        model=model,
        prompt=SettledPrompt(config=model.prompt_config),
        examples=examples,
        config=config,
        too_long=options.too_long,
        output=target,
    )
    return run(job, accelerator or new_accelerator(), resume=resume, extensions=extensions)


def _columns(columns: Mapping[str, Any] | None) -> DataConfig:
    """``columns`` of :func:`fit` as data options.

    Raises:
        ConfigError: one that is unknown, or that something else says.
    """
    for name in columns or {}:
        if name in ("train", "validation", "test", "problem_type", "max_length"):
            where = (
                "data" if name in ("train", "validation", "test") else "the model's task, where it is made"
            )
            raise ConfigError(f"columns: {name} stands in {where}; leave it out here")
    made: DataConfig = validated(DataConfig, {"train": "given", **(columns or {})}, "columns")
    return made


def _unnamed(model: PTuningModel) -> bool:
    """Whether nobody chose the model's labels: they are numbers from 0, or the backbone's own names."""
    own = model.loaded is None and model.task.labels == label_names(model.backbone.model.config)
    return own or is_numbered(model.task)


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    restart: bool = False,
    callbacks: Iterable[Callback] | None = None,
    compute_metrics: ComputeMetrics | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    lr_scheduler: MakeScheduler | None = None,
) -> TrainResult:
    """Train a prompt as ``config`` says and write the adapter to ``config.output``.

    The run's own files (``config.yaml``, ``checkpoint/``, ``result.json``) are next to it in
    ``OUTPUT.run``. The test set, if there is one, is evaluated once, when everything is decided.

    Args:
        resume: Continue from the run's checkpoint.
        restart: Start again although a run is unfinished; without it, that is refused.
        callbacks: As :func:`fit` takes them.
        compute_metrics: As :func:`fit` takes it.
        loss: As :func:`fit` takes it.
        optimizer: As :func:`fit` takes it.
        lr_scheduler: As :func:`fit` takes it.

    Raises:
        ConfigError: ``recipe: search``, which is :func:`~ptuning.training.search.train_search`'s.
        TrainingDiverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved where it was.
    """
    if config.recipe == "search":
        raise ConfigError("recipe: got 'search', expected 'auto'; a search is run by ptuning.train_search")
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    return train_on(RunCache(), config, resume=resume, restart=restart, extensions=extensions)


def train_on(
    cache: RunCache,
    config: TrainConfig,
    *,
    resume: bool,
    restart: bool,
    extensions: Extensions = NO_EXTENSIONS,
    began: Callable[[], None] = lambda: None,
    found: Mapping[str, Any] | None = None,
) -> TrainResult:
    """:func:`train`, with what other runs have read, loaded and tokenised.

    Args:
        began: Called before the first step, when nothing can be refused any more.
        found: What a search chose, by name.
    """
    folder = config.run_folder
    output = run_files.prepared(config.output)  # before an hour of training, not after
    if not (resume or restart):
        refuse_unfinished(folder)
    accelerator, say = new_accelerator(cpu=config.device == "cpu"), extensions.callbacks.on_message
    earlier = Earlier.read(folder / CHECKPOINT if resume else None, found)
    job = replace(make_job(cache, config, accelerator, earlier, say), output=output)
    begun = resume

    def beginning() -> None:
        nonlocal begun
        began()
        begun = True
        if accelerator.is_main_process and resume:
            run_files.remove(folder / RESULT)  # of this run, at the point it had reached
        elif accelerator.is_main_process:
            run_files.clear(folder, search=found is None)
        if not resume:  # a resumed run's configuration is there, and has to be the same
            write(folder / CONFIG, dump(config), accelerator)
        cache.say_notes(config.data, say)

    with (
        over_if_diverged(folder, accelerator),
        saying_how_to_go_on(lambda: begun and run_files.has_checkpoint(folder)),
    ):
        result = run(job, accelerator, resume=resume, extensions=extensions, cache=cache, began=beginning)
    write(folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n", accelerator)
    return result


def run(
    job: Job,
    accelerator: Accelerator,
    *,
    resume: bool = False,
    extensions: Extensions = NO_EXTENSIONS,
    cache: RunCache | None = None,
    began: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Plan a run, train, keep the best and save it.

    Args:
        began: Called before the first step.
    """
    draws, cache, model = Draws(accelerator.device), cache or RunCache(), job.model
    with draws.drawing():
        set_seed(job.config.seed)
    data = cache.data(model, job.examples, job.too_long)
    plan = plan_run(model, job.prompt, data, job.config, found=job.found, extensions=extensions)
    model.to(accelerator.device)
    trainer = Trainer(
        model,
        data,
        plan,
        folder=None if job.output is None else run_folder(job.output) / CHECKPOINT,
        accelerator=accelerator,
        draws=draws,
        extensions=extensions,
    )
    if resume:
        trainer.resume()
    began()
    if not resume:
        trainer.forget()
    _say(job, plan, data, trainer.callbacks.on_message)
    try:
        stopped_early = trainer.train(cache)
        result = _result(trainer, job, stopped_early=stopped_early)
        if job.output is not None and accelerator.is_main_process:
            _save(job, plan, result)
        trainer.state.result = result
        trainer.callbacks.on_train_end(trainer.state)
    except BaseException as error:
        trainer.callbacks.on_exception(trainer.state, error)
        raise
    return result


def _say(job: Job, plan: Plan, data: TrainingData, say: Callable[[str], None]) -> None:
    """What the plan is, and what of it may surprise."""
    say(str(plan.recipe))
    full = full_rows(job.model, job.examples.train, data.train) if job.too_long == "truncate" else None
    if full and full[0]:
        say(
            f"{full[0]:,} of {len(data.train.rows):,} training rows fill the {full[1]} tokens that fit, and "
            "what is longer is cut (data.too_long: error refuses it)"
        )
    if plan.select.note is not None:
        say(plan.select.note)


def _result(trainer: Trainer, job: Job, *, stopped_early: bool) -> TrainResult:
    """What a run found, once the best of it is averaged."""
    averaged = trainer.average()
    model, position, plan = job.model, trainer.position, trainer.plan
    splits = trainer.data.evaluated
    assert position.best is not None
    result = TrainResult(
        metric=plan.select.metric,
        greater_is_better=plan.select.sign > 0,
        best=position.history[position.best],
        averaged=tuple(position.history[index] for index in averaged),
        history=tuple(position.history),
        metrics={
            name: evaluate(
                model,
                split,
                trainer.stems if name == "validation" else None,
                extensions=trainer.extensions,
            )
            for name, split in splits.items()
        },
        baseline=plan.floor,
        baseline_rule=plan.baseline.rule,
        trained=model.num_parameters(only_trainable=True),
        total=model.num_parameters(),
        seconds=position.seconds,
        examples_per_second=position.rows / max(position.train_seconds, 1e-9),
        stopped_early=stopped_early,
        adapter=job.output,
        setting={
            "rows": {
                "train": len(trainer.data.train.rows),
                **{name: len(split.rows) for name, split in splits.items()},
            },
            "effective_rows": plan.effective_rows,
            "rates": {"prompt": trainer.rates[0], "head": trainer.rates[1]},
            "recipe": plan.recipe.record(),
            "select_by": plan.select.note,
            "reference": asdict(plan.reference),
        },
    )
    return replace(result, diagnosis=diagnose(result))


def _save(job: Job, plan: Plan, result: TrainResult) -> None:
    """Write the adapter, with what it was trained on and what it reached."""
    assert job.output is not None
    job.model.save_pretrained(
        job.output,
        metrics={
            **result.metrics,
            "baseline": result.baseline[result.reported],
            "baseline_rule": result.baseline_rule,
        },
        extra={
            "data": job.examples.record(),
            "fit": plan.fit.model_dump(mode="json"),
            "rates": result.setting["rates"],
            "recipe": result.setting["recipe"],
            "baseline": asdict(plan.baseline),
            "learned": result.learned,
        },
    )
