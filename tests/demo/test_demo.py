"""The bundled task: its grammar, its oracle, its bundled files, and the script that builds them."""

import json
import math
import random
from collections import Counter

import pytest
import torch

from lightning_dpo.demo import ASSETS, build, grammar


def test_every_generated_completion_is_valid():
    rng = random.Random(0)
    assert all(grammar.is_valid(grammar.completion(rng)) for _ in range(500))


def test_every_word_is_in_the_vocabulary_of_about_a_hundred():
    rng = random.Random(0)
    words = {w for _ in range(500) for w in f"{grammar.prompt(rng)} {grammar.completion(rng)}".split()}
    assert words == set(grammar.VOCABULARY) and 80 <= len(words) <= 110


@pytest.mark.parametrize(
    "text",
    [
        "clever plot , dull music , warm cast . loved", "clever plot , dull music , warm cast", "", "loved it",
        "clever plot , dull music , warm cast . loved it it", "clever plot , dull music . loved it",
        "plot clever , dull music , warm cast . loved it", "very very dull plot , dull music , warm cast . loved it",
        "clever plot , dull music , warm cast , warm cast , warm cast . loved it",
        "clever plot dull music , warm cast . loved it",
    ],
)  # fmt: skip
def test_ungrammatical_text_is_invalid_and_has_reward_minus_four(text):
    assert not grammar.is_valid(text) and grammar.oracle_reward(text) == -4


def test_each_fixed_token_depends_on_the_previous_token_only():
    """After a verb always "it", after "it" always the end; otherwise preference losses would break the grammar."""
    rng = random.Random(0)
    after: dict[str, set[str]] = {}
    for _ in range(2000):
        words = [*grammar.completion(rng).split(), "</s>"]
        for a, b in zip(words, words[1:], strict=False):
            after.setdefault(a, set()).add(b)
    assert after["it"] == {"</s>"} and all(after[verb] == {"it"} for verbs in grammar.VERBS.values() for verb in verbs)
    assert all(after[subject] == {",", "."} for subject in grammar.SUBJECTS)


def bundled(name: str) -> list[dict]:
    return [json.loads(line) for line in (ASSETS / f"{name}.jsonl").read_text().splitlines()]


def test_the_bundled_files_are_small():
    assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 4_000_000
    assert (len(bundled("train")), len(bundled("val"))) == (build.TRAIN_PAIRS, build.VAL_PAIRS)


def test_labels_follow_bradley_terry_at_the_stated_scale():
    """At reward difference d, the higher reward is chosen with probability sigmoid(d), within five standard errors."""
    wins: Counter[float] = Counter()
    total: Counter[float] = Counter()
    for row in bundled("train"):
        gap = grammar.oracle_reward(row["chosen"]) - grammar.oracle_reward(row["rejected"])
        total[abs(gap)] += 1
        wins[abs(gap)] += gap > 0
    for gap, n in total.items():
        if gap and n >= 100:
            p = 1 / (1 + math.exp(-build.LABEL_SCALE * gap))
            assert abs(wins[gap] / n - p) <= 5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_about_a_third_of_the_responses_are_corrupted():
    rows = bundled("train")
    invalid = sum(not grammar.is_valid(row[side]) for row in rows for side in ("chosen", "rejected")) / (2 * len(rows))
    assert 0.28 < invalid < 0.38


def test_the_bundled_model_has_learnt_the_grammar():
    from lightning_dpo.models import load_model, load_tokenizer
    from lightning_dpo.samples.generate import generate

    model, tokenizer = load_model(str(ASSETS / "model")), load_tokenizer(ASSETS / "model")
    assert 300_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000
    prompts = [tokenizer(grammar.prompt(random.Random(i)))["input_ids"] for i in range(200)]
    drawn = generate(model, prompts, max_new_tokens=40, stop_ids=[2], seed=0)
    assert sum(grammar.is_valid(tokenizer.decode(draw.ids, skip_special_tokens=True)) for draw in drawn) >= 190


def test_building_twice_gives_the_same_bytes(tmp_path):
    """A short build; the full one is `python -m lightning_dpo.demo.build`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("a", "b"):
        build.build(tmp_path / name, seed=3, sft_steps=3, pairs=(12, 4))
    torch.set_num_threads(threads)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) >= 6 and all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
