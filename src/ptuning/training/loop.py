"""The training loop: batches of similar length through a prompted model, on Accelerate.

Everything that changes while it runs is in the model, the optimizer and one :class:`Position`; a
checkpoint holds all three, and the batches are a pure function of seed and epoch, so a resumed run is
the straight run to the bit on the same machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor
from transformers import get_scheduler

from ptuning.adapters.atomic import remove_folder
from ptuning.cache import root as cache_root
from ptuning.data.places import listing
from ptuning.data.stems import Stems
from ptuning.data.tokens import TooLong, shuffled_batches
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.inference.evaluate import batch_of, logits_of, pad_id
from ptuning.inference.evaluate import not_finite as out_of_bounds
from ptuning.model.config import prompt_to_dict
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.model.tasks import is_numbered, label_names, no_classes
from ptuning.peft import PeftModel
from ptuning.task import Task
from ptuning.training import checkpoint, run_files
from ptuning.training.checkpoint import Position
from ptuning.training.config import DataConfig, FitConfig, run_folder
from ptuning.training.console import Reporter, Silent
from ptuning.training.diagnosis import Reference, not_finite
from ptuning.training.interrupt import Interrupted, StopRequest, stop_requests
from ptuning.training.metrics import Baseline, Metrics, Selection, effective_rows, measure, standard_error
from ptuning.training.prepare import Examples, Split, full_rows, gather
from ptuning.training.recipe import Facts, Recipe, Settled
from ptuning.training.result import Evaluation, TrainResult
from ptuning.training.shared import Shared, new_accelerator
from ptuning.training.start import begins_fitted, fit_head
from ptuning.validation import validated


def fit(
    model: PTuningModel | PeftModel,
    data: Any,
    config: FitConfig | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    accelerator: Accelerator | None = None,
) -> TrainResult:
    """Train ``model`` in place; it ends with the mean of the best evaluations' parameters.

    Args:
        model: From ``PTuningModel.from_backbone``; its task says what the labels mean, and where nobody named
            its labels it takes over the names in the training rows (:mod:`ptuning.data.task_labels`). Of a
            ``PeftModel`` the active adapter is trained, at ``config``'s rates times its own scales.
        data: A mapping of splits (a ``DatasetDict`` is one): ``train``, and if wanted ``validation``
            (otherwise split off from ``train``) and ``test``; or the training split alone. Each is a file,
            an ``hf:`` name, a frame or table, a ``datasets.Dataset``, ``(texts, labels)``, or a list of
            mappings or tuples (:mod:`ptuning.data.memory`). Rows with ``input_ids`` are taken as they are;
            texts beside them are not read again.
        config: How to train.
        columns: Options of :class:`~ptuning.training.config.DataConfig` other than the files and what the
            model's task says, such as ``{"text": "review", "label": "stars"}``.
        output: The adapter folder to write; ``None`` keeps the result in memory only.
        resume: Go on from the checkpoint beside ``output``.
        reporter: Told of every step; silent by default.
        accelerator: Yours, if you have one.

    Raises:
        DataError: data of no such form, or rows and labels that this model cannot take.
        TrainingDiverged: a loss or gradient that is not finite; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved where it was.
    """
    if isinstance(model, PeftModel):
        model = model.active
    config = config or FitConfig()
    for name in columns or {}:
        if name in ("train", "validation", "test", "problem_type", "max_length"):
            where = (
                "data" if name in ("train", "validation", "test") else "the model's task, where it is made"
            )
            raise ConfigError(f"columns: {name} stands in {where}; leave it out here")
    target = None if output is None else run_files.prepared(output)
    options: DataConfig = validated(DataConfig, {"train": "given", **(columns or {})}, "columns")
    reporter = reporter or Silent()
    examples, task = gather(data, options, seed=config.seed, task=model.task, unnamed=_unnamed(model))
    if task.labels != model.task.labels:
        reporter.say(f"labels: {listing(task.labels)}, as the training rows name them")
    if "validation" not in examples.sources:
        held, rows = len(examples.validation), len(examples.train)
        reporter.say(
            f"{held:,} of {rows + held:,} rows put aside for validation "
            "(columns={'validation_fraction': …}, or pass {'train': …, 'validation': …})"
        )
    model.set_task(task)
    for note in examples.notes:
        reporter.say(note)
    return run(
        model,
        examples,
        config,
        too_long=options.too_long,
        output=target,
        resume=resume,
        reporter=reporter,
        accelerator=accelerator or new_accelerator(),
    )


def _unnamed(model: PTuningModel) -> bool:
    """Whether nobody chose the model's labels: they are numbers from 0, or the backbone's own names."""
    own = model.loaded is None and model.task.labels == label_names(model.backbone.model.config)
    return own or is_numbered(model.task)


def run(
    model: PTuningModel,
    examples: Examples,
    config: FitConfig,
    *,
    too_long: TooLong,
    output: Path | None,
    resume: bool,
    reporter: Reporter,
    accelerator: Accelerator,
    began: Callable[[], None] = lambda: None,
    shared: Shared | None = None,
    found: Mapping[str, Any] | None = None,
) -> TrainResult:
    """:func:`fit` on examples that have been read and checked.

    Args:
        began: Called before the first step.
        found: What a search chose of that which ``config`` leaves open.
    """
    if resume and output is None:
        raise ConfigError("resume needs an output folder: the checkpoint is beside it")
    draws = Draws(accelerator.device)
    with draws.drawing():
        set_seed(config.seed)
    shared = shared or Shared()
    train, held = (shared.split(model, rows, too_long) for rows in (examples.train, examples.validation))
    test = shared.split(model, examples.test, too_long) if examples.test else None
    facts = Facts.of(model, train.rows)
    recipe = Recipe.of(config, facts, found)
    if config.class_weights is not None:  # otherwise the model keeps those it was made with
        model.set_class_weights(class_weights(config, train.targets, model.task))
    weights = None if model.class_weights is None else model.class_weights.tolist()
    baseline = Baseline.of(train.targets, model.task)
    floor = baseline.measure(held.targets, model.task, weights)
    model.to(accelerator.device)
    loop = _Loop(
        model=model,
        train=train,
        validation=held,
        config=recipe.fit,
        select=Selection.for_task(config.select_by, model.task, floor),
        folder=None if output is None else run_folder(output) / run_files.CHECKPOINT,
        reporter=reporter,
        accelerator=accelerator,
        draws=draws,
        setting={
            **_made_of(model),  # first: what the recipe chose may have followed from it
            **{f"fit.{name}": value for name, value in recipe.fit.model_dump(mode="json").items()},
            "data": checkpoint.data_digest(train.rows, held.rows),
            "class_weights": weights,  # last: they may have followed from the data
        },
    )
    if resume:
        loop.resume()
    began()
    if not resume:
        loop.forget()
    dropout = model.backbone.dropout
    with stop_requests() as stop:
        model.backbone.dropout = recipe.fit.backbone_dropout
        reporter.say(str(recipe))
        if too_long == "truncate" and (full := full_rows(model, examples.train, train)) and full[0]:
            reporter.say(
                f"{full[0]:,} of {len(train.rows):,} training rows fill the {full[1]} tokens that fit, and "
                "what is longer is cut (data.too_long: error refuses it)"
            )
        if loop.select.note is not None:
            reporter.say(loop.select.note)
        reporter.begin(model, loop.steps, loop.position.step, recipe.fit)
        model.check_loss = False  # the loop looks at it with the gradient, in all processes alike
        try:
            loop.keep_stems(shared, stop)
            if begins_fitted(model) and not loop.position.history:
                loop.begin_fitted(stop)
            stopped_early = loop.until_done(stop)
        finally:
            model.check_loss, model.backbone.dropout = True, dropout
            reporter.end()
    averaged = loop.keep_best()
    splits = {"validation": held} | ({"test": test} if test else {})
    position = loop.position
    assert position.best is not None  # the last step of a run is always followed by an evaluation
    result = TrainResult(
        metric=loop.select.metric,
        best=position.history[position.best],
        averaged=tuple(position.history[index] for index in averaged),
        history=tuple(position.history),
        metrics={
            name: evaluate(model, split, loop.stems if split is held else None)
            for name, split in splits.items()
        },
        baseline={
            name: baseline.measure(split.targets, model.task, weights) for name, split in splits.items()
        },
        baseline_rule=baseline.rule,
        trained=model.num_parameters(only_trainable=True),
        total=model.num_parameters(),
        seconds=position.seconds,
        examples_per_second=position.rows / max(position.train_seconds, 1e-9),
        stopped_early=stopped_early,
        adapter=output,
        setting={
            "rows": {"train": len(train.rows), **{name: len(split.rows) for name, split in splits.items()}},
            "effective_rows": effective_rows(loop.select.metric, held.targets, model.task),
            "rates": {"prompt": loop.rates[0], "head": loop.rates[1]},
            "recipe": recipe.record(),
            "select_by": loop.select.note,
            "reference": asdict(Reference.of(train.targets, model.task, config, facts, weights)),
        },
    )
    if output is not None and accelerator.is_main_process:
        metrics = {
            **result.metrics,
            "baseline": result.baseline[result.reported],
            "baseline_rule": result.baseline_rule,
        }
        model.save_pretrained(
            output,
            metrics=metrics,
            extra={
                "data": examples.record(),
                "fit": recipe.fit.model_dump(mode="json"),
                "rates": result.setting["rates"],
                "recipe": result.setting["recipe"],
                "baseline": asdict(baseline),
                "learned": result.learned,
            },
        )
    return result


def _made_of(model: PTuningModel) -> dict[str, Any]:
    """What a run's model has to have in common with that of its checkpoint, whoever made it."""
    return {
        **{f"prompt.{name}": value for name, value in prompt_to_dict(model.prompt_config).items()},
        "backbone": model.backbone.fingerprint(),
        "precision": str(model.backbone.dtype),
        "rate_scales": model.learning_rate_scales,
    }


def evaluate(
    model: PTuningModel,
    split: Split,
    stems: Stems | None = None,
    *,
    rates: tuple[float, float] | None = None,
) -> Metrics:
    """The split's metrics, ``loss`` included (in a regression, of standardised targets).

    Args:
        stems: Where the stem's outputs for its rows are, if they are kept.
        rates: Of prompt and head, for what is said of a run that diverged.

    Raises:
        TrainingDiverged: logits that are not finite, of which there is nothing to measure.
    """
    logits = logits_of(model, split.rows, stems=stems)
    if (seen := out_of_bounds(logits)) is not None:
        raise TrainingDiverged(not_finite(f"{seen}: prompt or head grew out of bounds", rates=rates))
    targets = model.task.kind.as_labels(split.targets)
    loss = float(model.loss(logits.to(model.device), targets.to(model.device)))
    return {"loss": loss, **measure(logits.double().numpy(), split.targets, model.task)}


def class_weights(config: FitConfig, targets: np.ndarray[Any, Any], task: Task) -> tuple[float, ...] | None:
    """The loss's weight of each class, as the configuration asks."""
    if config.class_weights != "balanced":
        return config.class_weights
    if not task.labels:
        raise no_classes("fit.class_weights", task)
    return task.kind.balanced_weights(targets, task)


@dataclass(kw_only=True)
class _Loop:
    """One run: what it works on, and the position it has reached."""

    model: PTuningModel
    train: Split
    validation: Split
    config: Settled
    select: Selection
    folder: Path | None
    reporter: Reporter
    accelerator: Accelerator
    draws: Draws
    setting: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.position = Position()
        self.kept: checkpoint.Kept = {}
        self.stems: Stems | None = None
        self.batches = [self._count(epoch) for epoch in range(self.config.epochs)]
        self.steps = sum(math.ceil(count / self.config.accumulation) for count in self.batches)
        parameters = self.model.task_parameters()
        if not parameters:
            raise ConfigError("nothing to train: every parameter of the model is frozen")
        self.rates = self.config.prompt_rate, self.config.head_rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": group, "lr": rate}
                for group, rate in zip(self.model.parameter_groups(), self.rates, strict=True)
                if group
            ],
            weight_decay=self.config.weight_decay,
        )
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.parameters = list(parameters.values())
        self.started = time.perf_counter()

    # ----------------------------------------------------------------------------------- running

    def resume(self) -> None:
        """Go on from the checkpoint."""
        assert self.folder is not None
        if not self.folder.exists():
            raise ConfigError(f"nothing to resume: there is no {self.folder}; leave --resume out to begin")
        with self.draws.drawing():  # their state is in the checkpoint
            self.position, self.kept = checkpoint.load(
                self.folder, model=self.model, optimizer=self._adamw, setting=self.setting
            )
        if not self.position.possible(self.batches, self.steps):
            raise checkpoint.cannot_resume(self.folder, "this run has no such step")
        self.started = time.perf_counter() - self.position.seconds

    def forget(self) -> None:
        """Take away what the run before this one left to go on from, which is not this one's."""
        if self.folder is not None and self.accelerator.is_main_process:
            remove_folder(self.folder)

    def keep_stems(self, shared: Shared, stop: StopRequest) -> None:
        """Run the frozen layers below the first prompt, once for each text, where there are any."""
        engine = self.model.backbone.engine
        if self.model.stem_layer == 0 or not engine.reuse_stem:
            return

        def on_rows(done: int, total: int) -> None:
            self.reporter.stem(done, total)
            if stop.made:
                self._interrupt()

        began = time.perf_counter()
        # Where they are kept on disk the other processes wait, and find them there.
        on_disk = cache_root() is not None and engine.stem_disk > 0
        interrupted: Interrupted | None = None
        with self.accelerator.main_process_first() if on_disk else nullcontext():
            try:
                self.stems = shared.stems(self.model, (self.train, self.validation), on_rows)
            except Interrupted as request:  # the others are waiting at the end of this block
                interrupted = request
        if interrupted is not None:
            raise interrupted
        if self.stems is None:
            self.reporter.say(
                "the outputs of the layers below the first prompt take more than engine.stem_memory "
                f"({engine.stem_memory:g} GiB) and engine.stem_disk ({engine.stem_disk:g} GiB), or than the "
                "disk has room for: these layers run in every epoch"
            )
        self.position.train_seconds += time.perf_counter() - began

    def begin_fitted(self, stop: StopRequest) -> None:
        """Fit the head, and look at the validation rows: on few rows nothing may be better later."""

        def on_rows(done: int, total: int) -> None:
            self.reporter.fitting(done, total)
            if stop.made:
                self._interrupt()

        began = time.perf_counter()
        loss = fit_head(self.model, self.train, on_rows)
        if self.accelerator.num_processes > 1:  # each has fitted it, and may round as no other does
            head = self.model.head
            head.copy_({name: broadcast(value.detach().clone()) for name, value in head.named().items()})
        self.position.train_seconds += time.perf_counter() - began
        if math.isfinite(loss):
            self.position.loss_sum, self.position.loss_rows = loss, 1
            self._evaluate()

    def until_done(self, stop: StopRequest) -> bool:
        """Train to the last step, or until patience runs out; returns which (True for patience)."""
        scheduler = self._scheduler()
        position, config = self.position, self.config
        if self._out_of_patience():  # resumed between its last evaluation and its end
            return position.step < self.steps
        self.model.train()
        while position.epoch < config.epochs:
            for group in self._groups():
                began = time.perf_counter()
                with self.draws.drawing():
                    loss, rows = self._step(group)
                scheduler.step()
                position.batch += len(group)
                position.step += 1
                position.loss_sum += loss * rows
                position.loss_rows += rows
                position.rows += rows
                position.train_seconds += time.perf_counter() - began
                self.reporter.step(
                    position.step, loss, scheduler.get_last_lr()[0], position.rows / position.train_seconds
                )
                last = position.batch >= self.batches[position.epoch]
                if last:
                    position.epoch, position.batch = position.epoch + 1, 0
                if self._due(last):
                    self._evaluate()
                    if self._out_of_patience():
                        return position.step < self.steps
                if stop.made and position.step < self.steps:
                    self._interrupt()
        return False

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.position.stale >= self.config.patience

    def keep_best(self) -> list[int]:
        """Leave the model with the mean of the best evaluations' parameters; returns which those are.

        The best of several looks is so by luck as well, and a mean has less of that (model soups,
        arXiv:2203.05482). Only what the validation rows cannot tell from the best is averaged, and if they
        can tell the mean from it, what lies between is no good: then the best alone is kept.
        """
        history, best = self.position.history, self.position.best
        assert best is not None  # the last step of a run is always followed by an evaluation
        chosen = [
            index for index in sorted(self.kept) if index == best or self._as_good(history[index].metrics)
        ]
        if len(chosen) > 1:
            checkpoint.restore(self.model, checkpoint.mean([self.kept[index] for index in chosen]))
            if not self._as_good(evaluate(self.model, self.validation, self.stems, rates=self.rates)):
                chosen = [best]
        if chosen == [best]:
            checkpoint.restore(self.model, self.kept[best])
        self.model.eval()
        return chosen

    def _as_good(self, found: Metrics) -> bool:
        """Whether that is less than a standard error behind the best evaluation."""
        assert self.position.best is not None
        metric, best = self.select.metric, self.position.history[self.position.best].metrics
        if metric not in found or metric not in best:
            return False
        rows = effective_rows(metric, self.validation.targets, self.model.task)
        margin = standard_error(metric, best[metric], rows)
        return self.select.sign * (best[metric] - found[metric]) <= margin

    def _groups(self) -> Iterator[list[list[int]]]:
        """What is left of this epoch: for each optimizer step its batches of row numbers."""
        position, size = self.position, self.config.accumulation
        batches = self._batches(position.epoch)[position.batch :]
        for at in range(0, len(batches), size):
            yield batches[at : at + size]

    def _batches(self, epoch: int) -> list[list[int]]:
        """An epoch's batches of row numbers."""
        config = self.config
        lengths, tokens = self.train.lengths, config.batch_tokens
        if tokens is not None:  # what an input prompt adds to each row counts
            lengths = [length + self.model.inserted_tokens for length in lengths]
        return shuffled_batches(
            lengths, config.batch_size, seed=config.seed, epoch=epoch, batch_tokens=tokens
        )

    def _count(self, epoch: int) -> int:
        """How many batches an epoch has; with a budget of tokens it depends on how the rows fall."""
        if self.config.batch_tokens is None:
            return math.ceil(len(self.train.rows) / self.config.batch_size)
        return len(self._batches(epoch))

    def _step(self, group: list[list[int]]) -> tuple[float, int]:
        """One optimizer step over a group of batches; the mean loss and the rows it was taken over."""
        rows = sum(map(len, group))
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(group):
            last = number == len(group) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                total += self._backward(batch, rows)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.clip)
        loss, size = torch.stack((total, norm.to(total.device) if norm is not None else total)).tolist()
        if not (math.isfinite(loss) and math.isfinite(size)):
            self.optimizer.zero_grad()
            raise TrainingDiverged(self._diverged(loss, size))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, rows

    def _backward(self, batch: list[int], rows: int) -> Tensor:
        """Add one batch's gradient of the group's mean loss; returns its share of that mean."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine = batch[rank::world] or batch[:1]  # a process without rows still takes part in the exchange
        inputs = batch_of([self.train.rows[i] for i in mine], pad_id(self.model), self.stems)
        inputs = {name: value.to(self.accelerator.device) for name, value in inputs.items()}
        share = len(batch[rank::world]) / rows
        loss = self.wrapped(**inputs).loss * share
        self.accelerator.backward(loss * world)  # processes' gradients are averaged, not added
        found: Tensor = loss.detach()
        if world > 1:
            found = self.accelerator.reduce(found)
        return found

    def _due(self, epoch_ended: bool) -> bool:
        every = self.config.evaluate_every
        return self.position.step == self.steps or (
            epoch_ended if every == "epoch" else self.position.step % every == 0
        )

    def _evaluate(self) -> None:
        position = self.position
        metrics = evaluate(self.model, self.validation, self.stems, rates=self.rates)
        self.model.train()
        position.history.append(
            Evaluation(
                epoch=position.epoch + (position.batch and position.batch / self.batches[position.epoch]),
                step=position.step,
                train_loss=position.loss_sum / max(position.loss_rows, 1),
                metrics=metrics,
            )
        )
        position.loss_sum, position.loss_rows = 0.0, 0
        best = None if position.best is None else position.history[position.best]
        better = best is None or self.select.key(metrics) > self.select.key(best.metrics)
        # Patience counts by the metric alone: a saturated one is not kept waiting by a loss that still falls.
        if best is None or self.select.beats(metrics, best.metrics):
            position.stale = 0
        else:
            position.stale += 1
        if better:
            position.best = len(position.history) - 1
        self._keep(len(position.history) - 1)
        self._save()
        self.reporter.evaluation(position.history[-1], self.select.metric, better)

    def _keep(self, index: int) -> None:
        """Hold on to the parameters of evaluation ``index``, for as long as it is one of the best."""
        history = self.position.history
        ranked = sorted(  # of equals the earlier one is the better one, as it is for position.best
            [*self.kept, index],
            key=lambda each: (self.select.key(history[each].metrics), -each),
            reverse=True,
        )
        wanted = ranked[: self.config.average_checkpoints]
        self.kept = {each: values for each, values in self.kept.items() if each in wanted}
        if index in wanted:
            self.kept[index] = checkpoint.snapshot(self.model)

    # ------------------------------------------------------------------------------------ saving

    def _save(self) -> None:
        self.position.seconds = time.perf_counter() - self.started
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self.draws.drawing():
                checkpoint.save(
                    self.folder,
                    model=self.model,
                    optimizer=self._adamw,
                    position=self.position,
                    kept=self.kept,
                    setting=self.setting,
                )

    def _interrupt(self) -> None:
        self._save()
        at = f"step {self.position.step} of {self.steps}"
        if self.folder is None:
            raise Interrupted(f"interrupted at {at}; nothing was saved, because no output folder was given")
        raise Interrupted(f"interrupted at {at} and saved; to go on, run the same command with --resume")

    def _diverged(self, loss: float, norm: float) -> str:
        kept = (
            "nothing was evaluated before, so no checkpoint was written"
            if self.position.best is None
            else f"the best checkpoint so far is kept in {self.folder} until another run begins"
            if self.folder is not None
            else "the model keeps the parameters from before this step"
        )
        at = f"training diverged at step {self.position.step + 1} of {self.steps}"
        return not_finite(f"{at}: loss {loss}, gradient norm {norm}", kept=kept, rates=self.rates)

    # ------------------------------------------------------------------------------------- parts

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return inner

    def _scheduler(self) -> Any:
        """The rates' schedule at the position reached; it is a pure function of the step."""
        scheduler = get_scheduler(
            self.config.schedule,
            self._adamw,
            num_warmup_steps=math.ceil(self.config.warmup * self.steps),
            num_training_steps=self.steps,
        )
        for group, rate in zip(self._adamw.param_groups, scheduler.base_lrs, strict=True):
            factor: Callable[[int], float] = scheduler.lr_lambdas[0]
            group["lr"] = rate * factor(self.position.step)
        scheduler.last_epoch = self.position.step
        return scheduler
