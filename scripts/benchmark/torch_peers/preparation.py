"""From stored images to a network's input."""

import numpy as np
import torch
from torch.nn import functional as F

from scripts.benchmark.torch_peers.device import DEVICE

MANY_PX = 64  # pixels of a side from which, on a CPU, cutting one image after the other is faster


def tensors(batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of one batch or several; for a GPU in pinned memory, from which it copies
    while the CPU goes on.
    """
    pair = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"]).long()
    return tuple(tensor.pin_memory() for tensor in pair) if DEVICE == "cuda" else pair


def digits(images: torch.Tensor) -> torch.Tensor:
    """(B, 28, 28, 1) uint8 -> (B, 1, 32, 32) float, 0 to 1."""
    return F.pad(images.permute(0, 3, 1, 2), (2, 2, 2, 2)).float() / 255


class Crops:
    """(B, H, W, 3) uint8 -> (B, 3, crop, crop) float: minus the mean image, random crop and mirror
    image, color noise.

    Args:
      mean: (H, W, 3).
      axes: (3, 3), column i is the i-th principal component times its standard deviation; None: no
        noise.
      scale: of each channel.
      pad: pixels of zeros on each side before a random crop.
    """

    def __init__(
        self,
        mean: np.ndarray,
        crop_size: int,
        axes: np.ndarray | None = None,
        scale=1.0,
        pad: int = 0,
    ):
        self.mean, self.crop_size, self.pad = torch.tensor(mean, device=DEVICE), crop_size, pad
        self.axes = None if axes is None else torch.tensor(axes, dtype=torch.float32, device=DEVICE)
        self.scale = torch.tensor(scale, dtype=torch.float32, device=DEVICE)

    def random(self, images: torch.Tensor) -> torch.Tensor:
        """Random crops, mirror images and noise."""
        batch, height, width, _ = images.shape
        here, mean, pad = dict(device=DEVICE), self.mean, self.pad
        if pad:
            images, mean = (F.pad(array, (0, 0) + (pad,) * 4) for array in (images, mean))

        def places(side):  # (batch, crop)
            first = torch.randint(side + 2 * pad - self.crop_size + 1, (batch, 1), **here)
            return first + torch.arange(self.crop_size, **here)

        rows, columns, mirrored = places(height), places(width), torch.rand(batch, 1, **here) < 0.5
        if DEVICE == "cpu" and self.crop_size > MANY_PX:
            x = torch.empty((batch, self.crop_size, self.crop_size, 3))
            corners = torch.stack([rows[:, 0], columns[:, 0]], 1).tolist()
            for i, (top, left) in enumerate(corners):
                cut = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
                torch.sub(images[i][cut], mean[cut], out=x[i])
                if mirrored[i]:
                    x[i] = x[i].flip(1)
        else:
            columns = torch.where(mirrored, columns.flip(1), columns)
            rows, columns = rows[:, :, None], columns[:, None, :]  # (B, crop, 1), (B, 1, crop)
            chosen = images[torch.arange(batch, **here)[:, None, None], rows, columns]
            x = chosen.float() - mean[rows, columns]
        if self.axes is not None:
            x += (0.1 * torch.randn(batch, 3, **here) @ self.axes.T)[:, None, None]
        return (x * self.scale).permute(0, 3, 1, 2)

    def center(self, images: torch.Tensor) -> torch.Tensor:
        """The crop from the center."""
        size, (height, width) = self.crop_size, images.shape[1:3]
        top, left = (height - size) // 2, (width - size) // 2
        cut = slice(top, top + size), slice(left, left + size)
        return ((images[:, *cut].float() - self.mean[cut]) * self.scale).permute(0, 3, 1, 2)
