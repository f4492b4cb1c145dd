"""A prompt and two responses in their various shapes -> a row: what is the prompt, and what responds to it."""

from collections.abc import Callable

from lightning_dpo.data.dialogue import is_dialogue, messages_of, split_dialogue
from lightning_dpo.data.rows import SYSTEM, BadRow, Message, Messages, Response, Row, text_of

Prompt = str | Messages | None
Side = tuple[str, Response]
"""A response, with its place in the record for error messages."""
Pairs = list[tuple[Side, Side]]


def as_chat(prompt: Prompt, pairs: Pairs, wrap: str | None) -> tuple[Prompt, Pairs]:
    """Texts as messages: all of them with `wrap`, and a prompt whose responses are messages."""
    responses = [response for pair in pairs for _, response in pair]
    if isinstance(prompt, list) or not (wrap or any(isinstance(response, list) for response in responses)):
        return prompt, pairs
    if prompt is None:
        return prompt, _changed(pairs, messages_of) if wrap else pairs
    if all(isinstance(side, list) and _holds(side, prompt) for side in responses):
        return prompt, pairs
    if is_dialogue(prompt) and prompt.lstrip().startswith("Human:"):
        messages = messages_of(prompt, "prompt")
        prompt_ends = messages[-1] == {"role": "assistant", "content": ""}
        if not prompt_ends:
            return messages, pairs
        return messages[:-1], _changed(pairs, lambda text, _: text.strip())
    return [{"role": "user", "content": prompt}], pairs


def _holds(side: Messages, prompt: str) -> bool:
    """Whether messages are a whole conversation, which begins before the response to the prompt."""
    return side[0]["role"] != "assistant" or any(_says(message, prompt) for message in side)


def _says(message: Message, prompt: str) -> bool:
    return message["role"] == "user" and text_of(message).strip() == prompt.strip()


def _changed(pairs: Pairs, change: Callable[[str, str], Response]) -> Pairs:
    """The pairs with a change to each response that is a text."""

    def changed(side: Side) -> Side:
        return (side[0], change(side[1], side[0])) if isinstance(side[1], str) else side

    return [(changed(chosen), changed(rejected)) for chosen, rejected in pairs]


def pair_of(prompt: Prompt, chosen: Side, rejected: Side) -> Row:
    (place, better), (other, worse) = chosen, rejected
    if isinstance(better, str) and isinstance(worse, str) and not isinstance(prompt, list):
        if prompt is None:
            return split_dialogue(better, worse)
        if is_dialogue(prompt) and better.startswith(prompt) and worse.startswith(prompt):
            remedy = "type data.columns.prompt=null to split them"
            raise BadRow("mixture", f"both responses repeat the whole dialogue of the prompt; {remedy}", "prompt")
        return Row(prompt, better, worse)
    if isinstance(prompt, list) and not (_begins(better, prompt) and _begins(worse, prompt)):
        _check_prompt(prompt)
        return Row(prompt, _response(better, place), _response(worse, other))
    return _conversations(prompt, chosen, rejected)


def _conversations(prompt: Prompt, chosen: Side, rejected: Side) -> Row:
    """Two whole conversations. The messages that they share at the start are the prompt."""
    (place, better), (other, worse) = chosen, rejected
    if isinstance(better, str) or isinstance(worse, str):
        text = place if isinstance(better, str) else other
        raise BadRow("mixture", "found a text, but the other fields hold messages; use one kind for all", text)
    shared = len(prompt) if isinstance(prompt, list) else _shared(better, worse)
    messages, sides = better[:shared], {place: better[shared:], other: worse[shared:]}
    for at, side in sides.items():
        if not side or side[0]["role"] != "assistant":
            found = f"the {side[0]['role']}'s turn" if side else "nothing"
            raise BadRow("mixture", f"found {found} after {shared} shared messages, expected the assistant's", at)
    if not messages:
        raise BadRow("mixture", "the conversations share no message at the start, so there is no prompt", place)
    if isinstance(prompt, str) and not any(_says(message, prompt) for message in messages):
        raise BadRow("mixture", "found a text that is none of the user's messages that both sides share", "prompt")
    _check_prompt(messages)
    return Row(messages, _response(sides[place], place), _response(sides[other], other))


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many messages both share at the start, without the last one of the shorter conversation."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _begins(side: Response, prompt: Messages) -> bool:
    return isinstance(side, list) and len(side) > len(prompt) and side[: len(prompt)] == prompt


def _check_prompt(prompt: Messages) -> None:
    if (role := prompt[-1]["role"]) in SYSTEM:
        raise BadRow("roles", f"the last message is the {role}'s, so there is nothing to respond to", "prompt")
    if prompt[-1].get("tool_calls"):
        raise BadRow("roles", "the last message calls a tool, and no message of the tool follows", "prompt")


def _response(side: Response, field: str) -> Response:
    """One turn as its text if it has nothing else, otherwise messages."""
    if isinstance(side, str):
        return side
    for message, verb in ((side[0], "begins"), (side[-1], "ends")):
        if message["role"] != "assistant":
            raise BadRow("roles", f"{verb} with the {message['role']}'s message; expected the assistant's", field)
    return side[0]["content"] if len(side) == 1 and len(side[0]) == 2 else side
