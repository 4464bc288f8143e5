"""Damaged copies of files, and what becomes of them."""

import random
import time
from collections.abc import Callable

SAFE = (0, 14, 24)  # bytes at the beginning that stay as they are: none, those before the sizes, most of the header


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: bits, bytes, pieces left out, put in, repeated, and the end cut off."""
    changed, begin = bytearray(data), dice.choice(SAFE)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(begin, max(len(changed), begin + 1))
        kind = dice.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
        elif kind == 2:
            del changed[at : at + dice.randint(1, 3)]
        elif kind == 3:
            changed[at:at] = dice.randbytes(dice.randint(1, 3))
        elif kind == 4:
            del changed[at:]
        else:
            changed[at:at] = changed[at : at + dice.randint(1, 20)]
    return bytes(changed)


def outcomes(count: int, read: Callable[[bytes], object], written: list[bytes]) -> dict[str, int]:
    """What becomes of `count` mutated files: "good", or "refused" with a sentence. Anything else fails."""
    dice, found, slowest = random.Random(0), {"good": 0, "refused": 0}, 0.0
    for i in range(count):
        data, begun = mutated(written[i % len(written)], dice), time.process_time()
        try:
            read(data)
        except ValueError as error:
            assert len(str(error)) > 15
            found["refused"] += 1
        else:
            found["good"] += 1
        slowest = max(slowest, time.process_time() - begun)
    assert slowest < 5  # seconds of the processor; the largest files that there can be take a tenth of it
    return found
