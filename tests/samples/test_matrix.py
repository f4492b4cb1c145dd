"""Every kind of model trains with completions, with each reference and in each layout, and its export generates."""

import json
from functools import partial

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.demo import ASSETS
from lightning_dpo.models import load_model, load_tokenizer
from lightning_dpo.models.export import export
from lightning_dpo.samples import SampleCallback
from lightning_dpo.samples.generate import generate
from lightning_dpo.scoring.scorer import full_logits_logps
from tests.samples.kinds import make

BATCHES = {"llama": "padded", "gpt2": "padded", "qwen3_moe": "padded", "recurrent_gemma": "equal"}
OPTIONS = {"qwen3_moe": {"router_aux_loss_coef": 0.01}}
PACKED = {"llama", "gpt2", "qwen3_moe"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve bundled pairs, whose prompts end early so that they have two to four tokens."""
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    lines = (ASSETS / "train.jsonl").read_text().splitlines()[:12]
    pairs = [json.loads(line) for line in lines]
    for i, pair in enumerate(pairs):
        pair["prompt"] = " ".join(pair["prompt"].split()[i % 3 :])
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


@pytest.fixture(scope="module", params=BATCHES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param
    tokenizer = load_tokenizer(ASSETS / "model")
    make(request.param, vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("scoring", ["auto", "padded"])
@pytest.mark.parametrize("reference", ["cached", "copy"])
def test_it_trains_samples_and_exports(folder, rows, reference, scoring, tmp_path):
    kind = folder.name
    model = load_model(str(folder), **OPTIONS.get(kind, {}))
    references = {"cached": partial(CachedReference, cache_dir=tmp_path / "cache"), "copy": CopyReference}
    optimizer, dpo = partial(torch.optim.AdamW, lr=1e-3), partial(losses.dpo, beta=0.1)
    module = DPOModule(model, dpo, references[reference](), optimizer, scoring=scoring)
    data = PreferenceDataModule(folder, rows, val=rows, batch_size=6)
    samples = SampleCallback(n=12, max_new_tokens=6, output_dir=tmp_path)
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[samples], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    assert trainer.callback_metrics["val/kl"].abs() < 1e-5, "policy and reference are equal before training"
    trainer.fit(module, datamodule=data)

    assert trainer.global_step == 2 and trainer.callback_metrics["val/kl"].isfinite()
    assert module.scorer.layout == ("shared_prefix" if scoring == "auto" and kind in PACKED else "padded")
    assert samples.batches == BATCHES[kind] and len({len(c.prompt.split()) for c in samples.last}) == 3
    prompts, settings = samples._prompts(module, data.val_sets.values()), {"stop_ids": data.stop_ids, "seed": 0}
    draws = generate(module.policy, prompts, max_new_tokens=6, batches=samples.batches, **settings)
    for prompt, draw, completion in zip(prompts, draws, samples.last, strict=True):
        plain = full_logits_logps(module.policy, torch.tensor(prompt), torch.tensor(draw.ids)).sum().item()
        assert sum(draw.logps) == pytest.approx(plain, abs=1e-3) and completion.logp == pytest.approx(plain, abs=1e-3)

    export(module.policy, data.tokenizer, tmp_path / "export", "")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    assert not getattr(exported.config, "output_router_logits", False)
    batch = {"input_ids": torch.tensor([[0, 4, 5], [6, 7, 8]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    assert exported.generate(**batch, max_new_tokens=2, pad_token_id=0).shape[1] == 5
