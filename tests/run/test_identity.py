"""Which settings and file contents make another run, and which do not."""

import json
import shutil

import pytest

from lightning_dpo.run import identity
from lightning_dpo.run.identity import content, differences


def test_a_glob_and_a_folder_of_data_are_identified_by_the_content_of_their_files(tmp_path):
    folder = tmp_path / "birds" / "data"
    folder.mkdir(parents=True)
    for name in ("train-0.jsonl", "train-1.csv.xz"):
        (folder / name).write_text(name)
    config = {"data.train": f"{folder}/train-*", "data.val": [{"path": str(tmp_path / "birds")}]}
    before = content(config)
    (folder / "test-0.jsonl").write_text("another split")
    assert content(config)["data.train (content)"] == before["data.train (content)"]
    assert content(config)["data.val (content)"] != before["data.val (content)"]
    (folder / "train-1.csv.xz").write_text("changed")
    assert content(config)["data.train (content)"] != before["data.train (content)"]
    assert not content({"data.train": "https://example.org/train.jsonl", "data.chat_template": f"{folder}/train-*"})


def test_files_and_folders_are_identified_by_their_content(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (model / name).write_text(name)
    for name in ("a.jsonl", "b.jsonl", "t.jinja"):
        (tmp_path / name).write_text(name)
    config = {
        "model.path": str(model),
        "reference.path": None,
        "data.train": [{"path": str(tmp_path / "a.jsonl"), "weight": 2}, str(tmp_path / "b.jsonl"), "org/name"],
        "data.val": 0.1,
        "data.val.hub.path": "org/name",
        "data.chat_template": str(tmp_path / "t.jinja"),
        "data.cache_dir": str(tmp_path),
    }
    previous = content(config)
    assert set(previous) == {f"{key} (content)" for key in ("model.path", "data.train", "data.chat_template")}
    copied = shutil.copytree(model, tmp_path / "copy")
    assert content({"model.path": str(copied)})["model.path (content)"] == previous["model.path (content)"]
    (model / "README.md").write_text("another text")
    assert content(config) == previous, "a run does not read it"
    (model / "model.safetensors").write_text("Model.safetensors")
    (tmp_path / "b.jsonl").write_text("c.jsonl")
    current = content(config)
    assert {key for key in previous if current[key] != previous[key]} == {
        "model.path (content)",
        "data.train (content)",
    }
    assert not content({"data.train": str(tmp_path / "a.jsonl"), "data.streaming": True})
    assert not content({"data.chat_template": "{{ messages }}" * 1000, "data.train": str(tmp_path / "none")})


@pytest.mark.parametrize("changed", ["model", "train", "val"])
def test_a_changed_file_makes_a_finished_run_another_run(changed, command, few_reviews, reviews, tmp_path):
    model, val = shutil.copytree(reviews / "model", tmp_path / "model"), tmp_path / "val.jsonl"
    val.write_text("".join(few_reviews.read_text().splitlines(keepends=True)[:5]))
    line = ["data=jsonl", f"data.train={few_reviews}", f"data.val={val}", f"model.path={model}", "output_dir=run"]
    line += ["samples.n=0", "trainer.max_steps=1", "logger=csv", "model=hf"]
    assert command(*line)[0] == 0
    assert "nothing is left to do" in command(*line)[1]
    if changed == "model":
        settings = json.loads((model / "generation_config.json").read_text())
        (model / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.5}))
    else:
        rows = {"train": few_reviews, "val": val}[changed]
        rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    code, output = command(*line)
    key = "model.path" if changed == "model" else f"data.{changed}"
    assert code == 2 and f"holds another run ({key} (content) " in output and "resume_override=true" in output


def test_a_finished_job_runs_again_when_its_data_have_changed(command, short, few_reviews):
    short = [argument for argument in short if not argument.startswith("output_dir=")]
    line = ["-m", "seed=1", "sweep_name=s", "trainer.max_steps=1", *short]
    assert command(*line)[0] == 0
    assert "skipped" in command(*line)[1]
    few_reviews.write_text(few_reviews.read_text().replace("witty", "moving"))
    code, output = command(*line)
    assert code == 0 and "data.train (content)" in output and "skipped" not in output


def test_a_key_that_a_saved_run_lacks_has_its_former_value(monkeypatch):
    monkeypatch.setitem(identity.ADDED, "adapter", "none")
    assert differences({}, {"adapter": "none"}) == []
    assert differences({}, {"adapter": "lora"}) == ["adapter none -> lora"]
    assert differences({}, {"other": "x"}) == ["other None -> x"], "only keys that are listed"


def test_a_target_that_moved_within_the_package_is_the_same():
    old, new = ({"loss._target_": f"lightning_dpo.losses{room}.dpo"} for room in ("", ".pairwise"))
    assert differences(old, new) == []
    assert differences(old, {"loss._target_": "lightning_dpo.losses.ipo"}) != []
    gone = [{"loss._target_": f"lightning_dpo.nowhere.{name}"} for name in ("a", "b")]
    assert differences(*gone) != [], "two names of nothing are not the same"


def test_a_changed_default_names_the_override_only_where_it_changed():
    saved = {"scheduler.name": "constant", "scheduler.warmup_steps": 0.1}
    (line,) = differences(saved, saved | {"scheduler.warmup_steps": 0})
    assert "type scheduler.warmup_steps=0.1 to resume it" in line
    linear = saved | {"scheduler.name": "linear"}
    assert differences(linear, linear | {"scheduler.warmup_steps": 0}) == ["scheduler.warmup_steps 0.1 -> 0"]
    assert all("resume it" not in line for line in differences(linear, saved | {"scheduler.warmup_steps": 0}))
