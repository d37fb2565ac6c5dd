"""What runs in a process of its own, whose start and memory count: nothing is imported that is not
needed.
"""

import dataclasses
import datetime
import os

import numpy as np
import torch
from torch import nn

from scripts.benchmark.measure import run_for, seconds
from scripts.benchmark.torch_peers.data import loader_batches
from scripts.benchmark.torch_peers.device import CORES, FORMS, layout, placed, wait
from scripts.benchmark.torch_peers.networks import alexnet, lenet
from scripts.benchmark.torch_peers.preparation import Crops, digits
from scripts.benchmark.torch_peers.training import Trainer, sgd

DENSE_C3 = np.ones((5, 5, 6, 16), np.float32)


def first_step(data_dir: str) -> None:
    """Reads the embedded digits, trains one eager step and prints a line: what `lenet.train` does
    when it starts.
    """
    from common import examples  # not for `growth_of_training`

    train = examples.load("mnist10k", "train", [data_dir])
    examples.load("mnist10k", "test", [data_dir])
    trainer = Trainer(lenet(DENSE_C3), sgd(0.1), FORMS["eager"], prepare=digits)
    trainer.step(torch.from_numpy(train.images[:128]), torch.from_numpy(train.labels[:128]).long())
    wait()
    print("first step", flush=True)


def growth_of_training(form: str, batch_size: int, num_images: int) -> float:
    """Microseconds per image of LeNet-5's training on so many images, the median of three, after
    a second that is not counted.

    If WORLD_SIZE is set, this is one of so many processes that share each batch and sum up their
    gradients.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    here = FORMS[form]._replace(threads=max(1, CORES // processes))
    model = lenet(DENSE_C3)
    if processes > 1:
        # the default timeout would wait half an hour for a process that failed
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(minutes=3))
        model = nn.parallel.DistributedDataParallel(model.to(memory_format=layout(here)))
    trainer = Trainer(model, sgd(0.1), here, prepare=digits)
    share, steps = batch_size // processes, num_images // batch_size
    images = torch.randint(256, (share, 28, 28, 1), dtype=torch.uint8)
    images, labels = placed(images, torch.randint(10, (share,)))

    def run():
        for _ in range(steps):
            trainer.step(images, labels)
        wait()

    run_for(1.0, run)
    took = [seconds(run) for _ in range(3)]
    if processes > 1:
        torch.distributed.destroy_process_group()
    return 1e6 * float(np.median(took)) / (steps * batch_size)


def growth_of_alexnet(form: str, batch_size: int) -> float:
    """Microseconds per image of training AlexNet deck, the median of seven steps."""
    crops = Crops(np.full((256, 256, 3), 128, np.float32), 227, 70 * np.eye(3))
    optimizer = sgd(0.01, 0.9, 0.0005)
    trainer = Trainer(alexnet("deck", 227), optimizer, FORMS[form], augment=crops.random)
    images = torch.randint(256, (batch_size, 256, 256, 3), dtype=torch.uint8)
    images, labels = placed(images, torch.randint(1000, (batch_size,)))

    def run():
        trainer.step(images, labels)
        wait()

    took = [seconds(run) for _ in range(8)]
    return 1e6 * float(np.median(took[1:])) / batch_size


def growth_of_stream(form: str, data_dir: str, repeats: int, num_batches: int) -> float:
    """Microseconds per image of reading batches of 128 by DataLoader without workers."""
    from common.records import open_records

    records = open_records("tiles", "train", [data_dir])
    records = dataclasses.replace(records, slices=records.slices * repeats)
    batches = loader_batches(form, records, 128, 0)
    next(batches)

    def run():
        for _ in range(num_batches):
            next(batches)

    return 1e6 * seconds(run) / (128 * num_batches)
