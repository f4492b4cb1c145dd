"""A configuration from a stranger runs nothing of the stranger's; secrets and names stay where they belong."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_dpo.config.check import check as check_config
from lightning_dpo.config.combinations import check_inside
from lightning_dpo.errors import ConfigError
from lightning_dpo.safety import secrets as secrets_
from lightning_dpo.safety import targets
from lightning_dpo.sweep import job
from tests.config.test_check import check, composed
from tests.conftest import ROOT

SMUGGLED = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
import os
import subprocess
from os import system
def loss(logps, *, beta): ...
class Optimizer: ...
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module at hand, `smuggled`, that leaves a file when it is imported; nothing is allowed beyond the defaults."""
    monkeypatch.delenv(targets.ALLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "smuggled.py").write_text(SMUGGLED)
    yield tmp_path
    assert sys.modules.pop("smuggled", None) is None and not (tmp_path / "ran").exists(), "it was imported"


PLACES = ["optimizer", "scheduler", "loss", "data", "model", "trainer", "reference", "samples", "logger.wandb"]
DANGEROUS = [
    "os.system", "posix.system", "subprocess.run", "builtins.eval", "builtins.exec", "pathlib.Path.write_text",
    "torch.hub.load", "torch.hub.Path", "torch.os.system", "torch.load", "torch.optim.os.system",
    "importlib.import_module",
    "lightning_dpo.train.os.system", "lightning_dpo.losses.sums.torch.hub.load", "lightning_dpo.files.write_json",
    "lightning_dpo.losses.plain.from_plain", "lightning_dpo.sweep.main", "lightning.pytorch.trainer.trainer.os.system",
    "hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method", "smuggled.loss", "smuggled.Optimizer",
    "smuggled.system", "lightning.fabric.utilities.cloud_io._load", "lightning_dpo.DPOModule.load_from_checkpoint",
    "torch.optim.AdamW.__init__.__globals__", "", "system", "torch..hub", "../../smuggled", "yaml.unsafe_load",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_place_takes_one_kind_and_nothing_else(stranger, place):
    group, _, name = place.partition(".")
    for target in DANGEROUS:
        node = {"_target_": target}
        with pytest.raises(ConfigError) as error:
            targets.check({group: {name: node} if name else node})
        assert str(error.value).startswith(f"{place}._target_={target}: ")


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("optimizer", "lightning.Callback"),  # of the stack, and another kind
        ("optimizer", "torch.nn.Linear"),
        ("optimizer", "lightning_dpo.losses.dpo"),
        ("loss", "torch.optim.AdamW"),
        ("loss", "torch.nn.Linear"),
        ("loss", "lightning_dpo.losses.needs_of"),
        ("logger.wandb", "lightning.Trainer"),
        ("reference", "lightning_dpo.losses.Mix"),
    ],
)
def test_another_kind_is_refused_though_its_package_is_known(stranger, place, target):
    with pytest.raises(ConfigError, match="is allowed here; "):
        targets.allowed(target, place)


@pytest.mark.parametrize(
    "override",
    [
        "+optimizer.lr={_target_: os.system, command: touch ran}",
        "+samples.extra={_target_: os.system, command: touch ran}",
        "+data.train=[{path: {_target_: os.system, command: touch ran}}]",
        "+loss.terms.other={_target_: smuggled.loss, _partial_: true}",
        "+optimizer._args_=[{_target_: os.system, command: touch ran}]",
        "+seed={_target_: os.system, command: touch ran}",
        "+anything.deep=[[{a: {_target_: os.system, command: touch ran}}]]",
        "+trainer.strategy={_target_: os.system, command: touch ran}",
        "+callbacks.mine={_target_: smuggled.Optimizer}",
        "+callbacks.mine={_target_: lightning.pytorch.callbacks.LambdaCallback, on_fit_start: {_target_: os.getcwd}}",
        "+trainer.callbacks=[{_target_: smuggled.Optimizer}]",
        "samples.scorer=os.system",
        "samples.scorer=smuggled.loss",
        "samples.scorer=lightning_dpo.train.main",
        "samples.scorer=lightning_dpo.files.write_json",
    ],
)
def test_a_target_anywhere_is_refused_before_it_is_called(stranger, monkeypatch, override):
    monkeypatch.chdir(stranger)
    with pytest.raises(ConfigError):
        check(
            override.replace("+seed", "++seed")
            .replace("+data.train", "++data.train")
            .replace("+optimizer.lr", "++optimizer.lr")
        )
    assert not (stranger / "ran").exists()


def test_a_target_that_an_interpolation_makes_is_refused(stranger):
    cfg, choices = composed("+optimizer.foreach=null")
    cfg.optimizer.foreach = "${oc.create:'{_target_: os.system, command: touch ran}'}"
    with pytest.raises(ConfigError, match=r"optimizer\.foreach\._target_=os\.system"):
        check_config(cfg, choices, [])


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"_target_": "CSVLogger", "save_dir": "out", "name": "../../x", "version": ""}, "logger.a.name=../../x"),
        ({"_target_": "CSVLogger", "save_dir": "/elsewhere"}, "logger.a.save_dir=/elsewhere"),
        ({"_target_": "WandbLogger", "save_dir": "~"}, "logger.a.save_dir=~"),
        ({"_target_": "WandbLogger", "name": "../any name"}, None),
    ],
)
def test_loggers_write_inside_the_runs_folder(arguments, key):
    cfg = {
        "output_dir": "out",
        "logger": {"a": arguments},
        "trainer": {"_target_": "Trainer", "default_root_dir": "out"},
    }
    cfg["trainer"]["default_root_dir"] = os.path.abspath("out")
    arguments |= {"save_dir": os.path.abspath("out")} if arguments.get("save_dir") == "out" else {}
    if key is None:
        check_inside(cfg)
        return
    with pytest.raises(ConfigError, match=f"{key}: outside the run's folder"):
        check_inside(cfg)


@pytest.mark.parametrize("key", ["base_url", "https_proxy", "x_executable", "x_files_dir", "x_extra_http_headers"])
def test_wandb_is_told_no_address_program_or_folder_by_a_file(key):
    with pytest.raises(ConfigError, match=f"logger.wandb.settings.{key}: set this in the shell"):
        targets.check({"logger": {"wandb": {"settings": {key: "http://127.0.0.1"}}}})


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize(
    "typed",
    ["+note=${oc.env:ODD_PASSWORD}", "run_name=${oc.env:ODD_PASSWORD}", "+note=${slug:${oc.env:ODD_PASSWORD}}",
     "+note=${oc.decode:${oc.env:PGPASSWORD}}", "+note=${oc.env:${name}}", "+logger.x.private_key=abcdefgh"],
)  # fmt: skip
def test_a_secret_reaches_no_folder_that_hydra_makes(typed, sweep, monkeypatch, command, tmp_path):
    monkeypatch.setenv("ODD_PASSWORD", "p@ss/word!77")
    monkeypatch.setenv("PGPASSWORD", "1234567890")
    options = ["-m", "seed=0", "sweep_name=s"] if sweep else []
    code, output = command(*options, "+name=ODD_PASSWORD", typed)
    assert code == 2 and "word!77" not in output and "1234567890" not in output
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was written"


def test_what_was_checked_is_what_is_built(stranger, monkeypatch):
    """`seed_everything` sets an environment variable between the check and the build: a file could look at it."""
    cfg, choices = composed("+callbacks={}", "++optimizer.foreach=${oc.env:TEST_TURN,null}")
    monkeypatch.delenv("TEST_TURN", raising=False)
    check_config(cfg, choices, [])
    monkeypatch.setenv("TEST_TURN", "true")
    assert cfg.optimizer.foreach is None
    cfg, choices = composed("++run_name=\\\\${oc.env:HOME}")
    with pytest.raises(ConfigError, match=r"'\$\{' is left after all values are resolved"):
        check_config(cfg, choices, [])


def test_a_search_path_imports_no_package(stranger, command):
    (stranger / "theirs").mkdir()
    text = f"defaults: [train, _self_]\nhydra:\n  searchpath: ['pkg://smuggled', 'file://{ROOT}/conf']\n"
    (stranger / "theirs" / "nice.yaml").write_text(text)
    code, output = command("--config-dir", str(stranger / "theirs"), "--config-name", "nice", "seed=0")
    assert code == 2 and "hydra.searchpath: pkg://smuggled: it would be imported; type file://FOLDER" in output


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("callbacks: {x: {_target_: smuggled.loss}}", "hydra.callbacks.x"),
        ("callbacks: {x: {_target_: os.system, command: touch ran}}", "hydra.callbacks.x"),
        ("launcher: {_target_: smuggled.loss}", "hydra.launcher"),
        ("sweeper: {_target_: os.system}", "hydra.sweeper"),
        ("job_logging: {handlers: {x: {class: os.system, command: touch ran}}}", "hydra.job_logging.handlers.x.class"),
        ("job_logging: {handlers: {x: {(): smuggled.loss}}}", "hydra.job_logging.handlers.x.()"),
        ("hydra_logging: {handlers: {x: {(): os.system, command: touch ran}}}", "hydra.hydra_logging.handlers.x.()"),
        ("job_logging: {formatters: {simple: {class: smuggled.loss}}}", "hydra.job_logging.formatters.simple.class"),
        ("job_logging: {handlers: {console: {stream: 'ext://smuggled.os'}}}", "hydra.job_logging.handlers.console"),
        ("job_logging: {handlers: {file: {filename: '../../.bashrc'}}}", "hydra.job_logging.handlers.file.filename"),
        ("callbacks: {x: '${theirs}'}", "hydra.callbacks.x=${theirs}"),
        ("callbacks: '${theirs}'", "hydra.callbacks"),
        ("launcher: {_target_: '${theirs}'}", "hydra.launcher._target_=${theirs}"),
        ("job_logging: {formatters: {x: '${theirs}'}}", "hydra.job_logging.formatters.x=${theirs}"),
        ("hydra_logging: {handlers: {x: '${theirs}'}}", "hydra.hydra_logging.handlers.x=${theirs}"),
        ("job_logging: {handlers: {console: {stream: '${theirs}'}}}", "hydra.job_logging.handlers.console.stream"),
        ("job: {name: '../../x'}", "hydra.job.name"),
        ("job: {env_set: '${theirs}'}", "hydra.job.env_set=${theirs}"),
        ("sweeper: {params: {'model.trust_remote_code=bool(value': 'true)'}}", "hydra.sweeper.params"),
        ("sweeper: {params: {seed: '${theirs}'}}", "hydra.sweeper.params.seed=${theirs}"),
        ("job: {env_copy: [HF_TOKEN]}", "hydra.job.env_copy: "),
        ("output_subdir: ../x", "hydra.output_subdir=../x"),
        ("run: {dir: ../x}", "hydra.run.dir=../x: type output_dir="),
        ("sweep: {subdir: '../x'}", "hydra.sweep.subdir=../x: a sweep is one level of folders"),
        ("sweep: {subdir: '${slug:a}/../${slug:b}'}", "a sweep is one level of folders"),
        (
            "job_logging: {handlers: {file: {filename: stray.log}}}",
            "hydra.job_logging.handlers.file.filename=stray.log",
        ),
        ("job_logging: {handlers: {file: {'.': {baseFilename: /x}}}}", "hydra.job_logging.handlers.file.."),
        ("job: {env_set: {LIGHTNING_DPO_ALLOW: smuggled}}", "hydra.job.env_set.LIGHTNING_DPO_ALLOW"),
        ("sweeper: {params: {model.trust_remote_code: true}}", "hydra.sweeper.params.model.trust_remote_code"),
        ("sweeper: {params: {++model.trust_remote_code: true}}", "hydra.sweeper.params.++model.trust_remote_code"),
        ("overrides: {task: [model.trust_remote_code=true]}", "hydra.overrides: model.trust_remote_code=true"),
    ],
)
@pytest.mark.parametrize("sweep", [False, True])
def test_what_hydra_itself_would_run_is_refused_before_it_does(stranger, command, text, key, sweep):
    (stranger / "theirs" / "experiment").mkdir(parents=True)
    (stranger / "theirs" / "experiment" / "nice.yaml").write_text(f"# @package _global_\nhydra: {{{text}}}\n")
    options = ["-m", "seed=0,1"] if sweep else ["seed=0"]
    code, output = command("--config-dir", str(stranger / "theirs"), *options, "experiment=nice")
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 2 and key in line and "Traceback" not in output
    assert {p.name for p in stranger.iterdir()} <= {"smuggled.py", "theirs", "__pycache__"}, "nothing was written"


def test_a_text_of_a_launcher_adds_no_line_to_its_script():
    with pytest.raises(ConfigError, match="hydra.launcher.comment"):
        targets.check({"hydra": {"launcher": {"comment": "a\ntouch ran\n#"}}})


def test_remote_code_of_a_model_is_asked_for_on_the_command_line_alone():
    check("model.trust_remote_code=true")
    cfg, choices = composed()
    cfg.model.trust_remote_code = True
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code=true in a file"):
        check_config(cfg, choices, [])


OWN = """
import torch
from lightning_dpo.losses import dpo
from os import system
def loss(logps, *, beta): return dpo(logps, beta=beta)
def count(texts): return [len(t) for t in texts]
class Slow(torch.optim.AdamW): ...
class Log: ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.setenv(targets.ALLOW, "another, own_parts")
    yield
    sys.modules.pop("own_parts", None)


def test_a_package_that_the_environment_names_may_bring_its_own_parts(own):
    check("++loss._target_=own_parts.loss", "~loss.label_smoothing")
    check("samples.scorer=own_parts.count")
    check("++optimizer._target_=own_parts.Slow")


@pytest.mark.parametrize(
    "target", ["own_parts.system", "own_parts.Log", "own_parts.torch.hub.load", "own_parts.nothing"]
)
def test_yet_not_what_it_has_from_elsewhere_nor_another_kind(own, target):
    with pytest.raises(ConfigError, match=r"^logger\.x"):
        targets.allowed(target, "logger.x")


def test_a_refusal_says_what_to_set(stranger):
    with pytest.raises(
        ConfigError, match=r"loss of lightning_dpo\.losses is allowed here; .* LIGHTNING_DPO_ALLOW=smuggled"
    ):
        targets.allowed("smuggled.loss", "loss")


def test_what_people_use_is_allowed(stranger):
    for path, target in {
        "optimizer": "torch.optim.SGD",
        "scheduler": "torch.optim.lr_scheduler.OneCycleLR",
        "logger.a": "lightning.pytorch.loggers.MLFlowLogger",
        "callbacks.a": "lightning.pytorch.callbacks.EarlyStopping",
        "trainer.strategy": "lightning.pytorch.strategies.DDPStrategy",
        "trainer.profiler": "lightning.pytorch.profilers.SimpleProfiler",
        "loss": "lightning_dpo.losses.BetaDPO",
        "samples.scorer": "lightning_dpo.demo.grammar.score",
        "hydra.launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    }.items():
        assert callable(targets.allowed(target, path))
    assert targets.allowed("torch.optim.AdamW", "optimizer") is torch.optim.AdamW


def test_callbacks_of_lightning_are_added_to_the_runs_own(command, short, tmp_path):
    early = "lightning.pytorch.callbacks.EarlyStopping"
    stop = f"+callbacks.stop={{_target_: {early}, monitor: val/loss, mode: max, patience: 1}}"
    code, output = command(*short, stop, "logger=csv", "samples.n=0", "trainer.max_epochs=50")
    assert code == 0, output
    assert len(Path(tmp_path / "run" / "metrics.csv").read_text().splitlines()) < 20
    assert os.path.exists(tmp_path / "run" / "summary.json")


# Secrets

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGh",
    "OPENAI_API_KEY": 'sk-"quoted"\\key',
    "MY_DB_PASSWORD": "p@ss w0rd/ü",
    "AWS_SECRET": "multi-line-1\nmulti-line-2",
}


@pytest.fixture
def secrets(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def leaks(folder: Path, *texts: str) -> list[str]:
    """Where a secret, or a line of it, stands: in a name, in a file's bytes, in a text."""
    forms = {
        line.encode() for value in SECRETS.values() for v in (value, secrets_.escaped(value)) for line in v.split("\n")
    }
    found = [f"{path}: {form}" for path in folder.rglob("*") for form in forms if form in str(path).encode()]
    files = [(str(p), p.read_bytes()) for p in folder.rglob("*") if p.is_file()]
    return found + [
        f"{n}: {f}" for n, data in [*files, *(("text", t.encode()) for t in texts)] for f in forms if f in data
    ]


def tell_all(texts):
    """A scorer that prints, logs and raises what it finds in its environment."""
    values = " ".join(SECRETS.values())
    print(values)
    print(repr(SECRETS), file=sys.stderr)
    logging.getLogger("stranger").warning("found %s", values)
    if os.environ.get("FAIL_NOW"):
        raise RuntimeError(f"cannot log in at https://user:hunter2hunter2@example.org with {values}")
    return [0.0] * len(texts)


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("sweep", [False, True])
def test_no_secret_reaches_a_file_a_log_wandb_or_the_terminal(
    command, short, tmp_path, secrets, monkeypatch, failing, sweep
):
    if failing:
        monkeypatch.setenv("FAIL_NOW", "1")
    options = [o for o in short if not (sweep and o.startswith("output_dir"))]
    grid = ["-m", "seed=0,1", "sweep_name=s"] if sweep else []
    code, output = command(*grid, *options, "trainer.max_steps=1", "samples.scorer=tests.safety.test_targets.tell_all")
    assert (code != 0) == failing, output
    assert leaks(tmp_path, output) == []
    if failing:
        assert "hunter2" not in output
        assert "[HF_TOKEN]" in output or sweep
    folder = tmp_path / "outputs" / "sweeps" / "s" / "seed0" if sweep else tmp_path / "run"
    assert "[HF_TOKEN]" in (folder / "train.log").read_text(), "it was logged, and cleaned"


@pytest.mark.parametrize(
    ("override", "output"),
    [
        ("run_name=${oc.env:HF_TOKEN}", "run_name"),
        ("+logger.wandb.notes=key-${oc.env:WANDB_API_KEY}", "logger.wandb.notes"),
        ("+logger.wandb.settings.api_key=${oc.env:WANDB_API_KEY}", "logger.wandb.settings.api_key"),
        ("+logger.wandb.settings.api_key=something", "logger.wandb.settings.api_key"),
    ],
)
def test_a_configuration_that_holds_a_secret_is_refused_without_repeating_it(secrets, override, output):
    with pytest.raises(ConfigError) as error:
        check(override)
    assert str(error.value).startswith(output)
    assert "something" not in str(error.value) and not any(v in str(error.value) for v in SECRETS.values())


def test_a_secret_typed_into_any_key_is_refused(command, tmp_path, secrets):
    code, output = command(f"run_name={SECRETS['HF_TOKEN']}")
    assert code == 2 and "holds the value of HF_TOKEN" in output and leaks(tmp_path, output) == []


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("+logger.wandb.settings.https_proxy='http://bob:hunter2pw@proxy:3128'", "password"),
        ("data.train='https://example.org/pairs.jsonl?X-Signature=hunter2pw'", "query"),
    ],
)
def test_a_secret_in_a_url_is_refused_without_repeating_it(override, part, typed):
    with pytest.raises(ConfigError) as error:
        secrets_.refuse_secrets([override]) if typed else check(override)
    assert f"holds the value of a URL's {part}" in str(error.value) and "hunter2pw" not in str(error.value)


def test_ordinary_variables_are_no_secrets(monkeypatch):
    for name, value in {"TOKENIZERS_PARALLELISM": "false", "KEYBOARD": "german", "API_KEY": "abc"}.items():
        monkeypatch.setenv(name, value)
    assert secrets_.redact("a false german abc") == "a false german abc"


def test_a_stream_stays_clean_when_its_write_is_replaced_and_put_back(secrets, capfd):
    stream, seen = secrets_.Stream(sys.stdout), []
    old = stream.write
    stream.write = lambda text: (seen.append(text), old(text))
    stream.write(f"a {SECRETS['HF_TOKEN']} b")
    stream.write = old
    stream.write("!")
    assert seen == ["a [HF_TOKEN] b"] and capfd.readouterr().out == "a [HF_TOKEN] b!"


def test_what_a_jobs_child_processes_print_is_cleaned(secrets, tmp_path):
    with job.printed_to(tmp_path / "output.log"):
        subprocess.run(["printenv", "HF_TOKEN"], check=True)
        os.write(1, b"\xff\n")
    assert (tmp_path / "output.log").read_bytes() == b"[HF_TOKEN]\n\xff\n"


def test_a_worker_that_was_started_afresh_prints_no_secret(secrets, capfd, tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=worker_prints)
    worker.start()
    worker.join()
    out, err = capfd.readouterr()
    assert worker.exitcode == 0 and out.endswith("[HF_TOKEN]\n") and err.endswith("[WANDB_API_KEY]\n")
    assert leaks(tmp_path, out, err) == []


def worker_prints():
    import lightning_dpo.train  # noqa: F401  the first thing that a launcher's worker does

    print(SECRETS["HF_TOKEN"])
    print(SECRETS["WANDB_API_KEY"], file=sys.stderr)


# Names are data

NAMES = [
    "../../../escaped",
    "/etc/escaped",
    "a\nb",
    "é" * 300,
    "漢" * 300,
    "🙂 👩‍👩‍👧",
    "a\0b",
    "..",
    "~/x",
    "con:aux|?*",
    "-rf",
    "%2e%2e",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_makes_no_path_outside_the_output_folder(command, tmp_path, few_reviews, name):
    before = set(Path("/").glob("escaped*")) | set(tmp_path.parent.glob("*"))
    quoted = "run_name=" + json.dumps(name, ensure_ascii=False).replace("\\u0000", "\0").replace("\\n", "\n")
    report = ["data.report=true", f"data.train={few_reviews}", "data.val=null", "logger=csv"]
    code, output = command(quoted, *report)
    assert code in (0, 2), output
    made = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert made <= {"outputs", "few.jsonl"} and set(tmp_path.parent.glob("*")) <= before
    for folder in (tmp_path / "outputs").glob("*/*"):
        assert (
            len(os.fsencode(folder.name)) <= 255 and "\n" not in folder.name and folder.parent.parent.name == "outputs"
        )
