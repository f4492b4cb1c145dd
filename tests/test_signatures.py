"""Arguments against signatures: types, ranges and names, with messages that say what is allowed."""

from typing import Annotated, Literal

import pytest

from lightning_dpo.signatures import ArgumentError, check_arguments


def target(
    size: Annotated[int, "[1, inf)"],
    share: Annotated[float, "[0, 0.5)"] = 0.0,
    path: str | None = None,
    on: bool = True,
    kind: Literal["a", "b"] = "a",
    betas: tuple[float, float] = (0.9, 0.999),
):
    """Stands for anything that a YAML node builds."""


@pytest.mark.parametrize(
    "arguments",
    [dict(size=1), dict(size=3, share=0), dict(size=1, path="x", on=False, kind="b", betas=[0.5, 0.5])],
)
def test_what_fits_passes(arguments):
    check_arguments(target, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=0), "size: found 0; allowed: a whole number in [1, inf)"),
        (dict(size=1.5), "size: found 1.5; allowed: a whole number in [1, inf)"),
        (dict(size="x"), "size: found the text 'x'; allowed: a whole number in [1, inf)"),
        (dict(size=True), "size: found True; allowed: a whole number in [1, inf)"),
        (dict(size=None), "size: found null; allowed: a whole number in [1, inf)"),
        (dict(size=1, share=0.5), "share: found 0.5; allowed: a number in [0, 0.5)"),
        (dict(size=1, share=float("nan")), "share: found nan; allowed: a number in [0, 0.5)"),
        (dict(size=1, path=3), "path: found 3; allowed: a text or null"),
        (dict(size=1, on=1), "on: found 1; allowed: true or false"),
        (dict(size=1, kind="c"), "kind: found the text 'c'; allowed: a or b"),
        (dict(size=1, betas=0.9), "betas: found 0.9; allowed: tuple"),
        (dict(size=1, sise=2), "sise: unknown; allowed: size, share, path, on, kind, betas"),
        (dict(), "size: missing"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_allowed(arguments, message):
    with pytest.raises(ArgumentError) as error:
        check_arguments(target, arguments)
    assert str(error.value) == message


def test_a_partial_may_leave_required_arguments_out():
    check_arguments(target, dict(share=0.1), allow_missing=True)
