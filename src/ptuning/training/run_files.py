"""The files of a run, in ``OUTPUT.run``: written whole, and removed in an order that a kill may cut short.

Wherever a run is killed, ``--resume`` goes on from it or the plain command begins: the file that says that a
run is over (``result.json``) is removed after what it speaks of (``checkpoint/``, ``search/``). Nothing is
removed but what a run writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ptuning import adapters
from ptuning.adapters import atomic
from ptuning.errors import AdapterError, ConfigError, OutputError
from ptuning.training.config import run_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

CONFIG = "config.yaml"
RESULT = "result.json"
"""What a run leaves that is over, and an unfinished one lacks. Of one that diverged it says that alone."""
CHECKPOINT = "checkpoint"
"""The folder to go on from."""
STATE, TENSORS = "resume/state.json", "resume/state.safetensors"
"""In the checkpoint, besides the adapter's own files."""
SEARCH = "search"
"""The folder of a search's own files."""
PLOT = "search.png"
START_AGAIN = "start again with --restart (restart=True of train; fit: without resume)"
"""What to do where a run cannot be resumed."""


def prepared(output: str | os.PathLike[str]) -> Path:
    """Where a run may write, once what a killed one was about there is finished.

    Returns:
        The adapter's folder, an absolute path.

    Raises:
        ConfigError, AdapterError: something that is no run's would be lost, or nothing can be written there.
    """
    folder = run_folder(os.fspath(output))
    target = adapters.check_destination(folder.with_name(folder.name.removesuffix(".run")))
    for place, names in ((folder, (CONFIG, RESULT)), (folder / SEARCH, (RESULT, PLOT))):
        for name in names:
            atomic.recover(place / name)
    atomic.recover(folder / SEARCH)
    search = _real(folder / SEARCH)
    _refuse_foreign(search, _files(search) - {RESULT, PLOT})
    checkpoint = _real(folder / CHECKPOINT)
    atomic.recover(checkpoint, adapters.is_whole)
    if adapters.is_adapter(checkpoint):
        adapters.check_destination(checkpoint)  # which asks for the model card, too
    else:
        _refuse_foreign(checkpoint, _files(checkpoint) - {*adapters.OWN_FILES, STATE, TENSORS})
    return target


def unfinished(folder: Path) -> bool:
    """Whether a run, or a search, was begun in ``folder`` and not finished."""
    begun = has_checkpoint(folder) or (folder / SEARCH / RESULT).exists()
    return begun and not (folder / RESULT).exists()


def has_checkpoint(folder: Path) -> bool:
    """Whether a run left something to go on from; a folder that an older version half removed is nothing."""
    return (folder / CHECKPOINT / adapters.RECORD).exists()


def refuse_unfinished(folder: Path) -> None:
    """Refuse to throw away what is :func:`unfinished`."""
    if unfinished(folder):
        raise ConfigError(
            f"{folder} has an unfinished run; continue it with --resume, or start again with --restart "
            "(in Python: resume=True, restart=True)"
        )


def clear(folder: Path, *, search: bool = True) -> None:
    """Take away what a run before this one left to go on from, and after that what says that it is over.

    Args:
        search: Its search, too.

    Raises:
        OutputError: something could not be removed.
    """
    atomic.remove_folder(_real(folder / CHECKPOINT))
    if search:
        atomic.remove_folder(_real(folder / SEARCH))
    remove(folder / RESULT)


def remove(file: Path) -> None:
    """Delete one of a run's own files, if it is there.

    Raises:
        OutputError: it could not be deleted.
    """
    try:
        file.unlink(missing_ok=True)
    except NotADirectoryError:
        pass  # what is wrong with the folder is said when it is written
    except OSError as error:
        raise OutputError(f"{file} could not be deleted: {error.strerror}; delete it yourself") from error


def write(file: Path, content: str | bytes, accelerator: Accelerator) -> None:
    """Write one of a run's own files, whole or not at all, in the main process alone.

    Raises:
        OutputError: disk full, no permission.
    """
    if accelerator.is_main_process:
        target = _real(file)
        with atomic.writing_errors(file):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic.atomic_file(target) as new:
                atomic.write_bytes(new, content.encode() if isinstance(content, str) else content)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _files(folder: Path) -> set[str]:
    """The files below ``folder``, by their relative names; of a file in its place, that."""
    if folder.is_dir():
        found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return {path.relative_to(folder).as_posix() for path in found if not atomic.is_leftover(path.name)}
    return {"."} if os.path.lexists(folder) else set()


def _refuse_foreign(folder: Path, strange: Iterable[str]) -> None:
    for name in sorted(strange):
        what = f"{folder} is no folder" if name == "." else f"{folder} holds {name}, which no run wrote"
        raise AdapterError(f"{what}, and it would be lost; move it elsewhere, or choose another output")
