"""The command line as it is typed: what Hydra cannot read of it, and what to type instead."""

import os
import re
import shlex
from collections.abc import Iterable

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lightning_dpo.config.suggest import choices

HOME = re.compile(
    r"""(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|(?P<before>(?:^|[,\[({:])\s*)~(?P<rest>(?:\\.|\$\{(?:[^{}]|\{[^{}]*\})*\}|[^,\[\](){}"'\\])*)"""
)
"""Quoted texts, and unquoted ones that begin with `~`: a whole value, or a member of a list, a mapping or a sweep."""


def quoted(value: str) -> str:
    r"""A text, in double quotes where Hydra could not read it without them.

    >>> quoted("outputs/a-1"), quoted('my runs/"b", c\\')
    ('outputs/a-1', '"my runs/\\"b\\", c\\\\"')
    """
    if re.fullmatch(r"[\w./:-]+", value, re.ASCII):
        return value
    inside = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'"{inside}"'


def readable(override: str) -> str:
    """The override with quotes around paths of the home folder: Hydra has no `~` in an unquoted value, and no null for
    a group, which is the name none.

    >>> readable("data.train=[~/a.jsonl, b]"), readable("~logger"), readable("logger=null")
    ('data.train=["~/a.jsonl", b]', '~logger', 'logger=none')
    """
    key, equals, value = override.partition("=")
    if value == "null" and "none" in choices(key):
        return f"{key}=none"
    return override if key.startswith("~") else f"{key}{equals}{HOME.sub(_quoted_home, value)}"


def _quoted_home(found: re.Match[str]) -> str:
    rest = found["rest"]
    if rest is None or not re.match(r"[\w.-]*(/|\s*$)", rest):
        return found[0]
    read = parsed(f"path={rest}")  # with the escapes that Hydra has for unquoted texts
    path = read.value() if read is not None else None
    return f"{found['before']}{quoted(f'~{path}')}" if isinstance(path, str) else found[0]


def parsed(override: str) -> Override | None:
    """An override as Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def remedy(override: str) -> str:
    """What to type for an override that Hydra cannot read, each checked to give exactly the value; else empty."""
    key, equals, value = override.partition("=")
    if not equals:
        return "an override is KEY=VALUE; put quotes around one with spaces"
    listed = re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)
    several = [part.strip() for part in (listed[1] if listed else value).split(",")]
    joined = ",".join(map(quoted, several))
    if listed:
        return _type([(f"{key}=[{joined}]", several)])
    if value.startswith(("[", "{")) or re.search("['\"].*,|,.*['\"]", value):
        return "put double quotes around each text in it"
    return _type([(f"{key}={quoted(value)}", value), *([(f"{key}={joined}", several)] if len(several) > 1 else [])])


def _type(choices: Iterable[tuple[str, str | list[str]]]) -> str:
    found = []
    for text, wanted in choices:
        read = parsed(text)
        if read is None:
            continue
        sweep = [getattr(value, "text", value) for value in read.sweep_iterator()] if read.is_sweep_override() else None
        if (sweep or read.value()) == wanted:
            found.append(shlex.quote(text))
    return f"type {', or for several values '.join(found)}" if found else ""


def in_order(arguments: list[str]) -> list[str]:
    """The arguments with the overrides in one piece, as Hydra's parser requires, and the options behind them if they
    stood between."""
    parser = get_args_parser()
    arguments = [re.sub(r"(?<==)~.*", lambda found: os.path.expanduser(found[0]), argument)
                 if argument.startswith("--config-") else argument for argument in arguments]  # fmt: skip
    if not parser.parse_known_args(arguments)[1]:
        return arguments
    overrides = parser.parse_intermixed_args(arguments).overrides
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    return [*overrides, *options]
