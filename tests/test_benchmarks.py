"""The benchmarks: the floor's arithmetic, what rounds come to, and one real worker."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from ptuning import DeepPrompt
from tiny import LAYERS, tiny

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import floor
import report
import rounds
import sides
from floor import Product, Shape, flops
from specs import Spec

B, T, P = 2, 5, 3
SHAPE = Shape(layers=2, hidden=8, heads=2, kv_heads=2, head_dim=4, intermediate=16)


def linear(*sizes: tuple[int, int, int]) -> int:
    return sum(2 * m * k * n for m, k, n in sizes)


def test_a_deep_step_by_hand() -> None:
    """Two layers: the first without input gradients of its projections, the last for one token."""
    first = linear(*[(B * T, 8, 8)] * 4, (B * T, 8, 16), (B * T, 16, 8)) + linear((T, 4, T + P)) * 2 * B * 2
    last = linear(*[(B * T, 8, 8)] * 2, *[(B, 8, 8)] * 2, (B, 8, 16), (B, 16, 8))
    last += linear((1, 4, T + P)) * 2 * B * 2
    back_last = last + linear((1, 4, T + P)) * 2 * B * 2  # four products of attention in place of two
    back_first = linear((B * T, 8, 8), (B * T, 8, 16), (B * T, 16, 8)) + linear((T, 4, P)) * 3 * B * 2
    head = 3 * linear((B, 8, 2))
    assert flops(floor.deep_training(SHAPE, B, T, P, 0)) == first + last + back_last + back_first + head


def test_a_prompt_in_the_last_layer_alone_by_hand() -> None:
    last = linear(*[(B * T, 8, 8)] * 2, *[(B, 8, 8)] * 2, (B, 8, 16), (B, 16, 8))
    last += linear((1, 4, T + P)) * 2 * B * 2
    back = linear((B, 8, 8), (B, 8, 16), (B, 16, 8)) + linear((1, 4, P)) * 3 * B * 2
    assert flops(floor.deep_training(SHAPE, B, T, P, 1)) == last + back + 3 * linear((B, 8, 2))
    whole = linear(*[(B * T, 8, 8)] * 4, (B * T, 8, 16), (B * T, 16, 8)) + linear((T, 4, T)) * 2 * B * 2
    assert flops(floor.stem(SHAPE, B, T, 1)) == whole


def test_an_input_step_by_hand() -> None:
    """The first layer's gradient is wanted at the prompt's places, from all tokens; then all of it."""
    S = T + P  # noqa: N806
    first = linear(*[(B * S, 8, 8)] * 4, (B * S, 8, 16), (B * S, 16, 8)) + linear((S, 4, S)) * 2 * B * 2
    last = linear(*[(B * S, 8, 8)] * 2, *[(B, 8, 8)] * 2, (B, 8, 16), (B, 16, 8))
    last += linear((1, 4, S)) * 2 * B * 2
    back_last = last + linear((1, 4, S)) * 2 * B * 2
    back_first = linear((B * S, 8, 8), (B * S, 8, 16), (B * S, 16, 8), *[(B * P, 8, 8)] * 3)
    back_first += linear((S, 4, P)) * 5 * B * 2
    head = 3 * linear((B, 8, 2))
    assert flops(floor.input_training(SHAPE, B, T, P)) == first + last + back_last + back_first + head


def test_grouped_queries_and_gates() -> None:
    shape = Shape(layers=1, hidden=8, heads=4, kv_heads=2, head_dim=2, intermediate=16, gated=True)
    by_hand = linear(*[(B * T, 8, 4)] * 2, *[(B * T, 8, 8)] * 2, *[(B * T, 8, 16)] * 2, (B * T, 16, 8))
    assert flops(floor.forward(shape, B, T, P)) == by_hand + linear((T, 2, T + P)) * 2 * B * 4


def test_a_causal_mask_and_a_shared_prompt_spare_products() -> None:
    plain = Shape(layers=3, hidden=8, heads=2, kv_heads=2, head_dim=4, intermediate=16)
    causal = replace(plain, causal=True)
    scores = linear((T, 4, T + P)) * 2 * B * 2
    pairs = (T * (T + 1) / 2 + T * P) / (T * (T + P))
    whole = flops(floor.forward(plain, B, T, P))
    assert flops(floor.forward(causal, B, T, P)) == pytest.approx(whole - scores * (1 - pairs))
    assert flops(floor.input_training(causal, 64, T, P)) < flops(floor.input_training(plain, 64, T, P))


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen2"])
def test_torch_counts_the_same_without_savings(kind: str) -> None:
    """Every token through every layer, and every input gradient back."""
    model = tiny(kind, attn_implementation="eager", hidden_dropout_prob=0.0).requires_grad_(False)
    base: Any = model.base_model
    if getattr(base, "pooler", None) is not None:
        base.pooler = None
    shape = Shape.of(model.config)
    assert (shape.layers, shape.gated) == (LAYERS, kind == "qwen2")
    embeds = torch.randn(B, T, model.config.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        states = base(inputs_embeds=embeds, attention_mask=torch.ones(B, T, dtype=torch.long))[0]
    # Torch computes the masked half of a decoder's scores.
    dense = replace(shape, causal=False)
    small = 2 * B * shape.head_dim // 2 * T if kind == "qwen2" else 0  # rotary angles, as a product
    assert counter.get_total_flops() - flops(floor.forward(dense, B, T)) * LAYERS in (0, small)
    with FlopCounterMode(display=False) as counter:
        states.sum().backward()
    assert counter.get_total_flops() == flops(floor.backward(dense, B, T)) * LAYERS


def test_the_plan_of_later_epochs_lacks_the_stem() -> None:
    config = tiny("bert").config
    found = floor.plan(config, "upper", B, T, P, training=True)
    stem = flops(floor.stem(Shape.of(config), B, T, LAYERS // 2))
    assert flops(found["first"]) - flops(found["later"]) == stem > 0
    deep = floor.plan(config, "deep", B, T, P, training=True)
    assert deep["first"] == deep["later"]


@pytest.mark.parametrize("kind", ["linear", "gradient", "batched"])
def test_a_rate_is_measured(kind: Any) -> None:
    product = Product(m=4, k=8, n=16, batch=2 if kind == "batched" else 1, kind=kind)
    assert 0 < floor.seconds_of(product, torch.float32, torch.device("cpu"), spend=0.005) < 1


# ------------------------------------------------------------------------------------------ rounds


def run(rate: float, **others: Any) -> dict[str, Any]:
    return {"examples_per_second": rate, "first_examples_per_second": rate / 2, "trained": 10, **others}


def test_medians_ratios_shares_and_failures() -> None:
    part = {"seconds": 0.01, "gigaflops": 1.0}
    examples = {"examples": {"deep": {"first": part, "later": part}}}
    found: dict[str, Any] = {
        "settings": {"full_rows": 400},
        "rounds": [
            {rounds.REFERENCE: run(2), "ptuning deep": run(20), rounds.FLOOR: examples},
            {rounds.REFERENCE: run(4), "ptuning deep": {"error": "out of memory"}, rounds.FLOOR: examples},
            {rounds.REFERENCE: run(9), "ptuning deep": run(60), rounds.FLOOR: {"error": "no"}},
        ],
    }
    rounds.summarise(found)
    assert found["medians"][rounds.REFERENCE]["examples_per_second"] == 4
    assert found["medians"]["ptuning deep"]["runs"] == 2
    assert found["ratios"]["ptuning deep"]["examples_per_second"] == 10
    assert found["medians"]["ptuning deep"]["full_epoch_seconds_extrapolated"] == 10
    assert found["share_of_floor"]["ptuning deep"] == {"first": 0.2, "later": 0.4}
    assert found["failed"] == {"ptuning deep": ["out of memory"], rounds.FLOOR: ["no"]}


def test_a_worker_trains_in_a_process_of_its_own(tiny_folder: Path) -> None:
    spec = Spec(
        what="training",
        side="ptuning deep, upper half",
        folder=str(tiny_folder),
        precision="fp32",
        data="made",
        length=12,
        rows=4,
        batch_size=2,
        epochs=1,
    )
    found = rounds.work(spec, timeout=120)
    assert "error" not in found, found
    assert found["steps"] == 2
    assert found["examples_per_second"] > 0
    assert found["wall_seconds"] >= found["wall_seconds_but_evaluation"] >= found["first_epoch_seconds"]
    assert found["memory_process_peak"] >= found["memory_imports"] > 0


def test_a_worker_that_fails_says_why_and_names_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("import sys; raise ValueError('not ' + sys.argv[2])")
    monkeypatch.setattr(rounds, "HERE", tmp_path)
    failed = rounds.work(Spec(what="training", folder="/home/someone/model"))
    assert "ValueError: not" in failed["error"]
    assert "someone" not in failed["error"]


@pytest.mark.parametrize("side", ["ptuning deep", "ptuning deep, upper half"])
def test_what_is_timed_reads_what_pefts_prefix_tuning_reads(
    side: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """On a sentence embedding model, too, whose default reads more."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_folder, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model = sides.ptuning_model(sides.SIDES[side], folder, "fp32", AutoTokenizer.from_pretrained(folder))
    assert isinstance(model.prompt_config, DeepPrompt)
    assert model.backbone.pooling == "mean"
    assert model.prompt_config.pooling == "native"


# PEFT asks for what transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_both_sides_of_the_worker_in_this_process(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import worker

    monkeypatch.setenv("PTUNING_CACHE", "off")
    common: dict[str, Any] = {"folder": str(tiny_folder), "data": "made", "length": 12, "precision": "fp32"}
    sizes: dict[str, Any] = {"rows": 4, "batch_size": 2, "epochs": 2}
    for what in ("training", "inference"):
        for side in (rounds.REFERENCE, "ptuning input"):
            found = worker.measure(Spec(what=what, side=side, **common, **sizes))  # type: ignore[arg-type]
            assert len(found["epoch_seconds"]) == 2
            assert found["trained"] > 0
    shares = worker.measure(Spec(what="training floor", spend=0.002, **common, **sizes))
    assert set(shares["examples"]) == {"input", "deep", "upper"}


def test_a_result_becomes_a_table_and_a_chart(tmp_path: Path) -> None:
    found: dict[str, Any] = {
        "command": "python benchmarks/training.py",
        "date": "2026-01-01",
        "machine": rounds.heading("", "training", {})["machine"],
        "settings": {
            "model": "minilm",
            "data": "mrpc",
            "precision": "bf16",
            "rows": 4,
            "full_rows": 400,
            "mean_tokens": 5.0,
            "batch_size": 2,
        },
        "rounds": [
            {
                rounds.REFERENCE: run(2),
                "ptuning deep": run(20),
                "PEFT LORA": {"error": "exit status 1: line 7 | raise ValueError | ValueError: not here."},
            }
        ],
    }
    rounds.summarise(found)
    file = tmp_path / "training-minilm-mrpc-bf16.json"
    file.write_text(json.dumps(found))
    text = report.tables(lambda header, rows: "\n".join(map(" | ".join, [header, *rows])), tmp_path)
    assert "**ptuning deep** | 10 | 10.0 | 20.0 | 10.00 × |" in text
    assert "PEFT LORA failed 1 time: `ValueError: not here.`" in text
    rounds.chart(file.with_suffix(".png"), found, "a title")
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "make bench" in report.tables(lambda *_: "", tmp_path / "empty")
