"""The theoretical optimum of reward against KL on the bundled task: `python -m lightning_dpo.demo.optimum DIR`.

Writes `optimum.json` into DIR, a folder of runs of the bundled task, as a bound for their reward-KL frontier.
`experiment=controlled_sentiment` writes it automatically.

The labels are Bradley-Terry draws of the oracle's reward r, so the optimal policy of DPO is known up to its normaliser
(Rafailov et al. 2023, arXiv 2305.18290, eq. 4): π* = π_ref exp(r/β) / Z. It maximises E[r] - β KL, so no policy lies
above the curve. Samples of the reference with weights exp(r/β) are samples of π*.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lightning_dpo.console import exit_codes
from lightning_dpo.demo import ASSETS, grammar
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

FILE = "optimum.json"
BETAS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
PROMPTS, SAMPLES = 16, 1024
MIN_ESS = 16.0
"""Points with fewer effective samples are omitted: log Z is biased by about -1/(2 ess) nats and uncertain by
1/sqrt(ess)."""


@dataclass(frozen=True)
class Point:
    """π* at one beta, means over prompts.

    `kl` is KL(π* ‖ π_ref) in nats per sequence, `score` the expected oracle reward under π*, `ess` the smallest
    effective number of samples of any prompt.
    """

    beta: float
    kl: float
    score: float
    ess: float


def optimum(scores: "Tensor", beta: float, scale: float = 1.0) -> Point:
    """π* by self-normalised importance weighting of reference samples.

    Args:
        scores: of samples from π_ref, shape [prompt, sample]; each prompt has its own normaliser Z.
        beta: of DPO, above 0.
        scale: the labels' Bradley-Terry scale, P(a beats b) = σ(scale (score_a - score_b)); r = scale x score.

    `ess` ignores high scores that no sample has reached.

    >>> import torch
    >>> round(optimum(torch.tensor([[0.0, 1.0]]), beta=1e6).score, 3)  # the reference's own mean at a large beta
    0.5
    """
    log_weights = scores.double() * scale / beta
    weights = log_weights.softmax(1)
    mean = (weights * scores).sum(1)
    log_z = log_weights.logsumexp(1) - log_weights.new_tensor(scores.shape[1]).log()
    kl = mean * scale / beta - log_z
    ess = 1 / weights.square().sum(1)
    return Point(beta, kl.mean().item(), mean.mean().item(), ess.min().item())


def reference_scores(samples: int, seed: int) -> "Tensor":
    """Oracle rewards of completions by the bundled model for some prompts of the grammar, [prompt, sample]."""
    import torch
    import transformers

    from lightning_dpo.models import load_model, load_tokenizer
    from lightning_dpo.samples.generate import generate

    transformers.logging.disable_progress_bar()
    folder = str(ASSETS / "model")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = [f"review of a {origin} {genre} :" for origin in grammar.ORIGINS for genre in grammar.GENRES]
    prompts = random.Random(seed).sample(prompts, PROMPTS)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts for _ in range(samples)]
    stop = [tokenizer.eos_token_id]
    drawn = generate(model, ids, max_new_tokens=40, stop_ids=stop, seed=seed, batch_size=2048)  # type: ignore[arg-type]
    texts = tokenizer.batch_decode([draw.ids for draw in drawn], skip_special_tokens=True)
    return torch.tensor([grammar.oracle_reward(text) for text in texts]).view(len(prompts), samples)


def curve(betas: Sequence[float] = BETAS, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """The content of optimum.json: points by increasing beta, with at least MIN_ESS effective samples, and a note."""
    from lightning_dpo.demo.build import LABEL_SCALE

    scores = reference_scores(samples, seed)
    points = [optimum(scores, beta, LABEL_SCALE) for beta in sorted(betas)]
    kept = [asdict(point) for point in points if point.ess >= MIN_ESS]
    omitted = [f"{point.beta:g}" for point in points if point.ess < MIN_ESS]
    note = (
        f"π_ref exp(r/β)/Z from {samples} samples of the reference for each of {len(scores)} prompts; "
        f"ess: smallest effective number of samples of any prompt, at least {MIN_ESS:g}"
    )
    if omitted:
        note += f"; omitted for fewer: beta {', '.join(omitted)}"
    return {"points": kept, "note": note, "settings": {"betas": sorted(betas), "samples": samples, "seed": seed}}


def is_bundled(cfg: DictConfig) -> bool:
    """Whether a run has the policy, pairs and scorer of the bundled task."""
    paths = {"model.path": ASSETS / "model", "data.train": ASSETS / "train.jsonl"}
    scorer = f"{grammar.score.__module__}.{grammar.score.__name__}"
    return OmegaConf.select(cfg, "samples.scorer") == scorer and all(
        Path(str(OmegaConf.select(cfg, key))).resolve() == path.resolve() for key, path in paths.items()
    )


class Write(Callback):
    """A callback for `hydra.callbacks`: writes optimum.json into the sweep's folder before the first job.

    A resumed sweep keeps its file. For another model or other pairs, the optimum is unknown and a line says so.
    """

    def __init__(self, betas: Sequence[float] = BETAS, samples: int = SAMPLES, seed: int = 0):
        self.settings = {"betas": sorted(float(b) for b in betas), "samples": samples, "seed": seed}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        path = Path(config.hydra.sweep.dir) / FILE
        if not is_bundled(config):
            path.unlink(missing_ok=True)  # from a previous sweep in this folder
            print("optimum    unknown for this model, data or scorer", flush=True)
            return
        written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if written.get("settings") != self.settings:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, curve(**self.settings))
            print(f"optimum    {path}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="samples per prompt (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    configs = sorted(arguments.folder.rglob("config.yaml"))
    other = [path for path in configs if not is_bundled(OmegaConf.load(path))]  # type: ignore[arg-type]
    with exit_codes():
        if not configs or other:
            found = f"{other[0]} has another model, data or scorer" if other else "no runs found"
            raise ConfigError(f"{arguments.folder}: {found}; the optimum is known for data=reviews model=tiny only")
    content = curve(arguments.betas, arguments.samples, arguments.seed)
    write_json(arguments.folder / FILE, content)
    print(f"{'beta':>6} {'KL':>7} {'reward':>7} {'ess':>7}")
    for point in content["points"]:
        print("{beta:6g} {kl:7.3f} {score:7.3f} {ess:7.0f}".format(**point))
    print(f"{content['note']}\nwritten to {arguments.folder / FILE}")


if __name__ == "__main__":
    main()
