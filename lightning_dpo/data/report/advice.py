"""What in a data report somebody should act on, each with what to do."""

from typing import Any

LENGTH_BIAS = 0.1
"""Distance of "the longer one wins" from one half."""
SHARE = 0.01
"""Rarer than this, an oddity is in the report and not in its warnings."""


def warnings(report: dict[str, Any]) -> list[str]:
    """Sentences for people; the numbers behind them are in the report."""
    said = [w for source in report["sources"] for w in _of_source(source)]
    said += [w for name, described in report["sets"].items() for w in _of_set(name, described)]
    for name, shared in report["shared_with_train"].items():
        prompts = report["sets"][name]["prompts"]
        if shared["pairs"]:
            said.append(
                f"{shared['pairs']:,} pairs of {name} are also trained on, so it measures memory; "
                "type data.val=0.05 for a split by prompt, or take them out"
            )
        elif 0 < shared["prompts"] < prompts:  # all of them: a closed set of prompts, on purpose
            said.append(
                f"{shared['prompts']:,} of the {prompts:,} prompts of {name} are also trained on; "
                "type data.val=0.05 for a split by prompt, or take them out"
            )
    return said


def _of_source(source: dict[str, Any]) -> list[str]:
    said, dropped, pairs = [], source["dropped"], max(1, source["pairs"])
    if source["bad"]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in source["bad"].items())
        said.append(f"{source['path']}: {sum(source['bad'].values()):,} bad rows left out ({kinds}); correct them")
    if dropped.get("prompt_too_long", 0) > SHARE * pairs:
        said.append(
            f"{source['path']}: {dropped['prompt_too_long']:,} pairs dropped, their prompts fill the budget; "
            "raise data.max_length, or type data.max_prompt_length=N to cut prompts on the left"
        )
    for reason in ("identical", "identical_tokens", "identical_after_cut", "empty", "no_preference"):
        if dropped.get(reason, 0) > pairs:
            said.append(
                f"{source['path']}: more pairs were dropped ({dropped[reason]:,} {reason}) than are left ({pairs:,})"
            )
    if dropped.get("no_prompt_token"):
        said.append(
            f"{source['path']}: {dropped['no_prompt_token']:,} pairs dropped, nothing precedes their first response "
            "token; give them a prompt, or use a tokenizer with a BOS"
        )
    return said


def _of_set(name: str, described: dict[str, Any]) -> list[str]:
    pairs = max(1, described["pairs"])
    cut = described["cut_chosen"] + described["cut_rejected"]
    accuracy = described["longer_wins"]["accuracy"]
    rules = {
        f"{cut:,} responses are cut and have no end token, so their ends are not learnt; raise data.max_length": (
            cut > 2 * SHARE * pairs
        ),
        f"{described['contradictory']:,} pairs also stand the other way round; decide which of the two is meant": (
            described["contradictory"] > 0
        ),
        f"{described['exact_duplicates']:,} pairs are exact duplicates, trained more than once; take them out": (
            described["exact_duplicates"] > SHARE * pairs
        ),
        f'"the longer one wins" is right for {accuracy:.0%} of pairs; an accuracy near '
        f"{max(accuracy, 1 - accuracy):.0%} "
        "may be length alone: watch lengths, or try a loss that divides by length (sigmoid_norm, simpo)": (
            abs(accuracy - 0.5) > LENGTH_BIAS
        ),
        f"{described['special_token_in_text']:,} rows spell a special token in their text, which becomes that token; "
        "take it out of the text": described["special_token_in_text"] > 0,
        f"{described['double_bos']:,} prompts begin with two BOS; take the BOS out of the text or the template": (
            described["double_bos"] > 0
        ),
        f"in {described['prompt_repeated']:,} pairs both responses begin with the whole prompt, which the model "
        "so reads twice; take it out of the responses": described["prompt_repeated"] > SHARE * pairs,
        f"in {described['no_space']:,} pairs the prompt's last word runs into the response; put the space between them "
        "into the data": described["no_space"] > SHARE * pairs,
    }
    return [f"{name}: {text}" for text, holds in rules.items() if holds]
