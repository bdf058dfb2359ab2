"""The best evaluations' parameters: which are kept while a run trains, and what the adapter is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ptuning.model.ptuning import PTuningModel
from ptuning.training import checkpoint
from ptuning.training.metrics import Metrics, Selection, standard_error
from ptuning.training.records import Evaluation


class BestCheckpoints:
    """The parameters of the best evaluations so far.

    Args:
        select: Which evaluation is the better one.
        limit: How many are kept.
        effective_rows: The number of validation rows that the metric depends on.
    """

    def __init__(self, select: Selection, *, limit: int, effective_rows: float) -> None:
        self.select, self.limit, self.effective_rows = select, limit, effective_rows
        self.kept: checkpoint.Kept = {}

    def offer(self, index: int, history: Sequence[Evaluation], model: PTuningModel) -> None:
        """Keep the parameters of evaluation ``index`` for as long as it is one of the best."""
        ranked = sorted(  # of equals the earlier one is the better one, as it is for position.best
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
    ) -> list[int]:
        """Leave the model with the mean of the best evaluations' parameters; returns which those are.

        The best of several evaluations is so by luck as well, and a mean has less of that (model soups,
        arXiv:2203.05482). Only what the validation rows cannot tell from the best is averaged. If they can
        tell the mean from the best, it is dropped, and the best alone is kept.
        """
        chosen = [
            index
            for index in sorted(self.kept)
            if index == best or self._as_good(history[index].metrics, history[best].metrics)
        ]
        if len(chosen) > 1:
            checkpoint.restore(model, checkpoint.mean([self.kept[index] for index in chosen]))
            if not self._as_good(evaluate(), history[best].metrics):
                chosen = [best]
        if chosen == [best]:
            checkpoint.restore(model, self.kept[best])
        model.eval()
        return chosen

    def _as_good(self, found: Metrics, best: Metrics) -> bool:
        """Whether that is less than a standard error behind the best evaluation."""
        metric = self.select.metric
        if metric not in found or metric not in best:
            return False
        margin = standard_error(metric, best[metric], self.effective_rows)
        return self.select.sign * (best[metric] - found[metric]) <= margin
