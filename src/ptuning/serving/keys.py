"""API keys: who asks, and for which tasks. Only digests of keys are kept.

The file is TOML, one table per key::

    [search-team]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    tasks = ["sst2", "mrpc-*"]   # shell patterns; all tasks if left out
    admin = false                # may add and delete tasks

A key is 256 random bits, so one round of SHA-256 is enough to keep it secret.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptuning.adapters.atomic import atomic_file
from ptuning.errors import ConfigError
from ptuning.serving.rows import Refusal

logger = logging.getLogger("ptuning.serving")

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
NAMES = "a name of letters, digits, '.', '_' and '-', up to 64"
ADMIN = "admin"
"""The name of the caller with the admin key that is given apart from the file."""
PREFIX = "ptk_"
"""The start of every key that :func:`make_key` makes, so that scanners for leaked secrets recognise it."""
RECHECK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: The key's name; empty if the server needs no keys.
        tasks: Shell patterns of the tasks that it may use.
        admin: Whether it may add and delete tasks.
    """

    name: str = ""
    tasks: tuple[str, ...] = ("*",)
    admin: bool = False

    def may(self, task: str) -> bool:
        """Whether the caller may use a task."""
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)

    @property
    def may_all(self) -> bool:
        """Whether the caller may use every task, and so may see what is said about all of them."""
        return "*" in self.tasks


class _Entry(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tasks: list[str] = Field(default_factory=lambda: ["*"])
    admin: bool = False


@dataclass(kw_only=True)
class Keys:
    """The keys that a server accepts.

    Args:
        file: The file of keys; it is read again after a change. A change that cannot be read is logged, and
            the earlier keys stay valid. ``None`` for a server that needs no keys.
        admin_key: One more key, for administration, that is not in the file.
        clock: Seconds that never go back.

    Raises:
        ConfigError: a file that cannot be read, or an admin key that is too short.
    """

    file: Path | None = None
    admin_key: str | None = None
    clock: Callable[[], float] = time.monotonic
    _known: tuple[tuple[str, Caller], ...] = field(default=(), init=False)
    _stamp: object = field(default=None, init=False)
    _checked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.admin_key is not None and len(self.admin_key) < 16:
            raise ConfigError("the admin key", got=f"{len(self.admin_key)} characters", expected="16 or more")
        if self.file is not None:
            self._stamp, self._checked = _stamp(self.file), self.clock()
            self._known = tuple(read_keys(self.file).items())

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self.file is not None

    @property
    def has_admin(self) -> bool:
        """Whether some key may add and delete tasks."""
        return self.admin_key is not None or any(caller.admin for _, caller in self._known)

    def caller(self, authorization: str | None) -> Caller:
        """Who sends an ``Authorization`` header.

        Raises:
            Refusal: 401, no key or a wrong one.
        """
        self._refresh()
        if authorization is None and not self.required:
            return Caller()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unauthorized("this server needs an API key: send Authorization: Bearer KEY")
        return self.caller_of(digest(key.strip()))

    def caller_of(self, given: str) -> Caller:
        """Whose key has this digest.

        Raises:
            Refusal: 401, it is not that of a key.
        """
        self._refresh()
        found: Caller | None = None
        for known, caller in self._entries():
            if hmac.compare_digest(known, given):
                found = caller  # and on to the last one: the time says nothing about which key it was
        if found is not None:
            return found
        if not self.required:  # clients often send a placeholder to a server without keys
            return Caller()
        raise _unauthorized("this API key is not valid")

    def digests_of(self, name: str) -> list[str]:
        """The digests of the keys with this name: one, or none."""
        self._refresh()
        return [known for known, caller in self._entries() if caller.name == name]

    def _entries(self) -> tuple[tuple[str, Caller], ...]:
        if self.admin_key is None:
            return self._known
        return (*self._known, (digest(self.admin_key), Caller(name=ADMIN, admin=True)))

    def _refresh(self) -> None:
        """Read the file again if it was changed."""
        if self.file is None or self.clock() - self._checked < RECHECK_SECONDS:
            return
        self._checked = self.clock()
        stamp = _stamp(self.file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = tuple(read_keys(self.file).items())
            logger.info("read %d keys from %s", len(self._known), self.file)
        except ConfigError as error:
            logger.error("the keys were not read again, the earlier ones stay valid: %s", error)


def digest(key: str) -> str:
    """The SHA-256 of a key, as in the file."""
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> Mapping[str, Caller]:
    """The callers by the digest of their keys.

    Raises:
        ConfigError: the file is not there, is not TOML, or has an entry that is not a key.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the file of keys {file}", got=error.strerror or str(error)) from error
    except ValueError as error:
        raise ConfigError(f"the file of keys {file}", got=f"invalid TOML ({error})") from error
    found: dict[str, Caller] = {}
    for name, table in tables.items():
        where = f"key {name!r} in {file}"
        if not re.fullmatch(NAME, name):
            raise ConfigError(where, expected=NAMES)
        try:
            entry = _Entry.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigError(
                where, got=f"{place}: {first['msg']}", expected="sha256, tasks, admin"
            ) from None
        if entry.sha256 in found:
            raise ConfigError(where, got=f"the same key as {found[entry.sha256].name!r}", expected="another")
        found[entry.sha256] = Caller(name=name, tasks=tuple(entry.tasks), admin=entry.admin)
    return found


def make_key(file: Path, name: str, *, tasks: tuple[str, ...] = ("*",), admin: bool = False) -> str:
    """Add a new key to a file, which is made if it is missing. The key itself is not stored.

    Raises:
        ConfigError: the file cannot be read, or has a key of that name.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            "the name of a key", got=name, expected="letters, digits, '.', '_' and '-', up to 64"
        )
    before = ""
    if file.exists():
        taken = {caller.name for caller in read_keys(file).values()}
        if name in taken:
            raise ConfigError("the name of a key", got=f"{name!r}, which is taken", expected="another name")
        before = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    key = PREFIX + secrets.token_urlsafe(32)
    table = [f"[{json.dumps(name)}]", f'sha256 = "{digest(key)}"']
    if tasks != ("*",):
        table.append(f"tasks = {json.dumps(list(tasks))}")
    if admin:
        table.append("admin = true")
    with atomic_file(file) as part:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(before + "\n".join(table) + "\n")
    return key


def _unauthorized(message: str) -> Refusal:
    return Refusal(status=401, kind="unauthorized", message=message)


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
