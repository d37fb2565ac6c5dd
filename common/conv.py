"""The fastest exact formulation of a small convolution per backend, and the masked convolution.

XLA's CPU convolutions are slow on images of a few channels, above all inside a loop: LeNet-5 at batch 128, forward and
backward in a `fori_loop` on two cores, makes 2,300 images/s with `lax.conv_general_dilated`, ten times as many with the form
below. So on a CPU a convolution becomes one matrix product with a banded (Toeplitz) matrix: neighbouring output columns share
most of their input, so a block of `n` output columns is one row of the product instead of `n`, at the price of multiplying some
zeros. On GPU and TPU the plain `lax` form stays. Both plug into `nnx.Conv(conv_general_dilated=...)`, and are the same function
to float accuracy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def convolution():
    """The convolution for this process's backend, with the signature of `lax.conv_general_dilated`."""
    return banded_convolution if jax.default_backend() == "cpu" else lax.conv_general_dilated


def masked(convolution, mask: np.ndarray):
    """`convolution` of a kernel of which only the weights with mask 1 exist.

    The mask, (kh, kw, in, out) of 0 and 1, is a constant of the program: no parameter, no state. A masked weight is multiplied
    by zero, so that its gradient is exactly zero; start it at zero and it stays there.
    """

    def masked_convolution(inputs, kernel, *args, **kwargs):
        return convolution(inputs, kernel * mask.astype(kernel.dtype), *args, **kwargs)

    return masked_convolution


def banded_convolution(inputs, kernel, window_strides, padding, *, preferred_element_type=None, **options):
    """A convolution (B, H, W, in) * (kh, kw, in, out) -> (B, H - kh + 1, W - kw + 1, out) as one banded matrix product.

    Written for what LeNet-5 has: stride 1, no padding, dilation or groups. Anything else goes to `lax.conv_general_dilated`.
    """
    ones = (window_strides, *(options.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation")))
    groups = [options.get(name, 1) for name in ("feature_group_count", "batch_group_count")]
    padded = padding != "VALID" and any(tuple(sides) != (0, 0) for sides in padding)
    if padded or any(tuple(one) != (1, 1) for one in ones) or groups != [1, 1]:
        return lax.conv_general_dilated(
            inputs, kernel, window_strides, padding, preferred_element_type=preferred_element_type, **options
        )
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
