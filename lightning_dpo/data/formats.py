r"""A record of a data set -> preference pairs.

The formats, recognised by fields and their types:

    prompt, chosen, rejected    texts; the whole text is prompt + response
    prompt, chosen, rejected    a prompt of messages; each response a text, an assistant message, or several turns
    prompt, chosen, rejected    a prompt that is a text, which is the user's message, and responses of messages
    chosen, rejected            conversations of messages; the messages they share at the start are the prompt (a
                                `prompt` may repeat those messages, or the text of one of the user's)
    chosen, rejected            texts in HH style, "\n\nHuman: ...\n\nAssistant: ..."; the prompt is their longest
                                common beginning that ends in "\n\nAssistant:"
    prompt, responses, ranks    a ranked list, rank 1 is best (or `scores`, the highest is best); gives several pairs

`chosen` or `rejected` may be a list of texts or of conversations: each chosen is paired with each rejected. Where a
record holds the fields is in fields.py, and what it holds around the prompt in context.py. Anything else raises
BadRow. Other fields are ignored, and the notes of a row name them.
"""

import difflib
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise, product
from numbers import Real
from typing import Any

from lightning_dpo.data.context import context, with_input
from lightning_dpo.data.dialogue import is_dialogue
from lightning_dpo.data.fields import ABSENT, CONTEXT, Format, RankedPairs, located, value_of
from lightning_dpo.data.label import winner
from lightning_dpo.data.lines import TextRecord, as_object, parse_line
from lightning_dpo.data.rows import (
    BadRow,
    Dropped,
    Note,
    Response,
    Row,
    checked,
    kind_of,
    printable,
    text_of,
)
from lightning_dpo.data.shapes import Pairs, Prompt, Side, as_chat, pair_of
from lightning_dpo.data.sources import Chunk
from lightning_dpo.signatures import in_range

SWAPPED = {"chosen": "rejected", "rejected": "chosen"}


def parse(record: Mapping[str, Any], format: Format) -> list[Row | Dropped]:
    """The pairs of one record: one, or those of a ranked list or of several responses.

    Errors: BadRow.
    """
    numbers = {
        "weight": _number(record, format.weight_column, "[0, inf)", 1.0),
        "margin": _number(record, format.margin_column, "(-inf, inf)", None),
    }
    found, names = format.read(record), format.names
    ignored: set[str] = set()
    try:
        ranked = _is_ranked(found, format)
        if not ranked:
            _check_present(found, record, format)
        if format.label is not None:
            won = winner(format.label, _label(found["label"], format.label, isinstance(record, TextRecord)))
            if won is None:
                return [Dropped("no_preference")]
            if won == "second":
                names, found = format.swapped_names, {SWAPPED.get(field, field): found[field] for field in found}
        if "input" in found:
            found["prompt"] = with_input(found.get("prompt"), found["input"])
        read = _ranked(found, format.ranked, ignored) if ranked else _products(found, record, names, ignored)
        prompt, pairs = as_chat(*read, format.wrap)
        rows = [pair_of(prompt, chosen, rejected) for chosen, rejected in pairs]
        if (around := context(found, ignored)) is not None:
            rows = [around.around(row) for row in rows]
    except BadRow as error:  # named as in the record
        field, bracket, rest = error.field.partition("[")
        raise BadRow(error.kind, str(error), located(names.get(field) or field, bracket + rest)) from None
    ignored = {f"{key} of messages" for key in ignored}.union(format.unread(record, ranked))
    context_read = [("read", field) for field in CONTEXT if field in found]
    notes = (*(("ignored", name) for name in sorted(ignored)), *context_read)
    return [_judged(row, format.join, notes, numbers) for row in rows] or [Dropped("no_preference")]


def parsed(chunk: Chunk, format: Format) -> Iterator[tuple[int, Row | Dropped | BadRow]]:
    """Each pair of a chunk, or the reason why a record has none, with the record's number."""
    for number, item in zip(chunk.numbers, chunk.items, strict=True):
        try:
            record = parse_line(item) if isinstance(item, bytes) else as_object(item)
            yield from ((number, pair) for pair in parse(record, format))
        except BadRow as error:
            yield number, error


def _is_ranked(found: dict[str, Any], format: Format) -> bool:
    """Fields that are null count as absent, because a table has every field in every row."""
    is_pair = found.get("chosen") is not None or found.get("rejected") is not None
    is_list = found.get("responses") is not None
    if is_list and (format.label is not None or (is_pair and isinstance(found["responses"], list))):
        beside = "chosen/rejected" if is_pair else "data.label"
        remedy = "type data.columns.responses=null to ignore the list"
        raise BadRow("mixture", f"found {beside} beside a list of responses; {remedy}", "responses")
    return not is_pair and is_list


def _check_present(found: dict[str, Any], record: Mapping[str, Any], format: Format) -> None:
    """Errors: BadRow for a record without a field that its pair needs."""
    lists = format.names["responses"] not in (None, "responses") and "chosen" not in found
    renamed = format.names["prompt"] not in (None, "prompt")
    needed = ("responses",) if lists else ("chosen", "rejected", *(("prompt",) if renamed else ()))
    for field in (*needed, *(("label",) if format.label is not None else ())):
        if field not in found:
            raise _missing(field, record, format.names)


def _judged(row: Row, join: str | None, notes: tuple[Note, ...], numbers: dict[str, Any]) -> Row | Dropped:
    """The whole row, or why no loss can learn from it."""
    chosen, rejected = row.chosen, row.rejected
    if chosen == rejected:
        return Dropped("identical")
    for side in (chosen, rejected):
        if not (side if isinstance(side, str) else text_of(side[-1]) or side[-1].get("tool_calls")):
            return Dropped("empty")
    if _turns(chosen) != _turns(rejected):
        notes = (*notes, ("unequal_turns", ""))
    if isinstance(row.prompt, str):
        notes = (*notes, ("text", ""))
        if join is not None:
            chosen, rejected = (_joined(row.prompt, side, join) for side in (chosen, rejected))
    return row._replace(chosen=chosen, rejected=rejected, notes=notes, **numbers)


def _turns(side: Response) -> int:
    return 1 if isinstance(side, str) else sum(message["role"] == "assistant" for message in side)


def _joined(prompt: str, side: Response, join: str) -> Response:
    """A response with `join` before it, unless it or the prompt has a space there."""
    if not isinstance(side, str):
        return [{**side[0], "content": _joined(prompt, text_of(side[0]), join)}, *side[1:]]
    spaced = not prompt or not side or prompt[-1].isspace() or side[0].isspace()
    return side if spaced else join + side


def _products(
    found: dict[str, Any], record: Mapping[str, Any], names: Mapping[str, str | None], ignored: set[str]
) -> tuple[Prompt, Pairs]:
    """The prompt, and each chosen response beside each rejected one."""
    prompt = None if found.get("prompt") is None else checked(found["prompt"], "prompt", ignored)
    chosen, rejected = (_sides(found[field], field, ignored) for field in ("chosen", "rejected"))
    if prompt is None:
        texts = [side for _, side in (*chosen, *rejected) if isinstance(side, str)]
        if len(texts) == len(chosen) + len(rejected) and not all(map(is_dialogue, texts)):
            if "prompt" in found:
                raise BadRow("type", "found null, expected a text or a list of messages", "prompt")
            raise _missing("prompt", record, names)
    return prompt, list(product(chosen, rejected))


def _sides(value: Any, field: str, ignored: set[str]) -> list[Side]:
    """One response, or those of a list whose elements are texts or conversations."""
    if not isinstance(value, list) or all(isinstance(element, dict) for element in value):
        return [(field, checked(value, field, ignored))]
    return [(at := f"{field}[{i}]", checked(element, at, ignored)) for i, element in enumerate(value)]


def _ranked(found: dict[str, Any], choice: RankedPairs, ignored: set[str]) -> tuple[Prompt, Pairs]:
    """The prompt, and pairs of a better and a worse response."""
    if "prompt" not in found:
        raise BadRow("missing", "field 'prompt' is missing beside the responses", "prompt")
    keys = [key for key in ("ranks", "scores") if found.get(key) is not None]
    if len(keys) != 1:
        raise BadRow("missing", f"a list of responses needs either ranks or scores; found {keys}", "responses")
    values, responses = found[keys[0]], found["responses"]
    for field, value in (("responses", responses), (keys[0], values)):
        if not isinstance(value, list) or len(value) < 2:
            raise BadRow("type", f"found {kind_of(value)}, expected a list of two or more", field)
    if len(values) != len(responses):
        raise BadRow("type", f"{len(values)} {keys[0]} for {len(responses)} responses", keys[0])
    for value in values:
        if not _is_number(value):
            raise BadRow("type", f"found {printable(value)}, expected numbers", keys[0])
    prompt = checked(found["prompt"], "prompt", ignored)
    sides = [(at := f"responses[{i}]", checked(response, at, ignored)) for i, response in enumerate(responses)]
    best_first = sorted(zip(values, sides, strict=True), key=lambda x: x[0] if keys[0] == "ranks" else -x[0])
    choices = {
        "all": list(combinations(best_first, 2)),
        "adjacent": list(pairwise(best_first)),
        "best_worst": [(best_first[0], best_first[-1])],
    }[choice]
    return prompt, [(better[1], worse[1]) for better, worse in choices if better[0] != worse[0]]


def _number(record: Mapping[str, Any], column: str | None, interval: str, default: float | None) -> float | None:
    if column is None:
        return default
    value: Any = value_of(record, column)
    if value is ABSENT:
        raise BadRow("missing", f"the field is missing; found {_fields(record)}", column)
    value = _as_number(value) if isinstance(record, TextRecord) else value
    if not _is_number(value) or not in_range(value, interval):
        raise BadRow("type", f"found {printable(value)}, expected a number in {interval}", column)
    return float(value)


def _label(value: Any, label: Mapping[str, Any], is_text: bool) -> Any:
    """A label; a cell of a CSV file is a number where the values of the label are numbers or comparisons."""
    sides = [side if isinstance(side, list) else [side] for side in label.values()]
    return value if not is_text or any(value in side for side in sides) else _as_number(value)


def _as_number(text: str) -> float | str:
    """The number that a cell of a CSV file holds, or the text if it holds none."""
    try:
        return float(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a float can hold."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max  # type: ignore[operator]


def _fields(record: Mapping[str, Any]) -> str:
    return ", ".join(printable(key, 30) for key in list(record)[:12]) or "no fields"


def _missing(field: str, record: Mapping[str, Any], names: Mapping[str, str | None]) -> BadRow:
    name = names[field] or field
    unused = [key for key in record if key not in names.values()]
    near = difflib.get_close_matches(name, unused, n=1, cutoff=0.7)
    hint = f"; type data.columns.{field}={printable(near[0])[1:-1]} if that is it" if near else ""
    return BadRow("missing", f"field {name!r} is missing; found {_fields(record)}{hint}", field)
