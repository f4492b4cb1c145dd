"""The theoretical optimum: reweighted samples against sums over all outcomes, and optimum.json."""

import itertools
import json
import math
import sys

import pytest
import torch
from omegaconf import OmegaConf

from lightning_dpo.demo import ASSETS, grammar, optimum
from lightning_dpo.demo.bandit.runs import closed_form
from tests.conftest import ROOT

BETAS = (0.3, 1.0, 3.0)


def enumerated(p_ref, scores, beta, scale=1.0):
    """KL and expected score of π_ref exp(scale score / β) / Z, by sums over all outcomes."""
    log_ref = p_ref.log()
    log_best = closed_form(log_ref, scores * scale, beta)
    return (log_best.exp() * (log_best - log_ref)).sum().item(), (log_best.exp() * scores).sum().item()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_with_the_exact_probabilities_give_the_exact_optimum(beta, scale):
    counts, scores = torch.tensor([5, 3, 2]), torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    sample = scores.repeat_interleave(counts)
    point = optimum.optimum(sample[None], beta, scale)
    assert (point.kl, point.score) == pytest.approx(enumerated(counts / 10.0, scores, beta, scale), abs=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_random_samples_approximate_the_optimum_with_a_normaliser_per_prompt(beta):
    generator = torch.Generator().manual_seed(0)
    references = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)
    scores = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.0]], dtype=torch.float64)
    tasks = list(zip(references, scores, strict=True))
    drawn = torch.stack([s[p.multinomial(40_000, True, generator=generator)] for p, s in tasks])
    point = optimum.optimum(drawn, beta)
    kl, score = torch.tensor([enumerated(p, s, beta) for p, s in tasks]).mean(0).tolist()
    assert point.kl == pytest.approx(kl, abs=0.03) and point.score == pytest.approx(score, abs=0.03)


def test_no_policy_has_a_higher_reward_minus_beta_times_kl():
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    scores = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    sample = scores.repeat_interleave(torch.tensor([5, 3, 2]))
    for beta in BETAS:
        best = optimum.optimum(sample[None], beta)
        for other in torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1):
            value = (other * scores).sum() - beta * (other * (other / reference).log()).sum()
            assert value <= best.score - beta * best.kl + 1e-9


def test_the_effective_sample_size_is_all_samples_at_a_large_beta_and_the_best_ones_at_a_small_beta():
    sample = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    assert optimum.optimum(sample, beta=1e9).ess == pytest.approx(4)
    assert optimum.optimum(sample, beta=1e-3).ess == pytest.approx(1)  # of the prompt with the fewest


def grammar_rewards() -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle rewards of the grammar and their probabilities, by enumeration of signs."""
    shares: dict[float, float] = {}
    for mood, items in itertools.product(grammar.MOODS, (3, 4)):
        plus = (1 - grammar.NEUTRAL_SHARE) * mood
        p = {1: plus, 0: grammar.NEUTRAL_SHARE, -1: 1 - grammar.NEUTRAL_SHARE - plus}
        for signs in itertools.product(p, repeat=items + 1):
            share = math.prod(p[s] for s in signs) / (2 * len(grammar.MOODS))
            shares[sum(signs)] = shares.get(sum(signs), 0) + share
    return torch.tensor(list(shares), dtype=torch.float64), torch.tensor(list(shares.values()), dtype=torch.float64)


def test_the_optimum_of_the_bundled_model_is_near_that_of_the_grammar(monkeypatch):
    monkeypatch.setattr(optimum, "PROMPTS", 4)
    content = optimum.curve(betas=[0.001, 0.3, 1.0, 3.0], samples=256)
    found = {point["beta"]: point for point in content["points"]}
    rewards, shares = grammar_rewards()
    for beta in (1.0, 3.0):
        kl, score = enumerated(shares, rewards, beta)
        assert found[beta]["kl"] == pytest.approx(kl, abs=0.25) and found[beta]["score"] == pytest.approx(
            score, abs=0.4
        )
    assert all(point["ess"] >= optimum.MIN_ESS for point in found.values())
    assert 0.001 not in found and "omitted for fewer: beta 0.001" in content["note"]


def config(**changes):
    values = {"model.path": str(ASSETS / "model"), "data.train": str(ASSETS / "train.jsonl"),
              "samples.scorer": "lightning_dpo.demo.grammar.score", **changes}  # fmt: skip
    cfg = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["optimum", *arguments])
    optimum.main()


def test_the_command_writes_the_curve_into_the_folder_of_the_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(optimum, "reference_scores", lambda samples, seed: torch.tensor([[0.0] * 50 + [1.0] * 50]))
    (tmp_path / "run").mkdir()
    OmegaConf.save(config(), tmp_path / "run" / "config.yaml")
    run_command(monkeypatch, str(tmp_path), "--betas", "0.5", "1")
    written = json.loads((tmp_path / "optimum.json").read_text())
    assert [point["beta"] for point in written["points"]] == [0.5, 1] and "0.5" in capsys.readouterr().out
    assert set(written["points"][0]) == {"beta", "kl", "score", "ess"}


@pytest.mark.parametrize("key", ["model.path", "data.train", "samples.scorer"])
def test_runs_of_another_model_or_task_are_refused(monkeypatch, tmp_path, capsys, key):
    OmegaConf.save(config(**{key: "other"}), tmp_path / "config.yaml")
    with pytest.raises(SystemExit) as end:
        run_command(monkeypatch, str(tmp_path))
    assert end.value.code == 2 and "config.yaml has another model" in capsys.readouterr().err
    assert not (tmp_path / "optimum.json").exists()


@pytest.fixture
def drawings(monkeypatch):
    """A list of the calls that sampled from the reference."""
    calls = []
    scores = torch.tensor([[0.0] * 50 + [1.0] * 50])
    monkeypatch.setattr(optimum, "reference_scores", lambda *arguments: calls.append(arguments) or scores)
    return calls


def test_a_sweep_gets_its_curve_before_its_first_job_and_keeps_it_when_it_resumes(drawings, tmp_path):
    cfg = config(**{"hydra.sweep.dir": str(tmp_path / "sweep")})
    for _ in range(2):
        optimum.Write(betas=[1]).on_multirun_start(cfg)
    assert len(drawings) == 1
    optimum.Write(betas=[1, 2]).on_multirun_start(cfg)
    assert [p["beta"] for p in json.loads((tmp_path / "sweep" / "optimum.json").read_text())["points"]] == [1, 2]


def test_a_sweep_of_another_model_gets_no_curve_and_says_so(drawings, tmp_path, capsys):
    (tmp_path / "optimum.json").write_text("from a previous sweep")
    optimum.Write().on_multirun_start(config(**{"hydra.sweep.dir": str(tmp_path), "model.path": "other"}))
    assert not drawings and not list(tmp_path.iterdir())
    assert "unknown for this model" in capsys.readouterr().out


def test_the_study_covers_its_losses_betas_and_seeds():
    study = OmegaConf.load(ROOT / "conf" / "experiment" / "controlled_sentiment.yaml")
    grid = {key: values.split(",") for key, values in study.hydra.sweeper.params.items()}
    assert {"dpo", "ipo"} < set(grid["loss"]) and len(grid["beta"]) >= 6 and len(grid["seed"]) >= 3
    assert study.hydra.callbacks.optimum._target_ == f"{optimum.__name__}.Write"
    assert {float(beta) for beta in grid["beta"]} <= set(optimum.BETAS)
