"""An adapter folder's files as they are uploaded to a repository on the Hub."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

from ptuning.adapters.card import model_card
from ptuning.adapters.folder import CARD, CONFIG, RECORD, WEIGHTS, checked, details, load, read_file
from ptuning.adapters.seal import SELF, digest, json_bytes, sealed
from ptuning.errors import AdapterError
from ptuning.paths import local_path


def for_repository(
    folder: str | os.PathLike[str], *, name: str, license: str | None = None, backbone: str | None = None
) -> dict[str, bytes]:
    """The files of an adapter for upload; the folder itself is not changed.

    The tensors are identical. The model card is written again, so that its examples name the repository,
    unless it was edited. In ``ptuning.json`` only digests, the licence and the backbone's name change, with a
    new digest of the file, so that :func:`verify` works there too.

    Args:
        name: The name of the repository, for the examples in the card.
        license: The licence, saved in ``extra``.
        backbone: The public name of the backbone; by default the recorded name, or the last part of the path
            of a local folder, because paths on this machine are private.

    Raises:
        AdapterError: what :func:`load` raises, or a licence that an edited card does not name.
    """
    path = local_path(folder, "adapter", error=AdapterError)
    content = details(path)  # before load, which also reads PEFT adapters
    adapter = load(path)
    listed = content["files"]
    files = {file: checked(path, file, listed) for file in (CONFIG, WEIGHTS)}
    public = backbone or _public(str(adapter.backbone["name"]))
    if public != adapter.backbone["name"]:
        content["backbone"] = {**content["backbone"], "name": public}
        adapter = replace(adapter, backbone=content["backbone"])
        files[CONFIG] = json_bytes({**json.loads(files[CONFIG]), "base_model_name_or_path": public})
    if license is not None:
        content["extra"] = {**content["extra"], "license": license}
        adapter = replace(adapter, extra=content["extra"])
    card = read_file(path / CARD) if (path / CARD).is_file() else None
    if card is None or digest(card) == listed.get(CARD):
        written = model_card(adapter, name=name, versions=content["versions"])
        card = written.encode("utf-8", "backslashreplace")
    elif license is not None and not _names_license(card, license):
        raise AdapterError(
            f"{CARD} in {path} was edited by hand, so the licence {license!r} is not filled in",
            remedy=f"write 'license: {license}' between its '---' lines, or delete the file to have it "
            "written again",
        )
    files[CARD] = card
    digests = {file: digest(data) for file, data in sorted(files.items())}
    facts = {key: value for key, value in content.items() if key != SELF}
    return {**files, RECORD: sealed({**facts, "files": digests})}


def _public(name: str) -> str:
    """A backbone's public name: a Hub id is unchanged; of a folder, the last part with ``./`` in front, so
    that it does not look like a Hub id.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return "./" + re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path or Path(name).is_dir() else name


def _names_license(card: bytes, license: str) -> bool:
    return bool(re.search(rb"^license:\s*['\"]?" + re.escape(license.encode()) + rb"['\"]?\s*$", card, re.M))
