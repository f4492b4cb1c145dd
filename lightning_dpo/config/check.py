"""Checks of a composed configuration, before anything loads.

The Python signatures are the schema: every node with a `_target_` is bound to the signature of what it builds, types
and ranges included. Combinations that would ignore an option are refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_dpo.config.combinations import check_combinations, check_inside, expand_home
from lightning_dpo.config.schema import check_top_level, refuse_empty
from lightning_dpo.errors import ConfigError
from lightning_dpo.safety import targets
from lightning_dpo.safety.secrets import refuse_secret_values
from lightning_dpo.signatures import ArgumentError, check_arguments, nodes

NEEDED = ("model", "data", "loss", "optimizer", "samples", "trainer")
OPTIONAL = ("reference", "scheduler", "logger", "callbacks")
"""Groups that a run needs, and those that may be removed."""

SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def check(cfg: DictConfig, choices: Mapping[str, str | None], overrides: list[str]) -> None:
    """Check every value against the signature that receives it, and keys against each other.

    Args:
        choices: the chosen file of each group, for messages.
        overrides: what was typed, for messages.

    Errors: ConfigError for the first wrong one.
    """
    typed = {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} has no value; type {missing[0]}=...")
    with open_dict(cfg):  # for good, as the next line: later code builds what is checked here
        cfg.update({group: {} for group in OPTIONAL if cfg.get(group) is None})
    OmegaConf.resolve(cfg)
    expand_home(cfg)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    check_top_level(plain)
    refuse_empty(plain)
    if without := [group for group in NEEDED if "_target_" not in (plain.get(group) or {})]:
        raise ConfigError(
            f"{without[0]}: a run needs one, and its _target_ is missing; leave out ~{without[0]} or {without[0]}=null"
        )
    if left := [path for path, node in nodes(plain) if isinstance(node, str) and "${" in node]:
        raise ConfigError(
            f"{left[0]}: '${{' is left after all values are resolved; remove it, or put the text into a file"
        )
    targets.check(plain)
    refuse_secret_values(plain, lambda key: _in_file(key, choices))
    betas = [node["beta"] for _, node in _targets(plain["loss"], "loss") if "beta" in node]  # a sum has several
    if "beta" in plain and plain["beta"] not in betas:
        found = " and ".join(map(str, betas)) or None
        raise ConfigError(f"loss.beta={found} disagrees with beta={plain['beta']}; type beta=...")
    if plain["model"].get("trust_remote_code") and "model.trust_remote_code" not in typed:
        raise ConfigError(
            "model.trust_remote_code=true in a file would run Python code that comes with the model; type it instead"
        )
    _check_signatures(plain, choices, typed)
    check_combinations(plain)
    check_inside(plain)
    _check_built(cfg, choices)


def _check_signatures(plain: dict[str, Any], choices: Mapping[str, str | None], typed: Mapping[str, str]) -> None:
    """Bind every node to the signature of what it builds."""
    from lightning_dpo.data.report import ReportOptions
    from lightning_dpo.models.tokenizers import TokenizerOptions
    from lightning_dpo.optim import Stepping

    for path, node in _targets(plain):
        target = targets.allowed(node["_target_"], path, f"{path}._target_")
        values = {key: value for key, value in node.items() if key not in SPECIAL}
        options = {"data": ReportOptions, "model": TokenizerOptions, "scheduler": Stepping}.get(path)
        own = options.keys(values) if options else {}
        try:
            if options:
                check_arguments(options, own)
            check_arguments(target, {k: v for k, v in values.items() if k not in own}, allow_missing=True)
        except ArgumentError as error:
            key = f"{path}.{error.name}"
            shown = f"{key}={typed[key]}" if key in typed else key
            shown = f"beta={typed['beta']}" if key == "loss.beta" and "beta" in typed else shown
            hint = f"; with another {path} type {path}=custom {path}._target_=..."
            hint = (
                hint if path in ("optimizer", "scheduler") and f"{path}._target_" in typed and key not in typed else ""
            )
            raise ConfigError(f"{shown}: {error.message}{_in_file(path, choices)}{hint}") from None


def _check_loss(cfg: DictConfig, loss: Any, choices: Mapping[str, str | None]) -> None:
    """Check what the loss needs against what the other keys provide."""
    from lightning_dpo.losses import needs_of
    from lightning_dpo.losses.needs import check_batches, check_reference

    needs, with_loss = needs_of(loss), f"with loss={choices.get('loss')}"
    reference = f"reference={choices.get('reference')} {with_loss}"
    margins, weights = cfg.data.get("margin_column"), cfg.data.get("weight_column")
    accumulate = cfg.trainer.accumulate_grad_batches
    if margins and "target_margin" not in needs:
        raise ConfigError(f"data.margin_column={margins} {with_loss}: this loss uses no margins")
    if weights and "equal_weights" in needs:
        reason = "this loss has one value for the whole batch, so pairs cannot be weighted"
        raise ConfigError(f"data.weight_column={weights} {with_loss}: {reason}")
    with _named(reference):
        check_reference(needs, targets.allowed(cfg.reference._target_, "reference") if cfg.reference else None)
    with _named(f"trainer.accumulate_grad_batches={accumulate} {with_loss}"):
        check_batches(needs, accumulate, ranks=1)
    with _named(f"loss={choices.get('loss')}", reference):
        loss(_one_pair(reference=bool(cfg.reference), margin=bool(margins)))


@contextmanager
def _named(keys: str, reference: str = "") -> Iterator[None]:
    """Put the keys in front of an error message."""
    from lightning_dpo.losses import ReferenceRequired

    try:
        yield
    except ValueError as error:
        shown = reference if reference and isinstance(error, ReferenceRequired) else keys
        raise ConfigError(f"{shown}: {error}") from None


def _one_pair(reference: bool, margin: bool) -> Any:
    """A pair of one token a side, with everything that a run passes to the loss."""
    import torch

    from lightning_dpo.batch import TokenLogps
    from lightning_dpo.losses import PairLogps
    from lightning_dpo.ragged import Ragged

    one = torch.ones(1)
    tokens = TokenLogps(Ragged(-one, one.long()), Ragged(-one, one.long()))
    optional = {"target_margin": one if margin else None, "index": one.long(), "tokens": tokens}
    optional |= {f"{side}_{term}": one for side in TokenLogps._fields for term in ("collision", "kl")}
    if reference:
        optional |= {"ref_chosen": -one, "ref_rejected": -one, "ref_tokens": tokens}
    return PairLogps(-one, -one, chosen_tokens=one.long(), rejected_tokens=one.long(), **optional)


def _check_built(cfg: DictConfig, choices: Mapping[str, str | None]) -> None:
    """Build what is cheap, so that it refuses its arguments before any weight loads."""
    import torch

    from lightning_dpo.callbacks.alarms import CollapseWarning
    from lightning_dpo.callbacks.best import Best
    from lightning_dpo.config.build import build_scheduler
    from lightning_dpo.config.instantiation import instantiate
    from lightning_dpo.models.export import export
    from lightning_dpo.module import DPOModule
    from lightning_dpo.optim import check_optimizer, describe

    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(f"trainer.accelerator={cfg.trainer.accelerator}: torch finds no GPU; type trainer=cpu")
    _check_loss(cfg, instantiate(cfg.loss), choices)
    dtype = torch.float16 if cfg.trainer.precision == "16-true" else getattr(torch, cfg.model.get("dtype", "float32"))
    own: list[tuple[Any, str, Any]] = [
        (DPOModule, "", {key: cfg[key] for key in ("scoring", "nonfinite")}),
        (CollapseWarning, "", {"warn_kl": cfg.warn_kl}),
        (Best, "checkpoint.", {**cfg.checkpoint, "best": cfg.checkpoint.best or ""}),
        (export, "export.", cfg.export),
    ]
    for what, group, values in own:
        try:
            check_arguments(what, values, allow_missing=True)
        except ArgumentError as error:
            key = f"{group}{error.name}"
            raise ConfigError(f"{key}={OmegaConf.select(cfg, key)}: {error.message}") from None
    with _refused("optimizer", choices):  # of a matrix and a vector, as every model has both
        zeros = (torch.zeros(size, dtype=dtype) for size in ((2, 2), (2,)))
        optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(weights) for weights in zeros])
        check_optimizer(optimizer)
    with _refused("scheduler", choices):
        if (scheduler := build_scheduler(cfg.scheduler)) is not None:
            describe(scheduler, optimizer, total_steps=10**6)  # more than a warm-up has


@contextmanager
def _refused(group: str, choices: Mapping[str, str | None]) -> Iterator[None]:
    """Name the group whose part cannot be built."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{group}: {error}{_in_file(group, choices)}") from None


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    return ((p, n) for p, n in nodes(node, path) if isinstance(n, dict) and "_target_" in n)


def _in_file(path: str, choices: Mapping[str, str | None]) -> str:
    group = path.split(".")[0]
    choice = choices.get(group)
    return f" (conf/{group}/{choice}.yaml)" if isinstance(choice, str) and not choice.startswith("[") else ""
