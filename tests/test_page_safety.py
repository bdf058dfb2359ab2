"""The server's page and what it must not do: run what others write, leave this host, show another's tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from page_fake import CARD, HOSTILE, PART, FakeService, Parsed, page_client, text_of
from ptuning.serving.keys import RECHECK_SECONDS, Keys, digest, make_key
from ptuning.serving.page.cards import card_html
from ptuning.serving.page.sessions import COOKIE, Sessions, SignedSessions
from ptuning.serving.rows import Refusal


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[TestClient]:
    with page_client(service) as made:
        yield made


# ------------------------------------------------------------------------------- escaping and policies


def pages(client: TestClient) -> Iterator[Any]:
    """Every page and part, with hostile input."""
    for view in ("one", "rows", "about"):
        for name in ("sentiment", "hostile", "stars", "paraphrase"):
            yield client.get("/", params={"task": name, "view": view})
    yield client.get("/", params={"task": HOSTILE})
    yield client.get("/", params={"q": HOSTILE})
    yield client.get("/page/tasks", params={"q": HOSTILE, "only": HOSTILE})
    yield client.get("/page/tasks", headers={**PART, "HX-Current-URL": f"/?task={HOSTILE}"})
    text = f"</textarea>{HOSTILE}"
    fields = {
        "text": text,
        "text_pair": text,
        "rows": text,
        "column": HOSTILE,
        "only": HOSTILE,
        "keep": "yes",
    }
    for headers in ({}, PART):
        for name in ("sentiment", "hostile", "emotions", "stars", "paraphrase", HOSTILE):
            for view in ("one", "all", "rows"):
                given = {**fields, "task": name, "column": ""} | ({} if view != "all" else {"only": name})
                yield client.post(f"/page/{view}", data=given, headers=headers)
        yield client.post("/page/rows", data={**fields, "task": "hostile"}, headers=headers)
        yield client.post("/page/key", data={"key": HOSTILE}, headers=headers)


def test_nothing_that_users_or_adapters_write_becomes_markup(client: TestClient) -> None:
    count = 0
    for found in pages(client):
        if found.status_code == 303:
            continue
        count += 1
        parsed = Parsed(found.text)
        for tag, attrs in parsed.tags:
            assert tag not in ("img", "iframe", "object", "embed", "base", "style"), found.url
            assert not [name for name in attrs if name.startswith("on") or name == "style"], (found.url, tag)
            assert not str(attrs.get("href", "")).startswith(("javascript:", "data:"))
        for attrs in parsed.all("script"):
            assert str(attrs["src"]).startswith("/page/static/")
    assert count > 50


def test_a_label_is_text_whatever_it_says(client: TestClient) -> None:
    found = client.post("/page/one", data={"task": "hostile", "text": "a"}, headers=PART)
    assert HOSTILE not in found.text
    words = text_of(found)
    assert HOSTILE in words
    assert "\\u202eevil" in words  # and not what it makes of the text behind it


def test_every_response_has_the_strict_policy(client: TestClient) -> None:
    for found in pages(client):
        if found.status_code == 303:
            continue
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy.replace("https:", "")
        assert found.headers["cache-control"] == "no-store"
        assert found.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_loaded_from_another_host(client: TestClient) -> None:
    for found in pages(client):
        for tag, attrs in Parsed(found.text).tags:
            for name in ("src", "href", "action", "hx-get", "hx-post", "formaction"):
                value = attrs.get(name)
                if value is None or (tag == "a" and "rel" in attrs):  # a link in a card
                    continue
                assert value.startswith(("/", "#")), (tag, name, value)
                assert not value.startswith("//")


def test_a_card_cannot_act() -> None:
    made = str(card_html(CARD))
    assert "license: unknown" not in made
    parsed = Parsed(made)
    assert {tag for tag, _ in parsed.tags} <= {
        *("h3", "h4", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "ul", "li", "a")
    }
    assert '<img src=x onerror=alert("card")>' in parsed.text
    assert parsed.all("a") == [
        {"href": "http://elsewhere.example/pixel.png", "rel": "noopener noreferrer nofollow"},
        {"href": "https://example.org/", "rel": "noopener noreferrer nofollow"},
    ]
    assert 'class="align-right"' in made
    assert 'print("<b>")' in parsed.text


@pytest.mark.parametrize(
    "card", ["> " * 5000 + "x", "[" * 5000, "*a " * 5000, "\x00", "---\n" * 100, "|" * 9999]
)
def test_any_card_is_rendered(card: str) -> None:
    assert "<script" not in card_html(card)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&\"'[]()!`*_#-|: \nabjs="), max_size=200))
def test_no_card_makes_a_tag_of_its_own(card: str) -> None:
    for tag, attrs in Parsed(str(card_html(card))).tags:
        assert tag not in ("script", "img", "style", "iframe", "svg", "form", "input")
        assert set(attrs) <= {"href", "rel", "title", "class", "start"}


# --------------------------------------------------------------------------------------------------- keys


@dataclass(kw_only=True)
class Keyed:
    """A client of a server with keys: ``team`` for two tasks, ``ops`` for all."""

    client: TestClient
    file: Path
    team: str
    ops: str
    now: list[float]


@pytest.fixture
def keyed(service: FakeService, tmp_path: Path) -> Iterator[Keyed]:
    file = tmp_path / "keys.toml"
    team, ops = make_key(file, "team", tasks=("stars", "emo*")), make_key(file, "ops")
    now = [0.0]
    keys = Keys(file=file, clock=lambda: now[0])
    with page_client(service, keys) as client:
        yield Keyed(client=client, file=file, team=team, ops=ops, now=now)


def sign_in(client: TestClient, key: str) -> Any:
    return client.post("/page/key", data={"key": f" {key} "})


def test_without_a_key_there_is_a_form_and_nothing_else(keyed: Keyed) -> None:
    found = keyed.client.get("/")
    assert 'type="password"' in found.text
    assert "stars" not in found.text
    for path in ("/page/one", "/page/all", "/page/rows", "/page/download"):
        data = {"task": "stars", "text": "a"}
        assert keyed.client.post(path, data=data, headers=PART).status_code == 401
    assert keyed.client.get("/page/tasks", headers=PART).status_code == 401


def test_a_wrong_key_is_refused_in_place(keyed: Keyed) -> None:
    for key in ("bad", "", "é", "x" * 9999):
        found = sign_in(keyed.client, key)
        assert found.status_code == 401
        assert "set-cookie" not in found.headers
        assert "This key is not accepted" in found.text


def test_the_cookie_is_a_session_and_not_the_key(keyed: Keyed) -> None:
    found = sign_in(keyed.client, keyed.team)
    assert (found.status_code, found.headers["location"]) == (303, "/")
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert keyed.team not in cookie
    assert "expires" not in cookie.lower()
    assert "max-age" not in cookie.lower()
    assert "Secure" not in cookie  # over http on loopback
    assert keyed.team not in keyed.client.get("/").text


def test_the_cookie_is_worth_nothing_outside_the_page(keyed: Keyed) -> None:
    sign_in(keyed.client, keyed.ops)
    assert keyed.client.post("/tasks/stars", json={"inputs": "a"}).status_code == 401
    assert keyed.client.delete("/tasks/stars").status_code == 401


def test_over_https_the_cookie_is_secure(keyed: Keyed) -> None:
    keyed.client.base_url = "https://testserver"  # type: ignore[assignment]
    assert "Secure" in sign_in(keyed.client, keyed.team).headers["set-cookie"]


def test_a_key_sees_its_own_tasks(keyed: Keyed, service: FakeService) -> None:
    client = keyed.client
    service.tasks.failures = {"broken": "why"}
    sign_in(client, keyed.team)
    words = text_of(client.get("/"))
    assert "All tasks 2" in words
    assert "Key team" in words
    assert "sentiment" not in words
    assert "broken" not in words
    client.post("/page/all", data={"text": "a"}, headers=PART)
    ((rows, caller),) = service.asked
    assert caller == "team"
    assert [row.task for row in rows] == ["emotions", "stars"]
    other = client.post("/page/one", data={"task": "sentiment", "text": "a"}, headers=PART)
    missing = client.post("/page/one", data={"task": "nowhere", "text": "a"}, headers=PART)
    assert other.status_code == missing.status_code == 404
    assert client.get("/?task=sentiment&view=about").status_code == 404
    own = client.post("/page/one", data={"task": "stars", "text": "a"}, headers=PART)
    assert "$PTUNING_KEY" in text_of(own)
    sign_in(client, keyed.ops)
    assert "1 refused adapter" in text_of(client.get("/"))


def test_a_session_ends(keyed: Keyed) -> None:
    client = keyed.client
    sign_in(client, keyed.ops)
    cookie = client.cookies[COOKIE]
    assert client.post("/page/forget").status_code == 303
    client.cookies.set(COOKIE, cookie)  # the browser's copy is worth nothing now
    assert 'type="password"' in client.get("/").text
    client.cookies.clear()
    sign_in(client, keyed.ops)
    assert "All tasks 6" in text_of(client.get("/"))
    keyed.file.unlink()
    make_key(keyed.file, "team")  # the other keys are withdrawn
    keyed.now[0] += RECHECK_SECONDS
    assert 'type="password"' in client.get("/").text


def request(cookie: str = "") -> Request:
    headers = [(b"cookie", f"{COOKIE}={cookie}".encode())]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers, "server": ("h", 80)})


def started(sessions: Sessions | SignedSessions, key: str) -> str:
    response = Response()
    sessions.start(key, request(), response)
    return response.headers["set-cookie"].partition(";")[0].partition("=")[2]


def test_a_server_without_keys_has_no_sessions(client: TestClient) -> None:
    found = client.post("/page/key", data={"key": "k" * 1_500_000}, follow_redirects=False)
    assert found.status_code == 303
    assert "set-cookie" not in found.headers


def test_a_session_keeps_the_digest_of_its_key_alone(tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys.toml", "a")
    sessions = Sessions(keys=Keys(file=tmp_path / "keys.toml"))
    started(sessions, key)
    assert key not in repr(sessions._open)
    assert digest(key) in repr(sessions._open)


def test_one_key_ends_no_sessions_of_others(tmp_path: Path) -> None:
    key, other = (make_key(tmp_path / "keys.toml", name) for name in ("a", "b"))
    sessions = Sessions(keys=Keys(file=tmp_path / "keys.toml"), per_key=3)
    first = started(sessions, other)
    own = [started(sessions, key) for _ in range(5)]
    assert sessions.caller(request(first)).name == "b"
    assert [sessions.caller(request(each)).name for each in own[2:]] == ["a"] * 3
    with pytest.raises(Refusal):
        sessions.caller(request(own[1]))


def test_a_bug_is_a_page_too(
    client: TestClient, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    message = "the secret text of a row"

    def broken(*_: object, **__: object) -> None:
        raise ValueError(message)

    service.answer = broken  # type: ignore[assignment, method-assign]
    found = client.post(
        "/page/one", data={"task": "sentiment", "text": "a"}, headers={"x-request-id": "id-1"}
    )
    assert found.status_code == 500
    assert found.headers["content-type"].startswith("text/html")
    assert found.headers["x-request-id"] == "id-1"
    assert "request id-1" in found.text
    assert "secret" not in found.text + caplog.text
    counted = [line for line in client.get("/metrics").text.splitlines() if "page/one" in line]
    assert any('code="500"' in line for line in counted)
    assert not any('code="499"' in line for line in counted)


def test_sessions_end_after_their_time_and_are_bounded(tmp_path: Path) -> None:
    now = 0.0
    key = make_key(tmp_path / "keys.toml", "a")
    keys = Keys(file=tmp_path / "keys.toml")
    sessions = Sessions(keys=keys, lifetime=10.0, capacity=2, clock=lambda: now)
    first = started(sessions, key)
    assert sessions.caller(request(first)).name == "a"
    now = 10.0
    with pytest.raises(Refusal):
        sessions.caller(request(first))
    second, third, fourth = (started(sessions, key) for _ in range(3))
    assert len({second, third, fourth}) == 3
    with pytest.raises(Refusal):
        sessions.caller(request(second))
    assert sessions.caller(request(third)).name == sessions.caller(request(fourth)).name == "a"


def test_several_servers_know_each_others_sessions(tmp_path: Path) -> None:
    now = [1_790_000_000.0]
    file = tmp_path / "keys.toml"
    key, _ = (make_key(file, name) for name in ("a.b", "c"))

    def server(secret: bytes = b"s" * 32) -> SignedSessions:
        return SignedSessions(Keys(file=file), secret, clock=lambda: now[0])

    cookie = started(server(), key)
    assert server().caller(request(cookie)).name == "a.b"
    assert digest(key) not in cookie
    name, end, signature = cookie.rsplit(".", 2)
    longer = f"{name}.{int(end) + 1}.{signature}"
    for forged in (longer, f"c.{end}.{signature}", f"{name}.{end}.", f"{name}.x.{signature}", "..", "é"):
        with pytest.raises(Refusal):
            server().caller(request(forged))
    with pytest.raises(Refusal):
        server(b"t" * 32).caller(request(cookie))
    with pytest.raises(Refusal):
        started(server(), "ptk_not_a_key")
    file.unlink()
    make_key(file, "a.b")  # the key was withdrawn, and another one has its name
    with pytest.raises(Refusal):
        server().caller(request(cookie))
    fresh = make_key(file, "d")
    cookie = started(server(), fresh)
    now[0] += 12 * 3600 + 1
    with pytest.raises(Refusal):
        server().caller(request(cookie))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://testserver"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({}, 200),
    ],
)
def test_forms_of_other_sites_are_refused(
    headers: dict[str, str], status: int, client: TestClient, service: FakeService
) -> None:
    found = client.post("/page/one", data={"task": "sentiment", "text": "a"}, headers=headers)
    assert found.status_code == status
    assert bool(service.asked) is (status == 200)


def test_the_page_is_not_in_the_api_description(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/v1/rows" in paths
    assert [path for path in paths if path == "/" or path.startswith("/page")] == []
