"""Contract of all presets: they parse, say what the papers and the released code fix, describe a
network with the published number of parameters, and which settings exclude each other.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

import alexnet.config
import alexnet.model
import alexnet.network
import lenet.config
import lenet.model
import lenet.network
from alexnet.config import Config
from common.errors import UserError
from common.flags import define, from_preset, presets, read, to_flagfile
from lenet.connections import c3_mask

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIGS = {"lenet": lenet.config.Config, "alexnet": alexnet.config.Config}

# What the sources say; a preset is free in the rest.
FIXED = {
    "lenet deck": dict(  # the lecture deck
        c3="table", activation="tanh", pooling="average", output="softmax", loss="cross_entropy",
    ),
    "lenet modern": dict(c3="table", output="softmax", loss="cross_entropy"),  # the deck's layers
    "lenet paper": dict(  # II.B, III.B, appendices A and C
        c3="table", scaling="paper", activation="scaled_tanh", pooling="trainable", output="rbf",
        loss="map", optimizer="sdlm", momentum=0.0, schedule="paper", learning_rate=1.0,
        batch_size=1, num_epochs=20, reshuffle=False, validation_size=0, track="test",
        curvature_examples=500,
    ),
    "lenet lush": dict(  # the authors' program of 2002, as run in 2019 for QMNIST
        c3="table", scaling="hundredths", shuffle=False, reshuffle=False,
        activation="scaled_tanh", pooling="trainable", subsampling="sum", output="squashed",
        initialization="one_over_sqrt_fan_in", loss="mse", optimizer="sdlm", momentum=0.0,
        curvature_examples=1000, curvature_every_epochs=10, schedule="thirds",
        learning_rate=1e-4, num_epochs=30, batch_size=1, distortions="none", validation_size=0,
        track="test",
    ),
    "alexnet deck": dict(  # the lecture deck's table; the constants of the paper's section 3.3
        net="alexnet", widths="2012", towers=1, crop_size=227, conv1_padding="none",
        norm_order="pool_norm", lrn="across", lrn_size=5, lrn_k=2.0, lrn_alpha=1e-4,
        lrn_alpha_over_n=False, activation="relu", pooling="overlapping", dropout=0.5,
        dropout_at="before",
    ),
    "alexnet paper": dict(  # sections 3 to 5
        net="alexnet", widths="2012", towers=2, crop_size=224, conv1_padding="bottom_right",
        norm_order="norm_pool", lrn="within_tower", lrn_size=5, lrn_k=2.0, lrn_alpha=1e-4,
        lrn_alpha_over_n=False, activation="relu", pooling="overlapping", dropout=0.5,
        dropout_at="after", dropout_scaling="test", initialization="paper", hidden_bias=1.0,
        scaling="mean_image", augmentation="crop_flip", color_pca=True, pad=0,
        label_smoothing=0.0, optimizer="paper", learning_rate=0.01, momentum=0.9,
        weight_decay=0.0005, decay_biases=True, bias_rate_factor=1.0, drop_bias_rate=True,
        schedule="plateau", num_drops=3, batch_size=128, num_epochs=90, average_decay=0.0,
        ten_crop=True,
    ),
    "alexnet code2012": dict(  # layers-145.cfg, layer-params-*.cfg
        towers=2, crop_size=224, conv1_padding="bottom_right", norm_order="code2012",
        lrn="within_tower", lrn_size=5, lrn_k=2.0, lrn_alpha=1e-4, lrn_alpha_over_n=True,
        dropout=0.5, dropout_at="after", dropout_scaling="test", initialization="code2012",
        hidden_bias=1.0, scaling="mean_image", augmentation="crop_flip", color_pca=True,
        optimizer="paper", learning_rate=0.01, momentum=0.9, weight_decay=0.0005,
        decay_biases=False, bias_rate_factor=2.0, drop_bias_rate=False, schedule="epochs",
        drop_epoch_numbers=(25, 51, 79), batch_size=128, num_epochs=90,
    ),
    "alexnet caffe": dict(  # bvlc_alexnet
        towers=2, crop_size=227, conv1_padding="none", norm_order="norm_pool", lrn="across",
        lrn_size=5, lrn_k=1.0, lrn_alpha=1e-4, lrn_alpha_over_n=True, dropout=0.5,
        dropout_at="after", initialization="caffe", hidden_bias=0.1, scaling="mean_image",
        augmentation="crop_flip", color_pca=False, optimizer="paper", learning_rate=0.01,
        momentum=0.9, weight_decay=0.0005, decay_biases=False, bias_rate_factor=2.0,
        drop_bias_rate=True, schedule="epochs", drop_epoch_numbers=(20, 40, 60, 80),
        batch_size=256, num_epochs=90,
    ),
    "alexnet torchvision": dict(  # and its reference recipe
        widths="one_weird_trick", towers=1, crop_size=224, conv1_padding="symmetric",
        lrn="none", dropout=0.5, dropout_at="before", dropout_scaling="training",
        initialization="torch", scaling="standardized", augmentation="resized_crop_flip",
        color_pca=False, optimizer="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4,
        decay_biases=True, bias_rate_factor=1.0, schedule="epochs", drop_epoch_numbers=(30, 60),
        batch_size=256, num_epochs=90,
    ),
    "alexnet modern": dict(  # the deck's layers
        widths="2012", towers=1, crop_size=227, conv1_padding="none", norm_order="pool_norm",
        lrn="across", lrn_k=2.0, lrn_alpha=1e-4, lrn_alpha_over_n=False, dropout=0.5,
        dropout_at="before", schedule="cosine", label_smoothing=0.1,
    ),
    "alexnet small": dict(
        net="alexnet", widths="small", dataset="cifar10", crop_size=32,
    ),
    "alexnet photos": dict(net="alexnet", widths="narrow", crop_size=256),
    "alexnet cifar18": dict(  # layers-18pct.cfg, layer-params-18pct.cfg
        net="cifar18", dataset="cifar10", crop_size=24, lrn="within_map", lrn_size=3,
        lrn_alpha=5e-5, lrn_alpha_over_n=True, lrn_k=1.0, activation="relu",
        pooling="overlapping", dropout=0.0, scaling="mean_image", augmentation="crop_flip",
        optimizer="paper", learning_rate=0.001, momentum=0.9, weight_decay=0.004,
        decay_biases=False, bias_rate_factor=2.0, schedule="epochs", drop_epoch_numbers=(120,
        130), batch_size=128,
    ),
    "alexnet cifar13": dict(  # layers-conv-local-13pct.cfg and its parameters
        net="cifar13", dataset="cifar10", crop_size=24, lrn="none", activation="relu",
        pooling="overlapping", dropout=0.0, scaling="mean_image", augmentation="crop_flip",
        optimizer="paper", learning_rate=0.001, momentum=0.9, weight_decay=0.004,
        decay_biases=False, bias_rate_factor=2.0, schedule="epochs", batch_size=128,
    ),
}  # fmt: skip

PARAMETERS = {
    "lenet deck": 60_806,
    "lenet modern": 60_806,
    "lenet paper": 60_000,
    "lenet lush": 51_046,
    "alexnet deck": 62_378_344,
    "alexnet modern": 62_378_344,
    "alexnet paper": 60_965_224,
    "alexnet caffe": 60_965_224,
    "alexnet code2012": 60_965_224,
    "alexnet torchvision": 61_100_840,
    "alexnet small": 378_026,
    "alexnet photos": 2_638_504,
    "alexnet cifar18": 32 * 76 + 32 * 801 + 64 * 801 + 10 * 577,
    "alexnet cifar13": 64 * 76 + 64 * 1601 + 36 * 32 * (577 + 289) + 10 * 1153,
}


def parse(*arguments: str, network: str = "alexnet"):
    values = flags.FlagValues()
    define(CONFIGS[network], values)
    assert len(values(["program", *arguments])) == 1
    return read(CONFIGS[network], values)


def preset(name: str):
    """The config of NETWORK PRESET."""
    network, preset = name.split()
    return from_preset(CONFIGS[network], preset)


def abstract_model(name: str) -> tuple[nnx.Module, int, int]:
    """(network without values, input size, channels)."""
    config = preset(name)
    if name.startswith("lenet"):
        return nnx.eval_shape(lambda: lenet.network.build_model(config)), 32, 1
    num_classes = 10 if config.dataset == "cifar10" else 1000
    model = nnx.eval_shape(lambda: alexnet.network.build_model(config, num_classes))
    return model, config.crop_size, 3


def test_every_preset_is_here():
    found = {f"{network} {name}" for network in CONFIGS for name in presets(CONFIGS[network])}
    assert found == set(FIXED) == set(PARAMETERS)


@pytest.mark.parametrize("name", FIXED)
def test_preset(name, tmp_path):
    config = preset(name)
    assert {setting: getattr(config, setting) for setting in FIXED[name]} == FIXED[name]
    (tmp_path / "flags.txt").write_text(to_flagfile(config))  # replays the run
    assert parse(f"--flagfile={tmp_path / 'flags.txt'}", network=name.split()[0]) == config

    model, size, channels = abstract_model(name)
    table = lenet.model.layer_table if name.startswith("lenet") else alexnet.model.layer_table
    rows = table(model) if name.startswith("lenet") else table(model, size)
    assert sum(row["parameters"] for row in rows) == PARAMETERS[name]
    stored = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    masked = 900 if name.startswith("lenet") else 0  # of C3, stored, but no parameters
    assert stored - masked == PARAMETERS[name]

    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    logits = nnx.eval_shape(lambda model, images: model(images), model, images)
    assert (logits.shape, logits.dtype) == ((2, *rows[-1]["output"]), jnp.float32)


@pytest.mark.commands
@pytest.mark.parametrize("name", [name for name in FIXED if name.startswith("lenet")])
def test_initial_networks_of_lenet(name):
    """Masked weights are zero, logits finite."""
    model = lenet.network.build_model(preset(name))
    masked = c3_mask(model.connections) == 0
    assert (np.asarray(model.c3.kernel[...])[masked] == 0).all()
    assert np.isfinite(jax.jit(lambda images: model(images))(jnp.ones((2, 32, 32, 1)))).all()


@pytest.mark.parametrize("network", CONFIGS)
def test_the_defaults_are_the_deck(network):
    assert preset(f"{network} deck") == CONFIGS[network]() == parse(network=network)


def test_modern_is_the_decks_network():
    """Only its weights start otherwise, and what makes up for dropout stands in training."""
    names = [field.name for field in dataclasses.fields(Config)]
    network = names[names.index("net") : names.index("label_smoothing")]
    deck, modern = preset("alexnet deck"), preset("alexnet modern")
    differing = {name for name in network if getattr(deck, name) != getattr(modern, name)}
    assert differing == {"dropout_scaling", "initialization", "hidden_bias"}


def test_flags_override_a_preset():
    config = parse(
        "--flagfile=alexnet/presets/paper.flags", "--towers=1", "--lrn=across", "--nocolor_pca"
    )
    assert config == dataclasses.replace(
        preset("alexnet paper"), towers=1, lrn="across", color_pca=False
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--optimizer=adamw"], "--momentum=0.9 .*--optimizer=adamw"),
        (["--warmup_epochs=5"], "--warmup_epochs .*--schedule=cosine.*plateau"),
        (["--schedule=cosine", "--warmup_epochs=90"], "--warmup_epochs=90.* --num_epochs=90"),
        (["--schedule=epochs"], "--schedule=epochs.* --drop_epochs"),
        (["--drop_epochs=30"], "--schedule=epochs.* --drop_epochs"),
        (["--schedule=epochs", "--drop_epochs=30;60"], "--drop_epochs=30;60"),
        (["--schedule=epochs", "--drop_epochs=0,30"], "--drop_epochs=0,30"),
        (["--schedule=epochs", "--drop_epochs=30,"], "--drop_epochs=30,"),
        (["--schedule=epochs", "--drop_epochs=30,60,30"], "--drop_epochs=30,60,30"),
        (
            ["--nodrop_bias_rate", "--schedule=cosine"],
            "--nodrop_bias_rate .*--schedule=plateau or epochs",
        ),
        (["--average_decay=1"], "--average_decay=1"),
        (["--momentum=1"], "--momentum=1"),
        (["--label_smoothing=1"], "--label_smoothing=1"),
        (["--dropout=1"], "--dropout=1"),
        (["--validation_size=0"], "--validation_size=0 .*--track=test"),
        (["--track=test"], "--schedule=plateau .*--track=validation"),
        (
            ["--stop_at_validation_error_pct=20", "--track=test", "--schedule=constant"],
            "--stop_at_validation_error_pct .*--track=validation",
        ),
        (["--lrn_size=4"], "--lrn_size=4"),
        (["--initialization=torch"], "--initialization=torch .*--hidden_bias=0"),
        (["--pad=4", "--augmentation=none"], "--pad=4 .*--augmentation=crop_flip"),
        (["--net=cifar18"], "--net=cifar18 .*--dropout=0"),
        (
            ["--net=cifar18", "--dropout=0", "--widths=small"],
            "--widths .*--net=alexnet.*--net=cifar18",
        ),
        (
            ["--net=cifar13", "--dropout=0", "--hidden_bias=0"],
            "--hidden_bias .*--net=alexnet.*--net=cifar13",
        ),
        (
            ["--net=cifar18", "--dropout=0", "--scaling=standardized"],
            "--net=cifar18 .*--scaling=mean_image",
        ),
        (["--lrn=within_tower"], "--lrn=within_tower .*--towers=2.*--lrn=across"),
        (["--net=cifar13", "--dropout=0", "--towers=2"], "--net=cifar13 .*--towers=1"),
    ],
)
def test_settings_that_exclude_each_other(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        parse(*changes)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        ["--optimizer=adamw", "--momentum=0"],
        ["--schedule=cosine", "--warmup_epochs=89"],
        ["--schedule=epochs", "--drop_epochs=30,60"],
        ["--validation_size=0", "--track=test", "--schedule=constant"],
        ["--initialization=torch", "--hidden_bias=0"],
        ["--net=cifar13", "--dropout=0", "--towers=1"],
        ["--pad=4", "--augmentation=crop_flip"],
    ],
)
def test_what_the_refusals_advise_is_accepted(changes):
    parse(*changes)


def test_drop_epochs_are_numbers_in_order():
    assert parse("--schedule=epochs", "--drop_epochs=60,5,30").drop_epoch_numbers == (5, 30, 60)
    assert Config().drop_epoch_numbers == ()
