"""Pairs for the tests of losses, and the losses as their YAML files name them."""

from functools import partial
from types import SimpleNamespace as Row

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from lightning_dpo.batch import TokenLogps
from lightning_dpo.losses import PairLogps
from lightning_dpo.ragged import Ragged
from tests.conftest import ROOT

FOLDER = ROOT / "conf" / "loss"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
NAMES = sorted(TEXTS)
REFERENCE_FREE = {name for name, text in TEXTS.items() if "override /reference: none" in text}


def shipped(name: str, **changes):
    """The loss of a YAML, with changed parameters."""
    node = OmegaConf.create(TEXTS[name])
    node.update({"seed": 0, **({"beta": changes.pop("beta")} if "beta" in changes else {})})
    if name == "odpo" and "offset" not in changes:
        changes["offset"] = None
    node.loss.update(changes)
    return instantiate(node.loss)


def parameters(name: str) -> dict:
    """The parameters in the YAML of a loss."""
    node = OmegaConf.create(TEXTS[name])
    node.update({"seed": 0})
    return {k: v for k, v in OmegaConf.to_container(node.loss, resolve=True).items() if not k.startswith("_")}  # type: ignore


def sixty_fourths(n: int, generator: torch.Generator, low: float, high: float) -> list[float]:
    """Random numbers that are exact in float32, as are their sums."""
    return (torch.randint(int(64 * low), int(64 * high), (n,), generator=generator) / 64).tolist()


def random_tokens(pairs: int, seed: int = 0, dtype=torch.float64, longest: int = 20):
    """Log-probabilities per token: policy and reference, chosen and rejected, as leaves."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (2, pairs), generator=g)
    values = [[sixty_fourths(int(n.sum()), g, -5, 0) for n in lengths] for _ in range(2)]
    policy, reference = (
        TokenLogps(*(Ragged(torch.tensor(v, dtype=dtype), n) for v, n in zip(side, lengths, strict=True)))
        for side in values
    )
    for side in policy:
        side.values.requires_grad_()
    return policy, reference


def from_tokens(policy: TokenLogps, reference: TokenLogps | None, **more) -> PairLogps:
    sums = {} if reference is None else dict(ref_chosen=reference.chosen.sum(), ref_rejected=reference.rejected.sum())
    return PairLogps(
        policy.chosen.sum(),
        policy.rejected.sum(),
        chosen_tokens=policy.chosen.lengths,
        rejected_tokens=policy.rejected.lengths,
        **{**sums, "tokens": policy, "ref_tokens": reference, "index": torch.arange(len(policy.chosen)), **more},
    )


def full(pairs: int = 5, seed: int = 0, dtype=torch.float64, longest: int = 20) -> PairLogps:
    """Pairs with every field that a loss may need."""
    g = torch.Generator().manual_seed(seed + 100)
    collision = -3 * torch.rand((2, pairs), generator=g, dtype=dtype) - 1
    kl = 4 * torch.rand((2, pairs), generator=g, dtype=dtype)
    policy, reference = random_tokens(pairs, seed, dtype, longest)
    counts = torch.stack([policy.chosen.lengths, policy.rejected.lengths])
    return from_tokens(
        policy,
        reference,
        target_margin=torch.rand(pairs, generator=g, dtype=dtype),
        chosen_collision=collision[0] * counts[0],
        rejected_collision=collision[1] * counts[1],
        chosen_kl=kl[0].requires_grad_(),
        rejected_kl=kl[1].requires_grad_(),
    )


def changed(logps: PairLogps, **fields) -> PairLogps:
    return PairLogps(**{**vars(logps), **fields})


def with_tokens(logps: PairLogps, chosen: Tensor, rejected: Tensor) -> PairLogps:
    """The same pairs with other token log-probabilities of the policy, end to end."""
    assert logps.tokens is not None
    sides = (Ragged(v, side.lengths) for v, side in zip((chosen, rejected), logps.tokens, strict=True))
    tokens = TokenLogps(*sides)
    return changed(logps, tokens=tokens, chosen=tokens.chosen.sum(), rejected=tokens.rejected.sum())


def permuted(logps: PairLogps, order: list[int]) -> PairLogps:
    def permute(value):
        if isinstance(value, Tensor):
            return value[order]
        return value and TokenLogps(*(side.select(order) for side in value))

    return PairLogps(**{k: permute(v) for k, v in vars(logps).items()})


def swapped(logps: PairLogps) -> PairLogps:
    other = {"chosen": "rejected", "rejected": "chosen"}

    def name(field: str) -> str:
        for side in other:
            if side in field:
                return field.replace(side, other[side])
        return field

    values = {name(k): v for k, v in vars(logps).items()}
    for key in ("tokens", "ref_tokens"):
        values[key] = values[key] and TokenLogps(values[key].rejected, values[key].chosen)
    return PairLogps(**values)


def from_rows(rows: list[Row], dtype) -> PairLogps:
    """The oracle's rows as tensors; the policy's numbers are leaves."""

    def column(name: str, kind=dtype, leaf: bool = False) -> Tensor:
        return torch.tensor([float(getattr(r, name)) for r in rows]).to(kind).requires_grad_(leaf)

    leaf, whole = partial(column, leaf=True), partial(column, kind=torch.int64)
    return PairLogps(
        leaf("S_w"), leaf("S_l"), ref_chosen=column("R_w"), ref_rejected=column("R_l"),
        chosen_tokens=whole("n_w"), rejected_tokens=whole("n_l"),
        target_margin=column("margin"), chosen_collision=column("C_w"), rejected_collision=column("C_l"),
        chosen_kl=leaf("K_w"), rejected_kl=leaf("K_l"), index=torch.arange(len(rows)),
    )  # fmt: skip
