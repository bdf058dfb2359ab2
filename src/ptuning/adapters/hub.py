"""Where an adapter is: a local folder, or a repository of the Hub, fetched into its cache or pushed to.

Only the client that Hugging Face maintains speaks to the Hub. What it raises is turned into one sentence
that says what to do; none of them shows the access token.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Sequence
from functools import cache
from pathlib import Path
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
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, not in its __all__

from ptuning.adapters.folder import CARD, CONFIG, OWN_FILES, RECORD, WEIGHTS, details
from ptuning.adapters.peft_import import PICKLED, is_peft
from ptuning.adapters.repository import for_repository
from ptuning.errors import AdapterError, ConfigError
from ptuning.paths import local_path

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""What no answer at all is raised as. Which library's it is depends on the client's version."""

TRAINERS = "model.safetensors"
"""What ``transformers.Trainer`` calls a model's state dict."""

_LOGIN = "log in with: hf auth login, or set HF_TOKEN"
_LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"


def hub_out_of_reach() -> bool:
    """Whether the Hub's name cannot even be looked up, so that only its cache can serve.

    A client that does not know would try again and again for most of a minute. Behind a proxy the name
    need not be known here, so there nothing is concluded.
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
    """Look a host's name up, once it is found; a connection that is not there yet may come.

    Raises:
        OSError: nobody knows it.
    """
    return bool(socket.getaddrinfo(host, None))


# ------------------------------------------------------------------------------------------- fetch


def locate(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
) -> Path:
    """The local folder of an adapter, downloaded first if need be.

    Args:
        name_or_path: A folder, which wins over a repository of the same name if it holds a model; or a Hub
            id such as ``"someone/refunds"``.
        revision: A branch, tag or commit of the Hub; of no meaning for a folder.
        token: The Hub's access token; the one that was logged in with if ``None``.
        allow_pickle: Fetch the ``adapter_model.bin`` of an old version of PEFT, too.

    Raises:
        AdapterError: neither a folder nor a repository in reach; says what to do.
    """
    path, name = local_path(name_or_path, "adapter", error=AdapterError), str(name_or_path)
    is_path = (
        isinstance(name_or_path, Path)
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
    )
    # A Trainer's output folder often has the name of the repository, and holds no adapter itself.
    holds = any((path / file).is_file() for file in (RECORD, CONFIG, TRAINERS))
    if path.exists() and (holds or is_path or name.count("/") != 1):
        return path
    if is_path:
        details(path)  # it can only be meant as a folder: let its absence be explained
    try:
        folder = Path(_download(name, revision, token, (*OWN_FILES, PICKLED) if allow_pickle else OWN_FILES))
    except AdapterError as error:
        if path.exists():
            raise AdapterError(f"the folder {path} holds no adapter, and on the Hub: {error}") from error
        raise
    if (folder / RECORD).is_file():
        return folder
    whole = is_peft(folder) and any((folder / file).is_file() for file in (WEIGHTS, PICKLED))
    if not whole and hub_out_of_reach():
        raise AdapterError(
            f"no adapter {name!r}: it is not whole in the Hub's cache, and {_why_out_of_reach()}"
        )
    if not is_peft(folder):
        raise AdapterError(
            f"the Hub repository {name!r} holds neither {RECORD} nor an adapter of PEFT's, so it is no "
            "adapter; check the name. If transformers' Trainer pushed it, push the adapter itself with "
            "model.push_to_hub"
        )
    if not allow_pickle and not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"the Hub repository {name!r} is an adapter of PEFT's without {WEIGHTS}; if it holds a {PICKLED} "
            "and you trust it, say --allow-pickle (in Python: allow_pickle=True)"
        )
    return folder


def _download(name: str, revision: str | None, token: str | bool | None, files: Sequence[str]) -> str:
    at = f" at revision {revision!r}" if revision else ""
    try:
        return snapshot_download(
            name,
            revision=revision,
            token=token,
            allow_patterns=list(files),
            local_files_only=hub_out_of_reach(),
        )
    except HFValidationError as error:
        raise AdapterError(
            f"no adapter {name!r}: there is no such folder, and it is no Hub id of the form 'owner/name'"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        found = _answer(error)  # the client keeps it behind "not in the cache"
        if isinstance(found, HfHubHTTPError):
            message = _refusal(found, name, revision)
            if type(found) is RepositoryNotFoundError:
                message = f"no adapter {name!r}: there is no such folder, and {message}"
        elif isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            message = (
                f"no adapter {name!r}{at}: there is no such folder, it is not whole in the Hub's cache, and "
                f"{_why_out_of_reach()}; check the name as well"
            )
        elif isinstance(found, HTTPError):
            message = _silence(found, token)
        else:
            message = (
                f"the Hub repository {name!r}{at} could not be fetched: {_line(error, token)}; try again"
            )
        raise AdapterError(message) from error


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
    """Put an adapter folder on the Hub, in one commit.

    The adapter's own files go, nothing else (no ``resume/``). The folder stays as it is. The model card
    is written anew so that its examples name the repository, unless a person has edited it: then it goes
    as it is. A repository that is missing is made; the visibility of one that exists is never changed. A
    commit is refused if the repository has changed since this looked at it, so a reader never
    finds one push's prompt beside another's record.

    Args:
        folder: What :func:`save` wrote.
        repo_id: ``"owner/name"``, or ``"name"`` for one of the user who is logged in.
        private: Who may see a repository that is made; the owner's default if ``None``.
        token: The Hub's access token; that of HF_TOKEN or of the login if ``None``.
        revision: The branch, made from the main one if it is not there.
        commit_message: The commit's first line.
        create_pr: Propose the commit as a pull request, which needs no right to write.
        license: An identifier of the Hub's list, such as ``"mit"``; kept in ``extra``.
        backbone: The backbone's name for others, where it was a folder of this machine.

    Returns:
        The address of the commit or of the pull request.

    Raises:
        AdapterError: no adapter, one that was altered, a name that is none, no token, no right, no Hub.
        ConfigError: a licence or a revision that cannot be one.
    """
    _check_choices(repo_id, revision, license)
    # One that cannot go is refused before all else.
    first = for_repository(folder, name=repo_id, license=license, backbone=backbone)
    secret = _access(token)
    api = HfApi(token=secret, library_name="ptuning")
    try:
        name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
        _validate(first[CARD].decode())  # before a repository is made for it
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
            commit_message=commit_message or "Upload an adapter of ptuning",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    except AdapterError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        found = _answer(error)
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            message = f"the Hub did not take the adapter: {_line(error, secret)}; mend that and push again"
        elif isinstance(found, HfHubHTTPError):
            message = _refusal(found, repo_id, revision, writer=_user(api, found))
        elif isinstance(found, HTTPError):
            message = f"{_silence(found, secret)}; nothing was changed there"
        else:
            message = f"{repo_id!r} was not pushed: {_line(error, secret)}; try again"
        raise AdapterError(message) from error
    return str(done.pr_url or done.commit_url)


def _validate(card: str) -> None:
    """Ask the Hub whether it takes the card's metadata.

    Raises:
        ValueError: it does not; what it says of them.
    """
    try:
        RepoCard(card).validate(repo_type="model")
    except ValueError as error:
        try:
            said = "; ".join(each["message"] for each in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            said = str(error)
        raise ValueError(f"Invalid metadata in README.md: {said}") from error


def _check_choices(repo_id: str, revision: str | None, license: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise AdapterError(
            f"got {repo_id!r}, expected a Hub id such as 'owner/name' (letters, digits, '-', '_' and '.')"
        ) from error
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ConfigError(
            f"revision: got the commit {revision}, which nothing can be added to; expected a branch"
        )
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ConfigError(
            f"license: got {license!r}, expected an identifier of the Hub's such as 'apache-2.0' or 'mit'; "
            f"all of them: {_LICENCES}"
        )


def _access(token: str | bool | None) -> str:
    """The access token, where there is one and a Hub to show it to."""
    if hub_out_of_reach():
        raise AdapterError(f"nothing was pushed: {_why_out_of_reach()}")
    secret = token if isinstance(token, str) else None if token is False else get_token()
    if not secret:
        raise AdapterError(f"a push needs an access token of the Hub, and there is none; {_LOGIN}")
    if not re.fullmatch("[!-~]+", secret):
        raise AdapterError(
            "the Hub's access token holds blanks or letters that no token has; copy it again from "
            f"{constants.ENDPOINT}/settings/tokens"
        )
    return secret


def _prepare(api: HfApi, name: str, private: bool | None, branch: str | None) -> str | None:
    """Make repository and branch where they are missing; returns the commit to build on."""
    api.create_repo(name, private=private, exist_ok=True)
    found = api.model_info(name)
    if private is not None and found.private is not None and found.private != private:
        now, wanted = ("private", "public") if found.private else ("public", "private")
        raise AdapterError(
            f"the Hub repository {name!r} exists and is {now}, and a push changes no visibility; make it "
            f"{wanted} at {constants.ENDPOINT}/{name}/settings, or do not ask for that"
        )
    names = {file.rfilename for file in found.siblings or ()}
    if RECORD not in names and (other := sorted({"config.json", CONFIG} & names)):
        raise AdapterError(
            f"the Hub repository {name!r} holds {other[0]} and no {RECORD}, so it is something else, which "
            "an adapter would spoil; push to another name"
        )
    if branch is None or branch == constants.DEFAULT_REVISION:
        return found.sha
    if not branch.startswith("refs/"):  # a pull request's is there already
        api.create_branch(name, branch=branch, exist_ok=True)
    return api.model_info(name, revision=branch).sha


def _user(api: HfApi, refusal: HfHubHTTPError) -> str | None:
    """Whose token was refused for want of a right, if the Hub says so."""
    if refusal.response.status_code != 403:
        return None
    try:
        return str(api.whoami()["name"])
    except (HTTPError, OSError, KeyError):
        return None


# ---------------------------------------------------------------------------------- what went wrong


def _refusal(error: HfHubHTTPError, name: str, revision: str | None, writer: str | None = None) -> str:
    """What the Hub's answer means for whoever asked, and what to do about it."""
    page, tokens = f"{constants.ENDPOINT}/{name}", f"{constants.ENDPOINT}/settings/tokens"
    status = error.response.status_code
    if isinstance(error, GatedRepoError):  # before its parent, RepositoryNotFoundError
        return (
            f"the Hub repository {name!r} is gated; ask for access at {page}, then log in with: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub has no such repository, or it is private; check the name, or log in with: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub repository {name!r} has no revision {revision!r}; leave it out for the newest"
    if status == 401:
        return (
            f"the Hub does not accept the access token; {_LOGIN} to one from {tokens} (HF_TOKEN wins over "
            "the login)"
        )
    if status == 403:
        return (
            f"{f'the user {writer!r}' if writer else 'this access token'} has no right to do this with the "
            f"Hub repository {name!r}; use a token with that right ({tokens}), ask the repository's owner, "
            "or take a name of your own"
        )
    if status in (409, 412):
        return (
            f"the Hub repository {name!r} was changed by somebody else at the same time, so nothing was "
            f"pushed; look at {page}, then push again"
        )
    if status == 429:
        return "the Hub has had too many requests from here; wait some minutes, then try again"
    if status >= 500:
        return f"the Hub failed (HTTP {status}), which is not your doing; try again later"
    at = f" at revision {revision!r}" if revision else ""
    return f"the Hub refused {name!r}{at} (HTTP {status}); look at {page}, mend that and try again"


def _answer(error: BaseException) -> BaseException:
    """The Hub's answer, or the lack of one, behind an error that the client made of it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, HTTPError):
        inner = inner.__cause__
    return error if inner is None else inner


def _why_out_of_reach() -> str:
    if constants.HF_HUB_OFFLINE:
        return (
            "the Hub is out of reach because offline mode is on; unset HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE"
        )
    host = urlsplit(constants.ENDPOINT).hostname
    return f"the Hub is out of reach ({host} does not answer); check the connection"


def _silence(error: BaseException, token: str | bool | None) -> str:
    return (
        f"the Hub at {constants.ENDPOINT} gives no answer ({_line(error, token)}); check the connection, "
        "then try again"
    )


def _line(error: BaseException, token: str | bool | None = None) -> str:
    """What an error says, as one line without the access token."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    secret = token if isinstance(token, str) else get_token()
    return text.replace(secret, "(the token)") if secret else text
