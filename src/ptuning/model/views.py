"""Views: several module trees over the same tensors, so that tasks share weights and nothing else.

:func:`view` makes a second tree: every module is copied without its tensors, so training flags, hooks and
replaced ``forward`` methods belong to one tree, while Parameters and buffers are the same objects. Both trees
use the same dictionaries of them, so what ``to`` or ``half`` changes is changed in all views.

:func:`placed` makes a tree for a single forward pass, in which some parameters have other values. Only the
modules on the path to these are copied, and the given tree is never written to. So threads can use one tree
at the same time, each with its own values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


class Bound:
    """Belongs to the module whose ``__dict__`` it is in, such as a replacement of its ``forward``."""

    def rebound(self, module: nn.Module) -> Any:
        """The same for ``module``, a copy of the module that this belongs to."""
        raise NotImplementedError  # pragma: no cover - abstract

    def unbound(self) -> Any:
        """What a view gets instead, for the same module; ``None`` for nothing."""
        return None


def shallow(module: _Module, *, new_tree: bool = False) -> _Module:
    """A copy of ``module`` with the same dictionaries of parameters, buffers, hooks and children.

    Args:
        new_tree: Leave out what is :class:`Bound` to its old tree.
    """
    made = object.__new__(type(module))  # copy.copy would ask a parametrised module to be pickled
    own = vars(made)
    for name, value in vars(module).items():
        if isinstance(value, Bound):
            value = value.unbound() if new_tree else value.rebound(made)
            if value is None:
                continue
        own[name] = rebound(value, module, made)
    return made


def rebound(value: Any, module: nn.Module, made: nn.Module) -> Any:
    """``value``; a method of ``module`` becomes ``made``'s: accelerate replaces ``forward`` with one."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, made)
    if isinstance(value, functools.partial) and any(each is module for each in value.args):
        args = (made if each is module else each for each in value.args)
        return functools.update_wrapper(functools.partial(value.func, *args, **value.keywords), value)
    return value


_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def view(module: _Module, keep: Callable[[Any], bool] = lambda hook: True) -> _Module:
    """A tree of its own over the same tensors.

    Args:
        keep: Which hooks the view starts with; those registered later belong to one tree only.
    """
    return _view(module, keep, {})


def _view(module: _Module, keep: Callable[[Any], bool], known: dict[int, nn.Module]) -> _Module:
    if id(module) in known:  # a module in two places is in the same two places of the view
        return known[id(module)]  # type: ignore[return-value]
    made = known[id(module)] = shallow(module, new_tree=True)
    for name in _HOOKS:
        if isinstance(hooks := vars(made).get(name), dict):
            vars(made)[name] = type(hooks)((key, hook) for key, hook in hooks.items() if keep(hook))
    vars(made)["_modules"] = {
        name: None if child is None else _view(child, keep, known) for name, child in module._modules.items()
    }
    return made


def with_child(module: _Module, name: str, child: nn.Module) -> _Module:
    """``module`` for one forward pass, with another module in place of its child of that name."""
    made = shallow(module)
    vars(made)["_modules"] = {**module._modules, name: child}
    return made


def with_modules(module: _Module, modules: Mapping[str, nn.Module]) -> _Module:
    """``module`` for one forward pass, with other modules in place of those of these names (``a.b``)."""
    below: dict[str, dict[str, nn.Module]] = {}
    made = module
    for name, replacement in modules.items():
        child, dot, rest = name.partition(".")
        if dot:
            below.setdefault(child, {})[rest] = replacement
        else:
            made = with_child(made, child, replacement)
    for name, inner in below.items():
        made = with_child(made, name, with_modules(module.get_submodule(name), inner))
    return made


def placed(module: _Module, values: Mapping[str, Tensor], private: Iterable[str] = ()) -> _Module:
    """``module`` for one forward pass, with ``values`` in place of its parameters of those names.

    Args:
        private: Names of modules that write to their buffers while they run; the pass gets its own copies.
    """
    made = shallow(module)
    below: dict[str, tuple[dict[str, Tensor], list[str]]] = {}
    own: dict[str, Any] = {}
    for name, value in values.items():
        child, dot, rest = name.partition(".")
        if dot:
            below.setdefault(child, ({}, []))[0][rest] = value
        else:
            own[name] = value
    for name in private:
        child, _, rest = name.partition(".")
        if child:
            below.setdefault(child, ({}, []))[1].append(rest)
        else:
            vars(made)["_buffers"] = {
                key: None if value is None else value.clone() for key, value in module._buffers.items()
            }
    if own:
        vars(made)["_parameters"] = {**module._parameters, **own}
    if below:
        children = {name: placed(module.get_submodule(name), *parts) for name, parts in below.items()}
        vars(made)["_modules"] = {**module._modules, **children}
    return made
