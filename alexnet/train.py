"""Trains AlexNet (Krizhevsky et al. 2012), resumes it, or says that it is complete.

python -m alexnet.train --workdir=runs/first --preset=small
python -m alexnet.train --workdir=runs/paper --preset=paper --data_dir=/data/tfds
python -m alexnet.train --workdir=runs/no_dropout --preset=small --dropout=0 --seed=1
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

if find_spec("common") is None:  # python alexnet/train.py in a clone that is not installed
    print("error: run pip install -e . first, or: python -m alexnet.train", file=sys.stderr)
    sys.exit(2)

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from alexnet.augment import VIEWS, views_differ
from alexnet.config import Config
from alexnet.data import (
    load_splits,
    overlaps,
    remarks,
    require_disjoint,
    require_first_batch,
    training_batches,
)
from alexnet.image_statistics import Statistics, statistics
from alexnet.network import assemble, given_params, given_statistics
from alexnet.optimizer import (
    Plateau,
    build_optimizer,
    drop_on_plateau,
    learning_rate_schedule,
    new_plateau,
)
from common import launch, metrics, parallel, step
from common.errors import UserError
from common.loop import Task, fit
from common.network import Network
from common.order import steps_per_epoch
from common.records import REPLACED, DamagedRecords
from common.start_up import other_training_set

DROPOUT = 2**31 + 1  # folded into key(seed): apart from the keys of initial weights, augmentation
EVAL_VALUES = 10_000_000  # input values of a batch of evaluation: 64 crops of 227x227x3
MAX_TRAIN_SCORED = 50_000  # training examples that are scored at the end

FULLY_CONNECTED = ("fc6", "fc7", "fc8")  # what a model axis splits: 94% of the weights

NOT_LEARNING = {
    "alexnet": "Deep networks with large biases may start like this: try --hidden_bias=0.1 or 0, "
    "--initialization=he, another --learning_rate, or another --seed.",
    "cifar18": "Try another --learning_rate.",
    "cifar13": "Try another --learning_rate.",
}


class TrainState(NamedTuple):
    """Everything that training changes, and the statistics that images are prepared with."""

    step: jax.Array  # () int32: updates done
    params: Any  # {layer: {parameter: array}}
    opt_state: Any
    average: Any  # like params; () when the weights are not averaged
    plateau: Plateau | tuple  # () when the rate does not depend on the validation error
    statistics: Statistics  # of the training set


def initial_state(network: Network, tx, statistics: Statistics, params) -> TrainState:
    """The state before the first update."""
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        tx.init(network.learning(params)),
        average=params if network.config.average_decay else (),
        plateau=new_plateau() if network.config.schedule == "plateau" else (),
        statistics=statistics,
    )


def dropout_key(seed: int, draw) -> Key[Array, ""]:
    """Of one image, at the use number `draw`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT), draw)


def make_train_step(network: Network, tx) -> Callable:
    """Returns train_step(state, batch, add_up) -> (state, sums), which `parallel.place` takes."""
    config = network.config

    key_of = partial(dropout_key, config.seed)

    def train_step(state: TrainState, batch, add_up):
        grads, sums = step.gradients(network, state.params, batch, add_up, key_of)
        drops = state.plateau.drops if state.plateau != () else 0
        return state._replace(**step.update(network, tx, state, grads, drops=drops)), sums

    return train_step


def make_eval_step(network: Network, num_views: int = 1) -> Callable:
    """The evaluation step of `common.step`, with top-5 errors among more than five classes.

    With `num_views` 1 the network sees the center crop; with VIEWS the ten of section 4.1, whose
    probabilities are averaged.
    """
    views = [None] if num_views == 1 else range(num_views)  # None: the center

    def log_probabilities(params, images):
        crops = jnp.stack([network.prepare(images, view=view) for view in views], axis=1)
        logits = network.logits(params, crops.reshape(-1, *crops.shape[2:]))
        found = jax.nn.log_softmax(logits).reshape(-1, num_views, logits.shape[-1])
        return jax.nn.logsumexp(found, axis=1) - math.log(num_views)  # of the mean probability

    return step.make_eval_step(network, log_probabilities, top5=network.num_classes > 5)


def eval_batch_size(config: Config, num_views: int = 1) -> int:
    """How many examples each device scores at once: EVAL_VALUES, and at most 1,000 examples."""
    return min(max(EVAL_VALUES // (num_views * 3 * config.crop_size**2), 1), 1000)


def make_task(config: Config, resumed: Path | None = None) -> Task:
    """The training that `config` describes; that of a run which goes on in the folder `resumed`
    needs the run --init_from no more. Raises UserError before anything is compiled.
    """
    modes = dict(
        mode=config.parallel,
        reduction=config.reduction,
        mesh=config.mesh,
        batch_size=config.batch_size,
    )
    parallel.require_possible(**modes)  # before minutes go into the data

    # ---- data
    damaged = DamagedRecords(config.dataset, config.max_bad_records)
    train, validation, test = load_splits(config, damaged)
    num_classes = config.num_classes or train.num_classes
    if num_classes < train.num_classes:
        raise UserError(
            f"--num_classes={num_classes} is less than the {train.num_classes} classes of "
            f"{config.dataset}"
        )
    epoch_steps = steps_per_epoch(len(train), config.batch_size)
    for examples in (train, validation, test):
        require_first_batch(examples, config.batch_size, config.seed)
    shared = overlaps(config)
    measured = given_statistics(config, train.image_shape, resumed)
    if measured is None:
        measured = jax.tree.map(np.float32, statistics(train, config.num_workers))

    # ---- network, optimizer, steps
    before_fc = parallel.gather_before_split_layers(config.mesh)
    network = assemble(config, num_classes, measured, before_fc)
    tx = build_optimizer(config, epoch_steps)
    train_step = make_train_step(network, tx)
    placement = parallel.place(train_step, **modes, split_layers=FULLY_CONNECTED)
    center, ten = (placement.over_devices(make_eval_step(network, views)) for views in (1, VIEWS))

    def chunks(first_step: int) -> Iterator[tuple[int, Any]]:
        reading = training_batches(
            train,
            first_step=first_step,
            batch_size=config.batch_size,
            seed=config.seed,
            num_threads=config.num_workers,
            rows=placement.rows(config.batch_size),
        )
        with contextlib.closing(reading) as batches:
            for batch in batches:
                yield 1, batch

    def train_batch(state: TrainState, batch, count):
        return placement.run(state, placement.place_training(batch))

    def update_plateau(state: TrainState, scores: dict, say: Callable) -> TrainState:
        patience, one = config.patience, placement.replicate(state)
        plateau = drop_on_plateau(
            one.plateau, scores["error_pct"], patience=patience, num_drops=config.num_drops
        )
        if plateau.drops > one.plateau.drops:
            say(f"no new best validation error in {patience} epochs: learning rate / 10")
        return placement.place_state(one._replace(plateau=plateau))

    def require_same_set(state: TrainState, meta: dict) -> None:
        if not jax.tree.all(jax.tree.map(np.array_equal, state.statistics, measured)):
            raise other_training_set(config, "its mean image")
        damaged.add(meta.get("damaged", ()))

    def more_scores(test_scores: dict, score: Callable) -> dict:
        kinds = {"": test_scores}
        if config.ten_crop and views_differ(train.image_shape, config.crop_size, config.mirror):
            kinds["ten_crop_"] = metrics.summarize(score(test, ten, eval_batch_size(config, VIEWS)))
        found = {"damaged_records": damaged.count}
        if shared or config.allow_overlap:
            found |= {"allow_overlap": config.allow_overlap, "overlap": shared}
        for kind, scores in kinds.items():
            found[f"{kind}top1_error_pct"] = scores["error_pct"]
            if "top5_error_pct" in scores:
                found[f"{kind}top5_error_pct"] = scores["top5_error_pct"]
        return found

    def notes() -> dict:
        damaged.agree(REPLACED)
        return {"damaged": damaged.listed}

    return Task(
        network=network,
        log_every_steps=config.log_every_steps,
        save_every_steps=config.save_every_steps,
        placement=placement,
        initial_state=partial(initial_state, network, tx, measured),
        given_params=partial(given_params, network, train.class_names),
        chunks=chunks,
        train=train_batch,
        after_epoch=update_plateau if config.schedule == "plateau" else lambda state, *_: state,
        eval_step=center,
        eval_batch_size=eval_batch_size(config),
        num_threads=config.num_workers,
        splits={"train": train[:MAX_TRAIN_SCORED], "validation": validation, "test": test},
        more_scores=more_scores,
        facts={
            "num_classes": num_classes,
            "image_shape": list(measured.mean_image.shape),
            "class_names": train.class_names,
        },
        training_set=train.fingerprint(),
        restored=require_same_set,
        notes=notes,
        learning_rate=learning_rate_schedule(config, epoch_steps)
        if config.schedule != "plateau"
        else None,
        chance_loss=math.log(num_classes),
        hint=NOT_LEARNING[config.net],
        remarks=[
            *remarks(config, train.image_shape),
            *shared,
            *[f"no top-5 error: among {num_classes} classes it is always 0"] * (num_classes <= 5),
        ],
    )


if __name__ == "__main__":
    launch.main(Config, make_task, fit, require_disjoint)
