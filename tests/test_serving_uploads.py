"""Adapters that are sent: unpacked with care, verified before they are served, and all or nothing."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import hub_server
from hub_server import Hub
from ptuning import DeepPrompt, PTuningModel, Task, adapters
from ptuning.errors import AdapterError, AdapterTooLarge
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from ptuning.serving.limits import HttpSettings
from ptuning.serving.uploads import unpack
from serving_fake import FakeService
from tiny import tiny

ADMIN = {"authorization": "Bearer sixteen-characters"}
ZIP = {**ADMIN, "content-type": "application/zip"}
TAR = {**ADMIN, "content-type": "application/x-tar"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "support"
    task = Task(problem_type="single_label_classification", labels=("a", "b"))
    PTuningModel.from_backbone(
        tiny("bert", num_labels=2), DeepPrompt(num_virtual_tokens=3), task=task
    ).save_pretrained(folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(info)
            archive.writestr(info, data)
    return made.getvalue()


def tarred(files: dict[str, bytes], *links: tuple[str, str, bytes], mode: str = "w") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.linkname, info.type = target, kind
            archive.addfile(info)
    return made.getvalue()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "served"


@pytest.fixture
def client(service: FakeService, folder: Path) -> Iterator[TestClient]:
    settings = HttpSettings(max_upload_bytes=300_000)
    keys = Keys(admin_key="sixteen-characters")
    with TestClient(make_app(service, keys, settings, folder=folder), raise_server_exceptions=False) as made:
        yield made


def nothing_is_left(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("inner", ["", "support/", "./"])
@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_an_archive_becomes_a_task(
    client: TestClient, folder: Path, adapter: Path, mode: str, inner: str
) -> None:
    files = {f"{inner}{name}": data for name, data in files_of(adapter).items()}
    body = zipped(files) if mode == "zip" else tarred(files, mode=mode)
    answer = client.put("/tasks/support", content=body, headers=ZIP if mode == "zip" else TAR)
    assert answer.status_code == 200, answer.text
    assert answer.json()["task"] == "support"
    assert answer.headers["x-task-digest"] == answer.json()["digest"]
    assert files_of(folder / "support") == files_of(adapter)
    assert [each.name for each in folder.iterdir()] == ["support"]
    assert client.post("/tasks/support", json={"inputs": "fine"}).status_code == 200
    assert (
        client.put("/tasks/support", content=body, headers=ZIP if mode == "zip" else TAR).status_code == 200
    )
    assert client.delete("/tasks/support", headers=ADMIN).status_code == 204
    assert nothing_is_left(folder)
    assert client.post("/tasks/support", json={"inputs": "fine"}).status_code == 404


def test_a_form_with_a_file(client: TestClient, folder: Path, adapter: Path) -> None:
    body = zipped(files_of(adapter))
    answer = client.put("/tasks/support", files={"adapter": ("support.zip", body)}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    assert adapters.is_adapter(folder / "support")
    form = {**ADMIN, "content-type": "multipart/form-data; boundary=x"}
    empty = client.put("/tasks/other", content=b"--x--", headers=form)
    assert empty.status_code in (400, 422)


def symbolic(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def damaged(data: bytes, place: int, replacement: bytes) -> bytes:
    return data[:place] + replacement + data[place + len(replacement) :]


def long_name(kind: bytes) -> bytes:
    """A tar whose first member has 300 kB of attributes or name, packed to few bytes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 300_000
    return gzip.compress(info.tobuf() + b"\0" * 400_000)


PACKED = {"ptuning.json": b"{}" * 5000}
BAD = {
    "a zip with wrong data": damaged(zipped(PACKED), 45, b"\xff" * 15),
    "a tar.gz with a wrong checksum": tarred(PACKED, mode="w:gz")[:-8] + b"\0" * 8,
    "a cut tar.gz": tarred(PACKED, mode="w:gz")[:60],
    "a tar.xz with wrong data": damaged(tarred(PACKED, mode="w:xz"), 60, b"\xff" * 15),
    "a cut tar.xz": tarred(PACKED, mode="w:xz")[:60],
    "a tar.bz2 with wrong data": damaged(tarred(PACKED, mode="w:bz2"), 60, b"\xff" * 15),
    "attributes without end": long_name(tarfile.XHDTYPE),
    "attributes of all without end": long_name(tarfile.XGLTYPE),
    "a name without end": long_name(tarfile.GNUTYPE_LONGNAME),
    "many folders": zipped({f"{number}/": b"" for number in range(200)}),
    "many folders in a tar": tarred({}, *((f"{number}", "", tarfile.DIRTYPE) for number in range(200))),
    "not an archive": b"hello",
    "an empty body": b"",
    "a cut zip": zipped({"ptuning.json": b"{}" * 100})[:60],
    "an empty zip": zipped({}),
    "no adapter": zipped({"a.txt": b"a"}),
    "above the folder": zipped({"../escaped": b"x"}),
    "an absolute path": zipped({"/tmp/escaped": b"x"}),
    "a path of Windows": zipped({"..\\escaped": b"x"}),
    "a link": zipped({"ptuning.json": b"/etc/passwd"}, symbolic),
    "a link in a tar": tarred({}, ("ptuning.json", "/etc/passwd", tarfile.SYMTYPE)),
    "a hard link in a tar": tarred({}, ("ptuning.json", "/etc/passwd", tarfile.LNKTYPE)),
    "a device in a tar": tarred({}, ("ptuning.json", "", tarfile.CHRTYPE)),
    "above the folder, in a tar": tarred({"../escaped": b"x"}),
    "many files": zipped({f"{number}": b"" for number in range(200)}),
    "a bomb": zipped({"adapter_model.safetensors": b"\0" * 2_000_000}),
    "a bomb in a tar": tarred({"adapter_model.safetensors": b"\0" * 2_000_000}, mode="w:gz"),
    "a file in place of a folder": zipped({"a": b"", "a/b": b""}),
    "a long name": zipped({"a" * 300: b""}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused(client: TestClient, folder: Path, name: str, tmp_path: Path) -> None:
    for headers in (ZIP, TAR):
        answer = client.put("/tasks/support", content=BAD[name], headers=headers)
        status, kind = (413, "adapter_too_large") if "bomb" in name else (422, "invalid_adapter")
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["type"] == kind
    assert nothing_is_left(folder)
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/escaped").exists()
    assert client.get("/tasks/support").status_code == 404


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_a_long_list_of_files_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comment: bytes
) -> None:
    archive = io.BytesIO(zipped({f"{number:0200}": b"" for number in range(1000)}))
    with zipfile.ZipFile(archive, "a") as opened:
        opened.comment = comment
    file = tmp_path / "archive"
    file.write_bytes(archive.getvalue())
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(AdapterError, match="more than 100 files"):
        unpack(file, tmp_path, 1 << 20)


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(["zip", "w", "w:gz", "w:bz2", "w:xz"]),
    place=st.integers(0, 600),
    replacement=st.binary(max_size=20),
    end=st.integers(1, 11_000),
)
def test_a_damaged_archive_is_read_or_refused(mode: str, place: int, replacement: bytes, end: int) -> None:
    whole = zipped(PACKED) if mode == "zip" else tarred(PACKED, mode=mode)
    with TemporaryDirectory() as made:
        file, folder = Path(made, "archive"), Path(made, "folder")
        folder.mkdir()
        file.write_bytes(damaged(whole, place, replacement)[:end])
        with suppress(AdapterError):
            unpack(file, folder, 1 << 20)


def test_a_folder_that_is_no_adapter_stays(
    client: TestClient, service: FakeService, folder: Path, adapter: Path
) -> None:
    other = folder / "sentiment"  # a task from elsewhere has this name
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("years of work")
    answer = client.put("/tasks/sentiment", content=zipped(files_of(adapter)), headers=ZIP)
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "not_an_adapter")
    assert service.tasks.served["sentiment"].digest == "sentiment-1"
    assert client.delete("/tasks/sentiment", headers=ADMIN).status_code == 204
    assert files_of(other) == {"thesis.txt": b"years of work"}


def test_an_adapter_is_loaded_once(
    client: TestClient, service: FakeService, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    put = service.tasks.put

    async def counted(name: str, *given: Any) -> Any:
        loads.append(name)
        return await put(name, *given)

    monkeypatch.setattr(service.tasks, "put", counted)
    assert client.put("/tasks/support", content=zipped(files_of(adapter)), headers=ZIP).status_code == 200
    assert loads == ["support"]
    assert service.tasks.served["support"].source == str(folder / "support")


def test_the_body_is_written_in_a_thread(
    client: TestClient, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> None:
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            self.stream.write(data)
            writes.append(len(data))

    writes: list[int] = []
    usual = Path.open

    def opened(self: Path, mode: str = "r", *given: Any, **options: Any) -> Any:
        stream = usual(self, mode, *given, **options)
        return Watched(stream) if self.name == "archive" and mode == "wb" else stream

    monkeypatch.setattr(Path, "open", opened)
    body = zipped(files_of(adapter))
    assert client.put("/tasks/support", content=body, headers=ZIP).status_code == 200
    assert client.put("/tasks/support", files={"a": ("a.zip", body)}, headers=ADMIN).status_code == 200
    assert sum(writes) == 2 * len(body)


def test_a_zip_that_lies_about_its_sizes(tmp_path: Path) -> None:
    body = bytearray(zipped({"a": b"\0" * 50_000}))
    for place in (22, body.rindex(b"PK\x01\x02") + 24):
        body[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "archive").write_bytes(body)
    (tmp_path / "new").mkdir()
    with pytest.raises(AdapterError):
        unpack(tmp_path / "archive", tmp_path / "new", 1000)
    assert sum(each.stat().st_size for each in (tmp_path / "new").iterdir()) <= 1000


def test_an_altered_adapter_is_refused_and_the_old_one_stays(
    client: TestClient, folder: Path, adapter: Path
) -> None:
    files = files_of(adapter)
    assert client.put("/tasks/support", content=zipped(files), headers=ZIP).status_code == 200
    digest = client.get("/tasks/support").json()["digest"]
    for name in files:
        altered = {**files, name: files[name][:-10] + b"0123456789"}
        answer = client.put("/tasks/support", content=zipped(altered), headers=ZIP)
        assert answer.status_code == 422, name
    assert files_of(folder / "support") == files
    assert client.get("/tasks/support").json()["digest"] == digest


def test_an_adapter_for_another_backbone(
    client: TestClient, service: FakeService, folder: Path, adapter: Path
) -> None:
    service.tasks.refuse = lambda place: "it was trained on another backbone"
    answer = client.put("/tasks/support", content=zipped(files_of(adapter)), headers=ZIP)
    assert answer.status_code == 422
    assert "another backbone" in answer.json()["error"]["message"]
    assert nothing_is_left(folder)


@pytest.mark.parametrize("name", [".hidden", "a b", "x" * 129, "ä", "..", "%2e%2e", "a%5cb"])
def test_a_bad_name(client: TestClient, folder: Path, adapter: Path, name: str) -> None:
    answer = client.put(f"/tasks/{name}", content=zipped(files_of(adapter)), headers=ZIP)
    assert answer.status_code in (404, 405, 422)
    assert nothing_is_left(folder)


def test_another_content_type(client: TestClient) -> None:
    answer = client.put("/tasks/support", content=b"x", headers={**ADMIN, "content-type": "text/html"})
    assert answer.status_code == 415
    assert "application/zip" in answer.json()["error"]["message"]


def test_too_many_bytes(client: TestClient, folder: Path, adapter: Path) -> None:
    answer = client.put("/tasks/support", content=b"x" * 400_000, headers=ZIP)
    assert answer.status_code == 413
    packed = zipped({**files_of(adapter), "README.md": b" " * 400_000})
    assert len(packed) < 300_000
    answer = client.put("/tasks/support", content=packed, headers=ZIP)
    assert answer.status_code == 413
    assert "the archive's files have more than 300,000 bytes" in answer.json()["error"]["message"]
    assert nothing_is_left(folder)


# ------------------------------------------------------------------------------------- a full disk


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_while_unpacking(
    client: TestClient, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptuning.serving.uploads._write", full)
    answer = client.put("/tasks/support", content=zipped(files_of(adapter)), headers=ZIP)
    assert answer.status_code == 507
    assert answer.json()["error"]["type"] == "disk_full"
    assert "No space left" in answer.json()["error"]["message"]
    assert nothing_is_left(folder)
    assert client.get("/tasks/support").status_code == 404


def test_a_disk_that_is_full_while_the_body_arrives(
    client: TestClient, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        stream = real(self, *args, **kwargs)
        if self.name == "archive" and args and args[0] == "wb":

            class Full(io.RawIOBase):
                def write(self, data: Any) -> int:
                    full()
                    return 0

            stream.close()
            return Full()
        return stream

    monkeypatch.setattr(Path, "open", opened)
    answer = client.put("/tasks/support", content=zipped(files_of(adapter)), headers=ZIP)
    assert answer.status_code == 507
    assert nothing_is_left(folder)


@pytest.mark.parametrize("before", [False, True])
def test_a_disk_that_is_full_while_it_is_put_in_place(
    client: TestClient, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    body = zipped(files_of(adapter))
    if before:
        assert client.put("/tasks/support", content=body, headers=ZIP).status_code == 200
    monkeypatch.setattr("ptuning.adapters.atomic._put", full)
    answer = client.put("/tasks/support", content=body, headers=ZIP)
    assert answer.status_code == 507
    monkeypatch.undo()
    assert client.get("/tasks/support").status_code == (200 if before else 404)
    if before:
        assert files_of(folder / "support") == files_of(adapter)
        assert [each.name for each in folder.iterdir()] == ["support"]
    else:
        assert nothing_is_left(folder)


def test_a_folder_without_permission(
    client: TestClient, folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    monkeypatch.setattr("ptuning.serving.protocols.tasks.tempfile.TemporaryDirectory", _Place)
    _Place.path = folder.parent / "received"
    _Place.path.mkdir()
    answer = client.put("/tasks/support", content=zipped(files_of(adapter)), headers=ZIP)
    assert answer.status_code == 500
    assert "Permission denied" in answer.json()["error"]["message"]


class _Place:
    """A temporary folder that needs no ``mkdtemp``."""

    path: Path

    def __init__(self, **_: Any) -> None: ...

    def __enter__(self) -> str:
        return str(self.path)

    def __exit__(self, *_: object) -> None: ...


# ------------------------------------------------------------------------------------------ the Hub


def test_an_adapter_from_the_hub(
    client: TestClient, folder: Path, adapter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_someone")
    adapters.push(adapter, "someone/support", backbone="someone/bert")
    answer = client.put("/tasks/mine", json={"hub_id": "someone/support"}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    assert adapters.is_adapter(folder / "mine")
    missing = client.put("/tasks/mine", json={"hub_id": "someone/nothing"}, headers=ADMIN)
    assert missing.status_code == 422
    assert adapters.is_adapter(folder / "mine")


def downloads(hub: Hub) -> list[str]:
    return [each for each in hub.requests if each.startswith("GET") and "/resolve/" in each]


def test_a_large_adapter_on_the_hub_is_not_downloaded(
    client: TestClient, folder: Path, adapter: Path, hub: Hub
) -> None:
    made = hub.add_folder("someone/large", adapter)
    made.commit({**files_of(adapter), "README.md": b" " * 300_000, "model.safetensors": b"other"}, "grown")
    answer = client.put("/tasks/mine", json={"hub_id": "someone/large"}, headers=ADMIN)
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "adapter_too_large"
    size = sum(len(data) for name, data in made.files().items() if name != "model.safetensors")
    assert f"got {size:,} bytes, expected at most 300,000" in answer.json()["error"]["message"]
    assert downloads(hub) == []
    assert nothing_is_left(folder)


LARGE = 30_000_000
"""Bytes of a file whose listed size is wrong."""


def test_a_download_that_is_larger_than_listed_ends(
    client: TestClient, folder: Path, adapter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, send = hub_server.entry, hub_server.Handler.send

    def shorter(handler: Any, status: int, content: bytes, **headers: str) -> None:
        small = handler.command == "HEAD" and len(content) == LARGE
        send(handler, status, content[:9] if small else content, **headers)

    def entry(path: str, data: bytes) -> dict[str, Any]:
        return listed(path, data) | ({"size": 9} if len(data) == LARGE else {})

    monkeypatch.setattr(hub_server, "entry", entry)
    monkeypatch.setattr(hub_server.Handler, "send", shorter)
    made = hub.add_folder("someone/large", adapter)
    made.commit({**files_of(adapter), "README.md": b" " * LARGE}, "grown")
    answer = client.put("/tasks/mine", json={"hub_id": "someone/large"}, headers=ADMIN)
    assert answer.status_code == 413, answer.text
    assert "expected at most 300,000" in answer.json()["error"]["message"]
    assert downloads(hub) != []
    kept = [file for file in Path(constants.HF_HUB_CACHE).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in kept) < 300_000
    assert nothing_is_left(folder)


def test_the_limit_is_for_copies_in_the_cache_too(
    adapter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder("someone/support", adapter)
    assert adapters.locate("someone/support", max_bytes=300_000).is_dir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert adapters.locate("someone/support", max_bytes=300_000).is_dir()
    with pytest.raises(AdapterTooLarge, match="expected at most 100"):
        adapters.locate("someone/support", max_bytes=100)


@pytest.mark.parametrize("hub_id", ["/etc", "../x", "a", "a/b/c", "./a", "~/a", "made/support", "", "C:\\a"])
def test_no_path_comes_from_a_request(
    client: TestClient,
    folder: Path,
    adapter: Path,
    hub_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, tmp_path / "made" / "support")
    answer = client.put("/tasks/mine", json={"hub_id": hub_id}, headers=ADMIN)
    assert answer.status_code == 422
    assert "OWNER/NAME" in answer.json()["error"]["message"]
    assert nothing_is_left(folder)


def test_without_a_folder_uploads_end_with_the_server(service: FakeService, adapter: Path) -> None:
    keys = Keys(admin_key="sixteen-characters")
    with TestClient(make_app(service, keys)) as client:
        assert client.put("/tasks/support", content=zipped(files_of(adapter)), headers=ZIP).status_code == 200
        place = Path(service.tasks.served["support"].source)
        assert place.is_dir()
    assert not place.exists()
    assert not os.path.exists(place.parent)
