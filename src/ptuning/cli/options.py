"""A configuration class as command-line options: one file (``--config``), and dotted options over it.

jsonargparse reads files and options into a nested mapping; pydantic, through the configuration class
itself, says what is right. So names, defaults, help and checks have one home.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from argparse import HelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import SUPPRESS, ArgumentParser
from pydantic import BaseModel

from ptuning.errors import ConfigError

_WRONG_TYPE = re.compile(r"Parser key \"([\w.]+)\": Expected an? <class '(\w+)'>\. Got value: (.*)")


class Option(NamedTuple):
    """One leaf of a configuration class."""

    key: str
    is_text: bool
    default: str
    help: str

    def argument(self) -> dict[str, Any]:
        """What ``add_argument`` is given for it, but for its names; a value is judged by pydantic later."""
        return {
            "type": _text if self.is_text else Any,
            "default": SUPPRESS,
            "metavar": self.key.rpartition(".")[2].upper(),
            "help": f"{self.help} (default: {self.default})".replace("%", "%%"),
        }


class Parser(ArgumentParser):
    """A parser whose complaints are our errors: one line, with the option that was probably meant."""

    def __init__(self, *, prog: str, usage: str, **kwargs: Any) -> None:
        super().__init__(
            prog=prog, usage=f"{prog} {usage}", allow_abbrev=False, formatter_class=HelpFormatter, **kwargs
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"(?:[Uu]nrecognized arguments: |Option '|Key \")-{0,2}([\w.\-]+)", line)
        hint = ""
        if wrong:
            close = difflib.get_close_matches(f"--{wrong.group(1)}", known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            line = f"unknown option {wrong.group(1)}"
        elif typed := _WRONG_TYPE.match(line):
            line = f"--{typed[1]}: got {typed[3]!r}, expected {typed[2]}"
        raise ConfigError(f"{line}{hint}; see: {self.prog} --help")


def add_options(parser: Parser, config: type[BaseModel]) -> None:
    """Give ``parser`` every option of ``config``, and ``--config`` for a YAML file of them."""
    parser.add_argument(
        "--config", action="config", help="YAML file of the options below; options given here win"
    )
    for (
        action
    ) in parser._actions:  # --config brought its own --print_config; ours prints what pydantic made of it
        if "--print_config" in action.option_strings:
            action.help, action.metavar = "print the whole configuration, defaults included, and exit", ""
    groups: dict[str, Any] = {}
    for option in leaves(config):
        section = option.key.partition(".")[0] if "." in option.key else "run"
        group = groups.setdefault(section, None) or parser.add_argument_group(section)
        groups[section] = group
        group.add_argument(f"--{option.key}", **option.argument())


def parse(
    parser: Parser, config: type[BaseModel], argv: Sequence[str], extra: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """``argv`` as the configuration's nested mapping, the ``extra`` options' values, whether to print."""
    for option, value in zip(argv, [*argv[1:], ""], strict=True):
        if option == "--config" or option.startswith("--config="):
            _check_file(Path(option.partition("=")[2] or value))
    printing = "--print_config" in argv
    found = parser.parse_args([given for given in argv if given != "--print_config"]).as_dict()
    found.pop("config", None)
    return found, {name: found.pop(name, None) for name in extra}, printing


def _check_file(path: Path) -> None:
    """Refuse a file of options that cannot be read as one, by its name."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}, expected a YAML file of options") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 text ({error}), expected a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--config {path}: not YAML: {str(error).replace('<unicode string>', 'it')}"
        ) from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"--config {path}: holds {got}, expected options such as 'data:' and 'fit:'; "
            "--print_config shows them all"
        )


def leaves(kind: type, prefix: str = "") -> Iterator[Option]:
    """Every option of a configuration class, nested ones dotted; a choice of classes gives all of theirs."""
    seen: set[str] = set()
    for name, annotation, default, text in _fields(kind):
        key = f"{prefix}{name}"
        nested = [member for member in _members(annotation) if _is_config(member)]
        found = (
            [option for member in nested for option in leaves(member, f"{key}.")]
            if nested
            else [Option(key, _is_text(annotation), default, text)]
        )
        yield from _distinct(found, seen)


def _distinct(options: Sequence[Option], seen: set[str]) -> Iterator[Option]:
    """One option a key; a key that several choices share shows all their defaults."""
    for option in options:
        if option.key not in seen:
            seen.add(option.key)
            defaults = dict.fromkeys(other.default for other in options if other.key == option.key)
            yield option._replace(default=" or ".join(defaults))


def _fields(kind: type) -> Iterator[tuple[str, Any, str, str]]:
    """Name, type, default and help of each field of a pydantic model or a dataclass."""
    if issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            made: Any = info.get_default(call_default_factory=True, validated_data={})
            yield name, info.annotation, _default(info.is_required(), made), info.description or ""
        return
    documented, hints = _documented(kind), get_type_hints(kind)
    for field in dataclasses.fields(cast(Any, kind)):
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        text = documented.get(field.name, "which kind")
        yield field.name, hints[field.name], _default(value is dataclasses.MISSING, value), text


def _default(required: bool, value: Any) -> str:
    if required:
        return "required"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _documented(kind: type) -> dict[str, str]:
    """The ``Args:`` of a class docstring, first sentences."""
    found = parse_docstring(kind.__doc__ or "").params
    return {each.arg_name: " ".join((each.description or "").replace("``", "").split()) for each in found}


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for each in get_args(annotation) for member in _members(each))
    return (annotation,)


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _is_text(annotation: Any) -> bool:
    return str in _members(annotation)


def _text(value: Any) -> Any:
    """A text option's value as it was written; ``null`` for none."""
    return None if value == "null" else value
