"""Signals at any time, in any command: one line, 128 + the signal's number, nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ptuning.adapters import atomic
from ptuning.cli import main
from ptuning.errors import BackboneNotFound, ConfigError
from ptuning.training import interrupt
from ptuning.training.callbacks import RunState
from ptuning.training.console import ConsoleCallback
from ptuning.training.interrupt import SIGNALS, exit_on_signals, interruptible, stop_requests
from warm import Programs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the signals of POSIX")
OTHERS = [number for number in SIGNALS if number != signal.SIGINT]
Act = Callable[[], None]


def named(value: Any) -> str:
    return signal.Signals(value).name if isinstance(value, int) else str(getattr(value, "__name__", ""))


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # Python gets to it between two instructions


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A test run in the background ignores some; afterwards every handler is what it was."""
    outer = {number: signal.signal(number, signal.SIG_DFL) for number in OTHERS}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    for number, handler in outer.items():
        signal.signal(number, handler)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Act], Any]:
    """Run a command that does what is given; its exit code and what it said."""

    def run(act: Act) -> tuple[int, str]:
        monkeypatch.setattr("ptuning.cli.train.main", lambda argv: act())
        return main(["train"]), capsys.readouterr().err

    return run


@pytest.mark.parametrize("number", SIGNALS, ids=named)
def test_a_signal_ends_a_command_with_a_line_and_its_own_exit_code(
    command: Callable[[Act], Any], number: int
) -> None:
    def loads() -> None:
        send(number)
        raise AssertionError("it went on")

    assert command(loads) == (128 + number, "ptuning: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=named)
@pytest.mark.parametrize(
    "made", [RuntimeError, ConfigError, BackboneNotFound, OSError, SystemExit, TypeError]
)
def test_it_may_come_while_a_library_makes_another_exception_of_it(
    command: Callable[[Act], Any], number: int, made: type[BaseException]
) -> None:
    """As pydantic does, and whoever turns all that a damaged file can raise into one sentence."""

    def builds() -> None:
        try:
            send(number)
        except KeyboardInterrupt:
            raise made("SchemaError: KeyboardInterrupt") from None

    assert command(builds) == (128 + number, "ptuning: interrupted\n")


def test_a_failure_without_a_signal_is_what_it_was(command: Callable[[Act], Any]) -> None:
    def fails() -> None:
        raise ConfigError("no")

    assert command(fails) == (2, "ptuning: error: no\n")

    def crashes() -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        command(crashes)


def test_further_signals_do_not_cut_short_what_cleans_up(
    command: Callable[[Act], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd sends two at once, and a person presses twice; who waits is obeyed again."""
    cleaned = []

    def works() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            for number in SIGNALS:
                send(number)
            cleaned.append(True)

    assert command(works) == (143, "ptuning: interrupted\n")
    monkeypatch.setattr(interrupt, "GRACE", 0.0)
    assert command(works) == (143, "ptuning: interrupted\n")
    assert cleaned == [True]


def test_what_was_ignored_stays_ignored(command: Callable[[Act], Any]) -> None:
    """``nohup ptuning train … &``: the terminal may be closed."""
    done = []

    def works() -> None:
        send(signal.SIGHUP)
        with stop_requests() as stop:
            send(signal.SIGHUP)
            assert not stop.made
        done.append(True)

    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command(works) == (0, "")
    finally:
        signal.signal(signal.SIGHUP, former)
    assert done


# ------------------------------------------------------------------------------ between the steps


@pytest.mark.parametrize("number", SIGNALS, ids=named)
def test_between_steps_it_is_a_request(number: int) -> None:
    with interruptible() as outer, stop_requests() as middle, stop_requests() as stop:
        assert not stop.made
        send(number)
        send(signal.SIGTERM)  # at once: the same wish
        for each in (outer, middle, stop):
            assert (each.made, each.raised, each.exit_code) == (True, False, 128 + number)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)  # somebody cannot wait
        send(signal.SIGINT)  # and what cleans up after that can
        assert outer.raised


def test_who_swallows_a_signal_has_the_next_training_end() -> None:
    with interruptible() as outer:
        with suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        with stop_requests() as stop:
            assert stop.made
        assert outer.exit_code == 143


def test_a_programs_own_handlers_are_put_back_and_two_of_them_stay() -> None:
    """SIGUSR1 and SIGHUP mean nothing in themselves: who has a handler for them has a use for them."""
    heard: list[int] = []

    def own(number: int, frame: object) -> None:
        heard.append(number)

    former = {number: signal.signal(number, own) for number in SIGNALS}
    try:
        with stop_requests() as stop:
            for number in (signal.SIGUSR1, signal.SIGHUP):
                send(number)
            assert not stop.made
            send(signal.SIGTERM)
            assert stop.made
        assert heard == [signal.SIGUSR1, signal.SIGHUP]
        assert [signal.getsignal(number) for number in SIGNALS] == [own] * len(SIGNALS)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_in_another_thread_nothing_is_handled() -> None:
    seen: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)

    def works() -> None:
        with interruptible() as outer, stop_requests() as stop:
            seen.append(outer.made or stop.made or signal.getsignal(signal.SIGTERM) is not before)

    thread = threading.Thread(target=works)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("number", SIGNALS, ids=named)
def test_while_python_shuts_down_it_ends_at_once(number: int) -> None:
    child = os.fork()
    if child == 0:
        exit_on_signals()
        os.kill(os.getpid(), number)
        time.sleep(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_terminal_that_is_closed_does_not_keep_a_run_from_saving(tmp_path: Path) -> None:
    """What is written to it then is an error, and the loop says something before it saves."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        try:
            with interruptible(), stop_requests() as stop:
                (tmp_path / "ready").touch()
                while not stop.made:
                    time.sleep(0.01)
                os.write(2, b"step 5, loss 0.3")
                (tmp_path / "saved").touch()
                os._exit(stop.exit_code)
        except BaseException:
            os._exit(1)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    assert (tmp_path / "saved").exists()


# --------------------------------------------------------------------------------- real commands


@pytest.fixture
def options(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any, jsonl: Any
) -> list[str]:
    monkeypatch.chdir(tmp_path)
    jsonl("train.jsonl", rows(32))
    values = {
        "backbone": tiny_folder,
        "precision": "fp32",
        "device": "cpu",
        "output": "out",
        "report": "false",
    }
    values |= {"fit.epochs": 2, "fit.batch_size": 8, "prompt.num_virtual_tokens": 2}
    return [
        "train",
        "train.jsonl",
        *(part for name, value in values.items() for part in (f"--{name}", str(value))),
    ]


@pytest.mark.parametrize("number", OTHERS, ids=named)
@pytest.mark.parametrize("more", [[], ["--seeds", "0,1"]], ids=["single", "several"])
def test_training_saves_and_is_gone_on_with(
    options: list[str],
    number: int,
    more: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ConsoleCallback.on_step_end

    def step(self: ConsoleCallback, state: RunState) -> None:
        real(self, state)
        if state.step == 2:
            send(number)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleCallback, "on_step_end", step)
        assert main([*options, *more]) == 128 + number
    assert (
        "interrupted at step 2 of 8 and saved; to continue, run the same command with --resume"
        in " ".join(capsys.readouterr().err.split())
    )
    assert not [path for path in Path().rglob(".*") if path.name]
    assert main([*options, *more, "--resume"]) == 0


def test_a_signal_after_the_last_step_says_how_to_go_on(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptuning.training.trainer import Trainer

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "average", lambda self: send(signal.SIGTERM))
        assert main(options) == 143
    said = "interrupted; the last checkpoint is kept; to continue, run the same command with --resume"
    assert capsys.readouterr().err.endswith(f"ptuning: {said}\n")
    assert main([*options, "--resume"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("ptuning.training.run.make_job", lambda *_: send(signal.SIGTERM))
        assert main(options) == 143  # the finished run is still that
    assert capsys.readouterr().err.endswith("ptuning: interrupted\n")


@pytest.mark.parametrize("number", SIGNALS, ids=named)
def test_predict_leaves_the_old_file_and_nothing_beside_it(
    options: list[str], number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ptuning.inference.predictor import Predictor

    real = Predictor.stream

    def stream(self: Predictor, texts: Any) -> Iterator[Any]:
        for found in real(self, texts):
            yield found
            send(number)

    assert main([*options, "--fit.epochs", "1"]) == 0
    Path("answers.jsonl").write_text("the old answers")
    capsys.readouterr()
    monkeypatch.setattr(Predictor, "stream", stream)
    argv = ["predict", "out", "--input", "train.jsonl", "--output", "answers.jsonl", "--device", "cpu"]
    assert main(argv) == 128 + number
    assert capsys.readouterr().err == "ptuning: interrupted\n"
    assert Path("answers.jsonl").read_text() == "the old answers"
    assert not list(Path().glob(".*"))


def test_the_program_that_waits_for_rows_ends(options: list[str], programs: Programs) -> None:
    """The real thing, as a scheduler ends it. What a killed one left beside the file goes, too."""
    assert main([*options, "--fit.epochs", "1"]) == 0
    left = Path(f".answers.jsonl.tmp-{atomic._BOOT}-01234567")
    left.write_text("half")
    argv = ["-m", "ptuning", "predict", "out", "--output", "answers.jsonl", "--device", "cpu"]
    given, order = os.pipe()
    with open("said", "wb") as said, open(order, "w") as stdin:
        program = programs.start(argv, stdin=given, stdout=subprocess.DEVNULL, stderr=said)
        os.close(given)
        stdin.write("good film\n")
        stdin.flush()
        until = time.monotonic() + 200
        while left.exists() or not list(Path().glob(".answers.jsonl.tmp-*")):
            assert time.monotonic() < until
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 143
    assert Path("said").read_text() == "ptuning: interrupted\n"
    assert not list(Path().glob("*answers*"))
    assert not list(Path().glob(".*"))
