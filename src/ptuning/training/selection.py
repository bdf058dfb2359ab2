"""Keeps the parameters of the best evaluations during training, and averages them at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ptuning.model.ptuning import PTuningModel
from ptuning.training import checkpoint
from ptuning.training.metrics import Metrics, Selection, standard_error
from ptuning.training.records import Evaluation


class BestCheckpoints:
    """The parameters of the best evaluations so far.

    Args:
        select: Decides which evaluation is better.
        limit: How many evaluations are kept.
        effective_rows: The number of validation rows that the metric depends on.
    """

    def __init__(self, select: Selection, *, limit: int, effective_rows: float) -> None:
        self.select, self.limit, self.effective_rows = select, limit, effective_rows
        self.kept: checkpoint.Kept = {}

    def offer(self, index: int, history: Sequence[Evaluation], model: PTuningModel) -> None:
        """Keep the parameters of evaluation ``index`` while it is one of the best."""
        ranked = sorted(  # with a tie, the earlier one wins, as for position.best
            [*self.kept, index],
            key=lambda each: (self.select.key(history[each].metrics), -each),
            reverse=True,
        )
        wanted = ranked[: self.limit]
        self.kept = {each: values for each, values in self.kept.items() if each in wanted}
        if index in wanted:
            self.kept[index] = checkpoint.snapshot(model)

    def restore(
        self,
        model: PTuningModel,
        history: Sequence[Evaluation],
        best: int,
        evaluate: Callable[[], Metrics],
        at_least: Metrics | None = None,
    ) -> list[int]:
        """Set the model to the mean of the best evaluations' parameters; returns the indices of those.

        Args:
            best: The index of the best evaluation.
            evaluate: Evaluates the model.
            at_least: Metrics that the mean must not be worse than, such as those before a warm start.

        The best of several evaluations is partly luck, and a mean depends less on luck (model soups,
        arXiv:2203.05482). Only evaluations within a standard error of the best are averaged. If the mean
        itself is further behind, only the best evaluation is kept.
        """
        chosen = [
            index
            for index in sorted(self.kept)
            if index == best or self._as_good(history[index].metrics, history[best].metrics)
        ]
        if len(chosen) > 1:
            checkpoint.restore(model, checkpoint.mean([self.kept[index] for index in chosen]))
            found = evaluate()
            worse = at_least is not None and self.select.beats(at_least, found)
            if worse or not self._as_good(found, history[best].metrics):
                chosen = [best]
        if chosen == [best]:
            checkpoint.restore(model, self.kept[best])
        model.eval()
        return chosen

    def _as_good(self, found: Metrics, best: Metrics) -> bool:
        """Whether ``found`` is at most a standard error behind ``best``."""
        metric = self.select.metric
        if metric not in found or metric not in best:
            return False
        margin = standard_error(metric, best[metric], self.effective_rows)
        return self.select.sign * (best[metric] - found[metric]) <= margin
