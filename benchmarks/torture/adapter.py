"""Damaged adapters: bytes of every file, nonsense in a record that is sealed again, hostile folders."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptuning import adapters
from torture.damage import JUNK, changed
from torture.lab import (
    RECORD,
    WEIGHTS,
    Lab,
    answers,
    check,
    command,
    copy,
    held,
    refused,
    reseal,
    same,
    sealed,
    tensors_of,
    write_tensors,
)
from torture.trials import Draw, Line, Trial

CONFIG, CARD = "adapter_config.json", "README.md"
FREE = ("metrics", "extra", "versions", "created")
"""Parts of a record that may hold anything: they are shown and not used."""
NULLABLE = ("backbone.", "task.max_length", "prompt.")
"""Parts that may be unknown."""


def lines(lab: Lab, draw: Draw) -> Iterator[Line]:
    trials = []
    for i in range(draw.count(1600)):
        source, file = (lab.reference, lab.units)[i // 4 % 2], (RECORD, CONFIG, WEIGHTS, CARD)[i % 4]
        data, what, size = changed((source / file).read_bytes(), draw.random("bytes", i))
        reading = _verify if file == CARD or i % 3 == 0 else lab.load
        trials.append(Trial(f"{source.name}/{file}: {what}", _altered(source, file, data, reading), size))
    yield Line("bytes of its files", trials)

    trials, source = [], _trainers(lab)
    for i in range(draw.count(250)):
        data, what, size = changed((source / "model.safetensors").read_bytes(), draw.random("trainer", i))
        trials.append(
            Trial(f"model.safetensors: {what}", _altered(source, "model.safetensors", data, lab.load), size)
        )
    yield Line("bytes of what the Trainer writes", trials)

    trials, source = [], _pefts(lab)
    for i in range(draw.count(250)):
        file = (CONFIG, WEIGHTS)[i % 2]
        data, what, size = changed((source / file).read_bytes(), draw.random("peft", i))
        trials.append(Trial(f"{file}: {what}", _altered(source, file, data, lab.load, strict=False), size))
    yield Line("bytes of what PEFT writes, which has no digests", trials)

    yield Line("nonsense in a record that is sealed again", list(_fields(lab)))
    hostile = [Trial(name, _hostile(lab, *case)) for name, case in _folders(lab).items()]
    yield Line("folders made to do harm", hostile, limit=10)


def _verify(folder: Path) -> object:
    return adapters.verify(folder)


def _altered(
    source: Path, file: str, data: bytes, reading: Callable[[Path], Any], strict: bool = True
) -> Callable[[Path], None]:
    """Other bytes in a file are refused; where nothing can tell them, what is read has to answer."""

    def attempt(place: Path) -> None:
        folder = copy(source, place / "adapter")
        (folder / file).write_bytes(data)
        if strict:
            held(refused(lambda: reading(folder)), "accepted")
        else:
            refused(lambda: _answering(reading(folder)))

    return attempt


def _answering(model: Any) -> list[tuple[float, ...]]:
    """A model's answers, which are finite or refused."""
    found = answers(model)
    held(all(math.isfinite(value) for row in found for value in row), f"answers that are not finite: {found}")
    return found


# --------------------------------------------------------------------------- what others write


def _trainers(lab: Lab) -> Path:
    """What transformers' Trainer saves of the reference."""
    folder = lab.root / "trainers"
    if not folder.exists():
        folder.mkdir()
        write_tensors(folder / "model.safetensors", lab.model.state_dict())
        lab.load(folder)
    return folder


PEFT: Mapping[str, Any] = {
    "peft_type": "PREFIX_TUNING",
    "task_type": "SEQ_CLS",
    "num_virtual_tokens": 4,
    "num_layers": 3,
    "inference_mode": True,
}


def _peft_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "prompt_embeddings": torch.randn(4, 3 * 2 * 32),
        "base_model.classifier.weight": torch.randn(2, 32),
        "base_model.classifier.bias": torch.zeros(2),
    }


def _pefts(lab: Lab) -> Path:
    folder = lab.root / "pefts"
    if not folder.exists():
        folder.mkdir()
        _write_peft(folder, {"base_model_name_or_path": str(lab.backbone)})
        lab.load(folder)
    return folder


def _write_peft(
    folder: Path, config: Mapping[str, Any] = {}, tensors: Mapping[str, Tensor] | None = None
) -> None:
    (folder / RECORD).unlink(missing_ok=True)
    (folder / CONFIG).write_text(json.dumps({**PEFT, **config}))
    write_tensors(folder / WEIGHTS, _peft_tensors() if tensors is None else tensors)


# ------------------------------------------------------------------------------ sealed again


def _fields(lab: Lab) -> Iterator[Trial]:
    """Every field of a record left out, and set to every kind of nonsense."""
    record = json.loads((lab.reference / RECORD).read_text(encoding="utf-8"))
    for path, value in _paths(record):
        if path == ("sha256_self",):
            continue
        name = ".".join(path)
        yield Trial(f"{name} left out", _field(lab, path, value, gone=True))
        for junk in JUNK:
            if json.dumps(junk) != json.dumps(value):
                yield Trial(f"{name} = {str(junk)[:40]!r}", _field(lab, path, value, junk), len(str(junk)))


def _paths(record: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in record.items():
        yield (*above, name), value
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))


def _field(
    lab: Lab, path: Sequence[str], value: Any, junk: Any = None, gone: bool = False
) -> Callable[[Path], None]:
    """Refused; or taken where it may be, and then it answers, and can be shown."""
    name = ".".join(path)

    def change(record: dict[str, Any]) -> None:
        for step in path[:-1]:
            record = record[step]
        if gone:
            del record[path[-1]]
        else:
            record[path[-1]] = junk

    def attempt(place: Path) -> None:
        folder = copy(lab.reference, place / "adapter")
        reseal(folder, change)
        models: list[Any] = []
        if refused(lambda: models.append(lab.load(folder))) is None:
            free = path[0] in FREE or (junk is None and name.startswith(NULLABLE))
            alike = gone or free or _kind(junk) == _kind(value)
            held(alike, f"accepted: a {_kind(junk)} for a {_kind(value)}")
            found: list[list[tuple[float, ...]]] = []
            if refused(lambda: found.append(_answering(models[0]))) is None and (gone or free):
                held(same(found[0], answers(lab.model)), "accepted, and answers otherwise")
        check(command(["inspect", str(folder)]))

    return attempt


def _kind(value: Any) -> str:
    kinds = ((bool, "bool"), (int, "number"), (float, "number"), (str, "text"), (list, "list"))
    return next(
        (name for kind, name in kinds if isinstance(value, kind)), "null" if value is None else "object"
    )


# ------------------------------------------------------------------------------ hostile folders

Make = Callable[[Path], object]
"""Turns a copy of the reference into the case; a path or text that it returns is opened in its place."""
REFUSED, EITHER = True, False
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def _hostile(lab: Lab, make: Make, must_refuse: bool = REFUSED, how: str = "load") -> Callable[[Path], None]:
    def attempt(place: Path) -> None:
        folder = copy(lab.reference, place / "adapter")
        target = make(folder)
        given: Any = target if isinstance(target, str | Path) else folder
        ways: dict[str, Callable[[], object]] = {
            "load": lambda: _answering(lab.load(given)),
            "load with its own backbone": lambda: _answering(_own(given)),
            "load, pickles allowed": lambda: _answering(lab.load(given, allow_pickle=True)),
            "verify": lambda: adapters.verify(given),
        }
        said = refused(ways[how])
        held(not (place / "ran").exists(), "code of the folder ran")
        held(said or not must_refuse, "accepted")
        check(command(["inspect", str(given)]) if "\0" not in str(given) else command(["inspect", "a"]))

    return attempt


def _own(folder: Any) -> Any:
    from ptuning import PTuningModel

    return PTuningModel.from_pretrained(folder)


class Evil:
    """Unpickling it makes a file ``ran`` above the folder, which the trial's working directory is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def _folders(lab: Lab) -> dict[str, tuple[Any, ...]]:
    return {
        **_headers(),
        **_tensors(),
        **_records(),
        **_names(),
        **_pickles(),
        **_peft_folders(),
        **_links(),
        **_places(),
    }


def _weights(data: bytes | Callable[[Path], bytes]) -> Make:
    def make(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(data(folder) if callable(data) else data)
        reseal(folder)

    return make


def _header(values: Any, body: bytes = b"") -> bytes:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + body


def _entry(shape: list[int], end: int = 4, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def _headers() -> dict[str, tuple[Any, ...]]:
    """safetensors whose header lies."""
    two = b'{"prompt":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' * 2
    cases: dict[str, bytes] = {
        "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "header of 1 GB": struct.pack("<Q", 2**30) + b"{}",
        "header claims a tensor of 1 GB": _header({"prompt": _entry([2**28], 2**30)}),
        "header claims 2^62 rows": _header({"prompt": _entry([2**62, 2**62])}, b"\0" * 4),
        "header with a negative size": _header({"prompt": _entry([-1])}, b"\0" * 4),
        "header with overlapping tensors": _header({"a": _entry([1]), "b": _entry([1])}, b"\0" * 4),
        "header that names a tensor twice": _header(two.replace(b"}{", b"},", 1)[:-1] + b"}}", b"\0" * 4),
        "header nested deep": _header(b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header of an unknown type": _header({"prompt": _entry([1], dtype="X9")}, b"\0" * 4),
    }
    made = {name: (_weights(data),) for name, data in cases.items()}
    sizes = {"F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C64": 8}
    return {**made, **{f"every tensor as {kind}": (_weights(_as(kind, n)),) for kind, n in sizes.items()}}


def _as(kind: str, size: int) -> Callable[[Path], bytes]:
    def data(folder: Path) -> bytes:
        header, end = {}, 0
        for name, value in tensors_of(folder / WEIGHTS).items():
            begin, end = end, end + value.numel() * size
            header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
        return _header(header, bytes(end))

    return data


def _changed(change: Callable[[str, Tensor], Tensor | None], more: Mapping[str, Tensor] = {}) -> Make:
    """Each tensor replaced, or left out for ``None``; and more of them."""

    def make(folder: Path) -> None:
        found = {name: change(name, value) for name, value in tensors_of(folder / WEIGHTS).items()}
        kept = {name: value for name, value in found.items() if value is not None}
        write_tensors(folder / WEIGHTS, {**kept, **more})
        reseal(folder)

    return make


def _tensors() -> dict[str, tuple[Any, ...]]:
    """Tensors that are not what the record says."""

    def head(change: Callable[[Tensor], Tensor | None]) -> Make:
        return _changed(lambda name, value: change(value) if name.startswith("base_model.") else value)

    def prompt(change: Callable[[Tensor], Tensor]) -> Make:
        return _changed(lambda name, value: change(value) if name == "prompt" else value)

    def more(**tensors: Tensor) -> Make:
        return _changed(lambda name, value: value, {k.replace("__", "."): v for k, v in tensors.items()})

    query = "base_model.bert.encoder.layer.0.attention.self.query"
    same_ = lambda name, value: value  # noqa: E731
    return {
        "prompt of NaN": (prompt(lambda value: value * math.nan),),
        "prompt of infinity": (prompt(lambda value: value + math.inf),),
        "prompt of half the rows": (prompt(lambda value: value[..., : value.shape[-2] // 2, :]),),
        "head of NaN": (head(lambda value: value * math.nan),),
        "head in bf16": (head(lambda value: value.bfloat16()),),
        "head in fp64": (head(lambda value: value.double()),),
        "head in int64": (head(lambda value: value.long()),),
        # An adapter may have no head of its own: the backbone's then reads its prompt.
        "head missing": (head(lambda value: None), EITHER),
        "head of 3 rows for 2 labels": (head(lambda value: torch.zeros(3, *value.shape[1:])),),
        "head of no rows": (head(lambda value: torch.zeros(0, *value.shape[1:])),),
        "head of no dimensions": (head(lambda value: torch.zeros(())),),
        "an encoder's weight of another shape": (_changed(same_, {f"{query}.bias": torch.ones(31)}),),
        "a head's name with __class__": (_changed(same_, {"base_model.__class__": torch.ones(2)}),),
        "a head's name of nothing": (_changed(same_, {"base_model.": torch.ones(2)}),),
        "a head's name of a whole part": (_changed(same_, {"base_model.bert": torch.ones(2)}),),
        "units that nobody asked for": (more(units=torch.ones(2, 2, 5, 32)),),
        "a mix that nobody asked for": (_changed(same_, {"base_model.pooling.mix": torch.ones(3, 2, 32)}),),
    }


def _text(change: Callable[[str], str | bytes], seal: bool = False) -> Make:
    """Another text in place of the record's; ``seal`` makes its digest fit again."""

    def make(folder: Path) -> None:
        text = (folder / RECORD).read_text(encoding="utf-8")
        if seal:
            values = json.loads(text)
            values.pop("sha256_self")
            text = json.dumps({**values, "sha256_self": "0" * 64}, indent=2)
        new = change(text)
        if seal and isinstance(new, str):
            new = sealed(new)
        (folder / RECORD).write_bytes(new if isinstance(new, bytes) else new.encode())

    return make


def _swap(old: str, new: str) -> Make:
    def change(text: str) -> str:
        held(old in text, f"the record has no {old}")
        return text.replace(old, new, 1)

    return _text(change, seal=True)


def _self(value: str) -> Make:
    return _text(lambda text: json.dumps({**json.loads(text), "sha256_self": value}))


def _records() -> dict[str, tuple[Any, ...]]:
    """Records, and PEFT's configuration beside them, that are no JSON, or too much of it."""

    def config(data: bytes) -> Make:
        def make(folder: Path) -> None:
            (folder / CONFIG).write_bytes(data)
            reseal(folder)

        return make

    return {
        "record nested deep": (_text(lambda text: DEEP),),
        "record with a value nested deep": (
            _swap('"anchors": []', f'"anchors": {"[" * 50_000 + "]" * 50_000}'),
        ),
        "record that says its version twice": (
            _text(lambda text: text.replace("{", '{"format_version": 1,', 1)),
        ),
        "record with a mean of NaN": (_swap('"mean": 0.0', '"mean": NaN'),),
        "record with a scale of Infinity": (_swap('"scale": 1.0', '"scale": Infinity'),),
        "record with a mean of 1e999": (_swap('"mean": 0.0', '"mean": 1e999'),),
        "record of version true": (_swap('"format_version": 1', '"format_version": true'),),
        "record of a version of 5,000 digits": (
            _swap('"format_version": 1', f'"format_version": {"1" * 5000}'),
        ),
        "record with an empty digest of itself": (_self(""),),
        "record with a digest of itself of a letter": (_self("a"),),
        "record in UTF-16": (_text(lambda text: text.encode("utf-16")),),
        "record behind a BOM": (_text(lambda text: b"\xef\xbb\xbf" + text.encode()),),
        "record of no UTF-8": (_text(lambda text: b'{"a": "\xff"}'),),
        "record that is a list": (_text(lambda text: b"[1]"),),
        "record that is null": (_text(lambda text: b"null"),),
        "record that is empty": (_text(lambda text: b""),),
        "configuration nested deep": (config(DEEP),),
        "configuration of no UTF-8": (config(b"\xff\xfe{}"),),
        "configuration with a type that is a list": (config(b'{"peft_type": ["PTUNING"]}'),),
        "configuration with layers that are text": (
            config(b'{"peft_type": "PREFIX_TUNING", "num_layers": "x"}'),
        ),
    }


def _names() -> dict[str, tuple[Any, ...]]:
    """Names of files and backbones that a record may not have."""

    def listing(change: Callable[[dict[str, Any]], object]) -> tuple[Any, ...]:
        return (lambda folder: reseal(folder, change)), REFUSED, "verify"

    def file(name: str) -> tuple[Any, ...]:
        return listing(lambda record: record["files"].update({name: "0" * 64}))

    def named(value: Any, must_refuse: bool = REFUSED, fact: str = "name") -> tuple[Any, ...]:
        def make(folder: Path) -> None:
            reseal(folder, lambda record: record["backbone"].update({fact: value}))

        return make, must_refuse, "load with its own backbone"

    return {
        "a file above the folder is listed": file("../../../../etc/passwd"),
        "a file of an absolute path is listed": file("/etc/passwd"),
        "a file with NUL is listed": file("a\0b"),
        "a file of 5,000 letters is listed": file("a" * 5000),
        "a file of no name is listed": file(""),
        "a file of half a letter is listed": file("\ud800"),
        "the files are a list": listing(lambda record: record.update(files=[CONFIG])),
        "the files are null": listing(lambda record: record.update(files=None)),
        "a file's digest is a number": listing(lambda record: record["files"].update({CONFIG: 5})),
        "backbone /etc": named("/etc"),
        "backbone with NUL": named("a\0b"),
        "backbone 5": named(5),
        "backbone null": named(None),
        "backbone of no name": named(""),
        "backbone a list": named(["a"]),
        "backbone of escapes": named("\x1b[31mred\x1b]0;t\x07"),
        "revision 5": named(5, REFUSED, "revision"),
    }


def _pickles() -> dict[str, tuple[Any, ...]]:
    """Pickles and modules, beside what is read and in its place."""

    def beside(folder: Path) -> None:
        for name in ("adapter_model.bin", "pytorch_model.bin", "training_args.bin"):
            (folder / name).write_bytes(pickle.dumps(Evil()))
        for name in ("sitecustomize.py", "configuration_x.py", "modeling_x.py"):
            (folder / name).write_text("import os\nos.mkdir('ran')\n")

    def instead(folder: Path) -> None:
        beside(folder)
        (folder / WEIGHTS).unlink()

    def pefts(data: Any) -> Make:
        def make(folder: Path) -> None:
            instead(folder)
            (folder / RECORD).unlink()
            (folder / CONFIG).write_text(json.dumps(PEFT))
            if isinstance(data, bytes):
                (folder / "adapter_model.bin").write_bytes(data)
            else:
                torch.save(data, folder / "adapter_model.bin")

        return make

    def cut(folder: Path) -> None:
        pefts({"prompt_embeddings": torch.ones(4, 192)})(folder)
        file = folder / "adapter_model.bin"
        file.write_bytes(file.read_bytes()[:-40])

    allowed = (REFUSED, "load, pickles allowed")
    evil = pickle.dumps(Evil())
    return {
        "an unexpected file beside": (lambda folder: (folder / "strange.txt").write_text("hello"), EITHER),
        "pickles and modules beside": (beside, EITHER),
        "a pickle in place of the tensors": (instead,),
        "a pickle in place of the tensors, pickles allowed": (instead, *allowed),
        "PEFT's, a hostile pickle": (pefts(evil),),
        "PEFT's, a hostile pickle, pickles allowed": (pefts(evil), *allowed),
        "PEFT's, a pickled list": (pefts([torch.ones(2)]), *allowed),
        "PEFT's, a pickled module": (pefts(torch.nn.Linear(2, 2)), *allowed),
        "PEFT's, a pickle whose names are numbers": (pefts({1: torch.ones(4, 192)}), *allowed),
        "PEFT's, a nested pickle": (pefts({"prompt_embeddings": {"a": torch.ones(2)}}), *allowed),
        "PEFT's, a pickle cut short": (cut, *allowed),
    }


def _peft_folders() -> dict[str, tuple[Any, ...]]:
    """PEFT's configuration and tensors, which carry no digest, with nonsense in them."""

    def raw(data: bytes) -> Make:
        def make(folder: Path) -> None:
            _write_peft(folder)
            (folder / CONFIG).write_bytes(data)

        return make

    def option(name: str, value: Any) -> tuple[Any, ...]:
        return (lambda folder: _write_peft(folder, {name: value})), EITHER

    def tensors(must_refuse: bool = REFUSED, **changes: Tensor | None) -> tuple[Any, ...]:
        def make(folder: Path) -> None:
            named = {
                f"base_model.classifier.{k}" if k in ("weight", "bias") else k: v for k, v in changes.items()
            }
            found: dict[str, Tensor | None] = {**_peft_tensors(), **named}
            rows = named.get("prompt_embeddings")
            count = {} if rows is None else {"num_virtual_tokens": len(rows)}
            _write_peft(folder, count, {name: value for name, value in found.items() if value is not None})

        return make, must_refuse

    options = {
        "num_layers": 10**30,
        "num_virtual_tokens": 10**30,
        "num_transformer_submodules": [1],
        "modules_to_save": 5,
        "peft_version": [1],
        "revision": "../../x",
        "base_model_name_or_path": "/etc",
        "auto_mapping": 3,
        "token_dim": "x",
        "encoder_hidden_size": -1,
    }
    return {
        "PEFT's configuration nested deep": (raw(DEEP),),
        "PEFT's configuration of no UTF-8": (raw(b"\xff\xff"),),
        "PEFT's configuration a list": (raw(b"[]"),),
        **{f"PEFT's {name} = {str(value)[:12]}": option(name, value) for name, value in options.items()},
        "PEFT's prompt of integers": tensors(EITHER, prompt_embeddings=torch.ones(4, 192).long()),
        "PEFT's prompt of complex numbers": tensors(
            prompt_embeddings=torch.ones(4, 192, dtype=torch.complex64)
        ),
        "PEFT's prompt of NaN": tensors(prompt_embeddings=torch.full((4, 192), math.nan)),
        "PEFT's prompt of no rows": tensors(prompt_embeddings=torch.ones(0, 192)),
        "PEFT's prompt of no columns": tensors(prompt_embeddings=torch.ones(4, 0)),
        "PEFT's prompt of another width": tensors(prompt_embeddings=torch.ones(4, 64)),
        "PEFT's head of one dimension": tensors(weight=torch.ones(2)),
        "PEFT's head of no dimensions": tensors(weight=torch.ones(())),
        "PEFT's head of 3 labels and 2": tensors(weight=torch.ones(3, 32)),
        "PEFT's head without a bias": tensors(bias=None),
    }


def _links() -> dict[str, tuple[Any, ...]]:
    """Links, folders and pipes where files are expected."""

    def replaced(name: str, by: Callable[[Path], object]) -> Make:
        def make(folder: Path) -> None:
            (folder / name).unlink()
            by(folder / name)

        return make

    def elsewhere(folder: Path) -> None:
        target = folder.parent / "elsewhere"
        (folder / WEIGHTS).rename(target)
        (folder / WEIGHTS).symlink_to(target)

    def linked(folder: Path) -> Path:
        link = folder.parent / "link"
        link.symlink_to(folder)
        return link

    cases: dict[str, tuple[Any, ...]] = {
        "tensors that are a link to the same": (elsewhere, EITHER),
        "a folder that is a link": (linked, EITHER),
    }
    for name in (RECORD, WEIGHTS, CONFIG):
        cases[f"{name} is a link to itself"] = (replaced(name, lambda file: file.symlink_to(file)),)
        cases[f"{name} is a folder"] = (replaced(name, lambda file: file.mkdir()),)
        cases[f"{name} is a pipe"] = (replaced(name, os.mkfifo),)
    return cases


def _places() -> dict[str, tuple[Any, ...]]:
    """Names under which there is no adapter."""
    names = {
        "a path with NUL": "a\0b",
        "a user who is not there": "~nosuchuser/x",
        "a path of 5,000 letters": "/" + "a" * 5000,
        "an empty path": "",
        "the working directory": ".",
        "half a letter": "/tmp/\ud800",
        "a Hub id with a line break": "a/b\nc",
    }
    return {name: ((lambda folder, value=value: value),) for name, value in names.items()}
