"""Completions follow the distribution that scoring measures."""

import pytest
import torch

from lightning_dpo.samples.generate import generate
from tests.conftest import gpt2, llama


def test_first_tokens_are_drawn_with_the_models_own_probabilities():
    """20,000 draws, with every frequency within five standard errors, show that no filter or penalty applies."""
    model, prompt, n = llama(), [3, 5, 8], 20_000
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform
        probabilities = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 3
    drawn = generate(model, [prompt] * n, max_new_tokens=1, stop_ids=[0], seed=0, batch_size=4096)
    frequencies = torch.tensor([ids[0] for ids in drawn]).bincount(minlength=61) / n
    assert ((frequencies - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / n).sqrt() + 1e-9).all()
    assert model.generation_config.top_k == 3


@pytest.mark.parametrize("make", [llama, gpt2])
def test_padding_a_prompt_to_a_longer_one_changes_nothing(make):
    """The head is scaled up until sampling is practically greedy."""
    model = make()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1000)
    short, long = [3, 5], [7, 1, 4, 4, 9, 2, 6]
    options = dict(max_new_tokens=6, stop_ids=[60], seed=0)
    assert generate(model, [short, long], **options)[0] == generate(model, [short], **options)[0]


def test_the_seed_determines_the_draws_and_the_global_generator_keeps_its_state():
    model, prompts = llama(), [[1, 2], [3, 4]]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (generate(model, prompts, max_new_tokens=9, stop_ids=[0], seed=s) for s in (1, 1, 2))
    assert a == b != c and torch.equal(before, torch.get_rng_state())


def test_a_completion_ends_with_its_first_stop_token():
    for ids in generate(llama(), [[1]] * 64, max_new_tokens=20, stop_ids=[7, 9], seed=0):
        assert len(ids) <= 20 and not {7, 9} & set(ids[:-1])
        assert len(ids) == 20 or ids[-1] in (7, 9)
