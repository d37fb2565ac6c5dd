"""Trains LeNet-5 (LeCun et al. 1998), resumes it, or says that it is complete.

python -m lenet.train --workdir=runs/first --dataset=mnist10k --validation_size=500
python -m lenet.train --workdir=runs/paper --preset=paper
python -m lenet.train --workdir=runs/slower --preset=modern --learning_rate=0.001 --seed=1
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

if find_spec("common") is None:  # python lenet/train.py in a clone that is not installed
    print("error: run pip install -e . first, or: python -m lenet.train", file=sys.stderr)
    sys.exit(2)

import jax
import jax.numpy as jnp
from jax import lax

from common import launch, parallel, step
from common.loop import Task, fit
from common.network import Network
from common.order import steps_per_epoch
from lenet.config import Config
from lenet.data import for_curvature, load_splits, remarks, training_chunks
from lenet.model import loss_function
from lenet.network import assemble, given_params
from lenet.optimizer import build_optimizer, curvature, learning_rate_schedule

EVAL_BATCH_SIZE = 1000  # over all devices


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # () int32: updates done
    params: Any  # {layer: {parameter: array}}
    opt_state: Any
    average: Any  # like params; () when the weights are not averaged


def initial_state(network: Network, tx, params) -> TrainState:
    """The state before the first update."""
    average = params if network.config.average_decay else ()
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(network.learning(params)), average)


def make_train_steps(network: Network, tx) -> Callable:
    """Returns train_steps(state, chunk, num_steps, add_up) -> (state, sums), which `parallel.place`
    takes: the first `num_steps` batches of a chunk, in turn.
    """

    def train_step(state: TrainState, batch, add_up):
        grads, sums = step.gradients(network, state.params, batch, add_up)
        return TrainState(**step.update(network, tx, state, grads)), sums

    def train_steps(state: TrainState, chunk, num_steps, add_up):
        def one_step(k, carry):
            state, total = carry
            batch = jax.tree.map(lambda batches: batches[k], chunk)
            state, sums = train_step(state, batch, add_up)
            return state, jax.tree.map(jnp.add, total, sums)

        none = jnp.zeros((), jnp.int32)
        zeros = {"loss": jnp.zeros(()), "errors": none, "count": none}
        return lax.fori_loop(0, num_steps, one_step, (state, zeros))

    return train_steps


def make_curvature_step(network: Network) -> Callable:
    """Returns curvature_step(state, images, labels) -> the state with SDLM's curvature of them."""
    same = network.config.curvature_loss == "same"
    loss = network.loss if same else loss_function("mse", network.config.output)

    @jax.jit
    def curvature_step(state: TrainState, images, labels) -> TrainState:
        h = curvature(network.bind(state.params), network.prepare(images), labels, loss)
        opt_state = state.opt_state._replace(curvature=network.learning(h))
        return state._replace(opt_state=opt_state)

    return curvature_step


def make_eval_step(network: Network) -> Callable:
    """The evaluation step of `common.step`."""

    def logits(params, images):
        return network.logits(params, network.prepare(images))

    return step.make_eval_step(network, logits)


def make_task(config: Config, resumed: Path | None = None) -> Task:
    """The training that `config` describes; of a run that goes on in the folder `resumed` nothing
    more is needed. Raises UserError before anything is compiled.
    """
    modes = dict(mode=config.parallel, reduction=config.reduction, batch_size=config.batch_size)
    parallel.require_possible(**modes)  # before minutes go into the data

    # ---- data
    train, validation, test = load_splits(config)
    side, _, in_channels = train.image_shape
    sizes = {"num_classes": train.num_classes, "in_channels": in_channels}
    epoch_steps = steps_per_epoch(len(train), config.batch_size)

    # ---- network, optimizer, steps
    network, tx = assemble(config, **sizes, side=side), build_optimizer(config, epoch_steps)
    placement = parallel.place(make_train_steps(network, tx), **modes, batch_axis=1)
    curvature_step = make_curvature_step(network)

    def train_chunk(state: TrainState, chunk, count):
        return placement.run(state, placement.place_training(chunk), count)

    def estimate_curvature(state: TrainState, epoch: int) -> TrainState:
        if epoch % config.curvature_every_epochs:
            return state
        return placement.place_state(curvature_step(state, *for_curvature(train, config, epoch)))

    return Task(
        network=network,
        log_every_steps=1,
        save_every_steps=0,
        placement=placement,
        initial_state=partial(initial_state, network, tx),
        given_params=partial(given_params, network, train.class_names),
        chunks=partial(training_chunks, train, config, placement.rows(config.batch_size)),
        train=train_chunk,
        before_epoch=estimate_curvature if config.optimizer == "sdlm" else lambda state, _: state,
        eval_step=placement.over_devices(make_eval_step(network)),
        eval_batch_size=-(-EVAL_BATCH_SIZE // placement.num_devices),
        num_threads=1,
        splits={"train": train, "validation": validation, "test": test},
        facts=sizes | {"image_side": side, "class_names": train.class_names},
        training_set=train.fingerprint(),
        learning_rate=learning_rate_schedule(config, epoch_steps),
        remarks=remarks(config),
    )


if __name__ == "__main__":
    launch.main(Config, make_task, fit)
