"""Paths as people give them, checked before the system is asked."""

from __future__ import annotations

import os
from errno import EINVAL, ELOOP, ENAMETOOLONG
from pathlib import Path

from ptuning.errors import ConfigError, UserError


def local_path(
    path: str | os.PathLike[str], what: str, *, error: type[UserError] = ConfigError, expand: bool = True
) -> Path:
    """``path`` with ``~`` expanded. It need not be there, but could be.

    Args:
        what: What the path is of, for messages: ``output``, ``--config``.
        error: The class of what is raised.
        expand: Whether ``~`` means somebody's home folder.

    Raises:
        UserError: of the class ``error``: no path at all, a NUL or half a character in it, a name that is
            too long, a link to itself, or the home folder of nobody.
    """
    try:
        found = Path(path)
        shown = _shown(found)
        if expand:
            found = found.expanduser()
        os.stat(found)
    except TypeError:
        raise error(f"{what}: got {path!r:.80}, expected a path, as a string or a pathlib.Path") from None
    except RuntimeError:  # pathlib's word for it
        raise error(f"{what}: got {shown}, but there is no such user; write the folder out") from None
    except UnicodeError:
        raise error(f"{what}: got {shown}, expected a path without broken characters") from None
    except ValueError:
        raise error(f"{what}: got {shown}, expected a path without a NUL character") from None
    except OSError as refused:
        if refused.errno not in (ENAMETOOLONG, ELOOP, EINVAL):
            return found  # what is not there, or not readable, is said by who needs it
        reason = {ENAMETOOLONG: "which is too long for a path", ELOOP: "a link that leads back to itself"}
        raise error(
            f"{what}: got {shown}, {reason.get(refused.errno, refused.strerror)}; name another"
        ) from None
    return found


def _shown(path: Path) -> str:
    text = repr(str(path))
    return text if len(text) <= 80 else f"{text[:79]}…"
