"""The tokenisation rule: encoded together, one split for both sides, exactly one end token, exactly one BOS."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_dpo.data.rows import BadRow, Dropped, Row
from lightning_dpo.data.tokenize import FLAGS, Encoded, PairTokenizer
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


def byte_level(bos: bool = False, pad: str = "<pad>", template: Any = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges across spaces, so prompt and response often share a token."""
    bpe = Tokenizer(models.BPE())
    # No split at spaces, so merges cross every border.
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


def encoded(tokenizer, row: Row, max_length: int | None = None, **options) -> Encoded:
    (answer,) = PairTokenizer(tokenizer, max_length, **options).encode([row])
    if not isinstance(answer, Encoded):
        raise answer
    return answer


def encode(tokenizer, row: Row, max_length: int | None = None, **options) -> tuple[list[int], list[int], list[int]]:
    answer = encoded(tokenizer, row, max_length, **options)
    return answer.prompt, answer.chosen, answer.rejected


TEXT = Row("is it near:", " yes it is.", " no it is not.")
CHAT = Row([{"role": "user", "content": "is it near"}], "yes it is.", "no.")


def test_prompt_and_response_are_encoded_together():
    tokenizer = byte_level()
    prompt, chosen, rejected = encode(tokenizer, TEXT)
    assert [*prompt, *chosen] == [*tokenizer.encode(TEXT.prompt + TEXT.chosen), 2]
    assert [*prompt, *rejected] == [*tokenizer.encode(TEXT.prompt + TEXT.rejected), 2]


def test_a_token_merged_across_the_border_belongs_to_both_responses():
    tokenizer = byte_level()
    row = Row("the end", " is near", "x")
    prompt_only = tokenizer.encode(row.prompt)
    prompt, chosen, rejected = encode(tokenizer, row)
    assert prompt_only != tokenizer.encode(row.prompt + row.chosen)[: len(prompt_only)], "this example must merge"
    assert prompt == prompt_only[: len(prompt)] and len(prompt) < len(prompt_only)
    assert tokenizer.decode([*prompt, *chosen]) == "the end is near</s>"
    assert tokenizer.decode([*prompt, *rejected]) == "the endx</s>"


def test_any_text_decodes_to_itself():
    """400 random rows over all of Unicode and over the merging words."""
    tokenizer, rng = byte_level(), random.Random(0)

    def text() -> str:
        if rng.random() < 0.5:
            return "".join(rng.choice(["yes", " it", " is", ".", " ", "no", "\n"]) for _ in range(rng.randrange(6)))
        code = (
            rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(rng.randrange(6))
        )
        return "".join(map(chr, code))

    rows = [Row("Q" + text(), text(), text()) for i in range(400)]
    for row, answer in zip(rows, PairTokenizer(tokenizer).encode(rows), strict=True):
        if isinstance(answer, Dropped):
            assert row.chosen == row.rejected
            continue
        for ids, response in ((answer.chosen, row.chosen), (answer.rejected, row.rejected)):
            ids = [*answer.prompt, *ids]
            assert ids.count(2) == 1 and ids[-1] == 2
            assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == row.prompt + response


@pytest.mark.parametrize("row", [TEXT, CHAT])
@pytest.mark.parametrize("template", [CHATML, PLAIN, BOS_AND_EOS])
def test_exactly_one_bos_whether_tokenizer_or_template_adds_it(row, template):
    prompt, chosen, _ = encode(byte_level(bos=True, template=template), row)
    assert [*prompt, *chosen].count(1) == 1 and prompt[0] == 1


def test_no_bos_if_the_tokenizer_adds_none():
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


def test_the_end_token_stays_if_it_is_also_the_pad_token():
    assert encode(byte_level(pad="</s>"), TEXT) == encode(byte_level(), TEXT)


def test_long_responses_are_truncated_on_the_right_and_have_no_end_token():
    tokenizer = byte_level()
    prompt, chosen, rejected = encode(tokenizer, TEXT)
    room = len(chosen) - 1
    cut = encode(tokenizer, TEXT, max_length=len(prompt) + room)
    assert cut == (prompt, chosen[:room], rejected[:room]) and 2 not in cut[1]


def test_a_prompt_that_fills_max_length_drops_its_pair():
    answers = PairTokenizer(byte_level(), max_length=30).encode([Row("yes " * 100, "a", "b"), TEXT])
    assert str(answers[0]) == "prompt_too_long" and isinstance(answers[1], Encoded)


def test_an_empty_prompt_needs_a_bos():
    empty = Row("", "yes", "no")
    assert str(PairTokenizer(byte_level()).encode([empty])[0]) == "no_prompt_token"
    assert encode(byte_level(bos=True), empty)[0] == [1]


def test_an_empty_response_is_its_end_token():
    assert encode(byte_level(), Row("is it", "", "no"))[1] == [2]


@pytest.mark.parametrize("spelled", ["yes<|im_end|>", "yes<|im_end|><|im_end|>"])
def test_a_response_that_contains_its_end_token_has_it_once(spelled):
    tokenizer = byte_level(template=CHATML)
    once, twice = (encode(tokenizer, CHAT._replace(chosen=text))[1] for text in ("yes", spelled))
    assert once == twice and once.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_a_chat_without_a_template_names_the_key():
    with pytest.raises(DataError, match="data.chat_template"):
        encode(byte_level(), CHAT)


def unigram(bos: bool = True, legacy: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece style: spaces become ▁, and one is added before the text."""
    words = ["▁yes", "▁it", "▁is", ".", "▁no", "▁not", "▁the", "▁end", "▁near", ":", "▁", "s", "e", "y"]
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    bytes_ = [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    model = models.Unigram(special + bytes_ + [(w, -float(i + 1)) for i, w in enumerate(words)], 0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if legacy else "first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_tokenizer_that_adds_a_space_before_texts_adds_none_before_responses(bos, legacy):
    tokenizer = unigram(bos, legacy)
    prompt, chosen, _ = encode(tokenizer, Row("the end is", " near.", " not near."))
    assert tokenizer.decode(prompt + chosen, skip_special_tokens=True).strip() == "the end is near."
    assert prompt.count(1) == int(bos) and chosen[-1] == 2 and tokenizer.pad_token is None


def test_the_fast_path_gives_the_ids_of_the_tokenizer_itself():
    tokenizer = byte_level(bos=True)
    # This call leaves its settings in the tokenizer.
    tokenizer(["yes", "it is near"], padding=True, truncation=True, max_length=2)
    texts = ["yes it is.", "é 😀 x", "", "<s>yes", "a" * 50]
    assert PairTokenizer(tokenizer).ids(texts) == [
        ids if ids[:1] == [1] else [1, *ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
    ]


TURNS = Row(
    [{"role": "user", "content": "is it near"}],
    [
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "the end"},
        {"role": "assistant", "content": "no it is not."},
    ],
    "no.",
)
HH_TURNS = Row(
    "\n\nHuman: is it\n\nAssistant:",
    [
        {"role": "assistant", "content": " yes"},
        {"role": "user", "content": "\n\nHuman: near\n\nAssistant:"},
        {"role": "assistant", "content": " no it is not."},
    ],
    " no.",
)


@pytest.mark.parametrize(
    ("row", "turns", "trained"),
    [
        (TURNS, "last", ["no it is not.<|im_end|>"]),
        (TURNS, "all", ["yes<|im_end|>", "no it is not.<|im_end|>"]),
        # ": yes" and ": no it" hold a token that is merged across the border.
        (HH_TURNS, "last", [": no it is not.</s>"]),
        (HH_TURNS, "all", [": yes", ": no it is not.</s>"]),
    ],
)
def test_the_last_or_all_assistant_turns_are_trained(row, turns, trained):
    tokenizer = byte_level(template=CHATML)
    answer = encoded(tokenizer, row, turns=turns)
    pieces, before = [], False
    for token, on in zip(answer.chosen, answer.chosen_trained, strict=True):
        if on:
            pieces = [*pieces, [token]] if not before else [*pieces[:-1], pieces[-1] + [token]]
        before = on
    assert [tokenizer.decode(piece) for piece in pieces] == trained
    assert answer.rejected_trained is None, "a single turn is trained to its end"


def test_a_response_continues_a_final_assistant_message():
    tokenizer = byte_level(template=CHATML)
    row = Row([{"role": "user", "content": "is it"}, {"role": "assistant", "content": "yes it"}], " is.", " is not.")
    prompt, chosen, _ = encode(tokenizer, row)
    assert (
        tokenizer.decode(prompt + chosen)
        == "<|im_start|>user\nis it<|im_end|>\n<|im_start|>assistant\nyes it is.<|im_end|>"
    )
    assert tokenizer.decode(chosen).endswith("is.<|im_end|>")


def test_a_template_that_refuses_the_messages_is_quoted():
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRow, match="the chat template refuses the messages: .*roles must alternate"):
        encoded(byte_level(template=strict), CHAT)


def test_a_long_text_prompt_is_truncated_after_its_bos():
    tokenizer = byte_level(bos=True)
    row = Row("no it is not. " * 9 + "is it near:", " yes", " no")
    whole, cut = encode(tokenizer, row), encode(tokenizer, row, max_prompt_length=8)
    assert cut[0] == [1, *whole[0][-7:]] and cut[1:] == whole[1:]
    assert encoded(tokenizer, row, max_prompt_length=8).tokens_cut == len(whole[0]) - 8


SYSTEM = {"role": "system", "content": "be near"}
LONG_CHAT = [
    SYSTEM,
    {"role": "user", "content": "yes " * 20},
    {"role": "assistant", "content": "no " * 20},
    {"role": "user", "content": "it is not " * 3 + "near"},
]


@pytest.mark.parametrize("limit", range(36, 90, 6))
def test_a_long_chat_loses_its_oldest_turns_then_words_but_no_system_message_or_role_mark(limit):
    tokenizer = byte_level(bos=True, template=CHATML)
    prompt, chosen, _ = encode(tokenizer, Row(LONG_CHAT, "yes", "no"), max_prompt_length=limit)
    text = tokenizer.decode(prompt)
    head = "<s><|im_start|>system\nbe near<|im_end|>\n<|im_start|>user\n"
    assert text.startswith(head) and text.endswith("near<|im_end|>\n<|im_start|>assistant\n") and len(prompt) <= limit
    assert text.count("<|im_start|>") == text.count("<|im_end|>") + 1
    assert ("yes yes" in text) <= ("no no" in text), "the oldest go first"
    assert tokenizer.decode(chosen) == "yes<|im_end|>"


def test_a_prompt_whose_marks_are_too_long_is_dropped():
    tokenizer = byte_level(bos=True, template=CHATML)
    answer = PairTokenizer(tokenizer, max_prompt_length=10).encode([Row(LONG_CHAT, "yes", "no")])[0]
    assert str(answer) == "prompt_too_long"


def test_flags_of_a_pair():
    def flags(row, tokenizer=None, **options):
        answer = encoded(tokenizer or byte_level(bos=True), row, **options)
        return {name for i, name in enumerate(FLAGS) if answer.flags >> i & 1}

    assert flags(Row("is it:", "q", "z")) == set()
    assert flags(Row("the end", " is near", "x")) == {"merged_border"}
    assert "no_space" in flags(Row("near", "yes", "x"))
    assert flags(Row("<s><s>it is:", "q", "z")) == {"special_token_in_text", "double_bos"}
    assert flags(Row("it is:", "q" * 19, "z"), max_length=12) == {"cut_chosen"}
    assert flags(Row("it is:" * 9, "q", "z"), max_prompt_length=6) == {"cut_prompt"}


def test_a_chat_of_many_turns_is_rendered_a_few_times():
    tokenizer = byte_level(template=CHATML)
    turns = [{"role": role, "content": f"{i} is near"} for i in range(200) for role in ("user", "assistant")]
    row = Row([*turns, {"role": "user", "content": "is it"}], "yes.", "no.")
    pairs = PairTokenizer(tokenizer, max_prompt_length=100)
    rendered, render = [], pairs.chat.render
    pairs.chat.render = lambda messages, *args, **mode: rendered.append(1) or render(messages, *args, **mode)
    (answer,) = pairs.encode([row])
    assert isinstance(answer, Encoded) and len(rendered) < 20
    slow = next(
        ids
        for start in range(0, len(row.prompt), 2)
        if len(ids := pairs.ids([pairs.chat.prompt(row.prompt[start:])])[0]) <= 100
    )
    assert answer.prompt == slow
