"""Our two networks as the benchmark trains and scores them. Everything that it uses of `train`,
`network` and `parallel` is in this file.
"""

import dataclasses
import functools

import jax
import numpy as np
from absl import flags
from flax import nnx

import alexnet.config
import alexnet.data
import alexnet.model
import alexnet.train
import common.flags
import lenet.config
import lenet.data
import lenet.model
import lenet.train
from common import data, parallel
from scripts.benchmark.timing import ROOT


def preset(package, name: str, *changes: str):
    """The config of PACKAGE/presets/NAME.flags, with changes given as flags."""
    common.flags.define(package.config.Config, values := flags.FlagValues())
    flagfile = ROOT / package.__name__ / "presets" / f"{name}.flags"
    values(["benchmark", f"--flagfile={flagfile}", *changes])
    return common.flags.read(package.config.Config, values)


def operations(layers: list[dict], *, training: bool) -> int:
    """Floating-point operations per image for the rows of a layer table: two for each use of a
    weight; in training three times that, without the gradient with respect to the image.
    """
    uses = sum(layer["multiply_adds"] for layer in layers)
    first = next(layer["multiply_adds"] for layer in layers if layer["multiply_adds"])
    return 2 * (3 * uses - first if training else uses)


# ---- LeNet-5


@functools.cache
def embedded_digits() -> data.Examples:
    """The training digits of the set that comes with the project."""
    return lenet.data.load_splits("mnist10k", "", train_size=0, validation_size=500)[0]


def steps_per_chunk(batch_size: int) -> int:
    """Steps in one compiled call, as `lenet.train` chooses them."""
    return lenet.train.steps_per_chunk(batch_size)


def lenet_operations(config: lenet.config.Config, *, training: bool) -> int:
    """Floating-point operations per image."""
    layers = lenet.model.layer_table(lenet.train.build_model(config))
    return operations(layers, training=training)


class LeNetTraining:
    """LeNet-5's training loop without its files: chunks of steps on examples in memory."""

    def __init__(self, config: lenet.config.Config, examples: data.Examples, chunk_steps: int):
        self.config, self.examples, self.chunk_steps = config, examples, chunk_steps
        self.epoch_steps = lenet.data.steps_per_epoch(len(examples), config.batch_size)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: lenet.train.build_model(config)))
        loss, prepare = lenet.train.build_loss(config), lenet.train.build_prepare(config)
        self.tx = lenet.train.build_optimizer(config, self.epoch_steps)
        train_steps = lenet.train.make_train_steps(
            graphdef, self.tx, loss, prepare, config.average_decay
        )
        self.placement = parallel.place(
            train_steps, mode="jit", batch_size=config.batch_size, batch_axis=1
        )
        self.eval_step = lenet.train.make_eval_step(graphdef, loss, prepare)
        self.restart(config.seed)

    def restart(self, seed: int) -> None:
        """Back to step 0, with weights and order drawn from `seed`."""
        self.config, self.step = dataclasses.replace(self.config, seed=seed), 0
        new_state = jax.jit(
            lambda: lenet.train.initial_state(self.config, self.tx, 1, self.examples.num_classes),
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

    def run_chunk(self, chunk: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Trains on a chunk; returns its sums."""
        chunk = self.placement.place_training(chunk)
        self.state, sums = self.placement.run(self.state, chunk, self.chunk_steps)
        return sums

    def run(self) -> None:
        """The next chunk, to its end."""
        sums = self.run_chunk(self.chunk(self.step))
        jax.block_until_ready((self.state, sums))
        self.step += self.chunk_steps

    def score(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The sums of one batch for evaluation."""
        return self.eval_step(self.state.params, self.placement.place_batch(batch))

    def error_pct(self, examples: data.Examples) -> float:
        """The classification error on all examples."""
        sums = lenet.train.evaluate(self.eval_step, self.state.params, examples)
        return 100 * float(sums["errors"]) / float(sums["count"])

    def learning_rates(self, num_steps: int) -> np.ndarray:
        """(num_steps,): the learning rate of each update."""
        schedule = lenet.train.build_schedule(self.config, self.epoch_steps)
        return np.asarray(schedule(np.arange(num_steps)))


# ---- AlexNet and the CIFAR-10 networks


class AlexNetTraining:
    """AlexNet's training loop without its files: one step per call, always on the same batch of
    noise.
    """

    def __init__(self, config: alexnet.config.Config, num_classes: int):
        self.config, self.num_classes = config, num_classes
        size = 32 if config.crop_size <= 32 else 256
        noise = alexnet.data.Noise(
            range(config.batch_size), (size, size, 3), config.seed, num_classes
        )
        self.statistics = jax.tree.map(np.float32, alexnet.data.statistics(noise))
        self.batch = alexnet.data.training_batch(
            noise, 0, batch_size=config.batch_size, seed=config.seed
        )
        graphdef = nnx.graphdef(nnx.eval_shape(self.model))
        tx, loss = alexnet.train.build_optimizer(config, 1000), alexnet.train.build_loss(config)
        self.prepare = alexnet.train.build_prepare(config, self.statistics)
        train_step = alexnet.train.make_train_step(
            graphdef, tx, loss, self.prepare, config.average_decay, config.seed
        )
        self.placement = parallel.place(train_step, mode="jit", batch_size=config.batch_size)
        self.eval_step = alexnet.train.make_eval_step(graphdef, loss, self.prepare)
        new_state = jax.jit(
            lambda: alexnet.train.initial_state(config, tx, num_classes, self.statistics),
            out_shardings=self.placement.replicated,
        )
        self.state = self.placement.place_state(new_state())

    def model(self) -> alexnet.model.AlexNet:
        """The network as a module, its weights drawn from the config's seed."""
        return alexnet.train.build_model(self.config, self.num_classes)

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
        return alexnet.model.layer_table(nnx.eval_shape(self.model), self.config.crop_size)

    def operations(self, *, training: bool) -> int:
        """Floating-point operations per image."""
        return operations(self.layer_table(), training=training)
