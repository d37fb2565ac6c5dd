"""The fastest exact form of a convolution on each backend, and the masked convolution.

On GPU and TPU that is `lax.conv_general_dilated`. On a CPU, XLA is slow on most of what the two
networks need. Other forms compute the same to float accuracy and are faster: in parentheses, how
many times as long `lax` takes forward and backward on two cores with JAX 0.10
(results/benchmark_attempts.json):

  LeNet-5, `batch_last_convolution`: inside a loop such as `fori_loop`, XLA does not call the
  library that it uses elsewhere. Products with a banded matrix take its place (C1: 2, C3: 10). The
  batch is the last axis, because the innermost loops of biases, activations and pooling would
  otherwise run over 6 or 16 maps.

  3x3 and 5x5 kernels on many channels, `winograd_convolution`: fewer multiplications (AlexNet's
  conv2: 2.8; conv3 to conv5: 1.6 to 1.9).

  Few channels with a stride, `strided_convolution`, which turns pixels into channels (AlexNet's
  conv1, without the gradient of the images: 5).

  Few channels without a stride, `few_channels_convolution` (conv1 of cifar18: 2.5).

  Groups: one convolution each (AlexNet's conv2 in two groups: 17).

All but the first plug into `nnx.Conv(conv_general_dilated=...)`. Some have a custom gradient
(`jax.custom_vjp`), which forward-mode differentiation (`jax.jvp`) does not support.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jaxtyping import Array, Float

# B examples, H rows and W columns of pixels; kernels are (kh, kw, in, out).
Images, Kernel = Float[Array | np.ndarray, "B H W inputs"], Float[Array, "kh kw inputs outputs"]
Outputs = Float[Array, "B rows columns outputs"]
BatchLast = Float[Array | np.ndarray, "H inputs W B"]
BatchLastOutputs = Float[Array, "H-kh+1 outputs W-kw+1 B"]
Padding = Sequence[Sequence[int]]  # ((top, bottom), (left, right))

MANY_CHANNELS = 32  # from here on winograd_convolution, below few_channels_convolution
MANY_TILES = 40  # of a single image; with fewer, most of the work is the kernel's transform
TILE_SIDES = {3: (2, 3, 4), 5: (3, 4)}  # outputs, by kernel size; larger tiles round more
CHANNELS_OF_PARTS = 64  # at most, where a kernel's gradient is summed in parts (they get large)


def convolution(model_axis: bool = False) -> Callable[..., Outputs]:
    """The convolution of NHWC images by HWIO kernels for this process's backend, with the arguments
    that Flax gives to `lax.conv_general_dilated`.

    With a model axis it is `lax` itself: there the compiler places the communication, and it would
    all-reduce the gradients of `winograd_convolution`'s transformed kernels, which are up to four
    times as large.
    """
    fast = jax.default_backend() == "cpu" and not model_axis
    return cpu_convolution if fast else lax.conv_general_dilated


def batch_last_convolution() -> Callable[[BatchLast, Kernel], BatchLastOutputs]:
    """The convolution of (H, in, W, B) arrays for this process's backend."""
    return banded_convolution if jax.default_backend() == "cpu" else lax_convolution


def cpu_convolution(
    inputs: Images,
    kernel: Float[Array | np.ndarray, "kh kw group_inputs outputs"],
    window_strides: Sequence[int],
    padding: Padding | str,
    *,
    feature_group_count: int = 1,
    **options,
) -> Float[Array, "N rows columns outputs"]:
    """`lax.conv_general_dilated` in the form that is fast on a CPU."""
    if is_exported(inputs.shape[0]):
        options["feature_group_count"] = feature_group_count
        return lax.conv_general_dilated(inputs, kernel, window_strides, padding, **options)
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
    sides = padding
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


def is_exported(batch) -> bool:
    """Whether a program is traced for batches of any size (`jax.export`): it will run on any
    backend, and the plain forms suit all of them.
    """
    return export.is_symbolic_dim(batch)


def masked(convolution: Callable, mask: Float[np.ndarray, "kh kw inputs outputs"]) -> Callable:
    """`convolution` with a kernel in which only the weights with mask 1 exist.

    The mask is a constant of the program, not state. Masked weights are multiplied by zero, so
    their gradients are exactly zero: weights that start at zero stay there.
    """

    def masked_convolution(x, kernel):
        return convolution(x, kernel * mask.astype(kernel.dtype))

    return masked_convolution


def lax_convolution(x: BatchLast, kernel: Kernel) -> BatchLastOutputs:
    """A convolution without padding, by `lax`."""
    layout = ("HCWN", "HWIO", "HCWN")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)


def banded_convolution(x: BatchLast, kernel: Kernel) -> BatchLastOutputs:
    """The same as one matrix product per row of blocks; a block is n x m outputs of every map.

    A block sees (n + kh - 1) x (m + kw - 1) pixels of each input map. Its outputs are linear in
    them: a matrix with one row per output, which holds the kernel, shifted by the output's position
    in the block, and zeros elsewhere. Such a matrix is banded (block Toeplitz). It multiplies those
    zeros, too, but larger blocks gather each pixel fewer times. Rows are the first axis and the
    batch the last, so that the pixels of a row of blocks are contiguous and whole batches are
    copied at once.
    """
    height, channels, width, batch = x.shape
    if is_exported(batch):
        return lax_convolution(x, kernel)
    kernel_height, kernel_width, _, features = kernel.shape
    rows, columns = height - kernel_height + 1, width - kernel_width + 1  # of the output
    n, m = block_of_outputs(rows, columns)
    tall, wide = n + kernel_height - 1, m + kernel_width - 1  # the pixels that a block sees
    across = columns // m  # blocks

    # band[p, r, f, q, c, s] = kernel[q - p, s - r, c, f]: output (p, r) of map f, pixel (q, s) of
    # map c.
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
    """(n, m), the rows and columns of a block: the fastest for LeNet-5's C1 and C3, else up to
    eight rows of one column.

    With a 5x5 kernel, zeros make it (n + 4) / 5 * (m + 4) / 5 times as many multiplications.
    """
    measured = {(28, 28): (4, 4), (10, 10): (5, 1)}
    return measured.get((rows, columns)) or (max(n for n in range(1, 9) if rows % n == 0), 1)


def few_channels_convolution(
    inputs: Images, kernel: Kernel, padding: Padding, *, preferred_element_type=None
) -> Outputs:
    """A convolution without a stride, for kernels of up to 5 columns.

    Winograd's filtering (see `winograd_convolution`) along the rows of the image alone: m = 4
    outputs from n = kw + 3 products. Down the columns, two outputs are computed as one of 2 * out
    channels, from patches of kh + 1 rows. The gradients are those of `lax`, which is slow only for
    the outputs.
    """
    *kernel_sides, channels, features = kernel.shape
    kernel_height, kernel_width = kernel_sides
    (top, _), (left, _) = padding
    m, n, pair, tall = 4, kernel_width + 3, 2, kernel_height + 1
    BT, G, AT = winograd_matrices(m, kernel_width)
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
            BT, [inputs[:, :, j : j + (across - 1) * m + 1 : m] for j in range(n)]
        )  # (n, B, H, across, in)
        patches = jnp.stack(
            [lines[:, :, i : i + (down - 1) * pair + 1 : pair] for i in range(tall)], axis=-2
        )
        kernel = jnp.tensordot(jnp.asarray(G, dtype), kernel, (1, 1))  # (n, kh, in, out)
        moved = [jnp.pad(kernel, ((0, 0), (i, pair - 1 - i), (0, 0), (0, 0))) for i in range(pair)]
        kernel = jnp.stack(moved, axis=3).reshape(n, tall * channels, pair * features)
        products = patches.reshape(n, -1, tall * channels) @ kernel
        outputs = combine(AT, list(products.reshape(n, batch, down, across, pair, features)))
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


def strided_convolution(
    inputs: Images, kernel: Kernel, strides: Sequence[int], padding: Padding, **options
) -> Outputs:
    """A convolution with strides, (vertical, horizontal), as one without.

    Each block of stride x stride pixels becomes one pixel of stride^2 * in channels. The kernel,
    zero-padded to a multiple of the stride, shrinks likewise: AlexNet's conv1, 11x11 with stride 4
    on 3 channels, becomes 3x3 on 48.
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


def winograd_convolution(
    inputs: Images, kernel: Kernel, padding: Padding, *, preferred_element_type=None
) -> Outputs:
    """A convolution without a stride by Winograd's minimal filtering, for 3x3 and 5x5 kernels.

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308), section 4:
    the outputs are cut into tiles of m x m, each of which sees n x n pixels d, n = m + k - 1. With
    the paper's matrices, a tile is AT [(G g GT) * (BT d B)] A, where the elementwise products are
    summed over the channels. That is n^2 products for m^2 outputs instead of k^2 m^2: 36 instead of
    144 for 3x3 kernels and m = 4, 64 instead of 400 for 5x5. The gradients have the same form.

    In float32, the rounding error is up to six times that of `lax` for 3x3 kernels (1.3e-6 of the
    outputs' size), ten times for 5x5 (3e-6). The gradient of a kernel is a long sum over all tiles:
    for 5x5 kernels its error is 1e-5, a third of that where it is summed in 16 parts.

    Args:
      padding: each less than k.
    """
    size, outputs_dtype = kernel.shape[0], preferred_element_type or inputs.dtype
    dtype = jnp.promote_types(inputs.dtype, jnp.float32)  # no transform is rounded to bfloat16
    m = tile_side(output_sides(inputs.shape, (size, size), padding), size)
    n = m + size - 1
    BT, G, AT = winograd_matrices(m, size)

    def transform_kernel(kernel):  # (k, k, in, out) -> (n^2, in, out)
        both = jnp.asarray(np.kron(G, G), dtype)
        return (both @ kernel.reshape(size * size, -1)).reshape(n * n, *kernel.shape[2:])

    def convolve(inputs, kernel, padding):
        """(outputs, transformed tiles (n, n, B, down, across, in)); the kernel is transformed."""
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
            BT, [inputs[:, i : i + (down - 1) * m + 1 : m] for i in range(n)]
        )  # (n, B, down, W, in)
        tiles = combine(
            BT, [lines[:, :, :, j : j + (across - 1) * m + 1 : m] for j in range(n)], axis=1
        )
        products = (tiles.reshape(n * n, -1, channels) @ kernel).reshape(*tiles.shape[:-1], -1)
        lines = combine(AT, list(products))  # (m, n, B, down, across, out)
        outputs = combine(AT, [lines[:, j] for j in range(n)], axis=1)
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
        lines = combine(AT.T, [gradient[:, :, i] for i in range(m)])  # (n, B, down, across, m, out)
        gradient = combine(AT.T, [lines[:, :, :, :, j] for j in range(m)], axis=1)
        parts = math.gcd(batch, 16) if channels <= CHANNELS_OF_PARTS else 1
        gradient = gradient.reshape(
            n * n, parts, -1, features
        )  # (n^2, parts, B * tiles / parts, out)
        tiles = tiles.reshape(n * n, parts, -1, channels).swapaxes(2, 3)
        if parts > 1:  # transposed once, before the products, which take twice as long otherwise
            tiles = lax.optimization_barrier(tiles)
        products = (tiles @ gradient).sum(1)  # (n^2, in, out)
        both = jnp.asarray(np.kron(G, G).T, dtype)
        return inputs_gradient, (both @ products.reshape(n * n, -1)).reshape(kernel.shape)

    convolution = jax.custom_vjp(lambda inputs, kernel: forward(inputs, kernel)[0])
    convolution.defvjp(forward, backward)
    return convolution(inputs.astype(dtype), kernel.astype(dtype)).astype(outputs_dtype)


def has_winograd(shape, kernel_shape, padding) -> bool:
    """Whether `winograd_convolution` supports these shapes and is faster."""
    size = kernel_shape[0]
    if kernel_shape[1] != size or size not in TILE_SIDES or max(map(max, padding)) >= size:
        return False
    sides = output_sides(shape, kernel_shape[:2], padding)
    m = tile_side(sides, size)
    return shape[0] > 1 or math.prod(-(-side // m) for side in sides) >= MANY_TILES


def output_sides(shape, kernel_sides, padding) -> list[int]:
    """Rows and columns of the outputs, without a stride; `shape` is (B, H, W, in)."""
    return [
        side + sum(around) - size + 1
        for side, size, around in zip(shape[1:3], kernel_sides, padding, strict=True)
    ]


def tile_side(sides, size: int) -> int:
    """The side m of a tile with the fewest products for outputs of these two sides."""
    return min(
        TILE_SIDES[size],
        key=lambda m: math.prod(-(-side // m) * (m + size - 1) for side in sides),
    )


def combine(matrix: np.ndarray, arrays: list[jax.Array], axis: int = 0) -> jax.Array:
    """matrix @ arrays, stacked along `axis`, as sums that XLA fuses: a product with so small a
    matrix takes three times as long.

    Weights are split into powers of two, which multiply exactly. Of other products the compiler
    fuses some with the addition, which saves a rounding, but not the same ones in every program;
    `--reduction=fixed` promises the same bits in all.
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
    """Signed powers of two that add up to a number of few binary digits: 5.25 = 4 + 1 + 1/4, 3.75 =
    4 - 1/4.
    """
    powers = []
    while number:
        powers.append(math.copysign(2.0 ** round(math.log2(abs(number))), number))
        number -= powers[-1]
    return powers


@functools.cache
def winograd_matrices(m: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT (n, n), G (n, size) and AT (m, n) of Lavin and Gray, n = m + size - 1.

    By Toom-Cook: polynomials are multiplied by way of their values at n - 1 points and at infinity;
    here in the transposed form.
    """
    points = np.array([0, 1, -1, 2, -0.5, -2, 0.5])[: m + size - 2]
    others = [points[points != point] for point in points]
    at_infinity = np.eye(size)[-1:], np.eye(m)[:, -1:]
    BT = [[*np.poly(rest)[::-1], 0] for rest in others] + [np.poly(points)[::-1]]
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    G = np.concatenate([np.vander(points, size, increasing=True) / scale, at_infinity[0]])
    AT = np.concatenate([np.vander(points, m, increasing=True).T, at_infinity[1]], axis=1)
    return np.array(BT), G, AT
