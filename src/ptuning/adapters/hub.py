"""Where an adapter is: a local folder, or a repository of the Hub, fetched into its cache."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ptuning.adapters.folder import OWN_FILES, RECORD, details
from ptuning.errors import AdapterError


@cache
def hub_out_of_reach() -> bool:
    """Whether the Hub's name cannot even be looked up, so that only its cache can serve.

    A client that does not know would try again and again for most of a minute. Behind a proxy the name
    need not be known here, so there nothing is concluded.
    """
    if constants.HF_HUB_OFFLINE:
        return True
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def locate(name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The local folder of an adapter, downloaded first if need be.

    Args:
        name_or_path: A folder, which wins over a repository of the same name; or a Hub id
            such as ``"someone/refunds"``.
        revision: A branch, tag or commit of the Hub; of no meaning for a folder.
        token: The Hub's access token; the one that was logged in with if ``None``.

    Raises:
        AdapterError: neither a folder nor a repository in reach; says what to do.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    if (
        isinstance(name_or_path, Path)
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
    ):
        details(path)  # it can only be meant as a folder: let its absence be explained
    folder = Path(_download(name, revision, token))
    if not (folder / RECORD).is_file():
        raise AdapterError(
            f"the Hub repository {name!r} holds no {RECORD}, so it is no adapter of ptuning's; "
            "a PEFT adapter is loaded with peft.PeftModel.from_pretrained"
        )
    return folder


def _download(name: str, revision: str | None, token: str | bool | None) -> str:
    at = f" at revision {revision!r}" if revision else ""
    try:
        return snapshot_download(
            name,
            revision=revision,
            token=token,
            allow_patterns=list(OWN_FILES),
            local_files_only=hub_out_of_reach(),
        )
    except HFValidationError as error:
        raise AdapterError(
            f"no adapter {name!r}: there is no such folder, and it is no Hub id of the form 'owner/name'"
        ) from error
    except GatedRepoError as error:  # before its parent, RepositoryNotFoundError
        raise AdapterError(
            f"the Hub repository {name!r} is gated; ask for access at https://huggingface.co/{name}, "
            "then log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise AdapterError(
            f"no adapter {name!r}: there is no such folder, and the Hub has no such repository, or it is "
            "private; check the name, or log in with: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise AdapterError(
            f"the Hub repository {name!r} has no revision {revision!r}; leave it out for the newest"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise AdapterError(
            f"no adapter {name!r}{at}: there is no such folder, it is not in the Hub's cache, and the Hub is "
            "out of reach; check the name and the connection, and unset HF_HUB_OFFLINE if it is set"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise AdapterError(
            f"the Hub repository {name!r}{at} could not be fetched: {reason}; try again"
        ) from error
