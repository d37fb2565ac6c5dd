"""The same networks in PyTorch, as fast as PyTorch runs them: what the benchmark measures ours
against.

Parameters have the layers and names of ours, and inputs of fully connected layers their order
(rows, columns, maps), so that `copy_weights` moves them over; a test compares the logits. A network
takes (B, maps, rows, columns) images. JAX is not imported: some of this runs in processes of its
own, whose start and memory count.

All of it computes on the GPU if PyTorch finds one, in float32 products with TF32 as XLA's; there
calls return before the work is done, and `wait` waits for it.
"""

import contextlib
import dataclasses
import datetime
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Form(NamedTuple):
    """One way to run a network in PyTorch."""

    channels_last: bool = False
    compiled: bool = False
    threads: int = 0  # 0: a thread a core
    bfloat16: bool = False  # of what PyTorch's autocast computes in it


FORMS = {
    "eager": Form(),
    "channels-last": Form(channels_last=True),
    "compiled": Form(channels_last=True, compiled=True),  # on a GPU as CUDA graphs
    "eager, 1 thread": Form(threads=1),
    "compiled, 1 thread": Form(channels_last=True, compiled=True, threads=1),
}
CORES = torch.get_num_threads()  # before anybody sets it
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # measures which of its convolutions is the fastest


def wait() -> None:
    """Until the device has done all that was asked of it."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


# ---- networks


def named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


class MaskedConv(nn.Conv2d):
    """Of its kernel only the weights with mask 1 exist; `mask` as ours, (kh, kw, in, out)."""

    def __init__(self, mask: np.ndarray):
        kernel_height, kernel_width, inputs, outputs = mask.shape
        super().__init__(inputs, outputs, (kernel_height, kernel_width))
        self.register_buffer("mask", torch.tensor(mask).permute(3, 2, 0, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias)


class Rows(nn.Module):
    """(B, maps, rows, columns) -> (B, rows * columns * maps); a view, if channels come last in
    memory.
    """

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def normalized(x, sums, alpha: float, k: float):
    root = torch.rsqrt(k + alpha * sums)
    return (
        x * root * torch.sqrt(root)
    )  # to the power -0.75 without a logarithm and an exponential, as ours


class Across(nn.Module):
    """Local response normalization over five maps, within each of the towers, by adding shifted
    squares.
    """

    def __init__(self, towers: int = 1, alpha: float = 1e-4, k: float = 2.0):
        super().__init__()
        self.towers, self.alpha, self.k = towers, alpha, k

    def forward(self, x):
        parts = []
        for tower in x.chunk(self.towers, dim=1):
            maps, squares = tower.shape[1], F.pad(tower * tower, (0, 0, 0, 0, 2, 2))
            parts.append(
                normalized(
                    tower, sum(squares[:, i : i + maps] for i in range(5)), self.alpha, self.k
                )
            )
        return torch.cat(parts, dim=1) if self.towers > 1 else parts[0]


class WithinMap(nn.Module):
    """cifar18's normalization over 3x3 pixels of a map."""

    def forward(self, x):
        return normalized(x, F.avg_pool2d(x * x, 3, stride=1, padding=1), 5e-5, 1.0)


class LocallyConnected(nn.Module):
    """A 3x3 convolution whose weights differ from pixel to pixel, one product a pixel."""

    def __init__(self, size: int, inputs: int, outputs: int):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(0.04 * torch.randn(size * size, inputs * 9, outputs))
        self.bias = nn.Parameter(torch.zeros(size * size, 1, outputs))

    def forward(self, x):
        windows = F.unfold(x, 3, padding=1).permute(2, 0, 1)  # (pixels, B, inputs * 9)
        outputs = torch.baddbmm(self.bias, windows, self.weight)  # (pixels, B, outputs)
        return outputs.permute(1, 2, 0).reshape(len(x), -1, self.size, self.size)


def lenet(mask: np.ndarray, *, activation=nn.Tanh, pool=nn.AvgPool2d) -> nn.Sequential:
    """The preset deck of LeNet-5; with max pooling the activation follows it, and only it."""
    before = activation if pool is nn.AvgPool2d else nn.Identity
    return named(
        **dict(c1=nn.Conv2d(1, 6, 5), a1=before(), s2=pool(2), a2=activation()),
        **dict(c3=MaskedConv(mask), a3=before(), s4=pool(2), a4=activation()),
        **dict(
            c5=nn.Conv2d(16, 120, 5),
            a5=activation(),
            rows=Rows(),
            f6=nn.Linear(120, 84),
            a6=activation(),
        ),
        output=nn.Linear(84, 10),
    )


def alexnet(preset: str, crop_size: int, num_classes: int = 1000) -> nn.Sequential:
    """The presets deck, paper and small."""
    if preset == "small":
        (a, b, c, d, e), hidden, size = (16, 48, 64, 64, 48), 256, crop_size // 8
        first, conv1 = nn.Identity(), nn.Conv2d(3, a, 5, padding=2)
    else:
        (a, b, c, d, e), hidden = (96, 256, 384, 384, 256), 4096
        padded = crop_size + (3 if preset == "paper" else 0)
        size, conv1 = ((padded - 11) // 4 + 1) // 8, nn.Conv2d(3, a, 11, stride=4)
        first = nn.ZeroPad2d((0, 3, 0, 3)) if preset == "paper" else nn.Identity()
    towers = 2 if preset == "paper" else 1

    def pool():
        return nn.MaxPool2d(
            3, 2, ceil_mode=preset == "small"
        )  # 55 and 27 pixels have no window that is cut off

    def conv(inputs, outputs, kernel_size, groups=1):
        return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, groups=groups)

    def between():
        layers = [Across(towers), pool()] if preset != "deck" else [pool(), Across()]
        return nn.Sequential(nn.ReLU(inplace=True), *layers)

    drop, kept = (lambda: nn.Dropout(0.25 if preset == "small" else 0.5)), nn.Identity
    before, after = (drop, kept) if preset == "deck" else (kept, drop)
    return named(
        **dict(
            first=first,
            conv1=conv1,
            after1=between(),
            conv2=conv(a, b, 5, towers),
            after2=between(),
        ),
        **dict(
            conv3=conv(b, c, 3),
            a3=nn.ReLU(inplace=True),
            conv4=conv(c, d, 3, towers),
            a4=nn.ReLU(inplace=True),
        ),
        **dict(
            conv5=conv(d, e, 3, towers),
            a5=nn.ReLU(inplace=True),
            pool5=pool(),
            rows=Rows(),
            before6=before(),
        ),
        **dict(
            fc6=nn.Linear(size * size * e, hidden),
            a6=nn.ReLU(inplace=True),
            after6=after(),
            before7=before(),
        ),
        **dict(
            fc7=nn.Linear(hidden, hidden),
            a7=nn.ReLU(inplace=True),
            after7=after(),
            fc8=nn.Linear(hidden, num_classes),
        ),
    )


def cifar(net: str) -> nn.Sequential:
    """cuda-convnet's networks on crops of 24x24: `cifar18` (normalized within maps) and `cifar13`."""

    def pool(kind):
        return kind(3, 2, ceil_mode=True)

    if net == "cifar18":
        return named(
            **dict(
                conv1=nn.Conv2d(3, 32, 5, padding=2),
                pool1=pool(nn.MaxPool2d),
                a1=nn.ReLU(),
                norm1=WithinMap(),
            ),
            **dict(
                conv2=nn.Conv2d(32, 32, 5, padding=2),
                a2=nn.ReLU(),
                pool2=pool(nn.AvgPool2d),
                norm2=WithinMap(),
            ),
            **dict(conv3=nn.Conv2d(32, 64, 5, padding=2), a3=nn.ReLU(), pool3=pool(nn.AvgPool2d)),
            **dict(rows=Rows(), fc10=nn.Linear(9 * 64, 10)),
        )
    return named(
        **dict(conv1=nn.Conv2d(3, 64, 5, padding=2), a1=nn.ReLU(), pool1=pool(nn.MaxPool2d)),
        **dict(conv2=nn.Conv2d(64, 64, 5, padding=2), a2=nn.ReLU(), pool2=pool(nn.MaxPool2d)),
        **dict(
            local3=LocallyConnected(6, 64, 32),
            a3=nn.ReLU(),
            local4=LocallyConnected(6, 32, 32),
            a4=nn.ReLU(),
        ),
        **dict(rows=Rows(), fc10=nn.Linear(36 * 32, 10)),
    )


def copy_weights(model: nn.Module, params: dict) -> None:
    """Gives the model our parameters, {layer: {"kernel", "bias"}}."""
    with torch.no_grad():
        for name, arrays in params.items():
            layer, kernel, bias = (
                getattr(model, name),
                *(np.array(arrays[part]) for part in ("kernel", "bias")),
            )
            if isinstance(
                layer, LocallyConnected
            ):  # (rows, columns, 9 * in, out), there windows first, here maps first
                pixels, outputs = len(layer.weight), kernel.shape[-1]
                kernel = (
                    kernel.reshape(pixels, 9, -1, outputs)
                    .transpose(0, 2, 1, 3)
                    .reshape(pixels, -1, outputs)
                )
                bias = bias.reshape(pixels, 1, outputs)
            else:
                kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
            layer.weight.copy_(torch.tensor(np.ascontiguousarray(kernel)))
            layer.bias.copy_(torch.tensor(bias))


# ---- steps


def tensors(batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a batch, or of several; for a GPU in memory that it reads from while the
    processor goes on.
    """
    pair = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"]).long()
    return tuple(tensor.pin_memory() for tensor in pair) if DEVICE == "cuda" else pair


def placed(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """On the device."""
    return [tensor.to(DEVICE, non_blocking=True) for tensor in tensors]


def digits(images: torch.Tensor) -> torch.Tensor:
    """(B, 28, 28, 1) uint8 -> (B, 1, 32, 32) float of 0 to 1."""
    return F.pad(images.permute(0, 3, 1, 2), (2, 2, 2, 2)).float() / 255


class Crops:
    """(B, H, W, 3) uint8 -> (B, 3, crop, crop) float: minus the mean image, crop and mirror image
    at random, colour noise.

    Args:
      mean: (H, W, 3). axes: (3, 3), column i the i-th component times its deviation; None: no
        noise. scale: of each channel.
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
        batch, height, width, _ = images.shape
        mean = self.mean
        if self.pad:
            images, mean = (F.pad(array, (0, 0) + (self.pad,) * 4) for array in (images, mean))
        here = dict(device=DEVICE)
        places = torch.arange(self.crop_size, **here)
        rows = (
            torch.randint(height + 2 * self.pad - self.crop_size + 1, (batch, 1), **here) + places
        )
        columns = (
            torch.randint(width + 2 * self.pad - self.crop_size + 1, (batch, 1), **here) + places
        )
        columns = torch.where(torch.rand(batch, 1, **here) < 0.5, columns.flip(1), columns)
        rows, columns = rows[:, :, None], columns[:, None, :]  # (B, crop, 1), (B, 1, crop)
        x = (
            images[torch.arange(batch, **here)[:, None, None], rows, columns].float()
            - mean[rows, columns]
        )
        if self.axes is not None:
            x += (0.1 * torch.randn(batch, 3, **here) @ self.axes.T)[:, None, None]
        return (x * self.scale).permute(0, 3, 1, 2)

    def center(self, images: torch.Tensor) -> torch.Tensor:
        size, (height, width) = self.crop_size, images.shape[1:3]
        top, left = (height - size) // 2, (width - size) // 2
        cut = slice(top, top + size), slice(left, left + size)
        return ((images[:, *cut].float() - self.mean[cut]) * self.scale).permute(0, 3, 1, 2)


def sgd(learning_rate: float, momentum: float = 0.9, weight_decay: float = 0.0) -> Callable:
    """model -> optimizer. At a constant rate PyTorch's rule and the paper's are the same."""
    return lambda model: torch.optim.SGD(
        model.parameters(),
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        fused=True,
    )


def cifar_sgd(factors: dict[str, float]) -> Callable:
    """The presets' own: each layer's weight decay is 0.004 times its factor, biases have none and
    twice the rate.
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


def compiled(function: Callable, **options) -> Callable:
    """torch.compile; its modules are imported here, as they would slow down the start of what is
    not compiled.
    """
    import torch._dynamo.config
    import torch._inductor.config

    if DEVICE == "cpu":
        torch._inductor.config.compile_threads = (
            1  # more would be processes that live on beside what is timed
        )
    else:
        options["triton.cudagraphs"] = True  # one launch for all kernels
    # One function serves many networks here; beyond the limit, eight, the next would run
    # uncompiled. And from the second batch size on it would be compiled for batches of any size.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    return torch.compile(function, dynamic=False, options=options or None)


def precision(form: Form):
    """What a form computes in, as a context; weights and losses are float32 either way."""
    return torch.autocast(DEVICE, torch.bfloat16) if form.bfloat16 else contextlib.nullcontext()


def layout(form: Form) -> torch.memory_format:
    return torch.channels_last if form.channels_last else torch.contiguous_format


class Trainer:
    """Trains a network in one form: `step(images, labels)` of (B, H, W, C) uint8 and (B,) int64.

    Args:
      prepare: from these images to the network's input; part of what is compiled.
      augment: the same, before it: it draws random numbers.
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
        self.model, self.form, self.augment = (
            model.to(DEVICE, memory_format=layout(form)).train(),
            form,
            augment,
        )
        self.make_optimizer, self.optimizer, self.prepare = (
            optimizer,
            optimizer(self.model),
            prepare,
        )

        def loss(images, labels):
            x = prepare(images).contiguous(memory_format=layout(form))
            with precision(form):
                logits = self.model(x)
            return F.cross_entropy(logits.float(), labels)

        self.loss = compiled(loss) if form.compiled else loss

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.set_num_threads(self.form.threads or CORES)
        images, labels = placed(images, labels)
        self.optimizer.zero_grad()
        self.loss(self.augment(images), labels).backward()
        self.optimizer.step()

    def set_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def error_pct(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Of all examples at once, eager."""
        with torch.no_grad():
            predicted = self.model(self.prepare(*placed(torch.from_numpy(images)))).argmax(-1)
        return 100 * float((predicted.cpu().numpy() != labels).mean())

    def restart(self, params: dict) -> None:
        """From our parameters, as if nothing had been trained."""
        copy_weights(self.model, params)
        self.optimizer = self.make_optimizer(self.model)


def scorer(model: nn.Module, form: Form, prepare: Callable) -> Callable:
    """Returns score(images, labels) -> the sum of the losses and the number of errors; compiled,
    its weights are constants.
    """
    model = model.to(DEVICE, memory_format=layout(form)).eval()

    def score(images, labels):
        x = prepare(images).contiguous(memory_format=layout(form))
        with precision(form):
            logits = model(x).float()
        return F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(-1) != labels).sum()

    run = compiled(score, freezing=True) if form.compiled else score

    def call(images, labels):
        torch.set_num_threads(form.threads or CORES)
        with torch.no_grad():
            return run(*placed(images, labels))

    return call


def train_in_memory(
    images: np.ndarray, labels: np.ndarray, batch_size: int, num_steps: int, trainer: Trainer
) -> None:
    """Steps on batches that are drawn from examples in memory."""
    images, labels = placed(torch.from_numpy(images), torch.from_numpy(labels).long())
    order = torch.randperm(len(images), device=DEVICE)
    places = torch.arange(batch_size, device=DEVICE)
    for start in range(0, num_steps * batch_size, batch_size):
        chosen = order[(start + places) % len(order)]
        trainer.step(images[chosen], labels[chosen])
    wait()


def convolution(mask: np.ndarray) -> Callable:
    """(x, kernel) -> their convolution; `mask`, as ours (kh, kw, in, out), is 0 where weights do
    not exist.
    """
    mask = None if mask.all() else torch.tensor(mask, device=DEVICE).permute(3, 2, 0, 1)
    return lambda x, kernel: F.conv2d(x, kernel if mask is None else kernel * mask)


def function_forms(
    function: Callable, *arrays: np.ndarray, backward: bool, forms: list[str]
) -> dict[str, Callable]:
    """Form -> one call of `function` of (B, H, W, C) arrays (others as they are), and of its
    gradients by all of them.
    """

    def in_form(form: Form) -> Callable:
        def tensor(array):
            values = torch.tensor(array, device=DEVICE)
            values = (
                values.permute(0, 3, 1, 2).contiguous(memory_format=layout(form))
                if array.ndim == 4
                else values
            )
            return values.requires_grad_(backward)

        tensors = [tensor(array) for array in arrays]
        run = compiled(function) if form.compiled else function
        with torch.no_grad():
            cotangent = torch.randn_like(function(*tensors))

        def call():
            torch.set_num_threads(form.threads or CORES)
            with contextlib.nullcontext() if backward else torch.no_grad():
                outputs = run(*tensors)
                if backward:
                    torch.autograd.grad(outputs, tensors, cotangent)

        return call

    return {name: in_form(FORMS[name]) for name in forms}


# ---- data


class Items(torch.utils.data.Dataset):
    """The examples of anything that has a length and `read`, one at a time or a batch at once."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int):
        images, labels = self.examples.read(np.array([index]))
        return torch.from_numpy(images[0]), int(labels[0])


class Batches(Items):
    """The same, a batch at once."""

    def __getitems__(self, indices: list[int]):
        images, labels = self.examples.read(np.array(indices))
        return torch.from_numpy(images), torch.from_numpy(labels)


class Shuffled(torch.utils.data.Sampler):
    """Passes in random order, without end: an epoch's end would wait for the workers."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


def as_read(batch):
    return batch


LOADERS = {  # form -> (the set, how its examples become a batch)
    "DataLoader": (Items, None),
    "DataLoader, a batch at once": (Batches, as_read),
}


def loader_batches(form: str, examples, batch_size: int, num_workers: int) -> Iterator:
    """Shuffled batches without end, by DataLoader."""
    options = dict(multiprocessing_context="spawn", persistent_workers=True) if num_workers else {}
    items, collate = LOADERS[form]
    yield from torch.utils.data.DataLoader(
        items(examples),
        batch_size,
        sampler=Shuffled(len(examples)),
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=True,
        **options,
    )


def shuffled(images: np.ndarray, labels: np.ndarray, batch_size: int, num_batches: int) -> list:
    """The first batches of a pass in random order, by indexing."""
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    order = torch.randperm(len(images))[: num_batches * batch_size]
    return [(images[chosen], labels[chosen]) for chosen in order.split(batch_size)]


def save_and_load(path: Path, arrays: list[np.ndarray]) -> tuple[float, float, float]:
    """Seconds until torch.save returns, until all is saved (the same), and of torch.load."""
    tensors, start = [torch.tensor(array) for array in arrays], time.perf_counter()
    torch.save(tensors, path)
    saved = time.perf_counter()
    torch.load(path, weights_only=True)
    return saved - start, saved - start, time.perf_counter() - saved


# ---- in a process of their own


def first_step(data_dir: str) -> None:
    """Reads the embedded digits, trains one eager step and says so: what `lenet.train` does at its
    start.
    """
    from common import examples

    train = examples.load("mnist10k", "train", [data_dir])
    examples.load("mnist10k", "test", [data_dir])
    trainer = Trainer(
        lenet(np.ones((5, 5, 6, 16), np.float32)), sgd(0.1), FORMS["eager"], prepare=digits
    )
    trainer.step(torch.from_numpy(train.images[:128]), torch.from_numpy(train.labels[:128]).long())
    wait()
    print("first step", flush=True)


def growth_of_training(form: str, batch_size: int, num_images: int) -> float:
    """Microseconds per image of LeNet-5's training on so many images, the median of three times.

    If there is a WORLD_SIZE, this is one of so many processes that share each batch and add up
    their gradients.
    """
    processes, here = int(os.environ.get("WORLD_SIZE", 1)), FORMS[form]
    here = here._replace(threads=max(1, CORES // processes))
    model = lenet(np.ones((5, 5, 6, 16), np.float32))
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", timeout=datetime.timedelta(minutes=3)
        )  # of one that failed, do not wait
        model = nn.parallel.DistributedDataParallel(model.to(memory_format=layout(here)))
    trainer = Trainer(model, sgd(0.1), here, prepare=digits)
    share = batch_size // processes
    images, labels = (
        torch.randint(256, (share, 28, 28, 1), dtype=torch.uint8),
        torch.randint(10, (share,)),
    )
    images, labels = placed(images, labels)
    steps = num_images // batch_size
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step(images, labels)
        wait()
        seconds.append(time.perf_counter() - start)
    if processes > 1:
        torch.distributed.destroy_process_group()
    return 1e6 * float(np.median(seconds[1:])) / (steps * batch_size)


def growth_of_stream(form: str, data_dir: str, repeats: int, num_batches: int) -> float:
    """Microseconds per image of reading batches of 128 by DataLoader without workers."""
    from common.records import open_records

    records = open_records("tiles", "train", [data_dir])
    records = dataclasses.replace(records, slices=records.slices * repeats)
    batches = loader_batches(form, records, 128, 0)
    next(batches)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return 1e6 * (time.perf_counter() - start) / (128 * num_batches)
