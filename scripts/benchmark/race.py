"""The whole way: a training of fixed length, and the errors that it ends with."""

import functools
import itertools
import statistics
from collections.abc import Iterator

import lenet.config
import lenet.data
from common.errors import DataError
from common.order import steps_per_epoch
from scripts.benchmark.lenet import trainers
from scripts.benchmark.machine import matmul_peak
from scripts.benchmark.measure import ONE_SIDE, Case, seconds
from scripts.benchmark.timing import PEERS, Setting, torch_peers
from scripts.benchmark.training import LeNetTraining, lenet_operations

NUM_SEEDS = 30  # of which the mean error is told
MAX_CHUNK_STEPS = 64  # updates in one call


def time_to_accuracy(setting: Setting) -> Iterator[Case]:
    """Seconds of a training of fixed length, and its errors."""
    dataset, num_epochs = "mnist", 5
    splits = None if setting.smallest else mnist(setting.data_dir)
    if splits is None:  # the embedded digits: fewer updates in an epoch
        dataset, num_epochs = "mnist10k", 2 if setting.smallest else 30
        small = lenet.config.Config(dataset="mnist10k", validation_size=500)
        splits = lenet.data.load_splits(small)
    race = Race(setting, splits, num_epochs)
    config, name = race.training.config, f"{dataset}, {num_epochs} epochs"
    per_image = lenet_operations(config, training=True)
    contains = (
        f"LeNet-5 (Table I, ReLU, max pooling), batch 128, Adam, rates that rise to "
        f"{config.learning_rate} in the first epoch and fall to zero by a cosine, the same initial "
        "weights and the same batches on both sides, another seed in each round."
    )
    yield Case(
        ((name, "s"),),
        functools.partial(race.ours, itertools.count(10)),
        {form: functools.partial(race.theirs, trainer) for form, trainer in race.trainers.items()},
        f"{contains} Seconds of training alone, compiled before. Limit: the operations of forward "
        "and backward at the matmul peak.",
        (race.num_steps * config.batch_size * per_image / matmul_peak(),),
    )
    num_seeds = 2 if setting.smallest else NUM_SEEDS
    yield Case(
        tuple((f"{name}: mean {kind} error of {num_seeds} seeds", "%") for kind in race.scored),
        functools.cache(functools.partial(race.mean_errors, range(10, 10 + num_seeds))),
        {},
        contains,
        (None, None),
        no_peer=ONE_SIDE,
    )


def mnist(data_dir: str) -> tuple | None:
    """Its splits, if it is prepared."""
    try:
        return lenet.data.load_splits(lenet.config.Config(dataset="mnist", data_dir=data_dir))
    except DataError:
        return None


class Race:
    """The same training on both sides: from the same weights, by the same batches."""

    def __init__(self, setting: Setting, splits: tuple, num_epochs: int):
        train, validation, test = splits
        self.scored = {"validation": validation, "test": test}
        # Chosen for 99% of MNIST's validation digits, on seeds 0 to 2, among 3 to 5 epochs and
        # rates of 0.003 to 0.01.
        config = lenet.config.Config(
            activation="relu",
            pooling="max",
            optimizer="adamw",
            momentum=0.0,
            schedule="cosine",
            warmup_epochs=1.0,
            learning_rate=0.01,
            batch_size=128,
            num_epochs=num_epochs,
        )
        self.num_steps = num_epochs * steps_per_epoch(len(train), config.batch_size)
        sizes = range(1, MAX_CHUNK_STEPS + 1)
        chunk_steps = max(size for size in sizes if self.num_steps % size == 0)
        self.training = LeNetTraining(config, train, chunk_steps)
        self.training.run()  # compiles
        self.rates = self.training.learning_rates(self.num_steps)
        self.trainers = trainers(setting, False, config) if PEERS else {}

    def ours(self, seeds: Iterator[int]) -> tuple[float]:
        """Seconds of one run."""
        self.training.restart(next(seeds))
        return (seconds(self._train),)

    def _train(self) -> None:
        while self.training.step < self.num_steps:
            self.training.run()

    def theirs(self, trainer) -> tuple[float]:
        """Those of PyTorch's, by the batches of the seed of our last run."""
        self.training.restart(self.training.config.seed)
        trainer.restart(self.training.state.params)

        def train():
            for first in range(0, self.num_steps, self.training.chunk_steps):
                batches = zip(*torch_peers().tensors(self.training.chunk(first)), strict=True)
                for step, batch in enumerate(batches, start=first):
                    trainer.set_rate(float(self.rates[step]))
                    trainer.step(*batch)
            torch_peers().wait()

        return (seconds(train),)

    def mean_errors(self, seeds: range) -> tuple[float, ...]:
        """The errors after a run, in percent, means over the seeds."""
        found = []
        for seed in seeds:
            self.training.restart(seed)
            self._train()
            found.append([self.training.error_pct(split) for split in self.scored.values()])
        return tuple(statistics.mean(errors) for errors in zip(*found, strict=True))
