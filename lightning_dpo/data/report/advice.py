"""Warnings about the data, each with a remedy."""

from typing import Any

from lightning_dpo.data.report.notes import warned

LENGTH_BIAS = 0.1
"""How far the accuracy of preferring the longer response may be from 0.5."""
SHARE = 0.01
"""Share of pairs below which most findings are reported without a warning."""


def warnings(report: dict[str, Any]) -> list[str]:
    """Sentences for people. The numbers behind them are in the report."""
    found = [warning for source in report["sources"] for warning in _of_source(source)]
    found += [warning for name, described in report["sets"].items() for warning in _of_set(name, described)]
    texts = sum(rows for source in report["sources"] for kind, _, rows in source["notes"] if kind == "text")
    if texts and report["chat_template"]:
        found.append(
            f"{texts:,} rows are texts, so the tokenizer's chat template is not used; type data.wrap=chat to make "
            "messages of them, if the model is to chat"
        )
    split = "type data.val=0.05 for a split by prompt, or remove them from one side"
    for name, shared in report["shared_with_train"].items():
        prompts = report["sets"][name]["prompts"]
        if shared["pairs"]:
            found.append(f"{shared['pairs']:,} pairs of {name} are also in train, so {name} measures memory; {split}")
        elif 0 < shared["prompts"] < prompts:  # if all prompts are shared, they are a closed set on purpose
            found.append(f"{shared['prompts']:,} of the {prompts:,} prompts of {name} are also in train; {split}")
    return found


def _of_source(source: dict[str, Any]) -> list[str]:
    found, dropped, pairs = [], source["dropped"], max(1, source["pairs"])
    if source["bad"]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in source["bad"].items())
        found.append(f"{sum(source['bad'].values()):,} bad rows dropped ({kinds}); correct them")
    if dropped.get("prompt_too_long", 0) > SHARE * pairs:
        found.append(
            f"{dropped['prompt_too_long']:,} pairs dropped because their prompts are too long; raise data.max_length, "
            "or type data.max_prompt_length=N to truncate prompts on the left"
        )
    for reason in ("identical", "identical_tokens", "identical_after_cut", "empty", "no_preference"):
        if dropped.get(reason, 0) > pairs:
            found.append(f"more pairs were dropped ({dropped[reason]:,} {reason}) than are left ({pairs:,})")
    if dropped.get("no_prompt_token"):
        found.append(
            f"{dropped['no_prompt_token']:,} pairs dropped because no token precedes their responses; "
            "add a prompt, or use a tokenizer with a BOS"
        )
    return [f"{source['path']}: {warning}" for warning in [*found, *warned(source)]]


def _of_set(name: str, described: dict[str, Any]) -> list[str]:
    found, pairs = [], max(1, described["pairs"])
    cut = described["cut_chosen"] + described["cut_rejected"]
    accuracy = described["longer_wins"]["accuracy"]
    if cut > 2 * SHARE * pairs:
        found.append(f"{cut:,} responses are truncated, so their ends are not learned; raise data.max_length")
    if n := described["contradictory"]:
        found.append(f"{n:,} pairs also appear with chosen and rejected swapped; keep only the right one")
    if (n := described["exact_duplicates"]) > SHARE * pairs:
        found.append(f"{n:,} pairs are exact duplicates and train more than once; remove them")
    if abs(accuracy - 0.5) > LENGTH_BIAS:
        found.append(
            f"preferring the longer response is right for {accuracy:.0%} of pairs, so length alone can explain an "
            f"accuracy near {max(accuracy, 1 - accuracy):.0%}; watch the lengths, or try a loss that divides by length "
            "(sigmoid_norm, simpo)"
        )
    if n := described["special_token_in_text"]:
        found.append(f"{n:,} rows spell out a special token, which is encoded as that token; remove it from the text")
    if n := described["double_bos"]:
        found.append(f"{n:,} prompts begin with two BOS; remove one from the text or the chat template")
    if (n := described["prompt_repeated"]) > SHARE * pairs:
        found.append(
            f"in {n:,} pairs both responses repeat the prompt, so the model reads it twice; remove it from them"
        )
    if (n := described["no_space"]) > SHARE * pairs:
        found.append(
            f"in {n:,} pairs the prompt's last word runs into the response; type 'data.join=\" \"' or add the space"
        )
    return [f"{name}: {warning}" for warning in found]
