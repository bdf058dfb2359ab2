"""The report where it is made: after runs and searches, and by ``ptuning evaluate`` and ``report``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ptuning import FitConfig, PTuningModel, TrainConfig, fit, train, train_search, train_several
from ptuning.cli import main, report
from ptuning.cli.evaluated import evaluated
from ptuning.cli.shared import load_model
from ptuning.errors import ConfigError
from ptuning.report import comparison, page
from ptuning.report.facts import facts_of
from ptuning.training import search
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.config import DataConfig
from ptuning.training.interrupt import Interrupted
from ptuning.training.run_files import REPORT, unfinished
from test_report_page import checked, sections

Rows = Callable[..., list[dict[str, Any]]]
Made = Callable[..., TrainConfig]
SECTIONS = ["metrics", "learning", "confusion", "labels", "thresholds", "confidence", "rows", "label-errors"]


class Told(Callback):
    """What a run says, and whether its report was there at the end."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.was_there: bool | None = None

    def on_message(self, message: str) -> None:
        self.said.append(message)

    def on_train_end(self, state: RunState) -> None:
        assert state.folder is not None
        self.was_there = (state.folder / REPORT).exists()


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Callable[..., Path]) -> Made:
    data = {"train": str(jsonl("train.jsonl", rows(48))), "test": str(jsonl("test.jsonl", rows(24, seed=1)))}

    def make(output: str = "out", **options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "data": {**data, "validation_fraction": 0.25},
            "backbone": str(tiny_folder),
            "output": str(tmp_path / output),
            "precision": "fp32",
            "device": "cpu",
            "prompt": {"num_virtual_tokens": 2},
            "fit": {"num_train_epochs": 2, "batch_size": 8, "learning_rate": 3e-2},
            **options,
        }
        return TrainConfig.checked(values)

    return make


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def shown(text: str) -> str:
    """The words of a page, without its elements."""
    return " ".join(unescape(re.sub("<[^>]*>", " ", text)).split())


def test_a_run_has_a_report_of_its_own_figures(config: Made, tmp_path: Path) -> None:
    told = Told()
    result = train(config(), callbacks=[told])
    text = text_of(tmp_path / "out.run" / REPORT)
    checked(text)
    assert [each for each in sections(text) if each in SECTIONS] == SECTIONS
    words = shown(text)
    for split in ("validation", "test"):
        for name, value in result.metrics[split].items():
            assert f"{name} {value:.3f}" in words
    assert f"test of test.jsonl: {result.setting['rows']['test']} rows" in words
    assert text.count(">kept</span></td>") == len(result.averaged)
    assert json.loads(text_of(tmp_path / "out" / "ptuning.json"))["sha256_self"][:12] in words
    assert told.was_there
    assert re.search("The validation rows also chose the checkpoints?(,| and) ", words)
    assert result.setting["rows"]["test"] == 24
    assert json.loads(text_of(tmp_path / "test.jsonl").splitlines()[0])["text"].split()[0] in words


def test_it_changes_nothing_and_can_be_switched_off(config: Made, tmp_path: Path) -> None:
    reported, without = train(config("a")), train(config("b", report=False))
    assert reported.history == without.history
    assert reported.metrics == without.metrics
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()
    assert not (tmp_path / "b.run" / REPORT).exists()
    train(config("a", report=False, fit={"num_train_epochs": 1}), restart=True)
    assert not (tmp_path / "a.run" / REPORT).exists()  # that of another adapter
    with pytest.raises(ConfigError, match="no_texts: no report is written"):
        config(report=False, no_texts=True)


def test_texts_can_be_left_out_and_a_resumed_run_has_the_same_report(config: Made, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step_end(self, state: RunState) -> None:
            if state.step == 7:
                raise KeyboardInterrupt

    made = config(no_texts=True)
    train(made)
    file = tmp_path / "out.run" / REPORT
    first = text_of(file)
    assert "Their texts are left out" in first
    with pytest.raises(Interrupted):
        train(made, restart=True, callbacks=[Stop()])
    assert not file.exists()
    train(made, resume=True)
    changing = r">(created|seconds|digest)</span>.*?</tr>"
    assert re.sub(changing, "", text_of(file), flags=re.DOTALL) == re.sub(
        changing, "", first, flags=re.DOTALL
    )


def test_a_report_that_cannot_be_drawn_loses_nothing(
    config: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(data: object) -> str:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(page, "page_of", broken)
    told = Told()
    result = train(config(), callbacks=[told])
    assert (tmp_path / "out" / "ptuning.json").exists()
    assert (tmp_path / "out.run" / "result.json").exists()
    assert result.adapter == tmp_path / "out"
    (said,) = [each for each in told.said if "could not be" in each]
    assert said.endswith("could not be written (no fonts); the adapter is not affected")


def interrupted(data: object) -> str:
    raise KeyboardInterrupt


class Uploads(Callback):
    """Is interrupted after the report."""

    def on_train_end(self, state: RunState) -> None:
        assert state.folder is not None
        assert (state.folder / REPORT).exists()
        raise KeyboardInterrupt


@pytest.mark.parametrize("drawing", [True, False])
def test_a_run_that_is_interrupted_after_its_adapter_is_finished(
    config: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawing: bool
) -> None:
    if drawing:
        monkeypatch.setattr(page, "page_of", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config(), callbacks=[] if drawing else [Uploads()])
    assert not isinstance(caught.value, Interrupted)  # there is nothing to resume
    found = json.loads(text_of(tmp_path / "out.run" / "result.json"))
    metrics = json.loads(text_of(tmp_path / "out" / "ptuning.json"))["metrics"]
    assert found["metrics"]["test"] == metrics["test"]
    assert not unfinished(tmp_path / "out.run")


def test_a_set_that_is_interrupted_while_its_report_is_drawn_is_finished(
    config: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "comparison_page", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_several(config(report=True), seeds=[0])
    monkeypatch.undo()
    assert [each["name"] for each in json.loads(text_of(tmp_path / "out.run" / "result.json"))["runs"]] == [
        "seed-0"
    ]
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "set.html")]) == 0
    assert "seed-0" in text_of(tmp_path / "set.html")


def test_several_runs_have_one_each_and_one_that_compares(config: Made, tmp_path: Path) -> None:
    found = train_several(config(), seeds=[0, 1])
    for name in ("seed-0", "seed-1"):
        assert "metrics" in sections(text_of(tmp_path / "out.run" / f"{name}.run" / REPORT))
    text = text_of(tmp_path / "out.run" / REPORT)
    checked(text)
    words = shown(text)
    assert "2 runs side by side" in words
    assert "The validation rows of a training also choose its checkpoint" in words
    assert f"{found.best.name} (chosen)" in words
    mean, deviation = found.over_seeds[0].metrics["test"]["accuracy"]
    assert f"{mean:.3f} ± {deviation:.3f}" in words
    output = str(tmp_path / "again.html")
    assert main(["report", str(tmp_path / "out"), "--output", output]) == 0
    again = text_of(Path(output))
    assert sections(again) == sections(text)
    assert shown(again).count("seed-1") >= shown(text).count("seed-1") - 1


def test_a_search_compares_its_trials(config: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    made = config(
        recipe="search", search={"trials": 2, "epochs": 1}, fit={"num_train_epochs": 1, "batch_size": 8}
    )
    found = train_search(made)
    words = shown(text_of(found.folder / REPORT))
    assert "2 trials side by side" in words
    assert f"trial {found.winner} (chosen)" in words
    assert "metrics" in sections(text_of(tmp_path / "out.run" / REPORT))

    def broken(*args: object) -> None:
        raise RuntimeError("no trials")

    monkeypatch.setattr(search, "comparison_of_trials", broken)
    train_search(made, restart=True)  # neither what is there nor a report that cannot be made is an obstacle
    assert not (found.folder / REPORT).exists()


def test_fit_writes_one_next_to_its_adapter(tiny_folder: Path, tmp_path: Path, rows: Rows) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), num_labels=2)
    pairs = [(row["text"], row["label"]) for row in rows(32)]
    options = FitConfig(num_train_epochs=1, batch_size=8)
    fit(model, {"train": pairs, "validation": pairs[:12]}, options, output=tmp_path / "a")
    assert "metrics" in sections(text_of(tmp_path / "a.run" / REPORT))
    fit(model, {"train": pairs, "validation": pairs[:12]}, options, output=tmp_path / "b", report=False)
    assert not (tmp_path / "b.run" / REPORT).exists()


def test_rows_of_token_ids_have_no_texts(tiny_folder: Path, tmp_path: Path) -> None:
    model = PTuningModel.from_backbone(str(tiny_folder), num_labels=2)
    tokens = [{"input_ids": [1, 5 + number % 7, 2], "label": number % 2} for number in range(24)]
    data = {"train": tokens, "validation": tokens[:12]}
    fit(model, data, FitConfig(num_train_epochs=1, batch_size=8), output=tmp_path / "a")
    assert "The rows are token ids without texts" in text_of(tmp_path / "a.run" / REPORT)


@pytest.fixture(scope="module")
def adapters(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters, ``a`` and ``b``, and labelled rows, ``rows.csv``."""
    home = tmp_path_factory.mktemp("adapters")
    texts = [f"the {'good' if number % 2 else 'bad'} film, one {number}" for number in range(40)]
    lines = [f'"{text}",{"positive" if number % 2 else "negative"}' for number, text in enumerate(texts)]
    (home / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    for name, seed in (("a", 0), ("b", 1)):
        train(
            TrainConfig.checked(
                {
                    "data": {"train": str(home / "rows.csv"), "validation_fraction": 0.25},
                    "backbone": str(tiny_folder),
                    "output": str(home / name),
                    "precision": "fp32",
                    "device": "cpu",
                    "prompt": {"num_virtual_tokens": 2},
                    "fit": {"num_train_epochs": 2, "batch_size": 8, "seed": seed, "learning_rate": 3e-2},
                    "report": False,
                }
            )
        )
    return home


@pytest.fixture
def run(
    adapters: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in the folder of the adapters."""
    monkeypatch.chdir(adapters)

    def call(*argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


Run = Callable[..., tuple[int, str, str]]
CPU = ("--device", "cpu", "--precision", "fp32")


def test_evaluate_writes_a_report_of_what_it_prints(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    code, out, err = run("evaluate", "a", "rows.csv", *CPU, "--json", "--report", str(file))
    assert code == 0
    assert f"report: {file}" in err
    found, words = json.loads(out), shown(text_of(file))
    for name, value in found["metrics"].items():
        assert f"{name} {value:.3f}" in words
    assert "rows.csv: 40 rows" in words
    assert "film, one" in words
    assert run("evaluate", "a", "rows.csv", *CPU, "--report", str(file), "--no_texts")[0] == 0
    assert "film, one" not in text_of(file)
    assert run("evaluate", "a", "rows.csv", "--no_texts") == (
        2,
        "",
        "ptuning: error: --no_texts is about the report; add --report FILE.html, or leave it out\n",
    )


def test_adapters_side_by_side_as_recorded_and_on_rows(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert run("report", "a", "b", "--output", str(file))[0] == 0
    text = text_of(file)
    checked(text)
    assert sections(text) == ["metrics", "learning", "about"]
    assert run("report", "a", "b", "--data", "rows.csv", *CPU, "--output", str(file))[0] == 0
    text = text_of(file)
    checked(text)
    assert sections(text) == ["metrics", "differences", "learning", "about"]
    assert "Metrics on rows.csv" in shown(text)
    assert run("report", "a", "--data", "rows.csv", *CPU, "--output", str(file))[0] == 0
    assert {"confusion", "learning"} <= set(sections(text_of(file)))
    assert run("report", "a", "--output", str(file))[0] == 0
    assert sections(text_of(file)) == ["metrics", "learning", "about"]


def test_titles(run: Run, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.html"

    def title(*argv: str) -> str:
        assert run("report", *argv, "--output", str(file))[0] == 0
        found = re.search("<h1[^>]*>(.*?)</h1>", text_of(file), re.DOTALL)
        assert found is not None
        return found[1].strip()

    assert (title("a"), title("a", "b"), title("a", "b", "a")) == ("a", "a and b", "1. a and 2 more")
    monkeypatch.chdir(adapters / "a")
    assert title(".") == "a"
    assert "learning" in sections(text_of(file))


def test_a_backbone_is_loaded_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones = []

    def load(*args: Any, **options: Any) -> PTuningModel:
        model = load_model(*args, **options)
        backbones.append(model.backbone)
        return model

    monkeypatch.setattr(report, "load_model", load)
    shared, apart = tmp_path / "shared.html", tmp_path / "apart.html"
    assert run("report", "a", "b", "--data", "rows.csv", *CPU, "--output", str(shared))[0] == 0
    assert len(backbones) == 2
    assert backbones[0].embedding.weight is backbones[1].embedding.weight
    monkeypatch.setattr(report, "load_model", lambda given, like: load_model(given))
    assert run("report", "a", "b", "--data", "rows.csv", *CPU, "--output", str(apart))[0] == 0
    assert text_of(shared) == text_of(apart)


@pytest.mark.parametrize(
    "option", ["--no_texts", "--backbone x", "--precision bf16", "--device cpu", "--allow-pickle"]
)
def test_options_about_rows_need_rows(run: Run, tmp_path: Path, option: str) -> None:
    code, out, err = run("report", "a", *option.split(), "--output", str(tmp_path / "x.html"))
    assert (code, out) == (2, "")
    assert (
        err == f"ptuning: error: {option.split()[0]}: got no rows to read; add --data FILE, or leave it out\n"
    )


@pytest.mark.parametrize("page", ["rows.csv", "./a/../rows.csv", "a", "a/ptuning.json", "b.run/../a"])
def test_the_page_does_not_replace_what_it_is_made_of(run: Run, adapters: Path, page: str) -> None:
    def state() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in adapters.rglob("*") if file.is_file()}

    before = state()
    for argv in (
        ["evaluate", "a", "rows.csv", *CPU, "--report", page],
        ["report", "b", "a", "--data", "rows.csv", *CPU, "--output", page],
    ):
        code, out, err = run(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1), argv
        assert "choose another file" in err
    assert state() == before


def test_a_page_in_a_folder_that_does_not_exist(run: Run, adapters: Path) -> None:
    folder = adapters.resolve() / "nosuch"
    for argv in (
        ["evaluate", "a", "rows.csv", *CPU, "--report", "nosuch/page.html"],
        ["report", "a", "--output", "nosuch/page.html"],
    ):
        assert run(*argv) == (
            2,
            "",
            f"ptuning: error: {argv[-2]} nosuch/page.html: got the folder {folder}, which does not exist; "
            "make the folder first, or choose another file\n",
        )
        assert not folder.exists()


def test_what_report_refuses(run: Run, tmp_path: Path) -> None:
    code, out, err = run("report", "a", "--data.text", "text")
    assert (code, out) == (2, "")
    assert err == "ptuning: error: --data.text: got no rows to read; add --data FILE, or leave it out\n"
    code, out, err = run("report", "a", "missing/one/", "--output", str(tmp_path / "x.html"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "x.html").exists()
    (tmp_path / "file").write_text("")
    code, out, err = run("report", "a", "--output", str(tmp_path / "file" / "x.html"))
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_facts_of_an_extra_that_is_not_ptunings_own() -> None:
    backbone = {"name": "tiny", "model_type": "bert", "num_layers": 2}
    for extra in (
        {"data": {"train": {"source": "a"}}},
        {"data": {"train": {"rows": "many", "source": ["a"]}}},
        {"data": {"train": "a.csv"}, "rates": {"prompt": 10**400, "head": "x"}},
        {"data": 3, "fit": [], "rates": {"prompt": float("nan")}, "recipe": {"chose": "x"}, "init_from": "b"},
    ):
        facts_of({"prompt": {"depth": "deep"}, "backbone": backbone, "extra": extra})
    start = {"name": "first", "sha256": "0123456789abcdef", "head": "kept", "data": {"train": {"rows": 1200}}}
    record = {"prompt": {"depth": "deep"}, "backbone": backbone, "extra": {"init_from": start}}
    said = facts_of(record)["started from"]
    assert said == "first, version 0123456789ab, trained on 1,200 rows of None, with its head"


def test_a_baseline_that_is_not_ptunings_own_does_not_count(adapters: Path) -> None:
    model = PTuningModel.from_pretrained(adapters / "a")
    assert model.loaded is not None
    own = evaluated(model, str(adapters / "rows.csv"), DataConfig(train="")).baseline
    for broken in ([1], {"rule": "x"}, {"rule": "x", "logits": [1.0]}, {"rule": "x", "logits": "ab"}, 3):
        model.loaded = replace(model.loaded, extra={"baseline": broken})
        found = evaluated(model, str(adapters / "rows.csv"), DataConfig(train="")).baseline
        assert found.rule == own.rule, broken


def test_results_that_cannot_be_read_do_not_count(run: Run, adapters: Path, tmp_path: Path) -> None:
    result = adapters / "b.run" / "result.json"
    before = result.read_text()
    try:
        for broken in ("[", "[]", '{"runs": 3}', '{"runs": [{"name": "../x"}, 3]}', '{"history": [1]}'):
            result.write_text(broken)
            code, _, err = run("report", "b", "a", "--output", str(tmp_path / "x.html"))
            assert (code, err.count("\n")) == (0, 1), broken
        whole = json.loads(before)
        for name, value in (("metrics", {"test": 3}), ("baseline", []), ("seconds", "x"), ("averaged", [3])):
            result.write_text(json.dumps({**whole, name: value}))
            assert run("report", "b", "a", "--output", str(tmp_path / "x.html"))[0] == 0, name
    finally:
        result.write_text(before)
