"""Training and scoring LeNet-5."""

import functools
from collections.abc import Iterator
from typing import Any

import lenet.config
import lenet.data
from common.order import eval_batches
from lenet.connections import C3_TABLE, c3_mask
from scripts.benchmark.machine import matmul_peak
from scripts.benchmark.measure import Case
from scripts.benchmark.timing import (
    PEERS,
    Setting,
    forms,
    rate,
    span,
    timed,
    timed_theirs,
    torch_peers,
)
from scripts.benchmark.training import LeNetTraining, embedded_digits, lenet_operations

TRAIN_CONTAINS = (
    "Choosing the digits of a batch in memory, padding and scaling, forward, backward, SGD with "
    "momentum; ours also counts loss and errors. Limit: the operations of forward and backward at "
    "the matmul peak."
)
PREDICT_CONTAINS = (
    "A batch of uint8 images from the host, its preparation, forward, loss and errors; ours also "
    "counts the confusion matrix or the top 5. PyTorch's compiled form has frozen weights. Limit: "
    "the operations at the matmul peak."
)


def trainers(setting: Setting, one_thread: bool, config: lenet.config.Config) -> dict[str, Any]:
    """Form -> PyTorch's trainer of the same network with the same optimizer."""
    if not PEERS:
        return {}
    peers, mask, layers = torch_peers(), c3_mask(C3_TABLE), {}
    if config.pooling == "max":
        layers = dict(activation=peers.nn.ReLU, pool=peers.nn.MaxPool2d)
    if config.optimizer == "adamw":
        optimizer = peers.adam(config.learning_rate)
    else:
        optimizer = peers.sgd(config.learning_rate, config.momentum)
    return {
        form: peers.Trainer(
            peers.lenet(mask, **layers), optimizer, peers.FORMS[form], prepare=peers.digits
        )
        for form in forms(setting, one_thread=one_thread)
    }


def train(setting: Setting) -> Iterator[Case]:
    """Updates of the preset deck."""
    digits = embedded_digits()
    for batch_size in (1, 32, 128, 1024):
        config = lenet.config.Config(batch_size=batch_size)
        steps = 2 if setting.smallest else lenet.data.steps_per_chunk(batch_size)
        training, their_steps, peers = LeNetTraining(config, digits, steps), min(steps, 256), {}
        for form, trainer in trainers(setting, batch_size <= 32, config).items():
            run = functools.partial(
                torch_peers().train_in_memory,
                *(digits.images, digits.labels, batch_size, their_steps, trainer),
            )
            theirs = timed_theirs(setting, run, one_by_one=True)
            peers[form] = rate(theirs, their_steps * batch_size)
        yield Case(
            ((f"deck, batch {batch_size}", "images/s"),),
            rate(timed(setting, training.run, one_by_one=True), steps * batch_size),
            peers,
            TRAIN_CONTAINS,
            (matmul_peak() / lenet_operations(config, training=True),),
        )


def predict(setting: Setting) -> Iterator[Case]:
    """Scores of the preset deck."""
    for batch_size, row in ((1, ("deck, batch 1", "us")), (1024, ("deck, batch 1024", "images/s"))):
        training = LeNetTraining(lenet.config.Config(), embedded_digits(), 1)
        batch, peers = next(eval_batches(embedded_digits(), batch_size)), {}
        for form in forms(setting, one_thread=batch_size == 1):
            mask = c3_mask(C3_TABLE)
            score = torch_peers().scorer(
                torch_peers().lenet(mask), torch_peers().FORMS[form], torch_peers().digits
            )
            peers[form] = functools.partial(score, *torch_peers().tensors(batch))
        per_image = lenet_operations(training.config, training=False)
        ours = functools.partial(training.score, batch)
        yield predict_case(setting, row, batch_size, ours, peers, per_image)


def predict_case(
    setting: Setting,
    row: tuple[str, str],
    batch_size: int,
    ours,
    peers: dict,
    per_image: int,
    dtype: str = "float32",
) -> Case:
    """One batch per call: the time of a call in microseconds, or images per second."""
    latency, limit = row[1] == "us", matmul_peak(dtype) / per_image  # images/s

    def measured(measure):
        return span(measure, 1e-6) if latency else rate(measure, batch_size)

    return Case(
        (row,),
        measured(timed(setting, ours, one_by_one=latency)),
        {
            form: measured(timed_theirs(setting, run, one_by_one=latency))
            for form, run in peers.items()
        },
        PREDICT_CONTAINS,
        (1e6 * batch_size / limit if latency else limit,),
    )
