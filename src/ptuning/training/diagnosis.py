"""What went wrong in a run, or could be better: one paragraph with the observation and which options to try.

Pure functions of a run's result. Every threshold is at the top, with its reason; they were checked against
runs of MiniLM on a few hundred rows of MRPC, SST-2, STS-B and the demo. A good ordinary run has no diagnosis,
and neither has a doubtful case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from ptuning.errors import TrainingDiverged
from ptuning.kinds import metric_named
from ptuning.training.config import FitConfig
from ptuning.training.metrics import standard_error
from ptuning.training.recipe import Facts, Recipe
from ptuning.training.records import Diagnosis, Evaluation, Kind, TrainResult

# The losses below are relative to that of the best constant answer, which does not read the texts.
TOO_HIGH = 1.3
"""Factor on the loss of an untrained model: only a learning rate that is too high exceeds it."""
RISE = 0.25
"""A lasting rise of the training loss by more than this: too many epochs do not cause one."""
UNCHANGED = 0.02
"""A change of the training loss between evaluations below this: the parameters hardly changed."""
LEARNED = 0.9
"""Below this, something was learned from the texts; above it, at most the frequency of the labels."""
MEMORISED = 0.5
"""Below this, the model tells the training rows apart, so more training does not help."""
DONE = 0.1
"""Below this, there is little left to learn from the training rows."""
FLAT = 0.05
"""A smaller decrease over the last two thirds of a run means that learning ended in the first third."""

NOISE = 2.0
"""A drop must exceed so many standard errors, because the best of many evaluations is partly luck."""
MIN_DROP = 0.02
"""A drop must also exceed this; with many rows, smaller ones exceed the noise but do not matter."""
FEW_STEPS = 50
"""A prompt hardly changes in fewer steps (a judgement)."""
ENOUGH_STEPS = 300
"""About what the demo's rows need."""
MIN_EVALUATIONS = 8
"""With fewer evaluations, "early" has no meaning."""
EARLY = 1 / 3
"""The share of a run after which nothing improved; in an ordinary run that happens in the second half, where
the learning rates are low."""
UNUSUAL_FACTOR = 10
"""A learning rate so many times higher or lower than the recipe's explains a failure by itself."""
UNBALANCED = 0.6
"""From this share of the most frequent label on, a model tends to a constant answer."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a diagnosis compares a run with.

    Attributes:
        constant: The training loss of the best constant answer.
        untrained: The loss of logits of zero (for a regression, of the mean), which a new head is close to.
        learning_rate: The recipe's, even if the run used another one.
        head_learning_rate: The recipe's.
        depth: Where the prompt is.
        first_layer: The first layer with a prompt.
        virtual_tokens: P.
        weighted: Whether classes had weights.
        virtual_units: U.
        cloze: Whether the head is a language model's own, which is not trained.
    """

    constant: float
    untrained: float
    learning_rate: float
    head_learning_rate: float
    depth: str
    first_layer: int
    virtual_tokens: int
    weighted: bool
    virtual_units: int = 0
    cloze: bool = False

    @classmethod
    def of(
        cls, fit: FitConfig, facts: Facts, constant_losses: tuple[float, float], *, weighted: bool
    ) -> Reference:
        """The reference of a run with ``fit``; the two losses are ``constant`` and ``untrained``."""
        recipe = Recipe.of(
            fit.model_copy(update={"learning_rate": None, "head_learning_rate": None}), facts
        ).fit
        constant, untrained = constant_losses
        return cls(
            constant=constant,
            untrained=untrained,
            learning_rate=recipe.learning_rate,
            head_learning_rate=recipe.head_learning_rate,
            depth=facts.depth,
            first_layer=facts.first_layer,
            virtual_tokens=facts.virtual_tokens,
            weighted=weighted,
            virtual_units=facts.virtual_units,
            cloze=facts.cloze,
        )


def diagnose(found: TrainResult) -> Diagnosis | None:
    """The most serious diagnosis of a run; ``None`` if it went well."""
    run = _Run(found)
    checks: tuple[tuple[Kind, Callable[[_Run], str | None]], ...] = (
        ("not learned", _not_learned),
        ("diverged", _diverged),
        ("overfitting", _overfitting),
        ("saturated", _saturated),
    )
    for kind, check in checks:
        if (paragraph := check(run)) is not None:
            return Diagnosis(kind=kind, paragraph=paragraph)
    return None


def not_finite(
    problem: str,
    *,
    got: str | None = None,
    kept: str | None = None,
    rates: tuple[float, float] | None = None,
) -> TrainingDiverged:
    """The error for a run that produced NaN or infinity.

    Args:
        problem: What happened, and where.
        got: The values.
        kept: What remains of the run.
        rates: The learning rates of prompt and head, if they are known.
    """
    lower = "fit.learning_rate or fit.head_learning_rate by ten"
    if rates is not None:
        prompt, head = (f"to {rate / 10:.2g} (it was {rate:g})" for rate in rates)
        lower = f"fit.learning_rate {prompt} or fit.head_learning_rate {head}"
    remedy = "; ".join(filter(None, (kept, f"lower {lower}, or set precision=fp32")))
    return TrainingDiverged(problem, got=got, expected="finite numbers", remedy=remedy)


# ------------------------------------------------------------------------------------- the run


class _Run:
    """The facts of a run that the diagnoses use."""

    def __init__(self, found: TrainResult) -> None:
        self.found = found
        self.history = found.history
        self.metric = found.metric
        self.sign = 1 if found.greater_is_better else -1
        self.best = found.metrics["validation"].get(found.metric)
        self.peak = found.best.metrics.get(found.metric)
        self.floor = found.baseline["validation"].get(found.metric)
        setting = found.setting
        self.rows: Mapping[str, int] = setting.get("rows", {})
        self.effective_rows: float = setting.get("effective_rows", self.rows.get("validation", 1))
        self.rates: tuple[float, float] | None = (
            (setting["rates"]["prompt"], setting["rates"]["head"]) if "rates" in setting else None
        )
        known = setting.get("reference")  # missing in the results of older versions
        self.reference = None if known is None else Reference(**known)
        self.trained = [each for each in self.history if each.step > 0]  # at step 0 only the head was fitted
        self.thirds = _thirds([each.train_loss for each in self.trained])

    @property
    def last(self) -> Evaluation:
        return self.history[-1]

    @property
    def times_usual(self) -> float:
        """The prompt's learning rate divided by the recipe's."""
        if self.rates is None or self.reference is None:
            return 1.0
        return self.rates[0] / self.reference.learning_rate

    def noise(self, value: float) -> float:
        """The standard error of the metric at ``value``, from the number of validation rows."""
        return standard_error(self.metric, value, self.effective_rows)

    def reached(self, history: Sequence[Evaluation]) -> list[float]:
        """The metric at each evaluation that has it; negated if smaller is better."""
        return [self.sign * each.metrics[self.metric] for each in history if self.metric in each.metrics]

    def other_rate(self, which: int, direction: int) -> str:
        """Advice to change a learning rate: to the recipe's if that is far away, else by a factor of 3."""
        name = ("learning_rate", "head_learning_rate")[which]
        if self.rates is None or self.reference is None:
            return f"a {'higher' if direction > 0 else 'lower'} fit.{name}"
        now = self.rates[which]
        usual = (self.reference.learning_rate, self.reference.head_learning_rate)[which]
        far = (usual / now) ** direction > 3
        value = f"{usual:g}" if far else f"{now * 3.0**direction:.1g}"
        return f"fit.{name}={value} (it was {now:g})"


def _thirds(values: Sequence[float]) -> tuple[float, float, float]:
    """The means of the first, middle and last third; they do not depend on a single evaluation."""
    size = max(1, len(values) // 3)
    middle = values[size : max(len(values) - size, size)] or values
    return fmean(values[:size]), fmean(middle), fmean(values[-size:])


# ----------------------------------------------------------------------------------- the diagnoses


def _not_learned(run: _Run) -> str | None:
    found = run.found
    by_chance = _may_be_chance(run)
    if found.beats_baseline and not by_chance:
        return None
    best = "undefined" if run.best is None else f"{run.best:.3f}"
    floor = "-" if run.floor is None else f"{run.floor:.3f}"
    if by_chance:
        floor += f" (with {run.rows['validation']} rows, the difference may be chance)"
    seen, tries = _why_not(run)
    constant = "a constant answer" if run.metric == "loss" else found.baseline_rule
    return (
        f"NOT LEARNED: on the validation rows the best {run.metric} is {best}, and {constant} "
        f"scores {floor}. {seen}. Do not use this adapter. Try, in this order: {'; '.join(tries)}"
    )


def _may_be_chance(run: _Run) -> bool:
    """Whether a model that does not fit its training rows beats the baseline by no more than noise."""
    return (
        run.best is not None
        and run.floor is not None
        and run.reference is not None
        and "validation" in run.rows
        and 0 < run.sign * (run.best - run.floor) <= NOISE * run.noise(run.best)
        and run.thirds[2] > LEARNED * run.reference.constant
    )


def _why_not(run: _Run) -> tuple[str, list[str]]:
    """What the training loss shows about a run that learned nothing, and what to try."""
    reference, last = run.reference, run.last
    if reference is None:
        return "The cause is not known", [*_up(run), *_down(run), "more fit.num_train_epochs", CHECK]
    constant, end = reference.constant, run.thirds[2]
    compared = f"(a constant answer: {constant:.3g})"
    if (high := _too_high(run)) is not None:
        return high, [*_down(run), CHECK]
    if end <= MEMORISED * constant:
        return (
            f"The training loss fell to {end:.3g} {compared}: the model memorised the training rows "
            f"({run.rows.get('train', '-')}), and does not generalise",
            ["more training rows", CHECK, *_class_weights(run), _smaller(reference), *_down(run)],
        )
    if _class_weights(run) and _same_answer(run) and not _unchanged(run):
        return (
            f"Every row gets the same answer: the training loss is {end:.3g} {compared}, so little more was "
            "learned than which label is frequent",
            [*_class_weights(run), *_up(run), _more_epochs(last, 3), CHECK],
        )
    if last.step < FEW_STEPS and run.times_usual > 1 / UNUSUAL_FACTOR:
        return (
            f"There were only {last.step} optimizer steps, and the training loss is {end:.3g} {compared}",
            [_more_epochs(last, max(2, ENOUGH_STEPS / last.step)), *_up(run), CHECK],
        )
    if end <= LEARNED * constant:
        return (
            f"The training loss only fell to {end:.3g} {compared}",
            [*_class_weights(run), _more_epochs(last, 3), *_up(run), "more training rows", CHECK],
        )
    seen = (
        f"The training loss did not fall: it was {run.trained[0].train_loss:.3g} at the first evaluation and "
        f"{end:.3g} at the end {compared}"
    )
    if run.times_usual >= UNUSUAL_FACTOR:
        return f"{seen}: the learning rates are too high", [*_down(run), CHECK]
    if run.times_usual <= 1 / UNUSUAL_FACTOR:
        return f"{seen}: the learning rates are too low", [*_up(run), _more_epochs(last, 3), CHECK]
    return (
        f"{seen}: the learning rates are unsuitable, the steps ({last.step}) too few, or the texts do not "
        "determine the labels",
        [*_up(run), *_down(run), _more_epochs(last, 3), CHECK],
    )


def _diverged(run: _Run) -> str | None:
    """A training loss that rose and stayed finite."""
    if run.reference is None or (high := _too_high(run, end=True)) is None:
        return None
    return f"DIVERGED: {_lower_first(high)}. {_kept(run)}. Try, in this order: {'; '.join(_down(run))}"


def _too_high(run: _Run, *, end: bool = False) -> str | None:
    """The evidence that the learning rates are too high; with ``end``, only from the end of the run."""
    assert run.reference is not None
    first, middle, last = run.thirds
    constant = run.reference.constant
    low = min(first, middle)
    if len(run.trained) >= 3 and last - low > RISE * constant and last > TOO_HIGH * low:
        return (
            f"The training loss rose from {low:.3g} to {last:.3g} and stayed there (a constant answer: "
            f"{constant:.3g}): the learning rates are too high"
        )
    high = last if end else max(run.thirds)
    if high > TOO_HIGH * max(run.reference.untrained, constant):
        return (
            f"The training loss {'ended at' if high == last else 'rose to'} {high:.3g} (a constant answer: "
            f"{constant:.3g}): the learning rates are too high"
        )
    return None


def _overfitting(run: _Run) -> str | None:
    """The metric gets worse by more than noise, and so does the validation loss.

    The loss alone does not count: overconfident answers raise it while more of them become right. If the loss
    still falls, the best metric was luck. If the loss is worse than a constant answer's, a drop of half the
    size counts.
    """
    found, best = run.found, run.found.best
    after = [each for each in run.history if each.step > best.step]
    late = after[len(after) // 2 :]  # the second half of the evaluations after the best
    values = run.reached(late)
    if len(after) < 2 or not values or run.peak is None or "validation" not in run.rows:
        return None
    loss, level = fmean(each.metrics["loss"] for each in late), run.sign * fmean(values)
    worse_than_constant = run.reference is not None and loss > run.reference.constant
    margin = run.noise(run.peak) * (1.0 if worse_than_constant else NOISE)
    minimum = MIN_DROP * (abs(run.peak) if run.sign < 0 else 1)
    dropped = run.sign * (run.peak - level) > max(margin, minimum)
    learned = run.last.train_loss < LEARNED * best.train_loss
    if not (dropped and learned and loss > best.metrics["loss"]):
        return None
    way = "fell" if run.sign > 0 else "rose"
    tries = [
        ("" if found.stopped_early else "fit.patience=3 or ") + _fewer(run, _after(best)),
        *([_smaller(run.reference)] if run.reference else []),
        run.other_rate(0, -1),
        "fit.weight_decay=0.01",
        "more training rows",
    ]
    return (
        f"NOTE: overfitting: on the validation rows {run.metric} {way} from {run.peak:.3f} in epoch "
        f"{best.epoch:g} to {level:.3f} by epoch {run.last.epoch:g} (the standard error of "
        f"{run.rows['validation']} rows is {run.noise(run.peak):.2g}), while the training loss fell from "
        f"{best.train_loss:.3g} to {run.last.train_loss:.3g} (the validation loss went from "
        f"{best.metrics['loss']:.3g} to {run.last.metrics['loss']:.3g}). {_kept(run)}. To improve it, try: "
        f"{'; '.join(tries)}"
    )


def _saturated(run: _Run) -> str | None:
    """Nothing improved for most of the run: all was learned, or the prompt could not learn more."""
    found, history, reference = run.found, run.trained, run.reference
    if reference is None or len(history) < MIN_EVALUATIONS or found.stopped_early or run.peak is None:
        return None
    since = (
        f"{run.metric} on the validation rows has not improved by more than chance since then (best "
        f"{run.peak:.3f}). {_kept(run)}"
    )
    within = [each for each in history if each.epoch <= EARLY * run.last.epoch]
    if not within or not _settled(run, within[-1]):
        return None
    early, end = within[-1], run.thirds[2]
    if early.train_loss <= DONE * reference.constant:
        return (
            f"NOTE: saturated: in epoch {early.epoch:g} of {run.last.epoch:g} the training loss was down to "
            f"{early.train_loss:.2g}, and {since}. For the same in less time: fit.patience=3 or "
            f"{_fewer(run, _after(early))}; a better result needs more training rows or a larger backbone"
        )
    flat = max(each.train_loss for each in history[len(within) :]) - end <= FLAT * reference.constant
    if end <= MEMORISED * reference.constant or not flat:
        return None
    return (
        f"NOTE: saturated: from epoch {early.epoch:g} of {run.last.epoch:g} on the training loss "
        f"stayed at {end:.3g} (a constant answer: {reference.constant:.3g}), and {since}. To improve it, "
        f"try, in this order: {'; '.join([*_up(run), *_more_prompt(reference), CHECK])}"
    )


def _settled(run: _Run, early: Evaluation) -> bool:
    """Whether no evaluation after ``early`` improved the metric by more than noise."""
    before = run.reached([each for each in run.history if each.step <= early.step])
    after = run.reached([each for each in run.history if each.step > early.step])
    return bool(before and after) and max(after) - max(before) <= run.noise(run.sign * max(before))


# ------------------------------------------------------------------------------ parts of a paragraph


CHECK = "check the labels with: ptuning check-data"


def _unchanged(run: _Run) -> bool:
    """Whether the training loss hardly changed from one evaluation to the next."""
    assert run.reference is not None
    changes = [abs(b.train_loss - a.train_loss) for a, b in pairwise(run.trained)]
    return not changes or max(changes) < UNCHANGED * run.reference.untrained


def _same_answer(run: _Run) -> bool:
    """Whether the best checkpoint has the same metrics as the constant answer."""
    reached, floor = run.found.metrics["validation"], run.found.baseline["validation"]
    return all(
        name in reached and math.isclose(reached[name], value, abs_tol=1e-9)
        for name, value in floor.items()
        if not metric_named(name).uses_confidence
    )


def _class_weights(run: _Run) -> list[str]:
    """Advice to use class weights, if the classes are unbalanced and have none."""
    floor = run.found.baseline["validation"]
    share = floor.get("accuracy", floor.get("exact_match", 0.0))
    if share < UNBALANCED or run.reference is None or run.reference.weighted:
        return []
    metric = "matthews" if "matthews" in floor else "f1_macro"  # a constant answer scores 0, or close to it
    return [f"fit.class_weights=balanced with fit.select_by={metric}"]


def _up(run: _Run) -> list[str]:
    """Advice that lets a prompt change more."""
    if run.reference and run.reference.cloze:
        return [run.other_rate(0, 1)]
    deeper = ["prompt.depth=deep"] if run.reference and run.reference.depth == "input" else []
    return [*deeper, f"{run.other_rate(0, 1)} with {run.other_rate(1, 1)}"]


def _down(run: _Run) -> list[str]:
    """Advice to lower the learning rates."""
    own_head = run.reference is None or not run.reference.cloze
    return [run.other_rate(0, -1), *([run.other_rate(1, -1)] if own_head else [])]


def _more_prompt(reference: Reference) -> list[str]:
    return [
        *(["prompt.first_layer=0"] if reference.first_layer else []),
        f"prompt.num_virtual_tokens={2 * reference.virtual_tokens} (there were {reference.virtual_tokens})",
    ]


def _smaller(reference: Reference) -> str:
    if reference.virtual_units:
        return f"prompt.num_virtual_units=0 (there were {reference.virtual_units})"
    if reference.virtual_tokens < 2:
        return "a smaller backbone"
    return (
        f"prompt.num_virtual_tokens={reference.virtual_tokens // 2} (there were {reference.virtual_tokens})"
    )


def _more_epochs(last: Evaluation, times: float) -> str:
    return f"fit.num_train_epochs={math.ceil(times * last.epoch)} (there were {last.epoch:g})"


def _after(found: Evaluation) -> int:
    """Enough epochs to reach ``found`` in a shorter run, in which the learning rates fall sooner."""
    return max(1, math.ceil(1.5 * found.epoch))


def _fewer(run: _Run, epochs: int) -> str:
    """Advice to use fewer epochs with the same learning rates; the recipe's are higher for a shorter run."""
    rates = ""
    if run.rates is not None:
        rates = f" fit.learning_rate={run.rates[0]:g} fit.head_learning_rate={run.rates[1]:g}"
    return f"fit.num_train_epochs={epochs}{rates}"


def _kept(run: _Run) -> str:
    return f"{run.found.kept[0].upper()}{run.found.kept[1:]} was kept"


def _lower_first(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
