"""Keys: hashed at rest, each for some tasks, read again after a change."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ptuning.errors import ConfigError
from ptuning.serving.app import make_app
from ptuning.serving.keys import Caller, Keys, digest, make_key, read_keys
from ptuning.serving.rows import Refusal
from serving_fake import FakeService


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_shown_once_and_kept_as_a_digest(file: Path) -> None:
    key = make_key(file, "team", tasks=("sst2", "mrpc-*"))
    assert re.fullmatch(r"ptk_[\w-]{43}", key)
    assert key not in file.read_text()
    assert digest(key) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = make_key(file, "ops", admin=True)
    assert read_keys(file) == {
        digest(key): Caller(name="team", tasks=("sst2", "mrpc-*")),
        digest(other): Caller(name="ops", admin=True),
    }
    with pytest.raises(ConfigError, match="taken"):
        make_key(file, "team")
    with pytest.raises(ConfigError, match="letters"):
        make_key(file, "a\n[b]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "invalid TOML"),
        ("a = 1", "valid dictionary"),
        ("[a]", "sha256"),
        ("[a]\nsha256 = 'abc'", "sha256"),
        (f"[a]\nsha256 = '{'0' * 64}'\nkey = 'secret'", "key"),
        (f"[a]\nsha256 = '{'0' * 64}'\nadmin = 1", "admin"),
        (f"[a]\nsha256 = '{'0' * 64}'\n[b]\nsha256 = '{'0' * 64}'", "same key"),
        (f"['']\nsha256 = '{'0' * 64}'", "letters"),
        ("\xff", "invalid TOML"),
    ],
)
def test_a_damaged_file_is_refused(file: Path, text: str, words: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=words):
        Keys(file=file)


def test_a_missing_file_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Keys(file=file)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "ptk_x", "Bearer wrong", "Bearer \udcff"]
)
def test_who_has_no_key_is_refused(file: Path, header: str | None) -> None:
    make_key(file, "team")
    with pytest.raises(Refusal) as caught:
        Keys(file=file).caller(header)
    assert caught.value.status == 401


def test_every_known_digest_is_compared(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time says nothing about which key it was, or how much of it was right."""
    made = [make_key(file, f"k{number}") for number in range(5)]
    keys = Keys(file=file)
    seen: list[str] = []

    def compare(known: str, given: str) -> bool:
        seen.append(known)
        return known == given

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert keys.caller(f"Bearer {made[0]}").name == "k0"
    assert seen == [digest(key) for key in made]


def test_the_file_is_read_again_after_a_change(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    first = make_key(file, "first")
    keys = Keys(file=file, clock=lambda: now[0])
    second = make_key(file, "second")
    now[0] = 2.0
    assert keys.caller(f"Bearer {second}").name == "second"
    file.write_text("[broken")
    now[0] = 4.0
    assert keys.caller(f"Bearer {first}").name == "first"  # and it is logged
    assert "invalid TOML" in caplog.text
    file.write_text(f"[third]\nsha256 = '{digest(second)}'\n")
    now[0] = 6.0
    assert keys.caller(f"Bearer {second}").name == "third"
    with pytest.raises(Refusal):
        keys.caller(f"Bearer {first}")


def test_without_a_file_nobody_needs_a_key_but_for_changes() -> None:
    assert Keys().caller(None) == Caller()
    assert Keys().caller("Bearer placeholder") == Caller()
    keys = Keys(admin_key="sixteen-characters")
    assert not keys.caller(None).admin
    assert keys.caller("Bearer sixteen-characters").admin
    with pytest.raises(ConfigError, match="16 or more"):
        Keys(admin_key="short")


# ------------------------------------------------------------------------------------ over HTTP


@pytest.fixture
def key(file: Path) -> str:
    return make_key(file, "team", tasks=("senti*",))


@pytest.fixture
def client(file: Path, key: str) -> Iterator[TestClient]:
    with TestClient(make_app(FakeService(), Keys(file=file, admin_key="sixteen-characters"))) as made:
        yield made


def test_a_key_sees_its_own_tasks_alone(client: TestClient, key: str) -> None:
    assert client.post("/tasks/sentiment", json={"inputs": "fine"}, headers=bearer(key)).status_code == 200
    assert [each["task"] for each in client.get("/tasks", headers=bearer(key)).json()["tasks"]] == [
        "sentiment"
    ]
    assert [each["id"] for each in client.get("/models", headers=bearer(key)).json()["data"]] == ["sentiment"]
    rows = client.post("/v1/rows", json={"text": "fine", "tasks": "*"}, headers=bearer(key)).json()["rows"]
    assert [each["task"] for each in rows] == ["sentiment"]
    assert client.get("/v1/info", headers=bearer(key)).json()["tasks"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/tasks/{}", {"inputs": "fine"}),
        ("POST", "/tasks/{}/predict", {"inputs": "fine"}),
        ("GET", "/tasks/{}", None),
        ("GET", "/tasks/{}/info", None),
        ("GET", "/v2/models/{}", None),
        ("GET", "/v2/models/{}/ready", None),
        ("POST", "/v2/models/{}/infer", {"inputs": []}),
    ],
)
def test_the_tasks_of_others_are_unknown(
    client: TestClient, key: str, method: str, path: str, body: object
) -> None:
    """The same answer as for a task that nobody has, but for the name."""
    answers = []
    for task in ("topics", "topicz"):
        found = client.request(method, path.format(task), json=body, headers=bearer(key))
        assert found.status_code == 404
        answers.append((found.text.replace(task, "NAME"), {**found.headers, "x-request-id": ""}))
    assert answers[0] == answers[1]


def test_rows_and_model_of_others_are_unknown(client: TestClient, key: str) -> None:
    rows = {"rows": [{"task": "topics", "text": "a"}, {"task": "topicz", "text": "a"}]}
    found = [each["error"] for each in client.post("/v1/rows", json=rows, headers=bearer(key)).json()["rows"]]
    assert found[0]["message"].replace("topics", "topicz") == found[1]["message"]
    for path in ("/classify", "/v1/classify"):
        body = {"model": "topics", "input": "fine"}
        assert client.post(path, json=body, headers=bearer(key)).status_code == 404


OPEN = {"/health", "/ready", "/v2/health/live", "/v2/health/ready"}


def test_every_other_path_needs_a_key(client: TestClient) -> None:
    """Whatever is added later is found here, too."""
    paths = client.get("/openapi.json").json()["paths"]
    free = set()
    for path, methods in paths.items():
        for method in methods:
            sent = client.request(method, path.replace("{task}", "sentiment"), content="{")
            if sent.status_code != 401:
                free.add(path)
            else:
                assert sent.headers["www-authenticate"] == "Bearer"
    assert free == OPEN


def test_an_error_of_authentication_has_the_protocols_shape(client: TestClient) -> None:
    body = {"inputs": "a", "model": "a", "input": "a"}
    assert set(client.post("/tasks/x", json=body).json()) == {"error", "error_type"}
    assert client.post("/classify", json=body).json()["error"]["code"] == 401
    assert isinstance(client.get("/v2/models/x").json()["error"], str)


def test_changes_need_an_admin_key(client: TestClient, key: str) -> None:
    assert client.delete("/tasks/sentiment").status_code == 401
    assert client.delete("/tasks/sentiment", headers=bearer(key)).status_code == 403
    assert client.get("/metrics", headers=bearer(key)).status_code == 403
    assert client.get("/metrics", headers=bearer("sixteen-characters")).status_code == 200
    assert client.delete("/tasks/sentiment", headers=bearer("sixteen-characters")).status_code == 204
    assert client.get("/tasks/sentiment", headers=bearer(key)).status_code == 404


def test_an_admin_key_of_some_tasks_changes_no_others(file: Path) -> None:
    scoped = bearer(make_key(file, "scoped", tasks=("support-*",), admin=True))
    with TestClient(make_app(FakeService(), Keys(file=file))) as client:
        headers = {**scoped, "content-type": "application/zip"}
        refused = client.put("/tasks/sentiment", content=b"x", headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "forbidden")
        assert client.put("/tasks/support-1", content=b"x", headers=headers).status_code == 422
        assert client.delete("/tasks/sentiment", headers=scoped).status_code == 404
        assert client.get("/metrics", headers=scoped).status_code == 403
        assert client.get("/v1/info", headers=scoped).json()["tasks"] == 0


def test_without_an_admin_key_nothing_can_be_changed() -> None:
    with TestClient(make_app(FakeService(), Keys())) as client:
        refused = client.delete("/tasks/sentiment")
        assert refused.status_code == 403
        assert "no admin key" in refused.json()["error"]["message"]
