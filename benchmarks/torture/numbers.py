"""Numbers that are not finite, or far too large: in rows, options, weights, training and prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import ptuning
from ptuning import Predictor, PTuningModel
from ptuning.cli.options import leaves
from ptuning.errors import TrainingDiverged
from ptuning.training.config import TrainConfig
from ptuning.training.run import train
from torture.lab import (
    OLD,
    TEXTS,
    WEIGHTS,
    Lab,
    check,
    command,
    copy,
    copy_run,
    held,
    refused,
    state,
    tensors_of,
    weights,
    write_tensors,
)
from torture.trials import Draw, Line, Trial

NOT_FINITE = ("nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400")
ODD = ("1e308", "1e39", "-1e39", "1e-320", "0x10", "1_000.5", "١.٥", "", "--1", "1e", "9" * 400)
VALUES = (
    *("-1", "0", "1", "1e3", "1.5", "-0.0", "x", "true", "null", "[]", "[1,2]", "{}", "{a: 1}", "", "'1'"),
    *("1000000000", "4294967296", str(2**63), str(10**30), "nan", "inf", "-inf", "1e30", "1e300", "5e-324"),
)
"""For an option at the command line."""
LEFT_OUT = ("engine.compile", "output", "data.train", "backbone", "recipe")
"""Options whose odd values are tried elsewhere, or take minutes when they are right."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    trials = []
    for where in ("train", "validation"):
        for cell in (*NOT_FINITE, *ODD):
            trials.append(Trial(f"a {where} row of {cell[:12]!r}, CSV", _scores(lab, where, cell)))
        for cell in ("NaN", "Infinity", "1e999", "1" + "0" * 5000, "null", "[]", "{}", "true", '"x"'):
            trials.append(
                Trial(f"a {where} row of {cell[:12]}, JSON lines", _scores(lab, where, cell, json=True))
            )
    for cells in ("{}e300", "{}.5e-300", "{}.5e38"):
        trials.append(Trial(f"all rows as {cells}", _scores(lab, "train", None, every=cells)))
    yield Line("scores in rows", trials)
    options = [
        Trial(f"--{option.key}={value[:24]}", _option(lab, f"--{option.key}={value}"))
        for option in leaves(TrainConfig)
        if option.key not in LEFT_OUT
        for value in VALUES
        if (option.key, value) not in RIGHT
    ]
    seeds = [Trial(f"--seeds={v[:24]}", _option(lab, f"--seeds={v}", seed=False)) for v in VALUES]
    rates = [Trial(f"--{name}={v[:24]}", _option(lab, f"--{name}={v}")) for name in RATES for v in VALUES]
    yield Line("options of ptuning train", [*options, *seeds, *rates], limit=40)
    yield Line(
        "values in Python", [Trial(f"{_shown(over)}", _config(lab, over, must)) for over, must in _python()]
    )
    yield Line("weights of a backbone", [Trial(name, work) for name, work in _backbones(lab)])
    steps = [
        Trial(f"{what} at step {step}", _at_step(lab, what, step), step)
        for what in ("a gradient", "a parameter", "a moment")
        for step in (1, 2, 3, 6, 9, 15)
        if not (what == "a moment" and step == 1)  # there is none yet
    ]
    yield Line("NaN in the middle of training", steps)
    yield Line("what is asked of a model that is not finite", [Trial(*case) for case in _asked(lab)])


RIGHT = {("fit.num_train_epochs", value) for value in ("1e3", "null", "{}")}
"""What takes long because it is right."""
RATES = ("learning_rates", "head_learning_rates")


def _shown(over: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}.{name}={value!r}" for key, part in over.items() for name, value in part.items())


def _finite(folder: Path) -> None:
    for name, value in tensors_of(folder / WEIGHTS).items():
        held(value.isfinite().all(), f"an adapter was saved whose {name} is not finite")


def _trained(config: TrainConfig, must_refuse: bool = False) -> None:
    """Refused, or trained to finite figures and tensors."""
    results: list[Any] = []
    if refused(lambda: results.append(train(config))) is None:
        held(not must_refuse, "accepted")
        figures = results[0].metrics["validation"]
        odd = {name: v for name, v in figures.items() if isinstance(v, float) and not math.isfinite(v)}
        held(not odd, f"figures that are not finite: {odd}")
        _finite(Path(config.output))
    else:
        held(not Path(config.output).exists(), "refused, and an adapter stands there")


def _scores(
    lab: Lab, where: str, cell: str | None, json: bool = False, every: str = "{}.5"
) -> Callable[[Path], None]:
    """A regression on files of scores, with one odd cell in one of them."""

    def attempt(place: Path) -> None:
        files = {}
        for name in ("train", "validation"):
            cells = [every.format(i) for i in range(1, 31)]
            if name == where and cell is not None:
                cells[11] = cell
            file = files[name] = place / f"{name}.{'jsonl' if json else 'csv'}"
            if json:
                rows = [f'{{"text": "good film {i} {name}", "label": {c}}}' for i, c in enumerate(cells)]
                file.write_text("\n".join(rows) + "\n", encoding="utf-8")
            else:
                rows = [f"good film {i} {name},{c}" for i, c in enumerate(cells)]
                file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
        data = {name: str(file) for name, file in files.items()}
        config = lab.config(place / "out", data={**data, "problem_type": "regression"}, fit=OLD)
        must_refuse = cell is not None and (cell in NOT_FINITE or (json and cell not in ("null",)))
        _trained(config, must_refuse)

    return attempt


def _option(lab: Lab, option: str, seed: bool = True) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        output = place / "out"
        fit = OLD if seed else {"epochs": 1}
        argv = [
            each for each in lab.argv(output, fit=fit) if each.partition("=")[0] != option.partition("=")[0]
        ]
        if option.startswith(tuple(f"--{name}" for name in RATES)):
            old = "prompt_rate" if option.startswith("--learning") else "head_rate"
            argv = [each for each in argv if not each.startswith(f"--fit.{old}")]
        ran = command([*argv, option])
        check(ran, (0, 1, 2), [output])
        if ran.code == 0:
            _finite(output)

    return attempt


def _python() -> Iterator[tuple[dict[str, Any], bool]]:
    """Values for a configuration, and whether they have to be refused."""
    bad = (math.nan, math.inf, -1.0, 0.0, "nan", ".inf", True, [1], 10**400)
    for name in ("prompt_rate", "head_rate"):
        yield from (({"fit": {name: value}}, True) for value in bad)
        yield from (({"fit": {name: value}}, False) for value in (1e10, 1e30, 1e300, 1.7e308, 5e-324))
    for name in ("weight_decay", "clip", "warmup"):
        yield from (({"fit": {name: value}}, True) for value in (math.nan, -1.0, True, [1]))
        yield from (({"fit": {name: value}}, False) for value in (1e300, 1e-300, math.inf))
    for given in ([math.nan, 1.0], [math.inf, 1.0], [0.0, 0.0], [-1.0, 1.0], [1.0], [1.0, 1.0, 1.0]):
        yield {"fit": {"class_weights": given}}, True
    for given in ([1e300, 1.0], [1e-300, 1e-300], [1e-320, 1e30]):
        yield {"fit": {"class_weights": given}}, False
    yield {"fit": {"seed": 2**32}}, False
    yield {"fit": {"seed": 2**64}}, True


def _config(lab: Lab, over: Mapping[str, Any], must_refuse: bool) -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        given = {**over, "fit": {**OLD, **over["fit"]}}
        made: list[TrainConfig] = []
        if refused(lambda: made.append(lab.config(place / "out", **given))) is None:
            _trained(made[0], must_refuse)

    return attempt


def _backbones(lab: Lab) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """One weight of a backbone that is not finite, or makes what it is added to infinite."""
    layers = (
        "embeddings.word_embeddings",
        "encoder.layer.0.attention.self.query",
        "encoder.layer.2.output.dense",
    )
    for layer in layers:
        for value in (math.nan, math.inf, 1e38, 3.4e38):

            def attempt(place: Path, layer: str = layer, value: float = value) -> None:
                folder = copy(lab.backbone, place / "backbone")
                tensors = tensors_of(folder / "model.safetensors")
                tensors[f"bert.{layer}.weight"][5, 0] = value
                write_tensors(folder / "model.safetensors", tensors)
                _trained(lab.config(place / "out", backbone=str(folder), fit=OLD))

            yield f"{value} in {layer}", attempt


def _at_step(lab: Lab, what: str, step: int) -> Callable[[Path], None]:
    """NaN gets into the optimizer at a step: the run ends with the reason, and loses nothing."""

    def attempt(place: Path) -> None:
        output = copy_run(lab.old, place / "adapter")
        before, taken = torch.optim.AdamW.step, 0

        def poisoned(self: Any, *given: Any, **named: Any) -> Any:
            nonlocal taken
            taken += 1
            parameters = [each for group in self.param_groups for each in group["params"]]
            with torch.no_grad():
                if taken == step and what == "a gradient":
                    parameters[0].grad.view(-1)[0] = math.nan
                if taken == step and what == "a moment":
                    self.state[parameters[0]]["exp_avg"].view(-1)[0] = math.nan
                found = before(self, *given, **named)
                if taken == step and what == "a parameter":
                    parameters[0].view(-1)[0] = math.nan
            return found

        torch.optim.AdamW.step = poisoned  # type: ignore[method-assign]
        try:
            train(lab.config(output, fit={"epochs": 3}))
        except TrainingDiverged as error:
            held("\n" not in str(error), f"said in several lines: {error}")
        else:
            held(False, "the run ended as if nothing had been")
        finally:
            torch.optim.AdamW.step = before  # type: ignore[method-assign]
        held(taken >= step, f"the run took {taken} steps")
        held(state(output) == weights(lab.old), "the adapter that stood there is another one")
        checkpoint = Path(f"{output}.run") / "checkpoint"
        if state(checkpoint) != "absent":
            _finite(checkpoint)

    return attempt


def _asked(lab: Lab) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Every way to ask a model whose answers are not finite: refused, in a sentence."""

    def predict(model: PTuningModel, place: Path) -> object:
        return Predictor(model=model)(TEXTS)

    def stream(model: PTuningModel, place: Path) -> object:
        from ptuning.data import Example

        return list(Predictor(model=model).stream([Example(row=1, text="a film")]))

    def pipe(model: PTuningModel, place: Path) -> object:
        return ptuning.pipeline(model)(TEXTS)

    def save(model: PTuningModel, place: Path) -> object:
        return model.save_pretrained(place / "saved")

    for value in (math.nan, math.inf):
        for part in ("the prompt", "the head"):
            for ask in (predict, stream, pipe, save):

                def attempt(
                    place: Path, value: float = value, part: str = part, ask: Callable[..., object] = ask
                ) -> None:
                    model = lab.load(lab.reference)
                    names = sorted(
                        model.task_parameters(), key=lambda name: ("head" in name) == (part == "the head")
                    )
                    with torch.no_grad():
                        model.task_parameters()[names[-1]].fill_(value)
                    held(refused(lambda: ask(model, place)), "answered")
                    held(not list(place.iterdir()), "something was written")

                yield f"{ask.__name__} with {value} in {part}", attempt
