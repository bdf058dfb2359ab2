"""Rows of many tasks in this process, texts in and predictions out, in batches of 32.

One task is what ``Predictor`` does; the rest is ``MultiPredictor``. A pass a task is the alternative to
passes that tasks share: the rows are grouped by task, and each group is predicted by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ptuning import Predictor, PTuningModel, Task
from ptuning.inference.mixed import MultiPredictor
from ptuning.model import Backbone
from ptuning.model.table import TaskTable
from serving import tasks
from serving.figures import Side, all_to, alternating, compared
from serving.lab import DTYPES, Lab
from serving.names import Draw, drawn
from worker import Quiet

BATCH = 32
ONE = "one task, Predictor"
OWN = "unlike tasks, each batch of one task"

Rows = Sequence[Any]


def measure(lab: Lab) -> dict[str, Any]:
    """Pairs of texts in both precisions; ``over_http.py`` has single texts."""
    return {f"mrpc {precision}": cell(lab, "mrpc", precision) for precision in DTYPES}


def cell(lab: Lab, data: str, precision: str) -> dict[str, Any]:
    """One precision and data set."""
    pair = data == "mrpc"
    backbone, most = lab.backbone(precision), lab.plan.most
    batches = lab.plan.rows // BATCH
    count = BATCH * (batches if precision == lab.precision else max(1, batches // 2))
    rows = _sorted(_repeated(lab.rows(data), count))
    prompt = tasks.native_prompt() if pair else tasks.default_prompt()
    task = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=pair)
    table = tasks.like(backbone, prompt, task, most)
    kinds = tasks.kinds(backbone, lab.plan.kinds, pair=pair)
    unlike = tasks.unlike(backbone, kinds, most)
    one = PTuningModel.from_backbone(backbone, prompt, task=task, tokenizer=lab.tokenizer)
    for model in kinds:
        model.tokenizer = lab.tokenizer

    sides: dict[str, Side] = {ONE: _side(lambda rows, _: Predictor(one, batch_size=BATCH)(rows), rows)}
    for tasks_count in lab.plan.tasks:
        draws: tuple[Draw, ...] = ("uniform", "zipf") if tasks_count > 1 else ("uniform",)
        for draw in draws:
            words = f"{tasks_count:,} like task{'s' * (tasks_count > 1)}" + f", {draw}" * (tasks_count > 1)
            sides[words] = _side(partial(_mixed, lab, table, tasks_count, draw), rows)
    for tasks_count in lab.plan.tasks[-2:]:
        sides[f"{tasks_count:,} like tasks, uniform, a pass a task"] = _side(
            partial(_grouped, lab, table, tasks_count), rows
        )
    references = all_to(ONE, sides)
    mixed = f"{most:,} unlike tasks, uniform"
    each_kind = _sorted(_repeated(lab.rows(data), BATCH * len(kinds)))  # a batch for each kind
    sides[OWN] = _side(partial(_own_batches, kinds), each_kind)
    sides[mixed] = _side(partial(_mixed, lab, unlike, most, "uniform"), each_kind)
    sides[f"{mixed}, a pass a task"] = _side(partial(_grouped, lab, unlike, most), rows)
    references |= dict.fromkeys(list(sides)[-2:], OWN)

    for side in sides.values():
        side(-1)  # a batch, to warm up
    quiet = Quiet()
    rounds = alternating(sides, lab.plan.rounds, f"in process, {data} {precision}")
    lengths = [len(lab.tokenizer(*([row] if isinstance(row, str) else row)).input_ids) for row in rows]
    return {
        "rows": len(rows),
        "mean_tokens": round(sum(lengths) / len(lengths), 1),
        "batch_size": BATCH,
        "prompt": {"virtual_tokens": tasks.VIRTUAL_TOKENS, "pooling": one.prompt_config.pooling},  # type: ignore[union-attr]
        "kinds": len(kinds),
        "sides": compared(rounds, references),
        "table_mib": {
            f"{most:,} like tasks": _mib(table),
            f"{most:,} unlike tasks": _mib(unlike),
        },
        "backbone_mib": round(_bytes(backbone) / 2**20, 1),
        **quiet.found(),
    }


def _side(answer: Callable[[Rows, int], Any], rows: Rows) -> Side:
    def side(number: int) -> dict[str, Any]:
        given = rows if number >= 0 else rows[:BATCH]
        began = time.perf_counter()
        answer(given, number)
        return {"rate": len(given) / (time.perf_counter() - began)}

    return side


def _repeated(rows: Rows, count: int) -> Rows:
    return (list(rows) * (1 + count // len(rows)))[:count]


def _sorted(rows: Rows) -> Rows:
    """By length, so that batches are alike on every side."""
    return sorted(rows, key=lambda row: len(row) if isinstance(row, str) else len(row[0]) + len(row[1]))


def _mixed(lab: Lab, table: TaskTable, count: int, draw: Draw, rows: Rows, number: int) -> None:
    names = drawn(count, len(rows), draw, seed=number)
    MultiPredictor(table, lab.tokenizer, batch_size=BATCH).predict(rows, names)


def _grouped(lab: Lab, table: TaskTable, count: int, rows: Rows, number: int) -> None:
    """A pass for each task."""
    groups: dict[str, list[Any]] = {}
    for row, name in zip(rows, drawn(count, len(rows), "uniform", seed=number), strict=True):
        groups.setdefault(name, []).append(row)
    predictor = MultiPredictor(table, lab.tokenizer, batch_size=BATCH)
    for name, its in groups.items():
        predictor.predict(its, [name] * len(its))


def _own_batches(kinds: Sequence[PTuningModel], rows: Rows, number: int) -> None:
    """The same batches as when the tasks are mixed, each by a task of another kind."""
    for batch, at in enumerate(range(0, len(rows), BATCH)):
        model = kinds[(batch + number) % len(kinds)]
        Predictor(model, batch_size=BATCH)(rows[at : at + BATCH])


def _mib(table: TaskTable) -> float:
    return round(table.nbytes / 2**20, 1)


def _bytes(backbone: Backbone) -> int:
    return sum(value.nbytes for value in backbone.model.parameters())
