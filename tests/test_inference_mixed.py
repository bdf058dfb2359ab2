"""MultiPredictor: rows of many tasks, each answered as its own task's Predictor answers it."""

from __future__ import annotations

import gc
import resource
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mixed import unlike
from ptuning import MultiPredictor, Prediction, Predictor, PTuningModel, TaskTable, adapters
from ptuning.data import Example
from ptuning.errors import AdapterMismatch, ConfigError, DataError, PTuningError, TrainingDiverged
from ptuning.inference import mixed as module
from ptuning.model import Backbone
from ptuning.model.loading import load_backbone
from tiny import tiny

TEXTS = ["the film is great", "slow food", "the bill was wrong and the app is awful", "red blue", "good"]
LIMITS = ("max_text_tokens", "inserted_tokens", "needs_segments", "wanted_texts", "position_offset")
PAIR = ("the parcel is late", "the parcel was very slow")


@pytest.fixture(scope="module")
def served(tiny_folder: Path) -> tuple[Backbone, Any, dict[str, PTuningModel]]:
    torch.manual_seed(0)
    backbone, tokenizer = load_backbone(str(tiny_folder), 2, None, None, None, None)
    models = {f"task-{i}": model for i, model in enumerate(unlike(backbone))}
    for model in models.values():
        model.tokenizer = tokenizer
    return backbone, tokenizer, models


@pytest.fixture
def table(served: tuple[Backbone, Any, dict[str, PTuningModel]]) -> TaskTable:
    backbone, _, models = served
    made = TaskTable(backbone)
    for name, model in models.items():
        made.put(name, model)
    return made


def text_for(model: PTuningModel, number: int) -> Any:
    return PAIR if model.task.pair else TEXTS[number % len(TEXTS)]


def assert_same(found: Prediction, expected: Prediction) -> None:
    assert isinstance(found, Prediction)
    if expected.probabilities:
        assert found.label == expected.label
        assert [label for label, _ in found.probabilities] == [label for label, _ in expected.probabilities]
        for (_, got), (_, wanted) in zip(found.probabilities, expected.probabilities, strict=True):
            assert got == pytest.approx(wanted, abs=1e-5)
    else:
        assert found.label == pytest.approx(expected.label, abs=1e-5)


def test_each_row_is_answered_as_by_its_own_predictor(table: TaskTable, served: Any) -> None:
    _, tokenizer, models = served
    names = [name for _ in range(3) for name in models]
    texts = [text_for(models[name], i) for i, name in enumerate(names)]
    found = MultiPredictor(table, tokenizer, batch_size=7).predict(texts, names)
    assert [each.row for each in found] == list(range(1, len(names) + 1))
    for name, text, each in zip(names, texts, found, strict=True):
        (expected,) = Predictor(models[name])([text])
        assert_same(each, expected)


def test_an_error_is_its_rows_alone(table: TaskTable, served: Any) -> None:
    _, tokenizer, models = served
    pair = next(name for name, model in models.items() if model.task.pair)
    single = next(name for name, model in models.items() if not model.task.pair)
    rows: list[Any] = [TEXTS[0], "  ", PAIR, TEXTS[1], 3, TEXTS[2], "good " * 200]
    tasks = [single, single, single, "no-such-task", single, pair, single]
    predictor = MultiPredictor(table, tokenizer, too_long="error")
    found = predictor.predict(rows, tasks, errors="return")
    kinds = [type(each) for each in found]
    assert kinds == [Prediction, DataError, ConfigError, ConfigError, ConfigError, ConfigError, DataError]
    (expected,) = Predictor(models[single])([TEXTS[0]])
    first = found[0]
    assert isinstance(first, Prediction)
    assert_same(first, expected)
    with pytest.raises(DataError, match="text 2"):
        predictor.predict(rows, tasks)


def test_a_task_that_went_wrong_spoils_no_other(served: Any) -> None:
    backbone, tokenizer, models = served
    table = TaskTable(backbone)
    for name, model in models.items():
        table.put(name, model)
    broken = models["task-3"].twin()
    broken = broken.with_values(
        {k: torch.full_like(v, torch.nan) for k, v in broken.task_parameters().items()}
    )
    table.put("broken", broken)
    singles = [name for name, model in models.items() if not model.task.pair]
    names = [each for name in singles for each in (name, "broken")]
    texts = [TEXTS[i % 5] for i in range(len(names))]
    found = MultiPredictor(table, tokenizer).predict(texts, names, errors="return")
    assert [type(each) for each in found] == [Prediction, TrainingDiverged] * len(singles)
    clean = MultiPredictor(table, tokenizer).predict(texts[::2], names[::2])
    for each, expected in zip(found[::2], clean, strict=True):
        assert isinstance(each, Prediction)
        assert_same(each, expected)


def test_a_stream_answers_before_it_waits_and_before_it_fails(table: TaskTable, served: Any) -> None:
    _, tokenizer, models = served
    single = next(name for name, model in models.items() if not model.task.pair)
    taken = []

    def rows() -> Iterator[tuple[Example, str] | None]:
        for number, row in enumerate((1, 2, None, 3, 4, None, None, 5)):
            taken.append(number)
            yield None if row is None else (Example(row=row, text=TEXTS[row % 5]), single)
        raise DataError("the file ends here")

    answers = MultiPredictor(table, tokenizer, window=4).stream(rows())
    seen = []
    for answer in islice(answers, 5):
        assert isinstance(answer, Prediction)
        assert answer.task == single
        seen.append((answer.row, len(taken)))
    assert seen == [(1, 3), (2, 3), (3, 6), (4, 6), (5, 8)]
    with pytest.raises(DataError, match="the file ends here"):
        next(answers)


def test_number_of_tasks_and_options_are_checked(table: TaskTable, served: Any) -> None:
    _, tokenizer, _ = served
    with pytest.raises(ConfigError, match="one for each of 2 rows"):
        MultiPredictor(table, tokenizer).predict(TEXTS[:2], ["task-0"])
    with pytest.raises(ConfigError, match="batch_tokens"):
        MultiPredictor(table, tokenizer, batch_tokens=0)


# ------------------------------------------------------------------------------------------- the table


def test_a_replaced_task_answers_differently_and_a_removed_one_not_at_all(served: Any) -> None:
    backbone, tokenizer, models = served
    table = TaskTable(backbone)
    singles = [model for model in models.values() if not model.task.pair]
    old = table.put("t", singles[0], digest="old")
    predictor = MultiPredictor(table, tokenizer)
    (before,) = predictor.predict(TEXTS[:1], ["t"])
    table.put("t", singles[1], digest="new")
    (after,) = predictor.predict(TEXTS[:1], ["t"])
    assert before != after
    assert old.digest == "old"
    assert table["t"].digest == "new"
    table.remove("t")
    assert "t" not in table
    assert table.nbytes == 0
    with pytest.raises(KeyError):
        table.remove("t")
    (error,) = predictor.predict(TEXTS[:1], ["t"], errors="return")
    assert isinstance(error, PTuningError)


def test_a_table_has_the_bytes_of_its_tasks(table: TaskTable) -> None:
    assert table.nbytes == sum(table[name].nbytes for name in table)
    assert len(table) == len(table.names)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_tasks_beyond_the_memory_limit_are_paged(served: Any, share: float) -> None:
    backbone, tokenizer, models = served
    whole = TaskTable(backbone)
    for name, model in models.items():
        whole.put(name, model)
    limit = max(1, int(share * whole.nbytes))
    table = TaskTable(backbone, memory_limit=limit)
    largest = 0
    for name, model in models.items():
        largest = max(largest, table.put(name, model).nbytes)
        assert table.nbytes <= max(limit, largest)
    names = list(models) * 2
    texts = [text_for(models[name], i) for i, name in enumerate(names)]
    found = MultiPredictor(table, tokenizer).predict(texts, names)
    expected = MultiPredictor(whole, tokenizer).predict(texts, names)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert table.nbytes <= max(limit, largest)
    for name in models:
        table.remove(name)
    assert table.nbytes == 0


def test_rows_of_a_window_hold_no_more_tasks_than_the_limit(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task is loaded once per part, and the answers are still in order."""
    backbone, tokenizer, models = served
    singles = [model for model in models.values() if not model.task.pair]
    size = TaskTable(backbone).put("x", singles[0]).nbytes
    table = TaskTable(backbone, memory_limit=2 * size)
    for name in "abcde":
        table.put(name, singles[0])
    together = []
    real = module.mixed_logits

    def counting(backbone: Any, rows: Any, tasks: Any, **options: Any) -> Any:
        together.append({task.name: task for task in tasks})
        assert len(set(map(id, tasks))) == len(together[-1])
        return real(backbone, rows, tasks, **options)

    monkeypatch.setattr(module, "mixed_logits", counting)
    names = list("aabbaccdeedcbaa")
    found = MultiPredictor(table, tokenizer).predict([TEXTS[i % 5] for i in range(len(names))], names)
    assert [each.task for each in found] == names
    assert [sorted(each) for each in together] == [["a", "b"], ["c", "d"], ["d", "e"], ["b", "c"], ["a"]]


def test_least_recently_used_leaves_first(served: Any) -> None:
    backbone, _, models = served
    model = models["task-0"]
    size = TaskTable(backbone).put("x", model).nbytes
    table = TaskTable(backbone, memory_limit=2 * size)
    first, second = table.put("a", model), weakref.ref(table.put("b", model))
    assert table["a"] is first
    third = table.put("c", model)  # b goes
    assert table["c"] is third
    assert table["a"] is first
    gc.collect()
    assert second() is None
    assert table["b"].nbytes == size  # it is back, from its file
    assert table.nbytes == 2 * size


def test_tasks_come_and_go_while_others_predict(served: Any) -> None:
    backbone, tokenizer, models = served
    one, other, steady = (model for model in list(models.values())[:3])
    table = TaskTable(backbone, memory_limit=1)  # every use pages, too
    texts = TEXTS[:2]
    expected = {}
    for digest, model in (("one", one), ("other", other)):
        table.put("t", model, digest)
        expected[digest] = MultiPredictor(table, tokenizer).predict(texts, ["t", "t"])
    table.put("steady", steady)
    (still,) = MultiPredictor(table, tokenizer).predict(TEXTS[2:3], ["steady"])
    stop, errors = threading.Event(), []

    def change() -> None:
        for turn in range(60):
            table.put("t", (one, other)[turn % 2], ("one", "other")[turn % 2])
            if turn % 7 == 0:
                table.remove("t")
        stop.set()

    def ask() -> None:
        predictor = MultiPredictor(table, tokenizer)
        try:
            while not stop.is_set():
                first, second, third = predictor.predict(
                    [*texts, TEXTS[2]], ["t", "t", "steady"], errors="return"
                )
                assert isinstance(third, Prediction)
                assert_same(third, replace(still, row=3))
                for place, answer in enumerate((first, second)):
                    if isinstance(answer, ConfigError):
                        continue  # it was removed at that moment
                    assert isinstance(answer, Prediction)
                    assert any(_is_same(answer, each[place]) for each in expected.values())
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    change()
    for thread in threads:
        thread.join()
    assert not errors


def _is_same(found: Prediction, expected: Prediction) -> bool:
    try:
        assert_same(found, expected)
    except AssertionError:
        return False
    return True


def test_an_adapter_goes_into_the_table_without_a_model(served: Any, tmp_path: Path) -> None:
    backbone, tokenizer, models = served
    table, by_model = TaskTable(backbone, tokenizer), TaskTable(backbone)
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        table.put(name, adapters.load(tmp_path / name), digest="d")
        opened = PTuningModel.from_pretrained(tmp_path / name, backbone=backbone, tokenizer=tokenizer)
        by_model.put(name, opened)
    for name in table:
        one, other = table[name], by_model[name]
        assert one.digest == "d"
        assert one.key == other.key
        assert one.config == other.config
        values, expected = dict(one.tensors()), dict(other.tensors())
        assert values.keys() == expected.keys()
        assert [which for which in values if not torch.equal(values[which], expected[which])] == []
        for limit in LIMITS:
            assert getattr(one, limit) == getattr(models[name], limit), limit


def test_an_adapter_of_another_backbone_is_refused(served: Any, tmp_path: Path) -> None:
    backbone, _, _ = served
    PTuningModel.from_backbone(tiny("bert", hidden_size=16), num_labels=2).save_pretrained(tmp_path / "a")
    with pytest.raises(AdapterMismatch, match="hidden_size"):
        TaskTable(backbone).put("t", adapters.load(tmp_path / "a"))


def test_rows_that_wait_share_one_copy_of_a_task_that_was_paged(served: Any) -> None:
    backbone, _, models = served
    table = TaskTable(backbone, memory_limit=1)
    for name in ("a", "b"):
        table.put(name, models["task-0"])
    waiting = [table[name] for _ in range(20) for name in ("a", "b")]
    assert len({id(task) for task in waiting}) == 2
    del waiting
    gc.collect()
    assert table["a"].nbytes == table.nbytes  # read from its file


def test_a_task_that_cannot_be_stored_stays_in_memory(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    backbone, tokenizer, models = served
    table = TaskTable(backbone, memory_limit=1)
    monkeypatch.setattr("ptuning.model.table.save_file", full)
    for name in ("a", "b"):
        table.put(name, models["task-0"])
    assert "a stays in memory, beyond the limit: [Errno 28] No space left on device" in caplog.text
    assert len(MultiPredictor(table, tokenizer).predict(TEXTS[:2], ["a", "b"])) == 2
    assert table.nbytes == table["a"].nbytes + table["b"].nbytes


def test_a_full_disk_costs_no_task_and_no_new_version(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A real refusal of the operating system, as safetensors reports it."""
    backbone, tokenizer, models = served
    table = TaskTable(backbone, memory_limit=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        table.put("a", models["task-0"])
        table.put("b", models["task-0"], "old")
        table.put("b", models["task-1"], "new")
        table.put("a", table["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a stays in memory, beyond the limit" in caplog.text
    assert "too large" in caplog.text
    assert table.names == ("a", "b")
    assert table.nbytes == table["a"].nbytes + table["b"].nbytes
    assert table["b"].digest == "new"
    for name, model in (("a", models["task-0"]), ("b", models["task-1"])):
        text = text_for(model, 0)
        (expected,) = Predictor(model)([text])
        assert_same(MultiPredictor(table, tokenizer).predict([text], [name])[0], expected)
    table.put("c", models["task-0"])  # there is room again
    assert table.nbytes == table["c"].nbytes


def test_another_backbone_is_refused(served: Any, tiny_folder: Path) -> None:
    backbone, _, _ = served
    other, _ = load_backbone(str(tiny_folder), 2, None, None, None, None)
    model = PTuningModel.from_backbone(other, num_labels=2)
    with pytest.raises(AdapterMismatch, match="another backbone"):
        TaskTable(backbone).put("t", model)
    with pytest.raises(ConfigError, match="memory_limit"):
        TaskTable(backbone, memory_limit=0)


def test_a_packed_task_does_not_follow_its_model(served: Any) -> None:
    backbone, tokenizer, models = served
    table = TaskTable(backbone)
    model = models["task-0"].with_values(
        {name: value.clone() for name, value in models["task-0"].task_parameters().items()}
    )
    table.put("t", model)
    (before,) = MultiPredictor(table, tokenizer).predict(TEXTS[:1], ["t"])
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(1.0)
    (after,) = MultiPredictor(table, tokenizer).predict(TEXTS[:1], ["t"])
    assert before == after
