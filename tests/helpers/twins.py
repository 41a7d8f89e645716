"""A second implementation of the mathematics: float64 numpy, one formula to a line, no torch.

Written from the formulas of the papers as they stand there, not from the code under test, and as
slow and plain as they read. ``t`` is a total noise level, ``s`` that of the data, ``D`` a denoiser
D(x, t). States are [b, d], levels [b].
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.stats import norm


def column(levels):
    return np.asarray(levels, dtype=np.float64)[:, None]


# EDM (arXiv:2206.00364), Table 1 and Eqs. 5 and 7.


def preconditioned(F, x, t, sd):
    """D(x; t) of a raw network F(x, c_noise)."""
    t = column(t)
    c_skip = sd**2 / (t**2 + sd**2)
    c_out = t * sd / np.sqrt(t**2 + sd**2)
    c_in = 1 / np.sqrt(sd**2 + t**2)
    return c_skip * x + c_out * F(c_in * x, np.log(t[:, 0]) / 4)


def karras_grid(N, lowest, highest, rho):
    i = np.arange(N)
    return (
        highest ** (1 / rho) + i / (N - 1) * (lowest ** (1 / rho) - highest ** (1 / rho))
    ) ** rho


# Laws of levels: DSD (arXiv:2503.07578) as its authors run it, and SiD (arXiv:2404.04057).


def clamped_level(u, s, P_mean=-1.2, P_std=1.2):
    """From a standard normal ``u``."""
    return np.maximum(np.exp(P_mean + P_std * u), s)


def truncated_level(p, s, P_mean=-1.2, P_std=1.2):
    """From a uniform ``p``: the p-th quantile of the log-normal above ``s``."""
    lowest = norm.cdf((np.log(s) - P_mean) / P_std)
    return np.exp(P_mean + P_std * norm.ppf(lowest + p * (1 - lowest)))


def generator_level(r, lowest, highest, rho):
    """From r uniform on [0, tmax / 1000]."""
    low, high = lowest ** (1 / rho), highest ** (1 / rho)
    return (high + (1 - r) * (low - high)) ** rho


# The teacher's objective: ambient Tweedie.


def edm_weight(t, s, sd):
    return (t**2 + sd**2) / (t * sd) ** 2


def omni_weight(t, s, sd):
    """EDM's, with the factor that undoes the shrinking of D in h, kept below 100."""
    return edm_weight(t, s, sd) * np.minimum(t**4 / (t**2 - s**2) ** 2, 100)


def inverse_variance_weight(t, s, sd):
    """One over the variance of h - y for Gaussian data of deviation sd and their exact D.

    y and x_t are jointly Gaussian then: this is Var(y | x_t).
    """
    var_y, var_x = sd**2 + s**2, sd**2 + t**2
    return 1 / (var_y - var_y**2 / var_x)


WEIGHTS = {
    "edm": edm_weight,
    "ambient-omni": omni_weight,
    "inverse-variance": inverse_variance_weight,
}


def adjusted_loss(D, y, s, t, n, weight, sd):
    """w(t) |h - y|^2, the mean over pixels, for each image."""
    T, S = column(t), column(s)
    x_t = y + np.sqrt(T**2 - S**2) * n
    h = (T**2 - S**2) / T**2 * D(x_t, t) + S**2 / T**2 * x_t
    return weight(t, s, sd) * np.mean((h - y) ** 2, axis=1)


def reverse_mean_and_variance(x, x0, t, t_low):
    """Of p(x_low | x, x0), by Bayes' rule from x_low = x0 + t_low e and x = x_low + rest."""
    rest = t**2 - t_low**2
    precision = 1 / t_low**2 + 1 / rest
    return (x0 / t_low**2 + x / rest) / precision, 1 / precision


# The generator's objectives: SiD (arXiv:2404.04057), DMD (arXiv:2311.18828), SDS (2209.14988).


def error_scale(x_g, f_r):
    """omega."""
    return np.maximum(np.mean(np.abs(x_g - f_r), axis=1), 1e-5)


def sid_loss(x_g, f_r, f_f, alpha, omega):
    """The sum over pixels, for each image."""
    return np.sum((f_r - f_f) * ((f_r - x_g) - alpha * (f_r - f_f)), axis=1) / omega


def dmd_loss(x_g, f_r, f_f, x_g_here):
    """The authors' surrogate 1/2 |x_g - (x_g - g)|^2 with everything but the first x_g held."""
    g = (f_f - f_r) / error_scale(x_g_here, f_r)[:, None]
    return 0.5 * np.sum((x_g - (x_g_here - g)) ** 2, axis=1)


def sds_loss(x_g, f_r, x_g_here):
    """The same with the image itself in the place of f_f."""
    return dmd_loss(x_g, f_r, x_g_here, x_g_here)


def central_difference(function, x, step=1e-6):
    """Gradient of a scalar function of an array."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


# Samplers: EDM's Algorithms 1 and 2, with the two ways to stop early.


class Sampled(NamedTuple):
    full: np.ndarray
    truncated: np.ndarray
    exact: np.ndarray
    calls: tuple[int, int, int]


def euler_step(D, x, t, t_next):
    d = (x - D(x, t)) / t
    return x + (t_next - t) * d, 1


def heun_step(D, x, t, t_next):
    d = (x - D(x, t)) / t
    x_next = x + (t_next - t) * d
    if t_next == 0:
        return x_next, 1
    d_next = (x_next - D(x_next, t_next)) / t_next
    return x + (t_next - t) * (0.5 * d + 0.5 * d_next), 2


STEPS = {"euler": euler_step, "heun": heun_step}


def sample(D, z, levels, s, method, churn=(0.0, 0.0, np.inf, 1.0), noise=None):
    """Three separate runs; ``levels`` ends above 0, ``noise`` is one array for each step."""
    levels, step = [*levels, 0.0], STEPS[method]
    runs = [_run(D, z, levels, s, step, churn, noise, stop) for stop in ("", "before", "at")]
    return Sampled(*(x for x, _ in runs), tuple(calls for _, calls in runs))


def _run(D, z, levels, s, step, churn, noise, stop):
    S_churn, S_min, S_max, S_noise = churn
    x, calls = levels[0] * z, 0
    for i, (t, t_next) in enumerate(pairwise(levels)):
        gamma = min(S_churn / (len(levels) - 1), np.sqrt(2) - 1) if S_min <= t <= S_max else 0
        t_hat = t + gamma * t
        if gamma > 0:
            x = x + np.sqrt(t_hat**2 - t**2) * S_noise * noise[i]
        if t_next < s and stop == "before":
            return D(x, t_hat), calls + 1
        if t_next < s and stop == "at":
            if t_hat == s:
                return D(x, t_hat), calls + 1
            x, more = step(D, x, t_hat, s)
            return D(x, s), calls + more + 1
        x, more = step(D, x, t_hat, t_next)
        calls += more
    return x, calls
