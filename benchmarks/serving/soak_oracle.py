"""What every version of every task answers, computed apart from the server and compared with its answers."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptuning import PTuningModel, Task, adapters
from ptuning.inference.mixed import MultiPredictor
from ptuning.model import Backbone, TaskTable
from serving.tasks import default_prompt, other_numbers

TOLERANCE = 1e-4
"""Of probabilities, in fp32: batches move the last digits."""
TABLE, KNOWN = 64, 50_000
"""Versions in memory, and predictions."""


@dataclass(frozen=True)
class Said:
    """One row's answer, and what it names as its origin.

    Attributes:
        protocol: By which it came.
        task: Which was asked.
        digest: Of the adapter; empty if the answer names none, because its rows are of several.
        text: Of the row.
        scores: By label.
    """

    protocol: str
    task: str
    digest: str
    text: str
    scores: Mapping[str, float]


@dataclass
class Oracle:
    """Versions by digest.

    Args:
        backbone: In fp32.
        tokenizer: Its.
    """

    backbone: Backbone
    tokenizer: PreTrainedTokenizerBase
    versions: dict[str, tuple[str, int]] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)
    checked: int = 0
    unnamed: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._table = TaskTable(self.backbone)
        self._bases: dict[str, adapters.Adapter] = {}
        self._known: OrderedDict[tuple[str, str], Mapping[str, float]] = OrderedDict()
        self._kept: deque[Said] = deque(maxlen=500)

    def adapter(self, task: str, seed: int) -> adapters.Adapter:
        """A version. Its labels are the task's alone, so that another's answer cannot pass for it."""
        if task not in self._bases:
            labels = (f"{task}-no", f"{task}-yes")
            described = Task(problem_type="single_label_classification", labels=labels)
            model = PTuningModel.from_backbone(self.backbone, default_prompt(), task=described)
            self._bases[task] = model.to_adapter()
        return other_numbers(self._bases[task], seed)

    def publish(self, task: str, seed: int, digest: str) -> None:
        """This version may answer from now on."""
        self.versions[digest] = (task, seed)
        self.history.setdefault(task, []).append(digest)

    def check(self, answers: Iterable[Said]) -> None:
        """Hold answers against offline predictions; differences go to :attr:`wrong`."""
        given = list(answers)
        good = []
        for each in given:
            if each.digest and self.versions.get(each.digest, ("",))[0] != each.task:
                self.wrong.append(f"{each.protocol}: {each.digest} is no version of {each.task}")
            else:
                good.append(each)
        self._predict((digest, each.text) for each in good for digest in self._candidates(each))
        for each in good:
            expected = [self._known[digest, each.text] for digest in self._candidates(each)]
            if not any(same(each.scores, one) for one in expected):
                self.wrong.append(
                    f"{each.protocol}: {each.task}, {each.digest or 'no digest'}, {each.text[:60]!r}: "
                    f"{dict(each.scores)}, expected {[dict(one) for one in expected]}"
                )
        self.checked += len(good)
        self.unnamed += sum(not each.digest for each in good)
        self._kept += [each for each in good[::7] if each.digest]
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)

    def _candidates(self, said: Said) -> list[str]:
        return [said.digest] if said.digest else self.history[said.task][-3:]

    def control(self) -> dict[str, int]:
        """Whether a wrong version would be noticed: answers held against another version of their task."""
        draw = Random(0)
        others = [
            (each, draw.choice(before))
            for each in self._kept
            if (before := [digest for digest in self.history[each.task] if digest != each.digest])
        ]
        self._predict((digest, each.text) for each, digest in others)
        told = sum(not same(each.scores, self._known[digest, each.text]) for each, digest in others)
        return {"compared": len(others), "told_apart": told}

    def _predict(self, wanted: Iterable[tuple[str, str]]) -> None:
        missing = []
        for key in dict.fromkeys(wanted):
            if key in self._known:
                self._known.move_to_end(key)
            else:
                missing.append(key)
        missing.sort()  # a version's rows together
        for digest in dict.fromkeys(digest for digest, _ in missing):
            self._load(digest)
            texts = [text for its, text in missing if its == digest]
            found: list[Any] = MultiPredictor(self._table, self.tokenizer).predict(
                texts, [digest] * len(texts)
            )
            for text, one in zip(texts, found, strict=True):
                self._known[digest, text] = {str(name): value for name, value in one.probabilities}

    def _load(self, digest: str) -> None:
        if digest in self._table:
            return
        if len(self._table) >= TABLE:
            self._table.remove(Random(len(self.versions)).choice(self._table.names))
        adapter = self.adapter(*self.versions[digest])
        model = PTuningModel.from_adapter(adapter, self.backbone, tokenizer=self.tokenizer)
        self._table.put(digest, model, digest)


def same(found: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    """The same labels, with the same probabilities."""
    return found.keys() == expected.keys() and all(
        abs(found[label] - expected[label]) <= TOLERANCE for label in expected
    )
