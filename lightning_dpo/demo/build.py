"""Build the bundled model and pairs: `python -m lightning_dpo.demo.build [--out DIR]`.

1. A Llama of 0.35 million parameters learns the grammar of `grammar.py` by supervised training.
2. It completes each prompt twice at temperature 1. A share of the completions is corrupted by one token, so that the
   pairs also penalise ungrammatical text; without these a preference loss forgets the grammar.
3. The oracle prefers the first of two with the Bradley-Terry probability σ(scale x difference of rewards).

The same machine, torch and transformers give the same bytes.
"""

import argparse
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_dpo.demo import ASSETS, grammar

SFT_STEPS, SFT_BATCH, SFT_LR = 1000, 64, 3e-3
TRAIN_PAIRS, VAL_PAIRS = 8064, 1024
CORRUPTED_SHARE = 0.35
LABEL_SCALE = 1.0
MAX_NEW_TOKENS = 32
SPECIAL = ["<pad>", "<unk>", "</s>"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out: Path = arguments.out
    torch.set_num_threads(1)  # more threads change the order of sums, and so the bytes
    build(out, arguments.seed)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        packaged = ASSETS / path.relative_to(out)
        content = path.read_bytes()
        same = packaged.is_file() and packaged.read_bytes() == content
        verdict = "same as packaged" if same else "differs from the package"
        print(f"{path}  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()[:16]}  {verdict}")


def build(out: Path, seed: int, sft_steps: int = SFT_STEPS, pairs: tuple[int, int] = (TRAIN_PAIRS, VAL_PAIRS)) -> None:
    """Write `model/`, `train.jsonl` and `val.jsonl` into `out`; `pairs`: numbers of training and validation pairs."""
    tokenizer = make_tokenizer()
    model = supervised(tokenizer, seed, sft_steps)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    rows = make_pairs(model, tokenizer, sum(pairs), random.Random(seed + 1))
    for name, part in (("val", rows[: pairs[1]]), ("train", rows[pairs[1] :])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the grammar; no BOS."""
    words = [*SPECIAL, *grammar.VOCABULARY]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def supervised(tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> LlamaForCausalLM:
    """Maximum likelihood on fresh reviews of the grammar."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    # Untied, because a preference loss on tied embeddings breaks the grammar's fixed tokens.
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=96, num_hidden_layers=3, intermediate_size=256,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
            pad_token_id=SPECIAL.index("<pad>"), bos_token_id=None, eos_token_id=SPECIAL.index("</s>"),
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=SFT_LR, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        warm_up = min(1.0, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = SFT_LR * warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))
        texts = [f"{grammar.prompt(rng)} {grammar.completion(rng)} </s>" for _ in range(SFT_BATCH)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"supervised step {step:4d}  loss {loss.item():.3f} nats per token", flush=True)
    return model.eval()


def draw(model: LlamaForCausalLM, prompts: list[list[int]], end: int, seed: int, batch_size: int = 1024) -> Tensor:
    """Completions at temperature 1, shape [prompt, MAX_NEW_TOKENS] at most, padded with the end token.

    Not `samples.generate`, whose draws have changed since the bundled pairs were made.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    drawn = torch.full((len(prompts), MAX_NEW_TOKENS), end)
    options: Any = dict(do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=[end], pad_token_id=end)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            width = max(len(prompts[i]) for i in rows)
            ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in rows])
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
            new = model.generate(ids, attention_mask=mask, generation_config=GenerationConfig(**options))[:, width:]  # type: ignore[operator]
            drawn[rows, : new.shape[1]] = new
    return drawn


def make_pairs(model: LlamaForCausalLM, tokenizer, number: int, rng: random.Random) -> list[dict]:
    """Rows of prompt, chosen and rejected; a response starts with a space, so that prompt + response is the text."""
    prompts = [grammar.prompt(rng) for _ in range(number)]
    ids = [tokenizer(p)["input_ids"] for p in prompts for _ in range(2)]
    samples = draw(model, ids, tokenizer.eos_token_id, seed=rng.randrange(2**31))
    texts = [tokenizer.decode(s, skip_special_tokens=True) for s in samples]
    rows = []
    for i, prompt in enumerate(prompts):
        a, b = (corrupt(text, rng) if rng.random() < CORRUPTED_SHARE else text for text in texts[2 * i : 2 * i + 2])
        while a == b:
            b = corrupt(b, rng)
        gap = LABEL_SCALE * (grammar.oracle_reward(a) - grammar.oracle_reward(b))
        chosen, rejected = (a, b) if rng.random() < 1 / (1 + math.exp(-gap)) else (b, a)
        rows.append({"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected})
    return rows


def corrupt(text: str, rng: random.Random) -> str:
    """Delete, duplicate, replace or swap one token."""
    words = text.split()
    i = rng.randrange(len(words))
    match rng.randrange(4):
        case 0 if len(words) > 1:
            del words[i]
        case 1:
            words.insert(i, words[i])
        case 2:
            words[i] = rng.choice(grammar.VOCABULARY)
        case _:
            j = min(i + 1, len(words) - 1)
            words[i], words[j] = words[j], words[i]
    return " ".join(words)


if __name__ == "__main__":
    main()
