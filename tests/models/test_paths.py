"""What cannot be had is one line that names the key: configuration, weights and tokenizer, of a folder or the hub."""

import json
import shutil

import pytest

from lightning_dpo.demo import ASSETS
from lightning_dpo.errors import ConfigError
from lightning_dpo.models import load_model, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    """The bundled model in a folder of its own, with files replaced (or left out, for None)."""

    def save(name: str = "model", **files: str | None):
        path = tmp_path / name
        shutil.copytree(ASSETS / "model", path)
        for file, text in files.items():
            target = path / file.replace("_json", ".json").replace("_safetensors", ".safetensors")
            target.unlink() if text is None else target.write_text(text)
        return str(path)

    return save


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config_json": None}, r"the configuration cannot be loaded \(.*\); type a folder with config.json"),
        ({"config_json": "{"}, r"the configuration cannot be loaded \(.* not a valid JSON file\)"),
        ({"config_json": '{"model_type": "owl"}'}, r"the configuration cannot be loaded \(.* model type `owl`"),
        ({"model_safetensors": None}, r"the weights cannot be loaded \(.*\); type a folder with \*.safetensors"),
        ({"model_safetensors": "owl"}, r"the weights cannot be loaded \(SafetensorError: .*\)"),
    ],
)
def test_a_model_without_whole_files_is_refused_in_one_line(folder, files, message):
    path = folder(**files)
    with pytest.raises(ConfigError, match=f"model.path={path}: {message}") as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, "{}", '{"added_tokens": [], "model": 1}'], ids=["missing", "empty", "broken"])
def test_a_tokenizer_without_whole_files_too(folder, text):
    path = folder(tokenizer_json=text)
    with pytest.raises(ConfigError, match=f"model.path={path}: the tokenizer cannot be loaded .*model.tokenizer=PATH"):
        load_tokenizer(path)
    with pytest.raises(ConfigError, match="model.tokenizer=.*; type a folder with tokenizer.json, or .*_class$"):
        load_tokenizer(path, key="model.tokenizer")


@pytest.mark.parametrize("key", ["model.path", "model.tokenizer", "reference.path"])
def test_the_command_names_the_key_of_a_hub_id_that_cannot_be_had(command, short, key, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else half a minute of retries
    code, output = command(*short, f"{key}=nobody/nothing")
    assert code == 2 and "Traceback" not in output
    assert f"error: {key}=nobody/nothing: the " in output and "check the name and the network" in output


def test_a_model_folder_without_a_tokenizer_trains_with_one_from_elsewhere(command, short, folder, tmp_path):
    path = folder(tokenizer_json=None, tokenizer_config_json=None)
    code, output = command(*short, f"model.path={path}")
    assert code == 2 and f"error: model.path={path}: the tokenizer cannot be loaded" in output
    code, output = command(*short, f"model.path={path}", f"model.tokenizer={ASSETS / 'model'}", "samples.n=0")
    assert code == 0, output
    exported = tmp_path / "run" / "model" / "tokenizer.json"
    assert exported.read_bytes() == (ASSETS / "model" / "tokenizer.json").read_bytes()
    recorded = json.loads((tmp_path / "run" / "summary.json").read_text())["run"]["config"]
    assert "model.tokenizer (content)" in recorded
