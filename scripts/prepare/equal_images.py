"""Images that a source has more than once, equal to the pixel: a score on test images that were
trained on is too good, and of two classes for one image one is wrong.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from common.classes import listed
from scripts.prepare.entries import File
from scripts.prepare.layouts import Source

DAMAGED = 0  # instead of a digest


def digest(image: np.ndarray) -> int:
    """(H, W, C) uint8 -> 64 bits, other ones than DAMAGED."""
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "big") or 1


def equal_images(found: Source, digests: dict[str, np.ndarray]) -> list[str]:
    """Lines of text: the equal images that are in two splits, and those of two classes; none if
    there are none.

    Args:
      found: what was listed.
      digests: split -> (N,) uint64, of its images in the order of `found`.
    """
    files = [(split, file) for split in digests for file in found.splits[split]]
    values = np.concatenate(list(digests.values()))
    order = np.argsort(values, kind="stable")
    # Files that could not be read come first, and begin no group.
    starts = np.flatnonzero(np.diff(values[order], prepend=np.uint64(DAMAGED)))
    ends = np.append(starts, len(order))[1:]
    groups = [
        [files[index] for index in order[start:end]]
        for start, end in zip(starts, ends, strict=True)
        if end - start > 1
    ]
    differing = {
        "in two splits": list(_differing(groups, lambda split, file: split)),
        "of two classes": list(_differing(groups, lambda split, file: file.label)),
    }
    return [
        f"equal images {where}: {len(pairs):,}, such as {listed(pairs)}"
        for where, pairs in differing.items()
        if pairs
    ]


def _differing(groups: list[list[tuple[str, File]]], value: Callable) -> Iterator[str]:
    """Of each group two files whose values differ, if there are such."""
    for group in groups:
        first = group[0]
        for other in group[1:]:
            if value(*other) != value(*first):
                yield f"{first[1].name} = {other[1].name}"
                break
