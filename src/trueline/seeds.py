"""Named random streams, counter-based: a draw is a function of (seed, purpose, step, sample id) and of nothing else.

Resuming, retrying a sample, another batch size or another number of workers therefore cannot change a draw.
The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

__all__ = ["derive", "generator", "permutation", "philox4x32", "uniforms"]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of each row of `counters` ([n, 4], 32-bit words) under `key`; returns [n, 4] 32-bit words."""
    if counters.ndim != 2 or counters.shape[1] != 4:
        raise ValueError(f"counters must have shape [n, 4], not {counters.shape}")
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def derive(seed: int, purpose: str, *ids: int) -> int:
    """A 63-bit integer for (seed, purpose, ids): the seed of a library's own generator."""
    text = "/".join((str(seed), purpose, *map(str, ids)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def uniforms(seed: int, purpose: str, step: int, sample_ids: Sequence[int], width: int) -> np.ndarray:
    """One row of `width` uniforms in (0, 1) per sample id ([n, width], float64): row i depends on its own id alone."""
    ids = np.asarray(sample_ids, dtype=np.uint64)
    blocks = -(-width // 4)
    counters = np.empty((len(ids), blocks, 4), dtype=np.uint64)
    counters[:, :, 0] = np.arange(blocks, dtype=np.uint64)
    counters[:, :, 1] = (ids & _LOW)[:, None]
    counters[:, :, 2] = (ids >> _SHIFT)[:, None]
    counters[:, :, 3] = np.uint64(step)
    number = derive(seed, purpose)
    words = philox4x32(counters.reshape(-1, 4), (number & 0xFFFFFFFF, number >> 32))
    return (words.reshape(len(ids), blocks * 4)[:, :width] + 0.5) / 2.0**32


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """A numpy generator for (seed, purpose, ids), for draws whose number is not known beforehand."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, *ids)))


def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """The order in which epoch number `epoch` visits n items."""
    return generator(seed, purpose, epoch).permutation(n)
