"""PEFT's own prompts, with ``set_adapter`` before each request, beside passes that tasks share.

Both start from texts. PEFT's adapters are frozen for inference, as they are when they are loaded: the prompt
encoder is not run. The backbone's weights have the same dtype on both sides.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from ptuning import Task
from ptuning.inference.mixed import MultiPredictor
from ptuning.model.embedded import resolve
from serving import tasks
from serving.figures import Side, alternating, compared
from serving.lab import DTYPES, Lab
from serving.names import drawn, name_of

BATCH = 32
ADAPTERS = 100
CONFIGS: dict[str, Callable[..., Any]] = {
    "P_TUNING": partial(PromptEncoderConfig, encoder_hidden_size=128),
    "PREFIX_TUNING": PrefixTuningConfig,
}
OURS = "ptuning"


def measure(lab: Lab) -> dict[str, Any]:
    """Both precisions, and what ``adapter_names`` does."""
    found: dict[str, Any] = {precision: cell(lab, precision) for precision in DTYPES}
    found["adapter_names"] = {kind: adapter_names(lab, kind) for kind in CONFIGS}
    return found


def cell(lab: Lab, precision: str) -> dict[str, Any]:
    """One precision."""
    rows = lab.rows("mrpc")[: max(1, lab.plan.rows // BATCH * 2 // 3) * BATCH]
    few = rows[:BATCH]
    adapters = min(ADAPTERS, lab.plan.most)
    backbone = lab.backbone(precision)
    task = Task(problem_type="single_label_classification", labels=("no", "yes"), pair=True)
    table = tasks.like(backbone, tasks.native_prompt(), task, adapters)
    predictor = MultiPredictor(table, lab.tokenizer, batch_size=BATCH)

    def ours(names: Sequence[str], given: Sequence[Any]) -> None:
        predictor.predict(given, names)

    sides: dict[str, Side] = {}
    references = {}
    for rows_a_request, given in ((1, few), (BATCH, rows)):
        words = f"requests of {rows_a_request} row{'s' * (rows_a_request > 1)}"
        # Rows that wait at the same time share a batch, whichever requests they came in.
        shared = f"{OURS}, {words}"
        sides[shared] = _side(ours, given, rows_a_request, BATCH, adapters)
        if rows_a_request == 1:
            by_itself = f"{OURS}, {words}, each by itself"
            sides[by_itself] = _side(ours, given, 1, 1, adapters)
            references[by_itself] = shared
        for kind in CONFIGS:
            model = peft_model(lab, kind, precision, adapters)
            name = f"PEFT {kind}, {words}"
            sides[name] = _side(
                partial(switched, lab, model), given, rows_a_request, rows_a_request, adapters
            )
            references[name] = shared
    for side in sides.values():
        side(-1)
    rounds = alternating(sides, lab.plan.rounds, f"PEFT, {precision}")
    found = compared(rounds, references)
    for each in found.values():
        if "ratio" in each:
            ratio = each.pop("ratio")
            low, high = ratio["range"]
            each["ptuning_times_faster"] = {
                "median": round(1 / ratio["median"], 2),
                "range": [round(1 / high, 2), round(1 / low, 2)],
            }
    return {"data": "mrpc", "rows": len(rows), "rows_alone": len(few), "adapters": adapters, "sides": found}


def _side(
    answer: Callable[[Sequence[str], Sequence[Any]], None],
    rows: Sequence[Any],
    rows_a_request: int,
    rows_a_call: int,
    adapters: int,
) -> Side:
    """Requests of a task each, drawn anew each round; one call answers ``rows_a_call`` rows."""

    def side(number: int) -> dict[str, Any]:
        given = rows if number >= 0 else rows[:BATCH]
        drawn_ = drawn(adapters, len(given) // rows_a_request, "uniform", seed=number)
        names = [name for name in drawn_ for _ in range(rows_a_request)]
        began = time.perf_counter()
        for at in range(0, len(given), rows_a_call):
            answer(names[at : at + rows_a_call], given[at : at + rows_a_call])
        return {"rate": len(given) / (time.perf_counter() - began)}

    return side


def peft_model(lab: Lab, kind: str, precision: str, adapters: int) -> PeftModel:
    """A model with that many adapters of PEFT's."""
    folder = resolve("demo") if lab.model == "demo" else lab.model
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=DTYPES[precision])
    config = CONFIGS[kind](task_type="SEQ_CLS", num_virtual_tokens=tasks.VIRTUAL_TOKENS, inference_mode=True)
    model: PeftModel = get_peft_model(base, config, adapter_name=name_of(0))
    for number in range(1, adapters):
        model.add_adapter(name_of(number), config)
    return model.to(DTYPES[precision]).eval()


@torch.inference_mode()
def switched(lab: Lab, model: PeftModel, names: Sequence[str], rows: Sequence[Any]) -> None:
    """One request, of the task that its first row names."""
    model.set_adapter(names[0], inference_mode=True)
    model(**_inputs(lab, rows)).logits.float().softmax(-1).tolist()


def _inputs(lab: Lab, rows: Sequence[Any]) -> Any:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return lab.tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")


@torch.inference_mode()
def adapter_names(lab: Lab, kind: str) -> dict[str, Any]:
    """What PEFT answers when each row of a batch names its adapter, in fp32."""
    model = peft_model(lab, kind, "fp32", 2)
    names = [name_of(0), name_of(1)] * 2
    inputs = _inputs(lab, lab.rows("mrpc")[:4])
    alone = []
    for name in (name_of(0), name_of(1)):
        model.set_adapter(name, inference_mode=True)
        alone.append(model(**inputs).logits)
    model.set_adapter(names[0], inference_mode=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = model(**inputs, adapter_names=names).logits
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:300]}

    def as_if(which: int) -> int:
        return sum(torch.allclose(found[row], alone[which][row], atol=1e-5) for row in range(4))

    own = sum(torch.allclose(found[row], alone[row % 2][row], atol=1e-5) for row in range(4))
    return {
        "rows": 4,
        "answered_by_their_own_adapter": own,
        "answered_by_the_active_adapter": as_if(0),
        "warnings": [str(each.message)[:200] for each in warned],
    }
