"""A label of the winner: which of two columns holds the preferred response."""

import operator
import re
from collections.abc import Mapping
from typing import Any, Literal

from lightning_dpo.data.rows import BadRow, kind_of, printable
from lightning_dpo.errors import DataError

COMPARISON = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)")
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
SIDES = ("first", "second")
EXAMPLES = "{first: model_a, second: model_b} or {first: '<0', second: '>0'}"


def check_label(label: Mapping[str, Any]) -> None:
    """Errors: DataError unless both sides have values, none of them the same."""
    if set(label) != set(SIDES) or any(value is None for value in label.values()):
        raise DataError(f"data.label={dict(label)}: first and second need a value each, such as {EXAMPLES}")
    if same := [value for value in _listed(label["first"]) if value in _listed(label["second"])]:
        raise DataError(f"data.label: {same[0]!r} is in both first and second; a value prefers one side")


def winner(label: Mapping[str, Any], value: Any) -> Literal["first", "second"] | None:
    """The side that a value prefers; None if it prefers neither.

    Errors: BadRow for a value of another type than those of the label, or one that prefers both.

    >>> [winner({"first": "<0", "second": [1, 2]}, value) for value in (-3, 2, 0)]
    ['first', 'second', None]
    """
    wins = [side for side in SIDES if any(_fits(value, wanted) for wanted in _listed(label[side]))]
    if len(wins) == 2:
        raise BadRow("label", f"{printable(value)} is both first and second in data.label", "label")
    kinds = [_kind(wanted) for side in SIDES for wanted in _listed(label[side])]
    if not wins and kind_of(value) not in kinds:
        allowed = " or ".join(dict.fromkeys(kinds))
        raise BadRow("label", f"found {kind_of(value)}, expected {allowed}, as in data.label", "label")
    return wins[0] if wins else None  # type: ignore[return-value]


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _comparison(wanted: Any) -> re.Match | None:
    return COMPARISON.fullmatch(wanted) if isinstance(wanted, str) else None


def _kind(wanted: Any) -> str:
    return "a number" if _comparison(wanted) else kind_of(wanted)


def _fits(value: Any, wanted: Any) -> bool:
    if kind_of(value) != _kind(wanted):
        return False
    compared = _comparison(wanted)
    return COMPARE[compared[1]](value, float(compared[2])) if compared else value == wanted
