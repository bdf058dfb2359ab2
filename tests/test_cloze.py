"""Cloze tasks from the command line, in Python and on a server: as any other task."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from language_models import language_model
from ptuning import ClozeHead, DeepPrompt, PTuningClassifier, PTuningModel, fit, pipeline
from ptuning.adapters import details
from ptuning.cli import main
from ptuning.model.verbalizer import words_for
from ptuning.training import FitConfig
from served import registry

HEAD = {"template": "{text} It was", "verbalizer": {"negative": ["terrible", "dull"], "positive": "great"}}
Row = dict[str, Any]


def rows_of(count: int, seed: int, labels: tuple[Any, Any] = ("negative", "positive")) -> list[Row]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        which = draw.randrange(2)
        word = ("dull", "great")[which]
        found.append({"text": f"a {word} film , {draw.choice(['plot', 'acting'])}", "label": labels[which]})
    return found


def write(file: Path, rows: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, rows, and the adapters ``cloze`` and ``linear`` on it."""
    folder = tmp_path_factory.mktemp("cloze")
    language_model(folder / "llama", "llama")
    write(folder / "train.jsonl", rows_of(48, 0))
    write(folder / "test.jsonl", rows_of(16, 1))
    common = ["--backbone", str(folder / "llama"), "--report", "false", "--fit.num_train_epochs", "6"]
    common += [f"--data.train={folder / 'train.jsonl'}", "--device", "cpu", "--precision", "fp32"]
    common += ["--prompt.num_virtual_tokens", "4", "--fit.learning_rate", "0.2"]
    cloze = ["--prompt.head.template", HEAD["template"], "--prompt.head.verbalizer"]
    assert (
        main(["train", *common, *cloze, json.dumps(HEAD["verbalizer"]), f"--output={folder / 'cloze'}"]) == 0
    )
    assert main(["train", *common, f"--output={folder / 'linear'}"]) == 0
    return folder


def test_it_learns_and_every_command_takes_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, test = str(home / "cloze"), str(home / "test.jsonl")
    assert main(["evaluate", adapter, test]) == 0
    assert main(["inspect", adapter]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "accuracy │ 1.0000" in shown
    assert "cloze, template '{text} It was', words negative: terrible, dull; positive: great" in shown
    assert "it has a cloze head" in shown
    assert main(["predict", adapter, "--input", test]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    classify = pipeline(adapter)
    texts = [row["text"] for row in rows_of(16, 1)]
    assert [each["label"] for each in predicted] == [each["label"] for each in classify(texts)]
    assert [each["label"] for each in predicted] == [row["label"] for row in rows_of(16, 1)]
    assert main(["calibrate", adapter, test]) == 0
    assert main(["report", adapter, str(home / "linear"), "--output", str(tmp_path / "report.html")]) == 0
    assert main(["export-peft", adapter, str(tmp_path / "peft")]) == 2
    assert "it has a cloze head" in capsys.readouterr().err


def test_the_record_says_what_it_is(home: Path) -> None:
    """Earlier versions refuse the option ``head`` of a prompt; other tasks' records do not have it."""
    record, linear = details(home / "cloze"), details(home / "linear")
    assert record["prompt"]["head"] == {
        **HEAD,
        "kind": "cloze",
        "verbalizer": {"negative": ["terrible", "dull"], "positive": ["great"]},
    }
    assert sorted(record["cloze"]) == ["head", "mask", "words"]
    assert "head" not in linear["prompt"]
    assert "cloze" not in linear
    assert record["backbone"]["fingerprint"] == linear["backbone"]["fingerprint"]  # they share a backbone


def test_a_server_has_it_next_to_other_tasks(home: Path) -> None:
    served = registry(home / "llama")
    for name in ("cloze", "linear"):
        served.load(name, home / name)
    assert len(served) == 2
    assert served.packed("cloze").key == served.packed("linear").key  # their rows share passes


def test_mixed_batches_from_the_command_line(home: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": row["text"], "task": name} for row in rows_of(4, 2) for name in ("cloze", "linear")]
    file = write(tmp_path / "mixed.jsonl", rows)
    for name in ("cloze", "linear"):
        shutil.copytree(home / name, tmp_path / "adapters" / name)
    assert main(["predict", "--adapters", str(tmp_path / "adapters"), "--input", str(file)]) == 0
    found = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    for name in ("cloze", "linear"):
        alone = pipeline(str(home / name))([row["text"] for row in rows_of(4, 2)])
        mine = [label for label, row in zip(found, rows, strict=True) if row["task"] == name]
        assert mine == [each["label"] for each in alone]


def test_a_warm_start_gives_new_labels_words(home: Path, tmp_path: Path) -> None:
    rows = [*rows_of(24, 3), *({"text": f"a moving plot , {i}", "label": "moving"} for i in range(12))]
    file = write(tmp_path / "train.jsonl", rows)
    common = ["train", f"--init_from={home / 'cloze'}", f"--data.train={file}", "--fit.num_train_epochs=2"]
    assert main([*common, f"--output={tmp_path / 'more'}", "--report", "false"]) == 0
    model = PTuningModel.from_pretrained(tmp_path / "more")
    assert model.task.labels == ("negative", "positive", "moving")
    assert model.cloze is not None
    assert len(model.cloze.words) == 3
    assert model.cloze.words[:2] == PTuningModel.from_pretrained(home / "cloze").cloze.words  # type: ignore[union-attr]


def test_a_new_head_forgets_the_words_of_other_labels(home: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [
        {**row, "text": f"{row['text']} {i}"} for i, row in enumerate(rows_of(16, 6, ("bad", "positive")))
    ]
    file = write(tmp_path / "train.jsonl", rows)
    train = ["train", f"--init_from={home / 'cloze'}", "--init_head=new", f"--data.train={file}"]
    train += ["--fit.num_train_epochs=1", f"--output={tmp_path / 'more'}", "--report=false"]
    assert main(train) == 0
    head = PTuningModel.from_pretrained(tmp_path / "more").prompt_config.head
    assert head is not None
    assert head.verbalizer == {"positive": ("great",)}
    template = f"--prompt.head.template={HEAD['template']}"
    assert (
        main([*train[:-2], f"--output={tmp_path / 'typo'}", template, "--prompt.head.verbalizer={bda: x}"])
        == 2
    )
    assert "did you mean 'bad'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "written", "labels", "found"),
    [
        ("option", "{0: bad, 1: good}", (0, 1), ("bad", "good")),
        ("file", "{yes: good, no: bad}", ("no", "yes"), ("bad", "good")),
        ("option", "{false: no, true: yes}", (False, True), ("no", "yes")),
        ("file", "{bad: [no, dull], good: yes}", ("bad", "good"), ("no", "yes")),
        ("option", '{"0": "bad", "1": "good"}', (0, 1), ("bad", "good")),
    ],
)
def test_labels_and_words_that_yaml_reads_as_numbers(
    home: Path, tmp_path: Path, place: str, written: str, labels: Any, found: Any
) -> None:
    rows = [{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(rows_of(16, 5, labels))]
    file = write(tmp_path / "train.jsonl", rows)
    train = ["train", f"--backbone={home / 'llama'}", f"--data.train={file}", "--fit.num_train_epochs=1"]
    train += ["--prompt.head.template={text} It was", f"--output={tmp_path / 'task'}", "--report=false"]
    if place == "option":
        train.append(f"--prompt.head.verbalizer={written}")
    else:
        (tmp_path / "c.yaml").write_text(f"prompt:\n  head:\n    verbalizer: {written}\n")
        train.append(f"--config={tmp_path / 'c.yaml'}")
    assert main(train) == 0
    model = PTuningModel.from_pretrained(tmp_path / "task")
    head = model.prompt_config.head
    assert head is not None
    assert [words_for(head, label)[0] for label in sorted(model.task.labels, key=str)] == list(found)


def test_in_python_and_as_an_estimator(home: Path) -> None:
    """The labels are known once the rows are read."""
    texts = [row["text"] for row in rows_of(40, 4)]
    labels = [("good", "bad")[row["label"] == "negative"] for row in rows_of(40, 4)]
    head = ClozeHead(template="{text} It was", verbalizer={"good": "great", "bad": "dull"})
    config = DeepPrompt(head=head, num_virtual_tokens=3)
    model = PTuningModel.from_backbone(str(home / "llama"), config, num_labels=2)
    fit(model, (texts, labels), FitConfig(num_train_epochs=1, learning_rate=0.1))
    assert set(model.task.labels) == {"good", "bad"}
    estimator = PTuningClassifier(
        str(home / "llama"), prompt=config, num_train_epochs=1, learning_rate=0.1, random_state=0
    ).fit(texts, labels)
    assert estimator.predict_proba(texts[:3]).shape == (3, 2)


def test_what_commands_refuse_in_a_line(home: Path, tmp_path: Path, capsys: Any) -> None:
    train = ["train", "--backbone", str(home / "llama"), f"--output={tmp_path / 'none'}"]
    numbers = write(tmp_path / "numbers.jsonl", [{"text": f"a film {i}", "label": i / 7} for i in range(40)])
    for options, said in (
        ([f"--data.train={home / 'train.jsonl'}", "--prompt.head.template", "{text_a} {text_b}"], "one text"),
        ([f"--data.train={numbers}", "--prompt.head.template", "{text} It was"], "a number has no word"),
        (
            [
                f"--data.train={home / 'train.jsonl'}",
                *("--prompt.head.template", "{text} It was", "--fit.head_learning_rate", "0.1"),
            ],
            "prompt.head is a cloze head",
        ),
    ):
        assert main([*train, *options]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error
        assert len(error.splitlines()) == 1
    train[1:3] = [f"--init_from={home / 'cloze'}", f"--data.train={home / 'train.jsonl'}"]
    assert main([*train, "--prompt.head.template", "{text} So"]) == 2
    said = capsys.readouterr().err.strip()
    assert "prompt.head.template: got '{text} So', expected '{text} It was', as" in said
    assert not (tmp_path / "none").exists()
