"""Trains AlexNet: `python -m alexnet.train --workdir=runs/first
[--flagfile=alexnet/presets/paper.flags] [--name=value]`.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alexnet.augment import VIEWS, prepare_function
from alexnet.cifar import WEIGHT_DECAY_FACTORS, CifarNet
from alexnet.config import Config
from alexnet.data import load_splits, require_first_batch, training_batches
from alexnet.model import AlexNet, loss_function
from alexnet.optimizer import (
    Plateau,
    drop_on_plateau,
    learning_rate_schedule,
    make_optimizer,
    new_plateau,
)
from alexnet.statistics import Statistics, statistics
from common import checkpoint, conv, flags, launch, metrics, parallel, writer
from common.errors import DataError, UserError
from common.order import NUM_THREADS, eval_batches, steps_per_epoch
from common.records import DamagedRecords

DROPOUT = (
    2**31 + 1
)  # folded into key(seed) first: apart from the keys of initial weights and of augmentation
EVAL_VALUES = 10_000_000  # input values of the network in one batch of evaluation on one device: 64 crops of 227x227x3
MAX_TRAIN_SCORED = 50_000  # training examples that are scored at the end
MAX_CONFUSION_CLASSES = 100  # a confusion matrix is kept up to here

FULLY_CONNECTED = ("fc6", "fc7", "fc8")  # what a model axis splits: 94% of the weights

NOT_LEARNING = {
    "alexnet": "Deep networks with large biases may start so: try --hidden_bias=0.1 or 0, --initialization=he, another "
    "--learning_rate, or another --seed.",
    "cifar18": "Try another --learning_rate.",
    "cifar13": "Try another --learning_rate.",
}


class TrainState(NamedTuple):
    """Everything that training changes, and the statistics of the training set that its images are
    prepared with.
    """

    step: jax.Array  # () int32: updates done
    params: Any  # {layer: {parameter: array}}
    opt_state: Any
    average: Any  # like params; () when the weights are not averaged
    plateau: Plateau | tuple  # () when the rate does not depend on the validation error
    statistics: Statistics


# ---- what a config describes


def build_model(config: Config, num_classes: int, before_fc: Callable = lambda x: x) -> nnx.Module:
    """The network, its weights drawn from `config.seed`; `before_fc` is AlexNet's."""
    names = ("lrn", "lrn_size", "lrn_alpha", "lrn_alpha_over_n", "lrn_k", "activation", "pooling")
    if config.net == "alexnet":
        names += (
            "widths",
            "conv1_padding",
            "towers",
            "norm_order",
            "dropout",
            "dropout_at",
            "dropout_scaling",
        )
        names += ("initialization", "hidden_bias")
    settings = {name: getattr(config, name) for name in names}
    settings |= dict(before_fc=before_fc) if config.net == "alexnet" else {}
    settings |= dict(input_size=config.crop_size, num_classes=num_classes)
    settings |= dict(convolution=conv.convolution(parallel.has_model_axis(config.mesh)))
    settings |= dict(dtype=jnp.dtype(config.compute_dtype), rngs=nnx.Rngs(config.seed))
    return AlexNet(**settings) if config.net == "alexnet" else CifarNet(config.net, **settings)


def build_loss(config: Config) -> Callable:
    """(B, classes) logits and (B,) labels -> (B,)."""
    return loss_function(config.label_smoothing)


def build_schedule(config: Config, epoch_steps: int) -> optax.Schedule:
    """Updates done -> the learning rate of the next, in epochs of `epoch_steps` updates."""
    return learning_rate_schedule(
        config.schedule,
        config.learning_rate,
        steps_per_epoch=epoch_steps,
        num_steps=config.num_epochs * epoch_steps,
        drop_epochs=config.drop_epoch_numbers,
        warmup_epochs=config.warmup_epochs,
    )


def build_optimizer(config: Config, epoch_steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its schedule for epochs of `epoch_steps` updates."""
    return make_optimizer(
        config.optimizer,
        build_schedule(config, epoch_steps),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        decay_factors=WEIGHT_DECAY_FACTORS.get(config.net),
        decay_biases=config.decay_biases,
        bias_rate_factor=config.bias_rate_factor,
        drop_bias_rate=config.drop_bias_rate,
    )


def build_prepare(config: Config, statistics: Statistics) -> Callable:
    """(B, H, W, 3) uint8 images, and what to draw crops, mirror images and colours from -> (B,
    crop, crop, 3) float32.
    """
    return prepare_function(
        statistics,
        crop_size=config.crop_size,
        scaling=config.scaling,
        augmentation=config.augmentation,
        color_pca=config.color_pca,
        pad=config.pad,
        seed=config.seed,
    )


def initial_state(
    config: Config, tx, num_classes: int, statistics: Statistics, params=None
) -> TrainState:
    """The state before the first update, with weights drawn from `config.seed` where none are
    given.
    """
    if params is None:
        params = nnx.to_pure_dict(nnx.state(build_model(config, num_classes), nnx.Param))
    average = params if config.average_decay else ()
    plateau = new_plateau() if config.schedule == "plateau" else ()
    return TrainState(
        jnp.zeros((), jnp.int32), params, tx.init(params), average, plateau, statistics
    )


def given_params(config: Config, target):
    """The weights of the run --init_from, on the host; None without it.

    Raises UserError if there is no such run, or its weights have other shapes than those of
    `target`.
    """
    if not config.init_from:
        return None
    source = Path(config.init_from).expanduser()
    params = load_run(source).params
    checkpoint.require_fit(params, target, source)
    return jax.device_get(params)


def evaluated_params(state: TrainState):
    """The weights that evaluation uses: their average if there is one."""
    return state.average if state.average != () else state.params


# ---- the steps


def make_train_step(graphdef, tx, loss, prepare, average_decay: float, seed: int) -> Callable:
    """Returns train_step(state, batch, add_up) -> (state, sums).

    `add_up(sums_of, batch)` adds the sums of the batch's parts up, over all devices
    (common/parallel.py).
    """

    def dropout_key(draw):  # of one image
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT), draw)

    def train_step(state: TrainState, batch, add_up):
        def sums_of(part):
            images = prepare(part["image"], part["draw"])  # (B, crop, crop, 3)
            keys = jax.vmap(dropout_key)(
                part["draw"]
            )  # (B,): a function of the seed, the step and the place in the batch

            def sum_of_losses(params):
                logits = nnx.merge(graphdef, params)(images, keys)  # (B, classes)
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
        drops = state.plateau.drops if state.plateau != () else 0
        updates, opt_state = tx.update(grads, state.opt_state, state.params, drops=drops)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average_decay:
            decay = jnp.minimum(
                average_decay, (1 + state.step) / (10 + state.step)
            )  # forgets the first steps sooner
            average = optax.incremental_update(params, average, 1 - decay)
        return TrainState(
            state.step + 1, params, opt_state, average, state.plateau, state.statistics
        ), sums

    return train_step


def make_eval_step(graphdef, loss, prepare, num_views: int = 1) -> Callable:
    """Returns eval_step(params, batch) -> sums of loss, errors, top5_errors, count and, for few
    classes, a confusion matrix; masked examples count nowhere.

    With `num_views` 1 the network sees the centre crop; with VIEWS the paper's ten, whose
    probabilities are averaged (4.1).
    """

    @jax.jit
    def eval_step(params, batch):
        model = nnx.merge(graphdef, params)
        views = [None] if num_views == 1 else range(num_views)  # None: the centre
        images = jnp.stack(
            [prepare(batch["image"], view=view) for view in views], axis=1
        )  # (B, views, crop, crop, 3)
        logits = model(images.reshape(-1, *images.shape[2:]))  # (B * views, classes)
        scores = jax.nn.log_softmax(logits).reshape(-1, num_views, logits.shape[-1])
        scores = jax.nn.logsumexp(scores, axis=1) - math.log(
            num_views
        )  # (B, classes): log of the mean probability
        label, mask = batch["label"], batch["mask"]
        _, best = jax.lax.top_k(scores, min(5, scores.shape[-1]))  # (B, 5)
        hits = best == label[:, None]
        sums = {
            "loss": jnp.sum(loss(scores, label) * mask),
            "errors": jnp.sum(~hits[:, 0] & mask),
            "top5_errors": jnp.sum(~hits.any(axis=-1) & mask),
            "count": jnp.sum(mask),
        }
        if scores.shape[-1] <= MAX_CONFUSION_CLASSES:
            confusion = jnp.zeros((scores.shape[-1],) * 2, jnp.int32)
            sums["confusion"] = confusion.at[label, best[:, 0]].add(mask)  # [true, predicted]
        return sums

    return eval_step


def eval_batch_size(config: Config, num_views: int) -> int:
    """How many examples a device scores at once: what fits EVAL_VALUES, and at most 1,000."""
    return min(max(EVAL_VALUES // (num_views * 3 * config.crop_size**2), 1), 1000)


def evaluate(
    eval_step,
    params,
    examples,
    placement: parallel.Placement | None = None,
    *,
    batch_size: int,
    stop_requested: Callable[[], int | None] = lambda: None,
    num_threads: int = NUM_THREADS,
) -> dict:
    """The sums of `eval_step` over all examples, each counted once: {"loss", "errors",
    "top5_errors", "count", ...}.

    `batch_size` is that of each device. Records that are damaged, as far as their set allows,
    count nowhere. Raises Interrupted between batches once `stop_requested()` gives a signal's
    number, DataError if no record is left.
    """
    num_devices = placement.num_devices if placement else 1
    batch_size = min(batch_size, -(-len(examples) // num_devices)) * num_devices
    rows, put = (
        (placement.rows(batch_size), placement.place_batch)
        if placement
        else (slice(None), jax.device_put)
    )
    sums = []
    for batch in eval_batches(examples, batch_size, rows, num_threads=num_threads):
        if stop_signal := stop_requested():
            raise launch.Interrupted(stop_signal)
        sums.append(jax.device_get(eval_step(params, put(batch))))
    if examples.damaged:
        examples.damaged.agree()
    total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *sums)
    if not total["count"]:
        raise DataError(
            f"{examples.name}: none of the {len(examples)} records to be scored is intact"
        )
    return total


# ---- a run


def train_and_evaluate(
    config: Config, workdir: Path, stop_requested: Callable[[], int | None]
) -> dict:
    """Trains from the newest checkpoint, or from the start, to the end; returns the metrics of
    result.json.
    """
    modes = dict(
        mode=config.parallel,
        reduction=config.reduction,
        mesh=config.mesh,
        batch_size=config.batch_size,
    )
    parallel.require_possible(**modes)  # before minutes go into the data
    damaged = DamagedRecords(config.dataset, config.max_bad_records)

    # ---- data
    splits = dict(train_split=config.train_split, test_split=config.test_split)
    sizes = dict(
        train_size=config.train_size,
        validation_size=config.validation_size,
        crop_size=config.crop_size,
    )
    train, validation, test = load_splits(
        config.dataset, config.data_dir, **splits, **sizes, seed=config.seed, damaged=damaged
    )
    tracked = test if config.track == "test" else validation
    num_classes = config.num_classes or train.num_classes
    if num_classes < train.num_classes:
        raise UserError(
            f"--num_classes={num_classes} is less than the {train.num_classes} classes of {config.dataset}"
        )
    epoch_steps = steps_per_epoch(len(train), config.batch_size)
    num_steps = config.num_epochs * epoch_steps
    before_fc = parallel.gather_before_split_layers(config.mesh)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build_model(config, num_classes, before_fc)))
    for examples in (train, validation, test):
        require_first_batch(examples, config.batch_size, config.seed)
    measured = jax.tree.map(np.float32, statistics(train, config.num_workers))
    facts = {"num_classes": num_classes, "image_shape": list(measured.mean_image.shape)}
    train_set = {"train_examples": len(train)}

    # ---- model, optimizer, steps
    tx, loss, prepare = (
        build_optimizer(config, epoch_steps),
        build_loss(config),
        build_prepare(config, measured),
    )
    train_step = make_train_step(graphdef, tx, loss, prepare, config.average_decay, config.seed)
    placement = parallel.place(train_step, **modes, split_layers=FULLY_CONNECTED)
    eval_steps = {
        views: placement.over_devices(make_eval_step(graphdef, loss, prepare, views))
        for views in (1, VIEWS)
    }

    def score(state: TrainState, examples, views: int = 1) -> dict:
        params = evaluated_params(placement.take_state(state))
        return evaluate(
            eval_steps[views],
            params,
            examples,
            placement,
            batch_size=eval_batch_size(config, views),
            stop_requested=stop_requested,
            num_threads=config.num_workers,
        )

    # ---- restore or start
    new_state = jax.jit(
        partial(initial_state, config, tx, num_classes, measured),
        out_shardings=placement.replicated,
    )
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement.replicated),
        jax.eval_shape(new_state),
    )
    placement.state_shardings(target)  # refuses what it cannot split, before anything is compiled
    checkpointer = checkpoint.Checkpointer(workdir)
    restored = checkpointer.restore_newest(target)
    step, state, meta = restored or (
        0,
        new_state(params=given_params(config, target.params)),
        {"totals": None, "unlogged": []},
    )
    if any(
        meta.get(name, value) != value for name, value in train_set.items()
    ):  # older checkpoints lack it
        raise DataError(
            f"{config.dataset} is not the set that {workdir} was started with: its training examples differ"
        )
    if not jax.tree.all(jax.tree.map(np.array_equal, state.statistics, measured)):
        raise DataError(
            f"{config.dataset} is not the set that {workdir} was started with: its mean image differs"
        )
    state = placement.place_state(state)
    damaged.add(meta.get("damaged", ()))
    log = writer.Writer(
        workdir,
        first_step=step,
        num_steps=num_steps,
        steps_per_epoch=epoch_steps,
        before=meta["totals"],
        chance_loss=math.log(num_classes),
        hint=NOT_LEARNING[config.net],
        learning_rate=build_schedule(config, epoch_steps) if config.schedule != "plateau" else None,
    )
    unlogged = meta["unlogged"]  # sums of the steps since the last line
    batches = training_batches(
        train,
        first_step=step,
        batch_size=config.batch_size,
        seed=config.seed,
        num_threads=config.num_workers,
        rows=placement.rows(config.batch_size),
    )

    def save() -> None:
        log.flush()
        damaged.agree()
        part = [
            {name: np.asarray(number).item() for name, number in sums.items()} for sums in unlogged
        ]
        meta = {"totals": log.totals, "unlogged": part, "damaged": damaged.listed}
        checkpointer.save(step, placement.take_state(state), meta | facts | train_set)

    def end_epoch() -> TrainState:
        """Scores the tracked split; returns the state with what the schedule makes of it."""
        log.flush()
        tracked_sums = score(state, tracked)
        log.write(step, config.track, tracked_sums)
        if (
            config.schedule != "plateau" or step == num_steps
        ):  # there is nothing to slow down after the last step
            return state
        one = placement.take_state(state)
        error_pct = metrics.summarize(tracked_sums)["error_pct"]
        plateau = drop_on_plateau(
            one.plateau, error_pct, patience=config.patience, num_drops=config.num_drops
        )
        if plateau.drops > one.plateau.drops:
            log.say(
                f"no new best validation error (--patience={config.patience}): the learning rate drops to a tenth"
            )
        return placement.place_state(one._replace(plateau=plateau))

    # ---- train
    with contextlib.closing(checkpointer), log, contextlib.closing(batches):
        if step and step % epoch_steps == 0:
            state = (
                end_epoch()
            )  # a checkpoint at the end of an epoch is made before the epoch is scored
        sums = ()
        while step < num_steps:
            before, (state, sums) = (
                sums,
                placement.run(state, placement.place_training(next(batches))),
            )
            jax.block_until_ready(
                before
            )  # one step is under way and none queues up: a signal is heard within two
            unlogged.append(sums)
            step += 1
            end_of_epoch = step % epoch_steps == 0
            if step % config.log_every_steps == 0 or end_of_epoch:
                log.write(step, "train", jax.tree.map(lambda *parts: parts, *unlogged))
                unlogged = []
            stop_signal = stop_requested()
            due = end_of_epoch and step // epoch_steps % config.save_every_epochs == 0
            if due or step % config.save_every_steps == 0 or step == num_steps or stop_signal:
                save()
            if stop_signal:
                raise launch.Interrupted(stop_signal)
            if end_of_epoch:
                try:
                    state = end_epoch()
                except launch.Interrupted:
                    save()
                    raise

    # ---- the final scores; without --track=test nothing saw the test split before
    on_test = score(state, test)
    top1, top5 = (metrics.summarize(on_test)[name] for name in ("error_pct", "top5_error_pct"))
    others = {"train": train[:MAX_TRAIN_SCORED]} | (
        {"validation": validation} if len(validation) else {}
    )
    result = {
        "test_error_pct": top1,  # under the name that LeNet-5's results have
        "top1_error_pct": top1,
        "top5_error_pct": top5,
    }
    if config.ten_crop:
        ten = metrics.summarize(
            {name: sums for name, sums in score(state, test, VIEWS).items() if name != "confusion"}
        )
        result |= {
            "ten_crop_top1_error_pct": ten["error_pct"],
            "ten_crop_top5_error_pct": ten["top5_error_pct"],
        }
    return {
        **result,
        **{
            f"{split}_error_pct": metrics.summarize(score(state, examples))["error_pct"]
            for split, examples in others.items()
        },
        "num_test_examples": int(on_test["count"]),
        "num_train_examples": len(train),
        "damaged_records": damaged.count,
        "tracked": config.track,
        **({"confusion_matrix": on_test["confusion"].tolist()} if "confusion" in on_test else {}),
        "num_steps": num_steps,
        "state_sha256": checkpoint.state_sha256(placement.take_state(state)),
        "images_per_s": log.images_per_s,
        "wall_time_s": log.seconds,
    }


class Run(NamedTuple):
    """A trained network, read from its workdir."""

    config: Config
    step: int
    num_classes: int
    image_shape: tuple[int, int, int]  # of the stored images
    params: Any
    eval_steps: dict[int, Callable]  # by the number of views: 1, VIEWS


def load_run(workdir: Path) -> Run:
    """The newest intact checkpoint of a run, ready for `evaluate`. Raises UserError if there is
    none.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run (no config.json)")
    try:
        config = flags.from_json(Config, (workdir / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{workdir}/config.json is not that of an AlexNet run: {error}") from error
    with contextlib.closing(checkpoint.Checkpointer(workdir, read_only=True)) as checkpointer:
        meta = checkpointer.newest_meta()
        if meta is None:
            raise UserError(f"{workdir} has no checkpoint yet")
        num_classes, image_shape = meta["num_classes"], tuple(meta["image_shape"])
        blank = Statistics(np.zeros(image_shape, np.float32), np.zeros((3, 3), np.float32))
        tx = build_optimizer(config, epoch_steps=1)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda: initial_state(config, tx, num_classes, blank)),
        )
        step, state, _ = checkpointer.restore_newest(target)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: build_model(config, num_classes)))
    prepare = build_prepare(config, jax.device_get(state.statistics))
    eval_steps = {
        views: make_eval_step(graphdef, build_loss(config), prepare, views) for views in (1, VIEWS)
    }
    return Run(config, step, num_classes, image_shape, evaluated_params(state), eval_steps)


if __name__ == "__main__":
    launch.main(Config, train_and_evaluate)
