"""The fastest exact formulation of a convolution per backend, and the masked convolution.

On GPU and TPU that is `lax.conv_general_dilated`, and on a CPU, too, for most of AlexNet. But XLA is slow there on four kinds
of convolution; as matrix products they are the same function to float accuracy and faster, measured on two cores with JAX 0.10:

  LeNet-5's, batch_last_convolution. A loop over steps, such as LeNet's `fori_loop`, convolves without the library that XLA
  calls elsewhere: at batch 128 the preset deck trains on 2,300 images/s with `lax`. As products with a banded matrix, and all
  layers on (B, H, W, maps) arrays, it was 16,000: most of the time went into biases, activations and pooling, whose innermost
  loops ran over 6 or 16 maps. With the batch last these loops run over the batch: 27,000.

  Few channels and a stride: AlexNet's conv1, strided_convolution. 227x227x3, 11x11, stride 4, to 96 maps, batch 32, forward and
  the gradient of the weights: 132 ms instead of 278; with the gradient of the images 177 instead of 439 ms.

  Groups: one convolution each. AlexNet's conv2, 27x27x96 to 256 maps in two groups, batch 32, forward and backward: 153 ms
  instead of 1,524; conv4 82 instead of 553 ms.

  Large kernels on many channels, the gradient of the weights: wide_convolution. AlexNet's conv2, 27x27x96, 5x5, to 256 maps,
  batch 32: 188 ms instead of 331, one product for each of the 25 pixels of the kernel. With 3x3 kernels (conv3, conv4, conv5)
  the two are equally fast.

The last three plug into `nnx.Conv(conv_general_dilated=...)`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def convolution():
    """The convolution for this process's backend, with the signature of `lax.conv_general_dilated`."""
    return cpu_convolution if jax.default_backend() == "cpu" else lax.conv_general_dilated


def batch_last_convolution():
    """The convolution of (H, in, W, B) arrays for this process's backend, with the signature of `lax_convolution`."""
    return banded_convolution if jax.default_backend() == "cpu" else lax_convolution


FEW_CHANNELS = 16  # the most with which strided_convolution is used
MANY_CHANNELS = 48  # the least with which wide_convolution is


def cpu_convolution(inputs, kernel, window_strides, padding, *, feature_group_count=1, **options):
    """`lax.conv_general_dilated` of (B, H, W, in) and (kh, kw, in / groups, out) in the form that is fast on a CPU."""
    if feature_group_count > 1:
        parts = (jnp.split(array, feature_group_count, axis=-1) for array in (inputs, kernel))
        groups = [cpu_convolution(*part, window_strides, padding, **options) for part in zip(*parts, strict=True)]
        return jnp.concatenate(groups, axis=-1)
    sides = [(0, 0), (0, 0)] if padding == "VALID" else padding  # before and after, of rows and of columns
    dilations = [options.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation")]
    plain = all(tuple(dilation) == (1, 1) for dilation in dilations) and options.get("batch_group_count", 1) == 1
    if inputs.shape[-1] <= FEW_CHANNELS and window_strides[0] == window_strides[1] > 1 and plain and not isinstance(sides, str):
        element_type = options.get("preferred_element_type")
        return strided_convolution(inputs, kernel, window_strides[0], sides, preferred_element_type=element_type)
    if min(kernel.shape[:2]) >= 5 and kernel.shape[2] >= MANY_CHANNELS and tuple(window_strides) == (1, 1) and plain:
        return wide_convolution(inputs, kernel, padding, **options)
    return lax.conv_general_dilated(inputs, kernel, window_strides, padding, **options)


def masked(convolution, mask: np.ndarray):
    """`convolution` of a kernel of which only the weights with mask 1 exist.

    The mask, (kh, kw, in, out) of 0 and 1, is a constant of the program: no parameter, no state. A masked weight is multiplied
    by zero, so that its gradient is exactly zero; start it at zero and it stays there.
    """

    def masked_convolution(x, kernel):
        return convolution(x, kernel * mask.astype(kernel.dtype))

    return masked_convolution


def lax_convolution(x, kernel):
    """A convolution (H, in, W, B) * (kh, kw, in, out) -> (H - kh + 1, out, W - kw + 1, B), by `lax`."""
    layout = ("HCWN", "HWIO", "HCWN")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


def banded_convolution(x, kernel):
    """The same as products of a banded matrix with the pixels.

    The matrix is banded (Toeplitz): neighbouring outputs share most of their inputs, so a block of n x m outputs is one column
    of a product, at the price of multiplying some zeros. Rows stand in front and the batch at the end, so that what a row of
    blocks sees is one piece of memory, and patches are gathered in pieces of whole batches.
    """
    height, channels, width, batch = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    rows, columns = height - kernel_height + 1, width - kernel_width + 1  # of the output
    n, m = block_of_outputs(rows, columns)
    tall, wide = n + kernel_height - 1, m + kernel_width - 1  # what a block sees of the input
    across = columns // m  # blocks

    # band[p, r, f, q, c, s] = kernel[q - p, s - r, c, f]: the kernel once for each of the n x m outputs, moved by p and r.
    band = kernel.transpose(3, 0, 2, 1)  # (out, kh, in, kw)
    band = jnp.stack([jnp.pad(band, ((0, 0), (p, n - 1 - p), (0, 0), (0, 0))) for p in range(n)])
    band = jnp.stack([jnp.pad(band, ((0, 0), (0, 0), (0, 0), (0, 0), (r, m - 1 - r))) for r in range(m)], axis=1)
    band = band.reshape(n * m * features, tall * channels * wide)

    outputs = []
    for top in range(0, rows, n):
        seen = x[top : top + tall]  # (tall, in, W, B)
        patches = [seen[:, :, s : s + (across - 1) * m + 1 : m] for s in range(wide)]
        patches = jnp.stack(patches, axis=2).reshape(tall * channels * wide, across * batch)
        blocks = (band @ patches).reshape(n, m, features, across, batch).swapaxes(1, 2).swapaxes(2, 3)
        outputs.append(blocks.reshape(n, features, columns, batch))
    return jnp.concatenate(outputs)  # (H', out, W', B)


def block_of_outputs(rows: int, columns: int) -> tuple[int, int]:
    """How many outputs, down and across, one column of the product computes: measured for LeNet-5's C1 and C3, else a row or
    more of one column, a divisor <= 8.

    Larger blocks gather less and multiply more zeros: (n + 4) / 5 * (m + 4) / 5 times the work of a 5x5 kernel.
    """
    measured = {(28, 28): (4, 4), (10, 10): (5, 1)}
    return measured.get((rows, columns)) or (max(n for n in range(1, 9) if rows % n == 0), 1)


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


def wide_convolution(inputs, kernel, padding, **options):
    """`lax.conv_general_dilated` of (B, H, W, in) without a stride, its gradient by the kernel made of one product a pixel."""
    sides = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], (1, 1), padding) if isinstance(padding, str) else padding

    def plain(inputs, kernel):
        return lax.conv_general_dilated(inputs, kernel, (1, 1), sides, **options)

    def backward(saved, gradient):
        inputs, kernel = saved
        _, pull_back = jax.vjp(lambda inputs: plain(inputs, kernel), inputs)
        height, width, features = gradient.shape[1:]
        padded = jnp.pad(inputs, ((0, 0), *sides, (0, 0)))

        def at(i, j):  # (in, out): what one pixel of the kernel saw, times the gradient
            seen = padded[:, i : i + height, j : j + width].reshape(-1, inputs.shape[-1])
            return jnp.matmul(seen.T, gradient.reshape(-1, features), preferred_element_type=kernel.dtype)

        kernel_gradient = [jnp.stack([at(i, j) for j in range(kernel.shape[1])]) for i in range(kernel.shape[0])]
        return pull_back(gradient)[0], jnp.stack(kernel_gradient)

    convolve = jax.custom_vjp(plain)
    convolve.defvjp(lambda inputs, kernel: (plain(inputs, kernel), (inputs, kernel)), backward)
    return convolve(inputs, kernel)
