"""The adapter folder: written atomically, and read only if its files are unchanged.

| file | what |
|---|---|
| ``adapter_config.json``, ``adapter_model.safetensors`` | prompt and head (``peft_format.py``) |
| ``ptuning.json`` | the task, every choice, facts of the backbone, metrics, sha256 of every other file |
| ``README.md`` | the model card (``card.py``) |

Callers may add files in subfolders while it is written (a checkpoint's ``resume/``). Nothing is ever
pickled. ``atomic.py`` replaces folders, ``hub.py`` downloads them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import torch as safetensors

from ptuning.adapters.atomic import moved_aside, recover, replace_folder, write_bytes
from ptuning.adapters.card import model_card
from ptuning.adapters.peft_format import from_peft, to_peft
from ptuning.adapters.peft_import import is_peft, read
from ptuning.adapters.record import Adapter, ClozeTokens, installed_versions
from ptuning.adapters.schema import RecordFields, check_fields
from ptuning.adapters.seal import SELF, digest, is_sealed, json_bytes, sealed
from ptuning.adapters.tensors import check_finite, first_line, parse_tensors
from ptuning.errors import AdapterError, PTuningError
from ptuning.files import MAX_JSON_BYTES, parse_json, read_regular
from ptuning.model.config import prompt_from_dict
from ptuning.paths import local_path
from ptuning.task import Task

CONFIG, WEIGHTS, RECORD, CARD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "ptuning.json",
    "README.md",
)
OWN_FILES = (CONFIG, WEIGHTS, RECORD, CARD)
FORMAT_VERSION = 1

_EXPECTED = f"a folder with {CONFIG}, {WEIGHTS} and {RECORD}, as ptuning writes it"


# ------------------------------------------------------------------------------------------- write


def save(
    adapter: Adapter,
    folder: str | os.PathLike[str],
    *,
    extra_files: Callable[[Path], None] | None = None,
    apart: Collection[str] = (),
) -> Path:
    """Write an adapter folder in one step, replacing an adapter that is there.

    Args:
        adapter: What to write.
        folder: The destination; missing parents are created. A symbolic link is followed.
        extra_files: Writes more files into the new folder before it replaces the old one, subfolders
            included; they are listed and digested with the rest, except those in ``apart``.
        apart: Names of subfolders that are not part of this adapter, and may exist, because
            ``extra_files`` writes them again.

    Returns:
        The folder's absolute path.

    Raises:
        AdapterError: values that are not finite or not JSON, or a destination that
            :func:`check_destination` refuses.
        OutputError: disk full, no permission. What was there before is unchanged.
    """
    target = check_destination(folder, apart)
    check_finite(
        adapter.tensors(),
        remedy="nothing was saved; train with a lower learning rate, or go back to the last good checkpoint",
    )
    content = _content(adapter)
    try:
        check_fields(RecordFields, {**content, "files": {}})
    except ValueError as error:  # it could not be read again
        raise AdapterError(f"nothing was saved: {error}") from error
    config, tensors = to_peft(adapter)

    def fill(new: Path) -> None:
        if extra_files is not None:
            extra_files(new)
        if taken := [name for name in OWN_FILES if (new / name).exists()]:
            raise AdapterError(
                "extra_files",
                got=f"a file {taken[0]}",
                expected="other names than those of the adapter's own files",
                remedy="choose another name",
            )
        write_bytes(new / CONFIG, json_bytes(config))
        write_bytes(new / WEIGHTS, safetensors.save(tensors, metadata={"format": "pt"}))
        card = model_card(adapter, name=target.name, versions=content["versions"])
        write_bytes(new / CARD, card.encode("utf-8", "backslashreplace"))
        files = {name: digest((new / name).read_bytes()) for name in sorted(_files(new, apart))}
        write_bytes(new / RECORD, sealed({**content, "files": files}))

    replace_folder(target, fill)
    return target


def check_destination(folder: str | os.PathLike[str], apart: Collection[str] = ()) -> Path:
    """Refuse a destination where :func:`save` would delete other files. Worth calling early.

    Args:
        folder: The destination.
        apart: Names of subfolders that are written again, so nothing is lost.

    Returns:
        The absolute path, symbolic links resolved.

    Raises:
        AdapterError: a file, a folder of something else, the working directory, or an adapter with further
            files or an edited model card.
    """
    target = Path(os.path.realpath(local_path(folder, "output", error=AdapterError)))
    recover(target, is_whole)
    if not target.exists():
        return target
    here = Path.cwd()
    if target == here or target in here.parents:
        raise AdapterError(
            "output",
            got=f"{target}, which is the working directory or a parent of it",
            expected="a folder that can be replaced",
            remedy="choose a folder in it",
        )
    if not target.is_dir():
        raise AdapterError(
            "output",
            got=f"the file {target}",
            expected="a folder to write an adapter to",
            remedy="choose another name",
        )
    names = _files(target, apart)
    if not names and all(child.name in apart for child in target.iterdir()):
        return target
    try:
        listed = details(target)["files"]
    except AdapterError as error:
        why = f" ({error})" if RECORD in names else ""
        raise AdapterError(
            f"{target} is not empty and is not an adapter of ptuning{why}",
            remedy="choose another folder, or empty it",
        ) from error
    if CARD in names and digest(read_file(target / CARD)) != listed.get(CARD):
        raise AdapterError(
            f"{CARD} in {target} was edited by hand and would be lost",
            remedy="move it elsewhere, or choose another folder",
        )
    if strange := sorted(names - set(listed) - {RECORD}):
        raise AdapterError(
            f"{target} contains {strange[0]}, which is not part of the adapter there and would be lost",
            remedy="move it elsewhere, or choose another folder",
        )
    return target


def _content(adapter: Adapter) -> dict[str, Any]:
    """``ptuning.json`` without the digests."""
    return {
        "format_version": FORMAT_VERSION,
        "task": _plain(adapter.task.to_dict(), "task"),
        "prompt": _plain(adapter.prompt, "prompt"),
        "backbone": _plain(adapter.backbone, "backbone"),
        "anchors": _plain(adapter.anchors, "anchors"),
        **({} if adapter.cloze is None else {"cloze": _plain(adapter.cloze.to_dict(), "cloze")}),
        "metrics": _plain(adapter.metrics, "metrics", undefined=True),
        "extra": _plain(adapter.extra, "extra", undefined=True),
        "versions": installed_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain(value: Any, where: str, *, undefined: bool = False) -> Any:
    """``value`` as JSON data.

    Args:
        undefined: Whether a number that is not finite becomes null instead of an error. A correlation of
            constant predictions is undefined, and the adapter is saved nevertheless.
    """
    if hasattr(value, "item"):  # a number from numpy or torch
        value = value.item()
    if isinstance(value, Mapping):
        return {
            str(key): _plain(inner, f"{where}.{key}", undefined=undefined) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{i}]", undefined=undefined) for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if undefined:
            return None
        raise AdapterError(where, got=value, expected="a finite number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise AdapterError(
        where, got=f"a {type(value).__name__}", expected="JSON data: strings, numbers, lists, dictionaries"
    )


def _files(folder: Path, apart: Collection[str] = ()) -> set[str]:
    """All files below ``folder``, as relative paths with ``/``, except those in ``apart``. Links to folders
    are not followed.
    """
    found = (
        Path(parent, name).relative_to(folder)
        for parent, folders, files in os.walk(folder)
        for name in (*files, *(sub for sub in folders if os.path.islink(os.path.join(parent, sub))))
    )
    return {path.as_posix() for path in found if path.parts[0] not in apart}


# -------------------------------------------------------------------------------------------- read


def load(folder: str | os.PathLike[str], *, allow_pickle: bool = False) -> Adapter:
    """Read an adapter folder that ptuning or PEFT wrote; see ``hub.locate`` for one on the Hub.

    The files that are read are checked against their digests. The model card and the files of ``extra_files``
    are not read, so they are not checked here: :func:`verify` does that.

    Args:
        folder: The folder.
        allow_pickle: Whether to read the ``adapter_model.bin`` of an old PEFT version if there is nothing
            else.

    Raises:
        AdapterError: no adapter, one of a newer format, or one that was altered or cut short.
    """
    path = local_path(folder, "adapter", error=AdapterError)
    if not (path / RECORD).exists() and is_peft(path):
        return read(path, allow_pickle=allow_pickle)
    while True:
        stamp = _stamp(path)
        try:
            return _load(path)
        except AdapterError:
            if _stamp(path) == stamp:
                raise  # otherwise it was replaced meanwhile, like the checkpoint of a run


def _stamp(path: Path) -> bytes | None:
    """The current record."""
    try:
        return read_regular(path / RECORD, MAX_JSON_BYTES)
    except OSError:
        return None


def _load(path: Path) -> Adapter:
    content = details(path)
    config = _parse(path / CONFIG, checked(path, CONFIG, content["files"]))
    data = checked(path, WEIGHTS, content["files"])
    try:
        tensor, units, head = from_peft(config, parse_tensors(data))
        adapter = Adapter(
            prompt=content["prompt"],
            task=Task.from_dict(content["task"]),
            backbone=content["backbone"],
            prompt_tensor=tensor,
            units=units,
            head=head,
            anchors=tuple(tuple(ids) for ids in content["anchors"]),
            cloze=None if content.get("cloze") is None else ClozeTokens.from_dict(content["cloze"]),
            metrics=content["metrics"],
            extra=content["extra"],
        )
        if (tokens := prompt_from_dict(adapter.prompt).virtual_tokens) != adapter.virtual_tokens:
            raise AdapterError("its prompt", got=f"{adapter.virtual_tokens} virtual tokens", expected=tokens)
        check_finite(adapter.tensors(), remedy="its training diverged, or it was altered")
    except (PTuningError, ValueError) as error:  # the digests are right, but the contents are not valid
        raise AdapterError(
            f"{path} is not an adapter that this version of ptuning can read: {error}"
        ) from error
    return adapter


def verify(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Check all files that an adapter folder lists, including the model card and sub-folders.

    Returns:
        The names of the checked files.

    Raises:
        AdapterError: as :func:`load`, or for any listed file that is missing, altered or cut short.
    """
    path = local_path(folder, "adapter", error=AdapterError)
    listed = details(path)["files"]
    for name in listed:
        checked(path, name, listed)
    load(path)
    return (RECORD, *listed)


def details(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """``ptuning.json``, checked against its own digest.

    In addition to the facts of an :class:`Adapter`, it has ``versions``, ``created`` and ``files``.

    Raises:
        AdapterError: no adapter, one of a newer format, or a ``ptuning.json`` that was altered or cut short.
    """
    path = local_path(folder, "adapter", error=AdapterError)
    _check_folder(path)
    data = read_file(path / RECORD, MAX_JSON_BYTES)
    content = _parse(path / RECORD, data)
    version = content.get("format_version")
    if type(version) is not int or version < 1:  # a boolean is not accepted
        raise AdapterError(f"{path / RECORD} has no valid format_version", expected=_EXPECTED)
    if version > FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format {version}, and this version of ptuning reads formats up to {FORMAT_VERSION}",
            remedy="update it with: pip install --upgrade ptuning",
        )
    if not is_sealed(data, content):
        raise _altered(path, RECORD)
    try:
        check_fields(RecordFields, content)
    except ValueError as error:
        raise AdapterError(
            f"{RECORD} in {path} is not what ptuning writes, although its digest is right: {error}",
            remedy="do not trust this adapter, or read it with the version that wrote it",
        ) from error
    return content


def version(folder: str | os.PathLike[str]) -> str:
    """A SHA-256 that identifies an adapter's version, whether ptuning or PEFT wrote it."""
    path = local_path(folder, "adapter", error=AdapterError)
    if (path / RECORD).exists() or not is_peft(path):
        return str(details(path)[SELF])
    return digest(b"".join(read_file(file) for file in sorted(path.glob("adapter_*")) if file.is_file()))


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` is a readable adapter folder of ptuning, in a format that this version knows."""
    try:
        details(folder)
    except AdapterError:
        return False
    return True


def is_whole(folder: Path) -> bool:
    """Whether all files of an adapter folder are complete and unchanged."""
    try:
        verify(folder)
    except AdapterError:
        return False
    return True


def _check_folder(path: Path) -> None:
    """Raise an error with the reason if there is no adapter at ``path``."""
    if not path.exists():
        recover(Path(os.path.realpath(path)), is_whole)
    if not path.exists():
        aside = moved_aside(Path(os.path.abspath(path)))
        raise AdapterError(
            f"no adapter at {path}: there is no such folder",
            expected=None if aside else _EXPECTED,
            remedy=f"an interrupted save left the previous one at {aside}: rename it back" if aside else None,
        )
    if not path.is_dir():
        raise AdapterError(f"no adapter at {path}: it is a file", expected=_EXPECTED)
    if (path / RECORD).exists():
        return
    if is_peft(path):
        raise AdapterError(
            f"{path} is a PEFT adapter, without {RECORD}",
            remedy=f"convert it with: ptuning import-peft {path} NEW_FOLDER",
        )
    if (path / "model.safetensors").is_file():
        raise AdapterError(
            f"no adapter at {path}: it was saved by transformers' Trainer, or is a full model",
            remedy="if it has a prompt, PTuningModel.from_pretrained opens it (as does ptuning predict), "
            "and save_pretrained makes an adapter of it",
        )
    if checkpoints := sorted(path.glob("checkpoint-*"), key=lambda found: found.stat().st_mtime):
        raise AdapterError(
            f"no adapter at {path}: it has no {RECORD}, but checkpoints",
            remedy=f"name one, such as {checkpoints[-1]}",
        )
    raise AdapterError(f"no adapter at {path}: it has no {RECORD}", expected=_EXPECTED)


def checked(folder: Path, name: str, listed: Mapping[str, str]) -> bytes:
    """The bytes of a listed file, checked against its digest."""
    if name not in listed:
        raise AdapterError(f"{folder / RECORD} does not list {name}", expected=_EXPECTED)
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts:
        raise AdapterError(
            f"{folder / RECORD} lists {name!r}, which is outside the folder",
            remedy="do not trust this adapter",
        )
    if not (folder / inner).is_file():
        raise AdapterError(f"{folder} has no {name}, which {RECORD} lists", remedy=_ask_again(name))
    data = read_file(folder / inner)
    if digest(data) != listed[name]:
        raise _altered(folder, name)
    return data


def _altered(folder: Path, name: str) -> AdapterError:
    return AdapterError(
        f"{name} in {folder} was altered or cut short: its sha256 is not the recorded one",
        remedy=_ask_again(name),
    )


def _ask_again(name: str) -> str:
    return f"copy or download {name} again from where the adapter came from, or train it again"


def read_file(file: Path, max_bytes: int | None = None) -> bytes:
    """The bytes of a file in an adapter folder."""
    try:
        return read_regular(file, max_bytes)
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be read: {error.strerror or error}", remedy="check it and its permissions"
        ) from error


def _parse(file: Path, data: bytes) -> dict[str, Any]:
    try:
        values = parse_json(data)
    except ValueError as error:
        raise AdapterError(
            f"{file.name} in {file.parent} was altered or cut short: it is not valid JSON "
            f"({first_line(error)})",
            remedy=_ask_again(file.name),
        ) from None
    if not isinstance(values, dict):
        raise AdapterError(str(file), got=f"a JSON {type(values).__name__}", expected="a JSON object")
    return values
