"""Where a record holds the fields of a preference pair: names of columns, and paths into nested values.

A name of `data.columns` is that of a column, or else a path: `input.messages` is a key of an object, `turns[0]` an
element of a list (`turns[-1]` the last), and `answers[].text` the list of that key of each element.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal

from lightning_dpo.data.label import check_label
from lightning_dpo.data.rows import BadRow, is_empty, kind_of
from lightning_dpo.errors import DataError

PAIR = ("prompt", "chosen", "rejected", "responses", "ranks", "scores")
CONTEXT = ("system", "history", "input", "tools", "chat_template_kwargs")
"""Fields around the prompt, each of which may be absent from a record."""
COLUMNS: Mapping[str, str | None] = {**{name: name for name in (*PAIR, *CONTEXT)}, "label": None}

PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[(-?\d+)?\])*")
STEP = re.compile(r"\[(-?\d*)\]|([^.\[\]]+)")
EACH = "[]"
ABSENT = object()

RankedPairs = Literal["all", "best_worst", "adjacent"]
Step = str | int
"""A key; an index; or EACH, which no key of a path can be, since brackets are not part of keys."""
Tree = dict[Step, Any]
"""The steps that are read from a value, each with the tree below it. Below an empty tree everything is read."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How records are read. The arguments are those of PreferenceDataModule.

    Errors: DataError for an unknown name in `columns`, or options that contradict each other.
    """

    columns: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    weight_column: str | None = None
    margin_column: str | None = None
    ranked: RankedPairs = "all"
    label: Mapping[str, Any] | None = None
    wrap: Literal["chat"] | None = None
    join: str | None = None

    def __post_init__(self):
        if unknown := set(self.columns) - set(COLUMNS):
            raise DataError(f"data.columns: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(COLUMNS)}")
        if wrong := [field for field, name in self.columns.items() if not isinstance(name, str | None)]:
            raise DataError(f"data.columns.{wrong[0]}={self.columns[wrong[0]]}: expected the name of a column, or null")
        if self.wrap and self.join is not None:
            raise DataError(f"data.join={self.join!r} with data.wrap={self.wrap}: messages have nothing between them")
        if (self.label is None) != (self.columns.get("label") is None):
            example = "data.columns.label=winner and data.label={first: model_a, second: model_b}"
            raise DataError(f"data.label and data.columns.label need each other; type both, such as {example}")
        if self.label is not None:
            check_label(self.label)

    def key(self) -> dict[str, Any]:
        """All that decides how records are read, for the key of a cache. Newer options count only where they are set,
        so that older entries are found."""
        columns = {**COLUMNS, **self.columns}
        newer = {"label": self.label, "wrap": self.wrap, "join": self.join}
        return {
            "columns": {field: name for field, name in columns.items() if field in PAIR or name != COLUMNS[field]},
            "weight_column": self.weight_column,
            "margin_column": self.margin_column,
            "ranked": self.ranked,
            **{name: value for name, value in newer.items() if value is not None},
        }

    @cached_property
    def names(self) -> dict[str, str | None]:
        """The name of each field. The default name of a context field yields to another field that reads the column."""
        names = {**COLUMNS, **self.columns}
        default = {field for field in CONTEXT if names[field] == field}
        read = [*(name for field, name in names.items() if field not in default), *self._numbers]
        taken = {column for name in read if name for column in (name, steps(name)[0])}
        return {field: None if field in default & taken else name for field, name in names.items()}

    @cached_property
    def swapped_names(self) -> dict[str, str | None]:
        """The names for a record whose label prefers the column `rejected`."""
        return {**self.names, "chosen": self.names["rejected"], "rejected": self.names["chosen"]}

    @property
    def _numbers(self) -> list[str]:
        return [name for name in (self.weight_column, self.margin_column) if name]

    @cached_property
    def _pair_tree(self) -> Tree:
        return self._tree("prompt", "chosen", "rejected", "label")

    @cached_property
    def _list_tree(self) -> Tree:
        return self._tree("prompt", "responses", "ranks", "scores")

    def _tree(self, *fields: str) -> Tree:
        tree: Tree = {}
        for name in [*(self.names[field] for field in (*fields, *CONTEXT)), *self._numbers]:
            if name:
                tree[name] = {}  # a column of this very name is read before a path
                _grow(tree, steps(name))
        return tree

    def read(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that the record has; of CONTEXT those that are not empty. Errors: BadRow."""
        found = {}
        for field, name in self.names.items():
            if (
                name
                and (value := value_of(record, name)) is not ABSENT
                and (field not in CONTEXT or not is_empty(value))
            ):
                found[field] = value
        return found

    def unread(self, record: Mapping[str, Any], ranked: bool) -> Iterator[str]:
        """Names of the columns and nested keys that are not empty and are not read, by a ranked list or by a pair."""
        return _unread(record, self._list_tree if ranked else self._pair_tree, "")


def value_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column or of a path, ABSENT if a key or an element is missing, None if it is within null.

    Errors: BadRow if a path does not fit the types.

    >>> record = {"input": {"turns": ["a", "b"]}, "answers": [{"text": "c"}, {"text": "d"}]}
    >>> [value_of(record, name) for name in ("input.turns[-1]", "answers[].text")]
    ['b', ['c', 'd']]
    """
    if name in record:
        return record[name]
    path = steps(name)
    return _at(record, path, name) if len(path) > 1 else ABSENT


def _at(value: Any, path: Sequence[Step], name: str) -> Any:
    for i, step in enumerate(path):
        if value is None:
            return None
        wanted = dict if isinstance(step, str) and step != EACH else list
        if not isinstance(value, wanted):
            kind = "an object" if wanted is dict else "a list"
            raise BadRow("type", f"found {kind_of(value)} where {step!r} needs {kind}", name)
        if step == EACH:
            elements = [_at(element, path[i + 1 :], name) for element in value]
            if ABSENT in elements:
                at = elements.index(ABSENT)
                raise BadRow("missing", "this element has no such key", located(name, f"[{at}]"))
            return elements
        if isinstance(value, dict):
            value = value.get(step, ABSENT)
        else:
            value = value[int(step)] if -len(value) <= int(step) < len(value) else ABSENT
        if value is ABSENT:
            return ABSENT
    return value


def located(name: str, at: str) -> str:
    """The place `at` (`[2]` or `[2].content`) within a field: the element of a path that names each.

    >>> located("answers[].text", "[2]"), located("prompt", "[0].content")
    ('answers[2].text', 'prompt[0].content')
    """
    if EACH not in name or not at:
        return name + at
    index, bracket, rest = at.partition("]")
    return name.replace(EACH, index + bracket, 1) + rest


@cache
def steps(name: str) -> tuple[Step, ...]:
    """The steps of a path; a name that is no path is one step."""
    if not PATH.fullmatch(name):
        return (name,)
    return tuple(key or (int(index) if index else EACH) for index, key in STEP.findall(name))


def _grow(tree: Tree, path: Sequence[Step]) -> None:
    for step in path[:-1]:
        if tree.get(step) == {}:
            return
        tree = tree.setdefault(step, {})
    tree[path[-1]] = {}


def _unread(value: Any, tree: Tree, prefix: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        names = f"{prefix}." if prefix else ""
        yield from (f"{names}{key}" for key in value.keys() - tree.keys() if not is_empty(value[key]))
        for step, below in tree.items():
            if below and step in value:
                yield from _unread(value[step], below, f"{names}{step}")
    elif isinstance(value, list):
        for i, element in enumerate(value):
            below = next((tree[step] for step in (i, i - len(value), EACH) if step in tree), None)
            if below is None and not is_empty(element):
                yield prefix + EACH
            elif below:
                yield from _unread(element, below, prefix + EACH)
