"""Texts that are too long, read in overlapping windows: the tokens of each, and the mean of their logits.

The oracles are the tokenizer's own ``stride`` with ``return_overflowing_tokens``, and plain transformers on
one window at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from conftest import WORDS
from ptuning import DeepPrompt, InputPrompt, Predictor, PTuningModel, Task, TaskTable
from ptuning.cache import Cache
from ptuning.data import Example
from ptuning.data import tokens as tokens_module
from ptuning.data.stems import stems_of
from ptuning.data.token_cache import token_rows_of
from ptuning.data.tokens import Tokenise, TokenRow, collate, shared, windows_of
from ptuning.errors import ConfigError, DataError
from ptuning.inference.evaluate import logits_of
from ptuning.inference.mixed import MultiPredictor
from ptuning.inference.pipelines import PTuningPipeline, WindowsPipeline, pipeline
from ptuning.peft import get_peft_model
from ptuning.peft.configs import PromptEncoderConfig
from test_model_oracle_input import Row, by_hand, task_on
from test_model_oracle_input import batch as pairs_of
from tiny import FAMILIES

LIMIT = 16
CLASSES = Task(problem_type="single_label_classification", labels=("a", "b", "c"))
READ = replace(CLASSES, max_length=LIMIT, max_windows=4)

sizes = st.integers(1, 60)
shares = st.sampled_from([0.0, 0.25, 0.5, 0.9])


@cache
def words(count: int, seed: int = 0) -> str:
    generator = torch.Generator().manual_seed(seed + count)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())


def example(first: int, second: int | None = None) -> Example:
    return Example(row=1, text=words(first), text_b=None if second is None else words(second, 7))


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(tiny_folder)
    return found


@pytest.fixture(scope="module", params=["[CLS] $A [SEP]", "[CLS] $A", "$A [SEP]", "$A"])
def any_tokenizer(tiny_folder: Path, request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """With the special tokens of encoders and of decoders, on either side or none."""
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(tiny_folder)
    tokens = [(token, found.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    inner: Any = found.backend_tokenizer
    inner.post_processor = TemplateProcessing(
        single=request.param, pair=f"{request.param} $B:1", special_tokens=tokens
    )
    return found


def reading(tokenizer: PreTrainedTokenizerFast, **options: Any) -> Tokenise:
    chosen = {"max_windows": 100, "segments": True, "places": True, "too_long": "windows", **options}
    return Tokenise(tokenizer=tokenizer, limit=LIMIT, **chosen)


def body(row: TokenRow, text: int) -> list[int]:
    """The tokens of one of the texts."""
    assert row.segment_ids is not None
    return [token for token, segment in zip(row.input_ids, row.segment_ids, strict=True) if segment == text]


# ------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize("side", ["right", "left"])
@settings(max_examples=20, deadline=None)
@given(size=sizes, share=shares)
def test_windows_are_the_tokenizers_own(
    any_tokenizer: PreTrainedTokenizerFast, side: str, size: int, share: float
) -> None:
    tokenizer = any_tokenizer
    room = LIMIT - tokenizer.num_special_tokens_to_add()
    tokenizer.truncation_side = side
    try:
        (row,) = reading(tokenizer, window_overlap=share)([example(size)])
        expected = tokenizer(
            words(size),
            truncation=True,
            max_length=LIMIT,
            stride=int(room * share),
            return_overflowing_tokens=True,
        )
    finally:
        tokenizer.truncation_side = "right"
    assert [each.input_ids for each in row.windows] == expected["input_ids"]
    assert [each.token_type_ids for each in row.windows] == expected["token_type_ids"]
    assert not row.cut


@settings(max_examples=40, deadline=None)
@given(first=sizes, second=st.integers(1, 6), share=shares, turned=st.booleans())
def test_of_a_pair_the_longer_text_is_read_in_windows_next_to_all_of_the_other(
    tokenizer: PreTrainedTokenizerFast, first: int, second: int, share: float, turned: bool
) -> None:
    both = (words(second, 7), words(first)) if turned else (words(first), words(second, 7))
    (row,) = reading(tokenizer, window_overlap=share)([Example(row=1, text=both[0], text_b=both[1])])
    long = turned if first > second else not turned
    expected = tokenizer(
        *both,
        truncation=("only_first", "only_second")[long],
        max_length=LIMIT,
        stride=int((LIMIT - 3 - min(first, second)) * share),
        return_overflowing_tokens=True,
    )
    assert [each.input_ids for each in row.windows] == expected["input_ids"]
    assert [each.token_type_ids for each in row.windows] == expected["token_type_ids"]
    assert [each.segment_ids for each in row.windows] == [
        [-1 if segment is None else segment for segment in expected.sequence_ids(i)]
        for i in range(len(row.windows))
    ]


@settings(max_examples=60, deadline=None)
@given(first=sizes, second=st.none() | sizes, share=shares, most=st.integers(2, 9))
def test_the_first_window_is_the_cut_row_and_nothing_is_left_out_unless_it_is_said(
    tokenizer: PreTrainedTokenizerFast, first: int, second: int | None, share: float, most: int
) -> None:
    given_row = example(first, second)
    (row,) = reading(tokenizer, window_overlap=share, max_windows=most)([given_row])
    (cut,) = reading(tokenizer, too_long="truncate")([given_row])
    assert replace(row, more=(), cut=False) == cut
    assert all(len(each) <= LIMIT for each in row.windows)
    assert len(row.windows) <= most
    texts = [text for text in (given_row.text, given_row.text_b) if text is not None]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    complete = True
    for text, ids in enumerate(whole):
        parts = [body(each, text) for each in row.windows]
        if len({tuple(part) for part in parts}) == 1:
            complete &= parts[0] == ids
            continue
        room, seen = len(parts[0]), list(parts[0])
        for part in parts[1:]:
            assert seen[-int(room * share) :][: int(room * share)] == part[: int(room * share)]
            seen += part[int(room * share) :]
        assert ids[: len(seen)] == seen
        complete &= seen == ids
    assert row.cut == (not complete)


def test_a_second_text_that_leaves_no_room_is_cut_to_half_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    (row,) = reading(tokenizer)([example(40, 30)])
    assert len(row.windows) > 1
    assert {len(body(each, 1)) for each in row.windows} == {6}
    assert row.cut


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_of_megabytes_is_only_tokenised_as_far_as_its_windows_reach(
    tokenizer: PreTrainedTokenizerFast, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "LONG", 1000)
    text = words(2000)
    longest = 0
    call = type(tokenizer).__call__

    def counting(self: Any, given_text: Any, *rest: Any, **options: Any) -> Any:
        nonlocal longest
        longest = max(longest, *map(len, [given_text] if isinstance(given_text, str) else given_text))
        return call(self, given_text, *rest, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    tokenizer.truncation_side = side
    try:
        (row,) = reading(tokenizer, max_windows=3)([Example(row=1, text=text)])
        assert longest < len(text)
        monkeypatch.setattr(tokens_module, "LONG", 10**6)
        (expected,) = reading(tokenizer, max_windows=3)([Example(row=1, text=text)])
    finally:
        tokenizer.truncation_side = "right"
    assert row == expected
    assert len(row.windows) == 3
    assert row.cut


def test_the_cache_keeps_windows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    cache_, given_rows = Cache("tokens", 1 << 20), [example(size) for size in (3, 40, 20, 70)]
    tokenise = reading(tokenizer, max_windows=3)
    expected = tokenise(given_rows, [0, 1, 2, 0])
    for _ in range(2):
        assert token_rows_of(tokenise, given_rows, [0, 1, 2, 0], cache=cache_, min_rows=1) == expected
    for other in (replace(tokenise, max_windows=4), replace(tokenise, window_overlap=0.5)):
        assert token_rows_of(other, given_rows, cache=cache_, min_rows=1) == other(given_rows)


def test_a_batch_counts_the_windows_of_each_row(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = reading(tokenizer)([example(size) for size in (3, 40)], [1, 2])
    made = collate(rows, 0)
    assert made["windows"].tolist() == [1, len(rows[1].windows)]
    assert made["labels"].tolist() == [1, 2]
    assert made["input_ids"].shape == (1 + len(rows[1].windows), LIMIT)
    assert "windows" not in collate(rows[:1], 0)
    assert rows[1].places(5) == (LIMIT + 5) * len(rows[1].windows)


# ------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_windows_of_a_batch(processes: int) -> None:
    """Each has as many parts, of its own rows, and no part is larger than that of one process."""
    windows = dict(enumerate([1, 1, 2, 2, 3, 3, 5, 5, 8, 8, 9]))
    batch = list(windows)
    found = shared(batch, windows, 8, processes)
    assert len({len(own) for own in found}) == 1
    for process, own in enumerate(found):
        assert [row for part in own for row in part] == batch[process::processes]
        for part in own:
            assert len(part) <= 1 or len(part) * max(windows[row] for row in part) <= 8


def test_two_processes_run_half_the_parts_of_one_where_rows_run_alone() -> None:
    batch = list(range(8))
    assert shared(batch, dict.fromkeys(batch, 12), 8, 2) == [[[0], [2], [4], [6]], [[1], [3], [5], [7]]]
    assert shared(batch[:3], dict.fromkeys(batch, 12), 8, 2) == [[[0], [2]], [[1], []]]
    assert shared(batch[:1], {0: 1}, 8, 2) == [[[0]], [[]]]


def windows_by_hand(
    case: str, placement: str, model: PTuningModel, groups: Sequence[Sequence[Row]]
) -> Tensor:
    """``[R, C]``: plain transformers on each window alone, averaged; with gradients."""
    alone = by_hand.__wrapped__  # type: ignore[attr-defined]
    return torch.stack(
        [torch.stack([alone(case, model, row, placement) for row in group]).mean(0) for group in groups]
    )


@pytest.mark.parametrize(("case", "placement"), [*((case, "front") for case in FAMILIES), ("bert", "end")])
def test_logits_and_gradients_are_those_of_plain_transformers_one_window_at_a_time(
    case: str, placement: str
) -> None:
    """The prompt is in each window. Padding on either side."""
    groups = [[Row(4, 3), Row(5, 5), Row(1, 6)], [Row(2, 2)], [Row(5, 1), Row(3, 4)]]
    labels = torch.tensor([2, 0, 1])
    model = task_on(case, placement)
    expected = windows_by_hand(case, placement, model, groups)
    loss = torch.nn.functional.cross_entropy(expected, labels)
    wanted = torch.autograd.grad(loss, model.prompt_encoder.weight)[0]
    for left in (False, True):
        made = pairs_of([row for group in groups for row in group], left=left)
        out = model(**made, windows=torch.tensor([3, 1, 2]), labels=labels)
        torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-4)
        got = torch.autograd.grad(out.loss, model.prompt_encoder.weight)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-5)


def shaken(folder: Path, prompt: Any = None, task: Task = READ) -> PTuningModel:
    torch.manual_seed(1)
    prompt = prompt or DeepPrompt(num_virtual_tokens=3, position_offset=0)
    model = PTuningModel.from_backbone(str(folder), prompt, task=task, dtype=torch.float32)
    with torch.no_grad():
        for value in model.task_parameters().values():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model.eval()


def test_an_adapter_answers_as_plain_transformers_do_window_by_window(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """From a text to probabilities, with nothing of ptuning in the expectation; and after loading."""
    model = shaken(tiny_folder, InputPrompt(num_virtual_tokens=3, placement="start"))
    plain = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=3, ignore_mismatched_sizes=True
    )
    plain.load_state_dict({name: value.detach() for name, value in model.head.named().items()}, strict=False)
    plain.eval()
    texts = [words(size) for size in (2, 11, 12, 30, 200)]
    expected, prompt = [], model.prompt_encoder.weight.detach()
    for text in texts:
        encoded = tokenizer(
            text, truncation=True, max_length=LIMIT - 3, stride=2, return_overflowing_tokens=True
        )
        logits = []
        for ids in encoded["input_ids"][:4]:
            vectors = plain.get_input_embeddings()(torch.tensor(ids))
            with torch.no_grad():
                logits.append(plain(inputs_embeds=torch.cat((prompt, vectors))[None]).logits[0])
        expected.append(torch.stack(logits).mean(0).softmax(-1).tolist())
    model.save_pretrained(tmp_path / "adapter")
    loaded = PTuningModel.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    for each in (model, loaded):
        for found, wanted in zip(Predictor(each)(texts), expected, strict=True):
            assert [value for _, value in found.probabilities] == pytest.approx(wanted, abs=1e-5)


PROMPTS = {
    "native": DeepPrompt(num_virtual_tokens=3, pooling="native"),
    "layers": DeepPrompt(num_virtual_tokens=3, pooling="layers", num_queries=1, num_virtual_units=2),
    "stem": DeepPrompt(num_virtual_tokens=3, pooling="layers", first_layer=1),
    "similarity": DeepPrompt(num_virtual_tokens=3, pooling="similarity"),
    "between": InputPrompt(num_virtual_tokens=3, placement="between"),
}
KINDS = {
    "classes": READ,
    "regression": Task(problem_type="regression", mean=2.0, scale=3.0, max_length=LIMIT, max_windows=4),
    "several": Task(
        problem_type="multi_label_classification", labels=("x", "y"), max_length=LIMIT, max_windows=4
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROMPTS)
def test_every_way_to_an_answer_gives_the_mean_of_the_windows(
    tiny_folder: Path, name: str, kind: str
) -> None:
    """The model's own forward, stems, batches of any size, rows of many tasks, PEFT's names, the pipeline."""
    pair = name in ("similarity", "between")
    model = shaken(tiny_folder, PROMPTS[name], replace(KINDS[kind], pair=pair))
    given_rows = [example(size, 3 if pair else None) for size in (2, 50, 12, 25)]
    rows = Tokenise.for_model(model)(given_rows)
    assert {len(row.windows) for row in rows} >= {1, 4}
    with torch.no_grad():
        expected = torch.stack(
            [
                torch.stack([model(**collate([window], 0)).logits[0] for window in windows_of([row])]).mean(0)
                for row in rows
            ]
        )
        together = model(**collate(rows, 0)).logits
    assert torch.equal(expected[0], model.eval()(**collate(rows[:1], 0)).logits[0].detach())

    def close(found: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    close(together)
    close(logits_of(model, rows))
    close(logits_of(model, rows, batch_size=1))
    close(logits_of(model, rows, batch_tokens=LIMIT))
    if name == "stem":
        stems = stems_of(model, rows)
        assert stems is not None
        close(logits_of(model, rows, stems=stems))
    task, texts = model.task, [(row.text, row.text_b) if pair else row.text for row in given_rows]
    wanted = [task.kind.answer(logits.tolist(), task) for logits in expected]
    table = TaskTable(model.backbone)
    table.put("mine", model)
    assert model.tokenizer is not None
    mixed = MultiPredictor(table, model.tokenizer, batch_size=3).predict(texts, ["mine"] * 4)
    for found in (Predictor(model)(texts), mixed):
        for each, (label, probabilities) in zip(found, wanted, strict=True):
            assert dict(each.probabilities) == pytest.approx(dict(probabilities), abs=1e-4)
            assert each.label == (pytest.approx(label, abs=1e-3) if kind == "regression" else label)


def test_rows_that_fit_get_the_same_logits_to_the_bit(tiny_folder: Path) -> None:
    """With windows allowed nothing changes where none are needed."""
    model = shaken(tiny_folder)
    cut = shaken(tiny_folder, task=replace(READ, max_windows=1))
    given_rows = [example(size) for size in range(1, LIMIT - 1)]
    rows, same = Tokenise.for_model(model)(given_rows), Tokenise.for_model(cut)(given_rows)
    assert rows == same
    assert torch.equal(logits_of(model, rows), logits_of(cut, same))


def test_the_mean_of_one_windows_logits_is_exact_next_to_others(tiny_folder: Path) -> None:
    model = shaken(tiny_folder)
    rows = Tokenise.for_model(model)([example(5), example(60)])
    made = collate(rows, 0)
    counts = made.pop("windows")
    with torch.no_grad():
        windows = model(**made).logits
        assert torch.equal(model(**made, windows=counts).logits[0], windows[0])


@pytest.mark.parametrize("counts", [[1, 1], [5], [0, 4], [2, 2, 1], [[4]], [], 4, [4.0], [True] * 4])
def test_windows_that_are_not_those_of_the_batch_are_refused(tiny_folder: Path, counts: Any) -> None:
    model = shaken(tiny_folder)
    made = collate(windows_of(Tokenise.for_model(model)([example(60)])), 0)
    with pytest.raises(DataError, match=r"windows: got .* for a batch of 4 windows"):
        model(**made, windows=torch.tensor(counts))


# ---------------------------------------------------------------------------------------- how to ask


def test_too_long_at_prediction_overrides_what_was_trained(tiny_folder: Path) -> None:
    model, cut = shaken(tiny_folder), shaken(tiny_folder, task=replace(READ, max_windows=1))
    text = words(40)
    chances = {
        name: dict(Predictor(each, too_long=name)(text)[0].probabilities)
        for each, name in ((model, None), (model, "truncate"))
    }
    assert chances[None] != pytest.approx(chances["truncate"], abs=1e-3)
    assert dict(Predictor(cut)(text)[0].probabilities) == pytest.approx(chances["truncate"], abs=1e-6)
    with pytest.raises(DataError, match=r"got 42 tokens, expected at most 16 .* windows"):
        Predictor(model, too_long="error")(text)
    # An adapter that was trained on cut texts can be asked to read windows: with the defaults.
    expected = shaken(tiny_folder, task=replace(READ, max_windows=16))
    (found,), (wanted,) = Predictor(cut, too_long="windows")(text), Predictor(expected)(text)
    assert found == wanted


def test_a_slow_tokenizer_is_refused(tiny_folder: Path) -> None:
    class Slow:
        is_fast = False
        model_max_length = 64

    model = shaken(tiny_folder)
    with pytest.raises(ConfigError, match="Slow is a slow tokenizer, expected a fast one, because windows"):
        Tokenise.for_task(model, Slow(), model.backbone)  # type: ignore[arg-type]
    assert Tokenise.for_task(model, Slow(), model.backbone, "truncate").too_long == "truncate"  # type: ignore[arg-type]


@pytest.mark.parametrize("pair", [False, True])
def test_the_pipeline_reads_windows(tiny_folder: Path, pair: bool, tmp_path: Path) -> None:
    prompt = InputPrompt(num_virtual_tokens=3, placement="between") if pair else None
    model = shaken(tiny_folder, prompt, replace(READ, pair=pair))
    texts = [(words(size), words(3, 7)) if pair else words(size) for size in (2, 50, 12, 25)]
    asked: list[Any] = [{"text": one, "text_pair": two} for one, two in texts] if pair else list(texts)
    expected = [dict(each.probabilities) for each in Predictor(model)(texts)]
    model.save_pretrained(tmp_path / "adapter")
    for made in (pipeline(model), pipeline(tmp_path / "adapter")):
        assert isinstance(made, WindowsPipeline)
        for options in ({}, {"batch_size": 3}):
            found = made(asked, top_k=None, **options)
            for each, wanted in zip(found, expected, strict=True):
                assert {row["label"]: row["score"] for row in each} == pytest.approx(wanted, abs=1e-5)
        one = made(asked[1])
        best = max(expected[1], key=lambda label: expected[1][label])
        assert (one if pair else one[0])["label"] == best
        assert [each["label"] for each in made(iter_of(asked))] == [row["label"] for row in made(asked)]
    cut = PTuningPipeline(replaced(model, max_windows=1), model.tokenizer)
    assert pipeline(model)(asked, truncation=True) == cut(asked)
    with pytest.raises(ConfigError, match="'padding' is not for a task that reads texts in windows"):
        pipeline(model)(asked, padding=True)


def iter_of(rows: Sequence[Any]) -> Any:
    yield from rows


def replaced(model: PTuningModel, **changes: Any) -> PTuningModel:
    made = model.twin()
    made.set_task(replace(model.task, **changes))
    return made


def test_peft_names_take_windows(tiny_folder: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    config = PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=8)
    model = get_peft_model(plain, config).eval()
    ids = torch.randint(5, 30, (3, 6))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        found = model(input_ids=ids, windows=torch.tensor([2, 1])).logits
        torch.testing.assert_close(found, torch.stack((logits[:2].mean(0), logits[2])))
        with pytest.raises(ConfigError, match="windows: got them together with adapter_names"):
            model(input_ids=ids, windows=torch.tensor([2, 1]), adapter_names=["default"] * 3)


# ------------------------------------------------------------------------------------------- records


def test_a_task_without_windows_is_written_as_before() -> None:
    assert CLASSES.to_dict() == {
        "problem_type": "single_label_classification",
        "labels": ["a", "b", "c"],
        "pair": False,
        "mean": 0.0,
        "scale": 1.0,
        "max_length": None,
    }
    assert Task.from_dict(READ.to_dict()) == READ
    assert READ.to_dict()["max_windows"] == 4


@pytest.mark.parametrize(
    "wrong", [{"max_windows": 0}, {"max_windows": 1001}, {"window_overlap": 1}, {"window_overlap": math.nan}]
)
def test_a_task_with_impossible_windows_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(CLASSES, **wrong)
