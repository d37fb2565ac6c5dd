"""The tables of the lecture deck as it prints them."""

from typing import NamedTuple


class Layer(NamedTuple):
    """A row of the deck's table of LeNet-5. None: the deck has no number there."""

    output: tuple[int, ...]  # H, W, maps; or units
    kernel: tuple[int, int] | None = None
    stride: int | None = None
    activation: str | None = None
    parameters: int | None = None
    connections: int | None = None


LENET = {
    "c1": Layer((28, 28, 6), (5, 5), 1, "tanh"),
    "s2": Layer((14, 14, 6), (2, 2), 2, "tanh"),
    "c3": Layer((10, 10, 16), (5, 5), 1, "tanh", 1_516, 151_600),
    "s4": Layer((5, 5, 16), (2, 2), 2, "tanh"),
    "c5": Layer((1, 1, 120), (5, 5), 1, "tanh"),
    "f6": Layer((84,), None, None, "tanh"),
    "output": Layer((10,), None, None, "softmax"),
}

# Table I: the connections of each S2 map to the 16 maps of C3.
LENET_TABLE_1 = (
    "X  XXX  XXXX XX ",
    "XX  XXX  XXXX X ",
    "XXX  XXX X XXXX ",
    " XXX XXXX X XXX ",
    " XXX XXXX XX XX ",
    " XXX XXXX XXX X ",
)


class AlexNetLayer(NamedTuple):
    """A row of the deck's table of AlexNet."""

    output: tuple[int, ...]
    kernel: tuple[int, int] | None = None
    stride: int | None = None
    padding: int | None = None
    parameters: int | None = None
    computations: int | None = None


ALEXNET = {
    "conv1": AlexNetLayer((55, 55, 96), (11, 11), 4, None, 34_944, 105_705_600),
    "pool1": AlexNetLayer((27, 27, 96), (3, 3), 2),
    "conv2": AlexNetLayer((27, 27, 256), (5, 5), 1, 2, 614_656, 448_084_224),
    "pool2": AlexNetLayer((13, 13, 256), (3, 3), 2),
    "conv3": AlexNetLayer((13, 13, 384), (3, 3), 1, 1, 885_120, 149_585_280),
    "conv4": AlexNetLayer((13, 13, 384), (3, 3), 1, 1, 1_327_488, 224_345_472),
    "conv5": AlexNetLayer((13, 13, 256), (3, 3), 1, 1, 884_992, 149_563_648),
    "pool5": AlexNetLayer((6, 6, 256), (3, 3), 2),
    "fc6": AlexNetLayer((4096,), parameters=37_748_736, computations=37_748_736),
    "fc7": AlexNetLayer((4096,), parameters=16_777_216, computations=16_777_216),
    "fc8": AlexNetLayer((1000,), parameters=4_096_000, computations=4_096_000),
}
