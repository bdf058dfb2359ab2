"""Splits that were tokenised before are read back: the same to the bit, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ptuning import PTuningModel
from ptuning.cache import Cache
from ptuning.data import Example
from ptuning.data import token_cache as module
from ptuning.data.token_cache import token_rows_of
from ptuning.data.tokens import Tokenise, TokenRow
from ptuning.errors import DataError
from ptuning.training import prepare

TEXTS = (("good film", "one"), ("bad", "two three"), ("the red card", "four"))
SINGLE = [Example(row=number, text=text, label=number) for number, (text, _) in enumerate(TEXTS, 1)]
PAIRS = [replace(each, text_b=other) for each, (_, other) in zip(SINGLE, TEXTS, strict=True)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_folder)
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples were tokenised, a number a call."""
    made: list[int] = []
    call = Tokenise.__call__

    def counted(self: Tokenise, examples: Sequence[Example], labels: Any = None) -> list[TokenRow]:
        made.append(len(examples))
        return call(self, examples, labels)

    monkeypatch.setattr(Tokenise, "__call__", counted)
    return made


def rows(tokenise: Tokenise, examples: Sequence[Example], labels: Any = None) -> list[TokenRow]:
    return token_rows_of(tokenise, examples, labels, min_rows=1)


def entries() -> int:
    return Cache("tokens", 1).usage()[0]


@pytest.mark.parametrize("examples", [SINGLE, PAIRS, SINGLE[:1]], ids=["single", "pairs", "one"])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("limit", [None, 4])
def test_the_second_time_nothing_is_tokenised(
    tokenizer: PreTrainedTokenizerBase,
    calls: list[int],
    examples: list[Example],
    segments: bool,
    places: bool,
    limit: int | None,
) -> None:
    tokenise = Tokenise(tokenizer=tokenizer, limit=limit, segments=segments, places=places)
    labels = [each.label for each in examples]
    plain = tokenise(examples, labels)
    assert rows(tokenise, examples, labels) == plain
    calls.clear()
    assert rows(tokenise, examples, labels) == plain
    assert calls == []
    assert rows(tokenise, examples, labels[::-1]) == [
        replace(row, label=label) for row, label in zip(plain, labels[::-1], strict=True)
    ]  # labels are the caller's, not the cache's
    assert rows(tokenise, examples) == [replace(row, label=None) for row in plain]
    assert calls == []
    assert entries() == 1


def changed() -> dict[str, Callable[[Tokenise], tuple[Tokenise, list[Example]]]]:
    def with_tokenizer(change: Callable[[Any], Any]) -> Callable[[Tokenise], tuple[Tokenise, list[Example]]]:
        def made(tokenise: Tokenise) -> tuple[Tokenise, list[Example]]:
            change(tokenise.tokenizer)
            return tokenise, PAIRS

        return made

    def backend(name: str, value: Any) -> Callable[[Any], None]:
        return lambda tokenizer: setattr(tokenizer.backend_tokenizer, name, value)

    first, second, third = PAIRS
    return {
        "a text": lambda t: (t, [replace(first, text="good film."), second, third]),
        "a second text": lambda t: (t, [replace(first, text_b="ones"), second, third]),
        "the order": lambda t: (t, [second, first, third]),
        "a row less": lambda t: (t, PAIRS[:2]),
        "single": lambda t: (t, SINGLE),
        "where one text ends": lambda t: (
            t,
            [replace(first, text="good film" + second.text), replace(second, text=" "), third],
        ),
        "the limit": lambda t: (replace(t, limit=9), PAIRS),
        "segments": lambda t: (replace(t, segments=False), PAIRS),
        "places": lambda t: (replace(t, places=True), PAIRS),
        "wanted": lambda t: (replace(t, places=True, wanted=(1,)), PAIRS),
        "refusing": lambda t: (replace(t, too_long="error"), PAIRS),
        "the vocabulary": with_tokenizer(lambda tokenizer: tokenizer.add_tokens(["film"])),
        "the normaliser": with_tokenizer(backend("normalizer", None)),
        "the words": with_tokenizer(
            backend("pre_tokenizer", pre_tokenizers.Split(Regex("o"), behavior="isolated"))
        ),
        "the special tokens": with_tokenizer(backend("post_processor", None)),
        "the side that is cut": with_tokenizer(
            lambda tokenizer: setattr(tokenizer, "truncation_side", "left")
        ),
        "the names": with_tokenizer(lambda tokenizer: setattr(tokenizer, "model_input_names", ["input_ids"])),
        "splitting specials": with_tokenizer(
            lambda tokenizer: setattr(tokenizer, "split_special_tokens", True)
        ),
    }


@pytest.mark.parametrize("what", changed())
def test_whatever_changes_is_tokenised_anew(
    tokenizer: PreTrainedTokenizerBase, calls: list[int], what: str
) -> None:
    before = Tokenise(tokenizer=tokenizer, limit=8, segments=True)
    rows(before, PAIRS)
    after, examples = changed()[what](before)
    calls.clear()
    assert rows(after, examples) == after(examples)
    assert calls == [len(examples)] * 2
    assert entries() == 2


@pytest.mark.parametrize("library", ["tokenizers", "transformers"])
def test_another_version_of_a_library_tokenises_anew(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    rows(tokenise, PAIRS)
    monkeypatch.setattr(getattr(module, library), "__version__", "99")
    rows(tokenise, PAIRS)
    assert entries() == 2


def test_what_the_last_call_asked_of_the_tokenizer_does_not_matter(
    tokenizer: PreTrainedTokenizerBase, tiny_folder: Path, calls: list[int]
) -> None:
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    rows(tokenise, PAIRS)
    calls.clear()
    tokenizer(["good film"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer.backend_tokenizer.padding is not None
    rows(tokenise, PAIRS)
    rows(Tokenise(tokenizer=AutoTokenizer.from_pretrained(tiny_folder), limit=8), PAIRS)  # another process
    assert calls == []


def test_a_split_that_is_refused_is_never_kept(tokenizer: PreTrainedTokenizerBase, calls: list[int]) -> None:
    strict = Tokenise(tokenizer=tokenizer, limit=4, too_long="error")
    rows(replace(strict, too_long="truncate"), SINGLE)  # the same texts, cut, are kept
    for _ in range(2):
        with pytest.raises(DataError, match="the rows, row 3: got 5 tokens, expected at most 4"):
            rows(strict, SINGLE)
    assert entries() == 1
    calls.clear()
    fits = replace(strict, limit=5)
    assert rows(fits, SINGLE) == rows(fits, SINGLE)
    assert calls == [3]


def damaged() -> dict[str, Callable[[bytes], bytes]]:
    return {
        "empty": lambda whole: b"",
        "cut short": lambda whole: whole[:-1],
        "half": lambda whole: whole[: len(whole) // 2],
        "longer": lambda whole: whole + b"\0",
        "a number": lambda whole: whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
        "the header": lambda whole: whole[:12] + bytes([whole[12] ^ 0xFF]) + whole[13:],
        "no safetensors": lambda whole: b"rubbish" * 30,
        "zeros": lambda whole: bytes(len(whole)),
    }


@pytest.mark.parametrize("how", damaged())
def test_a_damaged_file_is_a_miss_and_is_mended(
    tokenizer: PreTrainedTokenizerBase, calls: list[int], home: Path, how: str
) -> None:
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    plain = rows(tokenise, PAIRS)
    (file,) = (home / "tokens").iterdir()
    file.write_bytes(damaged()[how](file.read_bytes()))
    calls.clear()
    assert rows(tokenise, PAIRS) == plain
    assert calls == [3]
    assert rows(tokenise, PAIRS) == plain
    assert calls == [3]


def test_another_splits_file_under_this_ones_name_is_a_miss(
    tokenizer: PreTrainedTokenizerBase, calls: list[int], home: Path
) -> None:
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    rows(tokenise, PAIRS)
    (file,) = (home / "tokens").iterdir()
    rows(tokenise, SINGLE)
    (other,) = set((home / "tokens").iterdir()) - {file}
    other.write_bytes(file.read_bytes())
    calls.clear()
    assert rows(tokenise, SINGLE) == tokenise(SINGLE)
    assert len(calls) == 2


def test_a_file_that_vanishes_before_it_is_opened_is_a_miss(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(Cache, "get", lambda self, key: home / "gone.safetensors")
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    assert rows(tokenise, PAIRS) == tokenise(PAIRS)


def test_a_full_disk_is_no_reason_to_fail(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    assert rows(tokenise, PAIRS) == tokenise(PAIRS)
    assert list((home / "tokens").iterdir()) == []


def test_what_cannot_be_identified_is_not_kept(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(type(tokenizer)):  # type: ignore[misc]
        """Might do anything."""

    def fails(self: Any, *args: Any) -> str:
        raise Exception("Custom PreTokenizer cannot be serialized")

    class Backend:
        """Draws at random, or has a part in Python."""

        def __init__(self, dropout: float | None) -> None:
            self.model = type("Model", (), {"dropout": dropout})()

        to_str = fails

    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    own = Own(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    assert rows(replace(tokenise, tokenizer=own), SINGLE) == replace(tokenise, tokenizer=own)(SINGLE)
    plain = tokenise(SINGLE)
    real = type(tokenizer).backend_tokenizer
    for dropout in (0.1, None):
        with monkeypatch.context() as patch:
            patch.setattr(type(tokenizer), "backend_tokenizer", property(lambda self, d=dropout: Backend(d)))
            assert module._key(tokenise, SINGLE) is None
    assert type(tokenizer).backend_tokenizer is real
    assert entries() == 0
    assert rows(tokenise, SINGLE) == plain
    assert entries() == 1


def test_numbers_that_do_not_fit_are_not_kept() -> None:
    fits = TokenRow(input_ids=[1, 2**31 - 1], token_type_ids=[0, 127], segment_ids=[-1, 0])
    assert module._arrays([fits]) is not None
    assert module._arrays([replace(fits, input_ids=[1, 2**31])]) is None
    assert module._arrays([replace(fits, token_type_ids=[0, 128])]) is None


def test_short_splits_and_a_limit_of_nought_keep_nothing(
    tokenizer: PreTrainedTokenizerBase, calls: list[int]
) -> None:
    tokenise = Tokenise(tokenizer=tokenizer, limit=8)
    for _ in range(2):
        token_rows_of(tokenise, SINGLE, min_rows=4)
        token_rows_of(tokenise, SINGLE)
        token_rows_of(tokenise, SINGLE, min_rows=1, cache=Cache("tokens", 0))
    assert calls == [3] * 6
    assert entries() == 0
    assert token_rows_of(tokenise, [], min_rows=0) == []


def test_training_splits_are_kept_and_streams_are_not(
    tiny_folder: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptuning import Predictor

    model = PTuningModel.from_backbone(str(tiny_folder), num_labels=2)
    examples = [replace(SINGLE[i % 3], row=i, label=i % 2) for i in range(module.MIN_ROWS)]
    first = prepare.tokenised(model, examples)
    second = prepare.tokenised(model, examples)
    assert calls == [module.MIN_ROWS]
    assert first.rows == second.rows
    assert entries() == 1
    predictor = Predictor(model=model, window=module.MIN_ROWS)
    assert len(list(predictor.stream(iter(examples)))) == module.MIN_ROWS
    assert calls == [module.MIN_ROWS] * 2
    assert entries() == 1
