"""Data sets that were tokenised before: the run on them is, to the bit, the run on their texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from conftest import WORDS, sentiment
from ptuning import DeepPrompt, FitConfig, InputPrompt, PTuningModel, Task, TrainResult, fit
from ptuning.data.tokenised import is_tokenised
from ptuning.errors import ConfigError, DataError
from ptuning.model import PromptConfig
from ptuning.training.checkpoint import data_digest
from ptuning.training.config import DataConfig
from ptuning.training.prepare import gather, tokenised
from tiny import tiny

Row = dict[str, Any]
Rows = Callable[..., list[Row]]
Run = tuple[TrainResult, PTuningModel]

LABELS = ("negative", "positive")
SINGLE = Task(problem_type="single_label_classification", labels=LABELS)
PAIR = Task(problem_type="single_label_classification", labels=LABELS, pair=True)
MULTI = Task(problem_type="multi_label_classification", labels=("b", "a", "c"))
DEEP = DeepPrompt(num_virtual_tokens=4)
ONCE = FitConfig(epochs=2, batch_size=8)
OPTIONS = DataConfig(train="given")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_folder)
    return found


@pytest.fixture
def train_rows(rows: Rows) -> list[Row]:
    return rows(48)


@pytest.fixture
def held_rows(rows: Rows) -> list[Row]:
    return rows(16, seed=1)


def model_for(folder: Path, task: Task = SINGLE, prompt: PromptConfig = DEEP) -> PTuningModel:
    torch.manual_seed(0)
    return PTuningModel.from_backbone(str(folder), prompt, task=task, dtype=torch.float32)


def trained(model: PTuningModel, data: Any, config: FitConfig = ONCE, **options: Any) -> Run:
    return fit(model, data, config, **options), model


def same(one: Run, other: Run) -> None:
    """Losses and parameters agree to the bit."""
    assert [each.train_loss for each in one[0].history] == [each.train_loss for each in other[0].history]
    assert [each.metrics for each in one[0].history] == [each.metrics for each in other[0].history]
    left, right = one[1].task_parameters(), other[1].task_parameters()
    assert all(torch.equal(left[name], right[name]) for name in left)


def made(tokenizer: PreTrainedTokenizerBase, rows: list[Row], **options: Any) -> Dataset:
    """As users make it: the texts stay beside the token ids, labels are class indices."""
    data = Dataset.from_list([{"text": each["text"], "label": LABELS.index(each["label"])} for each in rows])
    return data.map(lambda part: tokenizer(part["text"], truncation=True, **options), batched=True)


# ------------------------------------------------------------------------ the run on the texts

FORMS: dict[str, Callable[[Dataset], Any]] = {
    "a Dataset": lambda data: data,
    "in torch's format": lambda data: data.with_format("torch"),
    "in numpy's format, of some columns": lambda data: data.with_format("numpy", columns=["input_ids"]),
    "with labels as the Trainer calls them": lambda data: data.rename_column("label", "labels"),
    "with both": lambda data: data.map(lambda row: {"labels": row["label"], "label": 1 - row["label"]}),
    "without texts": lambda data: data.remove_columns("text"),
    "with class labels": lambda data: data.cast_column("label", ClassLabel(names=list(LABELS))),
    "with class labels in another order": lambda data: data.map(
        lambda row: {"label": 1 - row["label"]}
    ).cast_column("label", ClassLabel(names=list(LABELS[::-1]))),
    "with class labels of other names": lambda data: data.cast_column("label", ClassLabel(names=["0", "1"])),
    "with the task's own labels": lambda data: Dataset.from_list(
        [{**row, "label": LABELS[row["label"]]} for row in data]
    ),
    "streaming": lambda data: data.to_iterable_dataset(),
    "streaming, mapped": lambda data: data.remove_columns("input_ids").to_iterable_dataset().map(
        lambda row, at: {"input_ids": data[at]["input_ids"]}, with_indices=True
    ),
    "a list": lambda data: data.to_list(),
    "a list of tensors": lambda data: list(data.with_format("torch")),
    "a list of arrays": lambda data: list(data.with_format("numpy")),
    "a list without masks": lambda data: [
        {name: row[name] for name in ("input_ids", "token_type_ids", "label")} for row in data
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def on_texts(tiny_folder: Path) -> Run:
    """The run on the texts themselves."""
    found = trained(model_for(tiny_folder), {"train": sentiment(48), "validation": sentiment(16, seed=1)})
    assert len({each.train_loss for each in found[0].history}) == 2  # it moves, so equality says something
    return found


@pytest.mark.parametrize("name", FORMS)
def test_every_form_trains_as_its_texts_do_to_the_bit(
    tiny_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: list[Row],
    held_rows: list[Row],
    on_texts: Run,
    name: str,
) -> None:
    form = FORMS[name]
    data = {
        "train": form(made(tokenizer, train_rows)),
        "validation": form(made(tokenizer, held_rows)),
    }
    assert all(map(is_tokenised, data.values()))
    same(trained(model_for(tiny_folder), data), on_texts)


def test_token_ids_are_taken_and_the_texts_beside_them_are_not(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row]
) -> None:
    blank = made(tokenizer, train_rows).map(lambda row: {"text": ""})  # as a text, an error
    same(
        trained(model_for(tiny_folder), {"train": blank}),
        trained(model_for(tiny_folder), {"train": train_rows}),
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_unpadded(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row], side: str
) -> None:
    padded = made(tokenizer, train_rows, padding="max_length", padding_side=side, max_length=30)
    assert {len(row["input_ids"]) for row in padded} == {30}
    same(
        trained(model_for(tiny_folder), {"train": padded}),
        trained(model_for(tiny_folder), {"train": train_rows}),
    )


def test_a_dataset_dict_is_the_mapping(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row], held_rows: list[Row]
) -> None:
    splits = DatasetDict({"train": made(tokenizer, train_rows), "validation": made(tokenizer, held_rows)})
    texts = trained(model_for(tiny_folder), {"train": train_rows, "validation": held_rows})
    same(trained(model_for(tiny_folder), splits), texts)


def test_the_validation_share_is_the_same_rows(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row]
) -> None:
    """Stratified and with equal rows on one side, as texts are: two rows in three say the same here."""
    doubled = [row for row in train_rows for _ in range(2)]
    columns = {"validation_fraction": 0.25}
    texts = trained(model_for(tiny_folder), {"train": doubled}, columns=columns)
    tokens = trained(model_for(tiny_folder), {"train": made(tokenizer, doubled)}, columns=columns)
    assert tokens[0].setting["rows"] == texts[0].setting["rows"] == {"train": 72, "validation": 24}
    same(tokens, texts)


@pytest.mark.parametrize("tokens", ["train", "validation"])
def test_kinds_may_be_mixed(
    tiny_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: list[Row],
    held_rows: list[Row],
    tokens: str,
) -> None:
    splits: dict[str, Any] = {"train": train_rows, "validation": held_rows, "test": held_rows}
    texts = trained(model_for(tiny_folder), splits)
    mixed = trained(model_for(tiny_folder), {**splits, tokens: made(tokenizer, splits[tokens])})
    same(mixed, texts)
    assert mixed[0].metrics == texts[0].metrics


def test_a_model_without_a_tokenizer_trains_on_them(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row]
) -> None:
    backbone = model_for(tiny_folder).backbone
    torch.manual_seed(0)
    bare = PTuningModel.from_backbone(backbone, DEEP, task=SINGLE)
    assert bare.tokenizer is None
    fit(bare, {"train": made(tokenizer, train_rows)}, ONCE)
    with pytest.raises(ConfigError, match="no tokenizer"):
        fit(bare, {"train": train_rows}, ONCE)


def test_a_run_on_texts_goes_on_on_their_tokens(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row], held_rows: list[Row]
) -> None:
    """The checkpoint's digest of the data is over what the model sees."""
    model = model_for(tiny_folder)
    examples = [
        gather({"train": each, "validation": each}, OPTIONS, seed=0, task=SINGLE)[0].train
        for each in (train_rows, made(tokenizer, train_rows), made(tokenizer, held_rows))
    ]
    texts, tokens, others = (data_digest(tokenised(model, each).rows) for each in examples)
    assert texts == tokens != others


# ---------------------------------------------------------------------- pairs, and where texts begin


def paired(rows: list[Row]) -> list[Row]:
    return [{**row, "text_b": other["text"]} for row, other in zip(rows, rows[::-1], strict=True)]


def pairs_made(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> list[Row]:
    return [
        {**tokenizer(row["text"], row["text_b"], truncation=True), "labels": LABELS.index(row["label"])}
        for row in rows
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        DEEP,
        InputPrompt(num_virtual_tokens=4, placement="front"),
        InputPrompt(num_virtual_tokens=4, placement="between"),
    ],
    ids=["deep", "front", "between"],
)
def test_pairs_train_as_their_texts_do(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row], prompt: PromptConfig
) -> None:
    rows = paired(train_rows)
    texts = trained(model_for(tiny_folder, PAIR, prompt), {"train": rows})
    tokens = trained(model_for(tiny_folder, PAIR, prompt), {"train": pairs_made(tokenizer, rows)})
    same(tokens, texts)


def test_segment_ids_say_where_texts_begin_where_there_are_no_token_types(
    tokenizer: PreTrainedTokenizerBase, train_rows: list[Row]
) -> None:
    def fresh() -> PTuningModel:
        backbone = tiny("roberta", num_labels=2, vocab_size=len(tokenizer))
        torch.manual_seed(0)
        between = InputPrompt(num_virtual_tokens=4, placement="between")
        return PTuningModel.from_backbone(backbone, between, task=PAIR, tokenizer=tokenizer)

    rows = paired(train_rows)
    tokens = pairs_made(tokenizer, rows)
    with pytest.raises(DataError, match="no second text"):
        fit(fresh(), {"train": tokens}, ONCE)
    for row in tokens:
        segments = [-1, *row["token_type_ids"][1:]]
        row["segment_ids"] = [
            -1 if word == tokenizer.sep_token_id else segment
            for word, segment in zip(row["input_ids"], segments, strict=True)
        ]
    same(trained(fresh(), {"train": tokens}), trained(fresh(), {"train": rows}))


# --------------------------------------------------------------------------------------- labels


def read(rows: Any, task: Task) -> Any:
    """The labels that are read."""
    found, _ = gather({"train": rows, "validation": rows}, OPTIONS, seed=0, task=task)
    return [example.label for example in found.train]


def labelled(*labels: Any, name: str = "labels") -> list[Row]:
    return [{"input_ids": [1, 5 + i, 2], name: label} for i, label in enumerate(labels)]


def single(*labels: Any) -> Task:
    return Task(problem_type="single_label_classification", labels=labels)


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        (single("no", "yes"), (1, 0), ["yes", "no"]),
        (single("no", "yes"), ("no", "yes"), ["no", "yes"]),
        (single(0, 1), (1, 0), [1, 0]),
        (single(2, 10), (10, 2), [10, 2]),
        (single(2, 10), (0, 1), [2, 10]),
        (single(1, 2, 3), (1, 2, 1), [1, 2, 1]),  # every one is a label of the task: it is that
        (single(1, 2, 3), (0, 1, 2), [1, 2, 3]),  # 0 is none: they are indices
        (single(False, True), (1, 0), [True, False]),
        (single(False, True), (True, False), [True, False]),
        (single("no", "yes"), tuple(torch.tensor([1, 0])), ["yes", "no"]),
        (single("no", "yes"), tuple(np.array([1, 0])), ["yes", "no"]),
        (MULTI, ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0]), [("b", "c"), ()]),
        (MULTI, ([1, 1, 0], [0, 1, 0]), [("b", "a"), ("a",)]),
        (MULTI, tuple(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])), [("b", "c"), ("a",)]),
        (MULTI, (["c", "b"], []), [("c", "b"), ()]),
        (MULTI, ([2], [0, 1]), [("c",), ("b", "a")]),
        (Task(problem_type="regression"), (1.5, 2), [1.5, 2]),
        (Task(problem_type="regression"), tuple(torch.tensor([1.5, 2.0])), [1.5, 2.0]),
    ],
)
def test_labels_are_indices_or_the_tasks_own(task: Task, given: tuple[Any, ...], expected: list[Any]) -> None:
    found = read(labelled(*given), task)
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


def test_splits_read_their_labels_alike() -> None:
    """The validation rows alone could be the labels 1 and 2; the training rows say that they are indices."""
    splits = {"train": labelled(0, 1, 2), "validation": labelled(1, 2)}
    found, _ = gather(splits, OPTIONS, seed=0, task=single(1, 2, 3))
    assert [example.label for example in found.train] == [1, 2, 3]
    assert [example.label for example in found.validation] == [2, 3]


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
def test_labels_are_found_by_the_names_of_transformers(name: str) -> None:
    assert read(labelled(1, 0, name=name), SINGLE) == ["positive", "negative"]


def test_another_column_of_labels_is_named() -> None:
    rows = [{**row, "stars": 1 - row["labels"]} for row in labelled(1, 0)]
    options = DataConfig(train="given", label="stars")
    found, _ = gather({"train": rows, "validation": rows}, options, seed=0, task=SINGLE)
    assert [example.label for example in found.train] == ["negative", "positive"]


def test_columns_of_zeros_and_ones_are_several_labels() -> None:
    rows = [{"input_ids": [1, 5 + i, 2], "b": i % 2, "a": 1.0, "c": "0"} for i in range(2)]
    options = DataConfig(train="given", label="b,a,c")
    found, _ = gather({"train": rows, "validation": rows}, options, seed=0, task=MULTI)
    assert [example.label for example in found.train] == [("a",), ("b", "a")]
    rows[1]["a"] = 2
    with pytest.raises(DataError, match="row 2, label column 'a': got 2, expected 0 or 1"):
        gather({"train": rows, "validation": rows}, options, seed=0, task=MULTI)


# --------------------------------------------------------------------------------------- errors

GOOD: Row = {"input_ids": [1, 5, 6, 2], "attention_mask": [1] * 4, "token_type_ids": [0] * 4, "labels": 0}
MASKS = {"attention_mask": 1, "token_type_ids": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_ids": [1] * 61},
            "got 61 tokens, expected at most 60 .*max_length=60",
        ),  # 4 positions are the prompt's
        ({"input_ids": [1, 5000, 2]}, r"'input_ids': got 5000, expected 0 to \d+, .*own tokenizer"),
        ({"input_ids": [1, -100, 2]}, "'input_ids': got -100, expected 0 to"),
        ({"token_type_ids": [0, 0, 7, 0]}, "'token_type_ids': got 7, expected 0 to 1,"),
        ({"input_ids": []}, "'input_ids' is empty, expected at least one token"),
        ({"input_ids": None}, "'input_ids': got None, expected a flat list of whole numbers"),
        ({"input_ids": [[1, 5, 2]]}, r"'input_ids': got \(\[1, 5, 2\],\), expected .*without return_tensors"),
        ({"input_ids": ["[CLS]", "good"]}, r"'input_ids': got \('\[CLS\]', 'good'\), expected"),
        ({"attention_mask": [1, 1]}, "'attention_mask': got 2 values, expected 4"),
        ({"attention_mask": [1, 0, 1, 1]}, "'attention_mask' has a 0 between its ones"),
        ({"attention_mask": [0, 0, 0, 0]}, r"'attention_mask': got \[0, 0, 0, 0\], expected 1"),
        ({"attention_mask": [1, 2, 1, 1]}, r"'attention_mask': got \[1, 2, 1, 1\], expected 1"),
        ({"token_type_ids": None}, "'token_type_ids' is in some rows and not in others"),
        ({"labels": 2}, "the label: got 2, expected a class index from 0 to 1, or one of 'negative'"),
        ({"labels": -1}, "the label: got -1, expected a class index"),
        ({"labels": None}, "got the label None, expected a label"),
        ({"labels": [1]}, "got the list"),
    ],
)
def test_a_bad_row_is_named(tiny_folder: Path, change: Row, message: str) -> None:
    bad = {**GOOD, **change}
    if change.get("input_ids"):  # the others follow
        bad |= {name: [fill] * len(bad["input_ids"]) for name, fill in MASKS.items()}
    rows = [GOOD, bad, {**GOOD, "labels": 1}]
    model = model_for(tiny_folder)
    with pytest.raises(DataError, match=f"data.train, row 2[:,] {message}"):
        fit(model, {"train": rows, "validation": [GOOD, {**GOOD, "labels": 1}]}, ONCE)


def test_indices_and_names_in_one_column_are_a_mistake(tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="row 1: got") as caught:
        fit(model_for(tiny_folder), {"train": labelled(0, "positive")}, ONCE)
    assert caught.value.got == "the label 0 (int), but 'positive' (str) in row 2"


def test_the_good_rows_are_good(tiny_folder: Path) -> None:
    """Guards the test above."""
    rows = [GOOD, GOOD, {**GOOD, "labels": 1}]
    fit(model_for(tiny_folder), {"train": rows, "validation": rows}, ONCE)


def test_an_input_prompt_takes_its_places_off_the_limit(tiny_folder: Path) -> None:
    model = model_for(tiny_folder, prompt=InputPrompt(num_virtual_tokens=10))
    rows = [{"input_ids": [1] * size, "labels": size % 2} for size in (54, 55)]
    with pytest.raises(DataError, match=r"data.test, row 2: got 55 tokens, expected at most 54"):
        fit(model, {"train": rows[:1] + labelled(1), "validation": labelled(0, 1), "test": rows}, ONCE)


def test_rows_of_zeros_and_ones_of_another_width_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"data.train, row 2, the label: got \[1.0, 0.0\], expected 3 zeros and"
    ):
        read(labelled([1.0, 0.0, 0.0], [1.0, 0.0]), MULTI)


def test_missing_labels_name_the_split_and_the_columns(tiny_folder: Path) -> None:
    held = [{"input_ids": [1, 5, 2], "text": "good", "gold": 1}]
    with pytest.raises(
        DataError,
        match=r"data.validation: the columns are 'input_ids', 'text', 'gold', expected the labels in "
        r"'labels', 'label', 'label_ids'; add them next to 'input_ids', or name their column with columns=",
    ):
        fit(model_for(tiny_folder), {"train": labelled(0, 1), "validation": held}, ONCE)
    with pytest.raises(DataError, match=r"data.train: the columns are .*expected the labels in 'stars'"):
        fit(model_for(tiny_folder), {"train": labelled(0, 1)}, ONCE, columns={"label": "stars"})


def test_an_empty_split_is_named(tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> None:
    data = made(tokenizer, rows(8))
    with pytest.raises(DataError, match=r"data.validation: no rows, expected at least one"):
        fit(model_for(tiny_folder), {"train": data, "validation": data.select([])}, ONCE)


def test_texts_beside_tokens_must_be_what_the_task_has(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerBase, train_rows: list[Row]
) -> None:
    tokens = pairs_made(tokenizer, paired(train_rows))
    with pytest.raises(
        ConfigError, match=r"data.validation: got one text per row, expected two, as the task"
    ):
        fit(model_for(tiny_folder, PAIR), {"train": tokens, "validation": train_rows}, ONCE)


@pytest.mark.parametrize("source", ["rows.csv", [], [{"text": "good", "label": 1}], iter([GOOD]), GOOD, 7])
def test_what_is_not_tokenised(source: Any) -> None:
    assert not is_tokenised(source)


# ------------------------------------------------------------------------- transformers' Trainer


@pytest.mark.parametrize("form", ["plain", "torch"])
def test_the_same_data_set_goes_into_the_trainer(
    tiny_folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, rows: Rows, form: str
) -> None:
    """With its text column and its ``label``, which the Trainer's own defaults take off and rename."""
    data, held = made(tokenizer, rows(96)), made(tokenizer, rows(40, seed=1))
    if form == "torch":
        data.set_format("torch")
        held.set_format("torch")
    assert set(data.column_names) == {"text", "label", "input_ids", "token_type_ids", "attention_mask"}
    assert {"good", "bad"} <= set(WORDS)
    fitted = fit(
        model_for(tiny_folder), {"train": data, "validation": held}, FitConfig(epochs=6, batch_size=8)
    )
    assert fitted.metrics["validation"]["accuracy"] > 0.9
    trainer = Trainer(
        model=model_for(tiny_folder),
        args=TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            learning_rate=3e-2,
            num_train_epochs=6,
            per_device_train_batch_size=8,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
        eval_dataset=held,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"right": float(np.mean(found[0].argmax(-1) == found[1]))},
    )
    trainer.train()
    assert trainer.evaluate()["eval_right"] > 0.9
