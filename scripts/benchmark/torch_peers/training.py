"""Training and scoring a network in one form, and single operations."""

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from scripts.benchmark.torch_peers.device import (
    DEVICE,
    FORMS,
    Form,
    compiled,
    layout,
    placed,
    precision,
    set_threads,
    wait,
)
from scripts.benchmark.torch_peers.networks import Across, WithinMap, copy_weights


def sgd(learning_rate: float, momentum: float = 0.9, weight_decay: float = 0.0) -> Callable:
    """model -> optimizer. At a constant rate PyTorch's rule and the paper's are the same."""
    options = dict(lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True)
    return lambda model: torch.optim.SGD(model.parameters(), **options)


def cifar_sgd(factors: dict[str, float]) -> Callable:
    """model -> the CIFAR presets' optimizer: a layer's weight decay is 0.004 times its factor,
    biases have none and twice the rate.
    """

    def make(model):
        groups = []
        for name, factor in factors.items():
            layer = getattr(model, name)
            groups += [
                dict(params=[layer.weight], weight_decay=0.004 * factor),
                dict(params=[layer.bias], lr=0.002),
            ]
        return torch.optim.SGD(groups, lr=0.001, momentum=0.9, fused=True)

    return make


def adam(learning_rate: float) -> Callable:
    """model -> optimizer."""
    return lambda model: torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)


class Trainer:
    """Trains a network in one form: `step(images, labels)` of (B, H, W, C) uint8 and (B,) int64.

    Args:
      prepare: from these images to the network's input; part of what is compiled.
      augment: the same, applied before `prepare` and not compiled, as it draws random numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable,
        form: Form,
        *,
        prepare=lambda x: x,
        augment=lambda x: x,
    ):
        self.model = model.to(DEVICE, memory_format=layout(form)).train()
        for layer in self.model.modules():
            if form.compiled_norms and isinstance(layer, Across | WithinMap):
                layer.forward = compiled(layer.forward)
        self.make_optimizer, self.optimizer = optimizer, optimizer(self.model)
        self.form, self.prepare, self.augment = form, prepare, augment

        def loss(images, labels):
            x = prepare(images).contiguous(memory_format=layout(form))
            with precision(form):
                logits = self.model(x)
            return F.cross_entropy(logits.float(), labels)

        self.loss = compiled(loss) if form.compiled else loss

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        set_threads(self.form)
        images, labels = placed(images, labels)
        self.optimizer.zero_grad()
        self.loss(self.augment(images), labels).backward()
        self.optimizer.step()

    def set_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def restart(self, params: dict) -> None:
        """Starts over from our parameters."""
        copy_weights(self.model, params)
        self.optimizer = self.make_optimizer(self.model)


def train_in_memory(
    images: np.ndarray, labels: np.ndarray, batch_size: int, num_steps: int, trainer: Trainer
) -> None:
    """Steps on shuffled batches of examples in memory, chosen at once."""
    images, labels = placed(torch.from_numpy(images), torch.from_numpy(labels).long())
    order = torch.randperm(len(images), device=DEVICE)
    chosen = order[torch.arange(num_steps * batch_size, device=DEVICE) % len(order)]
    batches = (array.index_select(0, chosen).split(batch_size) for array in (images, labels))
    for batch in zip(*batches, strict=True):
        trainer.step(*batch)
    wait()


def scorer(model: nn.Module, form: Form, prepare: Callable) -> Callable:
    """Returns score(images, labels) -> the sum of the losses and the number of errors; compiled
    with frozen weights.
    """
    model = model.to(DEVICE, memory_format=layout(form)).eval()

    def score(images, labels):
        x = prepare(images).contiguous(memory_format=layout(form))
        with precision(form):
            logits = model(x).float()
        return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) != labels).sum()

    run = compiled(score, freezing=True) if form.compiled else score

    def call(images, labels):
        set_threads(form)
        with torch.no_grad():
            return run(*placed(images, labels))

    return call


def convolution(mask: np.ndarray) -> Callable:
    """(x, kernel) -> their convolution; `mask`, as ours (kh, kw, in, out), is 0 where there is no
    weight.
    """
    mask = None if mask.all() else torch.tensor(mask, device=DEVICE).permute(3, 2, 0, 1)
    return lambda x, kernel: F.conv2d(x, kernel if mask is None else kernel * mask)


def function_forms(
    function: Callable, *arrays: np.ndarray, backward: bool, forms: list[str]
) -> dict[str, Callable]:
    """Form -> a call of `function` on these arrays, and if `backward` of its gradients with respect
    to all of them. Arrays of four axes are (B, H, W, C) here and (B, C, H, W) there.
    """

    def in_form(form: Form) -> Callable:
        def tensor(array):
            values = torch.tensor(array, device=DEVICE)
            if array.ndim == 4:
                values = values.permute(0, 3, 1, 2).contiguous(memory_format=layout(form))
            return values.requires_grad_(backward)

        tensors = [tensor(array) for array in arrays]
        run = compiled(function) if form.compiled else function
        with torch.no_grad():
            cotangent = torch.randn_like(function(*tensors))

        def call():
            set_threads(form)
            with contextlib.nullcontext() if backward else torch.no_grad():
                outputs = run(*tensors)
                if backward:
                    torch.autograd.grad(outputs, tensors, cotangent)

        return call

    return {name: in_form(FORMS[name]) for name in forms}
