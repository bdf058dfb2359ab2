"""Threads and forks: what one task does on a backbone is not seen by another, answers equal to those alone.

Where two threads have to meet at one point, hooks and events bring them there, so that nothing is left to
chance.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ptuning import (
    DeepPrompt,
    Engine,
    FitConfig,
    InputPrompt,
    LSTMEncoder,
    Predictor,
    PTuningModel,
    fit,
    train,
)
from ptuning.data.tokens import TokenRow
from ptuning.inference.evaluate import logits_of
from ptuning.model import Backbone
from ptuning.model.drawing import Draws
from ptuning.model.tasks import plain_task
from ptuning.peft import PeftModel, PrefixTuningConfig
from ptuning.threads import ACCELERATE, GENERATORS, TOKENIZER
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import TrainConfig
from ptuning.training.head_init import fit_head
from ptuning.training.prepare import Split
from tiny import THOROUGH, ragged, tiny, tiny_case

WAIT = 30.0
THREE = plain_task(3, None)
UNITS = DeepPrompt(num_virtual_tokens=4, num_virtual_units=3)
INSIDE = "bert.encoder.layer.1.output.dense.weight"

Rows = Callable[..., list[dict[str, Any]]]


def task_on(backbone: Backbone, config: Any = UNITS, seed: int = 1, **given: Any) -> PTuningModel:
    """A task whose parameters are far from those of any other seed."""
    torch.manual_seed(seed)
    model = PTuningModel(backbone, config, THREE, **given)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value) / 3)
    return model.eval()


def answer(model: PTuningModel, case: str = "bert") -> Tensor:
    ids, mask = ragged([5, 9, 3], left=case in ("gpt2", "llama", "bloom"))
    with torch.no_grad():
        return model(ids % model.backbone.vocab_size, mask).logits


@contextmanager
def held_inside(module: nn.Module, call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Another thread runs ``call`` and stands before ``module`` for as long as the block lasts.

    Yields:
        A list, in which the call's result is when the block is over.
    """
    inside, go = threading.Event(), threading.Event()
    found: list[Any] = []
    failed: list[BaseException] = []

    def stop(*_: Any) -> None:
        if threading.current_thread() is other:
            inside.set()
            assert go.wait(WAIT)

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)
            inside.set()

    other = threading.Thread(target=run, daemon=True)
    hook = module.register_forward_pre_hook(stop)
    other.start()
    try:
        assert inside.wait(WAIT)
        yield found
    finally:
        go.set()
        other.join(WAIT)
        hook.remove()
    assert not failed, failed


def layer(model: PTuningModel, index: int = 0) -> nn.Module:
    found: nn.Module = model.backbone.base.encoder.layer[index]
    return found


def side_by_side(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(300) for future in [pool.submit(call) for call in calls]]


# --------------------------------------------------------------------------------- during another's pass


def test_what_a_task_owns_is_its_own_during_anothers_pass() -> None:
    backbone = Backbone(tiny("bert"))
    a = task_on(backbone, head={INSIDE: backbone.model.get_parameter(INSIDE).detach() + 1})
    b = task_on(backbone)

    def owned() -> tuple[Any, ...]:
        groups = b.parameter_groups()
        return (
            {name: id(value) for name, value in b.task_parameters().items()},
            [[id(value) for value in group] for group in groups],
            b.num_parameters(),
            b.num_parameters(only_trainable=True),
            {name: id(value) for name, value in b.named_parameters()},
        )

    alone = owned()
    with held_inside(layer(a), lambda: answer(a)):
        assert owned() == alone
    assert not any("backbone" in name for name in b.task_parameters())


def test_the_fingerprint_first_taken_during_anothers_pass_is_right() -> None:
    true = Backbone(tiny("bert")).fingerprint()
    backbone = Backbone(tiny("bert"))
    a = task_on(backbone, head={INSIDE: backbone.model.get_parameter(INSIDE).detach() + 1})
    b = task_on(backbone)
    with held_inside(layer(a), lambda: answer(a)):
        assert b.backbone.fingerprint() == true
        assert b.to_adapter().backbone["fingerprint"] == true
    assert b.backbone.fingerprint() == true


@pytest.mark.parametrize("same", [False, True], ids=["two tasks", "one task"])
@pytest.mark.parametrize("case", ["bert", "albert", "deberta-v2", "gpt2", "llama"])
def test_two_passes_at_the_same_time_do_not_meet(case: str, same: bool) -> None:
    """One stands in the middle of every layer's feed-forward network in turn, another runs through."""
    backbone = Backbone(tiny_case(case))
    a = task_on(backbone, DeepPrompt(num_virtual_tokens=4, num_virtual_units=3, pooling="layers"))
    b = a if same else task_on(backbone, seed=2)
    alone = answer(a, case), answer(b, case)
    kind = a.backbone.architecture
    for index, each in enumerate(a.backbone.base.get_submodule(kind.layers).children()):
        with held_inside(each.get_submodule(kind.feed_forward[1]), lambda: answer(a, case)) as found:
            assert torch.equal(answer(b, case), alone[1]), index
            assert torch.equal(answer(b, case), alone[1]), index
        assert torch.equal(found[0], alone[0]), index


def test_a_head_inside_a_layer_is_one_passs_alone() -> None:
    """With checkpointing, too, where the layer runs again on the way back, when other passes were there."""
    backbone = Backbone(tiny("bert"))
    other = backbone.model.get_parameter(INSIDE).detach() + torch.randn(32, 48)
    a, b = task_on(backbone, head={INSIDE: other}), task_on(backbone, seed=2)

    def learned(model: PTuningModel) -> dict[str, Tensor]:
        model.zero_grad()
        model(*ragged([5, 9, 3])).logits.square().sum().backward()
        return {name: value.grad.clone() for name, value in model.task_parameters().items()}  # type: ignore[union-attr]

    alone = learned(a), learned(b)
    for model in (a, b):
        model.gradient_checkpointing_enable()
    with held_inside(layer(a, 2), lambda: learned(a)) as found:
        meanwhile = learned(b)
    for got, expected in zip((found[0], meanwhile), alone, strict=True):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                got[name], value, rtol=0, atol=1e-4 * float(value.abs().max()), msg=name
            )


@pytest.mark.parametrize("case", ["bert", "albert", "modernbert", "deberta-v2", "gpt2", "llama", "bloom"])
def test_a_pass_writes_to_no_module(case: str) -> None:
    """The tree's dictionaries are as they were; while it runs, too, so it makes no difference who looks."""
    model = task_on(Backbone(tiny_case(case)), InputPrompt(num_virtual_tokens=4))
    other = task_on(model.backbone, DeepPrompt(num_virtual_tokens=4))

    def tree() -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.{kind}.{key}": (id(value), getattr(value, "_version", 0))
            for name, module in (
                *model.backbone.named_modules(),
                *other.backbone.named_modules(),
                *model.named_modules(),
            )
            for kind in ("_parameters", "_buffers", "_modules")
            for key, value in getattr(module, kind).items()
        }

    before, seen = tree(), []
    hooks = [
        module.register_forward_hook(lambda *_: seen.append(tree() == before))
        for model_ in (model, other)
        for module in model_.backbone.model.modules()
        if not any(module.children())
    ]
    answer(model, case), answer(other, case)
    with model.disabled():
        answer(model, case)
    for hook in hooks:
        hook.remove()
    assert seen
    assert all(seen)
    assert tree() == before


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "long_factor": [2.0] * 4, "short_factor": [1.0] * 4, "factor": 4.0},
    ],
    ids=["dynamic", "longrope"],
)
def test_positions_that_depend_on_the_texts_length_are_the_passs_own(rope: dict[str, Any]) -> None:
    """transformers keeps the last text's frequencies in the module; here another text's are not met."""
    parameters = {**rope, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    if rope["rope_type"] == "longrope":
        held = tiny("phi3", rope_parameters=parameters, original_max_position_embeddings=16)
    else:
        held = tiny("llama", rope_parameters=parameters)
    model = task_on(Backbone(held), DeepPrompt(num_virtual_tokens=4, position_offset=0))
    digest = model.backbone.digest()
    short, long = ragged([6])[0], ragged([62])[0]
    with torch.no_grad():
        expected = model(short).logits
        model(long)
        assert model.backbone.digest() == digest  # a short text would put back what a long one wrote
        assert torch.equal(model(short).logits, expected)
    assert model.backbone.digest() == digest


# ----------------------------------------------------------------------------------- switches and hooks


def test_one_tasks_switches_are_not_anothers() -> None:
    backbone = Backbone(tiny("bert"))
    a, b = task_on(backbone).train(), task_on(backbone, seed=2)
    right = answer(b)
    a.backbone.dropout = True
    a.train()
    assert any(module.training for module in a.backbone.model.modules())
    assert not torch.equal(answer(a), answer(a))
    assert not b.backbone.dropout
    assert not any(module.training for module in b.modules())
    assert torch.equal(answer(b), right)
    b.eval()
    assert a.training
    assert a.backbone.training
    b.gradient_checkpointing_enable()
    assert not a.backbone.engine.checkpoint_activations
    a.backbone.engine = Engine(attention="plain")
    assert b.backbone.engine == Engine(checkpoint_activations=True)
    later = task_on(a.backbone)
    assert not later.backbone.dropout, "a new task on a backbone that another is training with dropout"
    assert not backbone.dropout
    assert backbone.engine == Engine()


def test_an_engine_given_with_a_shared_backbone_is_the_new_tasks() -> None:
    a = task_on(Backbone(tiny("bert")))
    b = PTuningModel.from_backbone(
        a.backbone, UNITS, num_labels=3, engine=Engine(checkpoint_activations=True)
    )
    assert b.backbone.engine.checkpoint_activations
    assert not a.backbone.engine.checkpoint_activations


def test_a_hook_belongs_to_the_task_whose_module_it_was_put_on() -> None:
    hf = tiny("bert")
    seen: list[str] = []
    hf.bert.embeddings.register_forward_hook(lambda *_: seen.append("adopted"))
    backbone = Backbone(hf)
    a, b = task_on(backbone), task_on(backbone)
    a.backbone.base.embeddings.register_forward_hook(lambda *_: seen.append("a"))
    c = task_on(a.backbone)
    for model, expected in ((a, ["adopted", "a"]), (b, ["adopted"]), (c, ["adopted"])):
        seen.clear()
        answer(model)
        assert seen == expected


def test_what_stood_in_the_place_of_forward_stands_there_in_every_view() -> None:
    """accelerate hooks a module, to move it between devices say, by a forward of its own."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Doubles(hooks.ModelHook):  # type: ignore[misc]
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return output * 2

    hf = tiny("bert")
    plain = task_on(Backbone(deepcopy(hf)), DeepPrompt(num_virtual_tokens=4))
    hooks.add_hook_to_module(hf.bert.encoder.layer[1], Doubles())
    hooks.add_hook_to_module(hf.bert.embeddings, Doubles())
    backbone = Backbone(hf)
    a, b = (task_on(backbone, DeepPrompt(num_virtual_tokens=4)) for _ in range(2))
    assert torch.equal(answer(a), answer(b))
    assert not torch.equal(answer(a), answer(plain))
    assert torch.equal(answer(task_on(a.backbone, DeepPrompt(num_virtual_tokens=4))), answer(a))


# ------------------------------------------------------------------------------------ what a view costs


@pytest.mark.parametrize("case", THOROUGH)
def test_a_view_is_the_same_tensors_in_modules_of_its_own(case: str) -> None:
    backbone = Backbone(tiny_case(case))
    views = [
        backbone.view(),
        backbone.view().view(),
        task_on(backbone, InputPrompt(num_virtual_tokens=4)).backbone,
    ]
    for view in views:
        for kind in ("named_parameters", "named_buffers"):
            mine, theirs = (dict(getattr(each.model, kind)()) for each in (view, backbone))
            assert mine.keys() == theirs.keys()
            assert all(mine[name] is theirs[name] for name in mine)
        assert not {id(module) for module in view.modules()} & {id(module) for module in backbone.modules()}
        assert view.weights is backbone.weights
        assert type(view.model) is type(backbone.model)


def test_many_tasks_add_only_their_own_bytes() -> None:
    backbone = Backbone(tiny("bert"))
    tasks = [task_on(backbone) for _ in range(20)]
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for model in tasks
        for value in (*model.parameters(), *model.buffers())
    }
    shared = {value.untyped_storage().data_ptr() for value in (*backbone.parameters(), *backbone.buffers())}
    own = sum(4 * value.numel() for model in tasks for value in model.task_parameters().values())
    assert sum(size for place, size in storages.items() if place not in shared) == own


def test_moving_one_task_moves_the_weights_that_all_share() -> None:
    backbone = Backbone(tiny("llama"))
    a, b = task_on(backbone), task_on(backbone, seed=2)
    fingerprint = b.backbone.fingerprint()
    a.half()
    assert {value.dtype for value in b.backbone.parameters()} == {torch.float16}
    assert {value.dtype for value in b.task_parameters().values()} == {torch.float32}
    assert b.backbone.dtype == backbone.dtype == torch.float16
    assert b.backbone.fingerprint() == fingerprint
    names = [name for name, _ in backbone.model.named_buffers()]
    assert names
    for name in names:
        assert b.backbone.model.get_buffer(name) is a.backbone.model.get_buffer(name)
    expected = task_on(Backbone(tiny("llama")).half(), seed=2)
    expected.load_state_dict(b.state_dict())
    assert torch.equal(answer(b, "llama"), answer(expected, "llama"))
    a.to("meta")
    assert {value.device.type for each in (b.backbone, backbone) for value in each.parameters()} == {"meta"}


def test_deep_copies_of_two_tasks_still_share_theirs() -> None:
    backbone = Backbone(tiny("bert"))
    a, b = deepcopy((task_on(backbone), task_on(backbone, seed=2)))
    mine, theirs = dict(a.backbone.named_parameters()), dict(b.backbone.named_parameters())
    assert all(mine[name] is theirs[name] for name in mine)
    assert not {id(value) for value in mine.values()} & {id(value) for value in backbone.parameters()}
    assert a.backbone.weights is b.backbone.weights is not backbone.weights
    with torch.no_grad():
        mine["model.bert.embeddings.word_embeddings.weight"].mul_(2)
    assert torch.equal(answer(task_on(a.backbone)), answer(task_on(b.backbone)))


def test_checkpointing_of_peft_holds_for_every_adapter() -> None:
    model = PeftModel(tiny("bert"), PrefixTuningConfig(num_virtual_tokens=4), "one")
    model.add_adapter("two", PrefixTuningConfig(num_virtual_tokens=4))
    model.gradient_checkpointing_enable()
    model.add_adapter("three", PrefixTuningConfig(num_virtual_tokens=4))
    for name in ("one", "two", "three"):
        model.set_adapter(name)
        assert model.active.backbone.engine.checkpoint_activations
        assert "backbone" not in "".join(model.state_dict())
    model.gradient_checkpointing_disable()
    assert not any(task.backbone.engine.checkpoint_activations for task in model.adapters.values())


# ------------------------------------------------------------------------------------------ predictions


def token_rows(lengths: list[int]) -> list[TokenRow]:
    return [
        TokenRow(
            input_ids=ragged([n], seed=n)[0][0].tolist(), token_type_ids=None, segment_ids=None, label=n % 3
        )
        for n in lengths
    ]


def test_the_plain_backbone_is_asked_whatever_the_mode() -> None:
    backbone = Backbone(tiny("bert"))
    model, rows = task_on(backbone), token_rows([4, 6])
    with model.disabled():
        plain = logits_of(model, rows)
    model.backbone.dropout = True
    model.train()
    assert not torch.equal(logits_of(model, rows), plain)
    with model.disabled():
        assert torch.equal(logits_of(model, rows), plain)


@pytest.mark.parametrize(
    "config", [UNITS, InputPrompt(num_virtual_tokens=4, encoder=LSTMEncoder(dropout=0.5))]
)
def test_a_model_left_in_training_mode_is_asked_by_threads(config: Any) -> None:
    """One begins, another begins, the first ends: the other's answers go on without dropout."""
    model = task_on(Backbone(tiny("bert")), config)
    rows = token_rows([4, 6, 8, 5])
    alone = logits_of(model, rows, batch_size=1)
    model.backbone.dropout = True
    model.train()
    modes = [module.training for part in (model, model.backbone) for module in part.modules()]
    assert all(modes)
    second_began, first_ended = threading.Event(), threading.Event()
    found: dict[str, Tensor] = {}

    def second(_: int) -> None:
        second_began.set()
        assert first_ended.wait(WAIT)

    thread = threading.Thread(
        target=lambda: found.update(second=logits_of(model, rows, batch_size=1, on_batch=second)), daemon=True
    )

    def first(_: int) -> None:
        if not second_began.is_set():
            thread.start()
            assert second_began.wait(WAIT)

    found["first"] = logits_of(model, rows, batch_size=1, on_batch=first)
    first_ended.set()
    thread.join(WAIT)
    assert torch.equal(found["first"], alone)
    assert torch.equal(found["second"], alone)
    assert [module.training for part in (model, model.backbone) for module in part.modules()] == modes


def test_a_head_is_fitted_while_another_task_predicts() -> None:
    """And while the same one does: only the batches of the fit come by."""
    backbone = Backbone(tiny("bert"))
    right, a, b = task_on(backbone), task_on(backbone), task_on(backbone, seed=2)
    split = Split(rows=token_rows([4, 5, 6, 7]), targets=np.array([1.0, 2, 0, 1]))
    loss = fit_head(right, split)

    def other(*_: int) -> None:
        side_by_side(lambda: answer(b), lambda: answer(a))

    assert fit_head(a, split, other) == loss
    for name, value in right.head.named().items():
        assert torch.equal(a.head.named()[name], value), name


# --------------------------------------------------------------------------------------------- training

FIT = FitConfig(epochs=2, batch_size=8, prompt_rate=1e-2, head_rate=1e-2, backbone_dropout=True)


@pytest.fixture
def made(tiny_folder: Path) -> Callable[..., PTuningModel]:
    """Tasks on one backbone."""
    first = PTuningModel.from_backbone(str(tiny_folder), UNITS, num_labels=2)
    first.set_task(plain_task(2, None))

    def make(seed: int = 0) -> PTuningModel:
        torch.manual_seed(seed)
        return PTuningModel(first.backbone, UNITS, first.task, tokenizer=first.tokenizer)

    return make


def numbered(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = [{"text": row["text"], "label": int(row["label"] == "positive")} for row in rows]
    return {"train": found, "validation": found[:12]}


def values(model: PTuningModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.task_parameters().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Asks(Callback):
    """Called after every step of a run."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def on_step_end(self, state: RunState) -> None:
        self.ask()


def test_training_beside_predictions_changes_neither(made: Callable[..., PTuningModel], rows: Rows) -> None:
    """The default recipe's dropout is on in the run. Between its steps, and at any other time."""
    data = numbered(rows(48))
    fit(alone := made(), data, FIT)
    a, b = made(), made(1).eval()
    predictor = Predictor(model=b)
    texts = [row["text"] for row in data["train"]]
    right, predicted = answer(b), predictor(texts)
    between: list[bool] = []
    meanwhile: list[bool] = []
    over = threading.Event()

    def ask_always() -> None:
        while not over.is_set():
            meanwhile.append(torch.equal(answer(b), right) and predictor(texts) == predicted)

    def run() -> None:
        try:
            fit(a, data, FIT, callbacks=[Asks(lambda: between.append(torch.equal(answer(b), right)))])
        finally:
            over.set()

    side_by_side(run, ask_always)
    assert between
    assert meanwhile
    assert all(between)
    assert all(meanwhile)
    assert equal(values(a), values(alone))
    assert predictor(texts) == predicted


def test_two_trainings_end_where_each_ends_alone(made: Callable[..., PTuningModel], rows: Rows) -> None:
    """Step by step in turns, with dropout: neither sees the other's random numbers, nor its parameters."""
    data = numbered(rows(48))

    def run(seed: int, meet: Callable[[], None]) -> tuple[dict[str, Tensor], Any]:
        model = models[seed]
        result = fit(model, data, FIT.model_copy(update={"seed": seed}), callbacks=[Asks(meet)])
        return values(model), result.history

    models = [made(seed) for seed in (0, 1)]
    alone = [run(seed, lambda: None) for seed in (0, 1)]
    models = [made(seed) for seed in (0, 1)]
    barrier = threading.Barrier(2, timeout=WAIT)
    together = side_by_side(*(lambda seed=seed: run(seed, barrier.wait) for seed in (0, 1)))  # type: ignore[misc]
    for (got, history), (expected, before) in zip(together, alone, strict=True):
        assert equal(got, expected)
        assert history == before
    assert not equal(alone[0][0], alone[1][0])


def test_whole_runs_in_threads_are_those_alone(
    tiny_folder: Path, tmp_path: Path, jsonl: Callable[..., Path], rows: Rows
) -> None:
    """From the first number that is drawn, for prompt and head, to the last; another thread makes tasks."""
    file = jsonl("train.jsonl", rows(48))

    def config(name: str, seed: int) -> TrainConfig:
        return TrainConfig.checked(
            {
                "data": {"train": str(file)},
                "backbone": str(tiny_folder),
                "output": str(tmp_path / name),
                "report": False,
                "device": "cpu",
                "precision": "fp32",
                "prompt": {"num_virtual_units": 3},
                "fit": {"epochs": 1, "seed": seed, "backbone_dropout": True},
            }
        )

    for seed in (0, 1):
        train(config(f"alone-{seed}", seed))
    over = threading.Event()

    def make() -> None:
        while not over.is_set():
            PTuningModel.from_backbone(str(tiny_folder), UNITS, num_labels=2)

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    try:
        side_by_side(*(lambda seed=seed: train(config(f"together-{seed}", seed)) for seed in (0, 1)))  # type: ignore[misc]
    finally:
        over.set()
        maker.join(WAIT)
    for seed in (0, 1):
        files = [
            (tmp_path / f"{name}-{seed}" / "adapter_model.safetensors").read_bytes()
            for name in ("alone", "together")
        ]
        assert files[0] == files[1], seed


def test_a_run_leaves_the_generator_as_it_was(made: Callable[..., PTuningModel], rows: Rows) -> None:
    model = made()
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    fit(model, numbered(rows(24)), FIT.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_runs_random_numbers_go_on_where_they_were() -> None:
    torch.manual_seed(3)
    expected = torch.rand(6)
    torch.manual_seed(3)
    draws = Draws(torch.device("cpu"))
    got = []
    for _ in range(3):
        with draws.drawing(), draws.drawing():
            got.append(torch.rand(2))
        torch.manual_seed(4)  # somebody else
    assert torch.equal(torch.cat(got), expected)


# ------------------------------------------------------------------------------------------------ forks


def forked(child: Callable[[], bool]) -> int:
    """The exit status of a forked child that says whether all was well; 99 if it hangs."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            signal.alarm(60)  # should the parent be gone
            torch.set_num_threads(1)
            status = 0 if child() else 2
        finally:
            os._exit(status)
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 99


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
quiet = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@forks
@quiet
@pytest.mark.parametrize("same", [False, True], ids=["another task", "the same task"])
def test_a_child_forked_during_a_pass_predicts(same: bool) -> None:
    backbone = Backbone(tiny("bert"))
    a, b = task_on(backbone), task_on(backbone, seed=2)
    asked = a if same else b
    right = answer(asked)
    with held_inside(layer(a), lambda: answer(a)):
        assert forked(lambda: torch.equal(answer(asked), right)) == 0


@forks
@quiet
@pytest.mark.parametrize("lock", [TOKENIZER, GENERATORS, ACCELERATE], ids=["words", "numbers", "device"])
def test_a_child_forked_while_a_lock_is_held_finds_it_free(lock: Any) -> None:
    """And nobody is in the middle of what it guards."""
    held, middle = threading.Event(), [False]

    def load_backbone() -> None:
        with lock:
            middle[0] = True
            held.set()
            time.sleep(0.2)
            middle[0] = False

    thread = threading.Thread(target=load_backbone, daemon=True)
    thread.start()
    assert held.wait(WAIT)

    def child() -> bool:
        return not middle[0] and lock.acquire(timeout=5)

    assert forked(child) == 0
    thread.join(WAIT)
    assert lock.acquire(timeout=5)
    lock.release()


@forks
@quiet
def test_children_forked_while_threads_predict_and_train(
    made: Callable[..., PTuningModel], rows: Rows
) -> None:
    data = numbered(rows(24))
    model, trained = made().eval(), made(1)
    predictor, texts = Predictor(model=model), [row["text"] for row in data["train"]]
    right, over = predictor(texts), threading.Event()

    def busy() -> None:
        while not over.is_set():
            predictor(texts)

    def training() -> None:
        while not over.is_set():
            fit(trained, data, FIT.model_copy(update={"epochs": 1}))

    threads = [threading.Thread(target=each, daemon=True) for each in (busy, training)]
    for thread in threads:
        thread.start()
    try:
        assert [forked(lambda: predictor(texts) == right) for _ in range(4)] == [0] * 4
    finally:
        over.set()
        for thread in threads:
            thread.join(WAIT)
