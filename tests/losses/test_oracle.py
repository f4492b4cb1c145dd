"""Every loss and its gradient against its formula with 260 digits."""

from functools import partial
from types import SimpleNamespace as Row

import pytest
import torch
from mpmath import mpf

from lightning_dpo import losses
from tests.losses import oracle
from tests.losses.pairs import NAMES, changed, from_rows, parameters, sixty_fourths


def row(S_w, S_l, R_w, R_l, n_w=7, n_l=11, K_w=1.5, K_l=2.25, C_w=-9.0, C_l=-20.0, margin=0.75) -> Row:
    numbers = dict(S_w=S_w, S_l=S_l, R_w=R_w, R_l=R_l, n_w=n_w, n_l=n_l, K_w=K_w, K_l=K_l, C_w=C_w, C_l=C_l)
    return Row(**{name: mpf(value) for name, value in {**numbers, "margin": margin}.items()})


def ordinary(n: int, seed: int = 0) -> list[Row]:
    g = torch.Generator().manual_seed(seed)
    return [row(*sixty_fourths(4, g, -40, -1)) for _ in range(n)]


ROWS = [
    *ordinary(4),
    row(-21, -33.5, -21, -33.5, K_w=0, K_l=0),  # policy = reference
    row(-520.25, -33, -20, -33), row(-20, -33, -520.25, -33),  # u = -500, 500 (plus a quarter, as 500 is sppo's target)
    row(-20, -533.25, -20, -33), row(-20, -33, -20, -533.25),  # v = -500, 500
    row(-520.25, -33, -20, -533.25), row(-20, -533.25, -520.25, -33),  # h = -1000, 1000
    row(-520.25, -533.25, -20, -33), row(-20, -33, -520.25, -533.25),  # u = v = -500, 500
    row(-3, -1400, -3.5, -1395, n_w=1, n_l=900), row(-1400, -3, -1395, -3.5, n_w=900, n_l=1),
    row(-500, -0.015625, -1, -2, n_w=1, n_l=1), row(-0.015625, -500, -2, -1, n_w=900, n_l=1),
]  # fmt: skip
ORDINARY = 5

VARIANTS = [
    ("dpo", dict(beta=0.5, label_smoothing=0.25)),
    ("bco_pair", dict(beta=0.1, delta=0.75)),
    ("ipo", dict(beta=0.5, average_log_prob=True)),
    ("hinge", dict(beta=0.03)),
    ("wpo", dict(beta=0.1, clamp=False)),
    ("square_chipo", dict(beta=0.1, r_max=3.0)),
    ("odpo", dict(beta=0.1, offset=2.5)),
    ("alphapo", dict(beta=2.0, gamma=0.5, alpha=0.0)),
    ("alphapo", dict(beta=2.0, gamma=0.5, alpha=-0.5)),
    *[("fdpo", dict(beta=0.5, divergence=d, alpha=0.25)) for d in ("forward_kl", "js", "alpha")],
    *[(name, dict(beta=1.0)) for name in ("dpo", "gpo_exponential", "nca_pair", "apo_zero", "apo_down")],
    ("discopop", dict(beta=1.0, tau=0.05)),
    ("discopop", dict(beta=1.0, tau=2.0)),
]


def defaults(name: str) -> dict:
    return {key: value for key, value in parameters(name).items() if key not in ("shift", "momentum")}


CASES = [(name, defaults(name)) for name in NAMES if name in oracle.PAIRWISE] + VARIANTS


def exactly(settings: dict) -> dict:
    return {k: mpf(v) if isinstance(v, float) else v for k, v in settings.items()}


def agree(found: torch.Tensor, expected: list, what: str) -> None:
    """Within the type's tolerance, or only finite where the true value is out of the type's range."""
    assert found.isfinite().all(), f"{what}: {found}"
    rtol, atol = (1e-9, 1e-240) if found.dtype == torch.float64 else (2e-5, 1e-25)
    for i, (one, true) in enumerate(zip(found.tolist(), expected, strict=True)):
        if abs(true) < torch.finfo(found.dtype).max / 1e4:
            ok = abs(one - true) <= rtol * abs(true) + atol
            assert ok, f"{what} in {found.dtype}, row {i}: {one} against {float(true)}"


def test_every_shipped_loss_has_an_oracle():
    token_level = {"ld_dpo", "sampo"}  # tests/losses/test_token_level.py
    assert set(NAMES) == set(oracle.PAIRWISE) | set(oracle.BATCHWISE) | token_level | {"mix"}


def case_id(value) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


@pytest.mark.parametrize(("name", "settings"), CASES, ids=case_id)
def test_a_loss_and_its_gradient_follow_the_formula(name, settings):
    f = partial(oracle.PAIRWISE[name], **exactly(settings))
    true = [oracle.value_and_slopes(lambda batch, still: f(batch[0], still[0]), [r]) for r in ROWS]
    for dtype in (torch.float64, torch.float32):
        logps = from_rows(ROWS, dtype)
        if settings.get("offset") is not None:
            logps = changed(logps, target_margin=None)
        loss = getattr(losses, name)(logps, **settings).loss
        agree(loss, [value for value, _ in true], "loss")
        for leaf, gradient in gradients(loss.sum(), logps).items():
            agree(gradient, [slopes[leaf][0] for _, slopes in true], f"dL/d{leaf}")


def gradients(loss: torch.Tensor, logps) -> dict[str, torch.Tensor]:
    leaves = {"S_w": logps.chosen, "S_l": logps.rejected, "K_w": logps.chosen_kl, "K_l": logps.rejected_kl}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(leaves.items(), found, strict=True)}


BATCH_CASES = [
    *[(name, defaults(name)) for name in oracle.BATCHWISE],
    ("aot", dict(beta=0.5, label_smoothing=0.2)),
    ("aot_unpaired", dict(beta=0.5, label_smoothing=0.2)),
    ("beta_dpo", dict(beta=0.1, a=0.6, m0=3.0)),
    ("beta_dpo", dict(beta=0.1, a=2.0, m0=60.0, drop=0.4)),
    ("dr_dpo", dict(beta=0.1, beta_prime=0.25)),
]


@pytest.mark.parametrize("rows", [ordinary(6, seed=1), ROWS], ids=["ordinary", "extreme"])
@pytest.mark.parametrize(("name", "settings"), BATCH_CASES, ids=case_id)
def test_a_batch_and_its_gradient_follow_the_formula(name, settings, rows):
    f = partial(oracle.BATCHWISE[name], **exactly(settings))
    value, slopes = oracle.value_and_slopes(f, rows, names=("S_w", "S_l"))
    for dtype in (torch.float64, torch.float32):
        logps = from_rows(rows, dtype)
        loss = getattr(losses, name)(logps, **settings).loss
        assert loss.shape == (len(rows),)
        agree(loss.mean()[None], [value], "loss")
        for leaf, gradient in gradients(loss.mean(), logps).items():
            if leaf in slopes:
                agree(gradient, slopes[leaf], f"dL/d{leaf}")
