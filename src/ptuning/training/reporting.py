"""The report of a run: from what a run knows to the plain data of :mod:`ptuning.report`, and to its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ptuning import adapters
from ptuning.data import Example
from ptuning.report.data import FITTED, Comparison, ReportData, Rows, texts_of
from ptuning.report.facts import facts_of
from ptuning.task import Task
from ptuning.training.evaluation import Scored
from ptuning.training.job import Job
from ptuning.training.plan import Plan
from ptuning.training.records import TrainResult


def rows_of(
    split: str,
    scored: Scored,
    examples: Sequence[Example],
    *,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    source: str | None = None,
    no_texts: bool = False,
) -> Rows:
    """A scored split as the report takes it.

    Args:
        split: Its name.
        examples: Its rows, in the same order.
        source: What they were read from.
        no_texts: Whether their texts are left out.
    """
    return Rows(
        split=split,
        logits=scored.logits.double().numpy(),
        targets=scored.split.targets,
        lengths=tuple(scored.split.lengths),
        metrics=metrics,
        baseline=baseline,
        source=source,
        numbers=tuple(example.row for example in examples),
        texts=None if no_texts else texts_of(examples),
    )


def report_of(job: Job, plan: Plan, result: TrainResult, scored: Mapping[str, Scored]) -> ReportData:
    """What the report of a run shows; its adapter has been saved."""
    assert job.output is not None
    examples = {"validation": job.examples.validation, "test": job.examples.test}
    sources = job.examples.sources
    return ReportData(
        name=job.output.name,
        task=job.model.task,
        splits=tuple(
            rows_of(
                name,
                each,
                examples[name],
                metrics=result.metrics[name],
                baseline=result.baseline[name],
                source=sources.get(name, sources.get("train")),
                no_texts=job.no_texts,
            )
            for name, each in scored.items()
        ),
        baseline_rule=result.baseline_rule,
        class_weights=None if plan.class_weights is None else tuple(plan.class_weights),
        metric=result.metric,
        greater_is_better=result.greater_is_better,
        history=tuple(asdict(each) for each in result.history),
        averaged=tuple(each.step for each in result.averaged),
        facts={
            **facts_of(adapters.details(job.output)),
            "parameters": f"{result.trained:,} trained of {result.total:,} "
            f"({result.trained / result.total:.2%})",
            "kept": result.kept,
            "seconds": f"{result.seconds:.0f}",
        },
        chosen=_chosen(result, job.model.task),
        notes=() if result.advice is None else (result.advice,),
        no_texts=job.no_texts,
    )


def _chosen(result: TrainResult, task: Task) -> tuple[str, ...]:
    """What this run chose by its validation rows."""
    temperature, thresholds = FITTED
    found = {
        "the checkpoint" if len(result.averaged) < 2 else "the checkpoints": len(result.history) > 1,
        temperature: task.temperature != 1,
        thresholds: bool(task.thresholds),
    }
    return tuple(what for what, chosen in found.items() if chosen)


def write_report(
    file: Path,
    make: Callable[[], ReportData | Comparison],
    say: Callable[[str], None] = lambda message: None,
) -> Path | None:
    """Draw a report and write it. What goes wrong there is said, and nothing else is lost.

    Args:
        file: Where it is written.
        make: Makes its data.

    Returns:
        The file, or ``None`` if it could not be written.
    """
    try:
        # Imported here: matplotlib, Jinja2 and scikit-learn take a second, which a run without report saves.
        from ptuning.report.comparison import comparison_page
        from ptuning.report.page import page_of, write_page

        data = make()
        return write_page(file, comparison_page(data) if isinstance(data, Comparison) else page_of(data))
    except Exception as error:  # whatever it is: the adapter, which was trained for hours, is worth more
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"the report {file} could not be written ({reason}); the adapter is not affected")
        return None
