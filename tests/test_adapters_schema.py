"""A digest that fits proves nothing: each field is what ptuning writes, or an AdapterError names it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptuning import DeepPrompt, InputPrompt, PTuningModel, Task, adapters
from ptuning.adapters.schema import RecordFields, StateFields
from ptuning.cli import main
from ptuning.cli.inspect import _print as shown
from ptuning.errors import AdapterError
from ptuning.model import Backbone, state
from ptuning.task import ADDED_LATER
from test_adapters_folder import reseal
from tiny import ragged, tiny

TASK = Task(problem_type="single_label_classification", labels=("no", "yes"))
PROMPTS = {
    "deep": DeepPrompt(num_virtual_tokens=4, first_layer=1, pooling="layers", num_virtual_units=2),
    "input": InputPrompt(num_virtual_tokens=4),
}
JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 3.7, 10**30, "", "../../x", "\ud800" + "a" * 5000),
    *([], [1], [["x"]], {}, {"a": {"b": [1]}}),
)
FREE = ("metrics", "extra", "versions", "created")
"""What belongs to the user, or is shown alone."""
MEANT = [("task.pair", True), ("prompt.position_offset", 0), ("task.labels", [1])]
"""Other choices, and no nonsense."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny("bert", num_labels=2))


@pytest.fixture(scope="module", params=PROMPTS)
def saved(request: Any, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = PTuningModel(backbone, PROMPTS[request.param], TASK)
    return model.save_pretrained(
        tmp_path_factory.mktemp(request.param) / "adapter",
        metrics={"test": {"accuracy": 0.5}},
        extra={"fit": {"epochs": 1}},
    )


def logits(folder: Path, backbone: Backbone) -> Tensor:
    model = PTuningModel.from_pretrained(folder, backbone=backbone).eval()
    ids, mask = ragged([5, 9])
    with torch.no_grad():
        return model(ids, mask).logits


def places(values: dict[str, Any], under: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*under, name)
        if isinstance(value, dict):
            yield from places(value, (*under, name))


def record(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "ptuning.json").read_text())
    return {name: value for name, value in values.items() if name != "sha256_self"}


def write(folder: Path, values: dict[str, Any]) -> None:
    blank = json.dumps({**values, "sha256_self": "0" * 64})
    digest = hashlib.sha256(blank.encode()).hexdigest()
    before, after = blank.rsplit("0" * 64, 1)
    (folder / "ptuning.json").write_text(before + digest + after)


def test_any_field_may_be_nonsense(saved: Path, backbone: Backbone, tmp_path: Path) -> None:
    """Of every JSON type, in every field, and every field left out."""
    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    whole, right = record(saved), logits(saved, backbone)
    said = []
    every = [place for place in places(whole) if "deep" in str(saved) or place[0] in ("prompt", "anchors")]
    for place in every:
        for junk in ("(left out)", *JUNK):
            values = copy.deepcopy(whole)
            inner = values
            for name in place[:-1]:
                inner = inner[name]
            if junk == "(left out)":
                del inner[place[-1]]
            else:
                inner[place[-1]] = junk
            write(folder, values)
            try:
                found = logits(folder, backbone)
                adapters.verify(folder)
                shown(adapters.load(folder))
            except AdapterError as error:
                said.append(str(error))
            else:
                if (".".join(place), junk) not in MEANT:
                    assert torch.equal(found, right), (place, junk)
    assert len(said) > 100
    assert [each for each in said if "\n" in each or len(each) > 1500] == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task.pair", "x", "task.pair: got 'x', expected boolean"),
        ("task.mean", "x", "task.mean: got 'x', expected number"),
        ("task.scale", 0.0, "task.scale: got 0.0, expected greater than 0"),
        (
            "task.labels",
            [["a"], "b"],
            r"task.labels.0: got \['a'\], expected a string, a number, true or false",
        ),
        ("task.labels", ["a", None], "task.labels.1: got None, expected a string"),
        ("task.labels", ["a", "a"], "expected distinct labels"),
        ("task.labels", ["a", "b", "c"], r"classifier.weight has the shape \[2, 32\], expected \[3, H\]"),
        ("task.max_length", "7", "task.max_length: got '7', expected integer"),
        ("task.colour", 1, "task.colour: unknown option"),
        ("format_version", True, "has no valid format_version"),
        ("files", None, "files: got None, expected dictionary"),
        ("files", {"a" * 5000: "0" * 64}, "expected a file name of at most 1000 characters"),
        ("prompt", [1], r"prompt: got \[1\], expected dictionary"),
        ("prompt.encoder", 5, "prompt.encoder: got 5, expected"),
        (
            "prompt.num_virtual_tokens",
            "4",
            "prompt.num_virtual_tokens: got '4', expected what ptuning writes, such as 4",
        ),
        ("backbone.name", 5, "backbone.name: got 5, expected a string"),
        ("backbone.num_layers", "3", "backbone.num_layers: got '3', expected integer"),
        ("anchors", [[97]], "anchors: got the token id 97, expected one below 97"),
        ("metrics", [1], r"metrics: got \[1\], expected dictionary"),
    ],
)
def test_the_sentence_names_the_field(
    saved: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    values = inner = record(saved)
    *above, name = field.split(".")
    for each in above:
        inner = inner[each]
    inner[name] = value
    write(folder, values)
    readers = (adapters.load, adapters.verify, PTuningModel.from_pretrained, adapters.check_destination)
    for reads in readers if "shape" not in message else readers[:3]:  # the last looks at no tensor
        with pytest.raises(AdapterError, match=message):
            reads(folder)  # type: ignore[operator]


def test_what_earlier_versions_wrote_is_read(saved: Path, backbone: Backbone, tmp_path: Path) -> None:
    """A record of the first version has no pooling, units or queries; its head reads the backbone's token."""
    if "deep" not in str(saved):
        pytest.skip("input prompts have had the same fields from the beginning")
    folder = PTuningModel(
        backbone, DeepPrompt(num_virtual_tokens=4, pooling="native", num_virtual_units=0, num_queries=0), TASK
    ).save_pretrained(tmp_path / "adapter")
    values, right = record(folder), logits(folder, backbone)
    for name in ("pooling", "num_virtual_units", "num_queries"):
        del values["prompt"][name]
    write(folder, values)
    assert torch.equal(logits(folder, backbone), right)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "ptuning.json").write_bytes(data) and None


def respelled(old: str, new: str) -> Callable[[Path], None]:
    """One part of ``ptuning.json`` in another spelling, sealed."""

    def change(folder: Path) -> None:
        text = json.dumps({**record(folder), "sha256_self": "0" * 64})
        assert old in text
        before, after = text.replace(old, new, 1).rsplit("0" * 64, 1)
        digest = hashlib.sha256(f"{before}{'0' * 64}{after}".encode()).hexdigest()
        (folder / "ptuning.json").write_text(before + digest + after)

    return change


def sealed_with(seal: Any) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / "ptuning.json").write_text(json.dumps({**record(folder), "sha256_self": seal})) and None
    )


def pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sealed_with(""), "its sha256 is not the recorded one"),
        (sealed_with("a"), "its sha256 is not the recorded one"),
        (sealed_with("0" * 63 + "\n"), "its sha256 is not the recorded one"),
        (sealed_with(None), "its sha256 is not the recorded one"),
        (respelled('"mean": 0.0', '"mean": NaN'), "NaN is not valid JSON"),
        (respelled('"scale": 1.0', '"scale": Infinity'), "Infinity is not valid JSON"),
        (respelled('"mean": 0.0', '"mean": 1e999'), "the number 1e999 is too large"),
        (respelled('"accuracy": 0.5', '"accuracy": -Infinity'), "-Infinity is not valid JSON"),
        (respelled('"format_version": 1', '"format_version": ' + "1" * 5000), "it is not valid JSON"),
        (respelled('"epochs": 1', '"epochs": ' + "[" * 50 + "]" * 50), "it is nested deeper than 40"),
        (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "it is nested deeper than 40"),
        (raw(b"\xff\xfe{}"), "it is not valid JSON"),
        (raw(b"null"), "got a JSON NoneType, expected a JSON object"),
        (pipe("ptuning.json"), "ptuning.json cannot be read: it is not a regular file"),
        (pipe("adapter_model.safetensors"), "has no adapter_model.safetensors"),
    ],
)
def test_a_record_that_is_no_record(
    saved: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    change(folder)
    with pytest.raises(AdapterError, match=message) as caught:
        adapters.load(folder)
    assert "\n" not in str(caught.value)
    assert not adapters.is_adapter(folder) or "safetensors" in message
    assert main(["inspect", str(folder)]) == 2


def test_a_record_that_never_ends_is_not_read(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    with (folder / "ptuning.json").open("ab") as stream:
        stream.truncate(65 << 20)  # a sparse file: it costs nothing
    with pytest.raises(AdapterError, match=r"ptuning.json cannot be read: it is larger than 64 MB"):
        adapters.load(folder)


# ---------------------------------------------------------------------------------------- tensors

HEAD, BIAS = "base_model.classifier.weight", "base_model.classifier.bias"


def of_dtype(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({HEAD: tensors[HEAD].to(dtype)})


BAD_TENSORS: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    *((of_dtype(dtype), f"classifier.weight is {dtype}, expected torch.float32") for dtype in (
        torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
        torch.complex64, torch.float8_e4m3fn,
    )),
    (lambda t: t[HEAD].fill_(float("nan")), "classifier.weight: got 64 of 64 values"),
    (lambda t: t[BIAS].fill_(float("inf")), "classifier.bias: got 2 of 2 values that are"),
    (lambda t: t["prompt"].view(-1)[0].fill_(float("-inf")), "the prompt: got 1 of .* that are NaN"),
    (lambda t: t.update({HEAD: torch.zeros(())}), r"classifier.weight has the shape \[\], expected \[2, H\]"),
    (lambda t: t.update({HEAD: torch.zeros(3, 32)}), r"has the shape \[3, 32\], expected \[2, H\]"),
    (lambda t: t.update({HEAD: torch.zeros(0, 32)}), r"has the shape \[0, 32\], expected \[2, H\]"),
    (lambda t: t.update({HEAD: torch.zeros(2, 31)}), r"classifier.weight: got the shape \[2, 31\]"),
    (lambda t: t.update({BIAS: torch.zeros(2, 1)}), r"bias has the shape \[2, 1\], expected \[2\]"),
    (lambda t: t.update(prompt=t["prompt"][..., :0, :]), "the prompt has the shape .*, expected"),
    (lambda t: t.update(prompt=torch.zeros(())), r"the prompt has the shape \[\], expected"),
    (lambda t: t.update({"base_model.bert.pooler.dense.bias": torch.zeros(())}), "other weights"),
    (lambda t: t.update({"base_model.": torch.zeros(1)}), "no such parameter"),
    (lambda t: t.update(stray=torch.zeros(1)), "got a tensor 'stray'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS)
def test_loading_asks_of_tensors_what_saving_does(
    saved: Path, backbone: Backbone, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.setdefault("prompt", tensors.get("prompt_embeddings", torch.zeros(1)))
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    listed = {**record(folder)["files"], file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    reseal(folder, files=listed)
    with pytest.raises(AdapterError, match=message) as caught:
        PTuningModel.from_pretrained(folder, backbone=backbone)
    assert "\n" not in str(caught.value)


def test_a_header_that_is_nearly_one(saved: Path, tmp_path: Path) -> None:
    """Kinds of numbers that torch or safetensors do not know, and claims that the bytes do not keep."""
    for number, header in enumerate(
        (
            {"prompt": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
            {"prompt": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}},
            {"prompt": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
            {"prompt": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
            {"prompt": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}},
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + bytes(4)
        (folder / "adapter_model.safetensors").write_bytes(data)
        listed = record(folder)["files"]
        reseal(folder, files={**listed, "adapter_model.safetensors": hashlib.sha256(data).hexdigest()})
        with pytest.raises(AdapterError, match="not a safetensors file"):
            adapters.load(folder)


# ------------------------------------------------------------------------- the record of a state dict


def of_the_trainer(backbone: Backbone, folder: Path, **changes: Any) -> Path:
    """What the Trainer saves, with other values in its record, and its digest set right."""
    torch.manual_seed(0)
    model = PTuningModel(backbone, PROMPTS["deep"], TASK)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    known = {name: value for name, value in model.record().items() if name not in changes.get("drop", ())}
    del tensors[state.KEY]
    tensors |= changes.get("tensors", {})
    stored = state.write({**known, **changes.get("record", {})}, tensors)
    folder.mkdir()
    save_file({**tensors, state.KEY: stored}, folder / state.FILE)
    return folder


@pytest.mark.parametrize("field", [*StateFields.model_fields, "drop"])
def test_any_field_of_a_state_may_be_nonsense(field: str, backbone: Backbone, tmp_path: Path) -> None:
    right = logits(of_the_trainer(backbone, tmp_path / "right"), backbone)
    names = list(StateFields.model_fields) if field == "drop" else JUNK
    said = []
    for number, junk in enumerate(names):
        changes: dict[str, Any] = {"drop": [junk]} if field == "drop" else {"record": {field: junk}}
        folder = of_the_trainer(backbone, tmp_path / f"{number}", **changes)
        try:
            found = logits(folder, backbone)
        except AdapterError as error:
            said.append(str(error))
        else:
            assert torch.equal(found, right), (field, junk)
    assert [each for each in said if "\n" in each or len(each) > 1500] == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((2, 32), float("nan")), "head.classifier-weight in .*: got 64 of 64 values"),
        (torch.zeros(2, 32, dtype=torch.float64), "head.classifier-weight .*: got torch.float64, expected"),
        (torch.zeros(2, 32, dtype=torch.int64), "head.classifier-weight .*: got torch.int64, expected"),
        (torch.zeros(2, 31), "cannot be put on .*size mismatch for head.classifier-weight"),
        (torch.zeros(3, 32), "cannot be put on .*size mismatch for head.classifier-weight"),
        (torch.zeros(()), "cannot be put on .*size mismatch for head.classifier-weight"),
    ],
)
def test_tensors_of_a_state_are_held_to_the_same(
    value: Tensor, message: str, backbone: Backbone, tmp_path: Path
) -> None:
    folder = of_the_trainer(backbone, tmp_path / "odd", tensors={"head.classifier-weight": value})
    with pytest.raises(AdapterError, match=message):
        PTuningModel.from_pretrained(folder, backbone=backbone)


@pytest.mark.parametrize(
    "change",
    [
        {"num_virtual_tokens": 60_000},
        {"num_virtual_units": 60_000},
        {"encoder": {"kind": "mlp", "width": 60_000, "dropout": 0.0}},
    ],
)
def test_a_state_claims_no_more_than_it_holds(
    change: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    """Otherwise that much memory would be asked for first."""
    prompt = PTuningModel(backbone, PROMPTS["deep"], TASK).record()["prompt"]
    folder = of_the_trainer(backbone, tmp_path / "odd", record={"prompt": {**prompt, **change}})
    with pytest.raises(AdapterError, match=r"says prompt.* 60000, but has \d+ values in all"):
        PTuningModel.from_pretrained(folder, backbone=backbone)


# ------------------------------------------------------------------------------------------- PEFT's

PEFTS = {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_CLS", "num_virtual_tokens": 4, "num_layers": 3}
TENSORS = {"prompt_embeddings": torch.ones(4, 3 * 2 * 32), HEAD: torch.ones(2, 32), BIAS: torch.ones(2)}


def of_peft(
    folder: Path, tensors: dict[Any, Any] | None = None, pickled: bool = False, **options: Any
) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**PEFTS, **options}))
    if pickled:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file({**TENSORS, **(tensors or {})}, folder / "adapter_model.safetensors")
    return folder


def test_any_option_of_pefts_may_be_nonsense(backbone: Backbone, tmp_path: Path) -> None:
    right = logits(of_peft(tmp_path / "right"), backbone)
    options = sorted(frozenset().union(*adapters.PEFT_OPTIONS.values()))
    said = []
    for number, (name, junk) in enumerate((name, junk) for name in options for junk in JUNK):
        folder = of_peft(tmp_path / str(number), **{name: junk})
        try:
            found = logits(folder, backbone)
            adapters.load(folder)
        except AdapterError as error:
            said.append(str(error))
        else:
            assert torch.equal(found, right), (name, junk)
    assert [each for each in said if "\n" in each or len(each) > 1500] == []


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        (
            {"prompt_embeddings": torch.ones(0, 192)},
            {"num_virtual_tokens": 0},
            r"shape \[0, 192\], .* at least 1",
        ),
        ({"prompt_embeddings": torch.ones(4, 0)}, {}, r"has the shape \[4, 0\]"),
        ({"prompt_embeddings": torch.ones(4, 192).long()}, {}, "is torch.int64 .*, expected floating point"),
        ({"prompt_embeddings": torch.ones(4, 192).bool()}, {}, "is torch.bool .*, expected floating point"),
        (
            {"prompt_embeddings": torch.ones(4, 192, dtype=torch.complex64)},
            {},
            "is torch.complex64 .*, expected floating point",
        ),
        ({HEAD: torch.ones(())}, {}, r"classifier.weight has the shape \[\], expected one row per label"),
        ({HEAD: torch.ones(2)}, {}, r"classifier.weight has the shape \[2\], expected one row per label"),
        ({HEAD: torch.ones(2, 32).double() * 1e300}, {}, "values that are NaN or infinite"),
        (
            {},
            {"encoder_hidden_size": 0, "prefix_projection": True},
            "encoder.width: got 0, expected greater than or equal to 1",
        ),
    ],
)
def test_what_peft_cannot_have_written(
    tensors: dict[str, Tensor], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=message):
        adapters.load(of_peft(tmp_path / "peft", tensors, **options))


@pytest.mark.parametrize("tensors", [{1: torch.ones(2)}, [torch.ones(2)], {"a": {"b": torch.ones(2)}}])
def test_a_pickle_of_something_else(tensors: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not a dictionary of named tensors; ask for safetensors"):
        adapters.load(of_peft(tmp_path / "peft", tensors, pickled=True), allow_pickle=True)


@pytest.mark.parametrize("text", [b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"\xff\xff", b"[]", b""])
def test_pefts_configuration_is_no_configuration(text: bytes, tmp_path: Path) -> None:
    folder = of_peft(tmp_path / "peft")
    (folder / "adapter_config.json").write_bytes(text)
    for command in (["inspect", str(folder)], ["import-peft", str(folder), str(tmp_path / "out")]):
        assert main(command) == 2


@pytest.mark.parametrize("name", ["a\0b", "~nosuchuser/x", "/" + "a" * 5000, "", "/tmp/\ud800"])
def test_a_name_that_no_folder_has(name: str, tmp_path: Path) -> None:
    assert main(["inspect", name]) == 2
    for reads in (adapters.load, adapters.verify, adapters.details):
        with pytest.raises(AdapterError):
            reads(name)


def test_the_schema_is_what_is_written(saved: Path) -> None:
    """A field that is written and not in the schema would be believed unread."""
    assert set(record(saved)) == set(RecordFields.model_fields) - {"cloze"}  # of a cloze head alone
    for part, unwritten in (("task", ADDED_LATER), ("backbone", {})):
        fields = RecordFields.model_fields[part].annotation
        assert fields is not None
        assert set(record(saved)[part]) == set(fields.model_fields) - set(unwritten)
