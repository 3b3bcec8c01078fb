# SPDX-License-Identifier: Apache-2.0
"""Which training pairs to learn from, decided by their losses (RDE, CVPR 2024).

A mixture of two normal distributions is fitted to the losses of all pairs: those that
the lower one explains are kept. Two embeddings vote, and a coin decides where they
disagree. Everything is deterministic, in float64 on the host.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipeline.order import COINS, random_words

EPSILON = np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How long a mixture is fitted, in scikit-learn's terms.

    Attributes:
        rounds: At most (max_iter).
        tolerance: Stop once the mean log-likelihood changes by less (tol).
        floor: Added to the variances (reg_covar).
    """

    rounds: int
    tolerance: float
    floor: float


FITTINGS = {
    "loose": Fitting(rounds=10, tolerance=1e-2, floor=5e-4),
    "tight": Fitting(rounds=100, tolerance=1e-4, floor=1e-6),
}
"""RDE fits loosely, and tightly above 40 % noise and on RSTPReid."""


@dataclass(frozen=True)
class Mixture:
    """Two normal distributions, the one with the lower mean first.

    Attributes:
        shares: Of the values, summing to 1.
        means: Ascending.
        variances: Above 0.
        rounds: That the fit took.
        converged: Whether it stopped before the last round that it was given.
        likelihood: Mean log-likelihood in the last round.
    """

    shares: Float[np.ndarray, "2"]
    means: Float[np.ndarray, "2"]
    variances: Float[np.ndarray, "2"]
    rounds: int = 0
    converged: bool = False
    likelihood: float = -np.inf

    def low(self, x: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        """Probability that the lower distribution drew each value.

        Not monotone in x where the variances differ: the wider one may claim the least.
        """
        return _expect(self, x)[0][:, 0]


def check_finite(losses: Float[np.ndarray, " p"], pairs: Int[np.ndarray, " p"]) -> None:
    """Refuse losses that no mixture can be fitted to.

    Args:
        losses: Of some pairs.
        pairs: Their numbers, for the message.

    Raises:
        ValueError: If a loss is not finite.
    """
    broken = np.flatnonzero(~np.isfinite(losses))
    if len(broken):
        raise ValueError(
            f"the losses of {len(broken)} of {len(losses)} pairs are not finite, "
            f"first that of pair {pairs[broken[0]]}: the division of the pairs wants "
            "finite losses; lower the learning rate, or resume before the model broke"
        )


def unit_range(losses: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Losses moved to 0..1; all 0 where they are one value.

    Raises:
        ValueError: If a loss is not finite.
    """
    losses = np.asarray(losses, np.float64)
    check_finite(losses, np.arange(len(losses)))
    span = np.ptp(losses)
    return (losses - losses.min()) / span if span > 0 else np.zeros_like(losses)


def fit(
    x: Float[np.ndarray, " p"],
    start: Bool[np.ndarray, " p"] | None = None,
    fitting: Fitting = FITTINGS["loose"],
) -> Mixture:
    """Fit a mixture by expectation maximisation, as scikit-learn's GaussianMixture.

    Args:
        x: Values, not all of them equal.
        start: Which values begin in the lower distribution; None: see `two_means`.
        fitting: When to stop.
    """
    low = two_means(x) if start is None else start
    shares, means, variances = _maximise(np.stack([low, ~low], 1) * 1.0, x, fitting)
    mixture, before = Mixture(shares, means, variances), -np.inf
    for number in range(1, fitting.rounds + 1):
        owners, likelihood = _expect(mixture, x)
        converged = abs(likelihood - before) < fitting.tolerance
        mixture = Mixture(*_maximise(owners, x, fitting), number, converged, likelihood)
        if converged:
            break
        before = likelihood
    return _ascending(mixture)


def two_means(x: Float[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
    """Which values belong to the lower of two groups with the least squares within.

    The best split there is, which scikit-learn's k-means looks for from a random start.
    Equal values stay together.
    """
    ordered = np.sort(x)
    size, total = np.arange(1, len(x)), np.cumsum(ordered)
    rest = total[-1] - total[:-1]
    between = total[:-1] ** 2 / size + rest**2 / (len(x) - size)
    between[ordered[1:] == ordered[:-1]] = -1
    return x <= ordered[np.argmax(between)]


def credible(probability: Float[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
    """Pairs to keep by the probability that their loss is of the lower kind.

    Above one half; where all are, the hundredth part of the pairs with the lowest
    probability, one more and all that tie with it are left out, as in the official code
    (even if that is all of them).
    """
    threshold = 0.5
    if probability.min() > threshold:
        threshold = np.sort(probability)[len(probability) // 100]
    return probability > threshold


def kept(
    losses: Float[np.ndarray, " p"], fitting: Fitting = FITTINGS["loose"]
) -> Bool[np.ndarray, " p"]:
    """Pairs that their losses speak for; equal losses speak against none.

    Args:
        losses: Of all training pairs.
        fitting: Of the mixture.

    Raises:
        ValueError: If a loss is not finite.
    """
    x = unit_range(losses)
    if not x.any():
        return np.ones(len(x), bool)
    return credible(fit(x, fitting=fitting).low(x))


def consensus(
    one: Bool[np.ndarray, " p"],
    other: Bool[np.ndarray, " p"],
    coins: Bool[np.ndarray, " p"],
) -> Bool[np.ndarray, " p"]:
    """Pairs that both keep, and those of one alone where the coin says so."""
    return np.where(one == other, one, coins)


def coins(seed: int, epoch: int, pairs: int) -> Bool[np.ndarray, " p"]:
    """A fair coin for each pair, by (seed, epoch, number of the pair) alone."""
    return random_words(pairs, seed, COINS, epoch) >> np.uint64(63) == 1


def division(
    bge: Float[np.ndarray, " p"],
    tse: Float[np.ndarray, " p"],
    coins: Bool[np.ndarray, " p"],
    fitting: Fitting = FITTINGS["loose"],
) -> Bool[np.ndarray, " p"]:
    """Confident consensus division: the pairs to learn from in an epoch.

    Args:
        bge: Loss of each pair on the global embedding.
        tse: Loss of each pair on the embedding of selected tokens.
        coins: For the pairs on which the two disagree, see `coins`.
        fitting: Of both mixtures.

    Raises:
        ValueError: If a loss is not finite.
    """
    return consensus(kept(bge, fitting), kept(tse, fitting), coins)


def _expect(
    mixture: Mixture, x: Float[np.ndarray, " p"]
) -> tuple[Float[np.ndarray, "p 2"], float]:
    """How much of each value either distribution owns, and the mean log-likelihood."""
    square = (x[:, None] - mixture.means) ** 2 / mixture.variances
    log_density = -(np.log(2 * np.pi * mixture.variances) + square) / 2
    log_joint = log_density + np.log(mixture.shares)
    log_total = np.logaddexp(log_joint[:, 0], log_joint[:, 1])
    return np.exp(log_joint - log_total[:, None]), float(log_total.mean())


def _maximise(
    owners: Float[np.ndarray, "p 2"], x: Float[np.ndarray, " p"], fitting: Fitting
) -> tuple[Float[np.ndarray, "2"], ...]:
    """Shares, means and variances of the values as they are owned."""
    count = owners.sum(axis=0) + 10 * EPSILON
    means = x @ owners / count
    spread = (owners * (x[:, None] - means) ** 2).sum(axis=0) / count
    return count / count.sum(), means, spread + fitting.floor


def _ascending(mixture: Mixture) -> Mixture:
    """The same mixture, its lower distribution first."""
    order = np.argsort(mixture.means, kind="stable")
    parts = (mixture.shares, mixture.means, mixture.variances)
    rest = (mixture.rounds, mixture.converged, mixture.likelihood)
    return Mixture(*(part[order] for part in parts), *rest)
