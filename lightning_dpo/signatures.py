"""Check plain configurations against Python signatures: annotations are the schema, ranges included.

A range is written in the annotation, `beta: Annotated[float, "(0, inf)"]`; round brackets leave the bound out.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union


class ArgumentError(ValueError):
    """A wrong argument: `name`, and a message that says what was found and what is allowed."""

    def __init__(self, name: str, message: str):
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


def check_arguments(target: Callable, arguments: Mapping[str, Any], allow_missing: bool = False) -> None:
    """Raise ArgumentError unless `target(**arguments)` would bind, with values of the annotated types and ranges.

    Args:
        allow_missing: other required arguments may follow, as for a partial.
    """
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for name, value in arguments.items():
        if name not in parameters:
            if takes_any:
                continue
            known = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
            raise ArgumentError(name, f"unknown; allowed: {', '.join(known)}")
        if name in hints and not _fits(value, hints[name]):
            raise ArgumentError(name, f"found {_show(value)}; allowed: {describe(hints[name])}")
    if not allow_missing:
        for name, p in parameters.items():
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in arguments:
                raise ArgumentError(name, "missing")


def _hints(target: Callable) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can resolve
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, args[0]) and (not isinstance(args[1], str) or in_range(value, args[1]))
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args and type(value) in {type(a) for a in args}
    if origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        return isinstance(value, list | tuple)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if hint in (None, type(None)):
        return value is None
    if hint is Path:
        return isinstance(value, str | Path)
    if inspect.isclass(hint):
        return isinstance(value, hint) or (isinstance(value, dict) and "_target_" in value)
    # Callables, protocols and type variables: their receiver checks them.
    return True


def in_range(value: float, interval: str) -> bool:
    """Whether a number is in an interval such as "(0, inf)" or "[0, 0.5)".

    >>> in_range(0.5, "[0, 0.5)"), in_range(0, "[0, 0.5)")
    (False, True)
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def describe(hint: Any) -> str:
    """A type in words.

    >>> describe(Annotated[float, "(0, inf)"] | None)
    'a number in (0, inf) or null'
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{describe(args[0])} in {args[1]}" if isinstance(args[1], str) else describe(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(a) for a in args))
    if origin is Literal:
        return " or ".join(map(str, args))
    words = {
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        dict: "a mapping",
        Path: "a path",
        type(None): "null",
    }
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _show(value: Any) -> str:
    return "null" if value is None else f"the text {value!r}" if isinstance(value, str) else repr(value)


def nodes(node: Any, path: str = "", lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Every node below the root of a plain configuration, with its dotted key.

    Args:
        lists: also the members of lists, which are numbered.

    >>> [key for key, _ in nodes({"a": {"b": 1}, "c": [2]})]
    ['a', 'a.b', 'c', 'c.0']
    """
    if path:
        yield path, node
    members = (
        node.items() if isinstance(node, dict) else enumerate(node) if lists and isinstance(node, list | tuple) else ()
    )
    for name, child in members:
        yield from nodes(child, f"{path}.{name}" if path else str(name), lists)


def leaves(node: Any) -> dict[str, Any]:
    """The values of a plain configuration by dotted key; a list is one value."""
    return {key: value for key, value in nodes(node, lists=False) if not isinstance(value, dict)}
