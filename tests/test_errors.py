"""An error's parts, and the sentence that they make."""

from __future__ import annotations

import pickle

import pytest

from ptuning.errors import BackboneNotFound, ConfigError, DataError, PTuningError, UserError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("a whole sentence"), "a whole sentence"),
        (
            ConfigError("fit.epochs", got=0, expected="a whole number above 0", remedy="leave it out"),
            "fit.epochs: got 0, expected a whole number above 0; leave it out",
        ),
        (DataError("a.csv, line 3", got="'x'", expected=1.5), "a.csv, line 3: got 'x', expected 1.5"),
        (DataError("a.csv: no label", got="''"), "a.csv: no label; got ''"),
        (ConfigError("no such key", expected="one of a, b"), "no such key, expected one of a, b"),
        (ConfigError(got=3, remedy="choose another"), "got 3; choose another"),
        (PTuningError(), ""),
    ],
)
def test_the_message_is_made_of_the_parts(error: PTuningError, text: str) -> None:
    assert str(error) == text


def test_the_parts_are_attributes_and_survive_pickling() -> None:
    for kind in (ConfigError, BackboneNotFound):
        made = kind("option", got=[1], expected="two", remedy="add one")
        for error in (made, pickle.loads(pickle.dumps(made))):
            assert (error.got, error.expected, error.remedy) == ([1], "two", "add one")
            assert str(error) == "option: got [1], expected two; add one"
            assert isinstance(error, UserError)


def test_what_a_message_quotes_acts_on_no_terminal() -> None:
    assert str(DataError("label", got="\x1b[31m")) == r"label: got \x1b[31m"
