"""YAML that people write, and what else may stand in such a file: plain values or one sentence, quickly."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ptuning.config_file import read_config
from ptuning.errors import ConfigError
from ptuning.training.config import TrainConfig


def read(tmp_path: Path, content: str | bytes) -> dict[str, Any]:
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return read_config(file, "--config")


LISTS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MAPS = "x: &a0 {k: v}\n" + "".join(
    f"y{i}: &a{i} {{{','.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LISTS, "line 1: anchors (&name) are not supported; write the value out"),
        (MAPS, "line 1: anchors"),
        ("output: *a\n", "line 1: aliases (*name) are not supported"),
        ("&a {data: *a}\n", "line 1: anchors"),
        ("output: &a [*a]\n", "line 1: anchors"),
        ("base: 1\nfit:\n  <<: *b\n", "line 3: aliases"),
        ("fit:\n  epochs: 1\n  seed: 2\n  epochs: 3\n", "line 4: the key 'epochs' is given twice, first"),
        ("fit: {epochs: 1}\noutput: x\nfit: {seed: 2}\n", "line 3: the key 'fit' is given twice, first in"),
        ("output: " + "[" * 3000 + "]" * 3000, "line 1: nested more than 16 levels deep"),
        ("output: " + "[" * 100_000, "line 1: nested more than 16 levels deep"),
        ("".join("  " * i + "a:\n" for i in range(400)), "line 16: nested more than 16 levels deep"),
        ("a: " + "x" * (1 << 20), ": more than 1,048,576 bytes"),
        ("a: !!int abc\n", "line 1: 'abc' is not a valid int"),
        ("a: !!int \n", "line 1: '' is not a valid int"),
        ("a: !!map x\n", "line 1: expected a mapping node, but found scalar"),
        ("x: 1\na: !!float abc\n", "line 2: 'abc' is not a valid float"),
        ("a: !!bool abc\n", "line 1: 'abc' is not a valid bool"),
        ("a: !!timestamp abc\n", "line 1: tag:yaml.org,2002:timestamp is not supported"),
        ("a: !!binary '***'\n", "line 1: tag:yaml.org,2002:binary is not supported"),
        ("a: !!set {a, b}\n", "line 1: tag:yaml.org,2002:set is not supported"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: tag:yaml.org,2002:python/object/apply"),
        ("a: !foo x\n", "line 1: !foo is not supported"),
        ("a: " + "1" * 5000, "line 1: '111111"),
        ("a: 0x\n", None),
        ("? [1, 2]\n: 3\n", "line 1: a key that is not a string"),
        ("null: 3\n", "line 1: a key that is not a string"),
        ("5: 3\n", "line 1: a key that is not a string"),
        ("true: 3\n", "line 1: a key that is not a string"),
        ("a: 1\n---\nb: 2\n", "line 2: expected a single document in the stream: but found another document"),
        (b"output: a\0b\n", ": not YAML: "),
        (b"\xff\xfe\x00", ": not UTF-8 text"),
        ("", ": got an empty file, expected options such as"),
        ("[1]", ": got a YAML list, expected options"),
        ("5", ": got a YAML int"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_no_file_of_options(tmp_path: Path, content: str | bytes, said: str | None) -> None:
    if said is None:
        assert read(tmp_path, content)
        return
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    text = str(caught.value)
    assert said in text
    assert text.startswith(f"--config {tmp_path / 'c.yaml'}")
    assert "\n" not in text
    assert len(text) < 600


def test_plain_values(tmp_path: Path) -> None:
    content = "\ufeffoutput: 2024-01-01\nfit: {epochs: 3, clip: .inf, prompt_rate: 1e-2}\ntext: yes\nb: ~\n"
    assert read(tmp_path, content) == {
        "output": "2024-01-01",  # a folder's name, no date
        "fit": {"epochs": 3, "clip": float("inf"), "prompt_rate": "1e-2"},
        "text": True,
        "b": None,
    }


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """As in ``--config <(sed … base.yaml)``."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("fit: {epochs: 3}\n"))
    writer.start()
    assert read_config(pipe, "--config") == {"fit": {"epochs": 3}}
    writer.join(10)


FIRST = "data:\n  train: x.csv\nfit:\n  epochs: 3\n  class_weights: [1, 2.5]\nprompt: {depth: deep}\n"
PIECES = st.sampled_from(
    [
        *("<<", "- ", ": ", "&a ", "*a", "!!int ", "!!float ", "!!map ", "---\n", "\\0", "é", "\0"),
        *"abc:,-[]{}&*!|>'\"%@#?~\t\n 01.",
    ]
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(FIRST)), PIECES, st.booleans()), max_size=6))
@example([(0, "&a ", False), (6, "*a", False)])
def test_any_change_of_a_file_is_read_or_one_sentence(
    tmp_path: Path, changes: list[tuple[int, str, bool]]
) -> None:
    text = FIRST
    for place, piece, cut in changes:
        text = text[:place] + piece + text[place + (len(piece) if cut else 0) :]
    said = ""
    try:
        TrainConfig.checked(read(tmp_path, text))
    except ConfigError as error:
        said = str(error)
    assert len(said) < 1000


def test_a_mapping_of_text_is_read_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: {b: {no: [yes, 1.50], 1: 007, true: off, ~: null, '2': 'x'}}\nb: {c: yes, d: 1}\n")
    found = read_config(file, "--config", [["a", "b"], ["z", "b"], ["b", "c", "d"]])
    words = {"no": ["yes", "1.50"], "1": "007", "true": "off", "~": "null", "2": "x"}
    assert found == {"a": {"b": words}, "b": {"c": True, "d": 1}}
    file.write_text("a: {b: {1: x, '1': y}}\n")
    with pytest.raises(ConfigError, match="line 1: the key '1' is given twice"):
        read_config(file, "--config", [["a", "b"]])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_yaml_writes_is_read_back(value: Any) -> None:
    from ptuning.config_file import parse_yaml

    written = yaml.dump(value, Dumper=NoAliases, allow_unicode=True)
    assert parse_yaml(written) == yaml.safe_load(written)


class NoAliases(yaml.SafeDumper):
    """Writes a list that stands at two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
