"""What a network makes of images, as arrays: probabilities and features, the mistakes, the nearest
neighbors, the parts of an image that matter.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import scipy.special

from common.network import Network, Trained
from scripts.inspect.pixels import SMALL_PX

BATCH_PX = 2**21  # of stored pixels, in a batch
BATCH_SIZE = 256  # at most
POSITIONS = 32, 16  # of an occluder along each side: of small images, and of those above SMALL_PX


@functools.partial(jax.jit, static_argnums=(0, 1))
def _respond(network: Network, layer: str, params, images):
    found = network.activations(params, network.prepare(images))
    *_, logits = found.values()
    return logits, found[layer].reshape(len(images), -1)


def respond(trained: Trained, images: np.ndarray, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, num_classes), in float64, and what the layer passes on (N, units), of stored
    images (N, H, W, C) uint8.
    """
    size = min(BATCH_SIZE, max(BATCH_PX // (images.shape[1] * images.shape[2]), 1), len(images))
    found = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padded = np.zeros((size, *images.shape[1:]), np.uint8)  # one program for all
        padded[: len(batch)] = batch
        response = jax.device_get(_respond(trained.network, layer, trained.params, padded))
        found.append([each[: len(batch)] for each in response])
    logits, features = (np.concatenate(each) for each in zip(*found, strict=True))
    return logits.astype(np.float64), features


def layers_of(trained: Trained, image: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer passes on of one stored image (H, W, C): (H, W, maps) or (units,). Dropout,
    which at most scales here, is left out; the last one is the output.
    """
    found = trained.activations(image[None])
    return {name: x[0] for name, x in found.items() if not name.startswith("dropout")}


def mistakes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The places of the wrong predictions, the most confident first: by the log of the odds, as
    probabilities of RBF networks round to 1.
    """
    best = logits.argmax(axis=1)
    wrong = np.flatnonzero(best != labels)
    others = logits[wrong]
    others[np.arange(len(wrong)), best[wrong]] = -np.inf
    odds = logits[wrong].max(axis=1) - scipy.special.logsumexp(others, axis=1)
    return wrong[np.argsort(-odds, kind="stable")]


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes): how many of each true class were taken for each class."""
    matrix = np.zeros((num_classes, num_classes), int)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def neighbors(features: np.ndarray, query: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The places of the `count` rows of (N, d) that are nearest to (d,), and their Euclidean
    distances.
    """
    distances = np.linalg.norm(features - query, axis=1)
    nearest = np.argsort(distances, kind="stable")[:count]
    return list(zip(nearest.tolist(), distances[nearest].tolist(), strict=True))


class Occlusion(NamedTuple):
    """How probable a class is while a square covers a part of an image.

    Attributes:
      shares: (rows, columns), by the place of the square's center.
      side: of the square, in pixels.
      step: pixels between two places.
      worst: (H, W, C) uint8: the image with the square where the class is least probable.
    """

    shares: np.ndarray
    side: int
    step: int
    worst: np.ndarray


def occlusion(probability: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> Occlusion:
    """Covers one part of an image after the other (Zeiler, Fergus 2013, section 4.2), a gray one
    with its background, the median of its border, one in colors with its mean color.

    Args:
      probability: (N, H, W, C) uint8 -> (N,).
      image: (H, W, C) uint8.
    """
    height, width, channels = image.shape
    side = max(min(height, width) // 5, 1)
    step = -(-max(height, width) // POSITIONS[max(height, width) > SMALL_PX])
    fill = np.rint(image.mean(axis=(0, 1)))
    if channels == 1:
        fill = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]), axis=0)
    rows, columns = (np.arange((step - 1) // 2, length, step) for length in (height, width))
    covered = np.broadcast_to(image, (len(rows) * len(columns), *image.shape)).copy()
    for number, (y, x) in enumerate((y, x) for y in rows for x in columns):
        top, left = max(y - side // 2, 0), max(x - side // 2, 0)
        covered[number, top : y - side // 2 + side, left : x - side // 2 + side] = fill
    found = probability(covered)
    shares = found.reshape(len(rows), len(columns))
    return Occlusion(shares, side, step, covered[found.argmin()])
