"""What to type in place of a wrong key or name."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_dpo.config.resolvers import config_folder
from lightning_dpo.signatures import nodes

ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "peak_lr"), "optimizer.lr"),
    **dict.fromkeys(("per_device_train_batch_size", "micro_batch_size", "train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum"), "trainer.accumulate_grad_batches"),
    **dict.fromkeys(("max_grad_norm", "grad_clip"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("gradient_checkpointing", "use_gradient_checkpointing"), "model.activation_checkpointing"),
    **dict.fromkeys(("eval_dataset", "validation_file", "val_size", "eval_file"), "data.val"),
    **dict.fromkeys(("sequence_len", "cutoff_len", "max_seq_length", "max_seq_len"), "data.max_length"),
    **dict.fromkeys(("warmup_ratio", "warmup"), "scheduler.warmup_steps"),
    **dict.fromkeys(("save_steps", "save_every"), "checkpoint.every_n_steps"),
    **dict.fromkeys(("eval_steps", "eval_every"), "trainer.val_check_interval"),
    **dict.fromkeys(("logging_steps",), "trainer.log_every_n_steps"),
    **dict.fromkeys(("resume_from_checkpoint",), "resume"),
    **dict.fromkeys(("report_to",), "logger"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "scheduler"),
    **dict.fromkeys(("optim",), "optimizer"),
    **dict.fromkeys(("torch_dtype",), "model.dtype"),
    **dict.fromkeys(("dpo_beta", "pref_beta"), "beta"),
}
"""Names that TRL, axolotl, LLaMA-Factory or transformers have for our keys, which take the same value."""

ELSEWHERE_TYPED = {
    **dict.fromkeys(("model_name_or_path", "base_model", "model_name", "model_id"), "model=hf model.path={value}"),
    **dict.fromkeys(("dataset_name", "dataset", "train_file", "dataset_path"), "data=file data.train={value}"),
    **dict.fromkeys(("loss_type", "pref_loss", "rl"), "loss={loss}"),
    **dict.fromkeys(("bf16",), "trainer.precision=bf16-mixed"),
    **dict.fromkeys(("fp16",), "trainer.precision=16-mixed"),
    **dict.fromkeys(("ref_model", "reference_model"), "reference.path={value}"),
    **dict.fromkeys(("precompute_ref_log_probs",), "reference=cached"),
    **dict.fromkeys(("reference_free",), "reference=none"),
    **dict.fromkeys(("rpo_alpha",), "loss=rpo loss.nll_weight={value}"),
    **dict.fromkeys(("simpo_gamma",), "loss=simpo loss.gamma={value}"),
}
"""The same for what is typed otherwise here."""

LOSSES = {
    "sigmoid": "dpo",
    "kto": "kto_pair",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "exo": "exo_pair",
    "nca": "nca_pair",
}
DATA = dict.fromkeys(("parquet", "json", "csv", "hf", "hub", "local", "custom", "alpaca", "sharegpt", "arrow"), "file")
GROUPS = {"loss": LOSSES, "data": DATA}
"""Names that others have for ours, by group."""


def key_hint(key: str, value: str, known: Sequence[str]) -> str:
    """What to type for a key that does not exist.

    Args:
        value: what was typed for it. known: all keys.
    """
    last = key.rpartition(".")[2]
    if last in ELSEWHERE_TYPED:
        return f"type {ELSEWHERE_TYPED[last].format(value=value, loss=LOSSES.get(value, value))}"
    if last in ELSEWHERE:
        return f"type {ELSEWHERE[last]}={value}"
    near = [k for k in known if k.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, [k for k in known if k.count(".") == key.count(".")], cutoff=0.7)
    if not near:
        leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(last, leaves, cutoff=0.75)]
    beside = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"allowed: {', '.join(beside)}" if beside else "see --help"


def name_hint(group: str, name: str) -> str:
    """What to type for a name that a group does not have: the nearest ones first."""
    names = choices(group)
    near = [GROUPS[group][name]] if name in GROUPS.get(group, {}) else []
    near += [n for n in names if n.startswith(name) or name.startswith(n)]
    near += difflib.get_close_matches(name, names, n=3)
    meant = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    return f"{meant}allowed: {', '.join(names)}"


def choices(group: str) -> list[str]:
    """The names of a group of conf/."""
    return sorted(path.stem for path in Path(config_folder(), group).glob("*.yaml")) if group else []


def known_keys() -> list[str]:
    """All keys of the default run, the top level first."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_folder(), version_base="1.3"):
        cfg = compose("train")
    return keys_of(OmegaConf.to_container(cfg, resolve=False))


def keys_of(plain: Any) -> list[str]:
    """The keys of a configuration, apart from Hydra's own."""
    return [key for key, _ in nodes(plain, lists=False) if not key.rpartition(".")[2].startswith("_")]
