"""docs/serving.md and docs/openapi.json say what the server does.

After a change of the routes, renew the second with::

    python tests/test_serving_docs.py --write
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptuning.cli.serve import parser
from ptuning.serving.app import make_app
from ptuning.serving.keys import Keys
from serving_fake import FakeService, Running, serving

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SCHEMA = ROOT / "docs" / "openapi.json"


def schema() -> str:
    return json.dumps(make_app(FakeService(), Keys()).openapi(), indent=1) + "\n"


def test_the_openapi_page_is_what_the_server_says() -> None:
    renew = "renew it with: python tests/test_serving_docs.py --write"
    assert SCHEMA.read_text(encoding="utf-8") == schema(), renew


def test_every_route_is_described() -> None:
    made = json.loads(schema())
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["tags"], (method, path)
            if method in ("post", "put"):
                assert operation["requestBody"]["content"]["application/json"]["schema"], path
    references = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(made))
    assert set(references) <= set(made["components"]["schemas"])


# ------------------------------------------------------------------------------------ curl lines


def shown() -> Iterator[tuple[str, Any]]:
    """Every curl line of the page, with the JSON below it."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for place, (language, text) in enumerate(blocks):
        lines = text.replace("\\\n", " ").splitlines()
        asked = [line for line in lines if line.startswith("curl") and "-X" not in line]
        if language == "bash" and asked:
            follows = place + 1 < len(blocks) and blocks[place + 1][0] == "json"
            yield asked[-1], json.loads(blocks[place + 1][1]) if follows else None


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(FakeService()) as made:
        yield made


def form_of(value: Any) -> Any:
    """The names and types of JSON data; labels and probabilities sorted by name."""
    if isinstance(value, dict):
        return {name: form_of(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [form_of(inner) for inner in value]
    return type(value).__name__


def test_the_page_has_a_line_for_each_protocol() -> None:
    asked = " ".join(line for line, _ in shown())
    for path in ("tasks/sentiment ", "/predict", "8000/classify", "/v1/classify", "/infer", "/v1/rows"):
        assert path in asked


@pytest.mark.parametrize(("line", "expected"), list(shown()), ids=[line[22:60] for line, _ in shown()])
def test_a_curl_line_is_answered_as_shown(running: Running, line: str, expected: Any) -> None:
    words = shlex.split(line.replace("http://127.0.0.1:8000", running.url))
    done = subprocess.run(
        [*words, "--silent", "--fail-with-body"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if expected is not None:
        assert form_of(json.loads(done.stdout)) == form_of(expected)


def test_rows_are_streamed_as_shown(running: Running, tmp_path: Path) -> None:
    [line] = [line for line in PAGE.splitlines() if line.startswith("curl -T rows.jsonl")]
    (tmp_path / "rows.jsonl").write_text('{"task": "sentiment", "text": "fine"}\n' * 300)
    words = shlex.split(line.replace("http://127.0.0.1:8000", running.url))
    done = subprocess.run([*words, "--silent"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [list(json.loads(each)) for each in done.stdout.splitlines()] == [
        ["task", "digest", "label", "probabilities", "tokens", "truncated"]
    ] * 300


# ----------------------------------------------------------------------------------- the rest


def test_the_defaults_of_the_limits() -> None:
    given = vars(parser().parse_args(["x"]))
    rows = re.findall(r"^\| `--(\w+)` \| ([\d,.]+) \|", PAGE, re.MULTILINE)
    assert len(rows) >= 8
    for name, default in rows:
        assert f"{given[name]:,}" == default, name
    assert f"`--drain_seconds` ({given['drain_seconds']:.0f})" in PAGE
    assert f"`--drain_delay` seconds ({given['drain_delay']:.0f})" in PAGE


def test_the_other_limits() -> None:
    from ptuning.serving.limits import HttpSettings
    from ptuning.serving.settings import Settings

    http, core = HttpSettings(), Settings()
    text = " ".join(PAGE.split())
    assert f"has at most {core.max_text_characters:,} characters" in text
    assert f"a request {http.max_header_bytes >> 10} KiB" in text
    assert f"within {http.header_seconds:.0f} seconds and a body within {http.body_seconds:.0f}" in text
    assert f"sends nothing for {http.body_seconds:.0f} seconds" in text
    assert f"At most {core.metrics_tasks} tasks have a label" in text
    assert core.poll_seconds == 2
    assert core.grace_seconds == 10


def test_the_file_of_keys_can_be_read(tmp_path: Path) -> None:
    [block] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "keys.toml"
    file.write_text(block)
    assert Keys(file=file).required
    assert tomllib.loads(block)["search-team"]["tasks"] == ["support", "spam-*"]


def test_the_unit_and_the_image_start_the_server_with_options_that_exist() -> None:
    unit = (ROOT / "deploy" / "ptuning.service").read_text(encoding="utf-8")
    [start] = re.findall(r"^ExecStart=\S+/ptuning serve (.*)$", unit, re.MULTILINE)
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    [entry] = re.findall(r"^CMD (\[\"--.*)$", image, re.MULTILINE)
    for words in (shlex.split(start), json.loads(entry)):
        given = parser().parse_args(words)
        assert given.folder
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", image, re.MULTILINE)
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in kept


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"]
    SCHEMA.write_text(schema(), encoding="utf-8")
