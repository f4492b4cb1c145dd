"""Tiny random models of three families, the bundled task, and real inputs where they are at hand."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lightning_dpo import train
from lightning_dpo.batch import PairBatch
from lightning_dpo.demo import ASSETS
from lightning_dpo.ragged import Ragged

ROOT = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # of runs in processes of their own: threads of several tests would share the cores
os.environ["WANDB_MODE"] = "offline"
os.environ["LIGHTNING_DPO_ALLOW"] = "tests,own_losses"  # what tests name as parts of their own
torch.set_num_threads(1)

SIZES = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)


def llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, **changes}
    )
    return LlamaForCausalLM(config).eval()


def qwen3(seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, intermediate_size=48, num_key_value_heads=2, head_dim=8)).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    # Dropout is left at GPT-2's own 0.1: nothing here may switch it on.
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def with_shifted_logits(model):
    """The model, whose logits nothing but its own forward makes."""
    own = model.forward

    def shifted(*args, **kwargs):
        outputs = own(*args, **kwargs)
        outputs.logits = outputs.logits + torch.linspace(0, 1, outputs.logits.shape[-1])
        return outputs

    model.forward = shifted
    return model


FAMILIES = {"llama": llama, "qwen3": qwen3, "gpt2": gpt2}


def random_pairs(pairs: int = 6, seed: int = 0, vocabulary: int = 61) -> PairBatch:
    """Ragged pairs of random tokens, 1 to 9 a side; token 0, the pad and end of many tokenizers, is among them."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> Ragged:
        lengths = torch.randint(1, 10, (pairs,), generator=generator).tolist()
        return Ragged.from_rows([torch.randint(0, vocabulary, (n,), generator=generator) for n in lengths])

    return PairBatch(side(), side(), side(), index=torch.arange(pairs))


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory):
    """Caches under the home folder are the session's own."""
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


@pytest.fixture
def reviews() -> Path:
    """The bundled model and pairs."""
    return ASSETS


@pytest.fixture
def few_reviews(tmp_path) -> Path:
    """48 bundled pairs in a file."""
    lines = (ASSETS / "train.jsonl").read_text().splitlines()[:48]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Runs `python -m lightning_dpo.train ...` in this process; returns exit code and everything printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        monkeypatch.chdir(tmp_path)
        handlers = logging.getLogger().handlers[:]
        try:
            train.main()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            logging.getLogger().handlers = handlers
        return code, "".join(capfd.readouterr())

    return run


@pytest.fixture
def short(few_reviews, tmp_path) -> list[str]:
    """A run of a few seconds: 48 pairs, three steps an epoch."""
    return [
        f"data.train={few_reviews}", f"data.val={few_reviews}", "data.batch_size=16", "samples.n=8",
        f"output_dir={tmp_path}/run", f"reference.cache_dir={tmp_path}/cache",
    ]  # fmt: skip


@pytest.fixture
def wandb_records():
    """The records of the offline W&B run that stands in a run's folder, as W&B's own reader gives them."""

    def read(folder: Path) -> list[dict]:
        (run,) = (folder / "wandb").glob("offline-run-*")
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
        out = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
        return [json.loads(line) for line in out.splitlines() if line.strip()]

    return read


@pytest.fixture
def shared() -> Path:
    """Real pairs and models, which are not part of the repository: `data/` and `models/` in this folder."""
    folder = Path(os.environ.get("LIGHTNING_DPO_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("needs real inputs: set LIGHTNING_DPO_SHARED to a folder with data/ and models/")
    return folder
