"""Every error that ptuning raises on purpose: what was got, what was expected, what to do.

::

    PTuningError (Exception)
    ├── UserError                 the caller can correct it: exit code 2 on the command line
    │   ├── ConfigError           an unknown, missing or contradictory choice
    │   ├── DataError             a file, column, row, text or label that cannot be used
    │   ├── BackboneNotFound      the model is neither a folder, nor cached, nor reachable
    │   ├── UnsupportedBackbone   this architecture cannot do what the configuration asks
    │   └── AdapterError          a folder that is not an adapter of ours, altered or cut short
    │       ├── AdapterMismatch   an adapter made for another backbone
    │       └── AdapterTooLarge   an adapter with more bytes than are allowed
    ├── TrainingDiverged          a loss, gradient or logit that is not finite; the last good checkpoint stays
    ├── ProcessLost               another process of a distributed run has ended; the last checkpoint stays
    └── OutputError               a result that could not be written: disk full, no permission

A message is one paragraph: what was got, what was expected, the remedy. The three are attributes too, so
programs and tests read those rather than sentences.
"""

from __future__ import annotations

from ptuning.visible import visible


class PTuningError(Exception):
    """The root of the tree; catch it to catch everything that ptuning raises on purpose.

    ``str(error)`` is one paragraph made of the parts below. Control characters in it are escaped, so a
    quoted label or file name cannot act on a terminal.

    Args:
        problem: Where it went wrong (an option, a file and line), or a full sentence.
        got: The value found. A string goes into the message as it is; anything else as its ``repr``.
        expected: What would have been accepted.
        remedy: What to do about it.

    Attributes:
        problem: As given.
        got: As given.
        expected: As given.
        remedy: As given.
    """

    def __init__(
        self, problem: str = "", *, got: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.problem, self.got, self.expected, self.remedy = problem, got, expected, remedy
        super().__init__(visible(_message(problem, got, expected, remedy), lines=True))


def _message(problem: str, got: object, expected: object, remedy: str | None) -> str:
    """``fit.patience: got 0, expected a whole number above 0; leave it out``."""
    got, expected = (
        each if isinstance(each, str) or each is None else repr(each) for each in (got, expected)
    )
    seen = ", ".join(
        f"{word} {value}" for word, value in (("got", got), ("expected", expected)) if value is not None
    )
    # "option: got …", "a sentence: with a colon; got …", "a sentence, expected …".
    joint = ", " if got is None else "; " if ": " in problem else ": "
    text = joint.join(filter(None, (problem, seen)))
    return "; ".join(filter(None, (text, remedy)))


class UserError(PTuningError):
    """Something that the caller can correct: a configuration, a file, a name."""


class ConfigError(UserError, ValueError):
    """An option that is unknown, missing, of the wrong type, or contradicts another."""


class DataError(UserError, ValueError):
    """A file, column, row, text or label that cannot be used."""


class BackboneNotFound(UserError, OSError):
    """A backbone that is neither a local folder, nor cached, nor reachable."""


class UnsupportedBackbone(UserError, NotImplementedError):
    """An architecture that cannot do what the configuration asks of it."""


class AdapterError(UserError, ValueError):
    """A folder without an adapter, or with one that was altered or cut short."""


class AdapterMismatch(AdapterError):
    """An adapter that was trained on a different backbone from the one it is put on."""


class AdapterTooLarge(AdapterError):
    """An adapter with more bytes than are allowed."""


class TrainingDiverged(PTuningError, ArithmeticError):
    """A loss, a gradient or logits that are not finite. The last good checkpoint is kept."""


class ProcessLost(PTuningError, RuntimeError):
    """Another process of a distributed run has ended. The last checkpoint is kept."""


class OutputError(PTuningError, OSError):
    """A result that could not be written. What was there before is unchanged."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the machine is out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("out of memory", "allocate memory"))
    )
