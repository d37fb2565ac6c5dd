"""Every preset's training step, lowered for GPU and TPU without having one: what cannot be compiled
for them shows here.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet.config import Config
from alexnet.image_statistics import Statistics
from alexnet.network import assemble
from alexnet.train import build_optimizer, initial_state, make_train_step
from common.flags import from_preset, presets

PLATFORMS = ("cuda", "tpu")

pytestmark = pytest.mark.slow


def exported_step(name: str):
    """The training step of a preset at its batch size, traced on shapes alone for both platforms,
    and the shapes of its state.
    """
    config = from_preset(Config, name)
    num_classes, side = (10, 32) if config.dataset == "cifar10" else (1000, 256)
    statistics = Statistics(
        np.full((side, side, 3), 127.5, np.float32), np.eye(3, dtype=np.float32)
    )
    network, tx = assemble(config, num_classes, statistics), build_optimizer(config, 100)
    train_step = make_train_step(network, tx)
    state = jax.eval_shape(lambda: initial_state(network, tx, statistics, network.init()))
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        "draw": jax.ShapeDtypeStruct((config.batch_size,), jnp.uint32),
    }
    step = jax.jit(
        lambda state, batch: train_step(state, batch, lambda sums_of, batch: sums_of(batch)),
        donate_argnums=0,
    )
    return jax.export.export(step, platforms=PLATFORMS)(state, batch), state


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # whose forms are lowered
@pytest.mark.parametrize("name", presets(Config))
def test_the_training_step_lowers(name, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    exported, state = exported_step(name)
    assert exported.platforms == PLATFORMS
    new_state, sums = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (new_state, state)
    ]
    assert shapes[0] == shapes[1]  # fit for the next step, and for a checkpoint
    assert set(sums) == {"loss", "errors", "count"}
    program = exported.mlir_module()
    # On a CPU all convolutions are products but those without a stride on few channels, whose
    # gradients are those of lax.
    without_stride = name in ("cifar13", "cifar18", "small")
    assert ("stablehlo.convolution" in program) == (backend == "gpu" or without_stride)
    # The gradient of lax.reduce_window's maximum.
    assert ("stablehlo.select_and_scatter" in program) == (backend == "gpu")
