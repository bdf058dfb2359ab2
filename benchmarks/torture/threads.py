"""Threads, forks, pickles and copies on one backbone: answers and weights are those of each done alone."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import torch

from ptuning import FitConfig, Predictor, PTuningModel, fit
from ptuning.data import Example
from torture.lab import WORDS, Lab, ended, fork, held, rows, same
from torture.trials import Draw, Line, Trial

Answers = list[tuple[float, ...]]
_DRAWN = Random(0)
TEXTS = [" ".join(_DRAWN.choices(WORDS, k=_DRAWN.randint(1, 40))) for _ in range(40)]


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    both = [Trial(f"{n} threads, {what}", _together(lab, what, n), n) for what in MODES for n in (2, 4, 8)]
    yield Line("predictions in threads", both, limit=60)
    beside = [
        Trial(f"{what}, seed {seed}", _beside(lab, what, seed), seed)
        for seed in range(3)
        for what in TRAININGS
    ]
    yield Line("predictions beside a training", beside, limit=60)
    two = [
        Trial(f"two trainings, {what}, seed {seed}", _two(lab, what, seed))
        for seed in range(3)
        for what in TRAININGS
    ]
    yield Line("trainings side by side", two, limit=60)
    seen = [Trial(name, attempt) for name, attempt in _during(lab).items()]
    yield Line("what is seen while another task's pass lasts", seen)
    forks = [
        Trial(f"fork {i}, {'while threads predict' if busy else 'with nobody else'}", _forked(lab, busy))
        for i in range(4)
        for busy in (False, True)
    ]
    yield Line("forks", forks, limit=60)
    yield Line(
        "copies and streams", [Trial(name, attempt) for name, attempt in _copies(lab).items()], limit=60
    )


def _models(lab: Lab) -> tuple[PTuningModel, PTuningModel]:
    """Two tasks on one backbone, which this process shares with nobody."""
    one = PTuningModel.from_pretrained(lab.reference)
    return one, PTuningModel.from_pretrained(lab.units, backbone=one.backbone, tokenizer=one.tokenizer)


def _answers(model: PTuningModel, texts: Sequence[str] = TEXTS, **how: Any) -> Answers:
    found = Predictor(model=model, **how)(texts)
    return [tuple(chance for _, chance in each.probabilities) for each in found]


def _all_same(found: Sequence[Answers], expected: Answers) -> None:
    wrong = [each for each in found if not same(each, expected)]
    if wrong:
        off = max(
            abs(a - b)
            for each in wrong
            for x, y in zip(each, expected, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        held(False, f"{len(wrong)} of {len(found)} answers differ from those alone, by up to {off:.3f}")


MODES = ("one task", "two tasks", "models left in training mode")


def _together(lab: Lab, mode: str, count: int) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        one, other = _models(lab)
        models = [one, one] if mode == "one task" else [one, other]
        expected = [_answers(model) for model in models]
        if mode == "models left in training mode":
            for model in models:
                model.train()
        with ThreadPoolExecutor(count) as pool:
            found = list(pool.map(lambda i: _answers(models[i % 2]), range(count * 2)))
        for n in (0, 1):
            _all_same(found[n::2], expected[n])

    return attempt


TRAININGS = (
    "with the backbone's dropout",
    "without dropout",
    "with virtual units",
    "with checkpointed layers",
)


def _new(like: PTuningModel, what: str, lab: Lab) -> PTuningModel:
    """A task to train on the backbone of another."""
    source = PTuningModel.from_pretrained(lab.units) if what == "with virtual units" else like
    made = PTuningModel(like.backbone, source.prompt_config, like.task, tokenizer=like.tokenizer)
    if what == "with checkpointed layers":
        made.gradient_checkpointing_enable()
    return made


def _fit(model: PTuningModel, what: str, seed: int) -> dict[str, torch.Tensor]:
    """Trained; its parameters afterwards."""
    made: Any = rows(24, seed)
    dropout = what == "with the backbone's dropout"
    config = FitConfig(epochs=2, seed=seed, batch_size=8, backbone_dropout=dropout)
    fit(model, {"train": made, "validation": made}, config)
    return {name: value.detach().clone() for name, value in model.task_parameters().items()}


def _beside(lab: Lab, what: str, seed: int) -> Callable[[Path], None]:
    """While a task is trained, another on the same backbone answers as alone, and is not changed."""

    def attempt(place: Path) -> None:
        asked, _ = _models(lab)
        trained = _new(asked, what, lab)
        expected = _answers(asked)
        before = {name: value.detach().clone() for name, value in asked.task_parameters().items()}
        found: list[Answers] = []
        with ThreadPoolExecutor(1) as pool:
            training = pool.submit(_fit, trained, what, seed)
            while not training.done():
                found.append(_answers(asked))
            training.result()
        held(found, "nothing was asked")
        _all_same(found, expected)
        _same_parameters(asked.task_parameters(), before, "the task that was asked")

    return attempt


def _same_parameters(found: Any, expected: Any, whose: str) -> None:
    held(set(found) == set(expected), f"{whose} has other parameters: {sorted(set(found) ^ set(expected))}")
    odd = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    held(not odd, f"{whose} has other values of {', '.join(odd[:3])}")


def _two(lab: Lab, what: str, seed: int) -> Callable[[Path], None]:
    """Neither fails, and each has the parameters it is to have; nothing of the other's."""

    def attempt(place: Path) -> None:
        one, _ = _models(lab)
        models = [_new(one, what, lab) for _ in range(2)]
        names = [set(model.task_parameters()) for model in models]
        backbone = {name: value.detach().clone() for name, value in one.backbone.model.named_parameters()}
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda n: _fit(models[n], what, seed + n), range(2)))
        for each, expected in zip(found, names, strict=True):
            held(set(each) == expected, f"trained {sorted(set(each) ^ expected)} as well")
            held(all(value.isfinite().all() for value in each.values()), "values that are not finite")
        _same_parameters(dict(one.backbone.model.named_parameters()), backbone, "the backbone")
        alone = [_new(one, what, lab) for _ in range(2)]
        if what != "with the backbone's dropout":  # which is drawn from the process's own generator
            for n, model in enumerate(alone):
                held(set(_fit(model, what, seed + n)) == names[n], "alone, other parameters are trained")

    return attempt


def _during(lab: Lab) -> dict[str, Callable[[Path], None]]:
    """Deterministic: another thread looks in the middle of a task's forward pass."""

    def case(ask: Callable[[PTuningModel], Any], lasting: bool = False) -> Callable[[Path], None]:
        def attempt(place: Path) -> None:
            one, other = _models(lab)
            expected = ask(PTuningModel.from_pretrained(lab.units)) if lasting else ask(other)
            seen: list[Any] = []
            layer = one.backbone.model.get_submodule("bert.encoder.layer.2")

            def look(*given: Any) -> None:
                if not seen:
                    thread = threading.Thread(target=lambda: seen.append(ask(other)), daemon=True)
                    thread.start()
                    thread.join(20)

            handle = layer.register_forward_hook(look)
            _answers(one)
            handle.remove()
            held(seen, "it waits for the pass to end, or no layer was run")
            held(seen[0] == expected, f"seen: {str(seen[0])[:150]}; alone: {str(expected)[:150]}")

        return attempt

    def names(model: PTuningModel) -> list[str]:
        return sorted(model.task_parameters())

    def groups(model: PTuningModel) -> list[int]:
        found = model.parameter_groups()
        parts = found.values() if isinstance(found, dict) else found
        return [len(list(part)) for part in parts]

    def fingerprint(model: PTuningModel) -> Any:
        return model.backbone.facts().fingerprint

    def named(model: PTuningModel) -> list[str]:
        return sorted(name for name, _ in model.named_parameters())

    def state(model: PTuningModel) -> list[str]:
        return sorted(model.state_dict())

    return {
        "task_parameters()": case(names),
        "parameter_groups()": case(groups),
        "the backbone's fingerprint": case(fingerprint, lasting=True),
        "named_parameters()": case(named),
        "state_dict()": case(state),
    }


def _forked(lab: Lab, busy: bool) -> Callable[[Path], None]:
    """A child answers as its parent, also one that was forked while threads of it predict."""

    def attempt(place: Path) -> None:
        model, _ = _models(lab)
        expected, stop = _answers(model), threading.Event()

        def asking() -> None:
            while not stop.is_set():
                _answers(model)

        threads = [threading.Thread(target=asking, daemon=True) for _ in range(2 if busy else 0)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                code = ended(fork(lambda: 0 if same(_answers(model), expected) else 7), 10)
                held(
                    code == 0, f"a child ended with {code}: {'other answers' if code == 7 else 'a traceback'}"
                )
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    return attempt


class Answering(torch.utils.data.Dataset[torch.Tensor]):
    """Rows that a worker of a DataLoader asks the model for."""

    def __init__(self, model: PTuningModel) -> None:
        self._model = model

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(_answers(self._model, [TEXTS[index]])[0])


def _copies(lab: Lab) -> dict[str, Callable[[Path], None]]:
    def case(ask: Callable[[PTuningModel], Answers], count: int = len(TEXTS)) -> Callable[[Path], None]:
        def attempt(place: Path) -> None:
            model, _ = _models(lab)
            expected = _answers(model)
            _all_same([ask(model)], expected[:count])
            _all_same([_answers(model)], expected)

        return attempt

    def pickled(model: PTuningModel) -> Answers:
        found = pickle.loads(pickle.dumps(Predictor(model=model)))(TEXTS)
        return [tuple(chance for _, chance in each.probabilities) for each in found]

    def workers(model: PTuningModel) -> Answers:
        loader = torch.utils.data.DataLoader(Answering(model), batch_size=4, num_workers=2, timeout=30)
        return [tuple(row) for row in torch.cat(list(loader)).tolist()]

    def in_asyncio(model: PTuningModel) -> Answers:
        async def several() -> list[Answers]:
            loop = asyncio.get_running_loop()
            return await asyncio.gather(
                *[loop.run_in_executor(None, lambda: _answers(model)) for _ in range(4)]
            )

        found = asyncio.run(several())
        _all_same(found, found[0])
        return found[0]

    def interleaved(model: PTuningModel) -> Answers:
        predictor = Predictor(model=model, window=8)
        examples = [Example(row=n, text=text) for n, text in enumerate(TEXTS)]
        one, other = zip(
            *zip(predictor.stream(examples), predictor.stream(examples), strict=True), strict=True
        )
        found = [
            [tuple(chance for _, chance in each.probabilities) for each in half] for half in (one, other)
        ]
        _all_same(found, found[0])
        return found[0]

    return {
        "a pickled Predictor": case(pickled),
        "a deep copy": case(lambda model: _answers(copy.deepcopy(model))),
        "two workers of a DataLoader": case(workers, 12),
        "asyncio": case(in_asyncio),
        "two streams, turn by turn": case(interleaved),
        "batches of one row": case(lambda model: _answers(model, batch_size=1)),
    }
