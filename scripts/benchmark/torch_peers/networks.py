"""LeNet-5, AlexNet and the CIFAR-10 networks in PyTorch.

Parameters have the layers and names of ours, and inputs of fully connected layers their order
(rows, columns, maps), so that `copy_weights` can copy ours; a test compares the logits. A network
takes (B, maps, rows, columns) images.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row, by name."""
    return nn.Sequential(OrderedDict(layers))


class MaskedConv(nn.Conv2d):
    """A convolution without the weights where the mask is 0; `mask` as ours, (kh, kw, in, out)."""

    def __init__(self, mask: np.ndarray):
        kernel_height, kernel_width, inputs, outputs = mask.shape
        super().__init__(inputs, outputs, (kernel_height, kernel_width))
        self.register_buffer("mask", torch.tensor(mask).permute(3, 2, 0, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias)


class Rows(nn.Module):
    """(B, maps, rows, columns) -> (B, rows * columns * maps); a view where channels are last in
    memory.
    """

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def normalized(x, sums, alpha: float, k: float):
    """x * (k + alpha * sums) ** -0.75, by roots, as ours: without a logarithm and exponential."""
    root = torch.rsqrt(k + alpha * sums)
    return x * root * torch.sqrt(root)


class Across(nn.Module):
    """Local response normalization across five maps of each tower, by adding shifted squares."""

    def __init__(self, towers: int = 1, alpha: float = 1e-4, k: float = 2.0):
        super().__init__()
        self.towers, self.alpha, self.k = towers, alpha, k

    def forward(self, x):
        parts = []
        for tower in x.chunk(self.towers, dim=1):
            maps, squares = tower.shape[1], F.pad(tower * tower, (0, 0, 0, 0, 2, 2))
            sums = sum(squares[:, i : i + maps] for i in range(5))
            parts.append(normalized(tower, sums, self.alpha, self.k))
        return torch.cat(parts, dim=1) if self.towers > 1 else parts[0]


class WithinMap(nn.Module):
    """cifar18's normalization, over 3x3 pixels of a map."""

    def forward(self, x):
        return normalized(x, F.avg_pool2d(x * x, 3, stride=1, padding=1), 5e-5, 1.0)


class LocallyConnected(nn.Module):
    """A 3x3 convolution with weights of its own for each pixel: one matrix product per pixel."""

    def __init__(self, size: int, inputs: int, outputs: int):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(0.04 * torch.randn(size * size, inputs * 9, outputs))
        self.bias = nn.Parameter(torch.zeros(size * size, 1, outputs))

    def forward(self, x):
        windows = F.unfold(x, 3, padding=1).permute(2, 0, 1)  # (pixels, B, inputs * 9)
        outputs = torch.baddbmm(self.bias, windows, self.weight)  # (pixels, B, outputs)
        return outputs.permute(1, 2, 0).reshape(len(x), -1, self.size, self.size)


def lenet(mask: np.ndarray, *, activation=nn.Tanh, pool=nn.AvgPool2d) -> nn.Sequential:
    """The preset deck of LeNet-5. With max pooling the activation comes only after it."""
    before = activation if pool is nn.AvgPool2d else nn.Identity
    return named(
        c1=nn.Conv2d(1, 6, 5),
        a1=before(),
        s2=pool(2),
        a2=activation(),
        c3=MaskedConv(mask),
        a3=before(),
        s4=pool(2),
        a4=activation(),
        c5=nn.Conv2d(16, 120, 5),
        a5=activation(),
        rows=Rows(),
        f6=nn.Linear(120, 84),
        a6=activation(),
        output=nn.Linear(84, 10),
    )


def alexnet(preset: str, crop_size: int, num_classes: int = 1000) -> nn.Sequential:
    """The presets deck, paper and small."""
    if preset == "small":
        (a, b, c, d, e), hidden, size = (16, 48, 64, 64, 48), 256, crop_size // 8
        first, conv1 = nn.Identity(), nn.Conv2d(3, a, 5, padding=2)
    else:
        (a, b, c, d, e), hidden = (96, 256, 384, 384, 256), 4096
        padded = crop_size + (3 if preset == "paper" else 0)
        size, conv1 = ((padded - 11) // 4 + 1) // 8, nn.Conv2d(3, a, 11, stride=4)
        first = nn.ZeroPad2d((0, 3, 0, 3)) if preset == "paper" else nn.Identity()
    towers = 2 if preset == "paper" else 1

    def pool():  # with 55 and 27 pixels no window is cut off
        return nn.MaxPool2d(3, 2, ceil_mode=preset == "small")

    def conv(inputs, outputs, kernel_size, groups=1):
        return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, groups=groups)

    def relu():
        return nn.ReLU(inplace=True)

    def after_conv():
        layers = [Across(towers), pool()] if preset != "deck" else [pool(), Across()]
        return nn.Sequential(relu(), *layers)

    def dropout():
        return nn.Dropout(0.25 if preset == "small" else 0.5)

    # the deck has dropout before fc6 and fc7, the others after them
    before, after = (dropout, nn.Identity) if preset == "deck" else (nn.Identity, dropout)
    return named(
        first=first,
        conv1=conv1,
        after1=after_conv(),
        conv2=conv(a, b, 5, towers),
        after2=after_conv(),
        conv3=conv(b, c, 3),
        a3=relu(),
        conv4=conv(c, d, 3, towers),
        a4=relu(),
        conv5=conv(d, e, 3, towers),
        a5=relu(),
        pool5=pool(),
        rows=Rows(),
        before6=before(),
        fc6=nn.Linear(size * size * e, hidden),
        a6=relu(),
        after6=after(),
        before7=before(),
        fc7=nn.Linear(hidden, hidden),
        a7=relu(),
        after7=after(),
        fc8=nn.Linear(hidden, num_classes),
    )


def cifar(net: str) -> nn.Sequential:
    """cuda-convnet's networks for 24x24 crops: `cifar18` (normalized within maps) and `cifar13`."""

    def pool(kind):
        return kind(3, 2, ceil_mode=True)

    if net == "cifar18":
        return named(
            conv1=nn.Conv2d(3, 32, 5, padding=2),
            pool1=pool(nn.MaxPool2d),
            a1=nn.ReLU(),
            norm1=WithinMap(),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            a2=nn.ReLU(),
            pool2=pool(nn.AvgPool2d),
            norm2=WithinMap(),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            a3=nn.ReLU(),
            pool3=pool(nn.AvgPool2d),
            rows=Rows(),
            fc10=nn.Linear(9 * 64, 10),
        )
    return named(
        conv1=nn.Conv2d(3, 64, 5, padding=2),
        a1=nn.ReLU(),
        pool1=pool(nn.MaxPool2d),
        conv2=nn.Conv2d(64, 64, 5, padding=2),
        a2=nn.ReLU(),
        pool2=pool(nn.MaxPool2d),
        local3=LocallyConnected(6, 64, 32),
        a3=nn.ReLU(),
        local4=LocallyConnected(6, 32, 32),
        a4=nn.ReLU(),
        rows=Rows(),
        fc10=nn.Linear(36 * 32, 10),
    )


def copy_weights(model: nn.Module, params: dict) -> None:
    """Copies our parameters, {layer: {"kernel", "bias"}}, into the model."""
    with torch.no_grad():
        for name, arrays in params.items():
            layer = getattr(model, name)
            kernel, bias = (np.array(arrays[part]) for part in ("kernel", "bias"))
            if isinstance(layer, LocallyConnected):
                # ours is (rows, columns, 9 * in, out) with in the faster axis, theirs has 9 there
                outputs = kernel.shape[-1]
                kernel = kernel.reshape(layer.size**2, 9, -1, outputs).transpose(0, 2, 1, 3)
                kernel = kernel.reshape(layer.size**2, -1, outputs)
                bias = bias.reshape(layer.size**2, 1, outputs)
            else:
                kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
            layer.weight.copy_(torch.tensor(np.ascontiguousarray(kernel)))
            layer.bias.copy_(torch.tensor(bias))
