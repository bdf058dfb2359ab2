"""The server on Ray Serve: two replicas that ``ptuning serve --ray`` deploys, and ends.

The tests of the server's protocols are those of ``test_serving_end_to_end.py`` and
``test_serving_process.py``.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ptuning.cli import main
from ptuning.cli.serve import parser
from ptuning.errors import BackboneNotFound, ConfigError, OutputError
from ptuning.ray.cluster import Versions
from ray_cluster import ray_cluster  # noqa: F401
from serving_fake import wait_for
from serving_real import KINDS, Served, adapter, adapters, offline, serve
from test_serving_end_to_end import (  # noqa: F401
    ADMIN,
    put,
    test_an_adapter_for_another_backbone_is_refused_and_the_old_one_stays,
    test_one_text_for_all_tasks,
    test_protocols_agree_on_a_regression,
    test_protocols_agree_on_texts,
    test_the_page_agrees_with_offline_prediction,
)
from test_serving_process import (  # noqa: F401
    test_every_kind_answers_as_offline,
    test_rows_of_all_tasks_in_one_request,
    test_texts_that_are_odd,
    test_truncation_is_said_or_refused,
)
from warm import Programs

pytest.importorskip("ray.serve")

from ptuning.ray import serving
from ptuning.ray.serving import ScaleOptions, app, application, on_all_nodes
from ptuning.serving.launching import ServerOptions

HEADER = "serve-multiplexed-model-id"
NEAR, *EXTRA = ("near", "extra1", "extra2", "extra3")
"""Tasks that no other test has named before."""


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = adapters(tiny_folder, tmp_path_factory.mktemp("served"))
    for seed, name in enumerate((NEAR, *EXTRA), start=30):
        adapter(tiny_folder, made / name, KINDS["sentiment"], seed=seed)
    return made


def free_port() -> int:
    """One that neither Ray's workers nor outgoing connections take before the server does."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture(scope="module")
def served(
    ray_cluster: Any,  # noqa: F811
    programs: Programs,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    arguments = ("--ray", ray_cluster.address, "--replicas", 2, "--ray_cpus", 0.5, "--tasks_per_replica", 3)
    env = {"PTUNING_ADMIN_KEY": "an admin key of ours"}
    place = tmp_path_factory.mktemp("logs")
    with serve(
        programs, place, "--folder", folder, *arguments, port=free_port(), seconds=300, env=env
    ) as made:
        yield made


# ------------------------------------------------------------------------------------- what is held


def counted(served: Served) -> tuple[float, float]:
    """Of the replica that holds one task: requests that named it, and adapters that were read."""
    _, text = served.ask("GET", "/metrics", **{HEADER: NEAR})
    requests = re.findall(rf'ptuning_requests_total\{{[^}}]*task="{NEAR}"[^}}]*\}} (\S+)', text)
    (loads,) = re.findall(r'ptuning_task_loads_total\{result="loaded"\} (\S+)', text)
    return sum(map(float, requests)), float(loads)


def ask(served: Served, task: str) -> None:
    """Ask a task at that replica."""
    body = {"model": task, "input": "a good film"}
    status, found = served.ask("POST", "/v1/classify", body, **{HEADER: NEAR})
    assert status == 200, found


def test_requests_go_to_the_replica_that_holds_their_task_and_it_is_read_once(served: Served) -> None:
    ask(served, NEAR)
    wait_for(lambda: all(counted(served)[0] == 1 for _ in range(20)), seconds=60)  # the router knows
    _, loads = counted(served)
    for _ in range(10):
        ask(served, NEAR)
    assert counted(served) == (11, loads)


def test_a_replica_lets_go_of_what_was_named_least_recently(served: Served) -> None:
    for task in EXTRA:
        ask(served, task)
        ask(served, NEAR)  # three are held: this one, and the last two of the others
    _, loads = counted(served)
    ask(served, EXTRA[2])
    ask(served, EXTRA[1])
    assert counted(served)[1] == loads
    ask(served, NEAR)
    ask(served, EXTRA[0])
    assert counted(served)[1] == loads + 1
    listed = [each["task"] for each in served.ask("GET", "/tasks")[1]["tasks"]]
    assert {*KINDS, *EXTRA} <= set(listed)  # held or not


# ----------------------------------------------------------------------------- tasks come and go


def on_every_replica(served: Served, check: Callable[[], bool]) -> None:
    """Wait until a check of an answer is true twenty times in a row."""
    wait_for(lambda: all(check() for _ in range(20)), seconds=60)


def test_a_replaced_adapter_is_noticed_by_every_replica(
    served: Served, folder: Path, tiny_folder: Path
) -> None:
    adapter(tiny_folder, folder / EXTRA[0], KINDS["sentiment"], seed=50)
    [right] = offline(folder / EXTRA[0], ["a good film"])

    def new() -> bool:
        body = {"rows": [{"task": EXTRA[0], "text": "a good film"}]}
        [row] = served.ask("POST", "/v1/rows", body)[1]["rows"]
        return bool(row["probabilities"] == pytest.approx(right["probabilities"], abs=1e-5))

    on_every_replica(served, new)


def test_what_is_sent_to_one_replica_is_served_by_all(
    served: Served, folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    status, found = put(served, "sent", adapter(tiny_folder, tmp_path / "sent", KINDS["sentiment"], seed=60))
    assert status == 200, found
    on_every_replica(served, lambda: served.ask("GET", "/tasks/sent")[0] == 200)
    assert served.ask("POST", "/tasks/sent", {"inputs": "a good film"})[0] == 200
    wait_for(lambda: served.ask("DELETE", "/tasks/sent", **ADMIN)[0] in (204, 404))
    assert not (folder / "sent").exists()


def test_an_unknown_task_is_the_same_404(served: Served) -> None:
    status, found = served.ask("POST", "/v1/rows", {"rows": [{"task": "sentimen", "text": "a"}]})
    assert status == 200
    assert found["rows"][0]["error"] == {
        "code": 404,
        "type": "unknown_task",
        "message": "no task 'sentimen'; did you mean sentiment?",
    }
    assert served.ask("GET", "/tasks/nothing")[0] == 404


def test_limits_are_ours(served: Served) -> None:
    status, found = served.ask("POST", "/tasks/sentiment", {"inputs": ["a"] * 2000})
    assert status == 413
    assert "1,024" in found["error"]
    status, found = served.ask("POST", "/tasks/sentiment", b" " * (3 << 20))
    assert status == 413
    assert served.ask("PUT", "/tasks/x", b"", content_type="application/zip")[0] in (401, 403)
    assert served.ask("GET", "/tasks", host="example.org")[0] == 421
    assert served.ask("GET", "/ready") == (200, {"status": "ready"})


def test_serve_answers_at_one_address(
    capsys: pytest.CaptureFixture[str],
    served: Served,
    ray_cluster: Any,  # noqa: F811
    folder: Path,
) -> None:
    other = ("--ray", ray_cluster.address, "--port", free_port())
    assert f"127.0.0.1:{served.port}, where Ray Serve answers" in failed(capsys, "--folder", folder, *other)
    same = ("--ray", ray_cluster.address, "--port", served.port)
    assert f"the process {served.program.pid} on" in failed(capsys, "--folder", folder, *same)
    assert served.ask("GET", "/health")[0] == 200


# ------------------------------------------------------------------------------------- the end


def replicas() -> list[str]:
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["name"].startswith("SERVE_REPLICA::")]


def test_requests_are_answered_after_a_replica_was_killed(served: Served, folder: Path) -> None:
    import ray

    first, second = replicas()
    ray.kill(ray.get_actor(first, namespace="serve"), no_restart=True)
    [right] = offline(folder / "sentiment", ["a good film"])

    def answered() -> bool:
        status, found = served.ask("POST", "/tasks/sentiment", {"inputs": "a good film"})
        if status != 200:
            return False
        scores = {each["label"]: each["score"] for each in found[0]}
        return bool(scores == pytest.approx(right["probabilities"], abs=1e-5))

    on_every_replica(served, answered)
    wait_for(lambda: first not in replicas() and len(replicas()) == 2)  # and another one takes its place
    assert second in replicas()


def test_what_was_deleted_at_one_replica_is_unknown_to_all(served: Served) -> None:
    """After some time, in which other tests have run."""
    on_every_replica(served, lambda: served.ask("GET", "/tasks/sent")[0] == 404)


def test_ctrl_c_ends_the_deployment(served: Served) -> None:
    """The last one."""
    served.program.send_signal(signal.SIGINT)
    assert served.program.wait() == 0
    assert replicas() == []
    lines = served.log.read_text().splitlines()
    assert [line for line in lines if not line.startswith(("ptuning: serving", "ptuning: waiting"))] == []
    with pytest.raises(ConnectionError):
        served.ask("GET", "/health")


# ------------------------------------------------------------------------------ what is asked of Serve


def configured(built: Any) -> Any:
    return built._bound_deployment._deployment_config


def test_what_serve_is_told(tmp_path: Path) -> None:
    options = ServerOptions(folder=str(tmp_path), drain_seconds=7, max_connections=9)
    fixed = application(options, ScaleOptions(replicas=3, ray_cpus=2, ray_gpus=0.5))
    config = configured(fixed)
    assert (config.num_replicas, config.autoscaling_config) == (3, None)
    assert config.max_ongoing_requests == options.settings().queue_rows
    assert config.max_queued_requests == 9
    assert config.graceful_shutdown_timeout_s > 7
    assert fixed._bound_deployment.ray_actor_options == {"num_cpus": 2, "num_gpus": 0.5}
    scaled = configured(application(options, ScaleOptions(replicas="1-8", target_requests=20)))
    found = scaled.autoscaling_config
    assert (found.min_replicas, found.max_replicas, found.target_ongoing_requests) == (1, 8, 20)


def test_the_builder_for_configuration_files(tmp_path: Path) -> None:
    given = {"replicas": "2", "ray_cpus": "0.5", "batch_rows": "32", "no_auth": "true"}
    built = app({"folder": str(tmp_path), **given})
    assert configured(built).num_replicas == 2
    options, tasks, versions, secret = built._bound_deployment.init_args
    assert (options.folder, options.batch_rows, tasks) == (str(tmp_path), 32, 1000)
    assert versions == Versions.here()
    assert len(secret) == 32
    with pytest.raises(ConfigError, match="unknown option foldr; did you mean folder"):
        app({"foldr": "x"})
    with pytest.raises(ConfigError, match="at least one"):
        app({"replicas": 2})
    with pytest.raises(ConfigError, match="no_auth=true"):
        app({"folder": str(tmp_path)})


def test_what_the_page_shows_can_be_built() -> None:
    text = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [given] = yaml.safe_load(block)["applications"]
    assert (given["name"], given["import_path"]) == (serving.NAME, "ptuning.ray.serving:app")
    app(given["args"])
    [command] = re.findall(r"^serve run ptuning.ray.serving:app (.*)$", text, re.MULTILINE)
    app(dict(each.split("=") for each in command.split()))
    [python] = re.findall(r"`ray\.serve\.run\(app\((\{.*?\})\), name=\"ptuning\"\)`", text)
    app(json.loads(python))


def test_the_defaults_are_those_of_the_command() -> None:
    given = vars(parser().parse_args(["x"]))
    for field in fields(ServerOptions):
        if field.name not in ("adapters", "admin_key"):
            assert given[field.name] == field.default, field.name
    said = {action.dest: action.help or "" for action in parser()._actions}
    for field in fields(ScaleOptions):
        assert said[field.name].endswith(f"(default: {field.default:g})"), field.name


@pytest.mark.parametrize("replicas", ["0", "3-2", "x", "1-", "-1", "0-3", ""])
def test_replicas_that_cannot_be(replicas: str) -> None:
    with pytest.raises(ConfigError, match="MIN-MAX"):
        ScaleOptions(replicas=replicas)


def test_the_admin_key_is_not_printed(tmp_path: Path) -> None:
    assert "sixteen" not in repr(ServerOptions(folder=str(tmp_path), admin_key="sixteen-characters"))


def test_paths_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "support").mkdir()
    monkeypatch.chdir(tmp_path)
    found = on_all_nodes(ServerOptions(adapters=("support", "spam=someone/spam"), folder="f", keys="k"))
    assert found.adapters == (f"support={tmp_path}/support", "spam=someone/spam")
    assert (found.folder, found.keys, found.backbone) == (f"{tmp_path}/f", f"{tmp_path}/k", None)


# ------------------------------------------------------------------------------------- errors


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["serve", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    waiting = "ptuning: waiting for the replicas to start"  # a note, on a machine that is slow
    lines = [line for line in said.splitlines() if not line.startswith(waiting)]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--replicas", 2), "--replicas is for a cluster; add --ray ADDRESS"),
        (("--ray_gpus", 1), "--ray_gpus is for a cluster"),
        (("--ray", "auto", "--replicas", "x"), "MIN-MAX"),
        (("--ray", "auto", "--port", 0), "--port: got 0"),
        (("--ray", "auto", "--host", "0.0.0.0"), "no --keys"),
        (("--ray", "auto", "--ray_cpus", "-1"), "ray_cpus"),
        (("--ray", "auto", "--drain_delay", 5), "drain_delay"),
    ],
)
def test_refused_at_the_command_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: tuple[object, ...], words: str
) -> None:
    assert words in failed(capsys, "--folder", folder, *arguments)


def test_no_room_and_a_port_that_is_taken_and_a_folder_that_a_node_does_not_see(
    capsys: pytest.CaptureFixture[str],
    ray_cluster: Any,  # noqa: F811
    folder: Path,
    tmp_path: Path,
) -> None:
    """After the other deployment has ended."""
    on = ("--ray", ray_cluster.address, "--ray_cpus", 0.5)
    assert "at most 4, as many as" in failed(capsys, "--folder", folder, *on, "--replicas", 5)
    assert "at most 0, as many as" in failed(capsys, "--folder", folder, *on, "--ray_gpus", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = failed(capsys, "--folder", folder, *on, "--port", port)
        assert f"127.0.0.1:{port} cannot be used" in said
    said = failed(capsys, "--folder", tmp_path / "nothing", *on, "--port", free_port())
    assert "on the node" in said
    assert "No such file or directory" in said


def test_a_backbone_that_a_node_lacks(folder: Path, tmp_path: Path) -> None:
    from ptuning.ray.replica import Replica

    options = ServerOptions(folder=str(folder), backbone=str(tmp_path / "nothing"))

    async def made() -> None:
        Replica(options, 10, Versions.here(), b"")

    with pytest.raises(BackboneNotFound, match=r"on the node .*nothing"):
        asyncio.run(made())


def test_why_a_replica_did_not_start() -> None:
    text = (
        "Deploying application ptuning failed: The deployment failed to start 3 times in a row.\n"
        "Traceback (most recent call last):\n  File …\nptuning.errors.AdapterError: the adapter x\n"
        "The above exception was the direct cause:\nptuning.errors.ConfigError: on the node a: got b\n"
    )
    assert str(serving.explained(text)) == "on the node a: got b"
    other = serving.explained("Deploying failed\nsomething else\n")
    assert isinstance(other, OutputError)
    assert "something else" in str(other)


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*given: object, **options: object) -> Any:
        raise error

    return call


def test_another_application_at_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayTaskError
    from ray.serve.exceptions import RayServeException

    why = RayServeException('Prefix / is being used by application "other".')
    error = RayTaskError("deploy_applications", "Traceback …", why).as_instanceof_cause()
    monkeypatch.setattr("ray.serve.run", raising(error))
    with pytest.raises(ConfigError, match=r'deployed: Prefix / is being used by application "other"'):
        serving._deploy(None, print)  # type: ignore[arg-type]


def test_a_start_that_takes_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()
    monkeypatch.setattr("ray.serve.run", lambda *given, **options: said.wait(60))
    serving._deploy(None, said.set, seconds=0)  # type: ignore[arg-type]
    assert said.is_set()


def test_a_deployment_that_was_ended_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import RayServeException

    found = [{serving.NAME: None}, {}]
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=found.pop(0)))
    with pytest.raises(OutputError, match="ended elsewhere"):
        serving._wait(seconds=0)
    assert found == []
    monkeypatch.setattr("ray.serve.status", raising(RayActorError()))
    with pytest.raises(OutputError, match="ended elsewhere"):
        serving._wait(seconds=0)
    monkeypatch.setattr("ray.serve.delete", raising(RayServeException("There is no Serve instance running")))
    serving._end(True, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError()])
def test_an_end_that_is_interrupted_or_takes_too_long_is_said(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.serve.delete", raising(error))
    with pytest.raises(OutputError, match="has not ended yet"):
        serving._end(True, -100)


@pytest.mark.parametrize(
    ("failed", "ready", "draining", "healthy"),
    [
        (False, True, False, True),
        (False, False, True, True),
        (False, False, False, False),  # stuck
        (True, False, False, False),
    ],
)
def test_a_replica_whose_engine_is_stuck_is_replaced(
    failed: bool, ready: bool, draining: bool, healthy: bool
) -> None:
    from ptuning.ray.replica import Replica

    replica = Replica.__new__(Replica)
    replica._service = SimpleNamespace(failed=failed, ready=ready, draining=draining)  # type: ignore[assignment]
    with nullcontext() if healthy else pytest.raises(RuntimeError, match="stuck"):
        replica.check_health()
