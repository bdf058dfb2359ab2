"""A configuration class as command-line options: one file (``--config``), and dotted options over it.

argparse reads options, :mod:`ptuning.config_file` reads files, both into a nested mapping; pydantic, through
the configuration class itself, says what is right. So names, defaults, help and checks have one home.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from argparse import SUPPRESS, Action, ArgumentParser, HelpFormatter, Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml
from docstring_parser import parse as parse_docstring
from pydantic import BaseModel

from ptuning.config_file import parse_yaml, read_config
from ptuning.errors import ConfigError
from ptuning.validation import OneOf

_UNKNOWN = re.compile(r"unrecognized arguments: -{0,2}([^\s=]+)")
_WRONG_TYPE = re.compile(r"argument ([^:]*): invalid (\w+) value: (.*)", re.DOTALL)
_ARGUMENT = re.compile(r"^argument ([^:/]+)(?:/[^:]+)?: ")

_ROLE = re.compile(r":\w+:`~?(?:\w+\.)*(\w+)`")


class Option(NamedTuple):
    """One leaf of a configuration class.

    Attributes:
        default: What holds where it is left out, in words; ``required`` where nothing does.
        choices: The words that it takes, where it takes no others.
        old: Its earlier name, which is still taken; empty if it has none.
    """

    key: str
    is_text: bool
    default: str
    help: str
    choices: tuple[str, ...] = ()
    old: str = ""

    def argument(self) -> dict[str, Any]:
        """What ``add_argument`` is given for it, but for its names; a value is judged by pydantic later."""
        default = self.default if self.default == "required" else f"default: {self.default}"
        return {
            "type": _text if self.is_text else _value,
            "default": SUPPRESS,
            "metavar": "{" + ",".join(self.choices) + "}"
            if self.choices
            else self.key.rpartition(".")[2].upper(),
            "help": f"{self.help} ({default})".replace("%", "%%"),
        }


class _Formatter(HelpFormatter):
    """Help that says an option's value once, however many names it has."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(ArgumentParser):
    """A parser whose complaints are our errors: one line, with the option that was probably meant.

    Attributes:
        renamed: The earlier names of options, by today's.
    """

    renamed: Mapping[str, str] = {}

    def __init__(self, *, prog: str, usage: str, **kwargs: Any) -> None:
        super().__init__(
            prog=prog, usage=f"{prog} {usage}", allow_abbrev=False, formatter_class=_Formatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        line, hint = " ".join(message.split()), ""
        if wrong := _UNKNOWN.search(line):
            close = did_you_mean(wrong[1], [name for each in self._actions for name in each.option_strings])
            hidden = {
                name: each for each in self._actions if each.help == SUPPRESS for name in each.option_strings
            }
            if close in hidden:  # an earlier name
                close = next((f"--{now}" for now, old in self.renamed.items() if f"--{old}" == close), None)
            hint = f"; did you mean {close}?" if close else ""
            line = f"unknown option {wrong[1]}"
        elif typed := _WRONG_TYPE.match(message):
            line = f"{typed[1].partition('/')[0]}: got {typed[3]}, expected {typed[2]}"
        line = _ARGUMENT.sub(r"\1: ", line)
        raise ConfigError(f"{line}{hint}; see: {self.prog} --help")


def did_you_mean(name: str, options: Sequence[str]) -> str | None:
    """The option that was probably meant by ``name``, which has no dashes; its section may be missing."""
    last = {option.lstrip("-").rpartition(".")[2]: option for option in reversed(options)}
    close = difflib.get_close_matches(f"--{name}", options, n=1) or difflib.get_close_matches(name, last, n=1)
    return last.get(close[0], close[0]) if close else None


def add_options(parser: Parser, config: type[BaseModel], short: str = "") -> None:
    """Give ``parser`` every option of ``config``, and ``--config`` for a YAML file of them.

    Args:
        short: The section whose options are also taken without its name.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of the options below; options given here win"
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print the whole configuration, defaults included, and exit",
    )
    parser.renamed = old_names(config)
    groups: dict[str, Any] = {}
    for option in leaves(config):
        section = option.key.partition(".")[0] if "." in option.key else "run"
        group = groups.setdefault(section, None) or parser.add_argument_group(section)
        groups[section] = group
        names = [f"--{option.key}"]
        if section == short:
            names.append(f"--{option.key.partition('.')[2]}")
        group.add_argument(*names, **option.argument())
        if option.old:
            group.add_argument(f"--{option.old}", **{**option.argument(), "help": SUPPRESS})


def old_names(config: type[BaseModel]) -> dict[str, str]:
    """The earlier name of every option that has one, by today's."""
    return {option.key: option.old for option in leaves(config) if option.old}


def nested(given: Namespace, config: type[BaseModel]) -> dict[str, Any]:
    """What the options of ``config`` say, as its nested mapping, over what the file of ``--config`` says."""
    file = getattr(given, "config", None)
    values = {} if file is None else read_config(file, "--config")
    for option in leaves(config):
        names = [name for name in (option.key, option.old) if name and name in given]
        if len(names) > 1:
            raise ConfigError(f"--{names[0]} and --{names[1]}: got both, expected one of them")
        if names:
            if option.old:
                _drop(values, option.old.split("."))
            _put(values, option.key.split("."), getattr(given, names[0]))
    return values


def _drop(values: dict[str, Any], path: Sequence[str]) -> None:
    """Take out what a file has under an earlier name of an option that is given at the command line."""
    for section in path[:-1]:
        values = values[section] if isinstance(values.get(section), dict) else {}
    values.pop(path[-1], None)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put ``value`` where ``path`` leads. What a file has in the place of a section is left to be refused."""
    for section in path[:-1]:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            return
        values = inner
    values[path[-1]] = value


def leaves(kind: Any, prefix: str = "") -> Iterator[Option]:
    """Every option of a configuration class, nested ones dotted; a choice of classes gives all of theirs."""
    seen: set[str] = set()
    for name, annotation, value, text in _fields(kind):
        key = f"{prefix}{name}"
        nested = [member for member in _members(annotation) if _is_config(member)]
        if not nested:
            option = _leaf(key, annotation, value, text)
            before = next((old for old, now in getattr(kind, "OLD_NAMES", {}).items() if now == name), "")
            yield option._replace(old=f"{prefix}{before}" if before else "")
            continue
        found = [(member, each) for member in nested for each in leaves(member, f"{key}.")]
        for _, option in found:
            if option.key not in seen:
                seen.add(option.key)
                yield _shared(option, [each for each in found if each[1].key == option.key], value, text)


def _shared(option: Option, same: Sequence[tuple[Any, Option]], default: Any, what: str) -> Option:
    """One option of what several choices share: with all their words, and each one's own default."""
    if len(same) == 1:
        return option
    name = option.key.rpartition(".")[2]
    if all(each.choices == (each.default,) for _, each in same):  # what tells them apart
        chosen = getattr(default, name)
        return option._replace(
            default=chosen, help=what, choices=tuple(dict.fromkeys(each.default for _, each in same))
        )
    kinds: dict[str, list[str]] = {}
    for member, each in same:
        kinds.setdefault(each.default, []).append(_told_by(member))
    if len(kinds) == 1:
        return option
    told = (f"{value} for {' and '.join(dict.fromkeys(of))}" for value, of in kinds.items())
    return option._replace(default=("; " if any(", " in value for value in kinds) else ", ").join(told))


def _told_by(kind: Any) -> str:
    """The word that chooses a class: its ``depth`` or ``kind``."""
    name, value = next((name, value) for name, _, value, _ in _fields(kind) if name in ("depth", "kind"))
    return f"depth {value}" if name == "depth" else str(value)


class _Required:
    """Stands for the default of a field that has none."""


def _fields(kind: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and help of each field of a pydantic model or a dataclass."""
    if issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            made: Any = info.get_default(call_default_factory=True, validated_data={})
            annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            yield name, annotation, _Required() if info.is_required() else made, info.description or ""
        return
    documented, hints = _documented(kind), get_type_hints(kind)
    for field in dataclasses.fields(cast(Any, kind)):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = _Required() if made is dataclasses.MISSING else made
        yield field.name, hints[field.name], value, documented.get(field.name, "which kind")


def _leaf(key: str, annotation: Any, default: Any, text: str) -> Option:
    members = [member for member in _members(annotation) if member is not types.NoneType]
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    words += [word for each in _metadata(annotation) if isinstance(each, OneOf) for word in each.words()]
    if bool in members:
        words += ["true", "false"]
    only = len(members) == 1 or all(get_origin(member) is Literal for member in members)
    said, _, without = text.rpartition("; ")
    if isinstance(default, _Required):
        shown = "required"
    elif default is not None:
        shown = str(default).lower() if isinstance(default, bool) else str(default)
    elif "If left out" in text:
        shown = "left out"
    elif said and ". " not in without:  # what is said last of an option without a default: what holds instead
        shown, text = without.removesuffix(".").removeprefix("None for "), said
    else:
        shown = "none"
    return Option(key, str in members, shown, text, tuple(map(str, words)) if only else ())


def _documented(kind: type) -> dict[str, str]:
    """The ``Args:`` of a class docstring, without markup."""
    found = parse_docstring(kind.__doc__ or "").params
    texts = {each.arg_name: " ".join((each.description or "").replace("``", "").split()) for each in found}
    return {name: _ROLE.sub(r"\1", text) for name, text in texts.items()}


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for each in get_args(annotation) for member in _members(each))
    return (annotation,)


def _metadata(annotation: Any) -> tuple[Any, ...]:
    return annotation.__metadata__ if get_origin(annotation) is Annotated else ()


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _text(value: str) -> str | None:
    """A text option's value as it was written; ``null`` for none."""
    return None if value == "null" else value


def _value(text: str) -> Any:
    """A number, a truth value or a list, as YAML writes it; a text where it is none of them."""
    try:
        return parse_yaml(text) if text.strip() else text
    except yaml.YAMLError:
        return text
