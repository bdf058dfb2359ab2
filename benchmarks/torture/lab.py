"""What the campaigns work on: a tiny random backbone, small data, finished and unfinished runs; made once."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ptuning import Predictor, PTuningModel, adapters, cli
from ptuning.errors import PTuningError
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import TrainConfig
from ptuning.training.interrupt import Interrupted
from ptuning.training.run import train
from torture.trials import NotHeld

WORDS = [
    "the",
    "a",
    "parcel",
    "film",
    "bill",
    "refund",
    "late",
    "broken",
    "lovely",
    "dull",
    "great",
    "bad",
    "good",
    "poor",
    "fine",
    "awful",
    "where",
    "is",
    "my",
    "it",
    "was",
    "very",
    "not",
    "so",
    "and",
    "or",
    "new",
    "old",
    "phone",
    "card",
    "line",
]
NEW: Mapping[str, Any] = {"seed": 0, "epochs": 3}
"""The run that is killed, stopped and gone on from."""
OLD: Mapping[str, Any] = {"seed": 7, "epochs": 1}
"""The run whose adapter may stand where that one writes."""
WEIGHTS = "adapter_model.safetensors"
RECORD = "ptuning.json"
TEXTS = ["a great film", "awful bill", "where is my parcel and the new phone card"]


# --------------------------------------------------------------------------------------- the lab


@dataclass(frozen=True)
class Lab:
    """The folders and models that trials copy and use, and never change.

    Attributes:
        root: Holds all of it.
        reference: The adapter of :data:`NEW`'s run, never disturbed.
        old: The adapter of :data:`OLD`'s run, with its run folder.
        stopped: ``NAME`` of a run that was interrupted in the middle: only ``NAME.run`` is there.
        units: An adapter with virtual units, and a head that reads a mix of layers.
        model: The reference, loaded; its backbone is shared by what else is loaded.
        seconds: A run of :data:`NEW`.
    """

    root: Path
    seconds: float
    model: PTuningModel

    @property
    def backbone(self) -> Path:
        return self.root / "backbone"

    @property
    def train(self) -> Path:
        return self.root / "train.csv"

    @property
    def validation(self) -> Path:
        return self.root / "validation.csv"

    @property
    def few(self) -> Path:
        return self.root / "few.csv"

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    @property
    def old(self) -> Path:
        return self.root / "old"

    @property
    def stopped(self) -> Path:
        return self.root / "stopped"

    @property
    def units(self) -> Path:
        return self.root / "units"

    def load(self, folder: Path | str, **more: Any) -> PTuningModel:
        """An adapter on the lab's backbone."""
        return PTuningModel.from_pretrained(
            folder, backbone=self.model.backbone, tokenizer=self.model.tokenizer, **more
        )

    def config(self, output: Path, **over: Any) -> TrainConfig:
        return _config(self.root, output, **over)

    def argv(self, output: Path, *more: str, fit: Mapping[str, Any] = NEW) -> list[str]:
        """A command line of ``ptuning train``."""
        return ["train", *_options(_settings(self.root, output, fit=fit)), *more]


@contextmanager
def made() -> Iterator[Lab]:
    """A lab in a temporary folder, which goes when this ends."""
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        root = Path(name).resolve()
        os.environ["PTUNING_CACHE"] = str(root / "cache")
        transformers_logging.disable_progress_bar()
        make_backbone(root / "backbone")
        make_rows(root / "train.csv", 40, seed=0)
        make_rows(root / "validation.csv", 20, seed=1)
        make_rows(root / "few.csv", 8, seed=2)
        # in a child, so that nothing that training starts in a process is forked later
        ended(fork(lambda: _prepare(root)), 300, must=0)
        seconds = float((root / "seconds").read_text())
        lab = Lab(root, seconds, PTuningModel.from_pretrained(root / "reference"))
        gc.collect()
        gc.freeze()  # the trials are forks, which would look at all of this, and copy it
        yield lab


def _prepare(root: Path) -> None:
    train(_config(root, root / "old", fit=OLD))
    began = time.monotonic()
    train(_config(root, root / "reference", fit=NEW))
    (root / "seconds").write_text(str(time.monotonic() - began))
    with suppress(Interrupted):
        train(_config(root, root / "stopped", fit=NEW), callbacks=[StopAt(7)])
    read_more = {"pooling": "layers", "num_virtual_units": 5, "num_queries": 2}
    train(_config(root, root / "units", fit=OLD, prompt=read_more))


class StopAt(Callback):
    """Ctrl-C at a step."""

    def __init__(self, at: int) -> None:
        self._at = at

    def on_step_end(self, state: RunState) -> None:
        if state.step == self._at:
            os.kill(os.getpid(), signal.SIGINT)


def make_backbone(folder: Path, layers: int = 3) -> Path:
    """A random BERT with a tokenizer of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    named = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **named,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts that a word makes ``pos`` or ``neg``."""
    draw = Random(seed)
    made = []
    for number in range(count):
        words = draw.choices(WORDS[:10] + WORDS[16:], k=draw.randint(3, 9))
        good = number % 2 == 1
        words.append(draw.choice(["great", "good"] if good else ["bad", "poor"]))
        made.append({"text": f"{' '.join(words)} {number}", "label": "pos" if good else "neg"})
    return made


def make_rows(file: Path, count: int, seed: int) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, ["text", "label"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows(count, seed))
    return file


def _settings(root: Path, output: Path, **over: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "data": {"train": str(root / "train.csv"), "validation": str(root / "validation.csv")},
        "output": str(output),
        "report": False,
        "backbone": str(root / "backbone"),
        "precision": "fp32",
        "device": "cpu",
        "prompt": {
            "depth": "deep",
            "num_virtual_tokens": 4,
            "first_layer": 1,
            "pooling": "native",
            "num_virtual_units": 0,
        },
        "fit": {"batch_size": 8, "evaluate_every": 2, "prompt_rate": 0.02, "head_rate": 0.01},
    }
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **value} if both else value
    return base


def _config(root: Path, output: Path, **over: Any) -> TrainConfig:
    return TrainConfig.checked(_settings(root, output, **over))


def _options(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _options(value, f"{above}{name}.")
        else:
            yield f"--{above}{name}={value}"


# --------------------------------------------------------------------------------- what is asked


def weights(folder: Path) -> str:
    """Tells the trained tensors of one adapter from another's, to the bit."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def state(folder: Path) -> str:
    """``absent``, or the :func:`weights` of a whole adapter.

    Raises:
        NotHeld: something else stands there.
    """
    if not folder.exists():
        return "absent"
    try:
        adapters.verify(folder)
    except PTuningError as error:
        raise NotHeld(f"{folder.name} is broken: {error}") from error
    return weights(folder)


def strays(place: Path) -> list[str]:
    """Hidden files and folders below a place: what a process wrote in passing and left."""
    return sorted(str(file.relative_to(place)) for file in place.rglob(".*"))


def held(claim: object, why: str) -> None:
    """Refuse what is not so.

    Raises:
        NotHeld: with the reason.
    """
    if not claim:
        raise NotHeld(why)


def answers(model: PTuningModel, texts: Sequence[str] = TEXTS) -> list[tuple[float, ...]]:
    """The probabilities of each text."""
    return [tuple(chance for _, chance in found.probabilities) for found in Predictor(model=model)(texts)]


def same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    """Whether answers are those expected, but for the last bits that another batch may change."""
    return len(found) == len(expected) and all(
        len(one) == len(other) and all(abs(a - b) < 1e-5 for a, b in zip(one, other, strict=True))
        for one, other in zip(found, expected, strict=True)
    )


def refused(work: Callable[[], object]) -> str | None:
    """What ptuning says against it, in one line; ``None`` where it was taken. Anything else is raised."""
    try:
        work()
    except PTuningError as error:
        held("\n" not in str(error).strip(), f"refused in several lines: {error}")
        return str(error)
    return None


def go_on(run: Callable[[bool], object]) -> None:
    """What a user does after a run that did not end: ``--resume``; if that is refused, the plain command.

    Raises:
        NotHeld: both are refused.
    """
    try:
        run(True)
    except PTuningError as resuming:
        try:
            run(False)
        except PTuningError as plain:
            raise NotHeld(f"stuck: --resume says: {resuming}; the plain command: {plain}") from None


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda record: None) -> None:
    """Write ``ptuning.json`` anew, its digests included, as anybody can who has read docs/formats.md."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    record.pop("sha256_self")
    for name in record["files"]:
        if (folder / name).is_file():
            record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    change(record)
    (folder / RECORD).write_bytes(sealed(json.dumps({**record, "sha256_self": "0" * 64}, indent=2) + "\n"))


def sealed(text: str) -> bytes:
    """A record whose last digest, blank, is filled in."""
    before, after = text.rsplit("0" * 64, 1)
    return f"{before}{hashlib.sha256(text.encode()).hexdigest()}{after}".encode()


def tensors_of(file: Path) -> dict[str, Tensor]:
    return safetensors.load(file.read_bytes())


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    file.write_bytes(safetensors.save({name: value.contiguous() for name, value in tensors.items()}))


# ------------------------------------------------------------------------------ other processes


def fork(work: Callable[[], object], log: Path | None = None) -> int:
    """Do ``work`` in a child; its process id. What the child prints goes to ``log``, or nowhere.

    The child's exit code is 0, the work's own where it gives one, or 99 with a traceback in the log.
    """
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        handle = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for standard in (1, 2):
            os.dup2(handle, standard)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        got = work()
        code = got if isinstance(got, int) else 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def ended(child: int, limit: float = 60.0, must: int | None = None) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it.

    Raises:
        NotHeld: it did not end in time, or not as it ``must``.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            held(must is None or code == must, f"a child ended with {code}, expected {must}")
            return code
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise NotHeld(f"a process hangs: not done after {limit:.0f} s")


def console(argv: Sequence[str]) -> Callable[[], object]:
    """The program's entry point with a command line; for :func:`fork`."""

    def work() -> None:
        sys.argv = ["ptuning", *argv]
        cli.console()

    return work


# ---------------------------------------------------------------------------------- the program


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last thing it said."""
        return (self.err.strip() or self.out.strip() or "nothing").splitlines()[-1]


def command(argv: Sequence[str], stdin: Path | None = None) -> Ran:
    """A command in this process, its standard streams to files and back.

    Raises:
        Exception: what would be a traceback.
    """
    saved = [os.dup(n) for n in range(3)]
    outside = sys.stdin, sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            source = os.open(stdin or os.devnull, os.O_RDONLY)
            for standard, handle in enumerate((source, out.fileno(), err.fileno())):
                os.dup2(handle, standard)
            os.close(source)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            code = cli.main(list(argv))
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for standard, handle in enumerate(saved):
                os.dup2(handle, standard)
                os.close(handle)
            sys.stdin, sys.stdout, sys.stderr = outside
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "backslashreplace"))
    return Ran(code, *texts)


CONTROL = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {9, 10, 13}
"""What a terminal may obey, or show in another order, instead of printing it."""


def check(
    ran: Ran, codes: Sequence[int] = (0, 2), nothing_at: Sequence[Path] = (), said: Sequence[int] = (1, 2)
) -> None:
    """What holds of every command, whatever it was given.

    Args:
        codes: The exit codes that are right here.
        nothing_at: Where nothing may stand unless it was done.
        said: The exit codes that go with a sentence.
    """
    held("Traceback (most" not in ran.err + ran.out, f"a traceback: {ran.said}")
    held(ran.code in codes, f"exit code {ran.code}, expected {' or '.join(map(str, codes))}: {ran.said}")
    if ran.code in said:
        lines = [line for line in ran.err.splitlines() if line.startswith("ptuning: error:")]
        held(len(lines) == 1, f"{len(lines)} error messages, expected 1: {ran.said}")
        held(len(lines[0]) < 4000, f"an error of {len(lines[0])} characters: {lines[0][:200]}")
    odd = sorted({hex(ord(letter)) for letter in ran.out + ran.err if ord(letter) in CONTROL})
    held(not odd, f"control characters printed: {', '.join(odd)}")
    if ran.code != 0:
        left = [place.name for place in nothing_at if place.exists()]
        held(not left, f"exit code {ran.code}, but {left} stands there")


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, symlinks=True)
    return target


def copy_run(source: Path, target: Path) -> Path:
    """An adapter and its run folder, as far as they are there."""
    for suffix in ("", ".run"):
        if Path(f"{source}{suffix}").exists():
            copy(Path(f"{source}{suffix}"), Path(f"{target}{suffix}"))
    return target
