"""The fastest exact formulation of a convolution per backend, and the masked convolution.

On GPU and TPU that is `lax.conv_general_dilated`. On a CPU XLA is slow on most of what the two
networks need; in other forms these are the same functions to float accuracy and faster, measured
forward and backward on two cores with JAX 0.10 (results/benchmark_attempts.json):

  LeNet-5's, batch_last_convolution. A loop over steps, such as LeNet's `fori_loop`, convolves
  without the library that XLA calls elsewhere: four batches of 128 take C3 112 ms with `lax`, and
  11 as products with a banded matrix; C1 18 and 8. The batch is last because the innermost loops of
  biases, activations and pooling would run over 6 or 16 maps else.

  3x3 and 5x5 kernels on many channels: winograd_convolution, which multiplies less. Batch 32:
  AlexNet's conv2 (27x27x96, 5x5, to 256 maps) 186 instead of 509 ms, conv3 (13x13x256, 3x3, to 384)
  91 instead of 164.

  Few channels with a stride: strided_convolution, which makes them many. AlexNet's conv1
  (227x227x3, 11x11, stride 4, to 96 maps), batch 32, without the gradient of the images: 76 instead
  of 303 ms.

  Few channels without: few_channels_convolution. The first layer of cifar18 (24x24x3, 5x5, to 32
  maps), batch 128: 8 instead of 21 ms.

  Groups: one convolution each. AlexNet's conv2 in two, batch 32: 132 instead of 1,825 ms.

All but the first plug into `nnx.Conv(conv_general_dilated=...)`. Some have a gradient written by
hand (`jax.custom_vjp`), which forward-mode differentiation (`jax.jvp`) refuses.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def convolution(model_axis: bool = False):
    """The convolution for this process's backend, with the signature of `lax.conv_general_dilated`.

    Under a mesh with a model axis it is `lax` itself: there the compiler places what moves between
    devices, and of `winograd_convolution` it would add up the gradients of the transformed kernels,
    up to four times as many bytes.
    """
    return (
        cpu_convolution
        if jax.default_backend() == "cpu" and not model_axis
        else lax.conv_general_dilated
    )


def batch_last_convolution():
    """The convolution of (H, in, W, B) arrays for this process's backend, with the signature of
    `lax_convolution`.
    """
    return banded_convolution if jax.default_backend() == "cpu" else lax_convolution


MANY_CHANNELS = (
    32  # the least with which winograd_convolution is used, and not few_channels_convolution
)
MANY_TILES = 40  # of a single image; with fewer, transforming the kernel is most of the work
OUTPUTS_A_TILE = {
    3: (2, 3, 4),
    5: (3, 4),
}  # a side, by the size of the kernel; larger tiles round more
CHANNELS_OF_PARTS = (
    64  # the most with which the gradient of a kernel is summed in parts: more make the parts large
)


def cpu_convolution(inputs, kernel, window_strides, padding, *, feature_group_count=1, **options):
    """`lax.conv_general_dilated` of (B, H, W, in) and (kh, kw, in / groups, out) in the form that
    is fast on a CPU.
    """
    if feature_group_count > 1:
        parts = (jnp.split(array, feature_group_count, axis=-1) for array in (inputs, kernel))
        groups = [
            cpu_convolution(*part, window_strides, padding, **options)
            for part in zip(*parts, strict=True)
        ]
        return jnp.concatenate(groups, axis=-1)
    dilations = [options.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation")]
    plain = (
        all(tuple(dilation) == (1, 1) for dilation in dilations)
        and options.get("batch_group_count", 1) == 1
    )
    if not plain:
        return lax.conv_general_dilated(inputs, kernel, window_strides, padding, **options)
    sides = padding  # before and after, of rows and of columns
    if isinstance(padding, str):
        sides = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], window_strides, padding)
    element_type, few = options.get("preferred_element_type"), inputs.shape[-1] < MANY_CHANNELS
    if tuple(window_strides) != (1, 1):
        convolve = strided_convolution if few else lax.conv_general_dilated
        return convolve(inputs, kernel, window_strides, sides, **options)
    if few and kernel.shape[1] <= 5:
        return few_channels_convolution(inputs, kernel, sides, preferred_element_type=element_type)
    if not few and has_winograd(inputs.shape, kernel.shape, sides):
        return winograd_convolution(inputs, kernel, sides, preferred_element_type=element_type)
    return lax.conv_general_dilated(inputs, kernel, window_strides, sides, **options)


def masked(convolution, mask: np.ndarray):
    """`convolution` of a kernel of which only the weights with mask 1 exist.

    The mask, (kh, kw, in, out) of 0 and 1, is a constant of the program: no parameter, no state. A
    masked weight is multiplied by zero, so that its gradient is exactly zero; start it at zero and
    it stays there.
    """

    def masked_convolution(x, kernel):
        return convolution(x, kernel * mask.astype(kernel.dtype))

    return masked_convolution


def lax_convolution(x, kernel):
    """A convolution (H, in, W, B) * (kh, kw, in, out) -> (H - kh + 1, out, W - kw + 1, B), by
    `lax`.
    """
    layout = ("HCWN", "HWIO", "HCWN")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


def banded_convolution(x, kernel):
    """The same as products of a banded matrix with the pixels.

    The matrix is banded (Toeplitz): neighbouring outputs share most of their inputs, so a block of
    n x m outputs is one column of a product, at the price of multiplying some zeros. Rows stand in
    front and the batch at the end, so that what a row of blocks sees is one piece of memory, and
    patches are gathered in pieces of whole batches.
    """
    height, channels, width, batch = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    rows, columns = height - kernel_height + 1, width - kernel_width + 1  # of the output
    n, m = block_of_outputs(rows, columns)
    tall, wide = n + kernel_height - 1, m + kernel_width - 1  # what a block sees of the input
    across = columns // m  # blocks

    # band[p, r, f, q, c, s] = kernel[q - p, s - r, c, f]: the kernel once for each of the n x m
    # outputs, moved by p and r.
    band = kernel.transpose(3, 0, 2, 1)  # (out, kh, in, kw)
    band = jnp.stack([jnp.pad(band, ((0, 0), (p, n - 1 - p), (0, 0), (0, 0))) for p in range(n)])
    band = jnp.stack(
        [jnp.pad(band, ((0, 0), (0, 0), (0, 0), (0, 0), (r, m - 1 - r))) for r in range(m)], axis=1
    )
    band = band.reshape(n * m * features, tall * channels * wide)

    outputs = []
    for top in range(0, rows, n):
        seen = x[top : top + tall]  # (tall, in, W, B)
        patches = [seen[:, :, s : s + (across - 1) * m + 1 : m] for s in range(wide)]
        patches = jnp.stack(patches, axis=2).reshape(tall * channels * wide, across * batch)
        blocks = (
            (band @ patches).reshape(n, m, features, across, batch).swapaxes(1, 2).swapaxes(2, 3)
        )
        outputs.append(blocks.reshape(n, features, columns, batch))
    return jnp.concatenate(outputs)  # (H', out, W', B)


def block_of_outputs(rows: int, columns: int) -> tuple[int, int]:
    """How many outputs, down and across, one column of the product computes: measured for LeNet-5's
    C1 and C3, else a row or more of one column, a divisor <= 8.

    Larger blocks gather less and multiply more zeros: (n + 4) / 5 * (m + 4) / 5 times the work of a
    5x5 kernel.
    """
    measured = {(28, 28): (4, 4), (10, 10): (5, 1)}
    return measured.get((rows, columns)) or (max(n for n in range(1, 9) if rows % n == 0), 1)


def few_channels_convolution(inputs, kernel, padding, *, preferred_element_type=None):
    """A convolution (B, H, W, in) * (kh, kw, in, out) -> (B, H', W', out) without a stride, kw <=
    5.

    Winograd's filtering (below) along the rows of the image alone, m = 4 outputs by n = kw + 3
    products; down the columns two outputs are computed as one, of 2 * out channels, from patches of
    kh + 1 pixels. The gradients are those of `lax`, which takes long only for the outputs.
    """
    *kernel_sides, channels, features = kernel.shape
    kernel_height, kernel_width = kernel_sides
    (top, _), (left, _) = padding
    m, n, pair, tall = 4, kernel_width + 3, 2, kernel_height + 1
    of_pixels, of_kernel, of_products = winograd_matrices(m, kernel_width)
    outputs_dtype, dtype = (
        preferred_element_type or inputs.dtype,
        jnp.promote_types(inputs.dtype, jnp.float32),
    )

    def convolve(inputs, kernel):
        batch, height, width, _ = inputs.shape
        rows, columns = output_sides(inputs.shape, kernel_sides, padding)
        down, across = -(-rows // pair), -(-columns // m)
        around = (
            (top, down * pair + tall - pair - height - top),
            (left, across * m + n - m - width - left),
        )
        inputs = jnp.pad(inputs, ((0, 0), *around, (0, 0)))
        lines = combine(
            of_pixels, [inputs[:, :, j : j + (across - 1) * m + 1 : m] for j in range(n)]
        )  # (n, B, H, across, in)
        patches = jnp.stack(
            [lines[:, :, i : i + (down - 1) * pair + 1 : pair] for i in range(tall)], axis=-2
        )
        kernel = jnp.tensordot(jnp.asarray(of_kernel, dtype), kernel, (1, 1))  # (n, kh, in, out)
        moved = [jnp.pad(kernel, ((0, 0), (i, pair - 1 - i), (0, 0), (0, 0))) for i in range(pair)]
        kernel = jnp.stack(moved, axis=3).reshape(n, tall * channels, pair * features)
        products = patches.reshape(n, -1, tall * channels) @ kernel
        outputs = combine(
            of_products, list(products.reshape(n, batch, down, across, pair, features))
        )
        outputs = outputs.transpose(1, 2, 4, 3, 0, 5).reshape(
            batch, down * pair, across * m, features
        )
        return outputs[:, :rows, :columns]

    def backward(arrays, gradient):
        layout = ("NHWC", "HWIO", "NHWC")
        _, pull_back = jax.vjp(
            lambda *arrays: lax.conv_general_dilated(
                *arrays, (1, 1), padding, dimension_numbers=layout
            ),
            *arrays,
        )
        return pull_back(gradient)

    convolution = jax.custom_vjp(convolve)
    convolution.defvjp(lambda *arrays: (convolve(*arrays), arrays), backward)
    return convolution(inputs.astype(dtype), kernel.astype(dtype)).astype(outputs_dtype)


def strided_convolution(inputs, kernel, strides, padding, **options):
    """A convolution (B, H, W, in) * (kh, kw, in, out) -> (B, H', W', out) with strides, as one
    without.

    Each block of stride x stride pixels becomes one pixel of stride^2 * in channels, and the
    kernel, filled up with zeros to a
    multiple of the stride, shrinks likewise: AlexNet's conv1, 11x11 on 3 channels, becomes 3x3 on
    48 without a stride.

    Args:
      strides: of rows and of columns.
      padding: rows before and after, columns before and after: ((top, bottom), (left, right)).
    """
    batch, *sides, channels = inputs.shape
    *kernel_sides, _, features = kernel.shape
    height, width = (
        -(-side // stride) for side, stride in zip(kernel_sides, strides, strict=True)
    )  # of the kernel, in blocks
    rows, columns = (  # of the output
        (side + sum(around) - kernel_side) // stride + 1
        for side, around, kernel_side, stride in zip(
            sides, padding, kernel_sides, strides, strict=True
        )
    )
    tall, wide = rows + height - 1, columns + width - 1  # of the input, in blocks
    # What the last window does not reach is cut off: lax.pad may pad by less than nothing.
    around = [
        (before, blocks * stride - side - before, 0)
        for (before, _), blocks, side, stride in zip(
            padding, (tall, wide), sides, strides, strict=True
        )
    ]
    block = math.prod(strides) * channels
    inputs = lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    inputs = inputs.reshape(batch, tall, strides[0], wide, strides[1], channels).swapaxes(2, 3)
    inputs = inputs.reshape(batch, tall, wide, block)

    filling = [
        (0, blocks * stride - side)
        for blocks, stride, side in zip((height, width), strides, kernel_sides, strict=True)
    ]
    kernel = jnp.pad(kernel, (*filling, (0, 0), (0, 0)))
    kernel = kernel.reshape(height, strides[0], width, strides[1], channels, features).swapaxes(
        1, 2
    )
    kernel = kernel.reshape(height, width, block, features)
    return cpu_convolution(inputs, kernel, (1, 1), "VALID", **options)


def winograd_convolution(inputs, kernel, padding, *, preferred_element_type=None):
    """A convolution (B, H, W, in) * (k, k, in, out) -> (B, H', W', out) without a stride, k = 3 or
    5, by Winograd's filtering.

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), section 4:
    the outputs are cut into tiles of m x m. All that a tile sees, n x n pixels with n = m + k - 1,
    and the kernel are transformed, multiplied one by one and summed over the channels, and what
    comes out is transformed back. That is n^2 products for m^2 outputs in place of k^2 m^2: 36 for
    144 with 3x3 kernels and m = 4, 64 for 400 with 5x5. The gradients have the same form.

    In float32 it rounds up to six times as much as `lax` with 3x3 kernels, 1.3e-6 of the outputs'
    size; with 5x5 ten, 3e-6. The gradient of a kernel is a long sum, of all tiles, before it is
    transformed back: with 5x5 kernels 1e-5 of its size, a third of that where it is summed in 16
    parts.

    Args:
      padding: zeros before and after, of rows and of columns: ((top, bottom), (left, right)), each
        less than k.
    """
    size, outputs_dtype = kernel.shape[0], preferred_element_type or inputs.dtype
    dtype = jnp.promote_types(
        inputs.dtype, jnp.float32
    )  # what is transformed is not rounded to bfloat16
    m = outputs_a_tile(output_sides(inputs.shape, (size, size), padding), size)
    n = m + size - 1
    of_pixels, of_kernel, of_products = winograd_matrices(m, size)

    def transform_kernel(kernel):  # (k, k, in, out) -> (n^2, in, out)
        both = jnp.asarray(np.kron(of_kernel, of_kernel), dtype)
        return (both @ kernel.reshape(size * size, -1)).reshape(n * n, *kernel.shape[2:])

    def convolve(inputs, kernel, padding):
        """The outputs, of a transformed kernel, and the transformed tiles, (n, n, B, down, across,
        in).
        """
        *sides, channels = inputs.shape[1:]
        (top, _), (left, _) = padding
        rows, columns = output_sides(inputs.shape, (size, size), padding)
        down, across = -(-rows // m), -(-columns // m)  # tiles
        bottom, right = (
            down * m + size - 1 - sides[0] - top,
            across * m + size - 1 - sides[1] - left,
        )
        inputs = jnp.pad(inputs, ((0, 0), (top, bottom), (left, right), (0, 0)))
        lines = combine(
            of_pixels, [inputs[:, i : i + (down - 1) * m + 1 : m] for i in range(n)]
        )  # (n, B, down, W, in)
        tiles = combine(
            of_pixels, [lines[:, :, :, j : j + (across - 1) * m + 1 : m] for j in range(n)], axis=1
        )
        products = (tiles.reshape(n * n, -1, channels) @ kernel).reshape(*tiles.shape[:-1], -1)
        lines = combine(of_products, list(products))  # (m, n, B, down, across, out)
        outputs = combine(of_products, [lines[:, j] for j in range(n)], axis=1)
        outputs = outputs.transpose(2, 3, 0, 4, 1, 5).reshape(
            -1, down * m, across * m, kernel.shape[-1]
        )
        return outputs[:, :rows, :columns], tiles

    def forward(inputs, kernel):
        outputs, tiles = convolve(inputs, transform_kernel(kernel), padding)
        return outputs, (tiles, kernel)

    def backward(saved, gradient):
        tiles, kernel = saved
        around = [[size - 1 - zeros for zeros in side] for side in padding]
        inputs_gradient, _ = convolve(
            gradient, transform_kernel(kernel[::-1, ::-1].swapaxes(2, 3)), around
        )

        batch, rows, columns, features = gradient.shape
        *_, down, across, channels = tiles.shape
        gradient = jnp.pad(
            gradient, ((0, 0), (0, down * m - rows), (0, across * m - columns), (0, 0))
        )
        gradient = gradient.reshape(batch, down, m, across, m, features)
        lines = combine(
            of_products.T, [gradient[:, :, i] for i in range(m)]
        )  # (n, B, down, across, m, out)
        gradient = combine(of_products.T, [lines[:, :, :, :, j] for j in range(m)], axis=1)
        parts = math.gcd(batch, 16) if channels <= CHANNELS_OF_PARTS else 1
        gradient = gradient.reshape(
            n * n, parts, -1, features
        )  # (n^2, parts, B * tiles / parts, out)
        tiles = tiles.reshape(n * n, parts, -1, channels).swapaxes(2, 3)
        if parts > 1:  # transposed once, before the products, which take twice as long otherwise
            tiles = lax.optimization_barrier(tiles)
        products = (tiles @ gradient).sum(1)  # (n^2, in, out)
        both = jnp.asarray(np.kron(of_kernel, of_kernel).T, dtype)
        return inputs_gradient, (both @ products.reshape(n * n, -1)).reshape(kernel.shape)

    convolution = jax.custom_vjp(lambda inputs, kernel: forward(inputs, kernel)[0])
    convolution.defvjp(forward, backward)
    return convolution(inputs.astype(dtype), kernel.astype(dtype)).astype(outputs_dtype)


def has_winograd(shape, kernel_shape, padding) -> bool:
    """Whether winograd_convolution can compute it, and is the faster for it."""
    size = kernel_shape[0]
    if kernel_shape[1] != size or size not in OUTPUTS_A_TILE or max(map(max, padding)) >= size:
        return False
    sides = output_sides(shape, kernel_shape[:2], padding)
    m = outputs_a_tile(sides, size)
    return shape[0] > 1 or math.prod(-(-side // m) for side in sides) >= MANY_TILES


def output_sides(shape, kernel_sides, padding) -> list[int]:
    """Rows and columns of the outputs, without a stride, for inputs of this shape, (B, H, W, in)."""
    return [
        side + sum(around) - size + 1
        for side, size, around in zip(shape[1:3], kernel_sides, padding, strict=True)
    ]


def outputs_a_tile(sides, size: int) -> int:
    """m, with which there is least to multiply for outputs of these two sides."""
    return min(
        OUTPUTS_A_TILE[size],
        key=lambda m: math.prod(-(-side // m) * (m + size - 1) for side in sides),
    )


def combine(matrix: np.ndarray, arrays: list[jax.Array], axis: int = 0) -> jax.Array:
    """matrix @ arrays, which become one array along `axis`: sums that XLA computes in one pass,
    where a product with so small a matrix takes three times as long.

    Weights are cut into powers of two, by which products are exact. Of others the compiler fuses
    some with the addition, which
    then round once: not the same ones in each program, and `--reduction=fixed` promises the same
    bits of all.
    """
    sums = [
        sum(
            power * array
            for weight, array in zip(row, arrays, strict=True)
            for power in powers_of_two(weight)
        )
        for row in matrix
    ]
    return jnp.stack(sums, axis)


def powers_of_two(number: float) -> list[float]:
    """A few powers of two, with signs, that add up to a number of few binary digits: 5.25 = 4 + 1 +
    1/4, 3.75 = 4 - 1/4.
    """
    powers = []
    while number:
        powers.append(math.copysign(2.0 ** round(math.log2(abs(number))), number))
        number -= powers[-1]
    return powers


@functools.cache
def winograd_matrices(m: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transformations of n pixels, (n, n), of a kernel, (n, size), and back to m outputs, (m,
    n), along one side of a tile.

    By Toom and Cook: polynomials are multiplied by their values at n - 1 points and at infinity.
    Here in its transposed form: B^T, G and A^T of the paper.
    """
    points = np.array([0, 1, -1, 2, -0.5, -2, 0.5])[: m + size - 2]
    others = [points[points != point] for point in points]
    at_infinity = np.eye(size)[-1:], np.eye(m)[:, -1:]
    of_pixels = [[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]]
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    of_kernel = np.concatenate([np.vander(points, size, increasing=True) / scale, at_infinity[0]])
    of_products = np.concatenate([np.vander(points, m, increasing=True).T, at_infinity[1]], axis=1)
    return np.array(of_pixels), of_kernel, of_products
