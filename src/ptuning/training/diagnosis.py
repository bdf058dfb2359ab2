"""What went wrong in a run, or could go better: one paragraph of what was seen and which option to try.

Pure functions over what a run found. Every threshold stands at the top, with its reason; they were held
against runs of MiniLM on a few hundred rows of MRPC, SST-2, STS-B and the demo. A good ordinary run has no
diagnosis: what is doubtful stays unsaid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from ptuning.kinds import metric_named
from ptuning.training.config import FitConfig
from ptuning.training.metrics import (
    standard_error,
)
from ptuning.training.recipe import Facts, Recipe
from ptuning.training.records import Diagnosis, Evaluation, Kind, TrainResult

# Losses below are in units of the constant answer's, the best that is possible without reading the texts.
BLOWN_UP = 1.3
"""Above what an untrained model has: only too high a rate gets there, rows of ordinary noise do not."""
ROSE = 0.25
"""Upwards and there to stay: a training loss of too many epochs falls or stands, it does not rise."""
UNMOVED = 0.02
"""Less than this from the first evaluation to the last: the parameters as good as stood still."""
FELL = 0.9
"""Below this something of the rows was learned; above it, at most how frequent each label is."""
BY_HEART = 0.5
"""Below this the training rows are told apart, so the validation rows lack no training."""
DONE = 0.1
"""Below this there is little left to learn from the training rows."""
FLAT = 0.05
"""A fall that is less than this over the last two thirds of a run was over in the first."""

NOISE = 2.0
"""Standard errors of the validation rows that a fall has to exceed: the best of many looks is a lucky one."""
LEAST_FALL = 0.02
"""What a fall has to exceed where many rows make the noise small: less is nobody's trouble."""
FEW_STEPS = 50
"""A judgement: a prompt hardly moves in so few."""
MANY_STEPS = 300
"""What the demo's rows need, about."""
LONG = 8
"""Evaluations without which "early" has no meaning."""
EARLY = 1 / 3
"""The part of a run after which nothing came; half of it is an ordinary run, whose rates fall to 0."""
FAR = 10
"""Times the recipe's rate, or a part of it, that need no further explanation."""
UNEQUAL = 0.6
"""The share of the most frequent label from which a constant answer is tempting."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a diagnosis compares a run with.

    Attributes:
        constant: The training loss of the best constant answer.
        untrained: That of logits of zero (in a regression: of the task's mean), which a new head is close to.
        learning_rate: The recipe's own, whatever was used.
        head_learning_rate: As well.
        depth: Where the prompt entered.
        first_layer: The first layer with a prompt.
        virtual_tokens: P.
        weighted: Whether classes had weights.
        virtual_units: U.
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

    @classmethod
    def of(
        cls, fit: FitConfig, facts: Facts, constant_losses: tuple[float, float], *, weighted: bool
    ) -> Reference:
        """For a run as ``fit`` says; the two losses are those of :func:`losses`."""
        own = Recipe.of(fit.model_copy(update={"learning_rate": None, "head_learning_rate": None}), facts).fit
        constant, untrained = constant_losses
        return cls(
            constant=constant,
            untrained=untrained,
            learning_rate=own.learning_rate,
            head_learning_rate=own.head_learning_rate,
            depth=facts.depth,
            first_layer=facts.first_layer,
            virtual_tokens=facts.virtual_tokens,
            weighted=weighted,
            virtual_units=facts.virtual_units,
        )


def diagnose(found: TrainResult) -> Diagnosis | None:
    """The most serious that is to be said of a run; ``None`` of one that went well."""
    run = _Run(found)
    looks: tuple[tuple[Kind, Callable[[_Run], str | None]], ...] = (
        ("not learned", _not_learned),
        ("diverged", _diverged),
        ("overfitting", _overfitting),
        ("saturated", _saturated),
    )
    for kind, look in looks:
        if (paragraph := look(run)) is not None:
            return Diagnosis(kind=kind, paragraph=paragraph)
    return None


def not_finite(seen: str, *, kept: str | None = None, rates: tuple[float, float] | None = None) -> str:
    """The message for a run that produced NaN or infinity.

    Args:
        seen: What was not finite, and where.
        kept: What is left of the run.
        rates: The learning rates of prompt and head, if they are known.
    """
    lower = "fit.learning_rate or fit.head_learning_rate by ten"
    if rates is not None:
        prompt, head = (f"to {rate / 10:.2g} (it was {rate:g})" for rate in rates)
        lower = f"fit.learning_rate {prompt} or fit.head_learning_rate {head}"
    state = f"; {kept}" if kept else ""
    return f"{seen}, expected finite numbers{state}. Lower {lower}, or set precision=fp32"


# --------------------------------------------------------------------------------------- what is read


class _Run:
    """A run as the diagnoses look at it."""

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
        self.trained = [each for each in self.history if each.step > 0]  # before it the head was fitted
        self.thirds = _thirds([each.train_loss for each in self.trained])

    @property
    def last(self) -> Evaluation:
        return self.history[-1]

    @property
    def times_usual(self) -> float:
        """How many times the recipe's rate of the prompt was used."""
        if self.rates is None or self.reference is None:
            return 1.0
        return self.rates[0] / self.reference.learning_rate

    def noise(self, value: float) -> float:
        """The standard error of the metric at ``value``, from the validation rows that it hangs on."""
        return standard_error(self.metric, value, self.effective_rows)

    def reached(self, history: Sequence[Evaluation]) -> list[float]:
        """The metric at those of ``history`` that have one, larger is better."""
        return [self.sign * each.metrics[self.metric] for each in history if self.metric in each.metrics]

    def rate(self, which: int, direction: int) -> str:
        """An option with another rate: the recipe's, if that is far off that way, or else a step there."""
        name = ("learning_rate", "head_learning_rate")[which]
        if self.rates is None or self.reference is None:
            return f"a {'higher' if direction > 0 else 'lower'} fit.{name}"
        now = self.rates[which]
        usual = (self.reference.learning_rate, self.reference.head_learning_rate)[which]
        there = (usual / now) ** direction > 3
        value = f"{usual:g}" if there else f"{now * 3.0**direction:.1g}"
        return f"fit.{name}={value} (it was {now:g})"


def _thirds(values: Sequence[float]) -> tuple[float, float, float]:
    """The means of the first, middle and last third: what does not hang on one evaluation."""
    size = max(1, len(values) // 3)
    middle = values[size : max(len(values) - size, size)] or values
    return fmean(values[:size]), fmean(middle), fmean(values[-size:])


# --------------------------------------------------------------------------------- what goes wrong


def _not_learned(run: _Run) -> str | None:
    found = run.found
    by_chance = _beats_by_chance(run)
    if found.beats_baseline and not by_chance:
        return None
    mine = "undefined" if run.best is None else f"{run.best:.3f}"
    floor = "-" if run.floor is None else f"{run.floor:.3f}"
    if by_chance:
        floor += f", as near as chance brings it over {run.rows['validation']} rows"
    seen, tries = _why_not(run)
    constant = "a constant answer" if run.metric == "loss" else found.baseline_rule
    return (
        f"NOT LEARNED: on the validation rows the best {run.metric} is {mine}, and {constant} "
        f"scores {floor}. {seen}. Do not use this adapter. Try, in this order: {'; '.join(tries)}"
    )


def _beats_by_chance(run: _Run) -> bool:
    """Whether it is but the luckiest of many looks at a model that does not fit its training rows."""
    return (
        run.best is not None
        and run.floor is not None
        and run.reference is not None
        and "validation" in run.rows
        and 0 < run.sign * (run.best - run.floor) <= NOISE * run.noise(run.best)
        and run.thirds[2] > FELL * run.reference.constant
    )


def _why_not(run: _Run) -> tuple[str, list[str]]:
    """What the training loss says of a run that learned nothing, and what to try."""
    reference, last = run.reference, run.last
    if reference is None:
        return "Why is not known", [*_up(run), *_down(run), "more fit.num_train_epochs", CHECK]
    constant, end = reference.constant, run.thirds[2]
    told = f"a constant answer has {constant:.3g}"
    if (high := _blown_up(run)) is not None:
        return high, [*_down(run), CHECK]
    if end <= BY_HEART * constant:
        return (
            f"The training loss fell to {end:.3g}, where {told}: the training rows "
            f"({run.rows.get('train', '-')}) were learned by heart, and that does not hold for others",
            ["more training rows", CHECK, *_weigh(run), _smaller(reference), *_down(run)],
        )
    if _weigh(run) and _same_answer(run) and not _unmoved(run):
        return (
            f"That same answer is given for every row: the training loss is {end:.3g} and {told}, so little "
            "more was learned than which label is frequent",
            [*_weigh(run), *_up(run), _more_epochs(last, 3), CHECK],
        )
    if last.step < FEW_STEPS and run.times_usual > 1 / FAR:
        return (
            f"There were only {last.step} optimizer steps, and the training loss is {end:.3g} where {told}",
            [_more_epochs(last, max(2, MANY_STEPS / last.step)), *_up(run), CHECK],
        )
    if end <= FELL * constant:
        return (
            f"The training loss fell no further than {end:.3g}, where {told}",
            [*_weigh(run), _more_epochs(last, 3), *_up(run), "more training rows", CHECK],
        )
    seen = (
        f"The training loss did not fall: {run.trained[0].train_loss:.3g} at the first evaluation, {end:.3g} "
        f"at the end, where {told}"
    )
    if run.times_usual >= FAR:
        return f"{seen}: the learning rates are too high", [*_down(run), CHECK]
    if run.times_usual <= 1 / FAR:
        return f"{seen}: the learning rates are too low", [*_up(run), _more_epochs(last, 3), CHECK]
    return (
        f"{seen}: the learning rates are not right, the steps ({last.step}) too few, or the labels do not "
        "follow from the texts",
        [*_up(run), *_down(run), _more_epochs(last, 3), CHECK],
    )


def _diverged(run: _Run) -> str | None:
    """A loss that stays finite and goes up."""
    if run.reference is None or (high := _blown_up(run, end=True)) is None:
        return None
    return f"DIVERGED: {_plain(high)}. {_kept(run)}. Try, in this order: {'; '.join(_down(run))}"


def _blown_up(run: _Run, *, end: bool = False) -> str | None:
    """What says that the learning rates are too high; with ``end``, at the end of the run alone."""
    assert run.reference is not None
    first, middle, last = run.thirds
    constant = run.reference.constant
    low = min(first, middle)
    if len(run.trained) >= 3 and last - low > ROSE * constant and last > BLOWN_UP * low:
        return (
            f"The training loss rose from {low:.3g} to {last:.3g} and stayed there (a constant answer has "
            f"{constant:.3g}): the learning rates are too high"
        )
    high = last if end else max(run.thirds)
    if high > BLOWN_UP * max(run.reference.untrained, constant):
        return (
            f"The training loss {'ended at' if high == last else 'went up to'} {high:.3g}, where a constant "
            f"answer has {constant:.3g}: the learning rates are too high"
        )
    return None


def _overfitting(run: _Run) -> str | None:
    """The metric falls by more than noise, and the loss agrees.

    The loss alone does not count: over-sure answers raise it while more of them become right. Where it went
    on falling, the best metric was a lucky one; where it is worse than a constant answer's, half as much of a
    fall counts.
    """
    found, best = run.found, run.found.best
    after = [each for each in run.history if each.step > best.step]
    late = after[len(after) // 2 :]
    values = run.reached(late)
    if len(after) < 2 or not values or run.peak is None or "validation" not in run.rows:
        return None
    loss, level = fmean(each.metrics["loss"] for each in late), run.sign * fmean(values)
    worse_than_none = run.reference is not None and loss > run.reference.constant
    margin = run.noise(run.peak) * (1.0 if worse_than_none else NOISE)
    least = LEAST_FALL * (abs(run.peak) if run.sign < 0 else 1)
    fell = run.sign * (run.peak - level) > max(margin, least)
    learned = run.last.train_loss < FELL * best.train_loss
    if not (fell and learned and loss > best.metrics["loss"]):
        return None
    way = "fell" if run.sign > 0 else "rose"
    tries = [
        ("" if found.stopped_early else "fit.patience=3 or ") + _fewer(run, _after(best)),
        *([_smaller(run.reference)] if run.reference else []),
        run.rate(0, -1),
        "fit.weight_decay=0.01",
        "more training rows",
    ]
    return (
        f"NOTE: overfitting: on the validation rows {run.metric} {way} from {run.peak:.3f} in epoch "
        f"{best.epoch:g} to {level:.3f} towards epoch {run.last.epoch:g} (the standard error of "
        f"{run.rows['validation']} rows is {run.noise(run.peak):.2g}), while the training loss fell from "
        f"{best.train_loss:.3g} to {run.last.train_loss:.3g} (the validation loss went from "
        f"{best.metrics['loss']:.3g} to {run.last.metrics['loss']:.3g}). {_kept(run)}. For a better one try: "
        f"{'; '.join(tries)}"
    )


def _saturated(run: _Run) -> str | None:
    """Nothing changed for most of the run: there was nothing left to learn, or no way to learn it."""
    found, history, reference = run.found, run.trained, run.reference
    if reference is None or len(history) < LONG or found.stopped_early or run.peak is None:
        return None
    since = (
        f"{run.metric} on the validation rows has since gained no more than chance moves it (best "
        f"{run.peak:.3f}). {_kept(run)}"
    )
    within = [each for each in history if each.epoch <= EARLY * run.last.epoch]
    if not within or not _settled(run, within[-1]):
        return None
    early, end = within[-1], run.thirds[2]
    if early.train_loss <= DONE * reference.constant:
        return (
            f"NOTE: saturated: in epoch {early.epoch:g} of {run.last.epoch:g} the training loss was down to "
            f"{early.train_loss:.2g}, and {since}. The same in less time: fit.patience=3 or "
            f"{_fewer(run, _after(early))}; a better one needs more training rows or a larger backbone"
        )
    stood = max(each.train_loss for each in history[len(within) :]) - end <= FLAT * reference.constant
    if end <= BY_HEART * reference.constant or not stood:
        return None
    return (
        f"NOTE: saturated: from epoch {early.epoch:g} of {run.last.epoch:g} on the training loss has "
        f"stood at {end:.3g}, where a constant answer has {reference.constant:.3g}, and {since}. For a "
        f"better one try, in this order: {'; '.join([*_up(run), *_more_prompt(reference), CHECK])}"
    )


def _settled(run: _Run, early: Evaluation) -> bool:
    """Whether no evaluation after ``early`` was better than those before by more than noise."""
    before = run.reached([each for each in run.history if each.step <= early.step])
    after = run.reached([each for each in run.history if each.step > early.step])
    return bool(before and after) and max(after) - max(before) <= run.noise(run.sign * max(before))


# ----------------------------------------------------------------------------------------- parts


CHECK = "look at the labels with: ptuning check-data"


def _unmoved(run: _Run) -> bool:
    assert run.reference is not None
    moved = [abs(b.train_loss - a.train_loss) for a, b in pairwise(run.trained)]
    return not moved or max(moved) < UNMOVED * run.reference.untrained


def _same_answer(run: _Run) -> bool:
    """Whether the best checkpoint answers as the constant answer does."""
    mine, floor = run.found.metrics["validation"], run.found.baseline["validation"]
    return all(
        name in mine and math.isclose(mine[name], value, abs_tol=1e-9)
        for name, value in floor.items()
        if not metric_named(name).uses_confidence
    )


def _weigh(run: _Run) -> list[str]:
    """What makes a frequent answer less tempting, if there is one and that has not been done."""
    floor = run.found.baseline["validation"]
    share = floor.get("accuracy", floor.get("exact_match", 0.0))
    if share < UNEQUAL or run.reference is None or run.reference.weighted:
        return []
    metric = "matthews" if "matthews" in floor else "f1_macro"  # a constant answer has 0, or little, by these
    return [f"fit.class_weights=balanced with fit.select_by={metric}"]


def _up(run: _Run) -> list[str]:
    """What makes a prompt reach further."""
    deeper = ["prompt.depth=deep"] if run.reference and run.reference.depth == "input" else []
    return [*deeper, f"{run.rate(0, 1)} with {run.rate(1, 1)}"]


def _down(run: _Run) -> list[str]:
    return [run.rate(0, -1), run.rate(1, -1)]


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
    """Epochs that reach ``found`` with some to spare: the learning rates fall sooner in a shorter run."""
    return max(1, math.ceil(1.5 * found.epoch))


def _fewer(run: _Run, epochs: int) -> str:
    """An option of fewer epochs, with the learning rates as they were: left out, those of a shorter run are
    higher.
    """
    rates = ""
    if run.rates is not None:
        rates = f" fit.learning_rate={run.rates[0]:g} fit.head_learning_rate={run.rates[1]:g}"
    return f"fit.num_train_epochs={epochs}{rates}"


def _kept(run: _Run) -> str:
    return f"{run.found.kept[0].upper()}{run.found.kept[1:]} was kept"


def _plain(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
