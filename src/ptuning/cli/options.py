"""A configuration class as command-line options: a YAML file (``--config``), and dotted options that
override it.

argparse parses options, :mod:`ptuning.config_file` parses files, both into a nested mapping, and pydantic
validates it with the configuration class. So names, defaults, help and checks are defined in one place.
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

_ROLE = re.compile(r"\s*\(:\w+:`[^`]*`\)|:\w+:`~?(?:\w+\.)*(\w+)`")
_SENTENCE = re.compile(r"\.\s+(?=[A-Z(])")
REQUIRED = "required"
SYNONYMS = {"lr": "learning_rate", "batch": "batch_size", "model": "backbone", "metric": "select_by"}
"""What users of other libraries may type."""
LIKE = 0.7
"""How similar a wrong option must be to one that exists, for it to be suggested."""
SHORT = 8
"""A first sentence with fewer characters, such as the symbol of a size, is not a help text of its own."""


class Option(NamedTuple):
    """One option of a configuration class.

    Attributes:
        key: Its dotted name.
        is_text: Whether its value may be a string.
        default: The default in words; for a required option ``required``, perhaps with what; empty for an
            optional one without a default.
        help: The full description.
        choices: The allowed words, if no other values are allowed.
        applies_to: The choices of the enclosing options that it is for, if it is not for all.
        old: Its earlier name, which is still accepted; empty if it has none.
        is_mapping: Whether it is a mapping of text, which is read as it is written.
    """

    key: str
    is_text: bool
    default: str
    help: str
    choices: tuple[str, ...] = ()
    applies_to: tuple[str, ...] = ()
    old: str = ""
    is_mapping: bool = False

    def argument(self) -> dict[str, Any]:
        """The arguments of ``add_argument`` without the names; pydantic validates the value later."""
        default = self.default
        if default and not default.startswith(REQUIRED):
            default = f"default: {default}"
        notes = "; ".join(
            filter(None, (f"for {', '.join(self.applies_to)}" if self.applies_to else "", default))
        )
        first, *rest = _SENTENCE.split(self.help, maxsplit=2)
        summary = (". ".join([first, *rest[:1]]) if len(first) < SHORT else first).rstrip(".")
        if re.match(r"[A-Z][a-z]+ ", summary) and not summary.startswith("Hub "):  # a docstring's sentence
            summary = summary[:1].lower() + summary[1:]
        return {
            "type": _mapping if self.is_mapping else _text if self.is_text else _value,
            "default": SUPPRESS,
            "metavar": "{" + ",".join(self.choices) + "}"
            if self.choices
            else self.key.rpartition(".")[2].upper(),
            "help": (f"{summary} ({notes})" if notes else summary).replace("%", "%%"),
        }


class _Formatter(HelpFormatter):
    """Help that shows the value of an option once, after all of its names."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(ArgumentParser):
    """A parser that raises ``ConfigError``: one line, with the option that was probably meant.

    Attributes:
        renamed: The earlier names of options, by their current ones.
    """

    renamed: Mapping[str, str] = {}

    def __init__(self, *, prog: str, usage: str, **kwargs: Any) -> None:
        super().__init__(
            prog=prog, usage=f"{prog} {usage}", allow_abbrev=False, formatter_class=_Formatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        line, hint = " ".join(message.split()), ""
        see = f"see: {self.prog} --help"
        if wrong := _UNKNOWN.search(line):
            close = did_you_mean(wrong[1], [name for each in self._actions for name in each.option_strings])
            hidden = {name for each in self._actions if each.help == SUPPRESS for name in each.option_strings}
            if close in hidden:  # an earlier name
                close = next((f"--{now}" for now, old in self.renamed.items() if f"--{old}" == close), None)
            hint = f"did you mean {close}?; " if close else ""
            raise ConfigError(f"unknown option {wrong[1]}", remedy=f"{hint}{see}")
        if typed := _WRONG_TYPE.match(message):
            raise ConfigError(typed[1].partition("/")[0], got=typed[3], expected=typed[2], remedy=see)
        line = _ARGUMENT.sub(r"\1: ", line)
        raise ConfigError(f"{line}{hint}; see: {self.prog} --help")


def did_you_mean(name: str, options: Sequence[str]) -> str | None:
    """The option that was probably meant by ``name`` (without dashes); its section may be missing."""
    options = [option for option in options if option not in ("-h", "--help")]
    last = {option.lstrip("-").rpartition(".")[2]: option for option in reversed(options)}
    section, dot, word = name.rpartition(".")
    name = section + dot + SYNONYMS.get(word, word)
    if name in last:  # only the section is missing
        return last[name]
    if f"--{name}" in options:
        return f"--{name}"
    close = difflib.get_close_matches(f"--{name}", options, n=1, cutoff=LIKE)
    close = close or difflib.get_close_matches(name, last, n=1, cutoff=LIKE)
    return last.get(close[0], close[0]) if close else None


def add_options(parser: Parser, config: type[BaseModel], short: str = "") -> None:
    """Add all options of ``config`` to ``parser``, and ``--config`` for a YAML file of them.

    Args:
        short: The section with options that may also be given without its name.
    """
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with the options below; options on the command line override it",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="print the full configuration, including defaults, as YAML and exit",
    )
    parser.renamed = old_names(config)
    groups: dict[str, Any] = {}
    for option in leaves(config):
        section = option.key.partition(".")[0] if "." in option.key else "run"
        group = groups.setdefault(section, None) or parser.add_argument_group(
            f"{section} options" + (" (the prefix 'data.' may be left out)" if section == short else "")
        )
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
    """The given options of ``config`` as a nested mapping, on top of those from the file of ``--config``."""
    file = getattr(given, "config", None)
    options = list(leaves(config))
    texts = [option.key.split(".") for option in options if option.is_mapping]
    values = {} if file is None else read_config(file, "--config", texts)
    for option in options:
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
    """Set the value at ``path``. If a file has something else in place of a section, pydantic refuses it
    later.
    """
    for section in path[:-1]:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            return
        values = inner
    values[path[-1]] = value


def leaves(kind: Any, prefix: str = "") -> Iterator[Option]:
    """All options of a configuration class, nested ones dotted; of a union, those of all its classes."""
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
                same = [each for each in found if each[1].key == option.key]
                if len(same) < len(nested):
                    own = tuple(dict.fromkeys(_choice_name(member) for member, _ in same))
                    option = option._replace(applies_to=(*own, *option.applies_to))
                if types.NoneType in _members(annotation):
                    option = _if_given(option, f"{_choice_name(nested[0])} {name}", text)
                yield _merged(option, same, value, text)


def _if_given(option: Option, what: str, text: str) -> Option:
    """An option of a section that may be left out.

    Args:
        what: What the section gives.
        text: The section's help, which ends with what holds without it.
    """
    if option.default == REQUIRED:
        return option._replace(default=f"{REQUIRED} with a {what}")
    if option.choices == (option.default,):
        without = _leaf(option.key, None, None, text)
        return option._replace(default=without.default, help=without.help)
    return option


def _merged(option: Option, same: Sequence[tuple[Any, Option]], default: Any, what: str) -> Option:
    """An option that several classes of a union have: with all choices, and the default of each class."""
    if len(same) == 1:
        return option
    name = option.key.rpartition(".")[2]
    if hasattr(default, name) and all(each.choices == (each.default,) for _, each in same):  # discriminator
        chosen = getattr(default, name)
        return option._replace(
            default=chosen, help=what, choices=tuple(dict.fromkeys(each.default for _, each in same))
        )
    kinds: dict[str, list[str]] = {}
    for member, each in same:
        kinds.setdefault(each.default, []).append(_choice_name(member))
    if len(kinds) == 1:
        return option
    parts = (f"{value} for {' and '.join(dict.fromkeys(of))}" for value, of in kinds.items())
    joint = "; " if any(", " in value for value in kinds) else ", "
    return option._replace(default=joint.join(parts), applies_to=())


def _choice_name(kind: Any) -> str:
    """The word that selects a class: its ``depth`` or ``kind``."""
    name, value = next((name, value) for name, _, value, _ in _fields(kind) if name in ("depth", "kind"))
    return f"depth {value}" if name == "depth" else str(value)


class _Required:
    """The default of a required field."""


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
        yield field.name, hints[field.name], value, documented.get(field.name, "the kind")


def _leaf(key: str, annotation: Any, default: Any, text: str) -> Option:
    members = [member for member in _members(annotation) if member is not types.NoneType]
    words = [word for member in members if get_origin(member) is Literal for word in get_args(member)]
    words += [word for each in _metadata(annotation) if isinstance(each, OneOf) for word in each.words()]
    if bool in members:
        words += ["true", "false"]
    only = len(members) == 1 or all(get_origin(member) is Literal for member in members)
    start, _, end = text.rpartition("; ")
    if isinstance(default, _Required):
        shown = REQUIRED
    elif default is not None and default not in ((), {}):
        shown = str(default).lower() if isinstance(default, bool) else str(default)
    elif "If left out" in text:
        shown = "chosen automatically"
    elif start and ". " not in end:  # the last part of the text says what happens without a value
        shown, text = end.removesuffix(".").removesuffix(" if left out").removeprefix("None for "), start
    else:
        shown = ""
    return Option(
        key,
        str in members,
        shown,
        text,
        tuple(map(str, words)) if only else (),
        is_mapping=any(get_origin(member) is dict for member in members),
    )


def _documented(kind: type) -> dict[str, str]:
    """The ``Args:`` of a class docstring, without markup and cross references."""
    found = parse_docstring(kind.__doc__ or "").params
    texts = {each.arg_name: " ".join((each.description or "").replace("``", "").split()) for each in found}
    return {name: _ROLE.sub(lambda found: found[1] or "", text) for name, text in texts.items()}


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
    """The value of a string option, unchanged; ``null`` means no value."""
    return None if value == "null" else value


def _mapping(text: str) -> Any:
    """A mapping in YAML syntax, with keys and values as they are written."""
    return _value(text, texts=[()])


def _value(text: str, texts: Sequence[Sequence[str]] = ()) -> Any:
    """A number, boolean, list or mapping in YAML syntax; otherwise a string."""
    try:
        return parse_yaml(text, texts) if text.strip() else text
    except yaml.YAMLError:
        return text
