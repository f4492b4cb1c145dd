"""How tests/golden/saved was made: `python tests/golden/make_saved.py FOLDER` with version 0.1.0 (commit faa6931).

It builds model/ and pairs.jsonl. Then, in FOLDER, with OMP_NUM_THREADS=1 and COMMON of tests/run/test_resume_saved.py:

    run             train COMMON scheduler=constant output_dir=outputs/run, killed after its third checkpoint
    sweep           train -m COMMON beta=0.1,0.5 sweep_name=s, killed after the third checkpoint of its second job
    expected/*.csv  metrics.csv of the same commands, not killed

Checkpoints besides last.ckpt, caches and exports are left out, and absolute paths are made relative.
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make(here: Path) -> None:
    words = [f"w{number}" for number in range(50)]
    numbers = {"<end>": 0} | {word: number for number, word in enumerate(words, 1)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(
        here / "model"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=51, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(here / "model")
    draw = random.Random(0)
    with open(here / "pairs.jsonl", "w", encoding="utf-8") as file:
        for _ in range(24):
            prompt, chosen, rejected = (" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(3))
            file.write(json.dumps({"prompt": prompt + " ", "chosen": chosen, "rejected": rejected}) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
