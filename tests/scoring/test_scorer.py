"""Scoring agrees with a slow loop, whatever the padding, the batch or the chunks."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring.attention import plain_attention
from lightning_dpo.scoring.head import Head, States, find_head, in_chunks
from lightning_dpo.scoring.layout import padded
from tests.conftest import FAMILIES, llama, random_pairs, with_shifted_logits


def oracle(model, prompt: list[int], response: list[int]) -> list[float]:
    """A slow loop: one forward pass per token, softmax in float64."""
    logps, ids = [], list(prompt)
    for token in response:
        with torch.no_grad(), plain_attention(model):
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        logps.append((logits[token] - logits.exp().sum().log()).item())
        ids.append(token)
    return logps


def test_every_response_token_scores_like_a_token_by_token_loop(model):
    batch = random_pairs()
    scored = Scorer(model)(batch)
    for side in ("chosen", "rejected"):
        for i in range(len(batch)):
            expected = oracle(model, batch.prompt.row(i).tolist(), getattr(batch, side).row(i).tolist())
            assert getattr(scored, side).row(i).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_pair_scores_the_same_by_itself_as_in_any_batch(model):
    batch, scorer = random_pairs(8), Scorer(model)
    together = scorer(batch).rejected.sum()
    single = torch.cat([scorer(batch.select([i])).rejected.sum() for i in range(8)])
    shuffled = scorer(batch.select([5, 2, 7, 0])).rejected.sum()
    torch.testing.assert_close(together, single, atol=5e-4, rtol=0)
    torch.testing.assert_close(together[[5, 2, 7, 0]], shuffled, atol=5e-4, rtol=0)


def test_left_padding_scores_the_same(model):
    batch = random_pairs()
    states = []
    for side in ("right", "left"):
        layout = padded(batch.prompt, batch.chosen, side)
        hidden = model(**layout.inputs, output_hidden_states=True).hidden_states[-1]
        states.append(hidden.flatten(0, 1)[layout.predictors])
    torch.testing.assert_close(*states, atol=5e-5, rtol=0)


def test_chunks_change_neither_values_nor_gradients():
    batch, model = random_pairs(), llama()
    whole, chunked = Scorer(model), Scorer(model, chunk_logits=3 * model.config.vocab_size)  # three tokens at a time
    gradients = []
    for scorer in (whole, chunked):
        model.zero_grad()
        scored = scorer(batch)
        (scored.chosen.sum() * torch.arange(1, 7)).sum().backward()
        gradients.append((scored.chosen.values.detach(), *(p.grad.clone() for p in model.parameters())))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_the_head_never_sees_more_rows_than_a_chunk():
    batch, model = random_pairs(), llama()
    rows = []
    model.lm_head.register_forward_hook(lambda _m, args, _o: rows.append(args[0].numel() // 32))
    scorer = Scorer(model, chunk_logits=3 * model.config.vocab_size)
    scorer(batch)  # the first call probes the head
    rows.clear()
    scorer(batch)
    assert max(rows) == 3


def test_the_closed_form_gradient_equals_that_of_log_softmax():
    """For rows, weight and bias, in float64, with chunks that do not divide the rows."""
    layer = torch.nn.Linear(5, 7, dtype=torch.float64)
    rows, targets = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), torch.arange(8) % 7
    states = States(Head(layer, layer), rows)
    inputs = (rows, layer.weight, layer.bias)

    def logps(*_):
        return in_chunks([states], targets, chunk_logits=3 * 7)["logps"]

    plain = layer(rows).log_softmax(-1)[torch.arange(8), targets]
    torch.testing.assert_close(logps(), plain, rtol=1e-12, atol=0)
    weights = torch.randn(8, dtype=torch.float64)
    found, expected = (torch.autograd.grad((out * weights).sum(), inputs) for out in (logps(), plain))
    for ours, autograd in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-11, atol=1e-13)


def test_under_autocast_the_heads_gradient_is_summed_in_float32():
    layer, targets = torch.nn.Linear(16, 64, bias=False), torch.arange(60)
    rows, gradients = torch.randn(60, 16), []
    for chunk in (60, 1):
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            in_chunks([States(Head(layer, layer), rows)], targets, chunk_logits=chunk * 64)["logps"].sum().backward()
        gradients.append(layer.weight.grad)
    whole, single = gradients
    assert (whole - single).norm() < 1e-3 * whole.norm()


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_head_is_part_of_the_logits(tied):
    model = llama(tie_word_embeddings=tied)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False)).eval()
    batch = random_pairs(3)
    scored = Scorer(adapted, chunk_logits=5 * 61)(batch)
    expected = oracle(adapted, batch.prompt.row(1).tolist(), batch.chosen.row(1).tolist())
    assert scored.chosen.row(1).tolist() == pytest.approx(expected, abs=1e-5)
    with adapted.disable_adapter():
        without = oracle(adapted, batch.prompt.row(1).tolist(), batch.chosen.row(1).tolist())
    assert without != pytest.approx(expected, abs=1e-3)


def test_a_model_that_caps_its_logits_is_scored_in_chunks_of_capped_logits():
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5,
        )
    ).eval()  # fmt: skip
    assert find_head(model).linear is None and find_head(llama()).linear is not None
    batch = random_pairs(3)
    scored = Scorer(model, chunk_logits=3 * 61)(batch)
    expected = oracle(model, batch.prompt.row(1).tolist(), batch.chosen.row(1).tolist())
    assert scored.chosen.row(1).tolist() == pytest.approx(expected, abs=1e-5)


def test_logits_of_an_unknown_head_come_from_the_models_own_forward():
    model = with_shifted_logits(llama())
    assert find_head(model) is None
    batch = random_pairs(3)
    expected = oracle(model, batch.prompt.row(1).tolist(), batch.chosen.row(1).tolist())
    for scoring in ("padded", "shared_prefix"):
        assert Scorer(model, scoring)(batch).chosen.row(1).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_model_that_returns_all_logits_although_few_are_asked_for_is_scored_at_the_right_columns():
    """xLSTM ignores logits_to_keep and caps its logits."""
    model = with_shifted_logits(llama())
    shifted = model.forward
    model.forward = lambda *args, logits_to_keep=None, **kwargs: shifted(*args, **kwargs)
    assert find_head(model) is None
    batch = random_pairs(3)
    expected = oracle(model, batch.prompt.row(1).tolist(), batch.chosen.row(1).tolist())
    for scoring in ("padded", "shared_prefix"):
        assert Scorer(model, scoring)(batch).chosen.row(1).tolist() == pytest.approx(expected, abs=1e-5)


def test_log_probabilities_are_float32_for_a_bfloat16_model_and_float64_for_a_float64_model():
    assert Scorer(llama().bfloat16())(random_pairs()).chosen.values.dtype == torch.float32
    assert Scorer(llama().double())(random_pairs()).chosen.values.dtype == torch.float64


def test_dropout_is_off_although_the_configuration_has_it():
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


def test_only_trained_tokens_are_scored_but_all_tokens_are_context(model):
    batch = masked()
    scored, lengths = Scorer(model)(batch), batch.trained_lengths()
    for side, mask, counts in zip(("chosen", "rejected"), batch.trained, lengths, strict=True):
        for i in range(len(batch)):
            logps = oracle(model, batch.prompt.row(i).tolist(), getattr(batch, side).row(i).tolist())
            expected = [logp for logp, trained in zip(logps, mask.row(i).tolist(), strict=True) if trained]
            assert getattr(scored, side).row(i).tolist() == pytest.approx(expected, abs=1e-5)
        assert torch.equal(counts, getattr(scored, side).lengths)


def test_masks_stay_with_their_pairs_in_a_batch():
    batch = masked()
    part = batch.select([4, 1])
    assert torch.equal(part.trained[0].row(0), batch.trained[0].row(4))
    assert torch.equal(part.trained_lengths()[1], batch.trained_lengths()[1][[4, 1]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_log_probabilities_of_a_bfloat16_model_are_summed_in_float32(family, layout):
    """A response's sum is within 1 % of the same weights' in float32, and it is the sum of its own tokens exactly."""
    half, pairs = FAMILIES[family]().bfloat16(), random_pairs(12)
    full = FAMILIES[family]()
    full.load_state_dict(half.state_dict())
    rounded, exact = Scorer(half, layout)(pairs), Scorer(full, layout)(pairs)
    for side in ("chosen", "rejected"):
        values = getattr(rounded, side)
        assert values.values.dtype == torch.float32
        torch.testing.assert_close(values.sum(), getattr(exact, side).sum(), rtol=0.01, atol=0)
