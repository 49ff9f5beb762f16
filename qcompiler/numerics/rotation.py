"""Orthogonal matrices that spread the outliers of a channel over all channels.

X ← X·R, W ← Rᵀ·W leaves X·W as it was. Notation: R an n × n matrix with R·Rᵀ = I; a vector turns
as v ← v·R. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Kind = Literal["auto", "hadamard", "random"]
Seed = int | Sequence[int]

_ROWS = 4096
"""Vectors turned at a time, so that the float64 copies stay small."""


def has_hadamard(n: int) -> bool:
    """Whether `hadamard` can build a matrix of size n: 2^k times 1 or an order of Paley's."""
    return _construction(n) is not None


def hadamard(n: int) -> Float:
    """A Hadamard matrix [n, n] of entries ±1/√n, orthogonal.

    Sylvester's doubling down to the smallest order that Paley's constructions over the integers
    modulo a prime give: 576 = 36·16, 896 = 28·32. ValueError where they give none. Source: Paley,
    On Orthogonal Matrices, J. Math. Phys. 12, 1933.
    """
    found = _construction(n)
    if found is None:
        raise ValueError(f"no Hadamard matrix of size {n} is known here")
    base, doublings = found
    signs = _paley(base)
    for _ in range(doublings):
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs / np.sqrt(n)


def randomized_hadamard(n: int, seed: Seed) -> Float:
    """diag(s)·H with random signs s [n]: channels that are alike no longer add up in one.

    ValueError where there is no Hadamard matrix. Source: QuaRot, arXiv 2404.00456.
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], n)
    return signs[:, None] * hadamard(n)


def random_orthogonal(n: int, seed: Seed) -> Float:
    """An orthogonal matrix [n, n], uniform over all of them.

    The Q of a Gaussian matrix, its columns' signs fixed by the diagonal of R. Source: Mezzadri, How
    to generate random matrices from the classical compact groups, arXiv math-ph/0609050.
    """
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return q * np.where(np.diagonal(r) < 0.0, -1.0, 1.0)


def resolve(n: int, kind: Kind) -> Literal["hadamard", "random"]:
    """The kind of matrix that "auto" means for a size: Hadamard where there is one."""
    if kind != "auto":
        return kind
    return "hadamard" if has_hadamard(n) else "random"


def rotation(n: int, kind: Kind, seed: Seed) -> Float:
    """The orthogonal matrix [n, n] of a kind, the same for the same seed.

    ValueError where `kind` insists on a Hadamard matrix that does not exist.
    """
    if resolve(n, kind) == "hadamard":
        return randomized_hadamard(n, seed)
    return random_orthogonal(n, seed)


def turned(values: NDArray[Any], matrix: Float, axis: int) -> NDArray[Any]:
    """Every vector v along `axis` becomes v·matrix; rounded once, to the type it had.

    W·R is `turned(W, R, 1)`, Rᵀ·W is `turned(W, R, 0)`.
    """
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    made = np.empty(rows.shape, values.dtype)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        made[part] = (rows[part].astype(np.float64) @ matrix).astype(values.dtype)
    shape = np.moveaxis(values, axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(made.reshape(shape), -1, axis))


def conjugated(diagonal: NDArray[Any], matrix: Float) -> Float:
    """Rᵀ·diag(w)·R: what scaling by w [n] becomes between rotated vectors."""
    return matrix.T @ (np.asarray(diagonal, np.float64)[:, None] * matrix)


def _construction(n: int) -> tuple[int, int] | None:
    """(order of the first matrix, number of doublings), the smallest order that works."""
    if n < 1:
        return None
    doublings = (n & -n).bit_length() - 1
    for count in range(doublings, -1, -1):
        base = n >> count
        if base == 1 or _prime_of(base) is not None:
            return base, count
    return None


def _prime_of(order: int) -> int | None:
    """The prime q behind Paley's matrix of an order: q + 1, q ≡ 3, or 2(q + 1), q ≡ 1 (mod 4)."""
    if order % 4:
        return None
    if _is_prime(order - 1):
        return order - 1
    q = order // 2 - 1
    return q if q % 4 == 1 and _is_prime(q) else None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, int(q**0.5) + 1))


def _paley(order: int) -> Float:
    """A matrix of ±1 with orthogonal rows, [order, order]."""
    q = _prime_of(order)
    if q is None:
        return np.ones((1, 1))
    residues = np.full(q, -1.0)
    residues[np.arange(1, q) ** 2 % q] = 1.0
    residues[0] = 0.0
    index = np.arange(q)
    core = np.zeros((q + 1, q + 1))
    core[0, 1:] = 1.0
    core[1:, 1:] = residues[(index[:, None] - index) % q]
    if q % 4 == 3:
        core[1:, 0] = -1.0  # skew: the identity completes it
        return core + np.eye(q + 1)
    core[1:, 0] = 1.0  # symmetric: each entry becomes a 2 x 2 block
    blocks = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
    return np.kron(core, blocks[0]) + np.kron(np.eye(q + 1), blocks[1])
