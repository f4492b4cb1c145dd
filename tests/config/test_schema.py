"""Top-level keys have types, a misspelt key of a file is found, what the run sets is refused, a path is a path."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_dpo.config.schema import KEYS
from lightning_dpo.errors import ConfigError
from tests.config.test_check import check
from tests.conftest import ROOT


@pytest.fixture
def experiment(tmp_path):
    """Composes an experiment of one's own from its text."""
    (tmp_path / "experiment").mkdir()

    def run(text: str, *overrides: str):
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        typed = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", *overrides]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", typed, return_hydra_config=True)

    return run


HEAD = "# @package _global_\n"


def test_the_schema_lists_the_keys_of_the_default_run():
    plain = OmegaConf.load(ROOT / "conf" / "train.yaml")
    groups = [next(iter(entry)) for entry in plain.defaults if entry != "_self_"]
    written = {*plain.keys(), *groups} - {"defaults", "hydra", "launcher", "experiment"}
    assert written | {"beta"} == set(KEYS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: found -1; allowed: a whole number in [0, 4294967296)"),
        ("seed=4294967296", "seed=4294967296: found 4294967296; allowed"),
        ("seed=abc", "seed=abc: found the text 'abc'; allowed: a whole number"),
        ("seed=true", "seed=True: found True; allowed"),
        ("run_name=[1]", "run_name=[1]: found [1]; allowed: a text or a number"),
        ("sweep_name={a: 1}", "sweep_name={'a': 1}: found"),
        ("resume=3", "resume=3: found 3; allowed: auto or never or a path"),
        ("resume=null", "resume=None: found null; allowed: auto or never or a path"),
        ("resume_override=1", "resume_override=1: found 1; allowed: true or false"),
        ("objective=1", "objective=1: found 1; allowed: a text"),
        ("warn_kl=-1", "warn_kl=-1: found -1; allowed: a number in (0, inf) or null"),
        ("scoring=fast", "scoring=fast: found the text 'fast'; allowed: auto or"),
        ("nonfinite=go", "nonfinite=go: found the text 'go'; allowed: stop or skip"),
        ("checkpoint=3", "checkpoint=3: found 3; allowed: a mapping"),
        ("export=null", "export=None: found null; allowed: a mapping"),
        ("samples=3", "samples=3: found 3; allowed: a mapping"),
        ("checkpoint.mode=up", "checkpoint.mode=up: found the text 'up'; allowed: auto or min or max"),
        ("+checkpoint.evry=1", "checkpoint.evry=1: unknown; allowed"),
        ("~seed", "seed: a run needs it; leave out ~seed"),
        ("~checkpoint", "checkpoint: a run needs it; leave out ~checkpoint"),
        ("+los=ipo", "+los=ipo: no such key; did you mean loss?"),
        ("+zzz.a=1", "+zzz.a=1: no such key; allowed: seed, run_name"),
    ],
)
def test_a_top_level_key_is_checked_as_any_other(override, message):
    with pytest.raises(ConfigError) as error:
        check(override)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["run_name=2024", "sweep_name=0.5", "seed=0", "resume=never", "resume=a/b.ckpt"])
def test_a_name_may_look_like_a_number_and_resume_may_be_a_path(override):
    check(override, "logger=csv")


@pytest.mark.parametrize(
    "override",
    ["+data.tokenizer=x", "+samples.output_dir=x", "+trainer.plugins=[]", "+optimizer.params=[]", "+loss.logps=1",
     "+scheduler.optimizer=x", "+checkpoint.folder=x", "+export.card=x", "loss=mix +loss.terms.dpo.logps=1"],
)  # fmt: skip
def test_what_the_run_itself_passes_is_not_a_setting(override):
    with pytest.raises(ConfigError, match="the run sets it; leave it out"):
        check(*override.split())


def test_a_misspelt_key_of_a_file_is_named_with_its_line_and_the_nearest_key(experiment, tmp_path):
    with pytest.raises(ConfigError) as error:
        experiment(f"{HEAD}seed: 1\ntrainerr:\n  max_steps: 1\n")
    assert str(error.value) == f"{tmp_path}/experiment/mine.yaml:3: trainerr: no such key; did you mean trainer?"
    with pytest.raises(ConfigError, match=r"mine.yaml:2: objectve: no such key; did you mean objective\?"):
        experiment(f"{HEAD}objectve: val/loss\nhydra: {{mode: MULTIRUN}}\n")


def test_a_file_whose_keys_are_not_at_the_top_level_is_told_its_first_line(experiment):
    with pytest.raises(ConfigError, match="experiment=mine: .* write `# @package _global_` as the first line"):
        experiment("seed: 1\n")


def test_a_key_of_ones_own_is_accepted_where_a_value_takes_it(experiment):
    text = f"{HEAD}mine: {{lr: 0.5}}\noptimizer: {{lr: '${{mine.lr}}'}}\n"
    assert experiment(text).optimizer.lr == 0.5
    assert experiment(text, "optimizer.lr=0.1").optimizer.lr == 0.1


@pytest.mark.parametrize(
    "override",
    ["data.train=", "model.path=''", "output_dir=''", "output_dir=null", "hydra.sweep.dir=''", "resume=' '",
     "data.val=''", "data.train=[{path: ''}]", "data.val={a: ''}", "reference.path=''", "data.cache_dir=''",
     "data.chat_template=''", "logger.wandb.save_dir=''"],
)  # fmt: skip
def test_an_empty_path_is_refused_when_it_is_composed(override):
    with pytest.raises(ConfigError, match="it names no file or folder; type .*=PATH"):
        check(override)


def test_an_empty_path_from_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("PAIRS", "")
    with pytest.raises(ConfigError, match="data.train=: it names no file or folder"):
        check("data.train=${oc.env:PAIRS}")


def test_home_is_expanded_where_hydra_or_the_run_folder_reads_it_and_kept_elsewhere(experiment, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("RUNS", "~/runs")
    text = "output_dir: ~/runs/${run_name}\nresume: ~/a.ckpt\ndata: {train: ~/pairs.jsonl}\n"
    text += 'hydra: {sweep: {dir: ~/sweeps}, sweeper: {params: {data.train: "~/a.jsonl,~/b.jsonl"}}}\n'
    cfg = experiment(HEAD + text)
    assert cfg.output_dir == cfg.hydra.run.dir == "/home/ann/runs/lightning-dpo" and cfg.resume == "/home/ann/a.ckpt"
    assert cfg.hydra.sweep.dir == "/home/ann/sweeps" and cfg.data.train == "~/pairs.jsonl"
    assert cfg.hydra.sweeper.params["data.train"] == '"~/a.jsonl","~/b.jsonl"'
    cfg = experiment(HEAD, "output_dir=${oc.env:RUNS}", "+data.train=[~/a.jsonl]")
    assert cfg.output_dir == "/home/ann/runs" and cfg.data.train == ["~/a.jsonl"]


def test_home_is_expanded_for_loggers(monkeypatch):
    monkeypatch.setenv("HOME", "outputs/test")  # the run's folder of this test
    cfg, _ = check("logger.wandb.save_dir=~/wandb", "trainer.default_root_dir=~/root")
    assert cfg.logger.wandb.save_dir == "outputs/test/wandb" and cfg.trainer.default_root_dir == "outputs/test/root"
