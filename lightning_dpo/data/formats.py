r"""A record of a data set -> preference pairs.

The formats, recognised by fields and their types:

    prompt, chosen, rejected    texts; the whole text is prompt + response
    prompt, chosen, rejected    a prompt of messages; each response a text, an assistant message, or several turns
    chosen, rejected            conversations of messages; the messages they share at the start are the prompt (a
                                `prompt` may repeat those messages, or the text of the last one)
    chosen, rejected            texts in HH style, "\n\nHuman: ...\n\nAssistant: ..."; the prompt is their longest
                                common beginning that ends in "\n\nAssistant:"
    prompt, responses, ranks    a ranked list, rank 1 is best (or `scores`, the highest is best); gives several pairs

Anything else raises BadRow. Other fields are ignored.
"""

import difflib
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple

from lightning_dpo.data.dialogue import is_dialogue, split_dialogue
from lightning_dpo.data.lines import TextRecord, as_object, parse_line
from lightning_dpo.data.rows import BadRow, Dropped, Messages, Response, Row, checked, kind_of, printable
from lightning_dpo.data.sources import Chunk
from lightning_dpo.signatures import in_range

COLUMNS = {name: name for name in ("prompt", "chosen", "rejected", "responses", "ranks", "scores")}
RankedPairs = Literal["all", "best_worst", "adjacent"]


class Format(NamedTuple):
    """The names of the fields in the records, and the pairs that a ranked list gives."""

    columns: Mapping[str, str | None] = COLUMNS
    weight_column: str | None = None
    margin_column: str | None = None
    ranked: RankedPairs = "all"

    def name(self, field: str) -> str | None:
        return self.columns.get(field, field)


def parse(record: Mapping[str, Any], format: Format) -> list[Row | Dropped]:
    """The pairs of one record: one, or those of a ranked list.

    Errors: BadRow.
    """
    found = {field: record[name] for field in COLUMNS if (name := format.name(field)) and name in record}
    numbers = {
        "weight": _number(record, format.weight_column, "[0, inf)", 1.0),
        "margin": _number(record, format.margin_column, "(-inf, inf)", None),
    }
    try:
        pairs = _ranked(found, format) if _is_ranked(found) else [_pair(found, record, format)]
    except BadRow as error:  # named as in the record
        field, bracket, rest = error.field.partition("[")
        raise BadRow(error.kind, str(error), (format.name(field) or field) + bracket + rest) from None
    return [_judged(row._replace(**numbers)) if isinstance(row, Row) else row for row in pairs]


def parsed(chunk: Chunk, format: Format) -> Iterator[tuple[int, Row | Dropped | BadRow]]:
    """Each pair of a chunk, or the reason why a record has none, with the record's number."""
    for number, item in zip(chunk.numbers, chunk.items, strict=True):
        try:
            record = parse_line(item) if isinstance(item, bytes) else as_object(item)
            yield from ((number, pair) for pair in parse(record, format))
        except BadRow as error:
            yield number, error


def _is_ranked(found: dict[str, Any]) -> bool:
    """Fields that are null count as absent, because a table has every field in every row."""
    is_pair = found.get("chosen") is not None or found.get("rejected") is not None
    if is_pair and isinstance(found.get("responses"), list):
        remedy = "type data.columns.responses=null to ignore the list"
        raise BadRow("mixture", f"found chosen/rejected beside a list of responses; {remedy}", "responses")
    return not is_pair and found.get("responses") is not None


def _judged(row: Row) -> Row | Dropped:
    if row.chosen == row.rejected:
        return Dropped("identical")
    last = [side if isinstance(side, str) else side[-1]["content"] for side in (row.chosen, row.rejected)]
    return row if all(last) else Dropped("empty")


def _pair(found: dict[str, Any], record: Mapping[str, Any], format: Format) -> Row:
    for field in ("chosen", "rejected"):
        if field not in found:
            raise _missing(field, record, format)
    name = format.name("prompt")
    if name not in (None, "prompt") and name not in record:
        raise _missing("prompt", record, format)
    prompt = checked(found["prompt"], "prompt") if "prompt" in found else None
    chosen, rejected = (checked(found[field], field) for field in ("chosen", "rejected"))
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        if not (is_dialogue(chosen) and is_dialogue(rejected)):
            raise _missing("prompt", record, format)
        return split_dialogue(chosen, rejected)
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        if is_dialogue(prompt) and chosen.startswith(prompt) and rejected.startswith(prompt):
            remedy = "type data.columns.prompt=null to split them"
            raise BadRow("mixture", f"both responses repeat the whole dialogue of the prompt; {remedy}", "prompt")
        return Row(prompt, chosen, rejected)
    if isinstance(prompt, list) and not (_begins(chosen, prompt) and _begins(rejected, prompt)):
        _check_prompt(prompt)
        return Row(prompt, _response(chosen, "chosen"), _response(rejected, "rejected"))
    return _conversations(prompt, chosen, rejected)


def _conversations(prompt: str | Messages | None, chosen: Response, rejected: Response) -> Row:
    """Two whole conversations. The messages that they share at the start are the prompt."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        field = "chosen" if isinstance(chosen, str) else "rejected"
        raise BadRow("mixture", "found a text, but the other fields hold messages; use one kind for all", field)
    shared = len(prompt) if isinstance(prompt, list) else _shared(chosen, rejected)
    messages, sides = chosen[:shared], {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    for field, side in sides.items():
        if not side or side[0]["role"] != "assistant":
            found = f"the {side[0]['role']}'s turn" if side else "nothing"
            raise BadRow("mixture", f"found {found} after {shared} shared messages, expected the assistant's", field)
    if not messages:
        raise BadRow("mixture", "the conversations share no message at the start, so there is no prompt", "chosen")
    if isinstance(prompt, str) and messages[-1]["content"].strip() != prompt.strip():
        raise BadRow("mixture", "found a text that is not the last message that both sides share", "prompt")
    _check_prompt(messages)
    return Row(messages, _response(sides["chosen"], "chosen"), _response(sides["rejected"], "rejected"))


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages both share at the start, without the last one of the shorter conversation."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _begins(side: Response, prompt: Messages) -> bool:
    return isinstance(side, list) and len(side) > len(prompt) and side[: len(prompt)] == prompt


def _check_prompt(prompt: Messages) -> None:
    if prompt[-1]["role"] == "system":
        raise BadRow("roles", "the last message is the system's, so there is nothing to respond to", "prompt")


def _response(side: Response, field: str) -> Response:
    """One turn as its text, several as messages."""
    if isinstance(side, str):
        return side
    for message, verb in ((side[0], "begins"), (side[-1], "ends")):
        if message["role"] != "assistant":
            raise BadRow("roles", f"{verb} with the {message['role']}'s message; expected the assistant's", field)
    return side[0]["content"] if len(side) == 1 else side


def _ranked(found: dict[str, Any], format: Format) -> list[Row | Dropped]:
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
    prompt = checked(found["prompt"], "prompt")
    texts = [_one_response(prompt, r, f"responses[{i}]") for i, r in enumerate(responses)]
    if isinstance(prompt, list):
        _check_prompt(prompt)
    best_first = sorted(zip(values, texts, strict=True), key=lambda x: x[0] if keys[0] == "ranks" else -x[0])
    choices = {
        "all": list(combinations(best_first, 2)),
        "adjacent": list(pairwise(best_first)),
        "best_worst": [(best_first[0], best_first[-1])],
    }[format.ranked]
    pairs = [Row(prompt, better[1], worse[1]) for better, worse in choices if better[0] != worse[0]]
    return [*pairs] or [Dropped("no_preference")]


def _one_response(prompt: str | Messages, response: object, field: str) -> str:
    side = _response(checked(response, field), field)
    if not isinstance(side, str):
        raise BadRow("mixture", "found several messages, expected a text or one assistant message", field)
    if isinstance(prompt, str) and not isinstance(response, str):
        raise BadRow("mixture", "found messages beside a text prompt; use text or messages for both", field)
    return side


def _number(record: Mapping[str, Any], column: str | None, interval: str, default: float | None) -> float | None:
    if column is None:
        return default
    if column not in record:
        raise BadRow("missing", f"the field is missing; found {_fields(record)}", column)
    value: Any = _as_number(record[column]) if isinstance(record, TextRecord) else record[column]
    if not _is_number(value) or not in_range(value, interval):
        raise BadRow("type", f"found {printable(value)}, expected a number in {interval}", column)
    return float(value)


def _as_number(text: str) -> float | str:
    """The number that a cell of a CSV file holds, or the text if it holds none."""
    try:
        return float(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fields(record: Mapping[str, Any]) -> str:
    return ", ".join(printable(key, 30) for key in list(record)[:12]) or "no fields"


def _missing(field: str, record: Mapping[str, Any], format: Format) -> BadRow:
    name = format.name(field) or field
    unused = [key for key in record if key not in format.columns.values()]
    near = difflib.get_close_matches(str(name), unused, n=1, cutoff=0.7)
    hint = f"; type data.columns.{field}={printable(near[0])[1:-1]} if that is it" if near else ""
    return BadRow("missing", f"field {name!r} is missing; found {_fields(record)}{hint}", field)
