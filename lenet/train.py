"""Trains LeNet-5: `python -m lenet.train --workdir=runs/first
[--flagfile=lenet/presets/paper.flags] [--name=value ...]`.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from common import checkpoint, conv, flags, launch, metrics, parallel, writer
from common.errors import DataError, UserError
from common.examples import Examples
from common.order import epoch_order, eval_batches, steps_per_epoch
from lenet.codes import digit_codes
from lenet.config import Config
from lenet.data import load_splits, prepare_function, training_chunk
from lenet.model import LeNet5, c3_connections, loss_function
from lenet.optimizer import curvature, learning_rate_schedule, make_optimizer

EVAL_BATCH_SIZE = 1000


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # () int32: updates done
    params: Any  # {layer: {parameter: array}}
    opt_state: Any
    average: Any  # like params; () when the weights are not averaged


# ---- what a config describes


def build_model(config: Config, in_channels: int = 1, num_classes: int = 10) -> LeNet5:
    """The network, its weights drawn from `config.seed`."""
    return LeNet5(
        connections=c3_connections(config.c3, config.seed),
        activation=config.activation,
        pooling=config.pooling,
        output=config.output,
        codes=digit_codes(),
        initialization=config.initialization,
        in_channels=in_channels,
        num_classes=num_classes,
        convolution=conv.batch_last_convolution(),
        dtype=jnp.dtype(config.compute_dtype),
        rngs=nnx.Rngs(config.seed),
    )


def build_loss(config: Config) -> Callable:
    """(B, classes) logits and (B,) labels -> (B,)."""
    return loss_function(
        config.loss,
        config.output,
        map_constant=config.map_constant,
        label_smoothing=config.label_smoothing,
    )


def build_schedule(config: Config, epoch_steps: int) -> optax.Schedule:
    """Updates done -> the learning rate of the next, in epochs of `epoch_steps` updates."""
    return learning_rate_schedule(
        config.schedule,
        config.learning_rate,
        steps_per_epoch=epoch_steps,
        num_steps=config.num_epochs * epoch_steps,
        warmup_epochs=config.warmup_epochs,
    )


def build_optimizer(config: Config, epoch_steps: int) -> optax.GradientTransformation:
    """The optimizer with its schedule for epochs of `epoch_steps` updates."""
    return make_optimizer(
        config.optimizer,
        build_schedule(config, epoch_steps),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def build_prepare(config: Config) -> Callable:
    """(B, H, W, C) uint8 images, and what to draw distortions from -> (B, 32, 32, C) float32."""
    return prepare_function(
        config.scaling, config.distortions, strength=config.distortion_strength, seed=config.seed
    )


def initial_state(
    config: Config, tx, in_channels: int, num_classes: int, params=None
) -> TrainState:
    """The state before the first update, with weights drawn from `config.seed` where none are
    given.
    """
    if params is None:
        params = nnx.to_pure_dict(
            nnx.state(build_model(config, in_channels, num_classes), nnx.Param)
        )
    return TrainState(
        jnp.zeros((), jnp.int32), params, tx.init(params), params if config.average_decay else ()
    )


def given_params(config: Config, target):
    """The weights of the run --init_from, on the host; None without it.

    Raises UserError if there is no such run, or its weights have other shapes than those of
    `target`.
    """
    if not config.init_from:
        return None
    source = Path(config.init_from).expanduser()
    run = load_run(source)
    checkpoint.require_fit(run.params, target, source)
    if c3_connections(run.config.c3, run.config.seed) != c3_connections(config.c3, config.seed):
        raise UserError(
            f"{source} holds another model: its --c3={run.config.c3} connects other maps; use its --c3 and --seed."
        )
    return jax.device_get(run.params)


def evaluated_params(state: TrainState):
    """The weights that evaluation uses: their average if there is one."""
    return state.average if state.average != () else state.params


# ---- the steps


def make_train_steps(graphdef, tx, loss, prepare, average_decay: float) -> Callable:
    """Returns train_steps(state, chunk, num_steps, add_up) -> (state, sums): the first `num_steps`
    batches of a chunk, in turn.

    `add_up(sums_of, batch)` adds the sums of the batch's parts up, over all devices
    (common/parallel.py).
    """

    def train_step(state: TrainState, batch, add_up):
        def sums_of(part):
            images = prepare(part["image"], part["draw"])  # (B, 32, 32, C)

            def sum_of_losses(params):
                logits = nnx.merge(graphdef, params)(images)  # (B, classes)
                return loss(logits, part["label"]).sum(), logits

            (loss_sum, logits), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(
                state.params
            )
            errors = jnp.sum(logits.argmax(-1) != part["label"])
            return grads, {"loss": loss_sum, "errors": errors, "count": len(images)}

        grads, sums = add_up(sums_of, batch)
        scale = (
            1 / sums["count"]
        )  # a product everywhere: of one device the compiler would make one of a division
        grads = jax.tree.map(lambda grad: grad * scale, grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average_decay:
            decay = jnp.minimum(
                average_decay, (1 + state.step) / (10 + state.step)
            )  # forgets the first steps sooner
            average = optax.incremental_update(params, average, 1 - decay)
        return TrainState(state.step + 1, params, opt_state, average), sums

    def train_steps(state, chunk, num_steps, add_up):
        def one_step(k, carry):
            state, total = carry
            state, sums = train_step(state, jax.tree.map(lambda batches: batches[k], chunk), add_up)
            return state, jax.tree.map(jnp.add, total, sums)

        zeros = {
            "loss": jnp.zeros(()),
            "errors": jnp.zeros((), jnp.int32),
            "count": jnp.zeros((), jnp.int32),
        }
        return lax.fori_loop(0, num_steps, one_step, (state, zeros))

    return train_steps


def make_curvature_step(graphdef, loss, prepare) -> Callable:
    """Returns curvature_step(state, images, labels) -> the state with SDLM's curvature estimated
    from these examples.
    """

    @jax.jit
    def curvature_step(state: TrainState, images, labels) -> TrainState:
        h = curvature(nnx.merge(graphdef, state.params), prepare(images), labels, loss)
        return state._replace(opt_state=state.opt_state._replace(curvature=h))

    return curvature_step


def make_eval_step(graphdef, loss, prepare) -> Callable:
    """Returns eval_step(params, batch) -> sums of loss, errors, count, and confusion matrix; masked
    examples count nowhere.
    """

    @jax.jit
    def eval_step(params, batch):
        logits = nnx.merge(graphdef, params)(prepare(batch["image"]))  # (B, classes)
        label, predicted, mask = batch["label"], logits.argmax(-1), batch["mask"]
        return {
            "loss": jnp.sum(loss(logits, label) * mask),
            "errors": jnp.sum((predicted != label) & mask),
            "count": jnp.sum(mask),
            "confusion": jnp.zeros((logits.shape[-1],) * 2, jnp.int32)
            .at[label, predicted]
            .add(mask),  # [true, predicted]
        }

    return eval_step


def evaluate(
    eval_step, params, examples: Examples, placement: parallel.Placement | None = None
) -> dict:
    """The sums of `eval_step` over all examples, each counted once: {"loss", "errors", "count",
    "confusion"}.
    """
    num_devices = placement.num_devices if placement else 1
    batch_size = -(-min(EVAL_BATCH_SIZE, len(examples)) // num_devices) * num_devices
    rows, put = (
        (placement.rows(batch_size), placement.place_batch)
        if placement
        else (slice(None), jax.device_put)
    )
    sums = [
        eval_step(params, put(batch)) for batch in eval_batches(examples, batch_size, rows)
    ]
    return jax.tree.map(lambda *parts: np.sum(jax.device_get(parts), axis=0), *sums)


# ---- a run


def steps_per_chunk(batch_size: int) -> int:
    """Steps in one jitted call: about 4,096 images and at most 2,048 steps, so that a signal is
    heard within a second.
    """
    return min(max(4096 // batch_size, 1), 2048)


def train_and_evaluate(
    config: Config, workdir: Path, stop_requested: Callable[[], int | None]
) -> dict:
    """Trains from the newest checkpoint, or from the start, to the end; returns the metrics of
    result.json.
    """
    modes = dict(mode=config.parallel, reduction=config.reduction, batch_size=config.batch_size)
    parallel.require_possible(**modes)  # before minutes go into the data

    # ---- data
    sizes = dict(train_size=config.train_size, validation_size=config.validation_size)
    train, validation, test = load_splits(config.dataset, config.data_dir, **sizes)
    tracked = test if config.track == "test" else validation
    facts = {"in_channels": train.images.shape[-1], "num_classes": train.num_classes}
    train_set = {
        "train_examples": len(train),
        "train_labels_sha256": checkpoint.state_sha256(train.labels),
    }
    if config.output == "rbf" and train.num_classes != 10:
        raise UserError(
            f"--output=rbf has codes for ten digits; {config.dataset} has {train.num_classes} classes"
        )
    epoch_steps = steps_per_epoch(len(train), config.batch_size)
    num_steps = config.num_epochs * epoch_steps
    chunk_steps = min(steps_per_chunk(config.batch_size), epoch_steps)

    # ---- model, optimizer, steps
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build_model(config, **facts)))
    tx, loss, prepare = (
        build_optimizer(config, epoch_steps),
        build_loss(config),
        build_prepare(config),
    )
    train_steps = make_train_steps(graphdef, tx, loss, prepare, config.average_decay)
    placement = parallel.place(train_steps, **modes, batch_axis=1)
    eval_step = placement.over_devices(make_eval_step(graphdef, loss, prepare))
    curvature_loss = (
        loss if config.curvature_loss == "same" else loss_function("mse", config.output)
    )
    curvature_step = make_curvature_step(graphdef, curvature_loss, prepare)

    def score(state: TrainState, examples: Examples) -> dict:
        return evaluate(
            eval_step, evaluated_params(placement.take_state(state)), examples, placement
        )

    # ---- restore or start
    new_state = jax.jit(
        partial(initial_state, config, tx, **facts), out_shardings=placement.replicated
    )
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement.replicated),
        jax.eval_shape(new_state),
    )
    checkpointer = checkpoint.Checkpointer(workdir)
    restored = checkpointer.restore_newest(target)
    step, state, meta = restored or (
        0,
        new_state(params=given_params(config, target.params)),
        {"totals": None},
    )
    if any(
        meta.get(name, value) != value for name, value in train_set.items()
    ):  # older checkpoints lack them
        raise DataError(
            f"{config.dataset} is not the set that {workdir} was started with: its training examples differ"
        )
    state = placement.place_state(state)
    log = writer.Writer(
        workdir,
        first_step=step,
        num_steps=num_steps,
        steps_per_epoch=epoch_steps,
        before=meta["totals"],
        learning_rate=build_schedule(config, epoch_steps),
    )

    # ---- train
    with contextlib.closing(checkpointer), log:
        while step < num_steps:
            epoch = step // epoch_steps
            if config.optimizer == "sdlm" and step % epoch_steps == 0:
                chosen = epoch_order(len(train), config.seed, epoch + 1)[
                    : config.curvature_examples
                ]
                state = placement.take_state(state)
                state = placement.place_state(
                    curvature_step(state, train.images[chosen], train.labels[chosen])
                )
            count = min(chunk_steps, (epoch + 1) * epoch_steps - step)
            chunk = training_chunk(
                train,
                first_step=step,
                num_steps=count,
                padded_to=chunk_steps,
                batch_size=config.batch_size,
                seed=config.seed,
                reshuffle=config.reshuffle,
                copies=config.distorted_copies,
                rows=placement.rows(config.batch_size),
            )
            state, sums = placement.run(state, placement.place_training(chunk), count)
            step += count
            log.write(step, "train", sums)
            end_of_epoch = step % epoch_steps == 0
            if end_of_epoch:
                log.flush()
                log.write(step, config.track, score(state, tracked))
            stop_signal = stop_requested()
            due = end_of_epoch and (epoch + 1) % config.save_every_epochs == 0
            if due or step == num_steps or stop_signal:
                log.flush()
                checkpointer.save(
                    step, placement.take_state(state), {"totals": log.totals} | facts | train_set
                )
            if stop_signal and step < num_steps:
                raise launch.Interrupted(stop_signal)

    # ---- the final scores; without --track=test nothing saw the test split before
    on_test = score(state, test)
    others = {"train": train} | ({"validation": validation} if len(validation) else {})
    return {
        "test_error_pct": metrics.summarize(on_test)["error_pct"],
        **{
            f"{split}_error_pct": metrics.summarize(score(state, examples))["error_pct"]
            for split, examples in others.items()
        },
        "num_test_examples": int(on_test["count"]),
        "num_train_examples": len(train),
        "tracked": config.track,
        "confusion_matrix": on_test["confusion"].tolist(),
        "num_steps": num_steps,
        "state_sha256": checkpoint.state_sha256(placement.take_state(state)),
        "images_per_s": log.images_per_s,
        "wall_time_s": log.seconds,
    }


class Run(NamedTuple):
    """A trained network, read from its workdir."""

    config: Config
    step: int
    in_channels: int
    num_classes: int
    params: Any
    eval_step: Callable


def load_run(workdir: Path) -> Run:
    """The newest intact checkpoint of a run, ready for `evaluate`. Raises UserError if there is
    none.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run (no config.json)")
    try:
        config = flags.from_json(Config, (workdir / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{workdir}/config.json is not that of a LeNet-5 run: {error}") from error
    with contextlib.closing(checkpoint.Checkpointer(workdir, read_only=True)) as checkpointer:
        meta = checkpointer.newest_meta()
        if meta is None:
            raise UserError(f"{workdir} has no checkpoint yet")
        facts = {name: meta[name] for name in ("in_channels", "num_classes")}
        tx = build_optimizer(config, epoch_steps=1)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda: initial_state(config, tx, **facts)),
        )
        step, state, _ = checkpointer.restore_newest(target)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build_model(config, **facts)))
    eval_step = make_eval_step(graphdef, build_loss(config), build_prepare(config))
    return Run(config, step, params=evaluated_params(state), eval_step=eval_step, **facts)


if __name__ == "__main__":
    launch.main(Config, train_and_evaluate)
