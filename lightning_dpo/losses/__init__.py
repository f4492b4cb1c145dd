"""Preference losses: pure functions `(PairLogps, **parameters) -> PairLoss`.

The registry is the folder conf/loss: one YAML names one function. To add a loss, write the function and its YAML.
A loss with a memory is an nn.Module with the same call.
"""

from lightning_dpo.losses.batch_level import aot, aot_unpaired, beta_dpo, dr_dpo, kto_pair
from lightning_dpo.losses.margins import hdpo, odpo, rdpo
from lightning_dpo.losses.memory import BCOPair, BetaDPO
from lightning_dpo.losses.needs import needs, needs_of
from lightning_dpo.losses.pairwise import cdpo, dpo, hinge, ipo, robust, sigmoid_norm
from lightning_dpo.losses.shapes import chipo, discopop, exo_pair, fdpo, gpo_exponential, square_chipo
from lightning_dpo.losses.sides import apo_down, apo_zero, bco_pair, cal_dpo, dpop, nca_pair, sppo_hard
from lightning_dpo.losses.sums import Mix, mpo, rpo
from lightning_dpo.losses.token_level import ld_dpo, sampo, tdpo1, tdpo2, wpo
from lightning_dpo.losses.types import Loss, PairLogps, PairLoss, ReferenceRequired
from lightning_dpo.losses.without_reference import alphapo, cpo, orpo, sft, simper, simpo, slic

__all__ = ["Loss", "PairLogps", "PairLoss", "ReferenceRequired", "needs", "needs_of"]
__all__ += ["cdpo", "dpo", "hinge", "ipo", "robust", "sigmoid_norm", "hdpo", "odpo", "rdpo"]
__all__ += ["chipo", "discopop", "exo_pair", "fdpo", "gpo_exponential", "square_chipo"]
__all__ += ["apo_down", "apo_zero", "bco_pair", "cal_dpo", "dpop", "nca_pair", "sppo_hard"]
__all__ += ["ld_dpo", "sampo", "tdpo1", "tdpo2", "wpo"]
__all__ += ["aot", "aot_unpaired", "beta_dpo", "dr_dpo", "kto_pair", "BCOPair", "BetaDPO"]
__all__ += ["alphapo", "cpo", "orpo", "sft", "simper", "simpo", "slic", "Mix", "mpo", "rpo"]
