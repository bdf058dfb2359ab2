"""Finds adapters in local folders or on the Hub, and pushes them to the Hub.

All access to the Hub is through ``huggingface_hub``. Its errors are turned into one sentence that says what
to do and never shows the access token.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import CommitOperationAdd, HfApi, RepoCard, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm, validate_repo_id  # type: ignore[attr-defined]  # not in its __all__

from ptuning.adapters.folder import CARD, CONFIG, OWN_FILES, RECORD, WEIGHTS, details
from ptuning.adapters.peft_import import PICKLED, is_peft
from ptuning.adapters.repository import for_repository
from ptuning.errors import AdapterError, AdapterTooLarge, ConfigError
from ptuning.paths import local_path

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""The error for no answer at all. Its library depends on the version of ``huggingface_hub``."""

TRAINERS = "model.safetensors"
"""The file name of a model's state dict saved by ``transformers.Trainer``."""

_LOGIN = "log in with: hf auth login, or set HF_TOKEN"
_LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"


def hub_out_of_reach() -> bool:
    """Whether the Hub's host name cannot be resolved, so that only the local cache can be used.

    Without this check, ``huggingface_hub`` would retry for most of a minute. Behind a proxy the name may not
    be resolvable although the Hub is reachable, so the answer is then ``False``.
    """
    if constants.HF_HUB_OFFLINE:
        return True
    place = urlsplit(constants.ENDPOINT)
    if {place.scheme, "all"} & getproxies().keys() and not proxy_bypass(place.hostname or ""):
        return False
    try:
        known(place.hostname)
    except OSError:
        return True
    return False


@cache
def known(host: str | None) -> bool:
    """Resolve a host name; only success is cached.

    Raises:
        OSError: it cannot be resolved.
    """
    return bool(socket.getaddrinfo(host, None))


# ------------------------------------------------------------------------------------------- fetch


def locate(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
    max_bytes: int | None = None,
) -> Path:
    """The local folder of an adapter, which is downloaded first if necessary.

    Args:
        name_or_path: A folder, or a Hub id such as ``"someone/refunds"``. A folder of the same name as a
            repository takes precedence if it has a model.
        revision: A branch, tag or commit on the Hub; ignored for a folder.
        token: The Hub access token; that of the login if ``None``.
        allow_pickle: Whether to download the ``adapter_model.bin`` of an old version of PEFT.
        max_bytes: Maximum bytes of the files of a repository; no limit if ``None``.

    Raises:
        AdapterError: neither a folder nor a reachable repository; says what to do.
        AdapterTooLarge: more than ``max_bytes``. If the Hub's list of files says so, nothing is downloaded.
            If the list was wrong, the files are refused after the download, or during it where the client
            reports bytes (``huggingface_hub`` 1.0.0 reports files only).
    """
    path, name = local_path(name_or_path, "adapter", error=AdapterError), str(name_or_path)
    is_path = (
        isinstance(name_or_path, Path)
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
    )
    # The output folder of a Trainer often has the name of the repository, but is not an adapter.
    has_model = any((path / file).is_file() for file in (RECORD, CONFIG, TRAINERS))
    if path.exists() and (has_model or is_path or name.count("/") != 1):
        return path
    if is_path:
        details(path)  # it can only be a folder: explain that it is missing
    files = (*OWN_FILES, PICKLED) if allow_pickle else OWN_FILES
    try:
        folder = Path(_download(name, revision, token, files, max_bytes))
    except AdapterTooLarge:
        raise
    except AdapterError as error:
        if path.exists():
            problem = f"the folder {path} has no adapter, and on the Hub: {error.problem}"
            raise _with_problem(problem, error) from error
        raise
    if (folder / RECORD).is_file():
        return folder
    complete = is_peft(folder) and any((folder / file).is_file() for file in (WEIGHTS, PICKLED))
    if not complete and hub_out_of_reach():
        unreachable = _unreachable()
        problem = f"no adapter {name!r}: the Hub's cache has no complete copy, and {unreachable.problem}"
        raise _with_problem(problem, unreachable)
    if not is_peft(folder):
        raise AdapterError(
            f"the Hub repository {name!r} has neither {RECORD} nor an adapter of PEFT, so it is not an "
            "adapter",
            remedy="check the name. If transformers' Trainer pushed it, push the adapter itself with "
            "model.push_to_hub",
        )
    if not allow_pickle and not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"the Hub repository {name!r} is a PEFT adapter without {WEIGHTS}",
            remedy=f"if it has a {PICKLED} and you trust it, pass --allow-pickle (in Python: "
            "allow_pickle=True)",
        )
    return folder


def _download(
    name: str, revision: str | None, token: str | bool | None, files: Sequence[str], max_bytes: int | None
) -> str:
    at = f" at revision {revision!r}" if revision else ""
    options: dict[str, Any] = {"token": token, "allow_patterns": list(files)}
    offline = hub_out_of_reach()
    try:
        if max_bytes is not None:
            options["tqdm_class"] = _counting(name, max_bytes)
            listed = [] if offline else snapshot_download(name, revision=revision, dry_run=True, **options)
            if listed:
                _check_size(name, sum(file.file_size or 0 for file in listed), max_bytes)
                revision = listed[0].commit_hash  # the files whose sizes these are
        folder: str = snapshot_download(name, revision=revision, local_files_only=offline, **options)
        if max_bytes is not None:  # also if it was in the cache
            there = [Path(folder) / file for file in files]
            _check_size(name, sum(file.stat().st_size for file in there if file.is_file()), max_bytes)
        return folder
    except AdapterTooLarge:
        raise
    except HFValidationError as error:
        raise AdapterError(
            f"no adapter {name!r}: there is no such folder, and it is not a Hub id of the form 'owner/name'"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        found = _answer(error)  # the client wraps it in "not in the cache"
        missing = f"no adapter {name!r}{at}: there is no such folder"
        if isinstance(found, HfHubHTTPError):
            refused = _refusal(found, name, revision)
            if type(found) is RepositoryNotFoundError:
                refused = _with_problem(
                    f"no adapter {name!r}: there is no such folder, and {refused.problem}", refused
                )
        elif isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            unreachable = _unreachable()
            refused = AdapterError(
                f"{missing}, the Hub's cache has no complete copy, and {unreachable.problem}",
                remedy=f"{unreachable.remedy}; check the name as well",
            )
        elif isinstance(found, HTTPError):
            refused = _no_answer(found, token)
        else:
            refused = AdapterError(
                f"the Hub repository {name!r}{at} could not be fetched: {_line(error, token)}",
                remedy="try again",
            )
        raise refused from error


def _check_size(name: str, size: int, max_bytes: int) -> None:
    """Refuse a repository with too many bytes.

    Raises:
        AdapterTooLarge: it has more than ``max_bytes``.
    """
    if size > max_bytes:
        raise AdapterTooLarge(
            f"the adapter {name!r} on the Hub", got=f"{size:,} bytes", expected=f"at most {max_bytes:,}"
        )


def _counting(name: str, max_bytes: int) -> type[Any]:
    """A progress bar that shows nothing, and ends a download of more than ``max_bytes``.

    It can end a download only if the client calls it with the bytes of each part that it has received;
    ``huggingface_hub`` 1.0.0 calls it with the number of files.
    """

    class Counting(tqdm):
        received = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.received += int(n or 0)
            _check_size(name, self.received, max_bytes)

    return Counting


# -------------------------------------------------------------------------------------------- push


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    backbone: str | None = None,
) -> str:
    """Push an adapter folder to the Hub, in one commit.

    Only the files of the adapter are pushed (no ``resume/``), and the folder is not changed. The model card
    is written again so that its examples name the repository, unless it was edited: then it is pushed
    unchanged. A missing repository is created; the visibility of an existing one is never changed. The
    commit is refused if the repository was changed at the same time, so that the files of two pushes are
    never mixed.

    Args:
        folder: A folder written by :func:`save`.
        repo_id: ``"owner/name"``, or ``"name"`` for a repository of the logged-in user.
        private: Whether a new repository is private; the owner's default if ``None``.
        token: The Hub access token; that of HF_TOKEN or of the login if ``None``.
        revision: The branch; created from the main branch if it is missing.
        commit_message: The first line of the commit message.
        create_pr: Create a pull request, which needs no write permission.
        license: A licence identifier of the Hub, such as ``"mit"``; saved in ``extra``.
        backbone: The public name of the backbone, if it was a local folder.

    Returns:
        The URL of the commit or of the pull request.

    Raises:
        AdapterError: no adapter, an altered one, an invalid name, no token, no permission, no connection.
        ConfigError: an invalid licence or revision.
    """
    _check_choices(repo_id, revision, license)
    # An adapter that cannot be pushed is refused before anything else.
    first = for_repository(folder, name=repo_id, license=license, backbone=backbone)
    secret = _access(token)
    api = HfApi(token=secret, library_name="ptuning")
    try:
        name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        _validate(first[CARD].decode())  # before a repository is created
        head = _prepare(api, name, private, None if create_pr else revision)
        if create_pr and revision is not None:
            head = api.model_info(name, revision=revision).sha
        done = api.create_commit(
            name,
            [
                CommitOperationAdd(path_in_repo=file, path_or_fileobj=data)
                for file, data in for_repository(
                    folder, name=name, license=license, backbone=backbone
                ).items()
            ],
            commit_message=commit_message or "Upload ptuning adapter",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    except AdapterError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        found = _answer(error)
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            refused = AdapterError(
                f"the Hub did not accept the adapter: {_line(error, secret)}",
                remedy="correct that and push again",
            )
        elif isinstance(found, HfHubHTTPError):
            refused = _refusal(found, repo_id, revision, writer=_user(api, found))
        elif isinstance(found, HTTPError):
            refused = _no_answer(found, secret)
            refused = AdapterError(refused.problem, remedy=f"{refused.remedy}; nothing was changed there")
        else:
            refused = AdapterError(f"{repo_id!r} was not pushed: {_line(error, secret)}", remedy="try again")
        raise refused from error
    return str(done.pr_url or done.commit_url)


def _validate(card: str) -> None:
    """Validate the card's metadata with the Hub.

    Raises:
        ValueError: the metadata are invalid, with the Hub's reasons.
    """
    try:
        RepoCard(card).validate(repo_type="model")
    except ValueError as error:
        try:
            reasons = "; ".join(each["message"] for each in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            reasons = str(error)
        raise ValueError(f"Invalid metadata in README.md: {reasons}") from error


def _check_choices(repo_id: str, revision: str | None, license: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise AdapterError(
            got=repr(repo_id), expected="a Hub id such as 'owner/name' (letters, digits, '-', '_' and '.')"
        ) from error
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ConfigError(
            "revision", got=f"the commit {revision}, which cannot be added to", expected="a branch"
        )
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ConfigError(
            "license",
            got=repr(license),
            expected="a licence identifier of the Hub, such as 'apache-2.0' or 'mit'",
            remedy=f"see {_LICENCES}",
        )


def _access(token: str | bool | None) -> str:
    """The access token, after checking that there is one and that the Hub is reachable."""
    if hub_out_of_reach():
        unreachable = _unreachable()
        raise _with_problem(f"nothing was pushed: {unreachable.problem}", unreachable)
    secret = token if isinstance(token, str) else None if token is False else get_token()
    if not secret:
        raise AdapterError("a push needs an access token for the Hub, and there is none", remedy=_LOGIN)
    if not re.fullmatch("[!-~]+", secret):
        raise AdapterError(
            "the Hub access token contains spaces or invalid characters",
            remedy=f"copy it again from {constants.ENDPOINT}/settings/tokens",
        )
    return secret


def _prepare(api: HfApi, name: str, private: bool | None, branch: str | None) -> str | None:
    """Create the repository and the branch if they are missing. Returns the parent commit."""
    api.create_repo(name, private=private, exist_ok=True)
    found = api.model_info(name)
    if private is not None and found.private is not None and found.private != private:
        now, wanted = ("private", "public") if found.private else ("public", "private")
        raise AdapterError(
            f"the Hub repository {name!r} exists and is {now}, and a push does not change that",
            remedy=f"make it {wanted} at {constants.ENDPOINT}/{name}/settings, or leave out the option",
        )
    names = {file.rfilename for file in found.siblings or ()}
    if RECORD not in names and (other := sorted({"config.json", CONFIG} & names)):
        raise AdapterError(
            f"the Hub repository {name!r} has {other[0]} and no {RECORD}, so it is not an adapter and "
            "is not overwritten",
            remedy="push to another name",
        )
    if branch is None or branch == constants.DEFAULT_REVISION:
        return found.sha
    if not branch.startswith("refs/"):  # a pull request's is there already
        api.create_branch(name, branch=branch, exist_ok=True)
    return api.model_info(name, revision=branch).sha


def _user(api: HfApi, refusal: HfHubHTTPError) -> str | None:
    """The user whose token lacks a permission, if the Hub says so."""
    if refusal.response.status_code != 403:
        return None
    try:
        return str(api.whoami()["name"])
    except (HTTPError, OSError, KeyError):
        return None


# ---------------------------------------------------------------------------------- what went wrong


def _refusal(
    error: HfHubHTTPError, name: str, revision: str | None, writer: str | None = None
) -> AdapterError:
    """The error for the Hub's answer: what it means, and what to do."""
    page, tokens = f"{constants.ENDPOINT}/{name}", f"{constants.ENDPOINT}/settings/tokens"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):  # before its parent, RepositoryNotFoundError
        return AdapterError(
            f"the Hub repository {name!r} is gated",
            remedy=f"ask for access at {page}, then log in with: hf auth login",
        )
    if isinstance(error, RepositoryNotFoundError):
        return AdapterError(
            "the Hub has no such repository, or it is private",
            remedy="check the name, or log in with: hf auth login",
        )
    if isinstance(error, RevisionNotFoundError):
        return AdapterError(
            f"the Hub repository {name!r} has no revision {revision!r}", remedy="leave it out for the newest"
        )
    if status == 401:
        return AdapterError(
            "the Hub does not accept the access token",
            remedy=f"{_LOGIN} to one from {tokens} (HF_TOKEN takes precedence over the login)",
        )
    if status == 403:
        who = f"the user {writer!r}" if writer else "this access token"
        return AdapterError(
            f"{who} has no permission to do this with the Hub repository {name!r}",
            remedy=f"use a token with that permission ({tokens}), ask the repository's owner, or choose a "
            "name of your own",
        )
    if status in (409, 412):
        return AdapterError(
            f"the Hub repository {name!r} was changed at the same time, so nothing was pushed",
            remedy=f"see {page}, then push again",
        )
    if status == 429:
        return AdapterError(
            "the Hub received too many requests from you", remedy="wait a few minutes, then try again"
        )
    if status >= 500:
        return AdapterError(
            f"the Hub failed (HTTP {status}), which is not your fault", remedy="try again later"
        )
    at = f" at revision {revision!r}" if revision else ""
    return AdapterError(
        f"the Hub refused {name!r}{at} (HTTP {status})", remedy=f"see {page}, correct that and try again"
    )


def _answer(error: BaseException) -> BaseException:
    """The HTTP error behind an error of ``huggingface_hub``."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, HTTPError):
        inner = inner.__cause__
    return error if inner is None else inner


def _unreachable() -> AdapterError:
    """Why the Hub is not reachable."""
    if constants.HF_HUB_OFFLINE:
        return AdapterError(
            "the Hub is not reachable because offline mode is on",
            remedy="unset HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE",
        )
    host = urlsplit(constants.ENDPOINT).hostname
    return AdapterError(f"the Hub is not reachable ({host} does not answer)", remedy="check the connection")


def _no_answer(error: BaseException, token: str | bool | None) -> AdapterError:
    return AdapterError(
        f"the Hub at {constants.ENDPOINT} does not answer ({_line(error, token)})",
        remedy="check the connection, then try again",
    )


def _with_problem(problem: str, error: AdapterError) -> AdapterError:
    """The parts of ``error`` with another problem."""
    return AdapterError(problem, got=error.got, expected=error.expected, remedy=error.remedy)


def _line(error: BaseException, token: str | bool | None = None) -> str:
    """The message of an error, in one line and without the access token."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    secret = token if isinstance(token, str) else get_token()
    return text.replace(secret, "(the token)") if secret else text
