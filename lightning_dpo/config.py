"""Configuration: where conf/ is, and checks before anything loads.

The Python signatures are the schema: every node with a `_target_` is bound to the signature of what it builds, types
and ranges included. Combinations that would ignore an option are refused.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_dpo import (
    allow,
    redact,
    resolvers,  # noqa: F401  conf/ uses them
)
from lightning_dpo.combinations import check_combinations, check_inside
from lightning_dpo.errors import ConfigError
from lightning_dpo.signatures import ArgumentError, check_arguments

SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
NO_NAME = "Config group override must be a string or a list"


def config_folder() -> str:
    """conf/ of a clone, or inside an installed package; absolute, so that it is found from any working directory."""
    package = Path(__file__).parent
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def refuse_secrets(overrides: list[str]) -> None:
    """Secrets on the command line end in shell histories and run folders: refuse them before Hydra copies them."""
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if "=" in override and redact.KEY.search(key):
            raise ConfigError(f"{key}=...: secrets come from the environment (WANDB_API_KEY, HF_TOKEN), not from a key")
        if name := redact.holder(override):
            raise ConfigError(f"{redact.redact(key)}=... holds the value of {name}, which would stand in every file")


def refuse_secret_values(plain: dict[str, Any], choices: Mapping[str, str | None]) -> None:
    """A configuration is written to config.yaml, to W&B and into names. Errors: ConfigError, which repeats none."""
    for path, node in allow.nodes(plain):
        told = f"{redact.redact(path)}{_in_file(path, choices)}"
        if node is not None and node != "" and redact.KEY.search(path):
            raise ConfigError(f"{told}: secrets come from the environment (WANDB_API_KEY, HF_TOKEN), not from a key")
        if name := redact.holder(path) or (not isinstance(node, dict | list) and redact.holder(str(node))):
            raise ConfigError(f"{told} holds the value of {name}, which would stand in every file; leave it out")


def check(cfg: DictConfig, choices: dict[str, str | None], overrides: list[str]) -> None:
    """Raise ConfigError for the first node that what it names would not accept, or for keys that contradict each other.

    Args:
        choices: the chosen file of each group, for messages.
        overrides: what was typed, for messages.
    """
    typed = {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} has no value; type {missing[0]}=...")
    OmegaConf.resolve(cfg)  # for good: what is built later is what is checked here
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    if left := [path for path, node in allow.nodes(plain) if isinstance(node, str) and "${" in node]:
        raise ConfigError(f"{left[0]}: '${{' is left when all values are resolved; take it out, or give it in a file")
    allow.check(plain)
    refuse_secret_values(plain, choices)
    betas = [node["beta"] for _, node in _targets(plain["loss"], "loss") if "beta" in node]  # a sum has several
    if "beta" in plain and plain["beta"] not in betas:
        found = " and ".join(map(str, betas)) or None
        raise ConfigError(f"loss.beta={found} disagrees with beta={plain['beta']}; type beta=...")
    for path, node in _targets(plain):
        target = allow.allowed(node["_target_"], path, f"{path}._target_")
        try:
            check_arguments(target, {k: v for k, v in node.items() if k not in SPECIAL}, given_later=True)
        except ArgumentError as error:
            key = f"{path}.{error.name}"
            shown = f"{key}={typed[key]}" if key in typed else key
            shown = f"beta={typed['beta']}" if key == "loss.beta" and "beta" in typed else shown
            raise ConfigError(f"{shown}: {error.message}{_in_file(path, choices)}") from None
    if plain["model"].get("trust_remote_code") and "model.trust_remote_code" not in typed:
        raise ConfigError(
            "model.trust_remote_code=true in a file would run Python code that comes with the model; type it instead"
        )
    check_combinations(plain)
    check_inside(plain)
    _check_built(cfg, choices)


def _check_loss(cfg: DictConfig, loss: Any, choices: dict[str, str | None]) -> None:
    """What the loss declares that it needs, and what the other keys give it."""
    from lightning_dpo.losses import ReferenceRequired, needs_of
    from lightning_dpo.needs import check_batches, check_reference

    needs, reference = needs_of(loss), f"reference={choices.get('reference')} with loss={choices.get('loss')}"
    margins = cfg.data.get("margin_column")
    if margins and "target_margin" not in needs:
        raise ConfigError(f"data.margin_column={margins} with loss={choices.get('loss')}: this loss uses no margins")
    if (weights := cfg.data.get("weight_column")) and "equal_weights" in needs:
        told = f"data.weight_column={weights} with loss={choices.get('loss')}"
        raise ConfigError(f"{told}: this loss has one value for the whole batch, so pairs cannot be weighted")
    try:
        check_reference(needs, allow.allowed(cfg.reference._target_, "reference") if cfg.reference else None)
    except ValueError as error:
        raise ConfigError(f"{reference}: {error}") from None
    accumulate = cfg.trainer.accumulate_grad_batches
    try:
        check_batches(needs, accumulate, ranks=1)
    except ValueError as error:
        key = f"trainer.accumulate_grad_batches={accumulate} with loss={choices.get('loss')}"
        raise ConfigError(f"{key}: {error}") from None
    try:
        loss(_one_pair(reference=bool(cfg.reference), margin=bool(margins)))
    except ReferenceRequired as error:
        raise ConfigError(f"{reference}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"loss={choices.get('loss')}: {error}") from None


def _one_pair(reference: bool, margin: bool) -> Any:
    """A pair of one token a side with everything that a run would give the loss."""
    import torch

    from lightning_dpo.batch import Ragged, TokenLogps
    from lightning_dpo.losses import PairLogps

    one = torch.ones(1)
    tokens = TokenLogps(Ragged(-one, one.long()), Ragged(-one, one.long()))
    optional = {"target_margin": one if margin else None, "index": one.long(), "tokens": tokens}
    optional |= {f"{side}_{term}": one for side in TokenLogps._fields for term in ("collision", "kl")}
    if reference:
        optional |= {"ref_chosen": -one, "ref_rejected": -one, "ref_tokens": tokens}
    return PairLogps(-one, -one, one.long(), one.long(), **optional)


def _check_built(cfg: DictConfig, choices: dict[str, str | None]) -> None:
    """Build what costs nothing, and let it refuse its own arguments before any weight loads."""
    import torch
    from hydra.utils import instantiate

    from lightning_dpo.collapse import CollapseWarning
    from lightning_dpo.module import DPOModule

    _check_loss(cfg, instantiate(cfg.loss), choices)
    for what, keys in ((DPOModule, ("scoring", "nonfinite")), (CollapseWarning, ("warn_kl",))):
        try:
            check_arguments(what, {key: cfg[key] for key in keys}, given_later=True)
        except ArgumentError as error:
            raise ConfigError(f"{error.name}={cfg[error.name]}: {error.message}") from None
    try:
        instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {error}{_in_file('optimizer', choices)}") from None


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    return ((p, n) for p, n in allow.nodes(node, path) if isinstance(n, dict) and "_target_" in n)


def _in_file(path: str, choices: Mapping[str, str | None]) -> str:
    group = path.split(".")[0]
    choice = choices.get(group)
    return f" (conf/{group}/{choice}.yaml)" if isinstance(choice, str) and not choice.startswith("[") else ""


def explain(error: BaseException, overrides: list[str]) -> str:
    """A Hydra or OmegaConf error in one line: the key, the value, what is allowed."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip() and "full_key" not in line)
    text = text.split(" Config search path")[0]
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text}"
    if found := re.search(r"Could not find 'hydra/launcher/((joblib|submitit)\w*)'", text):
        return f"launcher={found[1]} needs a plugin: pip install 'lightning-dpo[sweep]', or type launcher=local"
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if text.startswith(NO_NAME) and value == "null" and (group := Path(config_folder(), key)).is_dir():
            names = ", ".join(sorted(p.stem for p in group.glob("*.yaml")))
            return f"{override}: a group takes a name; allowed: {names}"
        if f"'{key}'" in text and "Could not override" in text:
            known = known_keys()
            if key in known:  # in the default run
                return f"{override}: no such key with {' '.join(o for o in overrides if _is_group(o))}"
            near = difflib.get_close_matches(key, [k for k in known if k.count(".") == key.count(".")])
            hint = f"did you mean {' or '.join(near)}?" if near else _allowed_beside(key)
            return f"{override}: no such key; {hint}"
        if "Could not find" in text and key in text:
            return f"{override}: {text}"
    cause = error.__cause__
    return text if cause is None or str(cause).splitlines()[:1] == text.splitlines()[:1] else f"{text} ({cause})"


def _is_group(override: str) -> bool:
    return Path(config_folder(), override.partition("=")[0]).is_dir()


def known_keys() -> list[str]:
    """Every key of the default run and every group, for suggestions."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_folder(), version_base="1.3"):
        cfg = compose("train")
    return list(_dotted(OmegaConf.to_container(cfg, resolve=False)))


def _dotted(node: Any, path: str = "") -> Iterator[str]:
    if path:
        yield path
    if isinstance(node, dict):
        for name, child in node.items():
            if name not in SPECIAL:
                yield from _dotted(child, f"{path}.{name}" if path else name)


def _allowed_beside(key: str) -> str:
    parent = key.rpartition(".")[0]
    beside = [k for k in known_keys() if k.rpartition(".")[0] == parent]
    return f"allowed: {', '.join(beside)}" if beside else "see --help"


def is_user_error(error: BaseException) -> bool:
    no_name = isinstance(error, ValueError) and str(error).startswith(NO_NAME)  # Hydra's answer to loss=null
    return no_name or isinstance(error, ConfigError | HydraException | OmegaConfBaseException)
