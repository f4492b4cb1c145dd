"""Secrets of the environment are removed from everything printed or logged, and refused in a configuration.

A secret is the value of an environment variable whose name says so (HF_TOKEN, WANDB_API_KEY, DB_PASSWORD, ...).
"""

import json
import logging
import multiprocessing
import os
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from lightning_dpo.console import end_at_broken_pipe
from lightning_dpo.errors import ConfigError
from lightning_dpo.signatures import nodes

NAME = re.compile(
    r"(_(KEY|PWD|PAT|AUTH)|^KEY|API_?KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE
)
KEY = re.compile(
    r"((api|access|private|secret|encryption)[-_]?key|secret|password|passwd|passphrase|credentials?|(^|[._-])(auth|pwd)"
    r"|token)$",
    re.IGNORECASE,
)
"""Keys of a configuration that hold a secret."""

SHORTEST = 6
"""Characters; a shorter value would redact ordinary words."""

QUERY = re.compile(r"://\S*[?&][\w-]*(token|key|secret|signature|sig|password|credential)[\w-]*=", re.IGNORECASE)
"""A query of a URL that gives access to a file."""
IN_URL = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")


def secrets() -> dict[str, str]:
    """The secrets of the environment by variable, longest first, so that no part of one is left."""
    found = {n: v.strip() for n, v in os.environ.items() if NAME.search(n) and len(v.strip()) >= SHORTEST}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def redact(text: str) -> str:
    """Replace each secret (plain, quoted or escaped) by its variable, as in `[HF_TOKEN]`; remove passwords of URLs."""
    for name, value in secrets().items():
        lines = [line for line in value.splitlines() if len(line) >= SHORTEST]
        for form in (value, escaped(value), repr(value)[1:-1], urllib.parse.quote(value, safe=""), *lines):
            text = text.replace(form, f"[{name}]")
    return IN_URL.sub("[password]", text)


def escaped(text: str) -> str:
    """The text as JSON writes it, without the quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def holder(text: str) -> str | None:
    """The variable whose value the text contains, or the part of a URL that is a secret; None: no secret."""
    for part, found in (("password", IN_URL), ("query", QUERY)):
        if found.search(text):
            return f"a URL's {part}"
    return next((name for name, value in secrets().items() if value in text), None)


class Formatter(logging.Formatter):
    """The output of another formatter, tracebacks included, without secrets."""

    def __init__(self, inner: logging.Formatter | None):
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return redact(self.inner.format(record))


def protect_logs() -> None:
    """Redact what the current handlers of the root logger write; a later logging set-up makes new handlers."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, Formatter):
            handler.setFormatter(Formatter(handler.formatter))


class Stream:
    """A text stream that redacts what is written to it, also where its `write` is replaced, as W&B does."""

    def __init__(self, inner: TextIO):
        self.__dict__.update(inner=inner, sink=inner.write)

    @property
    def write(self) -> Any:
        sink = self.__dict__["sink"]

        def write(text: Any) -> Any:
            try:
                return sink(redact(text) if isinstance(text, str) else text)
            except BrokenPipeError:
                end_at_broken_pipe()

        return write

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["sink" if name == "write" else name] = value


@contextmanager
def protected_output() -> Iterator[None]:
    """Redact standard output and error of this process inside the block."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Stream(out), Stream(err)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def protect_worker() -> None:
    """Redact standard output and error of a spawned worker; a forked one has its parent's streams."""
    # By name: while a worker imports its function, parent_process() is still None.
    if multiprocessing.current_process().name != "MainProcess" and not isinstance(sys.stdout, Stream):
        sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)  # type: ignore[assignment]


def clean(path: Path) -> None:
    """Redact a text file that other programs have written."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    if (cleaned := redact(text)) != text:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(cleaned, encoding="utf-8", errors="surrogateescape")
        os.replace(temporary, path)


def refuse_secrets(overrides: list[str]) -> None:
    """Errors: ConfigError for a secret on the command line, before Hydra copies it into files."""
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if "=" in override and KEY.search(key):
            raise ConfigError(f"{key}=...: secrets come from the environment (WANDB_API_KEY, HF_TOKEN), not from a key")
        if name := holder(override):
            raise ConfigError(f"{redact(key)}=... holds the value of {name}, which would be written to every file")


def refuse_secret_values(plain: dict[str, Any], in_file: Callable[[str], str] = lambda key: "") -> None:
    """Errors: ConfigError for a secret in a configuration, which would reach files, W&B and names. Repeats none."""
    for path, node in nodes(plain):
        shown = f"{redact(path)}{in_file(path)}"
        if node is not None and node != "" and KEY.search(path):
            raise ConfigError(f"{shown}: secrets come from the environment (WANDB_API_KEY, HF_TOKEN), not from a key")
        if name := holder(path) or (not isinstance(node, dict | list) and holder(str(node))):
            raise ConfigError(f"{shown} holds the value of {name}, which would be written to every file; leave it out")
