"""Training and scoring AlexNet; training the CIFAR-10 networks."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

import alexnet.cifar
from alexnet.augment import color_axes
from scripts.benchmark.lenet import predict_case
from scripts.benchmark.machine import accelerated, has_bfloat16, matmul_peak
from scripts.benchmark.measure import Case
from scripts.benchmark.timing import (
    PEERS,
    Setting,
    forms,
    rate,
    timed,
    timed_theirs,
    torch_peers,
)
from scripts.benchmark.training import AlexNetTraining

TRAIN_CONTAINS = (
    "A batch of uint8 images from the host, random crops, mirror images and (AlexNet) color noise, "
    "forward, dropout, backward, the update; ours also counts loss and errors. Limit: the "
    "operations of forward and backward at the matmul peak, on a CPU that of float32 for bfloat16 "
    "too."
)


def train(setting: Setting) -> Iterator[Case]:
    """Updates of the presets deck and paper."""
    for name, training in trainings(setting):
        yield training_case(setting, name, training)


def predict(setting: Setting) -> Iterator[Case]:
    """Scores of the presets deck and paper, by the center crop."""
    for name, training in trainings(setting):
        batch_size, dtype, peers = training.config.batch_size, training.config.compute_dtype, {}
        if PEERS:
            model, crops, _, batch = theirs(name, training)
            for form in forms(setting):
                score = torch_peers().scorer(model(), their_form(form, training), crops.center)
                peers[form] = functools.partial(score, *batch)
        row = (described(name, training), "us" if batch_size == 1 else "images/s")
        per_image = training.operations(training=False)
        yield predict_case(setting, row, batch_size, training.score, peers, per_image, dtype)


def cifar_train(setting: Setting) -> Iterator[Case]:
    """Updates of the CIFAR-10 networks."""
    batch_size = 8 if setting.smallest else 128
    for name in ("cifar18", "cifar13", "small"):
        training = AlexNetTraining(name, 10, f"--batch_size={batch_size}")
        yield training_case(setting, name, training)


def trainings(setting: Setting) -> Iterator[tuple[str, AlexNetTraining]]:
    """(preset, its training) for each preset, batch size and type of numbers."""
    many = 128 if accelerated() else 32
    kinds = list(itertools.product(("deck", "paper"), (1, many), ("float32",)))
    if has_bfloat16():
        kinds.append(("deck", many, "bfloat16"))
    for name, batch_size, dtype in kinds:
        changes = [f"--batch_size={batch_size}", f"--compute_dtype={dtype}"]
        changes += ["--crop_size=67"] * setting.smallest
        yield name, AlexNetTraining(name, 1000, *changes)


def described(name: str, training: AlexNetTraining) -> str:
    """A row's name."""
    half = ", bfloat16" if training.config.compute_dtype == "bfloat16" else ""
    return f"{name}, batch {training.config.batch_size}{half}"


def training_case(setting: Setting, name: str, training: AlexNetTraining) -> Case:
    """One update of the preset `name`."""
    peers, batch_size = {}, training.config.batch_size
    if PEERS:
        model, crops, optimizer, batch = theirs(name, training)
        for form in forms(setting, norms=name != "small"):  # which has none
            trainer = torch_peers().Trainer(
                model(), optimizer, their_form(form, training), augment=crops.random
            )
            step = functools.partial(trainer.step, *batch)
            peers[form] = rate(timed_theirs(setting, step), batch_size)
    return Case(
        ((described(name, training), "images/s"),),
        rate(timed(setting, training.run), batch_size),
        peers,
        TRAIN_CONTAINS,
        (matmul_peak(training.config.compute_dtype) / training.operations(training=True),),
    )


def their_form(form: str, training: AlexNetTraining):
    """The PyTorch form, in the training's type of numbers."""
    bfloat16 = training.config.compute_dtype == "bfloat16"
    return torch_peers().FORMS[form]._replace(bfloat16=bfloat16)


def theirs(name: str, training: AlexNetTraining) -> tuple:
    """PyTorch's network (as a function), crops and optimizer for the preset `name`, and the batch
    as tensors.
    """
    peers, config, covariance = torch_peers(), training.config, training.statistics.covariance
    axes = color_axes(covariance) if config.color_pca else None
    scale = 1 / np.sqrt(np.diag(covariance)) if config.scaling == "standardized" else 1.0
    crops = peers.Crops(training.statistics.mean_image, config.crop_size, axes, scale, config.pad)
    if config.net == "alexnet":
        model = functools.partial(peers.alexnet, name, config.crop_size, training.num_classes)
        optimizer = peers.sgd(config.learning_rate, config.momentum, config.weight_decay)
    else:
        model = functools.partial(peers.cifar, name)
        optimizer = peers.cifar_sgd(alexnet.cifar.WEIGHT_DECAY_FACTORS[name])
    return model, crops, optimizer, peers.tensors(training.batch)
