"""Checks of the paths that users give."""

from __future__ import annotations

import os
from errno import EINVAL, ELOOP, ENAMETOOLONG
from pathlib import Path

from ptuning.errors import ConfigError, UserError


def local_path(
    path: str | os.PathLike[str], what: str, *, error: type[UserError] = ConfigError, expand: bool = True
) -> Path:
    """``path`` as a valid path, with ``~`` expanded. The file does not have to exist.

    Args:
        what: The option's name in messages: ``output``, ``--config``.
        error: The class of error to raise.
        expand: Whether ``~`` is replaced by the user's home folder.

    Raises:
        UserError: of class ``error``: not a path, a NUL or broken character in it, a name that is too long, a
            link to itself, or the home folder of an unknown user.
    """
    try:
        found = Path(path)
        shown = _shown(found)
        if expand:
            found = found.expanduser()
        os.stat(found)
    except TypeError:
        raise error(what, got=f"{path!r:.80}", expected="a path, as a string or a pathlib.Path") from None
    except RuntimeError:  # what pathlib raises for ~nobody
        raise error(
            what, got=f"{shown}, but there is no such user", remedy="write the full path of the folder"
        ) from None
    except UnicodeError:
        raise error(what, got=shown, expected="a path without broken characters") from None
    except ValueError:
        raise error(what, got=shown, expected="a path without a NUL character") from None
    except OSError as refused:
        if refused.errno not in (ENAMETOOLONG, ELOOP, EINVAL):
            return found  # whether it exists and can be read is checked where it is opened
        reasons = {ENAMETOOLONG: "which is too long for a path", ELOOP: "a link that leads back to itself"}
        reason = reasons.get(refused.errno, refused.strerror)
        raise error(what, got=f"{shown}, {reason}", remedy="choose another path") from None
    return found


def _shown(path: Path) -> str:
    text = repr(str(path))
    return text if len(text) <= 80 else f"{text[:79]}…"
