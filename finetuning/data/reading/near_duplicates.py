"""Equal and almost equal texts among millions, in a few hundred bytes a text.

Equal texts have equal digests. Almost equal ones are found by MinHash over shingles of SHINGLE characters, with one hash
function: its values fall into 64 bins, the smallest of each is kept, and an empty bin borrows from the next one that is
not (Li, Owen and Zhang 2012; Shrivastava and Li 2014). The share of the minima in which two texts agree estimates the
Jaccard similarity of their shingles, with a standard deviation of 0.02 for texts of 400 characters and 0.07 for 40. Texts
are compared when one of 16 bands of 4 minima is equal: at a similarity of 0.8 that happens with a probability above
99.9 %. White space and letter case are ignored.

Texts of fewer than SHORTEST_TEXT characters are almost equal to none: one changed character of twenty is a third of their
shingles, and the estimate is off by 0.1, so what was told would be chance. Only equality counts for them.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

SHINGLE = 5
NUM_MINIMA, NUM_BANDS = 64, 16
MIN_SIMILARITY = 0.8
SHORTEST_TEXT = 40  # characters; of pairs that are alike to less than 0.7, 2 % would be told here, 6 % at 20
LONGEST_TEXT = 20_000  # characters that are compared
DIGEST_BYTES = 16

_POWERS = [np.uint64(pow(0x9E3779B97F4A7C15, exponent, 2**64)) for exponent in range(SHINGLE)]
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of SplitMix64
_EMPTY = np.uint16(0xFFFF)


def digest(texts: list[str | None]) -> bytes:
    """The same for lists of the same texts: where one ends and the next begins counts, and None is not ""."""
    hashed = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for text in texts:
        content = b"" if text is None else text.encode("utf-8")
        hashed.update((-1 if text is None else len(content)).to_bytes(8, signed=True) + content)
    return hashed.digest()


def minima(texts: list[str]) -> np.ndarray:
    """uint16 [texts, NUM_MINIMA]: the smallest hash value in each bin; one number throughout for a text that is too short."""
    if not texts:
        return np.zeros((0, NUM_MINIMA), np.uint16)
    cut = ["".join(text[: 4 * LONGEST_TEXT].split()).casefold()[:LONGEST_TEXT] for text in texts]
    is_short = np.array([len(text) < SHORTEST_TEXT for text in cut])
    cut = [text.ljust(SHINGLE, "\0") for text in cut]  # one shingle at least
    sizes = np.array([len(text) for text in cut])
    characters = np.frombuffer("".join(cut).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    count = len(characters) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for shift, power in enumerate(_POWERS):
        hashes += characters[shift : count + shift] * power
    for factor, shift in zip(_MIX, (30, 27), strict=True):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= factor
    hashes ^= hashes >> np.uint64(31)
    owner = np.repeat(np.arange(len(texts)), sizes)[:count]
    inside = owner == np.repeat(np.arange(len(texts)), sizes)[SHINGLE - 1 :]  # not from one text into the next
    bins = owner * NUM_MINIMA + (hashes >> np.uint64(58)).astype(np.int64)
    values = np.minimum((hashes & np.uint64(0xFFFF)).astype(np.uint16), _EMPTY - np.uint16(1))
    smallest = np.full(len(texts) * NUM_MINIMA, _EMPTY)
    np.minimum.at(smallest, bins[inside], values[inside])
    filled = _fill_empty_bins(smallest.reshape(len(texts), NUM_MINIMA))
    filled[is_short] = _EMPTY
    return filled


def is_comparable(signatures: np.ndarray) -> np.ndarray:
    """Which texts are long enough to be almost equal to another one."""
    return (signatures[:, :4] != _EMPTY).any(axis=1)


def _fill_empty_bins(smallest: np.ndarray) -> np.ndarray:
    """An empty bin takes the value of the next filled one, around the end, changed by the distance."""
    twice = np.concatenate((smallest, smallest), axis=1)
    places = np.where(twice == _EMPTY, 4 * NUM_MINIMA, np.arange(2 * NUM_MINIMA))
    nearest = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :NUM_MINIMA]
    distance = nearest - np.arange(NUM_MINIMA)
    return (np.take_along_axis(twice, nearest, axis=1) + (distance * 40503).astype(np.uint16)).astype(np.uint16)


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
            for index in np.flatnonzero(similarity >= MIN_SIMILARITY).tolist():
                pair = int(mine[index]), int(theirs[index])
                if similarity[index] > best.get(pair[0], (0, 0.0))[1]:
                    best[pair[0]] = pair[1], float(similarity[index])
    for later_text in sorted(best):
        yield later_text, *best[later_text]
