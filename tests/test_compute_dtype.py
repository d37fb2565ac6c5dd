"""bfloat16 computes what float32 does, coarsely, and nothing but the layers' own arithmetic is in
it.
"""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import alexnet.config
import alexnet.network
import lenet.config
import lenet.network

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PAPER = dict(
    scaling="paper",
    activation="scaled_tanh",
    pooling="trainable",
    output="rbf",
    loss="map",
    optimizer="sdlm",
    momentum=0.0,
)
MODELS = {
    "lenet deck": lambda dtype: lenet.network.build_model(lenet.config.Config(compute_dtype=dtype)),
    "lenet paper": lambda dtype: lenet.network.build_model(
        lenet.config.Config(compute_dtype=dtype, **PAPER)
    ),
    "alexnet small": lambda dtype: alexnet.network.build_model(
        alexnet.config.Config(
            widths="small", crop_size=32, compute_dtype=dtype, initialization="he"
        ),
        10,
    ),
    "cifar13": lambda dtype: alexnet.network.build_model(
        alexnet.config.Config(net="cifar13", crop_size=24, compute_dtype=dtype, dropout=0.0), 10
    ),
}
SHAPES = {
    "lenet deck": (4, 32, 32, 1),
    "lenet paper": (4, 32, 32, 1),
    "alexnet small": (4, 32, 32, 3),
    "cifar13": (4, 24, 24, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_float32_coarsely(name):
    """Every layer rounds: the difference is a few times what rounding the parameters and the images
    alone makes. (A sum of thousands of gradients in bfloat16, as for LeNet's biases, would be 17%
    away, not 0.5%.)
    """
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 1, SHAPES[name]), jnp.float32)
    if name == "cifar13":
        images = 255 * images - 128

    params = jax.jit(lambda: nnx.to_pure_dict(nnx.state(MODELS[name]("float32"))))()

    def logits_and_gradients(dtype):
        graphdef, own = nnx.split(nnx.eval_shape(lambda: MODELS[name](dtype)))

        def score(params, images):
            logits = nnx.merge(graphdef, params)(images)
            return jnp.sum(jax.nn.log_softmax(logits)[:, 3]), logits

        compiled = jax.jit(jax.grad(score, has_aux=True))

        def function(params, images):
            gradients, logits = compiled(params, images)
            assert {leaf.dtype for leaf in jax.tree.leaves((own, logits, gradients))} == {
                jnp.dtype("float32")
            }
            return jax.tree.leaves((logits, gradients))

        return function

    in_float32 = logits_and_gradients("float32")
    exact = in_float32(params, images)
    rounded = in_float32(
        *jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), (params, images))
    )
    coarse = logits_and_gradients("bfloat16")(params, images)
    for e, r, c in zip(exact, rounded, coarse, strict=True):
        assert np.any(e != c)  # it is not the same arithmetic
        assert np.linalg.norm(e - c) <= 5 * np.linalg.norm(e - r) + 0.01 * np.linalg.norm(e)


@pytest.mark.parametrize("name", ["alexnet small", "cifar13"])
def test_the_gradients_of_biases_are_summed_in_float32(name):
    """Of the sum of a layer's outputs: how many units share the bias. bfloat16 has 8 bits."""
    model = MODELS[name]("bfloat16")
    images = jnp.ones(SHAPES[name])

    def total(model):
        return jnp.sum(model.layer("conv1", images).astype(jnp.float32))

    gradient = nnx.jit(nnx.grad(total))(model).conv1.bias[...]
    _, height, width, maps = jax.eval_shape(lambda: model.layer("conv1", images)).shape
    assert gradient.shape == (maps,) and height * width * len(images) > 2048
    np.testing.assert_array_equal(gradient, height * width * len(images))


@pytest.mark.slow
def test_a_run_in_bfloat16_learns(tmp_path):
    command = [sys.executable, "-m", "lenet.train", f"--workdir={tmp_path}", "--dataset=mnist10k"]
    command += ["--train_size=2000", "--validation_size=500", "--num_epochs=4", "--batch_size=32"]
    command += ["--compute_dtype=bfloat16"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("test error")[1].split("%")[0]) < 10
