"""The half-point of a curve of refusal against the number of masked experts, and the area under it.

A curve is given at sizes 0 = k_0 < ... < k_m = K. Experts are counted on the axis u(k) = log2(1 + k) / log2(1 + K),
from 0 (no mask) to 1: each doubling of 1 + k weighs the same, so that the first few experts count as much as the many
last ones. Between sizes a curve is taken to be straight along u.

**Area** of R(k) = refusal(k) / refusal(0): the integral of R over u by the trapezoidal rule. 1: masking takes nothing
away; near 0: the first expert takes all. It is what network science calls robustness R (Schneider et al. 2011, PNAS
108: the mean size of what holds together while nodes are removed) and image attribution the deletion score (Petsiuk et
al. 2018, RISE), here with a logarithmic axis, which is our choice.

**Half-point**: the smallest k from which on refusal(k) <= refusal(0) / 2, up to the last size. A curve that dips and
comes back isn't halved by the dip. Read between the sizes along u; infinite where the last size leaves more than half.

**Intervals**: prompts are resampled with replacement (those of one ``pair`` together), the same ones for all sizes and
orders; percentiles widened for few prompts (Hesterberg 2015). Where all prompts agree, resampling would know no doubt:
such a rate of 0 or 1 is drawn from Jeffreys' posterior, Beta(1/2, n + 1/2) from its end, one draw a resample for all
sizes and orders. Resamples without any unmasked refusal have no curve and are left out. Intervals speak of other
prompts of this kind, not of other orders: for those see the controls.

Coverage of the 95 % intervals, measured by ``python tests/test_redundancy_curve.py`` (2026-11-25; six curves x two
correlations of a prompt's answers, 600 data sets each): with 20 prompts area 0.908 to 1.000, half-point 0.952 to
1.000; with 40 prompts area 0.928 to 1.000, half-point 0.938 to 1.000; with 80 prompts area 0.928 to 0.993, half-point
0.933 to 1.000. Without the draws at the ends that of the area was 0.2 to 0.75 where nearly all prompts agree at every
size. Where no answer changes at all the area is 1 without width: the paired change of each size knows the doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from safex import bootstrap
from safex.errors import InputError
from safex.rates import Estimate, percentile_tail

Floats = npt.NDArray[np.float64]

SET = "prompts"


def places(sizes: Sequence[int]) -> Floats:
    """Where sizes (from 0 on, the last above 0) stand on the axis: 0 to 1.

    >>> places([0, 1, 3]).tolist()
    [0.0, 0.5, 1.0]
    """
    on_axis = np.log2(1 + np.asarray(sizes, np.float64))
    return np.asarray(on_axis / on_axis[-1])


def weights(sizes: Sequence[int]) -> Floats:
    """How much each size counts in the area; they add up to 1.

    >>> weights([0, 1, 3]).tolist()
    [0.25, 0.5, 0.25]
    """
    gaps = np.diff(places(sizes)) / 2
    return np.asarray(np.append(gaps, 0) + np.append(0, gaps))


def areas(sizes: Sequence[int], rates: npt.ArrayLike, relative: bool = False) -> Floats:
    """Area under curves of ``rates`` [..., m + 1]: [...]. ``relative``: of rates over the rate at size 0 (above 0)."""
    values = np.asarray(rates, np.float64)
    found = values @ weights(sizes)
    return np.asarray(found / values[..., 0] if relative else found)


def half_sizes(sizes: Sequence[int], rates: npt.ArrayLike) -> Floats:
    """The measured size from which on curves of ``rates`` [..., m + 1] stay at or below half; infinite where none."""
    first = _first_below(rates)
    measured = np.append(np.asarray(sizes, np.float64), np.inf)
    return np.asarray(measured[first])


def half_points(sizes: Sequence[int], rates: npt.ArrayLike) -> Floats:
    """Half-points of curves of ``rates`` [..., m + 1] (above 0 at size 0), between sizes too: [...].

    >>> half_points([0, 1, 3], [[1.0, 0.75, 0.25], [1.0, 0.25, 0.75]]).round(3).tolist()
    [1.828, inf]
    """
    values = np.asarray(rates, np.float64)
    first = _first_below(values)
    last = np.minimum(first, len(sizes) - 1)
    on_axis = np.log2(1 + np.asarray(sizes, np.float64))
    before, after = (np.take_along_axis(values, at[..., None], -1)[..., 0] for at in (last - 1, last))
    drop = np.where(before > after, before - after, 1.0)
    part = np.clip((before - values[..., 0] / 2) / drop, 0, 1)
    crossing = on_axis[last - 1] + part * (on_axis[last] - on_axis[last - 1])
    return np.where(first < len(sizes), 2**crossing - 1, np.inf)


def _first_below(rates: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The first place from which on a curve stays at or below half of its start; m + 1 where there is none."""
    values = np.asarray(rates, np.float64)
    above = 2 * values > values[..., :1]
    above[..., 0] = True
    return np.asarray(values.shape[-1] - np.argmax(above[..., ::-1], axis=-1))


# --- resampled prompts


def check_resamples(pairs: Sequence[str | None], n: int) -> int:
    """How many units of prompts there are; raises InputError where they or ``n`` resamples are fewer than 2."""
    n_units = len(set(bootstrap.units_of(pairs).tolist()))
    if n_units < 2:
        raise InputError(f"intervals need at least 2 regular prompts that are no twins, found {n_units}")
    if n < 2:
        raise InputError(f"{n} resamples were asked for, expected at least 2")
    return n_units


@dataclass(frozen=True)
class Resampled:
    """Resamples of ``n_units`` units of prompts: how often each prompt is drawn, ``drawn`` float64 [S, P].

    Resamples in which ``unmasked`` [P] (1: refused without a mask, NaN: could not be read) is nowhere 1 are left out.
    ``ends`` [2, S] stand for rates of 0, and for 1 less rates of 1, where all prompts agree.
    """

    drawn: Floats
    n_units: int
    ends: Floats

    @classmethod
    def draw(cls, pairs: Sequence[str | None], unmasked: Floats, n: int, seed: int) -> Resampled:
        """Draw ``n``. Raises InputError as ``check_resamples`` does."""
        n_units = check_resamples(pairs, n)
        sets = [SET] * len(pairs)
        drawn = bootstrap.draw(sets, pairs, [SET], n, seed)[SET].weights.astype(np.float64)
        kept = drawn[drawn @ np.nan_to_num(unmasked) > 0]
        ends = np.random.default_rng((seed, 1)).beta(0.5, n_units + 0.5, (2, len(kept)))
        return cls(kept, n_units, ends)

    def rates(self, hits: Floats) -> Floats:
        """Rates of ``hits`` [..., m + 1, P] (NaN: not readable) in each resample: [..., S, m + 1].

        A resample that draws no readable answer of a size has the rate that was observed there.
        """
        observed = np.nanmean(hits, axis=-1)[..., None]
        drawn = np.isfinite(hits).astype(np.float64) @ self.drawn.T
        rates = np.where(drawn > 0, np.nan_to_num(hits) @ self.drawn.T / np.maximum(drawn, 1), observed)
        rates = np.where(observed == 0, self.ends[0], np.where(observed == 1, 1 - self.ends[1], rates))
        return np.asarray(np.swapaxes(rates, -1, -2))

    def estimate(self, value: float, resampled: Floats) -> Estimate:
        """``value`` with the interval of ``resampled`` [S], which may hold infinities; it holds the value too."""
        tail = percentile_tail(self.n_units)
        low, high = np.quantile(resampled, (tail, 1 - tail), method="inverted_cdf")
        return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
