"""One run: ``train(config)`` from a configuration, ``fit(model, data)`` for a model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ptuning.data.places import listing
from ptuning.errors import ConfigError
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.model.tasks import is_numbered, label_names
from ptuning.peft import PeftModel
from ptuning.training import run_files
from ptuning.training.calibration import calibrate, in_a_line
from ptuning.training.callbacks import Callback
from ptuning.training.config import DataConfig, FitConfig, TrainConfig, dump, run_folder
from ptuning.training.diagnosis import diagnose
from ptuning.training.evaluation import Scored, metrics_of, score
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
from ptuning.training.prepare import TrainingData, about_long_rows, gather
from ptuning.training.processes import noticing_lost, taking_time
from ptuning.training.records import TrainResult
from ptuning.training.reporting import report_of, write_report
from ptuning.training.resumption import recording_divergence, saying_how_to_resume
from ptuning.training.run_cache import RunCache, new_accelerator
from ptuning.training.run_files import CHECKPOINT, CONFIG, REPORT, RESULT, refuse_unfinished, write
from ptuning.training.tracking import tracked, tracked_by
from ptuning.training.trainer import Trainer
from ptuning.training.warm_start import WarmStart
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
    report: bool = True,
    no_texts: bool = False,
) -> TrainResult:
    """Train ``model`` in place; at the end it has the mean of the best evaluations' parameters.

    Args:
        model: From ``PTuningModel.from_backbone``, or a trained one from ``from_pretrained``, which is also
            evaluated before the first step. Its task says what the labels mean; if its labels have no
            names, it takes them from the training rows (:mod:`ptuning.data.task_labels`). For a
            ``PeftModel`` the active adapter is trained, at ``config``'s learning rates times its own scales.
        data: A mapping of splits (such as a ``DatasetDict``): ``train``, and optionally ``validation``
            (otherwise split off from ``train``) and ``test``; or only the training split. Each is a file,
            an ``hf:`` name, a frame or table, a ``datasets.Dataset``, ``(texts, labels)``, or a list of
            mappings or tuples (:mod:`ptuning.data.memory`). Rows with ``input_ids`` are used as they are,
            and their texts are ignored.
        config: How to train.
        columns: Options of :class:`~ptuning.training.config.DataConfig`, except the files and what is in
            the model's task, such as ``{"text": "review", "label": "stars"}``.
        output: The adapter folder to write; ``None`` keeps the result in memory only.
        resume: Continue from the checkpoint next to ``output``.
        callbacks: Instances of :class:`~ptuning.Callback`, called in order.
        compute_metrics: Further metrics, as transformers' Trainer takes them: from an ``EvalPrediction``
            with ``predictions`` (logits ``[N, C]``) and ``label_ids`` to a dictionary of numbers.
        loss: In place of the task's: from logits ``[B, C]`` and labels to the mean over the batch's rows.
        optimizer: In place of AdamW: creates a ``torch.optim.Optimizer`` from parameter groups, each with
            ``params``, ``lr``, ``weight_decay`` and ``name``.
        lr_scheduler: In place of ``lr_scheduler_type``: creates a scheduler from the optimizer and the number
            of steps.
        accelerator: Your ``Accelerator``, if you have one. Its trackers log the run, as
            :class:`~ptuning.TrackerCallback` does; if you have not called ``init_trackers``, it is called for
            the project ``ptuning``. ``end_training`` is left to you.
        report: Whether a page about what the adapter has learned is written to ``OUTPUT.run/report.html``.
        no_texts: Whether that page leaves the texts of the rows out.

    Raises:
        ConfigError: options that contradict each other, the task or the rows.
        DataError: data in another form, or rows and labels that this model cannot take.
        TrainingDiverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved where it was.
    """
    if isinstance(model, PeftModel):
        model = model.active
    if not isinstance(model, PTuningModel):
        raise ConfigError(
            "model",
            got=f"a {type(model).__name__}",
            expected="a PTuningModel",
            remedy="make one with PTuningModel.from_backbone, or use ptuning train",
        )
    config = config or FitConfig()
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    if resume and output is None:
        raise ConfigError(
            "resume", got="no output folder", expected="one, because the checkpoint is next to it"
        )
    options = _columns(columns)
    target = None if output is None else run_files.prepared(output)
    say = extensions.callbacks.on_message
    examples, task = gather(data, options, seed=config.seed, task=model.task, unnamed=_unnamed(model))
    if task.labels != model.task.labels:
        say(f"labels: {listing(task.labels)}, as the training rows name them")
    if "validation" not in examples.sources:
        validation, rows = len(examples.validation), len(examples.train)
        say(
            f"{validation:,} of {rows + validation:,} rows split off for validation "
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
        report=report,
        no_texts=no_texts,
        start=None if model.loaded is None else WarmStart(keeps_head=True, new_rows=model.new_rows),
    )
    extensions = tracked_by(extensions, accelerator)
    result = run(job, accelerator or new_accelerator(), resume=resume, extensions=extensions)
    model.new_rows = ()  # they are trained now
    return result


def _columns(columns: Mapping[str, Any] | None) -> DataConfig:
    """``columns`` of :func:`fit` as data options.

    Raises:
        ConfigError: an unknown option, or one that belongs somewhere else.
    """
    for name in columns or {}:
        if name in ("train", "validation", "test", "problem_type", "max_length"):
            where = "data" if name in ("train", "validation", "test") else "the model's task"
            raise ConfigError(
                "columns", got=repr(name), expected=f"it in {where}", remedy="leave it out here"
            )
    options: DataConfig = validated(DataConfig, {"train": "given", **(columns or {})}, "columns")
    return options


def _unnamed(model: PTuningModel) -> bool:
    """Whether nobody chose the model's labels: they are numbers from 0, or names from the backbone."""
    from_backbone = model.loaded is None and model.task.labels == label_names(model.backbone.model.config)
    return from_backbone or is_numbered(model.task)


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
    """Train a prompt with ``config`` and write the adapter to ``config.output``.

    The run's own files (``config.yaml``, ``checkpoint/``, ``result.json``, ``report.html``) are next to it
    in ``OUTPUT.run``. The test set, if there is one, is evaluated once, at the end.

    Args:
        resume: Continue from the run's checkpoint.
        restart: Start again although a run is unfinished; without it, that is refused.
        callbacks: As :func:`fit` takes them.
        compute_metrics: As :func:`fit` takes it.
        loss: As :func:`fit` takes it.
        optimizer: As :func:`fit` takes it.
        lr_scheduler: As :func:`fit` takes it.

    Raises:
        ConfigError: ``recipe: search``, which needs :func:`~ptuning.training.search.train_search`.
        TrainingDiverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved where it was.
    """
    if config.recipe == "search":
        raise ConfigError(
            "recipe", got="'search'", expected="'auto'", remedy="use ptuning.train_search for a search"
        )
    extensions = Extensions.checked(
        callbacks, compute_metrics=compute_metrics, loss=loss, optimizer=optimizer, lr_scheduler=lr_scheduler
    )
    extensions = tracked(extensions, config)
    return train_on(RunCache(), config, resume=resume, restart=restart, extensions=extensions)


def train_on(
    cache: RunCache,
    config: TrainConfig,
    *,
    resume: bool,
    restart: bool,
    extensions: Extensions = NO_EXTENSIONS,
    on_start: Callable[[], None] = lambda: None,
    found: Mapping[str, Any] | None = None,
) -> TrainResult:
    """:func:`train` with a cache that is shared with other runs.

    Args:
        on_start: Called before the first step, after all checks.
        found: The values that a search chose, by name.
    """
    folder = config.run_folder
    output = run_files.prepared(config.output)  # checked now, not after an hour of training
    if not (resume or restart):
        refuse_unfinished(folder)
    say, started = extensions.callbacks.on_message, resume
    with noticing_lost(lambda: _how_to_resume(output) if resume else None):
        accelerator = new_accelerator(cpu=config.device == "cpu")
        earlier = Earlier.read(folder / CHECKPOINT if resume else None, found)
        job = replace(make_job(cache, config, accelerator, earlier, say), output=output)

    def before_first_step() -> None:
        nonlocal started
        on_start()
        started = True
        start_files(config, accelerator, resume=resume, search=found is None)
        cache.say_notes(config, say)

    def can_be_resumed() -> bool:
        return started and run_files.has_checkpoint(folder) and run_files.unfinished(folder)

    with (
        recording_divergence(folder, accelerator),
        saying_how_to_resume(can_be_resumed),
    ):
        return run(
            job,
            accelerator,
            resume=resume,
            extensions=extensions,
            cache=cache,
            on_start=before_first_step,
            on_result=lambda result: write(
                folder / RESULT, json.dumps(result.to_dict(), indent=1) + "\n", accelerator
            ),
        )


def start_files(config: TrainConfig, accelerator: Accelerator, *, resume: bool, search: bool) -> None:
    """Before a run's first step: remove what an earlier run left, and write the configuration.

    Args:
        resume: Whether the run continues: then its checkpoint and configuration are kept.
        search: Whether to remove the files of a search, too.
    """
    folder = config.run_folder
    if accelerator.is_main_process and resume:
        run_files.remove(folder / REPORT)
        run_files.remove(folder / RESULT)  # the run is not finished any more
    elif accelerator.is_main_process:
        run_files.clear(folder, search=search)
    if not resume:  # the configuration of a resumed run is there already
        write(folder / CONFIG, dump(config), accelerator)


def run(
    job: Job,
    accelerator: Accelerator,
    *,
    resume: bool = False,
    extensions: Extensions = NO_EXTENSIONS,
    cache: RunCache | None = None,
    on_start: Callable[[], None] = lambda: None,
    on_result: Callable[[TrainResult], None] = lambda result: None,
) -> TrainResult:
    """Plan a run, train, average the best checkpoints and save the adapter.

    Args:
        on_start: Called before the first step.
        on_result: Called when the adapter is saved, before its report is drawn and the callbacks are told:
            neither must make a finished run unfinished.
    """
    draws, cache, model = Draws(accelerator.device), cache or RunCache(), job.model
    with noticing_lost(lambda: _how_to_resume(job.output) if resume else None):
        model.set_task(model.task.uncalibrated())  # that of earlier parameters says nothing about new ones
        with draws.drawing():
            torch.manual_seed(job.config.seed)
        data = cache.data(model, job.examples, job.too_long)
        plan = plan_run(
            model, job.prompt, data, job.config, found=job.found, extensions=extensions, start=job.start
        )
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
        on_start()
        if not resume:
            trainer.remove_checkpoint()
        _report_plan(job, plan, data, trainer.callbacks.on_message)
    try:
        with noticing_lost(lambda: _how_to_resume(job.output)):
            stopped_early = trainer.train(cache)
            averaged = trainer.average()
            scored = {
                name: score(
                    model, split, trainer.stems if name == "validation" else None, accelerator=accelerator
                )
                for name, split in data.evaluated.items()
            }
            result = _result(trainer, job, averaged, scored, stopped_early=stopped_early)
            if plan.fit.calibrate:
                result = _calibrated(trainer, scored, result)
            if job.output is not None and accelerator.is_main_process:
                model.save_pretrained(job.output, **adapter_details(job, plan, result))
            on_result(result)
            with taking_time(accelerator):  # so that each process finds the files
                if job.output is not None and job.report and accelerator.is_main_process:
                    say = trainer.callbacks.on_message
                    file = run_folder(job.output) / REPORT
                    write_report(file, lambda: report_of(job, plan, result, scored), say)
            trainer.state.result = result
            trainer.callbacks.on_train_end(trainer.state)
    except BaseException as error:
        trainer.callbacks.on_exception(trainer.state, error)
        raise
    return result


def _how_to_resume(output: Path | None) -> str | None:
    """The remedy for a run that was cut off."""
    if output is None or not run_files.has_checkpoint(run_folder(output)):
        return None
    return "to continue from the last checkpoint, run the same command with --resume (in Python: resume=True)"


def _report_plan(job: Job, plan: Plan, data: TrainingData, say: Callable[[str], None]) -> None:
    """Report the plan, and what may be unexpected about it."""
    say(str(plan.recipe))
    long = about_long_rows(job.model, job.examples.train, data.train, plan.fit.batch_size)
    if job.too_long != "error" and long:
        say(long)
    if plan.select.note is not None:
        say(plan.select.note)


def _result(
    trainer: Trainer,
    job: Job,
    averaged: Sequence[int],
    scored: Mapping[str, Scored],
    *,
    stopped_early: bool,
) -> TrainResult:
    """What the run found.

    Args:
        averaged: The evaluations whose parameters the model has the mean of.
        scored: What the model says about each evaluated split.
    """
    model, position, plan = job.model, trainer.position, trainer.plan
    assert position.best is not None
    result = TrainResult(
        metric=plan.select.metric,
        greater_is_better=plan.select.sign > 0,
        best=position.history[position.best],
        averaged=tuple(position.history[index] for index in averaged),
        history=tuple(position.history),
        metrics={name: metrics_of(model, each, trainer.extensions) for name, each in scored.items()},
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
                **{name: len(each.split.rows) for name, each in scored.items()},
            },
            "effective_rows": plan.effective_rows,
            "rates": {"prompt": trainer.rates[0], "head": trainer.rates[1]},
            "recipe": plan.recipe.record(),
            "select_by": plan.select.note,
            "reference": asdict(plan.reference),
        },
    )
    return replace(result, diagnosis=diagnose(result))


def _calibrated(trainer: Trainer, scored: Mapping[str, Scored], result: TrainResult) -> TrainResult:
    """The result with the model's task calibrated, unless the run failed.

    The diagnosis is of the answers before: thresholds can give a model that has learned nothing a better F1
    than a constant answer has.
    """
    model = trainer.model
    if result.diagnosis is not None and result.diagnosis.serious:
        return result
    say = trainer.callbacks.on_message
    try:
        task, record = calibrate(model.task, scored)
    except Exception as error:  # such as one of a kind of the user's own: the adapter is worth more
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"probabilities could not be calibrated ({reason}); they are used as they are")
        return result
    if record is None:
        return result
    model.set_task(task)
    say(in_a_line(record))
    names = model.task.kind.threshold_metrics
    metrics = {
        split: {**found, **{name: value for name, value in record[split]["after"].items() if name in names}}
        for split, found in result.metrics.items()
    }
    return replace(result, metrics=metrics, calibration=record)


def adapter_details(job: Job, plan: Plan, result: TrainResult) -> dict[str, Any]:
    """What an adapter records of its run: ``metrics`` and ``extra`` of ``save_pretrained``."""
    return {
        "metrics": {
            **result.metrics,
            "baseline": result.baseline[result.reported],
            "baseline_rule": result.baseline_rule,
        },
        "extra": {
            "data": job.examples.record(),
            "fit": plan.fit.model_dump(mode="json"),
            "rates": result.setting["rates"],
            "recipe": result.setting["recipe"],
            "baseline": asdict(plan.baseline),
            "learned": result.learned,
            **({} if plan.start is None or plan.start.record is None else {"init_from": plan.start.record}),
            **({} if result.calibration is None else {"calibration": result.calibration}),
        },
    }
