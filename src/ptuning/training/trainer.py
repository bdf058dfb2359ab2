"""The training loop: runs a plan on Accelerate, with batches of similar length.

The state of a run is the model, the optimizer and one :class:`Position`. A checkpoint has all three, and the
batches only depend on seed and epoch. So on the same machine, a resumed run gives the same result to the bit
as one without an interruption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ptuning.adapters.atomic import remove_folder
from ptuning.cache import root as cache_root
from ptuning.data.stems import Stems
from ptuning.data.tokens import shared, shuffled_batches
from ptuning.errors import ConfigError, TrainingDiverged
from ptuning.inference.evaluate import batch_of, pad_id
from ptuning.model.config import trains_head
from ptuning.model.drawing import Draws
from ptuning.model.ptuning import PTuningModel
from ptuning.training import checkpoint
from ptuning.training.callbacks import CallbackList, CheckpointWriter, EarlyStopping, RunState
from ptuning.training.checkpoint import Position
from ptuning.training.diagnosis import not_finite
from ptuning.training.evaluation import evaluate
from ptuning.training.extensions import NO_EXTENSIONS, Extensions
from ptuning.training.head_init import fit_head, fit_new_rows, some, starts_fitted
from ptuning.training.interrupt import Interrupted, StopRequest, stop_requests
from ptuning.training.metrics import Metrics
from ptuning.training.optimizers import learning_rates, make_optimizer, make_scheduler
from ptuning.training.plan import Plan
from ptuning.training.prepare import TrainingData
from ptuning.training.processes import any_of_each, any_process, draw_for_step, from_main, taking_time
from ptuning.training.records import Evaluation
from ptuning.training.run_cache import RunCache
from ptuning.training.selection import BestCheckpoints


class _Part(NamedTuple):
    """Rows that run in one pass, and the sum of their weights in the loss.

    Attributes:
        idle: Whether they only run because other processes have more parts, and have no part in the loss.
    """

    rows: list[int]
    weight: float
    idle: bool


class _Stopped(Exception):
    """A signal asked to stop while something was computed before the first step."""


class Trainer:
    """The training of one run, and the position that it has reached.

    Args:
        model: Created from the plan's prompt, on the accelerator's device.
        data: Tokenised for the model.
        folder: The checkpoint's folder; ``None`` to write no checkpoint.
        draws: The run's random numbers.
        extensions: The user's own parts.
    """

    def __init__(
        self,
        model: PTuningModel,
        data: TrainingData,
        plan: Plan,
        *,
        folder: Path | None,
        accelerator: Accelerator,
        draws: Draws,
        extensions: Extensions = NO_EXTENSIONS,
    ) -> None:
        self.model, self.data, self.plan, self.config = model, data, plan, plan.fit
        self.folder, self.accelerator, self.draws, self.extensions = folder, accelerator, draws, extensions
        self.position = Position()
        self.best = BestCheckpoints(
            plan.select, limit=self.config.average_checkpoints, effective_rows=plan.effective_rows
        )
        self.stems: Stems | None = None
        self.batches = [self._count(epoch) for epoch in range(self.config.num_train_epochs)]
        weights = None if model.class_weights is None else model.class_weights.tolist()
        # A loss of the user's is the mean over rows, whatever weights the model has.
        self.row_weights = model.task.kind.row_weights(
            data.train.targets, weights if extensions.loss is None else None
        )
        self.steps = sum(math.ceil(count / self.config.gradient_accumulation_steps) for count in self.batches)
        self.rates = self.config.learning_rate, self.config.head_learning_rate
        optimizer = make_optimizer(model, self.config, extensions.optimizer)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        if isinstance(self.wrapped, DistributedDataParallel):  # buffers were sent once, and never change
            self.wrapped.broadcast_buffers = False
        self._inner: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        self.parameters = list(model.task_parameters().values())
        self.state = RunState(
            model,
            plan,
            self.position,
            self.batches,
            total_steps=self.steps,
            folder=None if folder is None else folder.parent,
            is_main_process=accelerator.is_main_process,
        )
        self.callbacks = CallbackList(
            [
                *([] if folder is None else [CheckpointWriter(self._write)]),
                *([] if self.config.patience is None else [EarlyStopping(self.config.patience)]),
                *extensions.callbacks.callbacks,
            ]
        )
        self.state._on_log = lambda values: self.callbacks.on_log(self.state, values)
        self.started = time.perf_counter()

    # ----------------------------------------------------------------------------------- running

    def resume(self) -> None:
        """Continue from the checkpoint."""
        assert self.folder is not None
        if not self.folder.exists():
            raise ConfigError(
                f"nothing to resume: there is no {self.folder}", remedy="leave --resume out to start"
            )
        with self.draws.drawing():  # loading sets the random state
            position, self.best.kept = checkpoint.load(
                self.folder, model=self.model, optimizer=self._inner, setting=self.plan.setting
            )
        vars(self.position).update(vars(position))
        if not self.position.possible(self.batches, self.steps):
            raise checkpoint.cannot_resume(self.folder, "this run has no such step")
        self.started = time.perf_counter() - self.position.seconds

    def remove_checkpoint(self) -> None:
        """Remove the checkpoint of the previous run."""
        if self.folder is not None and self.accelerator.is_main_process:
            remove_folder(self.folder)

    def train(self, cache: RunCache) -> bool:
        """Train to the last step, or until a callback stops the run; returns whether one did.

        At the end the model has the parameters of the last step.
        """
        with stop_requests() as stop, self._training_state():
            self.callbacks.on_train_begin(self.state)
            self._cache_stems(cache, stop)
            if not self.position.history and not self.position.step:
                self._start(stop)
            return self._until_done(stop)

    def average(self) -> list[int]:
        """Set the model to the mean of the best evaluations' parameters; returns the indices of those."""
        assert self.position.best is not None  # the last step of a run is always followed by an evaluation
        history = self.position.history
        before = history[0].metrics if self.plan.start is not None and history[0].step == 0 else None
        return self.best.restore(self.model, history, self.position.best, self._measure, before)

    @contextmanager
    def _training_state(self) -> Iterator[None]:
        """In the ``with`` block the model has the settings that training needs."""
        model, dropout = self.model, self.model.backbone.dropout
        model.backbone.dropout = self.config.backbone_dropout
        model.check_loss = False  # the loop checks loss and gradient together, in all processes
        try:
            yield
        finally:
            model.check_loss, model.backbone.dropout = True, dropout

    def _cache_stems(self, cache: RunCache, stop: StopRequest) -> None:
        """Run the layers below the first prompt once per text and cache their output, if there are any."""
        engine = self.model.backbone.engine
        if self.model.stem_layer == 0 or not engine.reuse_stem:
            return
        start, accelerator = time.perf_counter(), self.accelerator
        splits, mapped = (self.data.train, self.data.validation), accelerator.num_processes > 1
        # With a cache on disk, one process of each machine fills it while the others wait.
        on_disk = cache_root() is not None and engine.stem_disk > 0
        first = accelerator.is_local_main_process or not on_disk
        for turn in (True, False):
            finished = True
            with taking_time(accelerator), suppress(_Stopped):  # else the others would wait without end
                if first == turn:
                    finished = False
                    self.stems = cache.stems(self.model, splits, self._progress("stem", stop), mapped=mapped)
                    finished = True
            self._interrupt_if_any(not finished)
            if any_process(accelerator, first == turn and self.stems is None):
                self.stems = None  # there is no room for it, so the others need not try
                break
        if self.stems is None:
            self.callbacks.on_message(
                "the outputs of the layers below the first prompt need more than engine.stem_memory "
                f"({engine.stem_memory:g} GiB) and engine.stem_disk ({engine.stem_disk:g} GiB), or more than "
                "the free disk space, so these layers run in every epoch"
            )
        self.position.train_seconds += time.perf_counter() - start

    def _start(self, stop: StopRequest) -> None:
        """Fit a head that starts fitted. Evaluate if there is something to keep before the first step: with a
        cloze head, the model answers before it has learned.
        """
        warm = self.plan.start
        fitted = starts_fitted(self.model, warm)
        if not fitted and warm is None and self.model.cloze is None:
            return
        start, rows = time.perf_counter(), some(self.data.train)
        loss, finished = math.nan, False
        with suppress(_Stopped):
            if fitted:
                loss = fit_head(self.model, rows, self._progress("head", stop), self.extensions)
            else:
                if warm is not None and warm.new_rows and trains_head(self.model.prompt_config):
                    fit_new_rows(self.model, rows, warm.new_rows, self._progress("head", stop))
                loss = evaluate(self.model, rows, self.stems, extensions=self.extensions)["loss"]
            finished = True
        self._interrupt_if_any(not finished)
        if self.accelerator.num_processes > 1:  # each process has fitted it, with its own rounding
            head = self.model.head
            head.copy_({name: broadcast(value.detach().clone()) for name, value in head.named().items()})
        loss = from_main(self.accelerator, loss)
        self.position.train_seconds += time.perf_counter() - start
        if math.isfinite(loss):
            self.position.loss_sum, self.position.loss_rows = loss, 1
            self._evaluate()
            self._agree(stop)
            self._save_if_asked()

    def _progress(self, what: str, stop: StopRequest) -> Callable[[int, int], None]:
        def on_rows(done: int, total: int) -> None:
            self.callbacks.on_progress(what, done, total)
            if stop.made:
                raise _Stopped

        return on_rows

    def _until_done(self, stop: StopRequest) -> bool:
        custom = self.extensions.lr_scheduler
        position, state = self.position, self.state
        scheduler = make_scheduler(self._inner, self.config, custom, step=position.step, steps=self.steps)
        self.model.train()
        self._agree(stop)
        while position.epoch < self.config.num_train_epochs and not state.should_stop:
            for group in self._groups():
                start = time.perf_counter()
                with self.draws.drawing():
                    loss, rows = self._step(group)
                scheduler.step()
                position.took(loss, rows, batches=len(group), seconds=time.perf_counter() - start)
                state.loss, state.learning_rates = loss, learning_rates(self._inner)
                self.callbacks.on_step_end(state)
                interrupted = self._after_step(stop)
                if state.should_stop:
                    break
                if interrupted and position.step < self.steps:
                    self._interrupt()
        if not position.history or position.history[-1].step != position.step:  # stopped between evaluations
            self._evaluate()
            self._agree(stop)
            self._save_if_asked()
        return position.step < self.steps

    def _after_step(self, stop: StopRequest) -> bool:
        """Whatever is due after a step: the end of an epoch, an evaluation, a checkpoint.

        Returns:
            Whether a signal asked to stop.
        """
        position, state = self.position, self.state
        epoch_ended = position.batch >= self.batches[position.epoch]
        if epoch_ended:
            position.epoch, position.batch = position.epoch + 1, 0
            self.callbacks.on_epoch_end(state)
        interrupted = self._agree(stop)
        if state.should_evaluate or self._due(epoch_ended):
            state.should_evaluate = False
            self._evaluate()
            interrupted = self._agree(stop)
        if self._save_if_asked():
            interrupted = self._agree(stop)
        return interrupted

    def _agree(self, stop: StopRequest) -> bool:
        """Share what callbacks ask for in any process; returns whether a signal asked to stop any of them.

        Called after callbacks ran, at the same points in every process, whatever callbacks it has.
        """
        state = self.state
        asked = state.should_evaluate, state.should_save, state.should_stop, stop.made
        found = any_of_each(self.accelerator, asked)
        state.should_evaluate, state.should_save, state.should_stop, interrupted = found
        return interrupted

    def _due(self, epoch_ended: bool) -> bool:
        every = self.config.evaluate_every
        return self.position.step == self.steps or (
            epoch_ended if every == "epoch" else self.position.step % every == 0
        )

    # ------------------------------------------------------------------------------------- steps

    def _groups(self) -> Iterator[list[list[int]]]:
        """The rest of this epoch: for each optimizer step, its batches of row numbers."""
        position, size = self.position, self.config.gradient_accumulation_steps
        batches = self._batches(position.epoch)[position.batch :]
        for at in range(0, len(batches), size):
            yield batches[at : at + size]

    def _batches(self, epoch: int) -> list[list[int]]:
        """An epoch's batches of row numbers."""
        config = self.config
        lengths, tokens = self.data.train.lengths, config.batch_tokens
        if tokens is not None:  # including the tokens that an input prompt adds
            lengths = [row.places(self.model.inserted_tokens) for row in self.data.train.rows]
        return shuffled_batches(
            lengths, config.batch_size, seed=config.seed, epoch=epoch, batch_tokens=tokens
        )

    def _count(self, epoch: int) -> int:
        """The number of batches in an epoch; with ``batch_tokens`` it depends on the shuffling."""
        if self.config.batch_tokens is None:
            return math.ceil(len(self.data.train.rows) / self.config.batch_size)
        return len(self._batches(epoch))

    def _step(self, group: list[list[int]]) -> tuple[float, int]:
        """One optimizer step over a group of batches; returns the mean loss and the number of rows."""
        draw_for_step(self.accelerator, self.config.seed, self.position.step)
        rows = [row for batch in group for row in batch]
        weight = self.row_weights[rows].sum()
        parts = [part for batch in group for part in self._parts(batch)]
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                total += self._backward(part, float(part.weight / weight))
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total)
        loss, size = torch.stack((total, norm.to(total.device) if norm is not None else total)).tolist()
        if not (math.isfinite(loss) and math.isfinite(size)):
            self.optimizer.zero_grad()
            raise self._diverged(loss, size)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, len(rows)

    def _parts(self, batch: list[int]) -> list[_Part]:
        """The rows of a batch that this process runs, in parts after one another, so that long texts need no
        more memory than a batch of cut texts, or than one row with all its windows.

        A process without rows runs one that does not count, because each part is synchronised.
        """
        windows = {row: len(self.data.train.rows[row].windows) for row in batch}
        shares = shared(batch, windows, self.config.batch_size, self.accelerator.num_processes)
        idle = [min(batch, key=windows.__getitem__)]
        own = shares[self.accelerator.process_index]
        return [_Part(rows or idle, float(self.row_weights[rows].sum()), idle=not rows) for rows in own]

    def _backward(self, part: _Part, share: float) -> Tensor:
        """Add a part's gradient; returns the part's share of the group's mean loss."""
        world = self.accelerator.num_processes
        inputs = batch_of([self.data.train.rows[i] for i in part.rows], pad_id(self.model), self.stems)
        inputs = {name: value.to(self.accelerator.device) for name, value in inputs.items()}
        loss = self._nothing(inputs) if part.idle else self._loss(inputs) * share
        self.accelerator.backward(loss * world)  # Accelerate averages over processes, and a sum is needed
        return loss.detach()

    def _nothing(self, inputs: dict[str, Tensor]) -> Tensor:
        """0, with a gradient of 0: a loss, were it not finite, would not become 0 by a factor."""
        del inputs["labels"]
        logits: Tensor = self.wrapped(**inputs).logits
        return logits.sum() * 0

    def _loss(self, inputs: dict[str, Tensor]) -> Tensor:
        if self.extensions.loss is None:
            found: Tensor = self.wrapped(**inputs).loss
            return found
        labels = inputs.pop("labels")
        logits = self.wrapped(**inputs).logits
        return self.extensions.loss_of(logits, labels, self.model.task)

    # ------------------------------------------------------------------- evaluations and checkpoints

    def _measure(self) -> Metrics:
        found = evaluate(
            self.model,
            self.data.validation,
            self.stems,
            rates=self.rates,
            extensions=self.extensions,
            accelerator=self.accelerator,
        )
        return from_main(self.accelerator, found)

    def _evaluate(self) -> None:
        position, select = self.position, self.plan.select
        metrics = self._measure()
        self.model.train()
        position.history.append(
            Evaluation(
                epoch=self.state.epoch,
                step=position.step,
                train_loss=position.loss_sum / max(position.loss_rows, 1),
                metrics=metrics,
            )
        )
        position.loss_sum, position.loss_rows = 0.0, 0
        best = None if position.best is None else position.history[position.best]
        # Patience only uses the metric: if it is saturated, a loss that still falls does not prolong the run.
        if best is None or select.beats(metrics, best.metrics):
            position.stale = 0
        else:
            position.stale += 1
        if best is None or select.key(metrics) > select.key(best.metrics):
            position.best = len(position.history) - 1
        self.best.offer(len(position.history) - 1, position.history, self.model)
        self.callbacks.on_evaluate(self.state)

    def _save_if_asked(self) -> bool:
        """Save if a callback asked for it; returns whether one did."""
        if not self.state.should_save:
            return False
        self.state.should_save = False
        self._save()
        return True

    def _save(self) -> None:
        self.position.seconds = time.perf_counter() - self.started
        if self.folder is not None:
            self.callbacks.on_save(self.state)

    def _write(self) -> None:
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self.draws.drawing():
                checkpoint.save(
                    self.folder,
                    model=self.model,
                    optimizer=self._inner,
                    position=self.position,
                    kept=self.best.kept,
                    setting=self.plan.setting,
                )

    def _interrupt_if_any(self, stopped: bool) -> None:
        """Interrupt the run if any process has ``stopped``."""
        if any_process(self.accelerator, stopped):
            self._interrupt()

    def _interrupt(self) -> None:
        self._save()
        self.accelerator.wait_for_everyone()  # a launcher ends all processes soon after the first has ended
        at = f"step {self.position.step} of {self.steps}"
        if self.folder is None:
            raise Interrupted(f"interrupted at {at}; nothing was saved, because no output folder was given")
        raise Interrupted(f"interrupted at {at} and saved; to continue, run the same command with --resume")

    def _diverged(self, loss: float, norm: float) -> TrainingDiverged:
        kept = (
            "there was no evaluation yet, so no checkpoint was written"
            if self.position.best is None
            else f"the best checkpoint so far is kept in {self.folder} until another run starts"
            if self.folder is not None
            else "the model keeps the parameters from before this step"
        )
        return not_finite(
            f"training diverged at step {self.position.step + 1} of {self.steps}",
            got=f"loss {loss}, gradient norm {norm}",
            kept=kept,
            rates=self.rates,
        )
