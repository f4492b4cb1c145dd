"""Ten steps of training agree with a slow loop that shares no code with the package.

The policy differs from its reference. With equal models every margin is zero, and 14 deliberately wrong versions
(prompt scored, mean for sum, shifted by one, end missing, ...) all start at exactly log 2.
"""

import json
import math
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses

STEPS, BATCH, BETA = 10, 4, 0.1


def slow_logp(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """One unpadded sequence, with an explicit softmax for every response token."""
    logits = model(torch.tensor([prompt + response])).logits[0]
    total = torch.zeros(())
    for t, token in enumerate(response):
        row = logits[len(prompt) + t - 1]
        total = total + row[token] - (row - row.max()).exp().sum().log() - row.max()
    return total


def slow_split(tokenizer, row: dict) -> tuple[list[int], list[int], list[int]]:
    plain = [tokenizer.encode(row["prompt"] + r) for r in ("", row["chosen"], row["rejected"])]
    k = 0
    while k < min(map(len, plain)) and plain[0][k] == plain[1][k] == plain[2][k]:
        k += 1
    return plain[0][:k], plain[1][k:] + [tokenizer.eos_token_id], plain[2][k:] + [tokenizer.eos_token_id]


def slow_training(policy, reference, tokenizer, rows: list[dict], loss: str, optimizer) -> list[dict[str, float]]:
    table = []
    for step in range(STEPS):
        batch = [slow_split(tokenizer, row) for row in rows[step * BATCH : (step + 1) * BATCH]]
        total, rows_logged = torch.zeros(()), []
        for prompt, chosen, rejected in batch:
            chosen_logp, rejected_logp = slow_logp(policy, prompt, chosen), slow_logp(policy, prompt, rejected)
            with torch.no_grad():
                ref_chosen, ref_rejected = (slow_logp(reference, prompt, side) for side in (chosen, rejected))
            u, v = chosen_logp - ref_chosen, rejected_logp - ref_rejected
            h = u - v
            total = total + (torch.log1p(torch.exp(-BETA * h)) if loss == "dpo" else (h - 1 / (2 * BETA)) ** 2)
            rows_logged.append([chosen_logp.item(), rejected_logp.item(), BETA * u.item(), BETA * v.item()])
        optimizer.zero_grad()
        (total / len(batch)).backward()
        norm = math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in policy.parameters()))
        optimizer.step()
        means = [sum(column) / len(batch) for column in zip(*rows_logged, strict=True)]
        names = ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected")
        table.append({"loss": total.item() / len(batch), "grad_norm": norm, **dict(zip(names, means, strict=True))})
    return table


class Rows(L.pytorch.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)


def follow(model: Path, file: Path, tmp_path: Path, loss: str, cached: bool, fast_optimizer, slow_optimizer) -> None:
    policy = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * p.std() * torch.randn_like(p))
    policy.save_pretrained(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    reference = AutoModelForCausalLM.from_pretrained(model)
    slow = slow_training(policy, reference, tokenizer, rows, loss, slow_optimizer(policy.parameters()))

    reference = CachedReference(str(model), tmp_path / "cache") if cached else CopyReference(str(model))
    module = DPOModule(tmp_path / "policy", partial(getattr(losses, loss), beta=BETA), reference, fast_optimizer)
    data = PreferenceDataModule(tokenizer, file, batch_size=BATCH, shuffle=False)
    fast = Rows()
    L.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=fast, log_every_n_steps=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, datamodule=data)  # fmt: skip

    tolerance = {"loss": 1e-4, "grad_norm": 5e-3, "logps": 5e-4, "rewards": 1e-4}
    scale = 1 if loss == "dpo" else 20  # IPO's loss and gradient are of the order of (1/(2 beta))^2 = 25
    assert len(fast.rows) == STEPS and abs(slow[0]["rewards/chosen"] - slow[0]["rewards/rejected"]) > 1e-3
    for expected, found in zip(slow, fast.rows, strict=True):
        for name, value in expected.items():
            allowed = tolerance[name.split("/")[0]] * (scale if name in ("loss", "grad_norm") else 1)
            assert found[f"train/{name}"] == pytest.approx(value, abs=allowed), name


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_ten_steps_on_the_bundled_task(reviews, few_reviews, tmp_path, loss):
    # Not Adam: gradients that cancel between the sides leave rounding noise, which Adam amplifies to full steps.
    sgd = partial(torch.optim.SGD, lr=0.01 if loss == "dpo" else 1e-4)
    follow(reviews / "model", few_reviews, tmp_path, loss, loss == "dpo", sgd, sgd)


def test_ten_steps_on_real_dialogues_with_a_pretrained_model(shared, tmp_path):
    adamw = partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.0, fused=True)
    adam = partial(torch.optim.Adam, lr=5e-4)  # without decay, AdamW is Adam
    follow(shared / "models" / "stories260K", shared / "data" / "hh_pairs64.jsonl", tmp_path, "dpo", True, adamw, adam)
