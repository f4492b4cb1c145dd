"""Every causal architecture is scored as a plain loop over its own logits scores it, or it is refused.

docs/architectures.md has the outcome of each row; `python -m tests.scoring.test_architectures` writes its table anew.
"""

import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import ConfigError
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring.first_batch import check_first_batch
from tests.conftest import ROOT
from tests.scoring.architectures import ROWS, built

PAGE = ROOT / "docs" / "architectures.md"
NATS, GRADIENT = 5e-5, 1e-4
ON_PAGE = [name for name, row in ROWS.items() if row.outcome != "unscored"]


class Measured(NamedTuple):
    """architecture: the class. spread: of the response tokens' log-probabilities, standard deviation in nats.

    nats: largest difference of a response's log-probability. gradient: norm of the difference over all parameters,
    relative. Both are the larger of scoring=auto and scoring=padded.
    """

    architecture: str
    layout: str
    why_not_packed: str | None
    spread: float
    nats: float
    gradient: float


def pairs() -> PairBatch:
    """Five pairs over three prompts, with one response in two pairs; sequences of 4 to 65 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = {n: torch.randint(3, 61, (n,), generator=generator) for n in (1, 2, 3, 7, 9, 12, 25, 30, 40)}
    rows = [(3, 2, 40), (3, 9, 40), (25, 1, 30), (25, 40, 7), (1, 12, 3)]
    sides = (Ragged.from_rows([ids[n] for n in side]) for side in zip(*rows, strict=True))
    return PairBatch(*sides, index=torch.arange(len(rows)))


def plain_logps(model: PreTrainedModel, batch: PairBatch) -> Tensor:
    """Of each response token, chosen then rejected: one unpadded sequence at a time, its full logits, in float64."""
    found = []
    for side in (batch.chosen, batch.rejected):
        for prompt, response in zip(batch.prompt.rows(), side.rows(), strict=True):
            logits = model(input_ids=torch.cat([prompt, response])[None], use_cache=False).logits[0]
            logps = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
            found.append(logps.gather(-1, response[:, None])[:, 0])
    return torch.cat(found)


def scored_logps(scorer: Scorer, batch: PairBatch) -> Tensor:
    chosen, rejected = scorer(batch)
    return torch.cat([chosen.values, rejected.values]).double()


def slope(model: PreTrainedModel, logps: Tensor) -> Tensor:
    """Gradient of a fixed random combination of the log-probabilities, by all parameters."""
    weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(2)).double()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((logps * weights).sum(), wanted, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found]).double()


def measure(model: PreTrainedModel, batch: PairBatch) -> Measured:
    expected = plain_logps(model, batch)
    gradient, spread = slope(model, expected), expected.std().item()
    lengths = torch.cat([batch.chosen.lengths, batch.rejected.lengths]).tolist()
    auto, nats, gradients = Scorer(model), [], []
    for scorer in (auto, Scorer(model, "padded")):
        logps = scored_logps(scorer, batch)
        nats += [row.sum().abs().item() for row in (logps - expected).split(lengths)]
        gradients.append(((slope(model, logps) - gradient).norm() / gradient.norm()).item())
    return Measured(type(model).__name__, auto.layout, auto.why_not_packed, spread, max(nats), max(gradients))


def line(name: str, measured: Measured) -> str:
    """The row of the page. What agrees is given as a bound, so that the page is the same on every machine."""
    reason = (measured.why_not_packed or "").removeprefix(f"{measured.architecture} ").split(";")[0]
    reason = re.sub(r" by \S+ \(relative\)", "", reason)
    if ROWS[name].outcome == "agrees":
        nats, gradient, remark = f"< {NATS:g}", f"< {GRADIENT:g}", reason and f"padded: {reason}"
    else:
        nats, gradient = f"{measured.nats:.1g}", f"{measured.gradient:.1g}"
        remark = f"{'refused' if ROWS[name].outcome == 'refused' else 'differs'}: {ROWS[name].remark}"
    return f"| {' | '.join([name, measured.architecture, measured.layout, nats, gradient, remark])} |"


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_PAGE)
def test_an_architecture_is_scored_as_its_own_logits_or_refused(name):
    model, batch = built(name), pairs()
    measured = measure(model, batch)
    assert measured.spread > 0.1, "these weights are too weak to show a fault"
    if ROWS[name].outcome == "agrees":
        assert measured.nats < NATS and measured.gradient < GRADIENT
        check_first_batch(Scorer(model), batch, {})
    else:
        assert measured.nats > 20 * NATS, "it agrees now: the table can say so"
    if ROWS[name].outcome == "refused":
        with pytest.raises(RuntimeError, match="first-batch check"):
            check_first_batch(Scorer(model), batch, {})
    assert line(name, measured) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(ROWS.keys() - ON_PAGE))
@pytest.mark.parametrize("scoring", ["auto", "padded"])
def test_what_depends_on_longer_rows_or_on_later_tokens_is_refused(name, scoring):
    with pytest.raises(ConfigError, match="rotary angles|is not causal"):
        Scorer(built(name), scoring)(pairs())


def test_the_page_lists_every_architecture_once():
    listed = [row.split(" | ")[0].removeprefix("| ") for row in PAGE.read_text(encoding="utf-8").splitlines()]
    assert [name for name in listed if name in ROWS] == sorted(ON_PAGE)


if __name__ == "__main__":
    heading, *_ = PAGE.read_text(encoding="utf-8").partition("| model type")
    titles = "| model type | class | layout | largest difference, nats | of the gradient | remark |"
    table = [titles, "|---|---|---|---|---|---|", *(line(n, measure(built(n), pairs())) for n in sorted(ON_PAGE))]
    PAGE.write_text(heading + "\n".join(table) + "\n", encoding="utf-8")
