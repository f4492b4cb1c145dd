"""Scoring agrees with the plainest path, whatever the padding, the batch or the chunks."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from lightning_dpo.batch import Ragged
from lightning_dpo.scoring import Scorer, has_plain_head
from tests.conftest import llama, random_pairs


def oracle(model, prompt: list[int], response: list[int]) -> list[float]:
    """A slow loop: one forward pass per token, softmax in float64."""
    logps, ids = [], list(prompt)
    for token in response:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        logps.append((logits[token] - logits.exp().sum().log()).item())
        ids.append(token)
    return logps


def test_every_response_token_is_scored_as_a_token_by_token_loop_does(model):
    batch = random_pairs()
    scored = Scorer(model)(batch)
    for side in ("chosen", "rejected"):
        for i in range(len(batch)):
            expected = oracle(model, batch.prompt.row(i).tolist(), getattr(batch, side).row(i).tolist())
            assert getattr(scored, side).row(i).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_pair_scores_the_same_alone_as_in_any_batch(model):
    batch, scorer = random_pairs(8), Scorer(model)
    together = scorer(batch).rejected.sum()
    alone = torch.cat([scorer(batch.select([i])).rejected.sum() for i in range(8)])
    shuffled = scorer(batch.select([5, 2, 7, 0])).rejected.sum()
    torch.testing.assert_close(together, alone, atol=5e-4, rtol=0)
    torch.testing.assert_close(together[[5, 2, 7, 0]], shuffled, atol=5e-4, rtol=0)


def test_left_padding_scores_the_same(model):
    batch, scorer = random_pairs(), Scorer(model)
    right = scorer.responses(batch.prompt, batch.chosen)
    left = scorer.responses(batch.prompt, batch.chosen, padding_side="left")
    torch.testing.assert_close(right, left, atol=5e-5, rtol=0)


def test_chunks_change_neither_values_nor_gradients():
    batch, model = random_pairs(), llama()
    whole, chunked = Scorer(model), Scorer(model, chunk_logits=3 * model.config.vocab_size)  # three tokens at a time
    gradients = []
    for scorer in (whole, chunked):
        model.zero_grad()
        scored = scorer(batch)
        (scored.chosen.sum() * torch.arange(1, 7)).sum().backward()
        gradients.append((scored.chosen.values.detach(), *(p.grad.clone() for p in model.parameters())))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_the_head_never_sees_more_rows_than_a_chunk():
    batch, model = random_pairs(), llama()
    rows = []
    model.lm_head.register_forward_hook(lambda _m, args, _o: rows.append(args[0].numel() // 32))
    Scorer(model, chunk_logits=3 * model.config.vocab_size)(batch)
    assert max(rows[1:]) == 3  # the first call measures whether the head is plain


def test_a_model_that_caps_its_logits_goes_through_its_own_forward():
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5,
        )
    ).eval()  # fmt: skip
    assert not has_plain_head(model) and has_plain_head(llama())
    batch = random_pairs(3)
    scored = Scorer(model)(batch)
    expected = oracle(model, batch.prompt.row(1).tolist(), batch.chosen.row(1).tolist())
    assert scored.chosen.row(1).tolist() == pytest.approx(expected, abs=1e-5)


def test_log_probabilities_are_float32_for_a_bfloat16_model_and_float64_for_a_float64_one():
    assert Scorer(llama().bfloat16())(random_pairs()).chosen.values.dtype == torch.float32
    assert Scorer(llama().double())(random_pairs()).chosen.values.dtype == torch.float64


def test_dropout_stays_off_although_the_configuration_has_some():
    from tests.conftest import gpt2

    batch, scorer = random_pairs(), Scorer(gpt2())
    assert scorer.model.config.attn_pdrop == 0.1
    assert torch.equal(scorer(batch).chosen.values, scorer(batch).chosen.values)


def test_a_pair_without_a_prompt_token_is_refused():
    with pytest.raises(ValueError, match="no prompt token"):
        Scorer(llama()).responses(Ragged(torch.tensor([]), torch.tensor([0])), Ragged.from_rows([[1, 2]]))


def masked(pairs: int = 6):
    """random_pairs with context inside the responses; at least the last token is trained."""
    batch = random_pairs(pairs)
    generator = torch.Generator().manual_seed(1)

    def mask(side: Ragged) -> Ragged:
        rows = [torch.randint(0, 2, (int(n),), generator=generator, dtype=torch.uint8) for n in side.lengths]
        for row in rows:
            row[-1] = 1
        return Ragged.from_rows(rows)

    batch.trained = mask(batch.chosen), mask(batch.rejected)
    return batch


def test_of_a_response_of_several_turns_only_the_trained_tokens_are_scored_given_all_before_them(model):
    batch = masked()
    scored, lengths = Scorer(model)(batch), batch.trained_lengths()
    for side, mask, counts in zip(("chosen", "rejected"), batch.trained, lengths, strict=True):
        for i in range(len(batch)):
            everything = oracle(model, batch.prompt.row(i).tolist(), getattr(batch, side).row(i).tolist())
            expected = [logp for logp, on in zip(everything, mask.row(i).tolist(), strict=True) if on]
            assert getattr(scored, side).row(i).tolist() == pytest.approx(expected, abs=1e-5)
        assert torch.equal(counts, getattr(scored, side).lengths)


def test_masks_follow_their_pairs_into_a_batch():
    batch = masked()
    part = batch.select([4, 1])
    assert torch.equal(part.trained[0].row(0), batch.trained[0].row(4))
    assert torch.equal(part.trained_lengths()[1], batch.trained_lengths()[1][[4, 1]])
