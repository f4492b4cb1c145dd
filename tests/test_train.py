"""The command, end to end: the files of a run, its output, and its error messages."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dpo import DPOModule
from lightning_dpo.demo import ASSETS
from tests.conftest import ROOT


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_the_files_of_the_contract(command, short, tmp_path):
    code, output = command("loss=ipo", "beta=0.1", *short)
    assert code == 0, output
    folder = tmp_path / "run"
    names = {p.name for p in folder.iterdir()}
    contract = "config.yaml metrics.csv samples.jsonl summary.json checkpoints model wandb train.log"
    assert set(contract.split()) <= names

    config = OmegaConf.load(folder / "config.yaml")
    assert config.loss.beta == 0.1 and config.loss._target_ == "lightning_dpo.losses.ipo"

    table = rows(folder)
    trained, validated = ([r for r in table if r[name]] for name in ("train/loss", "val/loss"))
    assert [r["step"] for r in trained] == ["1", "2", "3"] and [r["step"] for r in validated] == ["0", "3"]
    names = "loss loss_margin rewards/chosen rewards/rejected rewards/margins rewards/accuracies"
    names += " logps/chosen logps/rejected lengths/chosen lengths/rejected displacement/chosen_below_reference"
    names += " displacement/chosen_up displacement/rejected_down displacement/chosen_per_token"
    assert all(trained[0][f"train/{name}"] for name in f"{names} grad_norm lr".split())
    assert all(validated[0][f"val/{name}"] for name in f"{names} kl kl_se samples/reward samples/valid".split())
    assert float(validated[0]["val/loss"]) == pytest.approx(25)  # 1/(4 beta^2): the policy is its reference

    summary = json.loads((folder / "summary.json").read_text())
    last = {k: float(v) for row in (trained[-1], validated[-1]) for k, v in row.items() if v and k != "step"}
    assert summary["metrics"] == pytest.approx(last, rel=1e-6)
    assert summary["objective"] == {"name": "val/rewards/accuracies", "value": last["val/rewards/accuracies"]}
    assert summary["reference_forwards"] > 0 and summary["pairs_per_second"] > 0 and summary["versions"]["torch"]
    assert summary["scoring"] == "shared_prefix"

    assert "«" in output and "held out" in output and "written to" in output and str(folder) in output.replace("\n", "")
    assert "Traceback" not in output and "displacement" not in output


def test_the_policy_is_exported_for_transformers_and_for_lightning(command, short, tmp_path):
    assert command(*short)[0] == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    module = DPOModule.load_from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    start = AutoModelForCausalLM.from_pretrained(ASSETS / "model")
    assert torch.equal(model.lm_head.weight, module.policy.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, start.lm_head.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert (
        tokenizer("clever plot")["input_ids"]
        == AutoTokenizer.from_pretrained(ASSETS / "model")("clever plot")["input_ids"]
    )
    assert "dpo" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_second_run_reads_the_reference_of_the_first(command, short, tmp_path):
    assert command(*short)[0] == 0
    assert command(*short, "loss=ipo", "beta=0.5", "seed=3", f"output_dir={tmp_path}/second")[0] == 0
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["reference_forwards"] == 0


def test_only_the_same_seed_gives_the_same_numbers(command, short, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command(*short, f"seed={seed}", f"output_dir={tmp_path}/{name}", "logger=csv")[0] == 0
    a, b, c = ((tmp_path / name / "metrics.csv").read_bytes() for name in "abc")
    assert a == b != c


def test_without_validation_there_is_nothing_held_out(command, short, tmp_path):
    assert command(*short, "data.val=null", "logger=csv")[0] == 0
    table = rows(tmp_path / "run")
    assert len(table) == 3 and not any(name.startswith("val/") for name in table[0])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["objective"]["value"] is None


def test_a_loss_of_ones_own_needs_no_change_here(command, short, tmp_path, monkeypatch):
    """One function and one YAML, both outside the repository; then the same function as a term of a sum."""
    (tmp_path / "own_losses.py").write_text(
        "from lightning_dpo.losses import PairLogps, PairLoss, dpo\n\n"
        "def twice(logps: PairLogps, *, beta: float) -> PairLoss:\n"
        "    result = dpo(logps, beta=beta)\n"
        "    return PairLoss(2 * result.loss, result.chosen_reward, result.rejected_reward, result.margin)\n"
    )
    (tmp_path / "my_conf" / "loss").mkdir(parents=True)
    (tmp_path / "my_conf" / "loss" / "mine.yaml").write_text(
        "# @package _global_\nbeta: 0.2\nloss:\n  _target_: own_losses.twice\n  _partial_: true\n  beta: ${beta}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, output = command("--config-dir", str(tmp_path / "my_conf"), "loss=mine", "logger=csv", *short)
    assert code == 0, output
    first = next(r["val/loss"] for r in rows(tmp_path / "run") if r["val/loss"])
    assert float(first) == pytest.approx(2 * 0.693147, abs=1e-5)
    term = "+loss.terms.own={_target_: own_losses.twice, _partial_: true, beta: 0.3}"
    sum_ = ["loss=mix", term, "+loss.weights.own=0.5", "~loss.terms.sft", "~loss.weights.sft", "logger=csv"]
    code, output = command(*sum_, *short, f"output_dir={tmp_path}/sum")
    assert code == 0, output
    first = next(r["val/loss"] for r in rows(tmp_path / "sum") if r["val/loss"])
    assert float(first) == pytest.approx(2 * 0.693147, abs=1e-5)


def test_reference_none_with_a_loss_that_needs_none(command, short, tmp_path):
    assert command(*[s for s in short if "cache_dir" not in s], "loss=simpo", "logger=csv")[0] == 0
    assert (
        "val/kl" not in rows(tmp_path / "run")[0]
        and "train/displacement/chosen_below_reference" not in rows(tmp_path / "run")[0]
    )


def test_a_report_stops_before_training_and_ches_needs_only_the_policy(command, short, tmp_path):
    code, output = command("data.report=true", "data.report_ches=true", "data.report_plot=true", *short)
    assert code == 0 and "most alike: " in output
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files == {"config.yaml", "data_report.json", "data_ches.csv", "data_lengths.png", "train.log", ".run.lock"}
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["ches"]["pairs"] == 48


def test_a_run_that_ends_within_an_epoch_is_validated_at_its_end(command, short, tmp_path):
    code, output = command("trainer.max_steps=2", "logger=csv", *short)
    assert code == 0, output
    validated = [r for r in rows(tmp_path / "run") if r["val/loss"]]
    assert [r["step"] for r in validated] == ["0", "2"] and validated[0]["val/loss"] != validated[1]["val/loss"]
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 16


def test_a_stream_trains_and_reports_what_it_has_read(command, short, few_reviews, tmp_path):
    (tmp_path / "rows.jsonl").write_text("broken\n" + few_reviews.read_text())
    options = [s for s in short if not s.startswith(("data.train", "reference"))]
    stream = [f"data.train={tmp_path}/rows.jsonl", "data.streaming=true", "reference=copy", "trainer.max_steps=4"]
    code, output = command(*options, *stream, "data.on_bad_row=drop", "trainer.max_epochs=-1", "logger=csv")
    assert code == 0, output
    assert len([r for r in rows(tmp_path / "run") if r["train/loss"]]) == 4
    stream = json.loads((tmp_path / "run" / "data_report.json").read_text())["pairs"]["stream"]
    # three steps are the whole file, the fourth is of its second reading; one batch is read ahead
    assert stream["pairs"] in (64, 96) and stream["json"] == 2 and "read from the stream" in output


def test_a_finished_run_is_left_as_it_is(command, short, tmp_path):
    assert command(*short, "logger=csv")[0] == 0
    written = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    code, output = command(*short, "logger=csv", "run_name=other")
    assert code == 0 and "nothing is left to do" in output
    code, output = command(*short, "logger=csv", "beta=0.3", "data.batch_size=8")
    assert code == 2 and "loss.beta 0.1 -> 0.3" in output and "data.batch_size 16 -> 8" in output
    assert command(*short, "logger=csv", "resume=never")[0] == 2
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == written


def test_displacement_is_reported_in_the_log_on_the_terminal_and_in_wandb(command, short, tmp_path):
    """Twelve steps of dpo at a high lr push both log-probabilities down."""
    code, output = command(*short, "optimizer.lr=1e-2", "trainer.max_epochs=4")
    words = "likelihood displacement at step"
    assert code == 0 and output.count(words) == 1, output
    assert (tmp_path / "run" / "train.log").read_text().count(words) == 1
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert words.encode() in run.read_bytes()


def test_an_experiment_is_a_sweep_that_ends_with_a_table(command, short, tmp_path):
    options = [s for s in short if not s.startswith("output_dir")] + ["logger=csv", f"hydra.sweep.dir={tmp_path}/sweep"]
    code, output = command("experiment=displacement", *options, "hydra.sweeper.params.loss='dpo,ipo'", "beta=0.2")
    assert code == 0, output
    configs = [OmegaConf.load(p) for p in sorted((tmp_path / "sweep").glob("*/config.yaml"))]
    assert [c.loss._target_.split(".")[-1] for c in configs] == ["dpo", "ipo"] and {c.beta for c in configs} == {0.2}

    assert all(name in output.split("held out, at the end of each run")[1] for name in ("accuracy", "\ndpo ", "\nipo "))
    with open(tmp_path / "sweep" / "summary.csv", newline="") as file:
        first, second = csv.DictReader(file)
    summary = json.loads((tmp_path / "sweep" / first["run"] / "summary.json").read_text())
    start, end = summary["metrics_at_start"], summary["metrics"]
    assert float(first["accuracy"]) == end["val/rewards/accuracies"] and float(first["KL"]) == end["val/kl"]
    chosen_change = end["val/logps/chosen"] - start["val/logps/chosen"]
    assert float(first["chosen"]) == pytest.approx(chosen_change)
    assert chosen_change == pytest.approx(end["val/displacement/chosen_up"], 1e-3)
    assert float(first["margin"]) == pytest.approx(end["val/rewards/margins"] / 0.2, rel=1e-3)


def test_the_losses_of_the_experiment_exist():
    params = OmegaConf.load(ROOT / "conf" / "experiment" / "displacement.yaml").hydra.sweeper.params
    assert set(params.loss.split(",")) <= {p.stem for p in (ROOT / "conf" / "loss").glob("*.yaml")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["los=ipo"], "los=ipo: no such key; did you mean loss?"),
        (["loss=ip0"], "dpo"),
        (["beta=-1"], "beta=-1: found -1; allowed: a number in (0, inf)"),
        (["optimizer.lr=x"], "optimizer.lr=x: found the text 'x'; allowed: a number"),
        (["reference=none"], "reference=none with loss=dpo"),
        (["model.path=./nothing"], "model.path=./nothing: no such folder"),
        (["reference.path=./nothing"], "reference.path=./nothing: no such folder"),
        (["data.train=nothing.jsonl"], "nothing.jsonl: no such file"),
        (
            ["samples.scorer=no.such.function"],
            "no.such.function: a scorer of lightning_dpo is allowed here",
        ),
        (["logger.wandb.api_key=hunter2"], "secrets come from the environment"),
    ],
)
def test_a_wrong_key_value_or_path_ends_with_code_2_and_one_line(command, arguments, message):
    code, output = command(*arguments)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 2 and message in line and "Traceback" not in output and "hunter2" not in output


def test_a_refused_command_leaves_no_folder_behind_unless_it_was_there(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ([], ["output_dir=runs/a"]):
        assert command("data.train=nothing.jsonl", *place)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["runs"] and not list((tmp_path / "runs").iterdir())
    (tmp_path / "runs" / "a").mkdir()
    (tmp_path / "runs" / "a" / "mine.txt").touch()
    assert command("data.train=nothing.jsonl", "output_dir=runs/a")[0] == 2
    assert (tmp_path / "runs" / "a" / "mine.txt").exists()


def test_a_bad_row_ends_with_code_2_before_any_weight_loads(command, tmp_path, monkeypatch):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": 1}\n')
    monkeypatch.setattr("lightning_dpo.models.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    code, output = command("data=jsonl", f"data.train={tmp_path}/bad.jsonl", f"output_dir={tmp_path}/run")
    assert code == 2 and f"{tmp_path}/bad.jsonl:2: " in output


def test_pairs_longer_than_the_models_positions_are_refused(command, tmp_path):
    words = " clever" * 70
    (tmp_path / "long.jsonl").write_text(json.dumps(dict(prompt="review of a", chosen=words, rejected=" dull")))
    code, output = command(
        "data=jsonl", f"data.train={tmp_path}/long.jsonl", "data.val=null", f"output_dir={tmp_path}/run"
    )
    assert code == 2 and "data.max_length=64" in output


def test_online_without_a_key_or_a_network_logs_offline(command, short, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, output = command(*short, "logger.wandb.settings.init_timeout=3")
    assert code == 0 and "logging offline" in output, output
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_help_lists_the_groups_and_loads_no_torch():
    code = (
        "import sys; sys.argv = ['train', '--help']\n"
        "from lightning_dpo import train\n"
        "train.main()\n"
        "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "hinge, ipo, kto_pair" in done.stdout, done.stderr


def test_real_chats_with_a_template_split_by_question(command, shared, tmp_path):
    """Three steps on 80 rows."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    with open(shared / "data" / "truthfulqa_pairs.jsonl", encoding="utf-8") as file:
        rows_of_80 = [next(file) for _ in range(80)]
    code, output = command(
        "model=hf", f"model.path={shared}/models/stories260K", "data=jsonl",
        f"data.train={_file(tmp_path, 'rows.jsonl', ''.join(rows_of_80))}",
        f"data.chat_template={_file(tmp_path, 'template.jinja', template)}",
        "data.val=0.1", "data.max_length=512", "trainer.max_steps=3", "logger=csv",
        "samples.n=4", "samples.max_new_tokens=16",
        f"output_dir={tmp_path}/run", f"reference.cache_dir={tmp_path}/cache", "+trainer.limit_val_batches=2",
    )  # fmt: skip
    assert code == 0, output
    assert len([r for r in rows(tmp_path / "run") if r["train/loss"]]) == 3


def _file(folder, name: str, text: str):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_mistyped_objective_is_refused_before_the_first_step(command, short, tmp_path):
    code, output = command(*short, "objective=accuracy")
    assert code == 2 and "objective=accuracy: names of metrics begin with train/ or val/" in output
    code, output = command(*short, "objective=val/rewards/accuracy")
    assert code == 2 and "objective=val/rewards/accuracy: this run does not measure it; allowed:" in output
    assert "val/rewards/accuracies" in output and not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("limit", ["trainer.max_steps=0", "trainer.max_epochs=0"])
def test_a_run_without_steps_is_an_evaluation(command, short, tmp_path, limit):
    code, output = command(limit, "logger=[]", "scheduler.warmup_steps=100", *short)
    assert code == 0, output
    (row,) = rows(tmp_path / "run")
    assert row["step"] == "0" and float(row["val/loss"]) == pytest.approx(0.693147, abs=1e-5)
    assert "train/loss" not in row and json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 0
    same = [AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "run" / "model", ASSETS / "model")]
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in same), strict=True))


def test_a_validation_interval_beyond_the_epoch_is_one_line(command, short):
    for options, batches in (([], 3), (["+trainer.limit_train_batches=2"], 2)):
        code, output = command("trainer.val_check_interval=4", *options, *short)
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert code == 2 and f"trainer.val_check_interval=4: an epoch has {batches} micro-batches" in line
