"""One measurement in a process of its own: ``python benchmarks/worker.py --json-spec '{…}'``.

The last line that it prints is the result, as JSON. Models are loaded and rows are tokenised before a clock
runs; what ptuning or the Trainer does from the call on is measured, evaluation aside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import floor
from ptuning import FitConfig, PTuningModel, fit
from ptuning.data.tokens import TokenRow, sorted_batches
from ptuning.inference.evaluate import logits_of
from ptuning.model.architectures import ARCHITECTURES
from ptuning.training.callbacks import Callback, RunState
from sides import VIRTUAL_TOKENS, peer_model, ptuning_model, side_of
from specs import Spec
from texts import Row, made_rows, rows_of

EVALUATED = 2
"""Validation rows of ptuning's loop, which wants some; the time that they take is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json-spec", required=True, help="the fields of specs.py's Spec")
    print(json.dumps(measure(Spec.from_json(parser.parse_args().json_spec))), flush=True)


def measure(spec: Spec) -> dict[str, Any]:
    """What ``spec`` asks for."""
    set_seed(0)
    if spec.what in ("training floor", "inference floor"):
        return floor_of(spec)
    memory = Memory()
    config = AutoConfig.from_pretrained(spec.folder)
    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer or spec.folder)
    architecture = ARCHITECTURES[config.model_type]
    split = "train" if spec.what == "training" else "test"
    if spec.data == "made":
        rows = made_rows(spec.rows, spec.length, min(config.vocab_size, len(tokenizer)))
    else:
        # RoBERTa's architecture has segments, most of its models have one only.
        segments = architecture.segments and config.type_vocab_size > 1
        rows = rows_of(spec.data, split, spec.rows, tokenizer, segments=segments)
    side = side_of(spec.side)
    model: Any = (
        ptuning_model(side, Path(spec.folder), spec.precision, tokenizer)
        if side.kind == "ptuning"
        else peer_model(side, Path(spec.folder))
    )
    memory.loaded()
    quiet = Quiet()
    if spec.what == "training":
        found = (
            train_ptuning(model, rows, spec)
            if side.kind == "ptuning"
            else train_peer(model, rows, spec, tokenizer)
        )
    elif side.kind == "ptuning":
        found = infer_ptuning(model, rows, spec)
    elif side.by_hand:
        found = infer_by_hand(model, rows, spec, tokenizer)
    else:
        found = infer_with_trainer(model, rows, spec, tokenizer)
    return {
        **found,
        "rows": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "threads": torch.get_num_threads(),
        **memory.peak(),
        **quiet.found(),
    }


# ----------------------------------------------------------------------------------------- training


class Stopwatch(Callback):
    """Both a ``Callback`` of ptuning's and what the Trainer's callback writes to: when each epoch ended.

    The first epoch begins with the call of ``fit`` or ``train``, so whatever either does before its first
    step is in it, a stem that is computed once included; a later one begins when the evaluation before it
    is over.
    """

    def __init__(self, epoch_steps: int) -> None:
        self.epoch_steps = epoch_steps
        self.steps = 0
        self.first_step: float | None = None
        self.stemmed: float | None = None
        self.ends: list[float] = []
        self.resumed: list[float] = []
        self.evaluating = 0.0
        self.loss = 0.0
        self.called = clock()

    def on_progress(self, what: str, done: int, total: int) -> None:
        if what == "stem" and done == total and self.stemmed is None:  # a second time is the validation rows'
            self.stemmed = clock()

    def on_step_end(self, state: RunState) -> None:
        self.loss = state.loss or 0.0
        self.stepped()

    def on_evaluate(self, state: RunState) -> None:
        self.over = clock()
        self.resumed.append(self.over)
        self.evaluating += self.over - self.ends[-1]

    def stepped(self) -> None:
        """An optimizer step is done."""
        self.steps += 1
        if self.first_step is None:
            self.first_step = clock()
        if self.steps % self.epoch_steps == 0:
            self.ends.append(clock())

    def found(self, rows: int, epochs: int, returned: float) -> dict[str, Any]:
        """The result, once the call has returned."""
        assert len(self.ends) == epochs, f"{self.steps} steps, {epochs} epochs of {self.epoch_steps} wanted"
        starts = [self.called, *(self.resumed or self.ends)][:epochs]
        epoch_seconds = [end - start for start, end in zip(starts, self.ends, strict=True)]
        later = epoch_seconds[1:] or epoch_seconds
        seconds = sum(later) / len(later)
        wall = returned - self.called
        return {
            "epoch_seconds": epoch_seconds,
            "first_epoch_seconds": epoch_seconds[0],
            "later_epoch_seconds": seconds,
            "first_examples_per_second": rows / epoch_seconds[0],
            "examples_per_second": rows / seconds,
            "to_first_step_seconds": (self.first_step or returned) - self.called,
            "to_stem_seconds": None if self.stemmed is None else self.stemmed - self.called,
            "steps": self.steps,
            "wall_seconds": wall,
            "wall_seconds_but_evaluation": wall - self.evaluating,
        }


def clock() -> float:
    """Seconds, once an accelerator has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def train_ptuning(model: PTuningModel, rows: list[Row], spec: Spec) -> dict[str, Any]:
    """``ptuning.fit``, evaluation aside."""
    config = FitConfig(epochs=spec.epochs, batch_size=spec.batch_size, seed=0)
    watch = Stopwatch(-(-len(rows) // spec.batch_size))
    fit(model, {"train": rows, "validation": rows[:EVALUATED]}, config, callbacks=[watch])
    returned = clock()
    watch.evaluating += returned - watch.over  # the best parameters' last evaluation
    found = watch.found(len(rows), spec.epochs, returned)
    return {**found, "trained": model.num_parameters(only_trainable=True), "loss": watch.loss}


class _Told(TrainerCallback):
    """Tells a stopwatch of the Trainer's steps."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.watch.stepped()


def train_peer(model: Any, rows: list[Row], spec: Spec, tokenizer: Any) -> dict[str, Any]:
    """``transformers.Trainer`` without evaluation, logs or checkpoints."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(model, spec, tokenizer, scratch, train_dataset=_dataset(rows))
        watch = Stopwatch(-(-len(rows) // spec.batch_size))
        trainer.add_callback(_Told(watch))
        output = trainer.train()
        returned = clock()
    found = watch.found(len(rows), spec.epochs, returned)
    return {**found, "trained": _trained(model), "loss": output.training_loss}


def _trainer(model: Any, spec: Spec, tokenizer: Any, scratch: str, **given: Any) -> Trainer:
    side = side_of(spec.side)
    arguments = TrainingArguments(
        output_dir=scratch,
        learning_rate=1e-3 if side.kind == "peft" else 2e-5,
        weight_decay=0.01,
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
        bf16=spec.precision == "bf16",  # autocast, in evaluation too
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if side.grouped else "random",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        seed=0,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    collator = DataCollatorWithPadding(tokenizer=tokenizer, padding="longest")
    return Trainer(model=model, args=arguments, processing_class=tokenizer, data_collator=collator, **given)


def _trained(model: Any) -> int:
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def _dataset(rows: list[Row]) -> Dataset:
    return Dataset.from_list([_for_peers(row) for row in rows])


def _for_peers(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "segment_ids"}


# ---------------------------------------------------------------------------------------- inference


def infer_ptuning(model: PTuningModel, rows: list[Row], spec: Spec) -> dict[str, Any]:
    """``logits_of``, which is what evaluation and ``Predictor`` run."""
    given = [
        TokenRow(
            input_ids=row["input_ids"],
            token_type_ids=row.get("token_type_ids"),
            segment_ids=row["segment_ids"] if model.needs_segments else None,
        )
        for row in rows
    ]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    passes = [_pass(lambda: logits_of(model, given, batch_size=spec.batch_size)) for _ in range(spec.epochs)]
    return _passes(passes, len(rows), model.num_parameters(only_trainable=True))


def infer_with_trainer(model: Any, rows: list[Row], spec: Spec, tokenizer: Any) -> dict[str, Any]:
    """``Trainer.predict``: rows in their order, each batch padded to its longest."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(model, spec, tokenizer, scratch)
        data = _dataset(rows)
        passes = [_pass(lambda: trainer.predict(data)) for _ in range(spec.epochs)]
    return _passes(passes, len(rows), _trained(model))


def infer_by_hand(model: Any, rows: list[Row], spec: Spec, tokenizer: Any) -> dict[str, Any]:
    """The loop that someone writes who wants it quick: batches by length, no gradients, autocast."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    given = [{k: v for k, v in _for_peers(row).items() if k != "labels"} for row in rows]
    batches = sorted_batches([len(row["input_ids"]) for row in rows], spec.batch_size)

    def once() -> None:
        for batch in batches:
            inputs = tokenizer.pad([given[i] for i in batch], padding="longest", return_tensors="pt")
            _ = model(**inputs.to(device)).logits.float().cpu()

    with torch.inference_mode(), _autocast(spec):
        passes = [_pass(once) for _ in range(spec.epochs)]
    return _passes(passes, len(rows), _trained(model))


def _autocast(spec: Spec) -> Any:
    if spec.precision == "fp32":
        return nullcontext()
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16)


def _pass(run: Any) -> float:
    began = clock()
    run()
    return clock() - began


def _passes(seconds: Sequence[float], rows: int, trained: int) -> dict[str, Any]:
    later = list(seconds[1:]) or list(seconds)
    mean = sum(later) / len(later)
    return {
        "epoch_seconds": list(seconds),
        "first_epoch_seconds": seconds[0],
        "later_epoch_seconds": mean,
        "first_examples_per_second": rows / seconds[0],
        "examples_per_second": rows / mean,
        "trained": trained,
    }


# ------------------------------------------------------------------------------- floor and memory


def floor_of(spec: Spec) -> dict[str, Any]:
    """Seconds an example of each prompt's floor, at a row's typical length."""
    config = AutoConfig.from_pretrained(spec.folder)
    training = spec.what == "training floor"
    plans = {
        prompt: floor.plan(config, prompt, spec.batch_size, spec.length, VIRTUAL_TOKENS, training=training)
        for prompt in ("input", "deep", "upper")
    }
    return floor.measure(plans, spec.precision, spec.batch_size, spend=spec.spend)


class Quiet:
    """Whether the machine was this process's own: what share of all cores' time went elsewhere meanwhile."""

    def __init__(self) -> None:
        self.began, self.own = _cores(), time.process_time()

    def found(self) -> dict[str, Any]:
        """``others``: other processes' share; ``stolen``: what a host gave to other guests. Linux alone."""
        now, own = _cores(), time.process_time() - self.own
        busy, stolen, whole = (after - before for before, after in zip(self.began, now, strict=True))
        if whole <= 0:
            return {}
        return {
            "others": round(max(0.0, busy - own) / whole, 3),
            "stolen": round(stolen / whole, 3),
        }


def _cores() -> tuple[float, float, float]:
    """Seconds of all cores since the start: busy, stolen, and all together."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0, 0.0
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, waiting, irq, soft, stolen = ticks
    return (
        user + nice + system + irq + soft,
        stolen,
        sum((idle, waiting, user, nice, system, irq, soft, stolen)),
    )


class Memory:
    """This process's memory in MiB: after the imports, after loading, and the peak from then on."""

    def __init__(self) -> None:
        self.before = _resident("VmRSS")
        self.peak_before = 0.0

    def loaded(self) -> None:
        """The model is there: what it held while loading is put down, and the peak starts anew."""
        self.after = _resident("VmRSS")
        self.peak_before = _resident("VmHWM")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark begins again
            self.cleared = True
        except OSError:
            self.cleared = False
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, Any]:
        peak = _resident("VmHWM")
        found = {
            "memory_imports": self.before,
            "memory_loaded": self.after,
            "memory_loading_peak": self.peak_before,
            "memory_peak": peak if self.cleared else None,
            "memory_peak_over_imports": peak - self.before if self.cleared else None,
            "memory_process_peak": max(peak, self.peak_before),
        }
        if torch.cuda.is_available():
            found["cuda_peak"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return found


def _resident(field: str) -> float:
    """MiB of ``/proc/self/status``; elsewhere the process's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    main()
