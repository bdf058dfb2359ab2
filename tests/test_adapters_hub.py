"""Where an adapter is found: folders, and the Hub's answers turned into one clear sentence each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ptuning.adapters import hub, load, locate, save
from ptuning.errors import AdapterError
from test_adapters_record import an_adapter

RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=500)
"""As much of an HTTP response as the Hub's errors look at."""


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = save(an_adapter(), tmp_path / "adapter")
    assert locate(folder) == locate(str(folder)) == folder


def test_a_folder_wins_over_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(an_adapter(), tmp_path / "someone" / "refunds")
    monkeypatch.chdir(tmp_path)
    assert locate("someone/refunds") == Path("someone/refunds")


@pytest.mark.parametrize("name", ["./adapter", "/nowhere/adapter", "a/b/c", Path("someone/refunds")])
def test_a_path_is_not_looked_up(name: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", None)
    with pytest.raises(
        AdapterError, match=r"there is no such folder, expected a folder with adapter_config.json"
    ):
        locate(name)


def test_what_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(an_adapter(), tmp_path / "snapshot")
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    load(locate("someone/refunds", revision="v1", token="t"))
    assert asked == {
        "name": "someone/refunds",
        "local_files_only": hub.hub_out_of_reach(),
        "revision": "v1",
        "token": "t",
        "allow_patterns": ["adapter_config.json", "adapter_model.safetensors", "ptuning.json", "README.md"],
    }


def test_a_repository_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(hub, "hub_out_of_reach", lambda: False)
    with pytest.raises(AdapterError, match=r"'someone/lora' has neither ptuning.json nor an adapter of PEFT"):
        locate("someone/lora")


@pytest.mark.parametrize("config", [None, '{"peft_type": "P_TUNING"}'])
def test_a_part_of_a_repository_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        AdapterError, match=r"'someone/refunds': the Hub's cache has no complete copy, and the"
    ):
        locate("someone/refunds")


def test_what_peft_wrote_is_fetched_and_its_pickle_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "P_TUNING"}')
    asked: list[list[str]] = []

    def download(_: str, *, allow_patterns: list[str], **__: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "hub_out_of_reach", lambda: False)
    with pytest.raises(AdapterError, match=r"is a PEFT adapter without adapter_model.safetensors; .* trust"):
        locate("someone/lora")
    assert locate("someone/lora", allow_pickle=True) == tmp_path
    assert ["adapter_model.bin" in files for files in asked] == [False, True]
    (tmp_path / "adapter_model.safetensors").touch()
    assert locate("someone/lora") == tmp_path


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            GatedRepoError("no", response=RESPONSE),
            rf"is gated; ask for access at {constants.ENDPOINT}/some/one",
        ),
        (
            RepositoryNotFoundError("no", response=RESPONSE),
            r"the Hub has no such repository, or it is private",
        ),
        (
            RevisionNotFoundError("no", response=RESPONSE),
            r"has no revision 'v9'; leave it out for the newest",
        ),
        (
            LocalEntryNotFoundError("no"),
            r"at revision 'v9': .*the Hub is not reachable because offline mode .*; unset .*; check the",
        ),
        (
            OfflineModeIsEnabled("no"),
            r"because offline mode is on; unset HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE",
        ),
        (
            HfHubHTTPError("Server\nerror.", response=RESPONSE),
            r"the Hub failed \(HTTP 500\), which is not your fault; try again later",
        ),
        (
            OSError(28, "No space left on device"),
            r"could not be fetched: .*No space left on device; try again",
        ),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",  # no port in a name
)
def test_the_hubs_answers(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(AdapterError, match=message) as caught:
        locate("some/one", revision="v9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["two words", "a--b/c..d", "-x"])
def test_no_name_of_the_hub(name: str) -> None:
    with pytest.raises(AdapterError, match=r"not a Hub id of the form 'owner/name'"):
        locate(name)


def test_offline_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.known.cache_clear()
    with pytest.raises(
        AdapterError, match="the Hub's cache has no complete copy, and the Hub is not reachable because"
    ):
        locate("someone/refunds")
