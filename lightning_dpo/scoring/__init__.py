"""Log-probabilities of responses: how a batch is laid out, attention over it, the head, and checks of all three."""

from lightning_dpo.scoring.scorer import Scorer, Scores, Scoring, full_logits_logps, pair_logps

__all__ = ["Scorer", "Scores", "Scoring", "full_logits_logps", "pair_logps"]
