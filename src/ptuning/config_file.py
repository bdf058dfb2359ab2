"""Reading YAML files of options: plain mappings, lists, strings and numbers; anything else is an error.

PyYAML's safe loader runs no code, but with aliases a kilobyte of YAML can fill the memory, deep nesting and
odd scalars raise arbitrary Python exceptions, and of two equal keys the first is silently dropped. A file of
options needs none of these, so they are refused, with the line number.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ptuning.errors import ConfigError
from ptuning.paths import local_path

MAX_BYTES = 1 << 20
"""Maximum file size; a file with every option takes about five thousand bytes."""
MAX_DEPTH = 16
"""Maximum nesting of mappings and lists; the options have four levels."""
_PLAIN = [f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null")]
"""Of values that YAML does not read as text without quotes."""


def read_config(path: str | Path, what: str, texts: Iterable[Sequence[str]] = ()) -> dict[str, Any]:
    """The options in a YAML file, as nested mappings.

    Args:
        path: The file; it is read only once, so it may be a pipe.
        what: The option's name in messages, such as ``--config``; may be empty.
        texts: As for :func:`parse_yaml`.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or is not a mapping of options.
    """
    name = f"{what} {path}".strip()
    file = local_path(path, what or "file")
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}", expected="a YAML file of options") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{name}: more than {MAX_BYTES:,} bytes", expected="a YAML file of options")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text ({error})", expected="a YAML file") from error
    try:
        values = parse_yaml(text, texts)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}{_yaml_problem(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            name,
            got="an empty file" if values is None else f"a YAML {type(values).__name__}",
            expected="options such as 'data:' and 'fit:'",
            remedy="ptuning train --print_config shows them all",
        )
    return values


def parse_yaml(text: str, texts: Iterable[Sequence[str]] = ()) -> Any:
    """The value of a YAML document: mappings with string keys, lists, strings, numbers, true and false.

    Args:
        texts: The places, each as the keys that lead to it, below which keys and values are strings as they
            are written: ``1`` and ``yes`` too.

    Raises:
        yaml.YAMLError: invalid YAML, or YAML with anything else in it.
    """
    loader = _Loader(text)
    try:
        root: yaml.Node | None = loader.get_single_node()
        for path in texts:
            _as_written(root, path)
        return None if root is None else loader.construct_document(root)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error  # bugs of PyYAML
    finally:
        loader.dispose()


def _as_written(node: yaml.Node | None, path: Sequence[str]) -> None:
    """Make strings of all scalars at and below a place."""
    for key in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for name, value in pairs if name.value == key), None)
    waiting = [node]
    while waiting:
        match waiting.pop():
            case yaml.ScalarNode() as scalar if scalar.tag in _PLAIN:
                scalar.tag = "tag:yaml.org,2002:str"
            case yaml.MappingNode() as mapping:
                waiting += [each for pair in mapping.value for each in pair]
            case yaml.SequenceNode() as sequence:
                waiting += sequence.value


def _yaml_problem(error: yaml.YAMLError) -> str:
    """PyYAML's error message in one line, with the line number first."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": not YAML: {' '.join(str(error).split()).replace('<unicode string>', 'it')}"
    doing = getattr(error, "context", None)
    context = f"{doing}: " if doing else ""
    return f", line {mark.line + 1}: {context}{getattr(error, 'problem', None) or 'not YAML'}"


class _Loader(yaml.SafeLoader):
    """A safe loader restricted to what a file of options may contain."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _yaml_error("aliases (*name) are not supported; write the value out", event)
        if getattr(event, "anchor", None) is not None:
            raise _yaml_error("anchors (&name) are not supported; write the value out", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _yaml_error(f"nested more than {MAX_DEPTH} levels deep", event)
        found = super().compose_node(parent, index)
        self._depth -= 1
        return found

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            value = str(node.value) if isinstance(node, yaml.ScalarNode) else "it"
            value = value if len(value) <= 40 else f"{value[:39]}…"
            raise _yaml_error(f"{value!r} is not a valid {tag}", node) from error

    def construct_undefined(self, node: yaml.Node) -> Any:
        raise _yaml_error(
            f"{node.tag:.60} is not supported, expected strings, numbers, lists and mappings", node
        )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # else it is refused below
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _yaml_error("a key that is not a string, expected the name of an option", key)
            if key.value in first:
                line = first[key.value].start_mark.line + 1
                raise _yaml_error(f"the key {key.value!r} is given twice, first in line {line}", key)
            first[key.value] = key
        return super().construct_mapping(node, deep)


# Dates are strings here, such as the name of an output folder; "<<" (merge) needs an alias.
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


def _yaml_error(message: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, message, at.start_mark)
