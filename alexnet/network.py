"""AlexNet assembled from its config, and loaded with the weights of a run."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from alexnet.augment import prepare_function
from alexnet.cifar import CifarNet
from alexnet.config import Config
from alexnet.image_statistics import Statistics, fitted
from alexnet.model import AlexNet, loss_function
from common import checkpoint, conv, parallel, transfer
from common.network import Network, Trained, class_names, num_elements
from common.workdir import read_config


def build_model(
    config: Config, num_classes: int, before_fc: Callable = lambda x: x
) -> AlexNet | CifarNet:
    """The module, its weights drawn from `config.seed`; `before_fc` is for AlexNet alone."""
    layers = dict(
        input_size=config.crop_size,
        num_classes=num_classes,
        activation=config.activation,
        pooling=config.pooling,
        lrn=config.lrn,
        lrn_size=config.lrn_size,
        lrn_alpha=config.lrn_alpha,
        lrn_alpha_over_n=config.lrn_alpha_over_n,
        lrn_k=config.lrn_k,
        convolution=conv.convolution(parallel.has_model_axis(config.mesh)),
        dtype=jnp.dtype(config.compute_dtype),
        rngs=nnx.Rngs(config.seed),
    )
    if config.net != "alexnet":
        return CifarNet(config.net, **layers)
    return AlexNet(
        widths=config.widths,
        conv1_padding=config.conv1_padding,
        conv4=config.conv4,
        towers=config.towers,
        norm_order=config.norm_order,
        dropout=config.dropout,
        dropout_at=config.dropout_at,
        dropout_scaling=config.dropout_scaling,
        initialization=config.initialization,
        hidden_bias=config.hidden_bias,
        before_fc=before_fc,
        **layers,
    )


def assemble(
    config: Config,
    num_classes: int,
    statistics: Statistics,
    before_fc: Callable = lambda x: x,
) -> Network:
    """What `config` means for stored images of the shape that the `statistics` have.

    `before_fc` is applied before the fully connected layers: in training with a model axis, what
    gathers its inputs (common/parallel.py). Raises UserError: --freeze does not fit.
    """
    head = "fc8" if config.net == "alexnet" else "fc10"
    graphdef, params = nnx.split(
        nnx.eval_shape(lambda: build_model(config, num_classes, before_fc))
    )
    return Network(
        config=config,
        num_classes=num_classes,
        num_parameters=num_elements(params),
        image_shapes=(statistics.mean_image.shape,),
        init=lambda: nnx.to_pure_dict(nnx.state(build_model(config, num_classes), nnx.Param)),
        bind=lambda params: nnx.merge(graphdef, params),
        prepare=prepare_function(
            statistics,
            crop_size=config.crop_size,
            scaling=config.scaling,
            augmentation=config.augmentation,
            mirror=config.mirror,
            color_pca=config.color_pca,
            pad=config.pad,
            seed=config.seed,
        ),
        loss=loss_function(config.label_smoothing),
        head=head,
        frozen=transfer.frozen_layers(config.freeze, nnx.to_pure_dict(params), head),
    )


def load(workdir: str | Path, step: int | str | None = None) -> Trained:
    """See `alexnet.load`; its weights are those that the run's evaluation uses."""
    workdir = Path(workdir).expanduser()
    config = read_config(Config, workdir, "an AlexNet")
    weights = "average" if config.average_decay else "params"

    def target(meta: dict) -> dict:
        model = nnx.eval_shape(lambda: build_model(config, meta["num_classes"]))
        shape = tuple(meta["image_shape"])
        statistics = Statistics(
            mean_image=jax.ShapeDtypeStruct(shape, jnp.float32),
            covariance=jax.ShapeDtypeStruct((shape[-1], shape[-1]), jnp.float32),
        )
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return {weights: params, "statistics": statistics}

    step, state, meta = checkpoint.restore_part(workdir, config, target, step)
    statistics = jax.device_get(state["statistics"])
    network = assemble(config, meta["num_classes"], statistics)
    return Trained(network, state[weights], step, class_names(meta), statistics)


def given_params(network: Network, names: tuple[str, ...] | None, target) -> tuple:
    """`common.transfer.given_params` of this network's runs. Raises UserError."""
    return transfer.given_params(network, load, names, target)


def given_statistics(
    config: Config, image_shape: tuple[int, int, int], resumed: Path | None
) -> Statistics | None:
    """What a run --init_from prepares images of this shape with: what that run did. A run that goes
    on in `resumed` has it there. None without --init_from.

    Raises UserError if there is no such run, or its images have another shape.
    """
    if not config.init_from:
        return None
    if resumed:
        return load(resumed).statistics
    statistics = transfer.load_init_from(config, load).statistics
    return fitted(statistics, image_shape, config.scaling, f"--init_from={config.init_from}")
