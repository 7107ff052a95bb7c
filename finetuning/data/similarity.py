"""Equal and almost equal texts among millions, in a few hundred bytes a text.

Equal texts have equal digests. Almost equal ones are found by MinHash (Broder 1997) over shingles of SHINGLE characters:
64 minima, of which the share that two texts agree in estimates the Jaccard similarity of their shingles. Texts meet when
one of 8 bands of 8 minima is equal: at a similarity of 0.9 that happens with a probability of 99 %, at 0.5 with 3 %.
There, white space and letter case are ignored.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

SHINGLE = 5
NUM_MINIMA, NUM_BANDS = 64, 8
LEAST_SIMILARITY = 0.8
LONGEST_TEXT = 20_000  # characters that are compared
DIGEST_BYTES = 16

_words = np.random.PCG64(20_240_726).random_raw(2 * NUM_MINIMA)
_FACTORS, _TERMS = _words[:NUM_MINIMA] | np.uint64(1), _words[NUM_MINIMA:]
_POWERS = [pow(0x9E3779B97F4A7C15, exponent, 2**64) for exponent in range(SHINGLE)]


def digest(text: str) -> bytes:
    """The same for texts that are equal but for white space around them."""
    return hashlib.blake2b(text.strip().encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def minima(texts: list[str]) -> np.ndarray:
    """uint16 [texts, NUM_MINIMA]: the top bits of the smallest value of each hash function."""
    if not texts:
        return np.zeros((0, NUM_MINIMA), np.uint16)
    # A text shorter than a shingle is filled up, so that it has one.
    cut = ["".join(text.split()).casefold()[:LONGEST_TEXT].ljust(SHINGLE, "\0") for text in texts]
    counts = np.array([len(text) - SHINGLE + 1 for text in cut])
    characters = np.frombuffer("".join(cut).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    hashes = np.zeros(len(characters) - SHINGLE + 1, dtype=np.uint64)
    for shift, power in enumerate(_POWERS):
        hashes += characters[shift : len(characters) - SHINGLE + 1 + shift] * np.uint64(power)
    hashes ^= hashes >> np.uint64(29)
    ends = np.cumsum([len(text) for text in cut])
    inside = np.ones(len(hashes), dtype=bool)
    for back in range(1, SHINGLE):  # shingles that reach from one text into the next
        inside[ends[:-1] - back] = False
    hashes = hashes[inside]
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    result = np.empty((len(texts), NUM_MINIMA), np.uint16)
    for index in range(NUM_MINIMA):
        result[:, index] = np.minimum.reduceat(hashes * _FACTORS[index] + _TERMS[index], starts) >> np.uint64(48)
    return result


def equal_to_earlier(digests: np.ndarray) -> np.ndarray:
    """For digests (uint8 [n, 16]): the index of the first equal one, -1 where it is the first itself."""
    if not len(digests):
        return np.zeros(0, np.int64)
    keys = np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}").ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    earlier = first[inverse.ravel()]
    return np.where(earlier == np.arange(len(digests)), -1, earlier)


def similar_pairs(signatures: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(later, earlier, similarity) for texts that are almost equal to an earlier one; each `later` comes once, in order."""
    rows = NUM_MINIMA // NUM_BANDS
    best: dict[int, tuple[int, float]] = {}
    for band in range(NUM_BANDS):
        keys = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows]).view(f"V{2 * rows}").ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_same = ordered[1:] == ordered[:-1]
        # Each text is compared with the first of its group: groups may be large, pairs would be their square.
        group_start = np.where(np.concatenate(([False], is_same)), 0, np.arange(len(order)))
        first = order[np.maximum.accumulate(group_start)]
        later = np.flatnonzero(np.concatenate(([False], is_same)))
        for start in range(0, len(later), 65536):
            places = later[start : start + 65536]
            mine, theirs = order[places], first[places]
            similarity = (signatures[mine] == signatures[theirs]).mean(axis=1)
            for index in np.flatnonzero(similarity >= LEAST_SIMILARITY).tolist():
                pair = int(mine[index]), int(theirs[index])
                if similarity[index] > best.get(pair[0], (0, 0.0))[1]:
                    best[pair[0]] = pair[1], float(similarity[index])
    for later_text in sorted(best):
        yield later_text, *best[later_text]
