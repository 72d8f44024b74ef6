"""Random numbers that depend on a sample's name alone, never on the batch, the process or the order of the work."""

from hashlib import blake2b

from numpy.random import Generator, Philox


def generator(family: str, seed: int, split: str, number: int, purpose: str) -> Generator:
    """The random stream of one sample for one purpose.

    The key is a hash, so neighbouring seeds, splits and numbers share nothing. One stream a purpose, so that a new
    parameter does not change the initial states.
    """
    name = "/".join((family, str(seed), split, str(number), purpose))
    key = blake2b(name.encode(), digest_size=16).digest()
    return Generator(Philox(key=int.from_bytes(key, "little")))
