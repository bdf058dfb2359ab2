"""Oracle, input depth: hand-concatenated embeddings through plain transformers, and PEFT's ``P_TUNING``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from ptuning.errors import ConfigError, DataError
from ptuning.model import ARCHITECTURES, Backbone, InputPrompt, PTuningModel
from ptuning.model.placement import layout
from ptuning.model.template import Insertion, Landmark, insertions
from reference import Piece, landmark, spliced, token_types
from tiny import CASES, FAMILIES, PAD, SPECIFICS, VARIANTS, VOCAB, tiny_case

P = 5
ANCHORS = ((11, 12),)
TEMPLATE = "{prompt:2} {text_a} two words {prompt:3} {text_b}"
NAMED = ("start", "front", "between", "middle", "end")
SEGMENTED = (
    "ernie",
    "ernie, task ids",
    "nomic_bert",
    "gte, two segments",
    "jina_embeddings_v3, two segments",
    "bert",
    "electra",
    "albert",
    "albert, own weights a layer",
    "roberta, two segments",
    "deberta-v2, segments and places",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------- helpers


class Row:
    """A tokenised pair, ``[CLS] a… [SEP] b… [SEP]``."""

    def __init__(self, first: int, second: int) -> None:
        words = torch.randint(13, VOCAB, (first + second,)).tolist()
        self.ids = [0, *words[:first], 2, *words[first:], 2]
        self.segments = [-1, *[0] * first, -1, *[1] * second, -1]
        self.types = [0] * (first + 2) + [1] * (second + 1)


def batch(rows: Sequence[Row], *, left: bool) -> dict[str, Tensor]:
    """What a collator would hand over."""
    width = max(len(row.ids) for row in rows)

    def padded(values: Sequence[int], fill: int) -> list[int]:
        padding = [fill] * (width - len(values))
        return [*padding, *values] if left else [*values, *padding]

    return {
        "input_ids": torch.tensor([padded(row.ids, PAD) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row.ids), 0) for row in rows]),
        "token_type_ids": torch.tensor([padded(row.types, 0) for row in rows]),
        "segment_ids": torch.tensor([padded(row.segments, -1) for row in rows]),
    }


def inserted(placement: str) -> list[tuple[str, list[Piece]]]:
    """What the placement puts where, written out by hand."""
    prompt: list[Piece] = [("prompt", n) for n in range(P)]
    if placement == TEMPLATE:
        return [("front", prompt[:2]), ("between", [("anchor", 11), ("anchor", 12), *prompt[2:]])]
    return [(placement, prompt)]


@cache
def plain(case: str) -> PreTrainedModel:
    return tiny_case(case)


@cache
def backbone(case: str) -> Backbone:
    return Backbone(tiny_case(case))


def task_on(case: str, placement: str) -> PTuningModel:
    """A task whose prompt and head are nobody's initial values; ``plain(case)`` gets the same head."""
    count = None if placement == TEMPLATE else P
    model = PTuningModel.from_backbone(
        backbone(case),
        InputPrompt(placement=placement, num_virtual_tokens=count),
        num_labels=3,
        **anchored(placement),
    )
    with torch.no_grad():
        model.prompt_encoder.weight.normal_(std=0.5)
        for name, value in model.head.named().items():
            value.normal_(std=0.3)
            plain(case).get_parameter(name).copy_(value)
    return model.eval()


class WordTokenizer:
    """Two words, two ids."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens, "an anchor stands inside a text"
        return {"input_ids": [{"two": 11, "words": 12}[word] for word in text.split()]}


def anchored(placement: str) -> dict[str, Any]:
    return {"tokenizer": WordTokenizer()} if placement == TEMPLATE else {}


@torch.no_grad()
def by_hand(case: str, model: PTuningModel, row: Row, placement: str) -> Tensor:
    """``[C]``: the row alone, its embeddings concatenated one after another, default positions."""
    pieces = spliced(row.segments, inserted(placement))
    embed, prompt = plain(case).get_input_embeddings(), model.prompt_encoder.weight
    ids = {"text": lambda n: row.ids[n], "anchor": lambda token: token}
    vectors = [prompt[n] if kind == "prompt" else embed(torch.tensor(ids[kind](n))) for kind, n in pieces]
    segments = {"token_type_ids": torch.tensor([token_types(pieces, row.types)])} if case in SEGMENTED else {}
    mask = torch.ones(1, len(vectors), dtype=torch.long)
    logits: Tensor = plain(case)(
        inputs_embeds=torch.stack(vectors)[None], attention_mask=mask, **segments
    ).logits
    return logits[0]


def assert_close(got: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=0, atol=1e-5 * scale)


# --------------------------------------------------------------------------- transformers as oracle


def test_every_architecture_is_here() -> None:
    assert set(SPECIFICS) == set(ARCHITECTURES)
    assert {kind for kind, _ in VARIANTS.values()} <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("case", "placement"),
    [
        *((case, "front") for case in CASES),
        *((case, placement) for case in FAMILIES for placement in ("between", TEMPLATE)),
        *(
            (case, placement)
            for case in ("bert", "gpt2", "llama")
            for placement in ("start", "middle", "end")
        ),
    ],
)
def test_logits_are_those_of_hand_concatenated_embeddings(case: str, placement: str) -> None:
    """Ragged pairs, padded on either side, against each row alone. A decoder pools its last real token,
    and with ``end`` the last of the prompt."""
    rows = [Row(4, 3), Row(1, 6), Row(5, 5)]
    model = task_on(case, placement)
    expected = torch.stack([by_hand(case, model, row, placement) for row in rows])
    with torch.no_grad():
        for left in (False, True):
            assert_close(model(**batch(rows, left=left)).logits, expected)


@pytest.mark.parametrize("case", ["bert", "roberta", "gpt2", "gemma", "bloom", "deberta-v2"])
def test_logits_are_affected_by_where_the_prompt_stands(case: str) -> None:
    """The oracle above could not fail if all placements were one."""
    row = Row(4, 3)
    models = {placement: task_on(case, placement) for placement in NAMED}
    with torch.no_grad():
        prompt, head = (
            torch.randn_like(models["start"].prompt_encoder.weight),
            models["start"].head.state_dict(),
        )
        for model in models.values():
            model.head.load_state_dict(head)
        answers = [model(**batch([row], left=False), prompt=prompt).logits for model in models.values()]
    for n, one in enumerate(answers):
        assert all((one - other).abs().max() > 1e-3 for other in answers[n + 1 :])


@pytest.mark.parametrize("case", [case for case in FAMILIES if case not in SEGMENTED])
def test_token_types_mean_nothing_where_there_are_no_segments(case: str) -> None:
    model, inputs = task_on(case, "between"), batch([Row(3, 3)], left=False)
    with torch.no_grad():
        with_types = model(**inputs).logits
        inputs.pop("token_type_ids")
        assert torch.equal(model(**inputs).logits, with_types)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("case", ["bert", "electra", "albert"])
@pytest.mark.parametrize("placement", ["front", "between", TEMPLATE])
def test_token_types_tell_the_segments_where_they_are_not_given(
    case: str, placement: str, left: bool
) -> None:
    model, inputs = task_on(case, placement), batch([Row(3, 3), Row(6, 2)], left=left)
    with torch.no_grad():
        told = model(**inputs).logits
        inputs.pop("segment_ids")
        assert torch.equal(model(**inputs).logits, told)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("case", ["distilbert", "roberta", "gpt2", "llama"])
def test_front_of_a_lone_text_needs_no_segments(case: str, begun: bool) -> None:
    """A row begins with one special token; a decoder's with its text, where that is not ``<s>``."""
    model, inputs = task_on(case, "front"), batch([Row(3, 3), Row(6, 2)], left=True)
    del inputs["token_type_ids"]
    inputs["segment_ids"] = torch.where(inputs["segment_ids"] == 1, 0, inputs["segment_ids"])
    if ARCHITECTURES[case].causal and not begun:
        inputs["input_ids"] = torch.where(inputs["input_ids"] == 0, 13, inputs["input_ids"])
        inputs["segment_ids"] = inputs["attention_mask"] - 1
    with torch.no_grad():
        told = model(**inputs).logits
        inputs.pop("segment_ids")
        assert torch.equal(model(**inputs).logits, told)


def test_between_without_any_sign_of_the_second_text_is_refused() -> None:
    inputs = batch([Row(3, 3)], left=False)
    with pytest.raises(DataError, match=r"row 0 .*no second text.*another placement"):
        task_on("roberta", "between")(inputs["input_ids"], inputs["attention_mask"])


@pytest.mark.parametrize("case", ["bert", "gpt2", "opt"])
def test_a_prompt_for_each_row_equals_separate_calls(case: str) -> None:
    model, rows = task_on(case, "front"), [Row(3, 2), Row(5, 5), Row(1, 1)]
    prompts = torch.randn(3, *model.prompt_encoder.weight.shape)
    with torch.no_grad():
        together = model(**batch(rows, left=False), prompt=prompts).logits
        for row, prompt, got in zip(rows, prompts, together, strict=True):
            assert_close(got, model(**batch([row], left=False), prompt=prompt).logits[0])


def test_given_anchors_stand_for_the_templates_words() -> None:
    spoken = task_on("bert", TEMPLATE)
    given_ids = PTuningModel(backbone("bert"), spoken.prompt_config, spoken.task, anchors=ANCHORS)
    assert given_ids.anchors == spoken.anchors == ANCHORS
    given_ids.load_state_dict(spoken.state_dict())
    inputs = batch([Row(3, 2)], left=False)
    with torch.no_grad():
        assert torch.equal(given_ids(**inputs).logits, spoken(**inputs).logits)


def test_a_templates_words_need_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match=r"'two words'.*tokenizer"):
        PTuningModel.from_backbone(backbone("bert"), InputPrompt(placement=TEMPLATE), num_labels=3)


# ----------------------------------------------------------------------------------- PEFT as oracle


def p_tuned(case: str, prompt: Tensor) -> Any:
    """PEFT's ``P_TUNING`` on a fresh model. In inference mode its prompt is its embedding as it stands."""
    peft = pytest.importorskip("peft")
    tokens, width = prompt.shape
    config = peft.PromptEncoderConfig(
        task_type="SEQ_CLS",
        inference_mode=True,
        num_virtual_tokens=tokens,
        token_dim=width,  # left out, PEFT takes the hidden width, which fails on ALBERT, ELECTRA and OPT-350m
        num_attention_heads=1,  # never read here, but PEFT does not find it on DistilBERT and raises
        encoder_hidden_size=width,
    )
    model = peft.get_peft_model(tiny_case(case), config)
    model.prompt_encoder["default"].embedding.weight.data.copy_(prompt)
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("case", SPECIFICS)
def test_start_equals_pefts_p_tuning(case: str) -> None:
    """Right-padded batches for encoders; rows alone for decoders: PEFT pools a pad or drops positions."""
    model = PTuningModel.from_backbone(
        backbone(case), InputPrompt(placement="start", num_virtual_tokens=P), num_labels=3
    ).eval()
    with torch.no_grad():
        model.prompt_encoder.weight.normal_(std=0.5)
        peers = p_tuned(case, model.prompt_encoder.weight)
        rows = [Row(4, 3), Row(1, 6), Row(5, 5)]
        for group in [[row] for row in rows] if ARCHITECTURES[case].causal else [rows]:
            inputs = batch(group, left=False)
            del inputs["segment_ids"]
            if case not in SEGMENTED:
                del inputs["token_type_ids"]
            assert_close(model(**inputs).logits, peers(**inputs).logits)


# ------------------------------------------------------------------------- placement on its own


class Sentinels:
    """A batch whose every token is a number of its own: row · 1000 + place; -1 is padding."""

    def __init__(self, shapes: Sequence[tuple[int, int, int, int]]) -> None:
        """Each row: padding in front, first text, second text, padding behind."""
        self.segments = [[-1, *[0] * a, -1, *[1] * b, -1] for _, a, b, _ in shapes]
        self.texts = [[row * 1000 + n for n in range(len(s))] for row, s in enumerate(self.segments)]
        width = max(f + len(s) + e for (f, *_, e), s in zip(shapes, self.segments, strict=True))
        ends = [width - shape[0] - len(s) for shape, s in zip(shapes, self.segments, strict=True)]

        def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor(
                [[fill] * s[0] + list(r) + [fill] * e for r, s, e in zip(rows, shapes, ends, strict=True)]
            )

        self.values = padded(self.texts, -1)
        self.mask = (self.values >= 0).long()
        self.segment_ids = padded(self.segments, -1)


FRONT, BETWEEN, MIDDLE, END = Landmark.TEXT_A, Landmark.TEXT_B, Landmark.MIDDLE, Landmark.END
PLACES = {Landmark.START: "start", FRONT: "front", BETWEEN: "between", MIDDLE: "middle", END: "end"}
shapes = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)
places = st.lists(st.tuples(st.sampled_from(list(PLACES)), st.integers(1, 4)), max_size=4)


@settings(deadline=None, max_examples=200)
@given(shapes=shapes, wanted=places, pad_left=st.booleans())
def test_every_token_lands_where_a_list_would_put_it(
    shapes: list[tuple[int, int, int, int]], wanted: list[tuple[Landmark, int]], pad_left: bool
) -> None:
    texts = Sentinels(shapes)
    pieces = [Insertion(before=before, tokens=size) for before, size in wanted]
    sizes = [size for _, size in wanted]
    found = layout(texts.mask, pieces, sizes, texts.segment_ids, pad_left=pad_left)

    values, insertions_ = [], []
    for before, size in wanted:  # each inserted token a number of its own too
        numbers = [-1001 - sum(map(len, values)) - n for n in range(size)]
        values.append(numbers)
        insertions_.append((PLACES[before], [("prompt", number) for number in numbers]))
    flat = torch.tensor([number for numbers in values for number in numbers], dtype=torch.long)
    combined = found.arrange(torch.cat((texts.values, flat.expand(len(shapes), -1)), dim=1))

    for row, (text, segments) in enumerate(zip(texts.texts, texts.segments, strict=True)):
        expected = [text[n] if kind == "text" else n for kind, n in spliced(segments, insertions_)]
        padding = combined.shape[1] - len(expected)
        real = slice(padding, None) if pad_left else slice(0, len(expected))
        assert combined[row, real].tolist() == expected
        assert found.positions[row, real].tolist() == list(range(len(expected)))
        assert found.mask[row].tolist() == ([0] * padding + [1] * len(expected))[:: 1 if pad_left else -1]
        assert int(found.positions[row].sum()) == sum(range(len(expected))), "padding is at position 0"


@settings(deadline=None, max_examples=50)
@given(shapes=shapes, placement=st.sampled_from(NAMED), count=st.integers(1, 9), pad_left=st.booleans())
def test_named_placements_mean_what_they_say(
    shapes: list[tuple[int, int, int, int]], placement: str, count: int, pad_left: bool
) -> None:
    texts = Sentinels(shapes)
    found = layout(texts.mask, insertions(placement, count), [count], texts.segment_ids, pad_left=pad_left)
    for row, segments in enumerate(texts.segments):
        start = landmark(placement, segments) + (found.index.shape[1] - len(segments) - count) * pad_left
        columns = found.index[row, start : start + count] - texts.values.shape[1]
        assert columns.tolist() == list(range(count))


def test_arranging_vectors_keeps_each_whole() -> None:
    texts = Sentinels([(0, 3, 2, 1), (2, 1, 1, 0)])
    found = layout(texts.mask, insertions("between", 2), [2], texts.segment_ids, pad_left=False)
    pieces = torch.randn(2, texts.values.shape[1] + 2, 7)
    arranged = found.arrange(pieces)
    for row in range(2):
        assert torch.equal(arranged[row], pieces[row, found.index[row]])


@pytest.mark.parametrize(("placement", "which"), [("front", "first"), ("between", "second")])
def test_a_row_without_the_text_is_named(placement: str, which: str) -> None:
    mask, segments = torch.ones(2, 4, dtype=torch.long), torch.tensor([[-1, 0, 1, -1], [-1, -1, -1, -1]])
    with pytest.raises(DataError, match=rf"row 1 of the batch has no {which} text"):
        layout(mask, insertions(placement, 2), [2], segments, pad_left=False)


def test_a_text_that_cannot_be_found_is_refused() -> None:
    with pytest.raises(DataError, match="pass segment_ids"):
        layout(torch.ones(1, 3, dtype=torch.long), insertions("front", 2), [2], None, pad_left=False)
