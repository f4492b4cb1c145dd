"""A scorer for children's stories, such as those of TinyStories models: kind minus unkind words."""

import re

KIND = frozenset(
    "happy happily fun good great nice kind best beautiful pretty love loved friend friends hug hugged smile smiled "
    "laugh laughed laughing proud excited safe glad played thank".split()
)
UNKIND = frozenset(
    "sad bad mean angry upset scared scary afraid lost lonely alone hurt cry cried crying fell dark dirty ugly tired "
    "broke broken wrong worried sorry dangerous".split()
)


def score(texts: list[str]) -> dict[str, list[float]]:
    """A scorer for `samples.scorer`: kind minus unkind words of each text.

    >>> score(["They were happy, and best friends.", "He lost it and was sad; but Mom smiled."])
    {'reward': [3.0, -1.0]}
    """
    words = (re.findall(r"[a-z]+", text.lower()) for text in texts)
    return {"reward": [float(sum((w in KIND) - (w in UNKIND) for w in own)) for own in words]}
