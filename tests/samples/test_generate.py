"""Completions follow the distribution that scoring measures."""

import pytest
import torch

from lightning_dpo.errors import NonFiniteError
from lightning_dpo.samples.generate import InverseCDF, generate, uniforms
from lightning_dpo.scoring.scorer import full_logits_logps
from tests.conftest import gpt2, llama
from tests.samples.kinds import make


def test_first_tokens_are_drawn_with_the_models_own_probabilities():
    """20,000 draws, with every frequency within five standard errors, show that no filter or penalty applies."""
    model, prompt, n = llama(), [3, 5, 8], 20_000
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform
        probabilities = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 3
    drawn = generate(model, [prompt] * n, max_new_tokens=1, stop_ids=[0], seed=0, batch_size=4096)
    frequencies = torch.tensor([draw.ids[0] for draw in drawn]).bincount(minlength=61) / n
    assert ((frequencies - probabilities).abs() <= 5 * (probabilities * (1 - probabilities) / n).sqrt() + 1e-9).all()
    assert model.generation_config.top_k == 3


def test_each_token_has_a_share_of_the_uniform_numbers_that_is_its_probability():
    n, logits = 10_000, torch.tensor([0.0, -1.5, 2.0, float("-inf"), 1.0, -8.0])
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    sampler = InverseCDF(grid[:, None])
    kept = sampler(torch.zeros(n, 1), logits.repeat(n, 1))
    tokens = kept.argmax(-1)
    assert ((tokens.bincount(minlength=6) / n - logits.double().softmax(-1)).abs() <= 1 / n).all()
    assert (kept.isfinite().sum(-1) == 1).all()
    torch.testing.assert_close(sampler.logps[0][:, 0], logits.log_softmax(-1)[tokens])


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]] * 3)
    uniform = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    assert InverseCDF(uniform)(torch.zeros(3, 1), logits).argmax(-1).tolist() == [1, 3, 3]


def test_the_log_probabilities_of_a_completion_are_the_models():
    model, prompts = make("llama"), [[3, 5], [7, 1, 4, 4, 9, 2, 6], [8]]
    for prompt, (ids, logps) in zip(
        prompts, generate(model, prompts, max_new_tokens=9, stop_ids=[4], seed=0), strict=True
    ):
        expected = full_logits_logps(model, torch.tensor(prompt), torch.tensor(ids))
        torch.testing.assert_close(torch.tensor(logps), expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [llama, gpt2])
def test_a_completion_depends_on_its_prompt_and_seed_alone(kind):
    """Not on the other prompts, their order, the batches, or how many tokens more could follow."""
    model, lengths = kind(), [2, 7, 4, 1, 4, 12, 2, 5]
    prompts = [torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    settings = dict(max_new_tokens=12, stop_ids=[60], seed=3)
    whole = [draw.ids for draw in generate(model, prompts, **settings)]
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"batches": "equal"}, {"batches": "single"}):
        assert [draw.ids for draw in generate(model, prompts, **settings, **options)] == whole, options
    assert [draw.ids for draw in generate(model, prompts[:3], **settings)] == whole[:3]
    distinct = [1, 3, 5, 7]
    backwards = generate(model, [prompts[i] for i in distinct[::-1]], **settings)
    assert [draw.ids for draw in backwards[::-1]] == [whole[i] for i in distinct]
    shorter = generate(model, prompts, **{**settings, "max_new_tokens": 5})
    assert [draw.ids for draw in shorter] == [ids[:5] for ids in whole]


def test_equal_prompts_are_drawn_independently_by_their_number():
    many = uniforms([[1, 2], [3], [1, 2], [1, 2]], 5, seed=0)
    assert len(many.unique()) == 20 and (many >= 0).all() and (many < 1).all()
    assert torch.equal(many[[0, 2]], uniforms([[1, 2]] * 2, 5, seed=0))
    assert torch.equal(many[:, :3], uniforms([[1, 2], [3], [1, 2], [1, 2]], 3, seed=0))
    assert not torch.equal(many[:1], uniforms([[1, 2]], 5, seed=1))


def test_the_seed_determines_the_draws_and_the_global_generators_are_not_used():
    model, prompts = llama(), [[1, 2], [3, 4]]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        draws.append(generate(model, prompts, max_new_tokens=9, stop_ids=[0], seed=seed))
        assert torch.equal(before, torch.get_rng_state())
    assert draws[0] == draws[1] != draws[2]


def test_a_completion_ends_with_its_first_stop_token():
    for ids, logps in generate(llama(), [[1]] * 64, max_new_tokens=20, stop_ids=[7, 9], seed=0):
        assert len(logps) == len(ids) <= 20 and not {7, 9} & set(ids[:-1])
        assert len(ids) == 20 or ids[-1] in (7, 9)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_mixture_of_experts_with_its_loss_generates_as_without(kind):
    prompts, settings = [[1, 2, 3], [4], [5, 6]], dict(max_new_tokens=6, stop_ids=[0], seed=0)
    plain, trained = make(kind), make(kind, output_router_logits=True)
    assert generate(trained, prompts, **settings) == generate(plain, prompts, **settings)
    assert trained.config.output_router_logits


def test_a_model_that_has_become_nan_is_said():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="LlamaForCausalLM gives NaN"):
        generate(model, [[1, 2], [3]], max_new_tokens=3, stop_ids=[0], seed=0)
