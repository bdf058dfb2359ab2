"""The main job on real weights: MiniLM learns from the demo's rows, from the examples, from SST-2."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ptuning import Predictor, PTuningModel, TrainConfig, train
from ptuning.cli import demo_baselines, main
from ptuning.model.embedded import HUB_ID, resolve
from ptuning.training.console import ConsoleCallback

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def test_the_demo_learns_and_says_what_to_type_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("head_only", "fine_tune"):  # one epoch shows that they run
        monkeypatch.setattr(demo_baselines, name, partial(getattr(demo_baselines, name), epochs=1))
    assert main(["demo", "--epochs", "5"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "regression on embeddings",
        "head only",
        "full fine-tuning",
        "ptuning, deep prompt",
        "ptuning train my.csv",
    ):
        assert words in printed
    result = json.loads((tmp_path / "demo-adapter.run" / "result.json").read_text())
    assert result["baseline"]["test"]["accuracy"] == pytest.approx(1 / 6)
    assert result["metrics"]["test"]["accuracy"] > 0.7
    assert result["trained"] / result["total"] < 0.01
    model = PTuningModel.from_pretrained("demo-adapter")
    found = Predictor(model=model)(["my parcel has not arrived", "the app crashes when I open it"])
    assert [each.label for each in found] == ["delivery", "technical"]
    assert main(["inspect", "demo-adapter", "--backbone", "demo"]) == 0
    assert "fits demo" in capsys.readouterr().out


def test_ctrl_c_in_the_demo_promises_nothing_that_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ConsoleCallback, "on_step_end", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    assert main(["demo", "--epochs", "1"]) == 130
    assert capsys.readouterr().err == "ptuning: interrupted; ptuning demo always starts from scratch\n"


def test_the_embedded_backbone_stands_in_for_its_hub_id() -> None:
    assert resolve("demo") == resolve(HUB_ID)
    assert Path(resolve("demo"), "model.safetensors").is_file()
    assert resolve("roberta-base") == "roberta-base"


def run_example(name: str, *arguments: str) -> None:
    """An example as a user runs it, in this process."""
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    finally:
        sys.argv = before


def test_the_guide_runs_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PTUNING_DATA", raising=False)
    run_example("guide_mrpc.py", "--output", str(tmp_path / "guide"), "--epochs", "2")
    printed = capsys.readouterr().out
    assert "trainable params: 123778 || all params: 22836994 || trainable%: 0.5420065355361569" in printed
    assert printed.count("'eval_accuracy'") >= 3  # each epoch, and the best model at the end
    assert "equivalent: " in printed
    loaded = PTuningModel.from_pretrained(tmp_path / "guide")
    assert loaded.task.labels == ("not equivalent", "equivalent")
    assert loaded.provenance.encoder.kind == "mlp"


def test_the_prompt_in_the_middle_learns_with_everything_else_frozen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_example("prompt_in_the_middle.py")
    lines = capsys.readouterr().out.splitlines()
    assert "trained: ['prompt_encoder.weight']" in lines
    losses = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("Epoch")]
    assert len(losses) == 30
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.data
def test_some_rows_of_sst2_beat_the_baseline_by_far(data_root: Path, tmp_path: Path) -> None:
    with (data_root / "sst2" / "train.jsonl").open(encoding="utf-8") as stream:
        (tmp_path / "train.jsonl").write_text("".join(itertools.islice(stream, 600)), encoding="utf-8")
    with (data_root / "sst2" / "validation.jsonl").open(encoding="utf-8") as stream:
        (tmp_path / "test.jsonl").write_text("".join(itertools.islice(stream, 300)), encoding="utf-8")
    config = TrainConfig.checked(
        {
            "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")},
            "output": str(tmp_path / "sst2"),
            "report": False,
            "fit": {"epochs": 2},
        }
    )
    result = train(config)
    assert result.metrics["test"]["accuracy"] > result.baseline["test"]["accuracy"] + 0.15


def test_a_backbone_in_bf16_and_in_fp32_take_the_same_adapter(tmp_path: Path) -> None:
    model = PTuningModel.from_backbone("demo", num_labels=2, dtype=torch.float32)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.randint(1000, 2000, (2, 9))
    full = PTuningModel.from_pretrained(tmp_path / "adapter").eval()(ids).logits
    half = PTuningModel.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16).eval()(ids).logits
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)
