"""The same networks in PyTorch, as fast as PyTorch runs them: what the benchmark measures ours
against.

All of it computes on the GPU if PyTorch finds one, with TF32 in float32 products as XLA does; there
calls return before the work is done, and `wait` waits for it. JAX is not imported: some of this
runs in processes of its own, whose start and memory count.
"""
# ruff: noqa: F401 - for the benchmark and the processes that it starts

from torch import nn

from scripts.benchmark.torch_peers.alone import (
    first_step,
    growth_of_alexnet,
    growth_of_stream,
    growth_of_training,
)
from scripts.benchmark.torch_peers.data import LOADERS, loader_batches, save_and_load, shuffled
from scripts.benchmark.torch_peers.device import FORMS, wait
from scripts.benchmark.torch_peers.networks import Across, alexnet, cifar, copy_weights, lenet
from scripts.benchmark.torch_peers.preparation import Crops, digits, tensors
from scripts.benchmark.torch_peers.training import (
    Trainer,
    adam,
    cifar_sgd,
    convolution,
    function_forms,
    scorer,
    sgd,
    train_in_memory,
)
