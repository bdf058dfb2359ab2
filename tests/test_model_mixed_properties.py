"""What holds for any rows of any tasks in one pass: nothing but the row and its task decides an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, combinations_with_replacement, cycle
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from mixed import KINDS, PROMPTS, alone, assert_close, batch_of, shaken
from ptuning import Task
from ptuning.errors import DataError, UnsupportedBackbone
from ptuning.model import Backbone, DeepPrompt, InputPrompt, PTuningModel
from ptuning.model.batch import Batch
from ptuning.model.mixed import mixed_logits
from ptuning.model.packed import PackedTask, pack
from tiny import FAMILIES, PAD, tiny_case

CASES = (*FAMILIES, "mistral, sliding", "qwen2, sliding")
FRONT = 0
"""The token that starts most rows, as a decoder's ``<s>``."""
WORDS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "{prompt:2} {text_a} asks {text_b} {prompt:1}": ((5, 6),),
    "{text_a} says {prompt:2} {text_b}": ((7,),),
    "so {prompt:2} {text}": ((8, 9),),
}
"""Templates, and the token ids of their literal words."""
MODELS: tuple[Any, ...] = (*PROMPTS, *(InputPrompt(placement=template) for template in WORDS))
EVERY = settings(deadline=None, derandomize=True, database=None)


class Fronted:
    """As much of a tokenizer as says which tokens start every row."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [FRONT, 5], "special_tokens_mask": [1, 0]}


@cache
def backbone_of(case: str) -> Backbone:
    return Backbone(tiny_case(case))


@cache
def task_of(case: str, config: int, kind: int) -> tuple[PTuningModel, PackedTask]:
    """A trained-looking task; with the first prompt if the backbone cannot have this one."""
    prompt, task = MODELS[config], KINDS[kind]
    if getattr(prompt, "pooling", None) == "similarity":
        task = replace(task, pair=True)
    tokenizer: Any = Fronted()
    anchors = WORDS.get(prompt.placement) if isinstance(prompt, InputPrompt) else None
    with torch.random.fork_rng():
        torch.manual_seed(100 * config + kind)
        try:
            model = PTuningModel(backbone_of(case), prompt, task, tokenizer=tokenizer, anchors=anchors)
        except UnsupportedBackbone:
            return task_of(case, 0, kind)
        shaken(model)
    return model, pack(model, f"{prompt}, {task}")


class Row(NamedTuple):
    """A row, and its task.

    Attributes:
        config: Of the prompt, in ``MODELS``.
        kind: Of the task, in ``KINDS``.
        length: Its tokens.
        fronted: Whether it starts with the usual token.
    """

    config: int
    kind: int
    length: int
    fronted: bool = True

    def batch(self) -> Batch:
        found = batch_of([self.length], seed=self.length)
        if self.fronted:
            found.input_ids[0, 0] = FRONT
        return found


@cache
def expected(case: str, row: Row) -> Tensor:
    """What its task alone answers, without other rows and without padding."""
    return alone(task_of(case, row.config, row.kind)[0], row.batch(), 0)


def padded(rows: Sequence[Row], *, left: bool) -> Batch:
    width = max(row.length for row in rows)

    def stacked(name: str, fill: int) -> Tensor:
        parts = [getattr(row.batch(), name)[0] for row in rows]
        spaces = [(width - len(each), 0) if left else (0, width - len(each)) for each in parts]
        return torch.stack([pad(each, space, value=fill) for each, space in zip(parts, spaces, strict=True)])

    return Batch(
        input_ids=stacked("input_ids", PAD),
        attention_mask=stacked("attention_mask", 0),
        token_type_ids=stacked("token_type_ids", 0),
        segment_ids=stacked("segment_ids", -1),
    )


@dataclass(frozen=True)
class Rows:
    """A batch on one backbone."""

    case: str
    rows: Sequence[Row]
    left: bool = False

    @property
    def tasks(self) -> list[PackedTask]:
        return [task_of(self.case, row.config, row.kind)[1] for row in self.rows]

    def answers(self, tasks: Sequence[PackedTask] | None = None) -> list[Tensor]:
        with torch.inference_mode():
            batch = padded(self.rows, left=self.left)
            return mixed_logits(backbone_of(self.case), batch, tasks or self.tasks)

    def chosen(self, places: Sequence[int]) -> Rows:
        """Some of its rows, in this order."""
        return replace(self, rows=[self.rows[place] for place in places])


ROW = st.builds(
    Row,
    config=st.integers(0, len(MODELS) - 1),
    kind=st.integers(0, len(KINDS) - 1),
    length=st.integers(4, 13),
    fronted=st.integers(0, 3).map(bool),
)


@st.composite
def some_rows(draw: Any, least: int = 1) -> Rows:
    """Rows of any tasks, some of the same task."""
    rows = draw(st.lists(ROW, min_size=least, max_size=6))
    places = st.integers(0, len(rows) - 1)
    for row, other in draw(st.lists(st.tuples(places, places), max_size=3)):
        rows[row] = rows[row]._replace(config=rows[other].config, kind=rows[other].kind)
    return Rows(draw(st.sampled_from(CASES)), rows, draw(st.booleans()))


def assert_alone(rows: Rows) -> None:
    for row, answer, task in zip(rows.rows, rows.answers(), rows.tasks, strict=True):
        assert_close(answer, expected(rows.case, row), task.name)


def company() -> Iterator[list[int]]:
    """Groups of three prompts, so that each two of them are together in one."""
    left = set(combinations(range(len(MODELS)), 2))
    while left:
        one, other = min(left)
        third = max(
            set(range(len(MODELS))) - {one, other},
            key=lambda each: len({tuple(sorted((each, another))) for another in (one, other)} & left),
        )
        yield [one, other, third]
        left -= set(combinations(sorted((one, other, third)), 2))


@pytest.mark.parametrize("case", CASES)
def test_every_two_prompts_and_kinds_share_a_batch(case: str) -> None:
    kinds = cycle(combinations_with_replacement(range(len(KINDS)), 3))
    for configs, three in zip(company(), kinds, strict=False):
        assert_alone(Rows(case, [Row(configs[i], three[i], 6 + i) for i in range(3)]))
    for config in range(len(MODELS)):
        assert_alone(Rows(case, [Row(config, kind, 6 + kind % 3) for kind in (*range(len(KINDS)), 2, 0)]))


@pytest.mark.parametrize("case", CASES)
def test_single_rows_and_rows_of_one_task(case: str) -> None:
    for config in range(len(MODELS)):
        assert_alone(Rows(case, [Row(config, config % len(KINDS), 6 + config % 3)]))
        rows = [Row(config, config % len(KINDS), length, length != 7) for length in (4, 7, 6)]
        assert_alone(Rows(case, rows))  # one of them starts differently


@settings(EVERY, max_examples=100)
@given(rows=some_rows())
def test_answers_are_those_of_the_task_alone(rows: Rows) -> None:
    assert_alone(rows)


@settings(EVERY, max_examples=40)
@given(rows=some_rows(least=2), draw=st.randoms(use_true_random=False))
def test_order_and_company_change_nothing(rows: Rows, draw: Any) -> None:
    """Rows in another order, and in two batches."""
    together = rows.answers()
    order = draw.sample(range(len(together)), len(together))
    shuffled = rows.chosen(order).answers()
    cut = draw.randrange(1, len(order))
    apart = rows.chosen(order[:cut]).answers() + rows.chosen(order[cut:]).answers()
    for found in (shuffled, apart):
        for place, answer in zip(order, found, strict=True):
            assert_close(answer, together[place], rows.tasks[place].name)


@settings(EVERY, max_examples=60)
@given(rows=some_rows(), value=st.sampled_from([torch.nan, 1e30, -torch.inf]), draw=st.integers(0, 5))
def test_other_tasks_values_change_not_a_bit(rows: Rows, value: float, draw: int) -> None:
    plain, tasks = rows.answers(), rows.tasks
    for one, other in zip(plain, rows.answers(), strict=True):  # the same bits each time
        assert torch.equal(one, other)
    mine = tasks[draw % len(tasks)]
    spoilt = {
        task: task.with_tensors({name: torch.full_like(own, value) for name, own in task.tensors()})
        for task in tasks
        if task is not mine
    }
    found = rows.answers([spoilt.get(task, task) for task in tasks])
    for task, one, other in zip(tasks, plain, found, strict=True):
        assert torch.equal(one, other) == (task is mine)


# ---------------------------------------------------------------------------------- particular tasks


def assert_each_alone(models: Sequence[PTuningModel], tasks: Sequence[PackedTask], batch: Batch) -> None:
    with torch.inference_mode():
        found = mixed_logits(models[0].backbone, batch, tasks)
    for row, (model, answer) in enumerate(zip(models, found, strict=True)):
        assert answer.shape == (model.task.num_labels,)
        assert_close(answer, alone(model, batch, row), f"row {row}")


@pytest.mark.parametrize("case", ["bert", "electra", "distilbert", "modernbert", "gpt2", "opt"])
def test_any_numbers_of_classes_share_a_batch(case: str) -> None:
    backbone, counts = backbone_of(case), [1, 300, 2, 3, 17, 2, 300, 64]
    models = []
    for number, count in enumerate(counts):
        task = KINDS[3]
        if count > 1:
            kind = ("single_label_classification", "multi_label_classification")[number % 2]
            task = Task(problem_type=kind, labels=tuple(map(str, range(count))))
        models.append(shaken(PTuningModel(backbone, DeepPrompt(num_virtual_tokens=2), task)))
    owners = [*range(len(models)), 1, 6, 2, 0]
    tasks = [pack(model) for model in models]
    batch = batch_of([5 + i % 6 for i in range(len(owners))])
    assert_each_alone([models[owner] for owner in owners], [tasks[owner] for owner in owners], batch)


@pytest.mark.parametrize("case", ["bert", "modernbert", "gpt2", "llama"])
def test_in_half_precision_neighbours_add_no_more_than_rounding(case: str) -> None:
    """Compared with fp32, answers are not further off than those of a task's own batches."""
    backbone = Backbone(tiny_case(case)).to(torch.bfloat16)
    exact = Backbone(tiny_case(case))
    kinds, lengths = [i % len(KINDS) for i in range(len(PROMPTS))], [5, 14, 8, 11]
    off: dict[str, list[float]] = {"own": [], "mixed": []}
    models, tasks, wanted = [], [], []
    for number, prompt in enumerate(PROMPTS):
        task = KINDS[kinds[number]]
        if getattr(prompt, "pooling", None) == "similarity":
            task = replace(task, pair=True)
        try:
            model = shaken(PTuningModel(exact, prompt, task))
            half = PTuningModel(backbone, prompt, task)
        except UnsupportedBackbone:
            continue
        half.load_state_dict(model.state_dict())
        half.eval()
        packed, batch = pack(half), batch_of(lengths)
        models += [half] * len(lengths)
        tasks += [packed] * len(lengths)
        with torch.inference_mode():
            own = half(**batch.arguments()).logits
        for row in range(len(lengths)):
            wanted.append(alone(model, batch, row))
            off["own"].append(distance(own[row], wanted[-1]))
    values = batch_of(lengths).arguments().items()
    repeated = Batch(**{name: value.repeat(len(models) // len(lengths), 1) for name, value in values})
    with torch.inference_mode():
        found = mixed_logits(backbone, repeated, tasks)
    off["mixed"] = [distance(one, other) for one, other in zip(found, wanted, strict=True)]
    assert sum(off["own"]) > 0
    assert sum(off["mixed"]) <= 2 * sum(off["own"])
    assert max(off["mixed"]) <= 2 * max(off["own"])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


def test_tasks_with_parameters_inside_the_layers_go_alone() -> None:
    """As adapters of PEFT with modules_to_save have them."""
    backbone = backbone_of("bert")
    name = "bert.encoder.layer.1.output.dense.weight"
    own = {name: torch.randn_like(backbone.model.get_parameter(name))}
    strange = [
        shaken(PTuningModel(backbone, config, KINDS[i], head=own))
        for i, config in enumerate((PROMPTS[0], PROMPTS[7]))
    ]
    others = [task_of("bert", i, 1) for i in (0, 3, 7)]
    models = [strange[0], *(each[0] for each in others), *strange, strange[0]]
    packed = {id(model): pack(model) for model in models}
    tasks = [packed[id(model)] for model in models]
    assert [task.alone is not None for task in tasks] == [model in strange for model in models]
    assert len({task.key for task in tasks if task.alone is not None}) == 2
    assert_each_alone(models, tasks, batch_of([7, 5, 9, 4, 8, 6, 7]))


def test_a_pooler_of_its_own_shares_a_pass() -> None:
    """A task that trains only the last layer of the head uses the backbone's for the rest."""
    backbone = backbone_of("bert")
    full, bare = (
        shaken(PTuningModel(backbone, replace(PROMPTS[0], train_head=train), KINDS[0]))
        for train in (True, False)
    )
    other = task_of("bert", 3, 1)
    models = [full, bare, other[0], full, bare]
    tasks = [pack(full), pack(bare), other[1]]
    assert_each_alone(models, [*tasks, *tasks[:2]], batch_of([7, 5, 9, 4, 8]))


@pytest.mark.parametrize("case", ["bert", "roberta", "gpt2"])
def test_a_row_that_is_too_long_for_its_task_is_named(case: str) -> None:
    """The same text fits another task."""
    backbone = backbone_of(case)
    roomy, tight = (
        shaken(PTuningModel(backbone, DeepPrompt(num_virtual_tokens=4, position_offset=offset), KINDS[0]))
        for offset in (0, 4)
    )
    assert roomy.max_text_tokens is not None
    longest = roomy.max_text_tokens
    batch = batch_of([6, longest, 5, longest])
    tasks = {id(model): pack(model, name) for name, model in (("roomy", roomy), ("tight", tight))}
    models = [tight, roomy, tight, roomy]
    assert_each_alone(models, [tasks[id(model)] for model in models], batch)
    wrong = [tasks[id(model)] for model in (tight, roomy, tight, tight)]
    with pytest.raises(DataError, match=rf"row 3 of the batch, for the task 'tight'.*got {longest} tokens"):
        mixed_logits(backbone, batch, wrong)
    assert int(batch.input_ids[0, -1]) == PAD
