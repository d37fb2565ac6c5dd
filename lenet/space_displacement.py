"""A string of digits, read by LeNet-5 in one pass over an image that is wider than one digit: the
paper's space displacement neural network (VII).

All layers up to C5 are convolutions and subsamplings. Of a wider image they make wider maps, and C5
becomes a row of columns of 120 units, each with a window of 32x32 pixels, 4 pixels after the one
before. F6 and the outputs follow in each column. So there is one output vector for each window, as
if the network had been run on all of them, but what the windows share is computed once.

The decoding rule. A reading of the string is a choice of windows, in each of them the most probable
digit. It costs

    DIGIT_COST - log p              for each window, p the probability of its digit, and
    INK_COST * ink * (d / 10)^2     for each column of pixels, ink the sum of its pixels (0 to 1
                                    each) and d its distance from the center of the nearest window,

and the cheapest reading wins. Normalized digits have their ink near their center (III.A), so ink
between two windows calls for a third one; DIGIT_COST keeps one digit from being read twice. Blank
paper costs nothing. Dynamic programming finds the cheapest reading, as the paper's Viterbi
algorithm does on the graph of its outputs (VII.A). The two costs are within half a point of the
best pair, on strings of validation digits: `python -m scripts.strings --choose`.

The ink is looked at because the network is not asked what a window between two digits is. The
paper's was trained for that: on digits between two others, and on windows without a digit (VII.B).
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Float32, UInt8

from common.network import Network, Trained

WINDOW = 32  # pixels that an output sees, in both directions
STEP = 4  # pixels from one window to the next: two subsamplings by 2
CENTER = 16  # the column of a window on which a digit's center of mass falls
MARGIN = 14  # background on both sides, so that windows are centered on the first and last ink

DIGIT_COST = 3.0
INK_COST = 0.04


class Digit(NamedTuple):
    """A digit that was read.

    Attributes:
      label: the class.
      probability: of the class, in the window.
      left: the first column of the image that the window sees; may be negative: beyond the edge.
    """

    label: int
    probability: float
    left: int


def read(trained: Trained, images: UInt8[np.ndarray, "B rows columns 1"]) -> list[list[Digit]]:
    """The digits on each image, from left to right.

    Args:
      trained: a LeNet-5 for gray images.
      images: white on black, as MNIST's digits, of 28 or 32 rows and any number of columns.
    """
    found = []
    for log_p, ink in zip(*windows_of(trained, images), strict=True):
        best = log_p.max(axis=-1)
        found.append(
            [
                Digit(int(log_p[k].argmax()), float(np.exp(best[k])), k * STEP - MARGIN)
                for k in decode(best, ink)
            ]
        )
    return found


def windows_of(
    trained: Trained, images: UInt8[np.ndarray, "B rows columns 1"]
) -> tuple[Float[np.ndarray, "B windows classes"], Float[np.ndarray, "B W"]]:
    """The log probabilities in each window of the images with their margins, and the ink in each
    column.
    """
    strips = with_margins(images)
    logits = np.asarray(output_map(trained.network, trained.params, strips), np.float64)
    log_p = scipy.special.log_softmax(logits, axis=-1)
    return log_p, strips[..., 0].sum(axis=1) / 255


def with_margins(images: UInt8[np.ndarray, "B rows columns 1"]) -> UInt8[np.ndarray, "B 32 W 1"]:
    """The images on a background of 32 rows and MARGIN more columns on both sides; on the right
    some more, up to a multiple of 64: few programs are compiled for many widths.
    """
    _, rows, columns, _ = images.shape
    above = (WINDOW - rows) // 2
    right = MARGIN + -(columns + 2 * MARGIN) % 64
    return np.pad(images, ((0, 0), (above, above), (MARGIN, right), (0, 0)))


@partial(jax.jit, static_argnums=0)
def output_map(
    network: Network, params, images: UInt8[Array | np.ndarray, "B rows columns C"]
) -> Float32[Array, "B windows classes"]:
    """The logits of all windows, from left to right; 28 or 32 rows, columns a multiple of 4."""
    outputs = network.bind(params).forward(network.prepare(images))["output"]
    # C5 is (1, 120, windows, B), which `forward` flattens: a row of outputs for each window and
    # image, as for a batch of images.
    return outputs.reshape(-1, len(images), outputs.shape[-1]).swapaxes(0, 1)


def decode(
    log_p: Float[np.ndarray, " windows"],
    ink: Float[np.ndarray, " columns"],
    digit_cost: float = DIGIT_COST,
    ink_cost: float = INK_COST,
) -> list[int]:
    """The windows of the cheapest reading, from left to right; none where there is no ink.

    Args:
      log_p: of the most probable digit in each window.
      ink: of each column; window k is centered on column CENTER + STEP * k.
    """
    if not ink.any():
        return []
    centers = CENTER + STEP * np.arange(len(log_p))
    powers = [ink * np.arange(len(ink)) ** power for power in range(3)]
    sums = [np.concatenate([[0], np.cumsum(power)]) for power in powers]  # of the columns before

    def spread(center, first, last):
        """What the ink in columns first to last - 1 costs around a center."""
        total, moment, square = (of[last] - of[first] for of in sums)
        return ink_cost / 100 * (square - 2 * center * moment + center**2 * total)

    middles = (centers[:, None] + centers) // 2
    between = spread(centers[:, None], centers[:, None], middles)  # of a window and a later one
    between += spread(centers, middles, centers)
    cost = spread(centers, 0, centers)  # of the cheapest reading that ends with each window
    before = np.full(len(centers), -1)  # the window before it
    for window in range(len(centers)):
        costs = cost[:window] + between[:window, window]
        if window and costs.min() < cost[window]:
            before[window] = costs.argmin()
            cost[window] = costs.min()
        cost[window] += digit_cost - log_p[window]
    window = np.argmin(cost + spread(centers, centers, len(ink)))
    windows = []
    while window >= 0:
        windows.append(int(window))
        window = before[window]
    return windows[::-1]
