"""LeNet-5 assembled from its config, and loaded with the weights of a run."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from common import checkpoint, conv, transfer
from common.errors import UserError
from common.network import Network, Trained, class_names, num_elements
from common.workdir import read_config
from lenet.codes import digit_codes
from lenet.config import Config
from lenet.connections import c3_connections, c3_mask
from lenet.data import prepare_function
from lenet.model import LeNet5, loss_function


def build_model(config: Config, num_classes: int = 10, in_channels: int = 1) -> LeNet5:
    """The module, its weights drawn from `config.seed`."""
    return LeNet5(
        connections=c3_connections(config.c3, config.seed),
        activation=config.activation,
        pooling=config.pooling,
        subsampling=config.subsampling,
        output=config.output,
        codes=digit_codes(config.codes),
        initialization=config.initialization,
        in_channels=in_channels,
        num_classes=num_classes,
        convolution=conv.batch_last_convolution(),
        dtype=jnp.dtype(config.compute_dtype),
        rngs=nnx.Rngs(config.seed),
    )


def assemble(
    config: Config, num_classes: int = 10, in_channels: int = 1, side: int = 28
) -> Network:
    """What `config` means for images with `in_channels` channels, of 28x28 and 32x32 pixels; those
    of the training set have `side` x `side`.

    Raises UserError: --output=rbf, and not ten classes; --freeze does not fit.
    """
    if config.output == "rbf" and num_classes != 10:
        raise UserError(
            f"--output=rbf has codes for ten digits; {config.dataset} has {num_classes} classes; "
            "add --output=softmax"
        )
    build = partial(build_model, config, num_classes, in_channels)
    graphdef, params = nnx.split(nnx.eval_shape(build))
    masked = c3_mask(c3_connections(config.c3, config.seed)) == 0
    return Network(
        config=config,
        num_classes=num_classes,
        num_parameters=num_elements(params) - int(masked.sum()),
        image_shapes=tuple((n, n, in_channels) for n in (side, 60 - side)),  # 28 and 32
        init=lambda: nnx.to_pure_dict(nnx.state(build(), nnx.Param)),
        bind=lambda params: nnx.merge(graphdef, params),
        prepare=prepare_function(
            config.scaling,
            config.distortions,
            strength=config.distortion_strength,
            seed=config.seed,
        ),
        loss=loss_function(
            config.loss,
            config.output,
            map_constant=config.map_constant,
            label_smoothing=config.label_smoothing,
        ),
        head="output",
        frozen=transfer.frozen_layers(config.freeze, nnx.to_pure_dict(params), "output"),
    )


def load(workdir: str | Path, step: int | str | None = None) -> Trained:
    """See `lenet.load`; its weights are those that the run's evaluation uses."""
    workdir = Path(workdir).expanduser()
    config = read_config(Config, workdir, "a LeNet-5")
    weights = "average" if config.average_decay else "params"

    def network_of(meta: dict) -> Network:
        side = 32 if meta.get("image_side") == 32 else 28  # older checkpoints do not say
        return assemble(config, meta["num_classes"], meta["in_channels"], side)

    def target(meta: dict) -> dict:
        return {weights: jax.eval_shape(network_of(meta).init)}

    step, state, meta = checkpoint.restore_part(workdir, config, target, step)
    return Trained(network_of(meta), state[weights], step, class_names(meta))


def given_params(network: Network, names: tuple[str, ...] | None, target) -> tuple:
    """`common.transfer.given_params` of this network's runs. Raises UserError."""
    config = network.config

    def load_same_table(folder: str, step: int | str) -> Trained:
        source = load(folder, step)
        theirs = source.config
        if c3_connections(theirs.c3, theirs.seed) != c3_connections(config.c3, config.seed):
            raise UserError(
                f"--init_from={config.init_from} has other connections in C3 (--c3={theirs.c3}); "
                "use its --c3 and --seed"
            )
        return source

    return transfer.given_params(network, load_same_table, names, target)
