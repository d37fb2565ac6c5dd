"""The RBF output's target codes: ten digits drawn as 7x12 bitmaps, in the style of Fig. 3 (LeCun et
al. 1998, section II.B).

The paper's figure is an image and no machine-readable original is known, so these were drawn for
this project. Each has 84 = 7 x 12 pixels, one per unit of F6: +1 for ink, -1 elsewhere.
"""

import numpy as np
from jaxtyping import Float32

_BITMAPS = """
..###.. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..###.. ##...## ##...## ...###. ##..... .##.... ####### ##...## ##...##
##...## .####.. ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## .##.##. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## ##..##. ######. ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. ##..##. .....## ######. ....##. .#####. .######
##...## ...##.. ...##.. ..####. ####### .....## ##...## ...##.. .#####. .....##
##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## ....##. ##...## ##...## ..##... ##...## .....##
.##.##. ..####. ##..... ##...## ....##. ##...## .##.##. .##.... ##...## ....##.
..###.. ..####. ####### .#####. ....##. .#####. ..###.. .##.... .#####. .####..
"""


def digit_codes() -> Float32[np.ndarray, "10 84"]:
    """Codes of +-1: code i is the bitmap of the digit i, row by row."""
    rows = np.array(
        [[list(bitmap) for bitmap in line.split()] for line in _BITMAPS.split("\n") if line]
    )  # (12, 10, 7)
    return np.where(rows.transpose(1, 0, 2).reshape(10, 84) == "#", 1.0, -1.0).astype(np.float32)


def smallest_distance(codes: Float32[np.ndarray, "classes 84"]) -> int:
    """The smallest Hamming distance between two of the codes, in pixels."""
    return int(min((a != b).sum() for i, a in enumerate(codes) for b in codes[:i]))
