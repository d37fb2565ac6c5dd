"""How torchvision and Caffe keep AlexNet's weights: the names, the order of the axes, the channels
of the images, and what was subtracted from them.
"""

import math
from typing import NamedTuple

import numpy as np

CLASSIFIER = ("fc6", "fc7", "fc8")
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", *CLASSIFIER)
FEATURES = ("features.0", "features.3", "features.6", "features.8", "features.10")
TORCHVISION = (*FEATURES, "classifier.1", "classifier.4", "classifier.6")  # nn.Sequential's places

RGB = tuple[float, float, float]  # of pixels of 0 to 255


class Layout(NamedTuple):
    """The weights of another program.

    Attributes:
      owner: whose they are.
      preset: the preset of that network here; with more `flags`, if any.
      names: layer -> what its weights are called there, without .weight and .bias.
      is_bgr: its images are BGR, not RGB.
      mean: of the channels of its training images.
    """

    owner: str
    preset: str
    flags: tuple[str, ...]
    names: dict[str, str]
    is_bgr: bool
    mean: RGB


# The normalization of torchvision's weights, as its documentation states it, times 255.
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The mean of each channel of Caffe's ilsvrc_2012_mean.npy, as its classification example prints it.
CAFFE_MEAN = (122.6789143406786, 116.66876761696767, 104.0069879317889)
CAFFE = Layout("bvlc_alexnet", "caffe", (), {layer: layer for layer in LAYERS}, True, CAFFE_MEAN)
LAYOUTS = {
    "torchvision": Layout(
        "torchvision's AlexNet",
        "torchvision",
        (),
        dict(zip(LAYERS, TORCHVISION, strict=True)),
        False,
        MEAN,
    ),
    "caffe": CAFFE,
    # bvlc_reference_caffenet: pooling before normalization.
    "caffenet": CAFFE._replace(
        owner="bvlc_reference_caffenet", flags=("--norm_order=pool_norm", "--hidden_bias=1")
    ),
}


def their_shape(kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
    """(kh, kw, in, out) -> (out, in, kh, kw); (in, out) -> (out, in)."""
    if len(kernel_shape) == 2:
        return kernel_shape[::-1]
    height, width, inputs, outputs = kernel_shape
    return outputs, inputs, height, width


def to_ours(weight: np.ndarray, layer: str, *, maps: int = 256, is_bgr: bool = False) -> np.ndarray:
    """A weight as PyTorch and Caffe have it, (out, in, kh, kw) or (out, in), as (kh, kw, in, out)
    or (in, out).

    The inputs of fc6 are pool5's values: there `maps`, rows, columns, here rows, columns, maps.
    Those of conv1 are color channels.
    """
    if layer == "conv1" and is_bgr:
        weight = weight[:, ::-1]
    if layer == "fc6":
        side = math.isqrt(weight.shape[1] // maps)
        weight = weight.reshape(-1, maps, side, side).transpose(0, 2, 3, 1)
        weight = weight.reshape(len(weight), -1)
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T)
