"""Reading YAML that people write: plain mappings, lists, texts and numbers, and one sentence for all else.

PyYAML's safe loader runs no code, but aliases make a kilobyte of it as large as memory, deep nesting and odd
scalars end in whatever Python raises, and of two equal keys the first is dropped without a word. None of
that is needed in a file of options, so it is refused here, with the line.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ptuning.errors import ConfigError
from ptuning.paths import local_path

LARGEST = 1 << 20
"""Bytes; a file of every option there is has some five thousand."""
DEEPEST = 16
"""Levels of mappings and lists; the options have four."""


def read_config(path: str | Path, what: str) -> dict[str, Any]:
    """The options in a YAML file, as nested mappings.

    Args:
        path: The file; it is read once, so that a pipe will do.
        what: What messages call it, before the path, such as ``--config``; may be empty.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or holds something else than options.
    """
    name = f"{what} {path}".strip()
    file = local_path(path, what or "file")
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}, expected a YAML file of options") from error
    if len(content) > LARGEST:
        raise ConfigError(f"{name}: more than {LARGEST:,} bytes, expected a YAML file of options")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text ({error}), expected a YAML file") from error
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}{_said(error)}") from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"{name}: holds {got}, expected options such as 'data:' and 'fit:'; "
            "ptuning train --print_config shows them all"
        )
    return values


def parse_yaml(text: str) -> Any:
    """What a YAML document says, in plain mappings with text keys, lists, texts, numbers, true and false.

    Raises:
        yaml.YAMLError: whatever is wrong with it.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _said(error: yaml.YAMLError) -> str:
    """PyYAML's complaint in one line, which begins with the line of the file."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": not YAML: {' '.join(str(error).split()).replace('<unicode string>', 'it')}"
    context = f"{error.context}: " if getattr(error, "context", None) else ""
    return f", line {mark.line + 1}: {context}{getattr(error, 'problem', None) or 'not YAML'}"


class _Loader(yaml.SafeLoader):
    """A safe loader that takes what can stand in a file of options, and nothing else."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _wrong("aliases (*name) are not taken; write the value out", self.peek_event())
        if (event := self.peek_event()) is not None and getattr(event, "anchor", None) is not None:
            raise _wrong("anchors (&name) are not taken; write the value out", event)
        self._depth += 1
        if self._depth > DEEPEST:
            raise _wrong(f"nested more than {DEEPEST} levels deep", event)
        found = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._depth -= 1
        return found

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            value = str(node.value) if isinstance(node, yaml.ScalarNode) else "it"
            value = value if len(value) <= 40 else f"{value[:39]}…"
            raise _wrong(f"{value!r} is no {tag}", node) from error

    def construct_undefined(self, node: yaml.Node) -> Any:
        raise _wrong(f"{node.tag:.60} is not taken; expected texts, numbers, lists and mappings", node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _wrong("a key that is no text, expected the name of an option", key)
            if key.value in first:
                line = first[key.value].start_mark.line + 1
                raise _wrong(f"the key {key.value!r} stands twice, first in line {line}", key)
            first[key.value] = key
        return super().construct_mapping(node, deep)


# A date is a text here, such as an output folder's name; "<<" is an alias's other half.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, form) for tag, form in found if tag.rpartition(":")[2] in ("bool", "int", "float", "null")]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: made
    for tag, made in yaml.SafeLoader.yaml_constructors.items()
    if tag is not None and tag.rpartition(":")[2] in ("bool", "int", "float", "null", "str", "seq", "map")
}
_Loader.add_constructor(None, _Loader.construct_undefined)


def _wrong(message: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, message, at.start_mark)
