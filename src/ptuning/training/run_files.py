"""The files of a run, in ``OUTPUT.run``: how they are written, checked and removed.

Each file is written completely or not at all, and a run may be killed at any point: afterwards either
``--resume`` continues it or the plain command starts a new run. For that, ``result.json``, which marks a run
as finished, is removed last, after ``checkpoint/`` and ``search/``. Only files that a run writes are removed.
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
"""Marks a run as finished: it has the result, or for a run that diverged only that."""
CHECKPOINT = "checkpoint"
"""The folder that a run is resumed from."""
STATE, TENSORS = "resume/state.json", "resume/state.safetensors"
"""In the checkpoint, in addition to the adapter's files."""
SEARCH = "search"
"""The folder of a search's files."""
PLOT = "search.png"
REPORT = "report.html"
"""What the adapter has learned, as a page; next to the result, and next to a search's own."""
START_AGAIN = "start again with --restart (restart=True of train; fit: without resume)"
"""The remedy where a run cannot be resumed."""


def prepared(output: str | os.PathLike[str]) -> Path:
    """Check that a run may write to ``output``, and complete what a killed run left half done there.

    Returns:
        The adapter's folder, an absolute path.

    Raises:
        ConfigError, AdapterError: files that no run wrote would be lost, or nothing can be written there.
    """
    folder = run_folder(os.fspath(output))
    target = adapters.check_destination(folder.with_name(folder.name.removesuffix(".run")))
    for place, names in ((folder, (CONFIG, RESULT, REPORT)), (folder / SEARCH, (RESULT, PLOT, REPORT))):
        for name in names:
            atomic.recover(place / name)
    atomic.recover(folder / SEARCH)
    search = _real(folder / SEARCH)
    _refuse_foreign(search, _files(search) - {RESULT, PLOT, REPORT})
    checkpoint = _real(folder / CHECKPOINT)
    atomic.recover(checkpoint, adapters.is_whole)
    if adapters.is_adapter(checkpoint):
        adapters.check_destination(checkpoint)  # it checks the model card, too
    else:
        _refuse_foreign(checkpoint, _files(checkpoint) - {*adapters.OWN_FILES, STATE, TENSORS})
    return target


def unfinished(folder: Path) -> bool:
    """Whether a run, or a search, was started in ``folder`` and not finished."""
    started = has_checkpoint(folder) or (folder / SEARCH / RESULT).exists()
    return started and not (folder / RESULT).exists()


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint; a folder that an older version removed in part is not one."""
    return (folder / CHECKPOINT / adapters.RECORD).exists()


def refuse_unfinished(folder: Path) -> None:
    """Refuse to overwrite an :func:`unfinished` run."""
    if unfinished(folder):
        raise ConfigError(
            f"{folder} has an unfinished run",
            remedy="continue it with --resume, or start again with --restart (in Python: resume=True, "
            "restart=True)",
        )


def clear(folder: Path, *, search: bool = True) -> None:
    """Remove the files of the previous run: the checkpoint first, the result last.

    Args:
        search: Whether to remove the files of a search, too.

    Raises:
        OutputError: something could not be removed.
    """
    atomic.remove_folder(_real(folder / CHECKPOINT))
    if search:
        atomic.remove_folder(_real(folder / SEARCH))
    remove(folder / REPORT)
    remove(folder / RESULT)


def remove(file: Path) -> None:
    """Delete a file of a run, if it exists.

    Raises:
        OutputError: it could not be deleted.
    """
    try:
        file.unlink(missing_ok=True)
    except NotADirectoryError:
        pass  # writing to this folder will raise the error
    except OSError as error:
        raise OutputError(
            f"{file} could not be deleted: {error.strerror}", remedy="delete it yourself"
        ) from error


def write(file: Path, content: str | bytes, accelerator: Accelerator) -> None:
    """Write a file of a run, completely or not at all; only the main process writes.

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
    """The relative names of the files below ``folder``; ``.`` if it is a file itself."""
    if folder.is_dir():
        found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return {path.relative_to(folder).as_posix() for path in found if not atomic.is_leftover(path.name)}
    return {"."} if os.path.lexists(folder) else set()


def _refuse_foreign(folder: Path, strange: Iterable[str]) -> None:
    for name in sorted(strange):
        what = f"{folder} is not a folder" if name == "." else f"{folder} has {name}, which no run wrote"
        raise AdapterError(f"{what}, and it would be lost", remedy="move it, or choose another output")
