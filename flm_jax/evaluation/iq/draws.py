"""Random choices that are the same on every machine and under every version of Python and NumPy."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Value = TypeVar("Value")


class Draws:
    """A stream of choices, named by what it is for: `Draws("counting", "en", "test", 0)`.

    Python promises `random.Random(int).random()` to stay as it is, but not `choice`, `sample` or `shuffle`, and NumPy
    promises nothing of its generators' methods; so everything here is made of `random()`.
    """

    def __init__(self, *names: object) -> None:
        digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big"))

    def uniform(self) -> float:
        """In [0, 1)."""
        return self._random.random()

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, values: Sequence[Value]) -> Value:
        """One of them."""
        return values[self.between(0, len(values) - 1)]

    def sample(self, values: Sequence[Value], count: int) -> list[Value]:
        """`count` of them at different places, in random order."""
        pool = list(values)
        for place in range(count):
            other = self.between(place, len(pool) - 1)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:count]

    def shuffled(self, values: Sequence[Value]) -> list[Value]:
        """All of them in random order."""
        return self.sample(values, len(values))

    def text(self, alphabet: str, length: int) -> str:
        """So many characters, each drawn anew."""
        return "".join(self.pick(alphabet) for _ in range(length))
