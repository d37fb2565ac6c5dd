"""Where PyTorch computes, and in which form."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch


class Form(NamedTuple):
    """One way to run a network in PyTorch."""

    channels_last: bool = False
    compiled: bool = False
    threads: int = 0  # 0: one per core
    bfloat16: bool = False  # for what PyTorch's autocast computes in it
    compiled_norms: bool = False  # of all layers the normalizations alone


FORMS = {
    "eager": Form(),
    "channels-last": Form(channels_last=True),
    "compiled": Form(channels_last=True, compiled=True),  # on a GPU as CUDA graphs
    "channels-last, norms compiled": Form(channels_last=True, compiled_norms=True),
    "eager, 1 thread": Form(threads=1),
    "channels-last, 1 thread": Form(channels_last=True, threads=1),
    "compiled, 1 thread": Form(channels_last=True, compiled=True, threads=1),
}
CORES = torch.get_num_threads()  # before anyone sets it
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # cuDNN measures which convolution is the fastest


def wait() -> None:
    """Until the device has done all that was asked of it."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def placed(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """On the device."""
    return [tensor.to(DEVICE, non_blocking=True) for tensor in tensors]


def set_threads(form: Form) -> None:
    """Only where it changes something: each call costs the next convolution what it had kept."""
    if torch.get_num_threads() != (threads := form.threads or CORES):
        torch.set_num_threads(threads)


def precision(form: Form):
    """The context that a form computes in; weights and losses are float32 either way."""
    return torch.autocast(DEVICE, torch.bfloat16) if form.bfloat16 else contextlib.nullcontext()


def layout(form: Form) -> torch.memory_format:
    return torch.channels_last if form.channels_last else torch.contiguous_format


def compiled(function: Callable, **options) -> Callable:
    """torch.compile. Its modules are imported here: they would slow down the start of processes
    that compile nothing.
    """
    import torch._dynamo.config
    import torch._inductor.config

    if DEVICE == "cpu":
        # more would be processes that stay beside what is timed
        torch._inductor.config.compile_threads = 1
    else:
        options["triton.cudagraphs"] = True  # one launch for all kernels
    # One function serves many networks here; beyond the limit, eight, the next would run
    # uncompiled. And from the second batch size on it would be compiled for batches of any size.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    return torch.compile(function, dynamic=False, options=options or None)
