"""The grammar of short film reviews: a generator, a validity check and an oracle reward.

    review of a french comedy :  clever plot , very dull music , moving ending . loved it
    `------ prompt -----------'  `------------------- completion ----------------------'

A completion has three or four items `[adverb] adjective subject`, joined by commas, then ` . verb it`. The fixed tokens
("it", the end) depend on the previous token only: preference losses give almost no gradient to tokens that both
responses of a pair share, so fixed tokens drift, and more so if they depend on a longer context (docs/bundled_task.md).

The setting is the controlled-sentiment experiment of the DPO paper (Rafailov et al. 2023, section 6.1), with an exact
reward instead of a classifier.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

ORIGINS = "french british german korean spanish danish polish swedish".split()
GENRES = "comedy drama thriller western musical documentary romance mystery".split()
ADVERBS = "very truly quite rather deeply".split()
SUBJECTS = "plot music acting cast ending dialogue camera editing pacing story scenery humor".split()
ADJECTIVES = {
    +1: "clever moving bright brilliant lovely charming fresh witty superb warm gripping honest elegant tender".split(),
    -1: "dull weak boring clumsy awful flat stale messy cold poor lazy silly bland hollow".split(),
    0: "long short quiet loud simple modern early plain".split(),
}
VERBS = {
    +1: "loved enjoyed admired praised".split(),
    -1: "hated disliked endured regretted".split(),
    0: "saw watched finished".split(),
}

POLARITY = {word: sign for words in (ADJECTIVES, VERBS) for sign, group in words.items() for word in group}
VOCABULARY = [*"review of a : , . it".split(), *ORIGINS, *GENRES, *ADVERBS, *SUBJECTS, *POLARITY]

NEUTRAL_SHARE = 0.2
ADVERB_SHARE = 0.3
MOODS = (0.1, 0.5, 0.9)
"""Probabilities that a non-neutral word is positive; each review draws one of them."""

INVALID_REWARD = -4.0


def _one_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


ITEM = f"(?:{_one_of(ADVERBS)} )?{_one_of(chain(*ADJECTIVES.values()))} {_one_of(SUBJECTS)}"
VALID = re.compile(rf"{ITEM}(?: , {ITEM}){{2,3}} \. {_one_of(chain(*VERBS.values()))} it")


def prompt(rng: random.Random) -> str:
    return f"review of a {rng.choice(ORIGINS)} {rng.choice(GENRES)} :"


def completion(rng: random.Random) -> str:
    """One grammatical completion, its words separated by single spaces."""
    mood = rng.choice(MOODS)

    def pick(words: Mapping[int, Sequence[str]]) -> str:
        if rng.random() < NEUTRAL_SHARE:
            return rng.choice(words[0])
        return rng.choice(words[+1 if rng.random() < mood else -1])

    def item() -> str:
        adverb = rng.choice(ADVERBS) + " " if rng.random() < ADVERB_SHARE else ""
        return f"{adverb}{pick(ADJECTIVES)} {rng.choice(SUBJECTS)}"

    items = " , ".join(item() for _ in range(rng.choice((3, 4))))
    return f"{items} . {pick(VERBS)} it"


def is_valid(text: str) -> bool:
    """Whether the grammar generates a completion.

    >>> is_valid("clever plot , very dull music , moving ending . loved it")
    True
    >>> is_valid("clever plot , dull music . loved it")  # two items
    False
    """
    return VALID.fullmatch(" ".join(text.split())) is not None


def oracle_reward(text: str) -> float:
    """Positive minus negative words of a completion, in [-5, 5]; -4 if it is ungrammatical.

    >>> oracle_reward("clever plot , very dull music , moving ending . loved it")
    2.0
    >>> oracle_reward("loved it")
    -4.0
    """
    return float(sum(POLARITY.get(word, 0) for word in text.split())) if is_valid(text) else INVALID_REWARD


def score(texts: list[str]) -> dict[str, list[float]]:
    """The scorer of `data=reviews`: oracle reward and validity (0 or 1) of each completion."""
    return {"reward": [oracle_reward(t) for t in texts], "valid": [float(is_valid(t)) for t in texts]}
