"""tokenizer.json decides how a text becomes ids, whatever class is named beside it; the export keeps the file."""

import json
import logging
import shutil

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from lightning_dpo.demo import ASSETS
from lightning_dpo.errors import ConfigError
from lightning_dpo.models import load_tokenizer
from lightning_dpo.models.tokenizers import save_tokenizer
from tests.conftest import llama

TEXTS = ["the owls'll count 12345 moths", "  Über\n\n\tthe e\u0301 owl <|end|> ...moths!!", "moth\u2581owl"]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
BYTES = pre_tokenizers.ByteLevel


def split_by(pattern: str) -> pre_tokenizers.Sequence:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, BYTES(add_prefix_space=False, use_regex=False, trim_offsets=False)])


def bytes_of_gpt2() -> Tokenizer:
    return trained(BYTES(add_prefix_space=False))


def bytes_of_qwen2() -> Tokenizer:
    return trained(split_by(QWEN2), normalizers.NFC())


def three_digits() -> Tokenizer:
    return trained(split_by(r"\p{N}{1,3}| ?\p{L}+|\s+|."))


def sentencepiece() -> Tokenizer:
    """As the tokenizers of Llama 2 are filed."""
    marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(marks)  # type: ignore[assignment]
    steps = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)  # type: ignore[assignment]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def trained(pre_tokenizer, normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=BYTES.alphabet(), show_progress=False),
    )
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    """The files of a tokenizer and of a configuration, with a class and other settings in tokenizer_config.json."""

    def save(tokenizer: Tokenizer, tokenizer_class: str, name: str = "model", **settings):
        path = tmp_path / name
        path.mkdir()
        tokenizer.save(str(path / "tokenizer.json"))
        settings = {"tokenizer_class": tokenizer_class, "eos_token": "</s>", "unk_token": "<unk>", **settings}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
        (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return path

    return save


@pytest.mark.parametrize(
    ("filed", "named", "differs"),
    [
        (three_digits, "GPT2Tokenizer", "pre_tokenizer"),
        (three_digits, "Qwen2Tokenizer", "normalizer and pre_tokenizer"),
        (bytes_of_gpt2, "Qwen2Tokenizer", "normalizer and pre_tokenizer"),
        (sentencepiece, "LlamaTokenizer", "normalizer and pre_tokenizer and decoder and model"),
    ],
)
def test_where_class_and_file_differ_the_file_gives_the_ids(folder, filed, named, differs, caplog):
    original = filed()
    path = folder(original, named)
    wrong = AutoTokenizer.from_pretrained(path)
    ids = [original.encode(text).ids for text in TEXTS]
    assert [wrong(text)["input_ids"] for text in TEXTS] != ids
    with caplog.at_level(logging.WARNING):
        tokenizer = load_tokenizer(path)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == ids
    assert [tokenizer.decode(i) for i in ids] == [original.decode(i, skip_special_tokens=False) for i in ids]
    assert f"{named} has another {differs} than tokenizer.json; the file's is used" in caplog.text
    assert "\n" not in caplog.records[-1].message and tokenizer.special_tokens_map == wrong.special_tokens_map


@pytest.mark.parametrize(
    ("filed", "named"),
    [
        (bytes_of_gpt2, "GPT2Tokenizer"),
        (bytes_of_qwen2, "Qwen2Tokenizer"),
        (three_digits, "PreTrainedTokenizerFast"),
        (sentencepiece, "PreTrainedTokenizerFast"),
    ],
)
def test_a_class_that_agrees_with_the_file_stays_and_nothing_is_said(folder, filed, named, caplog):
    path = folder(filed(), named)
    with caplog.at_level(logging.WARNING):
        assert type(load_tokenizer(path)) is type(AutoTokenizer.from_pretrained(path))
    assert not caplog.records


def test_names_of_special_tokens_and_the_chat_template_come_from_the_settings(folder):
    filed = three_digits()
    filed.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore
    settings = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "</s>", "chat_template": "{{ messages }}"}
    tokenizer = load_tokenizer(folder(filed, "GPT2Tokenizer", **settings))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 3, 2)
    assert tokenizer.chat_template == "{{ messages }}" and tokenizer("owl")["input_ids"][0] == 1


def test_a_setting_that_still_differs_from_the_file_is_refused_with_both_named(folder):
    """A correction of transformers for tokenizers of Mistral, which have at least 100 000 tokens."""
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"moth{i}" for i in range(100_000))])}
    filed = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    filed.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    path = folder(filed, "PreTrainedTokenizerFast", fix_mistral_regex=True)
    (path / "config.json").write_text(json.dumps({"model_type": "mistral", "transformers_version": "4.50.0"}))
    with pytest.raises(ConfigError, match=r"tokenizer_config.json gives .* another pre_tokenizer than tokenizer.json"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("filed", "named"),
    [(three_digits, "GPT2Tokenizer"), (bytes_of_qwen2, "Qwen2Tokenizer"), (sentencepiece, "LlamaTokenizer")],
)
def test_the_export_has_the_original_file_and_gives_the_ids_of_training(folder, tmp_path, filed, named):
    path = folder(filed(), named, pad_token="<s>")
    tokenizer = load_tokenizer(path)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=4)  # leaves settings behind, which are not saved
    tokenizer.chat_template = "{{ messages }}"
    llama().config.save_pretrained(tmp_path / "export")
    save_tokenizer(tokenizer, tmp_path / "export")
    assert (tmp_path / "export" / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()
    again = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert again.chat_template == "{{ messages }}"


def test_the_bundled_tokenizer_is_exported_byte_for_byte(tmp_path):
    save_tokenizer(load_tokenizer(ASSETS / "model"), tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (ASSETS / "model" / "tokenizer.json").read_bytes()


def test_a_hub_id_is_exported_from_the_cache(folder, tmp_path, monkeypatch):
    path = folder(three_digits(), "GPT2Tokenizer")
    snapshot = tmp_path / "hub" / "models--org--owl" / "snapshots" / "1234"
    shutil.copytree(path, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1234")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tokenizer = load_tokenizer("org/owl")
    save_tokenizer(tokenizer, tmp_path / "export")
    assert tokenizer(TEXTS[0])["input_ids"] == three_digits().encode(TEXTS[0]).ids
    assert (tmp_path / "export" / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()


def test_a_tokenizer_that_was_changed_is_exported_as_it_is(folder, tmp_path):
    tokenizer = load_tokenizer(folder(three_digits(), "PreTrainedTokenizerFast"))
    tokenizer.add_tokens(["<|turn|>"])
    save_tokenizer(tokenizer, tmp_path / "export")
    assert AutoTokenizer.from_pretrained(tmp_path / "export")("<|turn|>")["input_ids"] == [len(tokenizer) - 1]


def test_a_tokenizer_built_in_python_is_exported_whatever_lies_in_the_working_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder(three_digits(), "PreTrainedTokenizerFast"))
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=bytes_of_gpt2(), eos_token="</s>"), tmp_path / "export")
    again = Tokenizer.from_file(str(tmp_path / "export" / "tokenizer.json"))
    assert again.encode(TEXTS[0]).ids == bytes_of_gpt2().encode(TEXTS[0]).ids
