"""Intervals by resampling: what a mean over sequences could have been with other sequences.

Axes: sequence = independent units; the remaining axes are whatever is measured on each.
Source: Efron 1979, percentile interval.
"""

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
DRAWS = 1000


def bootstrap_mean(
    values: Float[np.ndarray, "sequence *any"], *, seed: int, level: float = LEVEL, draws: int = DRAWS
) -> tuple[Float[np.ndarray, "*any"], Float[np.ndarray, "*any"], Float[np.ndarray, "*any"]]:
    """Return mean, low and high of the mean over sequences, by resampling whole sequences.

    One sequence says nothing about others: low and high are then NaN. A draw is a multinomial count of how
    often each sequence is taken, so that all draws of all columns are one matrix product.
    """
    n = len(values)
    if n < 2:
        unknown = np.full(values.shape[1:], np.nan)
        return values.mean(0), unknown, unknown
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    means = np.tensordot(weights, values, axes=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return values.mean(0), low, high
