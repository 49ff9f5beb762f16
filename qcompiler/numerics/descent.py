"""Coordinate descent on the codes of a weight and the ranges of its groups: what GPTQ leaves, since
it never looks back.

The error of a layer's output is quadratic in what the codes stand for. With G = C - H Ŵ, where
H = Xᵀ X and C is what H Ŵ should be, and all other channels as they are, the least-squares answer

    of the channels of a group is    ŵ_g + H_gg⁻¹ G_g
    of one channel is                ŵ_k + G_k / H_kk

So group after group takes the range, of those near the one it has (other multiples of the column's
unit, other zero points), whose codes next to the first answer have the least error. Then channel
after channel each code moves to the grid point next to the second. After a sweep the unit of every
column takes its own least-squares value, s1 · Σ ŵ C / Σ ŵ (H ŵ). No step makes the error larger.

Source of the steps of codes: QuantEase, arXiv 2309.01885, here started from GPTQ's codes and with
its dampening. Those of ranges and units are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.formats import WeightFormat
from qcompiler.numerics.gptq import BLOCK, Double, Moments
from qcompiler.numerics.levels import inward, nearest
from qcompiler.numerics.parallel import column_parts, mapped
from qcompiler.numerics.progressive import code_reach, storable_units, units
from qcompiler.numerics.rounding import QuantizedWeight, joined

_ASIDE = (0, -1, 1, -2, 2, -4, 4)
"""Multiples of a group that are tried, from the one it has."""


def descend(
    weight: NDArray[Any],
    start: QuantizedWeight,
    statistics: Moments,
    *,
    dampening: float = 0.01,
    alpha: float = 0.0,
    sweeps: int = 2,
) -> QuantizedWeight:
    """Better codes, scales and zero points than those of `start`, for a K × N `weight`.

    The target is the weight's own output, or with `alpha` (and `statistics.drift`) moved by that
    share towards the float model's. Channels that are zero throughout the data count as little as
    dampening makes them. Codes of 8 bits keep their scales.
    """
    damped = _damped(statistics.hessian, dampening)
    unit = units(weight, start.form) if start.form.narrow else start.scales[0]
    inverses = _inverses(damped, start)

    def descended(part: slice) -> QuantizedWeight:
        w = np.asarray(weight[:, part], np.float64)
        target = damped @ w
        if alpha and statistics.drift is not None:
            target += alpha * (statistics.drift.T @ w)
        state = _State.of(start.columns(part), unit[part].astype(np.float64), damped, target)
        for _ in range(sweeps):
            state.sweep(damped, inverses)
            if state.form.narrow:
                state.refit()
        return state.weight()

    return joined(list(mapped(descended, column_parts(*weight.shape))))


def _damped(hessian: Double, dampening: float) -> Double:
    diagonal = np.diagonal(hessian)
    least = dampening * float(np.mean(diagonal)) or 1.0
    damped = hessian.copy()
    damped[np.diag_indices_from(damped)] = np.where(
        diagonal > 0.0, diagonal * (1.0 + dampening), least
    )
    return damped


def _inverses(damped: Double, start: QuantizedWeight) -> list[Double]:
    """H_gg⁻¹ of every group; none where ranges stay as they are."""
    if not start.form.grouped:
        return []
    firsts = range(0, len(damped), start.block)
    rows = (slice(first, first + start.block) for first in firsts)
    return [np.asarray(np.linalg.inv(damped[each, each]), np.float64) for each in rows]


@dataclass
class _State:
    """Some columns of a weight in the making: all are whole numbers but `unit` and the last two."""

    form: WeightFormat
    block: int
    codes: Double
    """[K, n]."""
    multiples: Double
    """[G, n], of the unit; negative where scales are."""
    zeros: Double
    """[G, n]."""
    unit: Double
    """[n]."""
    target: Double
    """[K, n]: C."""
    gradient: Double
    """[K, n]: C - H Ŵ."""

    @classmethod
    def of(cls, start: QuantizedWeight, unit: Double, damped: Double, target: Double) -> _State:
        zeros = np.full(start.scales.shape, float(start.form.middle))
        if start.zero_points is not None:
            zeros = start.zero_points.astype(np.float64)
        made = cls(
            start.form,
            start.block,
            start.codes.astype(np.float64),
            np.rint(start.scales / unit),
            zeros,
            unit,
            target,
            target,
        )
        made.gradient = target - damped @ made._values(slice(0, len(target)))
        return made

    def weight(self) -> QuantizedWeight:
        scales = (self.multiples * self.unit).astype(np.float32)
        return QuantizedWeight(
            self.codes.astype(np.uint8),
            scales,
            None if self.form.symmetric else self.zeros.astype(np.uint8),
            self.form,
            code_reach(scales, self.unit.astype(np.float32)),
        )

    def sweep(self, damped: Double, inverses: Sequence[Double]) -> None:
        for rows in self._blocks():
            before = self._values(rows)
            within = damped[rows, rows]
            for first in range(rows.start, rows.stop, self.block) if inverses else ():
                group = slice(first, min(first + self.block, rows.stop))
                self._search(rows, group, within, inverses[first // self.block])
            for first in range(rows.start, rows.stop, BLOCK):
                self._move(rows, slice(first, min(first + BLOCK, rows.stop)), within)
            moved = self._values(rows) - before
            for others in (slice(0, rows.start), slice(rows.stop, len(damped))):
                self.gradient[others] -= damped[others, rows] @ moved

    def refit(self) -> None:
        """The units of least error, as they can be stored."""
        values = self._values(slice(0, len(self.codes)))
        wanted = np.sum(values * self.target, axis=0)
        found = np.sum(values * (self.target - self.gradient), axis=0)
        ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0.0)
        ratio = np.where(ratio > 0.5, np.minimum(ratio, 2.0), 1.0)
        ratio = storable_units(self.unit * ratio) / self.unit
        worse = np.square(ratio) * found - 2.0 * ratio * wanted > found - 2.0 * wanted
        ratio[worse] = 1.0
        self.unit = self.unit * ratio
        self.gradient = self.target - ratio * (self.target - self.gradient)

    def _blocks(self) -> Iterator[slice]:
        """Rows whose changes reach the rest together: whole groups, where these are small."""
        count = len(self.codes)
        size = self.block * max(1, BLOCK // self.block) if self.form.grouped else BLOCK
        return (slice(first, min(first + size, count)) for first in range(0, count, size))

    def _values(self, rows: slice) -> Double:
        """What the codes of some rows stand for."""
        groups = np.arange(rows.start, rows.stop) // self.block
        scales = self.multiples * self.unit
        return (self.codes[rows] - self.zeros[groups]) * scales[groups]

    def _search(self, rows: slice, group: slice, within: Double, inverse: Double) -> None:
        """Take the best of the ranges that a group may have; the gradient of `rows` follows."""
        local = slice(group.start - rows.start, group.stop - rows.start)
        at, own, near = group.start // self.block, within[local, local], self.gradient[rows]
        values = self._values(group)
        answer = values + inverse @ near[local]

        def cost(tried: Double) -> Double:
            error = tried - answer
            return np.asarray(np.einsum("kn,kn->n", error, own @ error), np.float64)

        least, multiple, zero = cost(values), self.multiples[at].copy(), self.zeros[at].copy()
        found = np.zeros(len(least), np.bool_)
        for m, z in self._ranges(at):
            tried = (self._nearest(answer, m, z) - z) * (m * self.unit)
            error = cost(tried)
            better = error < least
            found |= better
            least[better], multiple[better], zero[better] = error[better], m[better], z[better]
        if not found.any():
            return
        codes = self._nearest(answer[:, found], multiple[found], zero[found], self.unit[found])
        self.codes[group, found] = codes
        self.multiples[at], self.zeros[at] = multiple, zero
        near -= within[:, local] @ (self._values(group) - values)

    def _ranges(self, at: int) -> Iterator[tuple[Double, Double]]:
        """Multiples and zero points [n] that a group may have, near those that it has."""
        sizes, signs = np.abs(self.multiples[at]), np.sign(self.multiples[at])
        zero = self.zeros[at]
        zeros = [zero]
        if not self.form.symmetric:
            first, last = self.form.zeros[0], self.form.zeros[-1]
            zeros += [np.clip(zero + aside, first, last) for aside in (-1, 1)]
        for aside in _ASIDE:
            multiple = signs * np.clip(sizes + aside, 1, self.form.most_multiple)
            for each in zeros:
                yield multiple, each

    def _nearest(
        self, values: Double, multiple: Double, zero: Double, unit: Double | None = None
    ) -> Double:
        """The codes next to values [k, n] in a range [n]."""
        codes = values / (multiple * (self.unit if unit is None else unit))
        codes += zero
        return nearest(codes, *self._limits(multiple, zero), self.form)

    def _limits(self, multiple: Double, zero: Double) -> tuple[Double, Double]:
        top = float(self.form.top)
        reach = 127 // np.abs(multiple)
        return inward(np.maximum(zero - reach, 0.0), np.minimum(zero + reach, top), self.form)

    def _move(self, rows: slice, part: slice, within: Double) -> None:
        """Move the codes of `part`, some of `rows`, one channel after the other; the gradient of
        `rows` follows."""
        local = slice(part.start - rows.start, part.stop - rows.start)
        near, own = self.gradient[part], within[local, local]
        moved = np.zeros_like(near)
        for i, k in enumerate(range(part.start, part.stop)):
            at = k // self.block
            scale = self.multiples[at] * self.unit
            wanted = self.codes[k] + near[i] / (own[i, i] * scale)
            code = nearest(wanted, *self._limits(self.multiples[at], self.zeros[at]), self.form)
            changed = np.flatnonzero(code != self.codes[k])
            if changed.size:
                delta = (code[changed] - self.codes[k, changed]) * scale[changed]
                self.codes[k, changed] = code[changed]
                moved[i, changed] = delta
                near[:, changed] -= np.multiply.outer(own[:, i], delta)
        whole = self.gradient[rows]
        for others in (slice(0, local.start), slice(local.stop, len(whole))):
            whole[others] -= within[others, local] @ moved
