"""A stand-in of the Hub's HTTP interface on loopback, for the real ``huggingface_hub`` client to talk to.

Repositories, users and what they may do are plain data of :class:`Hub`, in memory; :class:`Server` answers
for it. Only models, and of them what pushing and loading ask for. What the Hub promises is kept: commits are
all or nothing and have ids of 40 hexadecimal digits, ``*.safetensors`` go through LFS, an error carries the
header that the client tells its kind by.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "cc-by-4.0", "openrail", "other", "unknown"}
"""Some of the identifiers that the Hub accepts: https://huggingface.co/docs/hub/repositories-licenses."""

WRITE_FIRST = "You must use a write token to upload to a repository."


@dataclass(frozen=True)
class User:
    """Whose token it is, and whether it may write at all."""

    name: str
    writes: bool = True


@dataclass
class Repository:
    """A model repository: every commit is the whole of its files."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], message: str, branch: str = "main") -> str:
        """Put a branch on a new commit of exactly these files."""
        digest = hashlib.sha1(repr((len(self.commits), message, sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = dict(files)
        self.branches[branch] = digest
        self.messages.append(message)
        return digest

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files at a branch or commit."""
        return self.commits[self.branches.get(revision, revision)]

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]


@dataclass
class Failure:
    """What to answer instead, to requests whose method and address hold these; no status hangs up."""

    method: str
    part: str
    status: int | None
    headers: dict[str, str]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class Hub:
    """What is on the Hub, and what it was asked.

    Attributes:
        tokens: Whose each access token is.
        repositories: By ``owner/name``.
        objects: What was uploaded through LFS, by SHA-256.
        requests: Every request so far, as ``"POST /api/repos/create"``.
        failures: What to fail at.
    """

    tokens: dict[str, User] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add_folder(
        self, name: str, folder: Path, *, private: bool = False, gated: bool = False
    ) -> Repository:
        """A repository with the files of a folder, such as a transformers model."""
        made = Repository(name, private=private, gated=gated)
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        made.commit(files, "initial commit")
        self.repositories[name] = made
        return made

    def fail(self, method: str, part: str, status: int | None, **headers: str) -> None:
        """From now on answer so to requests of ``method`` whose address holds ``part``."""
        self.failures.append(
            Failure(method, part, status, {k.replace("_", "-"): v for k, v in headers.items()})
        )

    # -------------------------------------------------------------------------------- who may what

    def readable(self, name: str, user: User | None) -> Repository:
        found = self.repositories.get(name)
        if found is None or (found.private and (user is None or user.name != found.owner)):
            if user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return found

    def writable(self, name: str, user: User | None) -> Repository:
        found = self.readable(name, user)
        check_writer(user, found.owner)
        return found


def check_writer(user: User | None, owner: str) -> User:
    if user is None:
        raise Refused(401, "Invalid username or password.")
    if not user.writes:
        raise Refused(403, WRITE_FIRST)
    if user.name != owner:
        raise Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
    return user


def commit_id(repository: Repository, revision: str) -> str:
    found = repository.branches.get(revision, revision)
    if found not in repository.commits:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def git_id(data: bytes) -> str:
    """Git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def card_errors(content: str) -> Iterator[str]:
    """What the Hub finds wrong with a model card's metadata."""
    front = re.match(r"\s*---\r?\n(.*?)\r?\n---\r?\n", content, re.DOTALL)
    if front is None:
        return
    try:
        data = yaml.safe_load(front[1])
    except yaml.YAMLError as error:
        yield f"YAML Metadata Error: {error}"
        return
    if not isinstance(data, dict):
        yield '"metadata" must be an object'
        return
    if "license" in data and data["license"] not in LICENSES:
        yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]'
    for name in data.get("datasets", []):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            yield f'"datasets" holds {name!r}, which is no data set'
    for number, model in enumerate(data.get("model-index", [])):
        if not isinstance(model.get("name"), str):
            yield f'"model-index[{number}].name" is required'
        for at, result in enumerate(model.get("results", [None])):
            yield from result_errors(f"model-index[{number}].results[{at}]", result)


def result_errors(place: str, result: Any) -> Iterator[str]:
    """What is missing in one entry of ``model-index``."""
    if not isinstance(result, dict):
        yield f'"{place}" is required'
        return
    for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
        if not isinstance((result.get(part) or {}).get(key), str):
            yield f'"{place}.{part}.{key}" is required'
    for at, metric in enumerate(result.get("metrics") or [{}]):
        if not isinstance(metric.get("type"), str):
            yield f'"{place}.metrics[{at}].type" is required'
        if metric.get("value") is None:
            yield f'"{place}.metrics[{at}].value" is required'


class Server(ThreadingHTTPServer):
    """Answers for a :class:`Hub` on a port of loopback that it has from the start.

    It listens only inside :meth:`serving`.
    """

    daemon_threads = True
    hub: Hub

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        self.server_activate()
        thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request. A method of this class answers each kind of address."""

    server: Server

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815, the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: ``Hub.requests`` keeps what was asked."""

    def answer(self) -> None:
        hub = self.server.hub
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.address = urlsplit(self.path)
        with self.server.lock:
            hub.requests.append(f"{self.command} {self.path}")
            for failure in hub.failures:
                if failure.method == self.command and failure.part in self.path:
                    self.fail(failure)
                    return
            try:
                self.route(hub)
            except Refused as error:
                self.refuse(error)

    def fail(self, failure: Failure) -> None:
        if failure.status is None:
            self.close_connection = True
            self.connection.close()
        else:
            self.send(failure.status, b'{"error": "told to fail"}', **failure.headers)

    def refuse(self, error: Refused) -> None:
        named = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
        self.reply({"error": str(error), "errors": [{"message": str(error)}]}, error.status, **named)

    def route(self, hub: Hub) -> None:
        for method, pattern, handle in ROUTES:
            found = re.fullmatch(pattern, self.address.path)
            if found and self.command in method.split():
                handle(self, hub, self.user(hub), *map(unquote, found.groups(default="")))
                return
        raise Refused(404, f"the stand-in does not know {self.command} {self.path}")

    def user(self, hub: Hub) -> User | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return hub.tokens.get(token)

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), **{"Content-Type": "application/json", **headers})

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    # ------------------------------------------------------------------------------------- answers

    def whoami(self, hub: Hub, user: User | None) -> None:
        if user is None:
            raise Refused(401, "Invalid username or password.")
        self.reply({"type": "user", "name": user.name, "orgs": []})

    def create(self, hub: Hub, user: User | None) -> None:
        asked = self.json()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        owner = asked.get("organization") or user.name
        check_writer(user, owner)
        name = f"{owner}/{asked['name']}"
        if name in hub.repositories:
            self.reply(
                {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409
            )
            return
        made = Repository(name, private=asked.get("visibility") == "private")
        made.commit(
            {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
        )
        hub.repositories[name] = made
        self.reply({"url": f"{self.server.url}/{name}", "name": name})

    def validate(self, hub: Hub, user: User | None) -> None:
        errors = [{"message": message} for message in card_errors(self.json()["content"])]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def model(self, hub: Hub, user: User | None, name: str, revision: str) -> None:
        found = hub.readable(name, user)
        commit = commit_id(found, revision or "main")
        self.reply(
            {
                "id": name,
                "sha": commit,
                "private": found.private,
                "gated": "manual" if found.gated else False,
                "siblings": [{"rfilename": path} for path in found.commits[commit]],
            }
        )

    def tree(self, hub: Hub, user: User | None, name: str, revision: str, place: str) -> None:
        found = hub.readable(name, user)
        files = found.commits[commit_id(found, revision)]
        inside = {path: data for path, data in files.items() if path.startswith(f"{place}/" if place else "")}
        if place and not inside:
            raise Refused(404, f"{place} does not exist on {revision}", "EntryNotFound")
        self.reply([entry(path, data) for path, data in inside.items()])

    def branch(self, hub: Hub, user: User | None, name: str, branch: str) -> None:
        found = hub.writable(name, user)
        if branch in found.branches:
            raise Refused(409, f"Reference already exists: {branch}")
        found.branches[branch] = commit_id(found, self.json().get("startingPoint") or "main")
        self.reply({})

    def preupload(self, hub: Hub, user: User | None, name: str, revision: str) -> None:
        """How each file is to be uploaded, and its content's name where it is there already."""
        found = self.committable(hub, user, name)
        files = found.commits[commit_id(found, revision)]
        answers = []
        for file in self.json()["files"]:
            path, mode = file["path"], "lfs" if is_lfs(file["path"]) else "regular"
            there = {} if path not in files else {"oid": (sha256 if is_lfs(path) else git_id)(files[path])}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
        self.reply({"files": answers})

    def batch(self, hub: Hub, user: User | None, name: str) -> None:
        """Where to upload LFS objects; those that are there need no upload."""
        hub.readable(name, user)
        if user is None or not user.writes:
            raise Refused(403, WRITE_FIRST)
        answers = []
        for asked in self.json()["objects"]:
            place = f"{self.server.url}/lfs/{asked['oid']}"
            actions = {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}
            known = asked["oid"] in hub.objects
            answers.append({**asked, "authenticated": True, **({} if known else {"actions": actions})})
        self.reply({"transfer": "basic", "objects": answers})

    def upload(self, hub: Hub, user: User | None, oid: str) -> None:
        if sha256(self.body) != oid:
            raise Refused(400, "the upload's sha256 is another")
        hub.objects[oid] = self.body
        self.send(200, b"")

    def verify(self, hub: Hub, user: User | None, oid: str) -> None:
        if len(hub.objects.get(oid, b"")) != self.json()["size"]:
            raise Refused(404, "no such object")
        self.reply({})

    def commit(self, hub: Hub, user: User | None, name: str, revision: str) -> None:
        """All of a commit's lines, or nothing."""
        found = self.committable(hub, user, name)
        lines = [json.loads(line) for line in self.body.splitlines()]
        head = commit_id(found, revision)
        if lines[0]["value"].get("parentCommit", head) != head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(found.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and value["oid"] in hub.objects:
                files[value["path"]] = hub.objects[value["oid"]]
            else:
                raise Refused(400, f"cannot commit {line['key']} {value.get('path')}")
        pull = f"refs/pr/{1 + sum(branch.startswith('refs/pr/') for branch in found.branches)}"
        made = found.commit(files, lines[0]["value"]["summary"], pull if self.proposed else revision)
        page = f"{self.server.url}/{name}"
        address = f"{page}/discussions/{pull.rpartition('/')[2]}" if self.proposed else None
        self.reply(
            {
                "success": True,
                "commitUrl": f"{page}/commit/{made}",
                "commitOid": made,
                "pullRequestUrl": address,
            }
        )

    def resolve(self, hub: Hub, user: User | None, name: str, revision: str, path: str) -> None:
        found = hub.readable(name, user)
        if found.gated and (user is None or user.name != found.owner):
            raise Refused(401 if user is None else 403, f"Access to model {name} is restricted", "GatedRepo")
        commit = commit_id(found, revision)
        kept = {"X-Repo-Commit": commit}
        data = found.commits[commit].get(path)
        if data is None:
            message = f"{path} does not exist"
            self.reply({"error": message}, 404, **kept, **{"X-Error-Code": "EntryNotFound"})
            return
        linked = (
            {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))} if is_lfs(path) else {}
        )
        self.send(200, data, **kept, **linked, ETag=f'"{git_id(data)}"')

    # -------------------------------------------------------------------------------------- pieces

    @property
    def proposed(self) -> bool:
        """Whether the commit is to become a pull request."""
        return parse_qs(self.address.query).get("create_pr") == ["1"]

    def committable(self, hub: Hub, user: User | None, name: str) -> Repository:
        """Whoever may read and has a token that writes may propose; only the owner may commit."""
        if not self.proposed:
            return hub.writable(name, user)
        found = hub.readable(name, user)
        check_writer(user, user.name if user else "")
        return found


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in a listing."""
    linked = {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 134}} if is_lfs(path) else {}
    return {"type": "file", "path": path, "size": len(data), "oid": git_id(data), **linked}


ID = "([^/]+/[^/]+)"
ROUTES = (
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/models/{ID}(?:/revision/([^/]+))?", Handler.model),
    ("GET", f"/api/models/{ID}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("POST", f"/api/models/{ID}/branch/([^/]+)", Handler.branch),
    ("POST", f"/api/models/{ID}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/api/models/{ID}/commit/([^/]+)", Handler.commit),
    ("POST", f"/{ID}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]+)", Handler.upload),
    ("POST", "/lfs/([0-9a-f]+)/verify", Handler.verify),
    ("GET HEAD", f"/{ID}/resolve/([^/]+)/(.+)", Handler.resolve),
)
"""Method, address, and what answers; the groups of the address are its arguments."""

SERVER = Server()
"""The one of this process: it holds its port for the whole run, and answers where a test asks for the Hub."""
atexit.register(SERVER.server_close)
