"""Our two networks as the benchmark trains and scores them. Everything that it uses of `train`,
`network` and `parallel` is in this file.
"""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

import alexnet.config
import alexnet.data
import alexnet.model
import alexnet.network
import alexnet.train
import lenet.config
import lenet.data
import lenet.model
import lenet.network
import lenet.train
from alexnet.image_statistics import statistics
from alexnet.noise import Noise
from common import parallel
from common.evaluation import evaluate
from common.examples import Examples
from common.flags import from_preset
from common.network import Network
from common.order import steps_per_epoch


def operations(layers: list[dict], *, training: bool) -> int:
    """Floating-point operations per image for the rows of a layer table: two for each use of a
    weight; in training three times that, without the gradient with respect to the image.
    """
    uses = sum(layer["multiply_adds"] for layer in layers)
    first = next(layer["multiply_adds"] for layer in layers if layer["multiply_adds"])
    return 2 * (3 * uses - first if training else uses)


# ---- LeNet-5


@functools.cache
def embedded_digits() -> Examples:
    """The training digits of the set that comes with the project."""
    config = lenet.config.Config(dataset="mnist10k", validation_size=500)
    return lenet.data.load_splits(config)[0]


def lenet_operations(config: lenet.config.Config, *, training: bool) -> int:
    """Floating-point operations per image."""
    layers = lenet.model.layer_table(lenet.network.build_model(config))
    return operations(layers, training=training)


class LeNetTraining:
    """LeNet-5's training loop without its files: chunks of steps on examples in memory."""

    def __init__(self, config: lenet.config.Config, examples: Examples, chunk_steps: int):
        self.config, self.examples, self.chunk_steps = config, examples, chunk_steps
        self.epoch_steps = steps_per_epoch(len(examples), config.batch_size)
        network, self.tx = self.network(), lenet.train.build_optimizer(config, self.epoch_steps)
        self.placement = parallel.place(
            lenet.train.make_train_steps(network, self.tx),
            mode="jit",
            batch_size=config.batch_size,
            batch_axis=1,
        )
        self.eval_step = lenet.train.make_eval_step(network)
        self.restart(config.seed)

    def network(self) -> Network:
        return lenet.network.assemble(self.config, self.examples.num_classes)

    def restart(self, seed: int) -> None:
        """Back to step 0, with weights and order drawn from `seed`."""
        self.config, self.step = dataclasses.replace(self.config, seed=seed), 0
        network = self.network()
        new_state = jax.jit(
            lambda: lenet.train.initial_state(network, self.tx, network.init()),
            out_shardings=self.placement.replicated,
        )
        self.state = self.placement.place_state(new_state())

    def chunk(self, step: int) -> dict[str, np.ndarray]:
        """The batches of the chunk that starts at `step`, on the host."""
        return lenet.data.training_chunk(
            self.examples,
            first_step=step,
            num_steps=self.chunk_steps,
            padded_to=self.chunk_steps,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            reshuffle=True,
            copies=0,
        )

    def run(self) -> None:
        """The next chunk, to its end."""
        chunk = self.placement.place_training(self.chunk(self.step))
        self.state, sums = self.placement.run(self.state, chunk, self.chunk_steps)
        jax.block_until_ready((self.state, sums))
        self.step += self.chunk_steps

    def score(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The sums of one batch for evaluation."""
        return self.eval_step(self.state.params, self.placement.place_batch(batch))

    def error_pct(self, examples: Examples) -> float:
        """The classification error on all examples."""
        batch_size = lenet.train.EVAL_BATCH_SIZE
        sums = evaluate(self.eval_step, self.state.params, examples, batch_size=batch_size)
        return 100 * float(sums["errors"]) / float(sums["count"])

    def learning_rates(self, num_steps: int) -> np.ndarray:
        """(num_steps,): the learning rate of each update."""
        schedule = lenet.train.learning_rate_schedule(self.config, self.epoch_steps)
        return np.asarray(schedule(np.arange(num_steps)))


# ---- AlexNet and the CIFAR-10 networks


class AlexNetTraining:
    """AlexNet's training loop without its files: one step per call, always on the same batch of
    noise.
    """

    def __init__(self, preset: str, num_classes: int, *flags: str):
        config = from_preset(alexnet.config.Config, preset, "--dataset=fake", *flags)
        self.config, self.num_classes = config, num_classes
        size = 32 if config.crop_size <= 32 else 256
        noise = Noise(range(config.batch_size), (size, size, 3), config.seed, num_classes)
        self.statistics = jax.tree.map(np.float32, statistics(noise))
        self.batch = alexnet.data.training_batch(
            noise, 0, batch_size=config.batch_size, seed=config.seed
        )
        self.network = alexnet.network.assemble(config, num_classes, self.statistics)
        tx = alexnet.train.build_optimizer(config, epoch_steps=1000)
        self.placement = parallel.place(
            alexnet.train.make_train_step(self.network, tx),
            mode="jit",
            batch_size=config.batch_size,
        )
        self.eval_step = alexnet.train.make_eval_step(self.network)
        new_state = jax.jit(
            lambda: alexnet.train.initial_state(
                self.network, tx, self.statistics, self.network.init()
            ),
            out_shardings=self.placement.replicated,
        )
        self.state = self.placement.place_state(new_state())

    def run(self) -> tuple:
        """The next step: (state, sums)."""
        self.state, sums = self.placement.run(self.state, self.placement.place_training(self.batch))
        return self.state, sums

    def score(self) -> dict[str, jax.Array]:
        """The sums of the batch for evaluation, by the center crop."""
        batch = {
            "image": self.batch["image"],
            "label": self.batch["label"],
            "mask": np.ones(self.config.batch_size, bool),
        }
        return self.eval_step(self.state.params, self.placement.place_batch(batch))

    def layer_table(self) -> list[dict]:
        return alexnet_layers(self.config, self.num_classes)

    def operations(self, *, training: bool) -> int:
        """Floating-point operations per image."""
        return operations(self.layer_table(), training=training)


def alexnet_layers(config: alexnet.config.Config, num_classes: int) -> list[dict]:
    """The layer table of a network."""
    model = nnx.eval_shape(lambda: alexnet.network.build_model(config, num_classes))
    return alexnet.model.layer_table(model, config.crop_size)
