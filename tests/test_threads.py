"""With several threads, the same command still computes the same bits: no sum depends on the order in which threads
finish. The other tests run on one thread."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from lightning_dpo import CopyReference, DPOModule
from lightning_dpo.batch import PairBatch
from lightning_dpo.models.layers import checkpoint_activations
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring import Scorer
from tests.conftest import ROOT, llama, with_shifted_logits
from tests.losses.pairs import REFERENCE_FREE, shipped
from tests.scoring.test_load_balancing import mixtral
from tests.test_module import DPO, perturbed

TIMES = 4
BIG = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
"""Large enough for torch to use several threads; it uses one below some thousand numbers."""


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pairs(number: int = 48) -> PairBatch:
    """Each prompt four times, so that many responses follow the same token. Each twelfth pair has the responses of its
    neighbour, so that a token counts twice."""
    generator = torch.Generator().manual_seed(0)

    def side(shortest: int, longest: int, source: list[int]) -> Ragged:
        lengths = torch.randint(shortest, longest, (number,), generator=generator).tolist()
        rows = [torch.randint(0, 500, (length,), generator=generator) for length in lengths]
        return Ragged.from_rows([rows[i] for i in source])

    prompts, responses = [i // 4 for i in range(number)], [i - (i % 12 == 1) for i in range(number)]
    columns = side(4, 12, prompts), side(6, 40, responses), side(6, 40, responses)
    return PairBatch(*columns, torch.arange(number))


def gradients(model, loss, reference: bool, scoring: str = "auto") -> bytes:
    torch.manual_seed(0)
    run = perturbed(DPOModule(model(), loss(), CopyReference() if reference else None, scoring=scoring))
    run._losses(pairs())[1].sum().backward()
    return torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]).numpy().tobytes()


def adapter_gradients(scoring: str) -> bytes:
    """By the scorer alone, since a module takes no adapter."""
    torch.manual_seed(0)
    model: Any = get_peft_model(llama(**BIG), LoraConfig(target_modules=["q_proj", "lm_head"]))
    chosen, rejected = Scorer(model, scoring)(pairs())  # type: ignore[arg-type]
    (chosen.sum() - rejected.sum()).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy().tobytes()


def assert_the_same_each_time(*arguments, compute=gradients) -> None:
    """Each time from the start, as some losses have a memory."""
    found = {compute(*arguments) for _ in range(TIMES)}
    assert len(found) == 1, f"{len(found)} different gradients in {TIMES} backward passes over the same weights"


@pytest.mark.parametrize("name", ["dpo", "ld_dpo", "sft", "tdpo1", "wpo"])
def test_the_gradient_of_a_loss_is_the_same_each_time(name):
    """One loss for each thing that a loss can need from the scorer."""
    assert_the_same_each_time(partial(llama, **BIG), partial(shipped, name), name not in REFERENCE_FREE)


def checkpointed():
    model = llama(**BIG)
    checkpoint_activations(model)
    return model


MODELS = {
    "plain": partial(llama, **BIG),
    "checkpointed layers": checkpointed,
    "experts": partial(mixtral, **BIG),
    "capped logits": lambda: Gemma2ForCausalLM(
        Gemma2Config(**BIG, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    ).eval(),
    "own logits": lambda: with_shifted_logits(llama(**BIG)),
}


@pytest.mark.parametrize("scoring", ["auto", "padded"])
def test_the_gradient_of_adapters_is_the_same_each_time(scoring):
    assert_the_same_each_time(scoring, compute=adapter_gradients)


@pytest.mark.parametrize("scoring", ["auto", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_a_model_is_the_same_each_time(name, scoring):
    assert_the_same_each_time(MODELS[name], lambda: DPO, True, scoring)


def test_a_killed_run_on_several_threads_resumes_to_the_same_bytes(tmp_path):
    """The bundled task with few options, in new processes, because threads do not survive a fork."""
    options = ["trainer.max_steps=12", "checkpoint.every_n_steps=4", "+trainer.limit_val_batches=1", "samples.n=4"]
    options += ["logger=csv", f"reference.cache_dir={tmp_path}/cache", f"data.cache_dir={tmp_path}/cache"]

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "lightning_dpo.train", *options, f"output_dir={tmp_path}/{name}"]
        environment = os.environ | {"OMP_NUM_THREADS": "2"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    process = start("killed")
    while process.poll() is None and not (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    for name in ("metrics.csv", "samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
