"""Single operations beside PyTorch's: masked convolution, normalization, pooling."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import alexnet.lrn
import alexnet.pooling
from common import conv
from lenet.connections import C3_TABLE, c3_mask
from scripts.benchmark.machine import copy_bandwidth, matmul_peak
from scripts.benchmark.measure import Case
from scripts.benchmark.timing import PEERS, Setting, forms, span, timed, timed_theirs, torch_peers

max_pool = functools.partial(alexnet.pooling.max_pool, overlapping=True)


def ops(setting: Setting) -> Iterator[Case]:
    """Masked convolution, normalization and pooling, forward, and forward and backward."""
    random = np.random.default_rng(0)

    def array(images: int, *shape: int) -> np.ndarray:
        return random.standard_normal((2 if setting.smallest else images, *shape), np.float32)

    images, kernel = array(128, 14, 14, 6), random.standard_normal((5, 5, 6, 16), np.float32)
    table = c3_mask(C3_TABLE)
    for name, function, mask in (
        ("masked", conv.masked(conv.batch_last_convolution(), table), table),
        ("dense", conv.batch_last_convolution(), np.ones_like(table)),
    ):
        forward_s = len(images) * 2 * 100 * int(mask.sum()) / matmul_peak()
        yield from op_cases(
            setting,
            f"{name} C3, {shape_text(images)}",
            function,
            lambda peers, mask=mask: {"": peers.convolution(mask)},
            (images.transpose(1, 3, 2, 0), kernel),
            (images, kernel.transpose(3, 0, 1, 2)),  # permuted like images there: (out, in, kh, kw)
            (forward_s, 3 * forward_s),
            "A 5x5 convolution of arrays in memory, ours with the batch as the last axis. Limit: "
            "its operations at the matmul peak.",
        )

    x = array(32, 55, 55, 96)
    yield from op_cases(
        setting,
        f"LRN, {shape_text(x)}",
        alexnet.lrn.local_response_normalization,
        lambda peers: {
            "": peers.Across(),
            "LocalResponseNorm, ": peers.nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0),
        },
        (x,),
        (x,),
        [arrays * x.nbytes / copy_bandwidth() for arrays in (2, 5)],
        "Over five maps, of an array in memory. Limit: 2 such arrays (with backward 5) at the copy "
        "bandwidth.",
    )

    for shape in ((128, 33, 33, 32), (32, 55, 55, 96)):
        x = array(*shape)
        yield from op_cases(
            setting,
            f"max pooling 3/2, {shape_text(x)}",
            max_pool,
            # with 33 and 55 pixels the last window of either kind ends at the last pixel
            lambda peers: {"": peers.nn.MaxPool2d(3, 2)},
            (x,),
            (x,),
            [arrays * x.nbytes / copy_bandwidth() for arrays in (1.25, 3.5)],
            "Of an array in memory. Limit: 1.25 such arrays (with backward 3.5) at the copy "
            "bandwidth.",
        )


def op_cases(
    setting: Setting,
    name: str,
    function: Callable,
    theirs: Callable,
    arrays: tuple,
    their_arrays: tuple,
    limits_s,
    contains: str,
) -> Iterator[Case]:
    """Two cases: forward, and forward and backward. `theirs(torch_peers)` returns {prefix of the
    form's name: function}.
    """
    arrays = [jnp.asarray(array) for array in arrays]
    for backward, limit_s in zip((False, True), limits_s, strict=True):
        peers = {}
        if PEERS:
            options = dict(backward=backward, forms=forms(setting, one_thread=True))
            for prefix, their_function in theirs(torch_peers()).items():
                runs = torch_peers().function_forms(their_function, *their_arrays, **options)
                peers |= {
                    prefix + form: span(timed_theirs(setting, run), 1e-3)
                    for form, run in runs.items()
                }
        run = functools.partial(jax.jit(function), *arrays)
        if backward:
            both = jax.jit(with_gradients(function))
            run = functools.partial(both, cotangent(function, *arrays), *arrays)
        what = "forward and backward" if backward else "forward"
        yield Case(
            ((f"{name}, {what}", "ms"),),
            span(timed(setting, run), 1e-3),
            peers,
            contains,
            (1e3 * limit_s,),
        )


def with_gradients(function: Callable) -> Callable:
    """(cotangent, *arguments) -> the function's outputs, and the gradients of all arguments."""

    def both(cotangent, *arrays):
        outputs, pull_back = jax.vjp(function, *arrays)
        return outputs, pull_back(cotangent)

    return both


def cotangent(function: Callable, *arrays) -> jax.Array:
    """Random numbers in place of the gradient that arrives from the layers above."""
    return jax.random.normal(jax.random.key(1), jax.eval_shape(function, *arrays).shape)


def shape_text(x) -> str:
    """'32x55x55x96'."""
    return "x".join(map(str, x.shape))
