"""Stem reuse: the layers below the first prompt run once a text, and nothing else is different for it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptuning import DeepPrompt, FitConfig, InputPrompt, PTuningModel, TrainConfig, adapters, fit, train
from ptuning.cache import Cache
from ptuning.data import stems as stems_module
from ptuning.data.stems import GIB, Stems, identity, stems_of
from ptuning.data.tokens import TokenRow, collate
from ptuning.errors import ConfigError
from ptuning.inference.evaluate import batch_of, logits_of
from ptuning.model import Backbone
from ptuning.model.config import Engine
from ptuning.task import Task
from ptuning.training.callbacks import Callback, RunState
from ptuning.training.interrupt import Interrupted
from tiny import FAMILIES, HIDDEN, LAYERS, THOROUGH, VOCAB, tiny, tiny_case
from warm import Programs

Rows = Callable[..., list[dict[str, Any]]]
Files = Callable[..., Path]

P = 4
THREE = Task(problem_type="single_label_classification", labels=(0, 1, 2))
NO_ROOM = {"stem_memory": 0.0, "stem_disk": 0.0}
MAPPED = {"stem_memory": 0.0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("PTUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stems"


# ---------------------------------------------------------------------------------------- helpers


def deep(
    case: Any = "bert", first_layer: int = 1, engine: Engine | None = None, **choices: Any
) -> PTuningModel:
    """A deep task whose prompt is large enough to matter."""
    held = case if isinstance(case, Backbone) else Backbone(tiny_case(case))
    held.engine = engine or Engine()
    torch.manual_seed(1)
    config = DeepPrompt(num_virtual_tokens=P, first_layer=first_layer, **choices)
    model = PTuningModel(held, config, THREE).eval()
    with torch.no_grad():
        model.prompt_encoder.weight.normal_()
    return model


def texts(lengths: Iterable[int], *, seed: int = 0, types: bool = False) -> list[TokenRow]:
    draw = random.Random(seed)
    return [
        TokenRow(
            input_ids=[0, *(draw.randint(3, VOCAB - 1) for _ in range(length))],
            token_type_ids=[0] + [int(n > length // 2) for n in range(length)] if types else None,
            segment_ids=None,
            label=draw.randint(0, 2),
        )
        for length in lengths
    ]


ROWS = texts([5, 2, 9, 2, 7, 1])


def layers(model: PTuningModel) -> list[nn.Module]:
    backbone = model.backbone
    return list(backbone.base.get_submodule(backbone.architecture.layers).children())


class Ran:
    """How many times a part of a layer ran, and on how many places in all."""

    calls = 0
    places = 0


@contextmanager
def watching(module: nn.Module) -> Iterator[Ran]:
    """The module is a part of a layer: the layer itself is called to be passed by as well."""
    ran = Ran()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        ran.calls += 1
        ran.places += inputs[0].shape[0] * inputs[0].shape[1]

    handle = module.register_forward_hook(note)
    try:
        yield ran
    finally:
        handle.remove()


def part(layer: nn.Module) -> nn.Module:
    """A linear part of a layer, which runs once where the layer runs and sees each token."""
    found = [m for m in layer.modules() if not list(m.children()) and list(m.parameters()) and m is not layer]
    return found[-1]


def inputs_of(rows: list[TokenRow], *, left: bool = False) -> dict[str, Tensor]:
    inputs = collate(rows, 0)
    inputs.pop("labels", None)
    if left:
        shift = [len(row) - max(map(len, rows)) for row in rows]
        inputs = {
            name: torch.stack([row.roll(-by) for row, by in zip(value, shift, strict=True)])
            for name, value in inputs.items()
        }
    return inputs


def learned(model: PTuningModel, inputs: dict[str, Tensor], **given: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(**inputs, **given).logits
    logits.square().sum().backward()
    return logits.detach(), {
        name: value.grad.clone()  # type: ignore[union-attr]
        for name, value in model.task_parameters().items()
    }


def assert_same(got: Any, expected: Any, tolerance: float = 2e-5) -> None:
    scale = max(1.0, float(expected[0].abs().max()))
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=tolerance * scale)
    largest = max(float(value.abs().max()) for value in expected[1].values())
    assert largest > 0
    for name, value in expected[1].items():
        torch.testing.assert_close(got[1][name], value, rtol=0, atol=tolerance * largest, msg=name)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def made(model: PTuningModel, rows: Iterable[TokenRow] = ROWS) -> tuple[Stems, int]:
    """Stems, and how many batches went through the stem for them."""
    with watching(part(layers(model)[0])) as ran:
        found = stems_of(model, rows)
    assert found is not None
    return found, ran.calls


# ------------------------------------------------------------------------------ in the model itself


@pytest.mark.parametrize(
    ("case", "first_layer"),
    [
        (case, first)
        for first, cases in ((1, THOROUGH), (LAYERS - 1, FAMILIES))
        for case in cases
        if case != "bloom"
    ],
)
def test_what_enters_the_first_prompted_layer_may_be_handed_over(case: str, first_layer: int) -> None:
    """Ragged, padded on either side, with second texts where the backbone knows of them."""
    model = deep(case, first_layer, position_offset=3)
    assert model.stem_layer == first_layer
    rows = texts([5, 2, 9], types=True)
    for left in (False, True):
        inputs = inputs_of(rows, left=left)
        stem = model.stem(**inputs)
        assert stem.shape == (*inputs["input_ids"].shape, HIDDEN)
        assert not stem.requires_grad
        for engine in (Engine(), Engine(attention="plain", checkpoint_activations=False, pooled_layer=False)):
            model.backbone.engine = engine
            assert_same(learned(model, inputs, stem=stem), learned(model, inputs))


@pytest.mark.parametrize("case", ["bert", "llama", "gpt2"])
def test_a_bf16_stem_is_as_good_as_a_whole_pass(case: str) -> None:
    held = Backbone(tiny_case(case))
    held.to(torch.bfloat16)
    model = deep(held)
    inputs = inputs_of(ROWS)
    stem = model.stem(**inputs)
    assert stem.dtype == torch.bfloat16
    assert_same(learned(model, inputs, stem=stem), learned(model, inputs))


@pytest.mark.parametrize(
    "case", ["bert", "albert, own weights a layer", "deberta-v2, convolution", "gpt2", "llama"]
)
def test_layers_below_do_not_run_where_the_stem_is_given_and_those_above_do_not_for_it(case: str) -> None:
    model = deep(case, 2)
    inputs = inputs_of(ROWS)
    parts = [part(layer) for layer in layers(model)]
    with watching(parts[0]) as first, watching(parts[1]) as second, watching(parts[2]) as third:
        stem = model.stem(**inputs)
        assert (first.calls, second.calls, third.calls) == (1, 1, 0)
        model(**inputs, stem=stem)
        assert (first.calls, second.calls, third.calls) == (1, 1, 1)
        model(**inputs)
        assert (first.calls, second.calls, third.calls) == (2, 2, 2)


def test_another_text_or_layer_gives_another_answer() -> None:
    """The stem is what is read: were it ignored, every test above would pass."""
    model = deep()
    inputs = inputs_of(ROWS)
    stem = model.stem(**inputs)
    with torch.no_grad():
        whole = model(**inputs).logits
        assert not torch.allclose(model(**inputs, stem=stem.flip(0)).logits, whole, atol=1e-2)
        assert torch.allclose(
            model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)}, stem=stem).logits, whole, atol=1e-4
        )


@pytest.mark.parametrize("case", ["bert", "albert", "modernbert", "gpt2", "llama"])
def test_autograd_keeps_nothing_of_the_layers_below_the_first_prompt(case: str) -> None:
    inputs = inputs_of(texts([20] * 8))

    def saved(model: PTuningModel) -> tuple[int, int]:
        """Bytes in all, and those that were kept before the first prompted layer began."""
        own = {value.untyped_storage().data_ptr() for value in model.parameters()}
        kept: dict[int, int] = {}
        below: list[int] = []
        first = layers(model)[min(model.stem_layer, len(layers(model)) - 1)]

        def pack(value: Tensor) -> Tensor:
            if value.untyped_storage().data_ptr() not in own:
                kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        handle = first.register_forward_pre_hook(lambda *_: below.append(sum(kept.values())))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            logits = model(**inputs).logits
        handle.remove()
        assert logits.requires_grad
        return sum(kept.values()), below[0]

    # The prompts' own rearrangement is kept before any layer runs, and is small.
    high, low = saved(deep(case, LAYERS - 1)), saved(deep(case, 0))
    assert high[0] < low[0] / 2
    assert high[1] <= LAYERS * 2 * P * HIDDEN * 4


def test_there_is_no_stem_where_nothing_would_be_saved() -> None:
    model = deep("bert", 0)
    assert model.stem_layer == 0
    assert stems_of(model, ROWS) is None
    shallow = PTuningModel(model.backbone, InputPrompt(num_virtual_tokens=P), THREE)
    assert shallow.stem_layer == 0
    assert stems_of(shallow, ROWS) is None
    assert stems_of(deep(engine=Engine(reuse_stem=False)), ROWS) is None


def test_dropout_in_the_backbone_leaves_no_stem() -> None:
    model = deep()
    model.backbone.dropout = True
    assert model.stem_layer == 0
    assert stems_of(model, ROWS) is None


def test_what_is_no_stem_is_not_taken_for_one() -> None:
    """With dropout the layers below are not constant: what is handed over may not enter higher up."""
    model = deep()
    inputs = inputs_of(ROWS)
    stem = model.stem(**inputs)
    model.backbone.dropout = True
    with pytest.raises(
        ConfigError, match="stem: the layers below this model's first prompt cannot be cached"
    ):
        model.stem(**inputs)
    with pytest.raises(
        ConfigError, match="stem: the layers below this model's first prompt cannot be cached"
    ):
        model(**inputs, stem=stem)


# ------------------------------------------------------------------------------------------- Stems


@pytest.mark.parametrize("case", ["bert", "gpt2", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("room", [{}, MAPPED], ids=["memory", "mapped"])
def test_kept_stems_give_the_same_logits_and_gradients(case: str, room: dict[str, float]) -> None:
    model = deep(case, engine=Engine(**room))
    stems, _ = made(model)
    assert len(stems.of(ROWS)) == len(ROWS)  # all of them are there
    for rows in (ROWS, ROWS[::-1], ROWS[1:2]):
        inputs = inputs_of(rows)
        assert_same(learned(model, inputs, stem=stems.of(rows)), learned(model, inputs))
    whole = logits_of(model, ROWS)
    torch.testing.assert_close(logits_of(model, ROWS, stems=stems), whole, rtol=0, atol=1e-4)


def test_stems_are_a_function_of_the_set_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of their order, of how often one is there, and of their labels, they are not; nor of the batches."""
    monkeypatch.setattr(stems_module, "BATCH_TOKENS", 12)
    monkeypatch.setenv("PTUNING_CACHE", "off")
    model = deep()
    shuffled = [
        replace(row, label=1 - row.label, segment_ids=[0] * len(row)) for row in [*ROWS[::-1], ROWS[2]]
    ]
    one, calls = made(model)
    two, more = made(model, shuffled)
    assert calls == more > 1
    assert torch.equal(one.hidden, two.hidden)
    assert torch.equal(one.of(ROWS), two.of(ROWS))
    assert len(one.hidden) == sum(map(len, ROWS))


def test_rows_that_differ_in_anything_that_the_backbone_sees_are_two() -> None:
    row = TokenRow(input_ids=[5, 6, 7], token_type_ids=[0, 0, 1], segment_ids=None)
    others = [
        replace(row, input_ids=[5, 6, 8]),
        replace(row, input_ids=[5, 6], token_type_ids=[0, 1]),
        replace(row, token_type_ids=[0, 1, 1]),
        replace(row, token_type_ids=None),
        replace(row, input_ids=[5, 6, 7, 0], token_type_ids=[0, 0, 1, 0]),
    ]
    assert len({identity(each) for each in (row, *others)}) == 6
    assert identity(replace(row, label=3, segment_ids=[0, 0, 1])) == identity(row)


def test_a_text_that_was_not_asked_for_is_not_there() -> None:
    stems, _ = made(deep(), ROWS[:3])
    assert len(stems.of(ROWS[:3])) == 3
    with pytest.raises(KeyError):
        stems.of(ROWS)


def test_padding_is_nought_behind_each_row() -> None:
    stems, _ = made(deep())
    found = stems.of(ROWS)
    mask = collate(ROWS, 0)["attention_mask"].bool()
    assert (found[~mask] == 0).all()
    assert (found[mask].abs().amax(1) > 0).all()
    assert batch_of(ROWS, 0, stems)["stem"].equal(found)


def test_progress_counts_distinct_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stems_module, "BATCH_TOKENS", 12)
    told: list[tuple[int, int]] = []
    stems_of(deep(), [*ROWS, *ROWS], on_rows=lambda *at: told.append(at))
    assert told[-1] == (len(ROWS), len(ROWS))
    assert told == sorted(set(told))
    assert len(told) > 2


# ------------------------------------------------------------------------------------ never stale


def changed_in_place(model: PTuningModel) -> None:
    with torch.no_grad():
        model.backbone.model.get_parameter("bert.encoder.layer.0.output.dense.weight").add_(1e-3)


def changed_data(model: PTuningModel) -> None:
    """Autograd's version counter does not see it."""
    model.backbone.model.get_parameter("bert.embeddings.word_embeddings.weight").data[5, 3] += 1e-3


def changed_buffer(model: PTuningModel) -> None:
    model.backbone.model.register_buffer("of_the_head", torch.ones(1))  # above the transformer: no matter
    model.backbone.base.register_buffer("of_the_transformer", torch.ones(1))


CHANGES: dict[str, Callable[[], PTuningModel]] = {
    "weight": lambda: with_(changed_in_place),
    "data": lambda: with_(changed_data),
    "buffer": lambda: with_(changed_buffer),
    "layer_norm_eps": lambda: deep(Backbone(tiny("bert", layer_norm_eps=1e-5))),
    "activation": lambda: deep(Backbone(tiny("bert", hidden_act="relu"))),
    "dtype": lambda: stored(torch.bfloat16),
    "layer": lambda: deep(first_layer=2),
    "offset": lambda: deep(position_offset=2),
    "attention": lambda: deep(engine=Engine(attention="plain")),
    "compile": lambda: deep(engine=Engine(compile=True)),
}


def with_(change: Callable[[PTuningModel], None]) -> PTuningModel:
    model = deep()
    change(model)
    return model


def stored(dtype: torch.dtype) -> PTuningModel:
    held = Backbone(tiny("bert"))
    held.to(dtype)
    return deep(held)


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_numbers_depend_on_is_in_the_key(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, Stems] = {}
    assert stems_of(deep(), ROWS, known=known) is not None
    if change == "compile":  # its key alone is looked at
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = CHANGES[change]()
    with watching(part(layers(model)[0])) as ran:
        stems_of(model, ROWS, known=known)
    assert ran.calls == 1
    assert len(files(folder)) == 2
    assert len(known) == 1, "what is held in memory is bounded for one set of texts"


def test_a_weight_that_is_changed_after_the_model_was_used_is_seen() -> None:
    """Nothing of the digest is remembered."""
    model, known = deep(), {}  # type: ignore[var-annotated]
    first = stems_of(model, ROWS, known=known)
    assert stems_of(model, ROWS, known=known) is first
    changed_data(model)
    second = stems_of(model, ROWS, known=known)
    assert second is not first
    assert second is not None
    for row in ROWS:
        expected = model.stem(**inputs_of([row]))
        torch.testing.assert_close(second.of([row]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        [*ROWS[:-1], replace(ROWS[-1], input_ids=[0, 3])],
        [replace(row, token_type_ids=[1] * len(row)) for row in ROWS],
    ],
    ids=["fewer", "a token", "types"],
)
def test_other_texts_are_another_entry(rows: list[TokenRow], folder: Path) -> None:
    model = deep()
    assert list(map(identity, rows)) != list(map(identity, ROWS))
    made(model)
    assert made(model, rows)[1] == 1
    assert len(files(folder)) == 2


def test_tasks_share_what_does_not_depend_on_the_task(folder: Path) -> None:
    """Another prompt, another head, another way to compute what stands above the stem: the same file."""
    made(deep())
    held = Backbone(tiny("bert"))
    with torch.no_grad():
        held.model.classifier.weight.add_(1)
    held.engine = Engine(pooled_layer=False, checkpoint_activations=True, shared_prompt=False)
    other = PTuningModel(
        held,
        DeepPrompt(num_virtual_tokens=7, first_layer=1),
        Task(problem_type="regression"),
    )
    stems, calls = made(other, [replace(row, label=0.5) for row in ROWS])
    assert calls == 0
    assert len(files(folder)) == 1
    assert stems.hidden.dtype == torch.float32


def test_numbers_made_under_autocast_are_not_those_of_full_precision() -> None:
    """Either autocast has no say in the stem, or it is in the key."""
    with torch.autocast("cpu", torch.bfloat16):
        stems_of(deep(), ROWS)
    found, _ = made(deep())
    expected = deep().stem(**inputs_of(ROWS[2:3]))[0]
    torch.testing.assert_close(found.of(ROWS[2:3])[0], expected, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------ on disk

OTHER_PROCESS = """
import json, sys
import torch
sys.path.insert(0, sys.argv[1])
from test_stems import ROWS, deep, made
from ptuning.model.config import Engine
model = deep(engine=Engine(**json.loads(sys.argv[2])))
print("ready", flush=True)
input()
stems, calls = made(model)
torch.save(stems.hidden.clone(), sys.argv[3])
print(calls, flush=True)
"""


def test_processes_may_compute_the_same_at_once_and_others_find_it(
    tmp_path: Path, folder: Path, programs: Programs
) -> None:
    script = tmp_path / "script.py"
    script.write_text(OTHER_PROCESS)
    running, told, orders = [], [], []
    for number, room in enumerate(({}, MAPPED)):
        (given, order), (out, said) = os.pipe(), os.pipe()
        argv = [str(script), str(Path(__file__).parent), json.dumps(room), str(tmp_path / f"{number}.pt")]
        running.append(programs.start(argv, stdin=given, stdout=said, stderr=2))
        os.close(given)
        os.close(said)
        orders.append(open(order, "w"))  # noqa: SIM115
        told.append(open(out))  # noqa: SIM115
    assert [out.readline() for out in told] == ["ready\n"] * 2
    for order in orders:
        order.write("go\n")
        order.flush()
    ran = [int(out.readline()) for out in told]
    assert [program.wait() for program in running] == [0, 0]
    for stream in (*told, *orders):
        stream.close()
    assert max(ran) == 1
    here, calls = made(deep())
    assert calls == 0, "this is another process than those that made it"
    assert len(files(folder)) == 1
    for number in range(2):
        assert torch.equal(torch.load(tmp_path / f"{number}.pt"), here.hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_disk_and_computation_agree_to_the_bit(dtype: torch.dtype, folder: Path) -> None:
    found = []
    for room, expected in (({}, 1), ({}, 0), (MAPPED, 0)):
        model = stored(dtype)
        model.backbone.engine = Engine(**room)
        stems, calls = made(model)
        assert calls == expected
        found.append(stems)
    for path in files(folder):
        path.unlink()
    model = stored(dtype)
    model.backbone.engine = Engine(**MAPPED)
    stems, calls = made(model)
    assert calls == 1
    for each in (*found[1:], stems):
        assert each.hidden.dtype == dtype
        assert torch.equal(each.hidden, found[0].hidden)
        assert torch.equal(each.of(ROWS), found[0].of(ROWS))


def is_mapped(folder: Path) -> bool:
    return str(folder) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
def test_what_memory_may_not_hold_is_mapped_from_disk(folder: Path) -> None:
    held, _ = made(deep())
    assert not is_mapped(folder)
    mapped, calls = made(deep(engine=Engine(**MAPPED)))
    assert calls == 0
    assert is_mapped(folder)
    files(folder)[0].unlink()
    assert torch.equal(mapped.hidden, held.hidden), "whoever has it open keeps it"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
def test_several_processes_have_one_copy(folder: Path) -> None:
    held, _ = made(deep())
    read = stems_of(deep(), ROWS)
    assert not is_mapped(folder)
    found = stems_of(deep(), ROWS, mapped=True)
    assert is_mapped(folder)
    assert found is not None
    assert read is not None
    assert torch.equal(found.hidden, held.hidden)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' list of mapped files")
def test_the_limit_of_memory_is_in_gib(folder: Path) -> None:
    size = sum(map(len, ROWS)) * HIDDEN * 4
    for room, mapped in ((size / GIB, False), ((size - 1) / GIB, True)):
        stems, _ = made(deep(engine=Engine(stem_memory=room)))
        assert is_mapped(folder) is mapped
        assert len(stems.hidden) * HIDDEN * 4 == size


@pytest.mark.parametrize(
    "off", [{"stem_disk": 0.0}, {"stem_disk": 1000 / GIB}, "env"], ids=["none", "little", "off"]
)
def test_where_neither_memory_nor_disk_holds_it_there_is_none(
    off: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if off == "env":
        monkeypatch.setenv("PTUNING_CACHE", "off")
        off = {}
    model = deep(engine=Engine(**MAPPED, **off))
    with watching(part(layers(model)[0])) as ran:
        assert stems_of(model, ROWS) is None
    assert ran.calls == 0, "nothing is computed to be thrown away"
    _, calls = made(deep(engine=Engine(**off)))
    assert calls == 1
    assert files(folder) == []


def test_every_damage_to_the_file_is_a_miss(folder: Path) -> None:
    """Each byte of the header in turn, some of the numbers, and every way to be cut short."""
    here, _ = made(deep())
    (path,) = files(folder)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    used = len(whole[:header].rstrip())
    draw = random.Random(0)
    places = [*range(used), *(draw.randrange(header, len(whole)) for _ in range(20))]
    misses = 0
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(broken)
        hidden = stems_module._read(path, tuple(here.hidden.shape), here.hidden.dtype)
        misses += hidden is None
        assert hidden is None or torch.equal(hidden, here.hidden), place
    assert misses > len(places) // 2
    for size in (0, 1, 8, 100, header, header + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert stems_module._read(path, tuple(here.hidden.shape), here.hidden.dtype) is None
    path.write_bytes(b"")
    found, calls = made(deep())
    assert calls == 1
    assert torch.equal(found.hidden, here.hidden)
    assert path.read_bytes() == whole, "and it is mended"


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32"', b'"I32"'), (b"[32, 32]", b"[32,8,4]"), (b'"hidden"', b'"hidded"')]
)
def test_a_header_that_tells_of_another_tensor_is_a_miss(folder: Path, old: bytes, new: bytes) -> None:
    """The bytes are those whose digest it holds, and mean something else."""
    rows = texts([31])
    here, _ = made(deep(), rows)
    (path,) = files(folder)
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    found, calls = made(deep(), rows)
    assert calls == 1
    assert torch.equal(found.hidden, here.hidden)


def test_an_entry_of_other_length_under_the_key_is_a_miss(folder: Path) -> None:
    made(deep(), ROWS[:2])
    (short,) = files(folder)
    made(deep())
    (other,) = (path for path in files(folder) if path != short)
    other.write_bytes(short.read_bytes())
    assert made(deep())[1] == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("room", [{}, MAPPED], ids=["memory", "mapped"])
def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(room: dict[str, float], folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert (stems_of(deep(engine=Engine(**room)), ROWS) is None) is bool(room)
    finally:
        folder.chmod(stat.S_IRWXU)
    assert files(folder) == []


@pytest.mark.parametrize("room", [{}, MAPPED], ids=["memory", "mapped"])
def test_a_folder_that_is_a_file_is_no_reason_to_fail(room: dict[str, float], folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("mine")
    assert (stems_of(deep(engine=Engine(**room)), ROWS) is None) is bool(room)
    assert folder.read_text() == "mine"


class FullDisk:
    """A file on a disk that takes so many writes."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.left = file, writes

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return int(self.file.write(content))


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("room", [{}, MAPPED], ids=["memory", "mapped"])
def test_a_full_disk_is_no_reason_to_fail(
    room: dict[str, float], writes: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stems_module, "BATCH_TOKENS", 12)
    opened = Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = opened(self, mode, *rest, **named)
        return FullDisk(file, writes) if mode == "wb" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        found = stems_of(deep(engine=Engine(**room)), ROWS)
    assert (found is None) is bool(room)
    assert files(folder) == []
    if found is not None:
        assert torch.equal(found.hidden, made(deep())[0].hidden)


@pytest.mark.parametrize("room", [{}, MAPPED], ids=["memory", "mapped"])
def test_an_interruption_leaves_no_file(
    room: dict[str, float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stems_module, "BATCH_TOKENS", 12)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(len(files(folder)))
        if len(seen) == 2:
            raise Interrupted("enough")

    known: dict[str, Stems] = {}
    with pytest.raises(Interrupted):
        stems_of(deep(engine=Engine(**room)), ROWS, on_rows=stop, known=known)
    # What is held in memory is written once it is whole; what is not, as it comes.
    assert seen == ([1, 1] if room == MAPPED else [0, 0])
    assert files(folder) == []
    assert known == {}


@pytest.mark.parametrize("room", [{}, MAPPED], ids=["memory", "mapped"])
def test_a_report_that_cannot_be_written_is_not_taken_for_a_full_disk(room: dict[str, float]) -> None:
    """``ptuning train | head``: the console is gone, and the run must hear of it."""

    def gone(done: int, total: int) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        stems_of(deep(engine=Engine(**room)), ROWS, on_rows=gone)


def test_what_goes_to_disk_alone_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is written before the next is computed, and then let go."""
    monkeypatch.setattr(stems_module, "BATCH_TOKENS", 12)
    model = deep(engine=Engine(**MAPPED))
    order: list[str] = []
    write: Callable[..., bool] = stems_module._write

    def noted(path: Path, parts: Iterable[Tensor], *rest: Any) -> bool:
        def each() -> Iterator[Tensor]:
            for number, piece in enumerate(parts):
                assert piece.untyped_storage().nbytes() <= 12 * HIDDEN * 4
                assert ran.calls == number + 1, "computed ahead"
                order.append("written")
                yield piece

        return write(path, each(), *rest)

    monkeypatch.setattr(stems_module, "_write", noted)
    with watching(part(layers(model)[0])) as ran:
        assert stems_of(model, ROWS) is not None
    assert len(order) == ran.calls > 2


def test_the_file_is_plain_safetensors(folder: Path) -> None:
    from safetensors import safe_open

    here, _ = made(deep())
    with safe_open(files(folder)[0], framework="np") as file:
        assert list(file.keys()) == ["hidden"]
        array = file.get_tensor("hidden")
        assert file.metadata() == {"sha256": hashlib.sha256(array.tobytes()).hexdigest()}
    assert (array == here.hidden.numpy()).all()
    assert Cache("stems", 1).usage()[0] == 1


# ----------------------------------------------------------------------------------------- the loop


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path, rows: Rows, jsonl: Files) -> Callable[..., TrainConfig]:
    """A small run with a stem of two layers; ``engine`` and ``fit`` take what differs."""
    data = {
        "train": str(jsonl("train.jsonl", rows(64))),
        "validation_fraction": 0.25,
        "test": str(jsonl("test.jsonl", rows(10, seed=1))),
    }

    def make(name: str = "out", *, engine: Any = (), **options: Any) -> TrainConfig:
        return TrainConfig.checked(
            {
                "data": data,
                "backbone": str(tiny_folder),
                "output": str(tmp_path / name),
                "report": False,
                "precision": "fp32",
                "device": "cpu",
                "prompt": {"num_virtual_tokens": 4, "first_layer": 2, **options.pop("prompt", {})},
                "fit": {
                    "epochs": 3,
                    "batch_size": 8,
                    "prompt_rate": 3e-2,
                    "head_rate": 3e-2,
                    **options.pop("fit", {}),
                },
                "engine": dict(engine),
                **options,
            }
        )

    return make


class Told(Callback):
    """What a run says; it may press Ctrl-C at a step, or when the stem has begun."""

    def __init__(self, stop: int | str | None = None) -> None:
        self.stems: list[tuple[int, int]] = []
        self.stop = stop

    def on_progress(self, what: str, done: int, total: int) -> None:
        assert what == "stem"
        self.stems.append((done, total))
        if self.stop == "stem":
            os.kill(os.getpid(), signal.SIGINT)

    def on_step_end(self, state: RunState) -> None:
        if state.step == self.stop:
            os.kill(os.getpid(), signal.SIGINT)


def tensors(folder: str | Path) -> dict[str, Tensor]:
    adapter = adapters.load(Path(folder))
    return {"prompt": adapter.prompt_tensor, **adapter.head}


def same(one: TrainConfig, other: TrainConfig) -> bool:
    left, right = tensors(one.output), tensors(other.output)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


WAYS: dict[str, dict[str, Any]] = {
    "memory": {},
    "mapped": MAPPED,
    "memory alone": {"stem_disk": 0.0},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_the_same_to_the_bit_cold_and_warm_in_memory_and_mapped(
    config: Callable[..., TrainConfig], way: str, folder: Path
) -> None:
    first = config("first")
    cold = train(first)
    if way == "memory alone":
        for path in files(folder):
            path.unlink()
    told = Told()
    second = config("second", engine=WAYS[way])
    warm = train(second, callbacks=[told])
    assert bool(told.stems) is (way == "memory alone")
    assert same(first, second)
    assert warm.history == cold.history
    assert warm.metrics == cold.metrics
    third = config("third", engine=MAPPED)
    for path in files(folder):
        path.unlink()
    assert train(third).history == cold.history
    assert same(first, third)


def test_a_run_without_reuse_finds_the_same_within_rounding(
    config: Callable[..., TrainConfig], folder: Path
) -> None:
    with_reuse, without = config("with"), config("without", engine={"reuse_stem": False})
    one = train(with_reuse)
    told = Told()
    two = train(without, callbacks=[told])
    assert told.stems == []
    assert len(files(folder)) == 1
    for left, right in zip(one.history, two.history, strict=True):
        assert left.metrics == pytest.approx(right.metrics, rel=1e-3, abs=1e-3)
        assert left.train_loss == pytest.approx(right.train_loss, rel=1e-3)
    for name, value in tensors(with_reuse.output).items():
        torch.testing.assert_close(tensors(without.output)[name], value, rtol=0, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("way", "stop"),
    [
        *(("memory", 5), ("mapped", 7), ("none", 5), ("memory", "stem")),
    ],
)
def test_a_resumed_run_is_the_straight_run_to_the_bit(
    config: Callable[..., TrainConfig], way: str, stop: int | str, folder: Path
) -> None:
    """With the stem's file gone in between: it is made again, the same."""
    engine = {**WAYS, "none": NO_ROOM}[way]
    straight, broken = config("straight", engine=engine), config("broken", engine=engine)
    whole = train(straight)
    for path in files(folder):
        path.unlink()
    with pytest.raises(Interrupted, match="and saved; to continue, run the same command with --resume"):
        train(broken, callbacks=[Told(stop)])
    for path in files(folder):
        path.unlink()
    torch.manual_seed(12345)
    resumed = train(broken, resume=True)
    assert same(straight, broken)
    assert resumed.history == whole.history
    assert resumed.metrics == whole.metrics


def test_an_interruption_in_the_stem_leaves_no_half_of_it(
    config: Callable[..., TrainConfig], folder: Path
) -> None:
    with pytest.raises(Interrupted, match="interrupted at step 0 of"):
        train(config(), callbacks=[Told("stem")])
    assert files(folder) == []


@pytest.fixture
def stem_places(monkeypatch: pytest.MonkeyPatch) -> list[Ran]:
    """How much went through the lowest layer of every backbone made from now on."""
    found: list[Ran] = []
    make = Backbone.__init__

    def watched(self: Backbone, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        ran = Ran()
        found.append(ran)

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            ran.calls += 1
            ran.places += inputs[0].shape[0] * inputs[0].shape[1]

        self.base.encoder.layer[0].intermediate.register_forward_hook(note)

    monkeypatch.setattr(Backbone, "__init__", watched)
    return found


def test_each_text_goes_through_the_stem_once_however_many_epochs(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files, stem_places: list[Ran]
) -> None:
    """Texts of one length, so that places are tokens; the test set is looked at once, by itself. Before
    training, the first rows show how large the first logits are.
    """
    many = [
        {"text": f"good {word} film", "label": "positive"} for word in ("the", "red", "blue", "page", "app")
    ]
    many += [
        {"text": f"bad {word} film", "label": "negative"} for word in ("the", "red", "blue", "page", "app")
    ]
    doubled = str(jsonl("doubled.jsonl", [*many, *many]))
    test = str(jsonl("short.jsonl", many[:3]))
    data = {"train": doubled, "validation": str(jsonl("held.jsonl", many[3:7])), "test": test}
    told = Told()
    train(config(data=data, fit={"epochs": 5}), callbacks=[told])
    tokens, first = 5, 2 * len(many)
    assert stem_places[-1].places == (first + len(many) + 3) * tokens
    assert told.stems[-1] == (10, 10)
    train(config("again", data=data, fit={"epochs": 5}))
    assert stem_places[-1].places == (first + 3) * tokens, "a second run finds it on disk"


def test_other_tasks_on_the_same_texts_hit_the_cache(
    config: Callable[..., TrainConfig], rows: Rows, jsonl: Files, stem_places: list[Ran], folder: Path
) -> None:
    """Other labels, another seed's split, another prompt, other rates."""
    train(config("one"))
    flipped = [{**row, "label": "yes" if "good" in row["text"] else "no"} for row in rows(64)]
    data = {"train": str(jsonl("flipped.jsonl", flipped)), "validation_fraction": 0.25}
    for options in (
        {"data": data},
        {"fit": {"seed": 3}},
        {"prompt": {"num_virtual_tokens": 2}},
        {"fit": {"prompt_rate": 1e-3}},
    ):
        told = Told()
        train(config("two", **options), callbacks=[told], restart=True)
        assert told.stems == []
    assert len(files(folder)) == 1
    told = Told()
    train(config("two", prompt={"first_layer": 1}), callbacks=[told], restart=True)
    assert told.stems


def test_backbone_dropout_trains_without_a_stem(config: Callable[..., TrainConfig], folder: Path) -> None:
    told = Told()
    train(config(fit={"backbone_dropout": True, "epochs": 1}), callbacks=[told])
    assert told.stems == []
    assert files(folder) == []


def test_fit_reuses_the_stem_as_well(tiny_folder: Path, rows: Rows, folder: Path) -> None:
    task = Task(problem_type="single_label_classification", labels=("negative", "positive"))
    found = []
    for engine in (Engine(), Engine(reuse_stem=False)):
        torch.manual_seed(0)
        config = DeepPrompt(num_virtual_tokens=4, first_layer=1)
        model = PTuningModel.from_backbone(str(tiny_folder), config, task=task, engine=engine)
        told = Told()
        result = fit(
            model, {"train": rows(40), "validation": rows(16)}, FitConfig(epochs=2), callbacks=[told]
        )
        assert bool(told.stems) is engine.reuse_stem
        found.append(result.metrics["validation"]["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert len(files(folder)) == 1


def test_the_engine_is_part_of_a_runs_record(config: Callable[..., TrainConfig]) -> None:
    made_with = config(engine={"stem_memory": 0.5}, fit={"epochs": 1})
    train(made_with)
    assert "stem_memory: 0.5" in (made_with.run_folder / "config.yaml").read_text()
    assert json.loads((made_with.run_folder / "result.json").read_text())["metrics"]
