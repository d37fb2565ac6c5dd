"""The fastest exact formulation of a convolution per backend, and the masked convolution.

On GPU and TPU that is `lax.conv_general_dilated`, and on a CPU, too, for most of AlexNet. But XLA is slow there on three kinds
of convolution; as matrix products they are the same function to float accuracy and faster, measured on two cores with JAX 0.10:

  Few channels, no padding, stride 1: LeNet-5, banded_convolution. Inside a loop, such as LeNet's `fori_loop` over steps, XLA
  convolves without the library that it calls elsewhere. At batch 128, forward and backward in the loop, LeNet-5 makes 2,300
  images/s with `lax.conv_general_dilated`, ten times as many banded. Outside of a loop, one step a call, `lax` is as fast or
  faster in the CIFAR-10 networks, even in their conv1 with its three channels.

  Few channels and a stride: AlexNet's conv1, strided_convolution. 227x227x3, 11x11, stride 4, to 96 maps, batch 32, forward and
  the gradient of the weights: 132 ms instead of 278; with the gradient of the images 177 instead of 439 ms.

  Groups: one convolution each. AlexNet's conv2, 27x27x96 to 256 maps in two groups, batch 32, forward and backward: 153 ms
  instead of 1,524; conv4 82 instead of 553 ms.

All of them plug into `nnx.Conv(conv_general_dilated=...)`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def convolution():
    """The convolution for this process's backend, with the signature of `lax.conv_general_dilated`."""
    return cpu_convolution if jax.default_backend() == "cpu" else lax.conv_general_dilated


FEW_CHANNELS = 16  # the most that LeNet-5 has, in C5's input


def cpu_convolution(inputs, kernel, window_strides, padding, *, feature_group_count=1, **options):
    """`lax.conv_general_dilated` of (B, H, W, in) and (kh, kw, in / groups, out) in the form that is fast on a CPU."""
    if feature_group_count > 1:
        parts = (jnp.split(array, feature_group_count, axis=-1) for array in (inputs, kernel))
        groups = [cpu_convolution(*part, window_strides, padding, **options) for part in zip(*parts, strict=True)]
        return jnp.concatenate(groups, axis=-1)
    sides = [(0, 0), (0, 0)] if padding == "VALID" else padding  # before and after, of rows and of columns
    dilations = [options.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation")]
    plain = all(tuple(dilation) == (1, 1) for dilation in dilations) and options.get("batch_group_count", 1) == 1
    if inputs.shape[-1] <= FEW_CHANNELS and not isinstance(sides, str) and plain:
        element_type = options.get("preferred_element_type")
        if tuple(window_strides) == (1, 1) and not np.any(sides):
            return banded_convolution(inputs, kernel, preferred_element_type=element_type)
        if window_strides[0] == window_strides[1] > 1:
            return strided_convolution(inputs, kernel, window_strides[0], sides, preferred_element_type=element_type)
    return lax.conv_general_dilated(inputs, kernel, window_strides, padding, **options)


def masked(convolution, mask: np.ndarray):
    """`convolution` of a kernel of which only the weights with mask 1 exist.

    The mask, (kh, kw, in, out) of 0 and 1, is a constant of the program: no parameter, no state. A masked weight is multiplied
    by zero, so that its gradient is exactly zero; start it at zero and it stays there.
    """

    def masked_convolution(inputs, kernel, *args, **kwargs):
        return convolution(inputs, kernel * mask.astype(kernel.dtype), *args, **kwargs)

    return masked_convolution


def banded_convolution(inputs, kernel, *, preferred_element_type=None):
    """A convolution (B, H, W, in) * (kh, kw, in, out) -> (B, H - kh + 1, W - kw + 1, out) as one banded matrix product.

    The matrix is banded (Toeplitz): neighbouring output columns share most of their input, so a block of `n` output columns is
    one row of the product instead of `n`, at the price of multiplying some zeros.
    """
    batch, height, width, channels = inputs.shape
    kernel_height, kernel_width, _, features = kernel.shape
    rows, columns = height - kernel_height + 1, width - kernel_width + 1  # of the output
    n = block_columns(columns)
    span = n + kernel_width - 1  # the input columns that a block of n output columns sees

    # band[i, q, c, p, f] = kernel[i, q - p, c, f]: the kernel once for each of the n output columns p, shifted by p.
    shifted = [jnp.pad(kernel, ((0, 0), (p, n - 1 - p), (0, 0), (0, 0))) for p in range(n)]
    band = jnp.stack(shifted, axis=3).reshape(kernel_height * span * channels, n * features)

    blocks = jnp.stack([inputs[:, :, j : j + span] for j in range(0, columns, n)], axis=2)  # (B, H, W'/n, span, in)
    blocks = blocks.reshape(batch, height, columns // n, span * channels)
    patches = jnp.concatenate([blocks[:, i : i + rows] for i in range(kernel_height)], axis=-1)  # (B, H', W'/n, kh*span*in)
    outputs = jnp.matmul(patches, band, preferred_element_type=preferred_element_type)  # (B, H', W'/n, n*out)
    return outputs.reshape(batch, rows, columns, features)


def block_columns(columns: int) -> int:
    """How many output columns one row of the product computes: measured for LeNet-5's 28 and 10 columns, else a divisor <= 8.

    More columns make fewer, wider rows and multiply more zeros: (n + 4) / 5 times the work of a 5x5 kernel.
    """
    measured = {28: 4, 10: 5}
    return measured.get(columns) or max(n for n in range(1, 9) if columns % n == 0)


def strided_convolution(inputs, kernel, stride: int, padding, *, preferred_element_type=None):
    """A convolution (B, H, W, in) * (kh, kw, in, out) -> (B, H', W', out) with the stride in both directions, as one product.

    Each square of stride x stride pixels becomes one pixel of stride^2 * in channels, and the kernel, filled up with zeros to a
    multiple of the stride, shrinks likewise: AlexNet's conv1, 11x11 on 3 channels, becomes 3x3 on 48 without a stride.

    Args:
      padding: rows before and after, columns before and after: ((top, bottom), (left, right)).
    """
    batch, *sides, channels = inputs.shape
    *kernel_sides, _, features = kernel.shape
    height, width = (-(-side // stride) for side in kernel_sides)  # of the kernel, in squares
    rows, columns = (  # of the output
        (side + sum(around) - kernel_side) // stride + 1
        for side, around, kernel_side in zip(sides, padding, kernel_sides, strict=True)
    )
    tall, wide = rows + height - 1, columns + width - 1  # of the input, in squares
    # What the last window does not reach is cut off: lax.pad may pad by less than nothing.
    around = [
        (before, squares * stride - side - before, 0)
        for (before, _), squares, side in zip(padding, (tall, wide), sides, strict=True)
    ]
    inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    inputs = inputs.reshape(batch, tall, stride, wide, stride, channels).swapaxes(2, 3)
    inputs = inputs.reshape(batch, tall, wide, stride * stride * channels)

    filling = [(0, squares * stride - side) for squares, side in zip((height, width), kernel_sides, strict=True)]
    kernel = jnp.pad(kernel, (*filling, (0, 0), (0, 0)))
    kernel = kernel.reshape(height, stride, width, stride, channels, features).swapaxes(1, 2).reshape(-1, features)

    windows = [inputs[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
    patches = jnp.concatenate(windows, axis=-1)  # (B, H', W', height * width * stride^2 * in)
    return jnp.matmul(patches, kernel, preferred_element_type=preferred_element_type)
