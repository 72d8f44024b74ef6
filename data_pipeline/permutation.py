"""Keyed hashing and the keyed permutation: what makes every random choice a pure function of its position."""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]

_ROUNDS = 6
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def hashed_key(seed: int, purpose: str, *parts: str | int) -> int:
    """A 64-bit key: BLAKE2b of its arguments.

    Keys are hashed, never added: with sums, seed 1 at epoch 0 would repeat seed 0 at epoch 1.
    """
    message = json.dumps([seed, purpose, *parts]).encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


def splitmix64(x: UInt64Array) -> UInt64Array:
    """One output of the SplitMix64 generator for each state (Steele, Lea and Flood 2014, OOPSLA), modulo 2^64."""
    z = x + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _feistel(x: UInt64Array, keys: UInt64Array, half: UInt64Array) -> UInt64Array:
    """A balanced Feistel network (Luby and Rackoff 1988): a bijection of the numbers of `2 * half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for _ in range(_ROUNDS):
        keys = splitmix64(keys)
        left, right = right, left ^ (splitmix64(right ^ keys) & mask)
    return (left << half) | right


def permute(index: Int64Array, size: Int64Array, keys: UInt64Array) -> Int64Array:
    """The place of each index in a keyed permutation of 0 .. size.

    A Feistel network permutes the next power of four; an image outside the range is sent through again until it
    falls inside (cycle walking, Black and Rogaway 2002), less than four times on average.

    Args:
        index: (N,), each at least 0 and below its size.
        size: (N,), length of each index's permutation, 1 to 2^62.
        keys: (N,), key of each index's permutation.

    Returns:
        (N,), each at least 0 and below its size; distinct for distinct indices of one size and key.
    """
    assert ((index >= 0) & (index < size)).all(), "a walk from outside the range might never end"
    half = _half_bits(size)
    image = _feistel(index.astype(np.uint64), keys, half)
    outside = np.flatnonzero(image >= size.astype(np.uint64))
    while outside.size:
        image[outside] = _feistel(image[outside], keys[outside], half[outside])
        outside = outside[image[outside] >= size[outside].astype(np.uint64)]
    return image.astype(np.int64)


def _half_bits(size: Int64Array) -> UInt64Array:
    """The least h >= 1, (N,), with 4^h >= size."""
    distinct, inverse = np.unique(size, return_inverse=True)
    bits = [int(n - 1).bit_length() for n in distinct]
    return np.array([max(1, (b + 1) // 2) for b in bits], np.uint64)[inverse]
