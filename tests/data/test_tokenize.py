"""The tokenisation rule: encoded together, one split for both sides, exactly one end token, exactly one BOS."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_dpo.data.rows import Row
from lightning_dpo.data.tokenize import PairTokenizer
from lightning_dpo.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BOS_AND_EOS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)


def byte_level(bos: bool = False, pad: str = "<pad>", template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges greedily, spaces included: prompt and response often share a token."""
    bpe = Tokenizer(models.BPE())
    # No split at spaces: merges cross every border.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["yes it is. no it is not. the end is near: yes. " * 20], trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token=pad, chat_template=template,
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip


def encode(tokenizer, row: Row, max_length: int | None = None) -> tuple[list[int], list[int], list[int]]:
    pairs, _ = PairTokenizer(tokenizer, max_length).encode([row])
    return tuple(side.row(0).tolist() for side in (pairs.prompt, pairs.chosen, pairs.rejected))


TEXT = Row("is it near:", " yes it is.", " no it is not.", "f:1")
CHAT = Row([{"role": "user", "content": "is it near"}], "yes it is.", "no.", "f:1")


def test_prompt_and_response_are_encoded_together():
    tokenizer = byte_level()
    prompt, chosen, rejected = encode(tokenizer, TEXT)
    assert [*prompt, *chosen] == [*tokenizer.encode(TEXT.prompt + TEXT.chosen), 2]
    assert [*prompt, *rejected] == [*tokenizer.encode(TEXT.prompt + TEXT.rejected), 2]


def test_a_token_merged_over_the_border_belongs_to_both_responses():
    tokenizer = byte_level()
    row = Row("the end", " is near", "x", "f:1")
    alone = tokenizer.encode(row.prompt)
    prompt, chosen, rejected = encode(tokenizer, row)
    assert alone != tokenizer.encode(row.prompt + row.chosen)[: len(alone)], "this example must merge"
    assert prompt == alone[: len(prompt)] and len(prompt) < len(alone)
    assert tokenizer.decode([*prompt, *chosen]) == "the end is near</s>"
    assert tokenizer.decode([*prompt, *rejected]) == "the endx</s>"


def test_any_text_comes_back_and_masks_add_up():
    """400 random rows over all of Unicode and over the merging words."""
    tokenizer, rng = byte_level(), random.Random(0)

    def text() -> str:
        if rng.random() < 0.5:
            return "".join(rng.choice(["yes", " it", " is", ".", " ", "no", "\n"]) for _ in range(rng.randrange(6)))
        code = (
            rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(rng.randrange(6))
        )
        return "".join(map(chr, code))

    rows = [Row("Q" + text(), text(), text(), f"f:{i}") for i in range(400)]
    pairs, _ = PairTokenizer(tokenizer).encode(rows)
    for i, index in enumerate(pairs.index.tolist()):
        for side, response in (("chosen", rows[index].chosen), ("rejected", rows[index].rejected)):
            ids = [*pairs.prompt.row(i).tolist(), *getattr(pairs, side).row(i).tolist()]
            assert ids.count(2) == 1 and ids[-1] == 2
            assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == rows[index].prompt + response


@pytest.mark.parametrize("row", [TEXT, CHAT])
@pytest.mark.parametrize("template", [CHATML, PLAIN, BOS_AND_EOS])
def test_exactly_one_bos_whether_tokenizer_or_template_brings_it(row, template):
    prompt, chosen, _ = encode(byte_level(bos=True, template=template), row)
    assert [*prompt, *chosen].count(1) == 1 and prompt[0] == 1


def test_no_bos_where_the_tokenizer_wants_none():
    assert 1 not in encode(byte_level(), TEXT)[0]


@pytest.mark.parametrize(
    ("template", "end", "text"),
    [
        (CHATML, "<|im_end|>", "<|im_start|>user\nis it near<|im_end|>\n<|im_start|>assistant\nyes it is.<|im_end|>"),
        (PLAIN, "</s>", "user: is it near\nassistant: yes it is.</s>"),
        (BOS_AND_EOS, "</s>", "<s>[INST] is it near [/INST] yes it is. </s>"),
    ],
)
def test_a_chat_ends_with_the_templates_own_end_of_turn_and_nothing_after_it(template, end, text):
    tokenizer = byte_level(template=template)
    prompt, chosen, rejected = encode(tokenizer, CHAT)
    assert tokenizer.decode([*prompt, *chosen]) == text
    assert {tokenizer.decode(chosen[-1:]), tokenizer.decode(rejected[-1:])} == {end}
    assert chosen[:-1].count(chosen[-1]) == 0


def test_the_end_survives_a_pad_token_that_equals_it():
    assert encode(byte_level(pad="</s>"), TEXT) == encode(byte_level(), TEXT)


def test_long_responses_are_cut_on_the_right_and_lose_their_end():
    tokenizer = byte_level()
    prompt, chosen, rejected = encode(tokenizer, TEXT)
    room = len(chosen) - 1
    cut = encode(tokenizer, TEXT, max_length=len(prompt) + room)
    assert cut == (prompt, chosen[:room], rejected[:room]) and 2 not in cut[1]


def test_a_prompt_that_fills_max_length_drops_its_pair_and_is_counted():
    tokenizer = byte_level()
    long = Row("yes " * 100, "a", "b", "f:2")
    pairs, counts = PairTokenizer(tokenizer, max_length=30).encode([long, TEXT])
    assert pairs.index.tolist() == [1] and counts["prompt_too_long"] == 1
    with pytest.raises(DataError, match="no row is left"):
        PairTokenizer(tokenizer, max_length=30).encode([long])


def test_an_empty_prompt_needs_a_bos():
    empty = Row("", "yes", "no", "f:1")
    assert PairTokenizer(byte_level()).encode([empty, TEXT])[1]["no_prompt_token"] == 1
    assert encode(byte_level(bos=True), empty)[0] == [1]


def test_an_empty_response_is_its_end_token():
    assert encode(byte_level(), Row("is it", "", "no", "f:1"))[1] == [2]


def test_a_chat_without_a_template_names_the_key():
    with pytest.raises(DataError, match="data.chat_template"):
        encode(byte_level(), CHAT)
