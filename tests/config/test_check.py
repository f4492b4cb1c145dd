"""Every YAML composes and builds what it names; every wrong key or value is answered with what is allowed."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lightning_dpo.config import combinations
from lightning_dpo.config.check import check as check_config
from lightning_dpo.config.explain import explain, explained
from lightning_dpo.config.instantiation import instantiate
from lightning_dpo.config.suggest import ELSEWHERE, ELSEWHERE_TYPED, GROUPS, choices, known_keys
from lightning_dpo.demo import ASSETS
from lightning_dpo.errors import ConfigError, DataError
from lightning_dpo.files import slug
from lightning_dpo.safety import secrets
from tests.conftest import ROOT

CONF = ROOT / "conf"
CHOICES = sorted(f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml"))
FILL_IN = {
    "loss=odpo": ["loss.offset=1"],
    "optimizer=custom": ["optimizer._target_=torch.optim.SGD"],
    "scheduler=custom": ["scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.step_size=3"],
    "model=hf": ["model.path=org/name"],
    **{f"data={name}": ["data.train=pairs.jsonl"] for name in ("file", "jsonl", "openai")},
}


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    choices = dict(OmegaConf.to_container(cfg.hydra.runtime.choices))
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    OmegaConf.set_struct(cfg, True)
    cfg.output_dir = "outputs/test"
    return cfg, choices


def check(*overrides: str):
    cfg, choices = composed(*overrides)
    check_config(cfg, choices, list(overrides))
    return cfg, choices


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_composes_and_is_accepted(choice, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    free = ["loss=simpo"] if choice == "reference=none" else []
    check(choice, *FILL_IN.get(choice, []), *free)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_says_what_it_is(choice):
    group, name = choice.split("=")
    text = (CONF / group / f"{name}.yaml").read_text()
    assert "#" in text or "defaults:" in text or group == "optimizer"


def test_beta_is_one_key_with_a_default_per_loss():
    for overrides, beta in ((["loss=ipo"], 0.1), (["loss=simpo"], 2.0), (["loss=ipo", "beta=0.3"], 0.3)):
        cfg, _ = check(*overrides)
        assert cfg.beta == cfg.loss.beta == beta


def test_each_term_of_a_sum_may_have_its_own_beta():
    ipo = "+loss.terms.ipo={_target_: lightning_dpo.losses.ipo, _partial_: true, beta: 0.5}"
    check("loss=mix", ipo, "+loss.weights.ipo=2", "~loss.terms.sft", "~loss.weights.sft", "beta=0.2")


@pytest.mark.parametrize("name", ["simper", "sft", "orpo", "slic"])
def test_a_loss_without_beta_refuses_one(name):
    with pytest.raises(Exception, match="beta"):
        composed(f"loss={name}", "beta=0.1")


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "kto_pair", "beta_dpo", "dr_dpo", "bco_pair"])
def test_a_loss_over_the_whole_batch_refuses_accumulation(name):
    check(f"loss={name}")
    with pytest.raises(ConfigError, match=f"accumulate_grad_batches=2 with loss={name}: the statistics"):
        check(f"loss={name}", "trainer.accumulate_grad_batches=2")


def test_bco_without_its_shift_may_accumulate():
    check("loss=bco_pair", "loss.shift=false", "trainer.accumulate_grad_batches=2")


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_tdpo_brings_a_live_reference_and_refuses_a_cached_one(name):
    assert check(f"loss={name}")[1]["reference"] == "copy"
    with pytest.raises(ConfigError, match=f"reference=cached with loss={name}: .*type reference=copy"):
        check(f"loss={name}", "reference=cached")


def test_a_reference_free_loss_brings_no_reference_and_an_explicit_one_wins():
    assert check("loss=simpo")[1]["reference"] == "none"
    assert check("loss=simpo", "reference=cached")[1]["reference"] == "cached"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["beta=-1"], "beta=-1: found -1; allowed: a number in (0, inf)"),
        (["beta=abc"], "beta=abc: found the text 'abc'; allowed: a number in (0, inf)"),
        (["beta=null"], "beta=null: found null"),
        (["loss.label_smoothing=0.5"], "loss.label_smoothing=0.5: found 0.5; allowed: a number in [0, 0.5)"),
        (["loss.beta=0.2"], "loss.beta=0.2 disagrees with beta=0.1; type beta=..."),
        (["loss=ipo", "+loss.label_smoothing=0.1"], "loss.label_smoothing=0.1: unknown; allowed: logps, beta, average"),
        (["loss=simpo", "loss.gamma=-1"], "loss.gamma=-1: found -1; allowed: a number in [0, inf)"),
        (["loss=robust", "loss.label_smoothing=0.5"], "loss.label_smoothing=0.5: found 0.5; allowed: a number"),
        (["loss=exo_pair", "loss.label_smoothing=0"], "loss.label_smoothing=0: found 0; allowed: a number in (0, 0.5)"),
        (["loss=bco_pair", "beta=0"], "beta=0: found 0; allowed: a number in (0, inf)"),
        (["loss=mix", "+loss.terms.dpo.label_smoothing=1"], "loss.terms.dpo.label_smoothing=1: found 1; allowed"),
        (["loss=mix", "loss.terms.dpo.beta=1"], "disagrees with beta=0.1"),
        (["loss=odpo"], "loss=odpo: odpo takes its offset from data.margin_column or from loss.offset; found neither"),
        (["loss=tdpo1", "reference=none"], "reference=none with loss=tdpo1: this loss compares the policy with a ref"),
        (["optimizer.lr=x"], "optimizer.lr=x: found the text 'x'; allowed: a number"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["+optimizer.weight_decai=0"], "optimizer.weight_decai=0: unknown; allowed: params, lr"),
        (["scheduler.name=cosin"], "scheduler.name=cosin: found the text 'cosin'; allowed: constant or lin"),
        (["data.batch_size=0"], "data.batch_size=0: found 0; allowed: a whole number in [1, inf)"),
        (["data.batch_size=1.5"], "data.batch_size=1.5: found 1.5; allowed: a whole number in [1, inf)"),
        (["data.val=1.5"], "data.val=1.5: found 1.5; allowed: a text or"),
        (["data=jsonl"], "data.train has no value; type data.train=..."),
        (["model=hf"], "model.path has no value; type model.path=..."),
        (["model.dtype=fp32"], "model.dtype=fp32: found the text 'fp32'; allowed: float32 or bfloat16"),
        (["trainer.max_steps=x"], "trainer.max_steps=x: found the text 'x'; allowed: a whole number"),
        (["+trainer.max_step=3"], "trainer.max_step=3: unknown; allowed: accelerator"),
        (["trainer.devices=2"], "trainer.devices=2: one device is supported so far"),
        (["+trainer.num_nodes=2"], "trainer.num_nodes=2: one device is supported so far"),
        (["+trainer.fast_dev_run=3"], "trainer.fast_dev_run=3: it logs and saves nothing; type trainer.max_steps=1"),
        (["+trainer.reload_dataloaders_every_n_epochs=1"], "a run could not resume within an epoch"),
        (["+trainer.overfit_batches=2"], "trainer.overfit_batches=2: it replaces the order of the data"),
        (["+trainer.strategy=ddp"], "trainer.strategy=ddp: one device is supported so far"),
        (["trainer.enable_checkpointing=true"], "trainer.enable_checkpointing=True: a run saves checkpoints/ itself"),
        (["trainer.val_check_interval=00:01:00"], "trainer.val_check_interval=00:01:00: by the clock no two runs"),
        (["+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.1}"],
         "callbacks.swa=StochasticWeightAveraging: a checkpoint does not hold its whole state"),
        (["trainer.precision=16-mixed"], "type optimizer.fused=false"),
        (["trainer.max_epochs=-1"], "never ends; set one of them"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null with trainer.max_steps=-1 never ends; set one of them"),
        (["trainer.accumulate_grad_batches=0"], "accumulate_grad_batches=0: allowed: a whole number in [1, inf)"),
        (["trainer.max_steps=-2"], "trainer.max_steps=-2: allowed: a whole number in [-1, inf)"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps=0: allowed: a whole number in [1, inf)"),
        (["checkpoint.every_n_steps=0"], "checkpoint.every_n_steps=0: allowed: a whole number in [1, inf)"),
        (["~optimizer"], "optimizer: a run needs one"),
        (["reference=none"], "reference=none with loss=dpo: this loss compares the policy with a reference"),
        (["data.weight_column=w", "loss=dr_dpo"], "data.weight_column=w with loss=dr_dpo: this loss has one value"),
        (["data.margin_column=m"], "data.margin_column=m with loss=dpo: this loss uses no margins"),
        (["data.streaming=true", "trainer.max_steps=9"], "reference=cached with data.streaming=true"),
        (["data.streaming=true", "reference=copy", "data.report_ches=true"], "type data.streaming=false"),
        (["data.report=1"], "data.report=1: found 1; allowed: true or false"),
        (["data.streaming=true", "reference=copy"], "the length of a stream is unknown; type trainer.max_steps"),
        (["data.turns=first"], "data.turns=first: found the text 'first'; allowed: last or all"),
        (["data.on_bad_row=skip"], "allowed: stop or drop"),
        (["data.num_proc=0"], "data.num_proc=0: found 0; allowed: a whole number in [1, inf)"),
        (["samples.n=-1"], "samples.n=-1: found -1; allowed: a whole number in [0, inf)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(overrides, message):
    with pytest.raises(ConfigError) as error:
        check(*overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("override", ["logger=[]", "~callbacks", "~scheduler"])
def test_what_a_run_can_do_without_may_be_removed(override):
    cfg, _ = check(override)
    assert cfg[override.strip("~=[]")] == {}


def test_without_a_limit_of_epochs_the_steps_are_one():
    check("trainer.max_epochs=null", "trainer.max_steps=9")


def of_torch(scheduler: str, *more: str) -> list[str]:
    return ["scheduler=custom", f"scheduler._target_=torch.optim.lr_scheduler.{scheduler}", *more]


def optimizer(target: str, *more: str) -> list[str]:
    return ["optimizer=custom", f"optimizer._target_={target}", *more]


@pytest.mark.parametrize(
    "overrides",
    [
        of_torch("StepLR", "+scheduler.step_size=10", "scheduler.interval=epoch"),
        of_torch("OneCycleLR", "+scheduler.max_lr=1e-3"),
        of_torch("CosineAnnealingWarmRestarts", "+scheduler.T_0=10"),
        of_torch("MultiStepLR", "+scheduler.milestones=[10,20]"),
        of_torch("ReduceLROnPlateau", "scheduler.monitor=val/loss", "scheduler.interval=epoch"),
        ["scheduler=none"],
        optimizer("torch.optim.SGD", "+optimizer.momentum=0.9"),
        optimizer("torch.optim.RMSprop"),
        optimizer("torch.optim.Adafactor"),
        optimizer("transformers.Adafactor", "+optimizer.relative_step=false"),
        optimizer("transformers.Adafactor", "optimizer.lr=null", "scheduler=none"),
    ],
)
def test_any_schedule_and_any_optimizer_of_torch_is_accepted(overrides):
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler._target_=torch.optim.lr_scheduler.StepLR"],
         "scheduler.name: unknown; allowed: optimizer, step_size, gamma, last_epoch (conf/scheduler/linear.yaml); with "
         "another scheduler type scheduler=custom"),
        (["optimizer._target_=torch.optim.SGD"], "with another optimizer type optimizer=custom optimizer._target_=..."),
        (["scheduler=custom"], "scheduler._target_ has no value; type scheduler._target_=..."),
        (of_torch("StepLR"), "scheduler: missing a required argument: 'step_size'"),
        (of_torch("StepLR", "+scheduler.step_size=2", "scheduler.interval=day"),
         "scheduler.interval=day: found the text 'day'; allowed: step or epoch"),
        (of_torch("StepLR", "+scheduler.step_size=2", "scheduler.frequency=0"), "scheduler.frequency=0: found 0"),
        (of_torch("StepLR", "+scheduler.step_size=2", "scheduler.monitor=val/loss"),
         "scheduler: monitor=val/loss: StepLR watches no metric; leave it out"),
        (of_torch("ReduceLROnPlateau"), "scheduler: ReduceLROnPlateau has no metric to watch; type scheduler.monitor="),
        (of_torch("OneCycleLR", "+scheduler.max_lr=1", "scheduler.interval=epoch"),
         "scheduler: interval=epoch: this schedule has total_steps and counts optimizer steps; leave interval=epoch"),
        (of_torch("CyclicLR", "+scheduler.base_lr=1", "+scheduler.max_lr=2", *optimizer("torch.optim.Adagrad")),
         "scheduler: optimizer must support momentum"),
        (optimizer("transformers.Adafactor", "optimizer.lr=null"),
         "scheduler: Adafactor without lr sets its own learning rate; type scheduler=none"),
        (optimizer("transformers.Adafactor"), "optimizer: Cannot combine manual `lr` and `relative_step=True`"),
        (optimizer("torch.optim.Muon"), "optimizer: Muon only supports 2D parameters"),
        (optimizer("torch.optim.LBFGS"), "optimizer: LBFGS computes the loss several times per step"),
        (optimizer("torch.optim.SparseAdam"), "optimizer: SparseAdam takes sparse gradients"),
    ],
)  # fmt: skip
def test_a_schedule_or_an_optimizer_that_cannot_work_is_one_line(overrides, message):
    with pytest.raises(ConfigError) as error:
        check(*overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_file_of_a_wrong_value_is_named():
    with pytest.raises(ConfigError, match=r"\(conf/optimizer/adamw.yaml\)"):
        check("optimizer.lr=x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("los=ipo", "los=ipo: no such key; did you mean loss?"),
        ("optimizer.lrr=1", "optimizer.lrr=1: no such key; did you mean optimizer.lr"),
        ("data.qqqq=1", "data.qqqq=1: no such key; allowed: data.train, data.val, data.batch_size"),
        ("loss=ip0", "loss=ip0: no such loss; did you mean ipo? allowed: alphapo, aot"),
        ("loss=kto", "loss=kto: no such loss; did you mean kto_pair? allowed: "),
        ("data=parquet", "data=parquet: no such data; did you mean file? allowed: "),
        ("loss=null", "loss=null: a group takes a name; allowed: alphapo, aot"),
        ("seed=[1", "seed=[1: Hydra cannot read it; put double quotes around each text in it"),
        ("data.train=a (1).jsonl", "data.train=a (1).jsonl: Hydra cannot read it; type 'data.train=\"a (1).jsonl\"'"),
        ("data.train=[~/a b#]", "data.train=[~/a b#]: Hydra cannot read it; type 'data.train=[\"~/a b#\"]'"),
        ("callbacks=[1]", "Error merging override callbacks=[1] (Cannot merge DictConfig with ListConfig)"),
        ("~logger", "~logger: it is a list of choices; type logger=[] or logger=csv"),
    ],
)
def test_hydras_own_errors_become_one_line(override, message):
    with pytest.raises(Exception) as error:
        composed(override)
    line = explain(error.value, [override])
    assert message in line and "\n" not in line
    with pytest.raises(ConfigError), explained([override]):
        raise error.value


def test_a_launcher_that_is_not_installed_is_answered_with_its_install(monkeypatch):
    composed("launcher=joblib")  # Hydra has looked for its plugins
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml")
    with pytest.raises(Exception) as error:
        composed("launcher=joblib")
    line = explain(error.value, ["experiment=controlled_sentiment", "launcher=joblib"])
    assert line == "launcher=joblib needs a plugin: pip install 'lightning-dpo[sweep]', or type launcher=local"


def test_a_logger_that_is_not_installed_is_answered_with_its_install(monkeypatch):
    monkeypatch.setattr(combinations, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-dpo\[tensorboard\]'"):
        check("logger=tensorboard")


def test_a_key_that_another_choice_has_is_answered_with_the_choice():
    with pytest.raises(Exception) as error:
        composed("loss=orpo", "beta=0.1", "seed=1")
    line = explain(error.value, ["loss=orpo", "beta=0.1", "seed=1"])
    assert line == "beta=0.1: no such key with loss=orpo"


@pytest.mark.parametrize("override", ["logger.wandb.api_key=x", "+hf_token=x", "+a.password=x", "+model.secret=x"])
def test_secrets_on_the_command_line_are_refused_without_repeating_them(override):
    with pytest.raises(ConfigError, match="environment") as error:
        secrets.refuse_secrets(["loss=ipo", override.replace("=x", "=hunter2")])
    assert "hunter2" not in str(error.value)


def test_a_key_about_tokens_of_text_is_no_secret():
    secrets.refuse_secrets(["samples.max_new_tokens=3", "data.max_length=5"])


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "x\ny", "", "..", "ü" * 300])
def test_a_name_is_one_safe_path_component(name):
    safe = slug(name)
    assert safe and "/" not in safe and "\n" not in safe and safe not in (".", "..") and len(safe) <= 120


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        ("lr=1e-6", "did you mean optimizer.lr?"),
        ("optimizer.learning_rate=1e-6", "type optimizer.lr=1e-6"),
        ("learning_rate=1e-6", "type optimizer.lr=1e-6"),
        ("batch_size=4", "did you mean data.batch_size?"),
        ("per_device_train_batch_size=4", "type data.batch_size=4"),
        ("max_steps=5", "did you mean trainer.max_steps?"),
        ("num_train_epochs=1", "type trainer.max_epochs=1"),
        ("model_name_or_path=org/name", "type model=hf model.path=org/name"),
        ("base_model=org/name", "type model=hf model.path=org/name"),
        ("dataset_name=a.jsonl", "type data=file data.train=a.jsonl"),
        ("gradient_accumulation_steps=2", "type trainer.accumulate_grad_batches=2"),
        ("max_grad_norm=1", "type trainer.gradient_clip_val=1"),
        ("gradient_checkpointing=true", "type model.activation_checkpointing=true"),
        ("loss_type=sigmoid", "type loss=dpo"),
        ("bf16=true", "type trainer.precision=bf16-mixed"),
        ("+lr=1e-6", "did you mean optimizer.lr?"),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_the_key_here(typed, here):
    with pytest.raises(ConfigError, match=rf"^{re.escape(typed)}: no such key; {re.escape(here)}"), explained([typed]):
        composed(typed)


def test_the_keys_that_are_named_exist():
    known = [
        *known_keys(),
        "loss",
        "data",
        "reference",
        "logger",
        "scheduler",
        "optimizer",
        "loss.nll_weight",
        "loss.gamma",
    ]
    for text in (*ELSEWHERE.values(), *ELSEWHERE_TYPED.values()):
        for key in (override.partition("=")[0] for override in text.split()):
            assert key in known
    for group, names in GROUPS.items():
        assert set(names.values()) <= set(choices(group)) and not set(names) & set(choices(group))


@pytest.mark.parametrize("group", ["logger", "reference", "scheduler"])
def test_null_is_the_name_none_of_a_group(group):
    assert composed(f"{group}=null")[0][group] == composed(f"{group}=none")[0][group]


def test_a_gpu_that_is_not_there_is_refused_before_data_are_read(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="trainer.accelerator=gpu: torch finds no GPU; type trainer=cpu"):
        check("trainer=gpu")


def test_an_error_of_ours_passes_hydra_as_it_is():
    data = "lightning_dpo.data.PreferenceDataModule"
    node = {"_target_": data, "tokenizer": str(ASSETS / "model"), "train": None, "join": "x", "wrap": "chat"}
    with pytest.raises(DataError, match="^data.join='x' with data.wrap=chat: messages have nothing between them$"):
        instantiate(node)
