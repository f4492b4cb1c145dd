"""The published formulas with 260 digits: no torch, no rearrangement, one pair or one batch at a time.

A row has S_w, S_l (policy), R_w, R_l (reference), n_w, n_l (tokens), K_w, K_l (sequential KL divergences), C_w, C_l
(collision terms) and margin. `still` is the same row (or batch) without derivatives, for what has "no gradient".
"""

from types import SimpleNamespace as Row

import mpmath
from mpmath import mp, mpf

mp.dps = 260  # enough for log(1 + e^-500) in its plain form


class Dual:
    """A number and its derivatives with respect to some variables."""

    def __init__(self, value, slopes):
        self.value, self.slopes = mpf(value), slopes

    def chain(self, value, slope):
        return Dual(value, [slope * d for d in self.slopes])

    def __add__(self, other):
        if not isinstance(other, Dual):
            return Dual(self.value + other, self.slopes)
        return Dual(self.value + other.value, [a + b for a, b in zip(self.slopes, other.slopes, strict=True)])

    def __mul__(self, other):
        if not isinstance(other, Dual):
            return self.chain(self.value * other, other)
        pairs = zip(self.slopes, other.slopes, strict=True)
        return Dual(self.value * other.value, [a * other.value + b * self.value for a, b in pairs])

    def __pow__(self, power):
        return self.chain(self.value**power, power * self.value ** (power - 1))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __truediv__(self, other):
        return self * other**-1 if isinstance(other, Dual) else self * (1 / mpf(other))

    def __rtruediv__(self, other):
        return self**-1 * other

    def __lt__(self, other):
        return self.value < (other.value if isinstance(other, Dual) else other)

    def __gt__(self, other):
        return self.value > (other.value if isinstance(other, Dual) else other)

    __radd__, __rmul__ = __add__, __mul__


def exp(x):
    return x.chain(mpmath.exp(x.value), mpmath.exp(x.value)) if isinstance(x, Dual) else mpmath.exp(x)


def log(x):
    return x.chain(mpmath.log(x.value), 1 / x.value) if isinstance(x, Dual) else mpmath.log(x)


def value_and_slopes(f, rows, names=("S_w", "S_l", "K_w", "K_l")):
    """f(rows, still) and its derivatives with respect to these numbers: by name, a list over rows."""
    variables = [(i, name) for i in range(len(rows)) for name in names]
    moving = [Row(**vars(r)) for r in rows]
    for k, (i, name) in enumerate(variables):
        slopes = [mpf(j == k) for j in range(len(variables))]
        setattr(moving[i], name, Dual(getattr(rows[i], name), slopes))
    result = f(moving, rows) + Dual(0, [mpf(0)] * len(variables))  # a constant gets slopes of 0
    by_name = {name: [d for d, (_, n) in zip(result.slopes, variables, strict=True) if n == name] for name in names}
    return result.value, by_name


def s(x):
    return 1 / (1 + exp(-x))


def L(x):
    return log(1 + exp(-x))


def u(r):
    return r.S_w - r.R_w


def v(r):
    return r.S_l - r.R_l


def h(r):
    return u(r) - v(r)


def a(r):
    return r.S_w / r.n_w, r.S_l / r.n_l


def smoothed(x, e):
    return (1 - e) * L(x) + e * L(-x)


def clip(x, bound):
    return max(mpf(-bound), min(mpf(bound), x))


def dpo(r, still, beta, label_smoothing=0):
    return smoothed(beta * h(r), label_smoothing)


def robust(r, still, beta, label_smoothing):
    e = label_smoothing
    return ((1 - e) * L(beta * h(r)) - e * L(-beta * h(r))) / (1 - 2 * e)


def ipo(r, still, beta, average_log_prob=False):
    gap = u(r) / r.n_w - v(r) / r.n_l if average_log_prob else h(r)
    return (gap - 1 / (2 * beta)) ** 2


def sigmoid_norm(r, still, beta):
    return L(beta * (u(r) / r.n_w - v(r) / r.n_l))


def hinge(r, still, beta):
    return max(mpf(0), 1 - beta * h(r))


def exo_pair(r, still, beta, label_smoothing):
    e, q, p = label_smoothing, s(beta * h(r)), s(-beta * h(r))
    return q * (log(q) - log(1 - e)) + p * (log(p) - log(e))


def nca_pair(r, still, beta):
    return L(beta * u(r)) + L(-beta * u(r)) / 2 + L(-beta * v(r)) / 2


def bco_pair(r, still, beta, delta=0):
    return L(beta * u(r) - delta) + L(-(beta * v(r) - delta))


def sppo_hard(r, still, beta):
    return (u(r) - 1 / (2 * beta)) ** 2 + (v(r) + 1 / (2 * beta)) ** 2


def apo_zero(r, still, beta):
    return 1 - s(beta * u(r)) + s(beta * v(r))


def apo_down(r, still, beta):
    return s(beta * u(r)) + 1 - s(beta * h(r))


def discopop(r, still, beta, tau):
    x = beta * h(r)
    return (1 - s(x / tau)) * L(x) + s(x / tau) * exp(-x)


def dpop(r, still, beta, lam):
    return L(beta * (h(r) - lam * max(mpf(0), r.R_w - r.S_w)))


def rdpo(r, still, beta, alpha):
    return L(beta * h(r) + alpha * (r.n_w - r.n_l))


def wpo(r, still, beta, clamp=True):
    w = exp((still.S_w - still.C_w) / still.n_w) * exp((still.S_l - still.C_l) / still.n_l)
    return (min(w, mpf(1)) if clamp else w) * L(beta * h(r))


def tdpo1(r, still, beta):
    return L(beta * (h(r) - (r.K_l - r.K_w)))


def tdpo2(r, still, beta, alpha):
    return L(beta * (h(r) - alpha * (r.K_l - still.K_w)))


def cal_dpo(r, still, beta, cal_weight):
    return L(h(r)) + cal_weight * ((u(r) - 1 / (2 * beta)) ** 2 + (v(r) + 1 / (2 * beta)) ** 2)


def chi(r, beta, r_max):
    def phi(z):
        return z + log(z)

    return clip(beta * phi(exp(u(r))) - beta * phi(exp(v(r))), 2 * r_max)


def chipo(r, still, beta, r_max):
    return L(chi(r, beta, r_max))


def square_chipo(r, still, beta, r_max=None):
    return (s(beta * h(r) if r_max is None else chi(r, beta, r_max)) - 1) ** 2 / 2


def odpo(r, still, beta, offset=None):
    return L(beta * h(r) - (r.margin if offset is None else offset))


def hdpo(r, still, beta, alpha):
    return L(beta * (alpha * (r.S_w - r.S_l) - (r.R_w - r.R_l)))


def gpo_exponential(r, still, beta):
    return exp(-beta * h(r))


def fdpo(r, still, beta, divergence, alpha):
    derivative = {
        "reverse_kl": lambda t: log(t),
        "forward_kl": lambda t: -1 / t,
        "js": lambda t: log(2 * t / (1 + t)),
        "alpha": lambda t: (1 - t**-alpha) / alpha,
    }[divergence]
    return L(beta * derivative(exp(u(r))) - beta * derivative(exp(v(r))))


def simpo(r, still, beta, gamma):
    return L(beta * a(r)[0] - beta * a(r)[1] - gamma)


def alphapo(r, still, beta, gamma, alpha):
    w, l = (x if alpha == 0 else (1 - exp(-alpha * x)) / alpha for x in a(r))  # noqa: E741
    return L(beta * w - beta * l - gamma)


def cpo(r, still, beta, nll_weight):
    return L(beta * (r.S_w - r.S_l)) + nll_weight * sft(r, still)


def orpo(r, still, lam):
    odds = [exp(x) / (1 - exp(x)) for x in a(r)]
    return sft(r, still) + lam * L(log(odds[0] / odds[1]))


def slic(r, still, delta, lam):
    return max(mpf(0), delta - r.S_w + r.S_l) - lam * r.S_w


def simper(r, still):
    return -exp(a(r)[0]) + exp(a(r)[1])


def sft(r, still):
    return -r.S_w / r.n_w


def rpo(r, still, beta, nll_weight):
    return L(beta * h(r)) + nll_weight * sft(r, still)


def mpo(r, still, beta, wp, wq, wg):
    return wp * L(beta * h(r)) + wq * bco_pair(r, still, beta) + wg * sft(r, still)


PAIRWISE = {
    name: f
    for name, f in dict(globals()).items()
    if callable(f) and getattr(f, "__code__", None) and f.__code__.co_varnames[:2] == ("r", "still")
}
PAIRWISE["cdpo"] = dpo


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def aot(batch, still, beta, label_smoothing):
    """Sort both lists of differences and subtract rank by rank."""
    policy, reference = sorted(r.S_w - r.S_l for r in batch), sorted(r.R_w - r.R_l for r in batch)
    return mean(smoothed(beta * (p - q), label_smoothing) for p, q in zip(policy, reference, strict=True))


def aot_unpaired(batch, still, beta, label_smoothing):
    return mean(
        smoothed(beta * (p - q), label_smoothing)
        for p, q in zip(sorted(map(u, batch)), sorted(map(v, batch)), strict=True)
    )


def kto_pair(batch, still, beta):
    z_w, z_l = max(mpf(0), mean(map(u, still))), max(mpf(0), mean(map(v, still)))
    examples = [1 - s(beta * (u(r) - z_l)) for r in batch] + [1 - s(beta * (z_w - v(r))) for r in batch]
    return mean(examples)


def beta_dpo(batch, still, beta, a, m0, drop=0):
    """Only the pairs nearest to m0 count, in the mean gap and in the loss."""
    nearest = sorted(range(len(batch)), key=lambda i: abs(h(still[i]) - m0))
    kept = nearest[: len(batch) - int(drop * len(batch))]
    adapted = max(mpf("0.001"), beta * (1 + a * (mean(h(still[i]) for i in kept) - m0)))
    return mean(L(adapted * h(batch[i])) for i in kept)


def dr_dpo(batch, still, beta, beta_prime):
    return -beta_prime * log(mean(exp(-L(beta * h(r)) / beta_prime) for r in batch))


BATCHWISE = dict(aot=aot, aot_unpaired=aot_unpaired, kto_pair=kto_pair, beta_dpo=beta_dpo, dr_dpo=dr_dpo)
