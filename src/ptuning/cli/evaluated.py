"""An adapter evaluated on a file, and what the report shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptuning import adapters
from ptuning.cli.shared import print_notes
from ptuning.data import Example, load_examples
from ptuning.model.ptuning import PTuningModel
from ptuning.report.data import ReportData
from ptuning.report.facts import facts_of, record_of
from ptuning.training.config import DataConfig
from ptuning.training.evaluation import Scored, metrics_of, score
from ptuning.training.metrics import Baseline, Metrics
from ptuning.training.prepare import public_name, tokenised
from ptuning.training.reporting import rows_of


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The rows of a file, and how good an adapter is on them.

    Attributes:
        examples: The rows.
        scored: Their logits.
        metrics: Of the adapter.
        baseline: The constant answer.
        floor: Its metrics.
        class_weights: Of the loss.
    """

    examples: Sequence[Example]
    scored: Scored
    metrics: Metrics
    baseline: Baseline
    floor: Metrics
    class_weights: tuple[float, ...] | None


def evaluated(model: PTuningModel, file: str, data: DataConfig) -> Evaluated:
    """``model`` evaluated on ``file``; notes about the file are printed."""
    loaded = load_examples(file, **data.reading(), pair=model.task.pair, task=model.task)
    print_notes(loaded.notes)
    split = tokenised(model, loaded.examples, data.too_long)
    # The baseline is from the training rows; an adapter that was not trained by ptuning may not have one.
    baseline = _recorded_baseline(model) or Baseline.of(split.targets, model.task)
    weights = None if model.class_weights is None else tuple(model.class_weights.tolist())
    scored = score(model, split)
    return Evaluated(
        examples=loaded.examples,
        scored=scored,
        metrics=metrics_of(model, scored),
        baseline=baseline,
        floor=baseline.measure(split.targets, model.task, weights),
        class_weights=weights,
    )


def _recorded_baseline(model: PTuningModel) -> Baseline | None:
    """The constant answer that the adapter records, if it is one for its task: anyone may write ``extra``."""
    known = None if model.loaded is None else model.loaded.extra.get("baseline")
    try:
        found = None if known is None else Baseline.read(known)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    width = model.task.num_labels
    fits = found is not None and len(found.logits) == width and len(found.shares) in (0, width)
    return found if fits else None


def report_of(
    adapter: str, model: PTuningModel, found: Evaluated, file: str, *, no_texts: bool
) -> ReportData:
    """What the report shows of an adapter that was evaluated on a file.

    Args:
        adapter: Its folder or Hub id.
        file: What the rows were read from.
    """
    assert model.loaded is not None
    record = adapters.details(adapter) if adapters.is_adapter(adapter) else record_of(model.loaded)
    name = public_name(file)
    return ReportData(
        name=public_name(adapter),
        task=model.task,
        splits=(
            rows_of(
                name,
                found.scored,
                found.examples,
                metrics=found.metrics,
                baseline=found.floor,
                source=name,
                no_texts=no_texts,
            ),
        ),
        baseline_rule=found.baseline.rule,
        class_weights=found.class_weights,
        facts=facts_of(record),
        no_texts=no_texts,
    )
