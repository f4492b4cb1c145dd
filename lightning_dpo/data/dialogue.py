r"""HH-style dialogues: all turns in one text, "\n\nHuman: ...\n\nAssistant: ..."."""

import os
import re

from lightning_dpo.data.rows import BadRow, Messages, Response, Row, printable

HH_ASSISTANT = "\n\nAssistant:"
HH_TURN = re.compile(r"(\n\n(?:Human|Assistant):)")


def is_dialogue(text: str) -> bool:
    return HH_ASSISTANT in text


def split_dialogue(chosen: str, rejected: str) -> Row:
    """Split two dialogues. The prompt is their longest common beginning that ends in the assistant's mark.

    Errors: BadRow.
    """
    shared = len(os.path.commonprefix([chosen, rejected]))
    end = chosen.rfind(HH_ASSISTANT, 0, shared)
    if end < 0:
        raise BadRow("mixture", f"no shared beginning ends in {HH_ASSISTANT!r}, so there is no prompt", "chosen")
    end += len(HH_ASSISTANT)
    return Row(chosen[:end], turns_of(chosen[end:], "chosen"), turns_of(rejected[end:], "rejected"))


def messages_of(text: str, field: str) -> Messages:
    r"""A dialogue as chat messages, without its marks and the space around its turns.

    >>> messages_of("\n\nHuman: a\n\nAssistant:", "prompt")
    [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': ''}]

    Errors: BadRow.
    """
    before, *pieces = HH_TURN.split(text)
    if before.strip() or not pieces or pieces[0] == HH_ASSISTANT:
        raise BadRow("roles", f"found {printable(text[:20])}; a dialogue begins with '\\n\\nHuman:'", field)
    roles = ["assistant" if mark == HH_ASSISTANT else "user" for mark in pieces[::2]]
    return [{"role": role, "content": turn.strip()} for role, turn in zip(roles, pieces[1::2], strict=True)]


def turns_of(text: str, field: str) -> Response:
    r"""The rest of a dialogue: one turn as text, several as messages whose contents include the marks between them.

    >>> [m["content"] for m in turns_of(" a\n\nHuman: b\n\nAssistant: c", "chosen")]
    [' a', '\n\nHuman: b\n\nAssistant:', ' c']
    """
    pieces = HH_TURN.split(text)
    if len(pieces) == 1:
        return text
    turns: Messages = [{"role": "assistant", "content": pieces[0]}]
    for mark, content in zip(pieces[1::2], pieces[2::2], strict=True):
        if mark == HH_ASSISTANT and turns[-1]["role"] == "user":
            turns[-1]["content"] += mark
            turns.append({"role": "assistant", "content": content})
        elif mark != HH_ASSISTANT and turns[-1]["role"] == "assistant":
            turns.append({"role": "user", "content": mark + content})
        else:
            raise BadRow("roles", f"two turns in a row begin with {mark!r}", field)
    if turns[-1]["role"] != "assistant":
        raise BadRow("roles", "the dialogue ends with the human's turn", field)
    return turns
