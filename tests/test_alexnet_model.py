"""AlexNet and its variants against the papers' numbers, the lecture deck's and PyTorch's layers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alexnet import sequence
from alexnet.config import Config
from alexnet.model import WIDTHS, AlexNet, layer_table, loss_function
from alexnet.network import build_model
from common.errors import UserError
from common.flags import from_preset

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# The lecture deck's table: output, parameters and forward computations as printed there (no biases
# in the last three).
DECK_TABLE = [
    ("conv1", [55, 55, 96], 34_944, 105_705_600),
    ("pool1", [27, 27, 96], 0, 0),
    ("norm1", [27, 27, 96], 0, 0),
    ("conv2", [27, 27, 256], 614_656, 448_084_224),
    ("pool2", [13, 13, 256], 0, 0),
    ("norm2", [13, 13, 256], 0, 0),
    ("conv3", [13, 13, 384], 885_120, 149_585_280),
    ("conv4", [13, 13, 384], 1_327_488, 224_345_472),
    ("conv5", [13, 13, 256], 884_992, 149_563_648),
    ("pool5", [6, 6, 256], 0, 0),
    ("dropout6", [6, 6, 256], 0, 0),  # 9,216 values
    ("fc6", [4096], 37_748_736, 37_748_736),
    ("dropout7", [4096], 0, 0),
    ("fc7", [4096], 16_777_216, 16_777_216),
    ("fc8", [1000], 4_096_000, 4_096_000),
]

# Parameters of each layer of the two-tower network: kernels see 48, 256, 192 and 192 maps (section
# 3.5).
TWO_TOWERS = {
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
    "fc8": 4_097_000,
}
ONE_TOWER = TWO_TOWERS | {"conv2": 614_656, "conv4": 1_327_488, "conv5": 884_992}
# Of layers-145.cfg: two columns a and b, each layer of a column with its own kernels; fc1000 sees
# both.
CODE_2012 = {
    "conv1": 2 * (48 * (11 * 11 * 3 + 1)),
    "conv2": 2 * (128 * (5 * 5 * 48 + 1)),
    "conv3": 2 * (192 * (3 * 3 * (128 + 128) + 1)),
    "conv4": 2 * (192 * (3 * 3 * 192 + 1)),
    "conv5": 2 * (128 * (3 * 3 * 192 + 1)),
    "fc6": 2 * (2048 * (6 * 6 * (128 + 128) + 1)),
    "fc7": 2 * (2048 * (2048 + 2048 + 1)),
    "fc8": 1000 * (2048 + 2048 + 1),
}
TORCHVISION = {
    "conv1": 64 * (11 * 11 * 3 + 1),
    "conv2": 192 * (5 * 5 * 64 + 1),
    "conv3": 384 * (3 * 3 * 192 + 1),
    "conv4": 256 * (3 * 3 * 384 + 1),
    "conv5": 256 * (3 * 3 * 256 + 1),
    "fc6": 4096 * (6 * 6 * 256 + 1),
    "fc7": 4096 * (4096 + 1),
    "fc8": 1000 * (4096 + 1),
}
SMALL = {  # 32x32 images, ten classes; fc6 sees 4x4 pixels
    "conv1": 16 * (5 * 5 * 3 + 1),
    "conv2": 48 * (5 * 5 * 16 + 1),
    "conv3": 64 * (3 * 3 * 48 + 1),
    "conv4": 64 * (3 * 3 * 64 + 1),
    "conv5": 48 * (3 * 3 * 64 + 1),
    "fc6": 256 * (4 * 4 * 48 + 1),
    "fc7": 256 * (256 + 1),
    "fc8": 10 * (256 + 1),
}
PARAMETERS = {
    "deck": (ONE_TOWER, 62_378_344),
    "modern": (ONE_TOWER, 62_378_344),
    "paper": (TWO_TOWERS, 60_965_224),
    "caffe": (TWO_TOWERS, 60_965_224),
    "code2012": (CODE_2012, 60_965_224),
    "torchvision": (TORCHVISION, 61_100_840),
    "small": (SMALL, 378_026),
}

LAST_CONVS = "conv3 activation3 conv4 activation4 conv5 activation5 pool5"
DROPOUT_BEFORE = "dropout6 fc6 activation6 dropout7 fc7 activation7 fc8"
DROPOUT_AFTER = "fc6 activation6 dropout6 fc7 activation7 dropout7 fc8"
NORM_POOL = (
    f"conv1 activation1 norm1 pool1 conv2 activation2 norm2 pool2 {LAST_CONVS} {DROPOUT_AFTER}"
)
POOL_NORM = (
    f"conv1 activation1 pool1 norm1 conv2 activation2 pool2 norm2 {LAST_CONVS} {DROPOUT_BEFORE}"
)
ORDERS = {
    "deck": POOL_NORM,
    "modern": POOL_NORM,
    "paper": NORM_POOL,  # sections 3.3 to 3.5 and 4.2
    "caffe": NORM_POOL,
    "small": NORM_POOL,
    "torchvision": f"conv1 activation1 pool1 conv2 activation2 pool2 {LAST_CONVS} {DROPOUT_BEFORE}",
    # In layers-145.cfg, conv1 and conv5 are linear and the ReLU follows the pool; cnorm2 comes
    # between rnorm2 and pool2.
    "code2012": "conv1 norm1 pool1 activation1 conv2 activation2 norm2 map_norm2 pool2 "
    f"conv3 activation3 conv4 activation4 conv5 pool5 activation5 {DROPOUT_AFTER}",
}


preset = functools.partial(from_preset, Config)


def abstract(config: Config, num_classes: int) -> AlexNet:
    """The network without its numbers."""
    return nnx.eval_shape(lambda: build_model(config, num_classes))


@functools.cache
def table(name: str) -> list[dict]:
    """The layer table of a preset."""
    config = preset(name)
    return layer_table(abstract(config, 10 if name == "small" else 1000), config.crop_size)


def total(rows: list[dict], count: str) -> int:
    return sum(row[count] for row in rows)


@functools.cache
def small(**settings) -> AlexNet:
    """The narrow network with `random_params`, two towers unless told otherwise."""
    shape = dict(widths="small", input_size=32, conv1_padding="symmetric", num_classes=10)
    settings = shape | dict(towers=2) | settings
    model = nnx.eval_shape(lambda: AlexNet(**settings, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.asarray, random_params(model)))


@pytest.fixture
def narrow_fc(monkeypatch):
    """512 units in fc6 and fc7 instead of 4,096, to be quick."""
    for widths in ("2012", "one_weird_trick"):
        convolutions, _, conv1 = WIDTHS[widths]
        monkeypatch.setitem(WIDTHS, widths, (convolutions, 512, conv1))


# ---- counts and shapes


def test_the_decks_table_line_by_line():
    rows = table("deck")
    assert [
        (row["name"], row["output"], row["deck_parameters"], row["deck_computations"])
        for row in rows
    ] == DECK_TABLE
    assert total(rows, "deck_parameters") == 62_369_152
    assert total(rows, "deck_computations") == 1_135_906_176
    # Its shares of convolutions and fully connected layers.
    for count, kind, share_pct in (
        *(("deck_parameters", "conv", 6), ("deck_parameters", "fc", 94)),
        *(("deck_computations", "conv", 95), ("deck_computations", "fc", 5)),
    ):
        of_kind = total([row for row in rows if row["name"].startswith(kind)], count)
        assert round(100 * of_kind / total(rows, count)) == share_pct


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    layers, sum_of_layers = PARAMETERS[name]
    rows = table(name)
    assert {row["name"]: row["parameters"] for row in rows if row["parameters"]} == layers
    assert total(rows, "parameters") == sum_of_layers == sum(layers.values())


def test_multiply_adds():
    torchvision_says_gflops = 0.714
    assert total(table("torchvision"), "multiply_adds") // 10**6 == 1000 * torchvision_says_gflops
    by_hand = (
        55**2 * 96 * 11 * 11 * 3
        + 27**2 * 256 * 5 * 5 * 48
        + 13**2 * (384 * 3 * 3 * 256 + 384 * 3 * 3 * 192 + 256 * 3 * 3 * 192)
        + 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    )  # fmt: skip
    assert total(table("paper"), "multiply_adds") == by_hand == 724_406_816


@pytest.mark.parametrize("name", ["deck", "paper", "caffe", "code2012", "torchvision"])
def test_maps_of_55_27_13_and_6_pixels(name):
    """At 227 without padding, at 224 with (0, 3), and at 224 with (2, 2)."""
    config = preset(name)
    assert (config.crop_size, config.conv1_padding) == {
        "deck": (227, "none"),
        "paper": (224, "bottom_right"),
        "caffe": (227, "none"),
        "code2012": (224, "bottom_right"),
        "torchvision": (224, "symmetric"),
    }[name]
    sizes = {row["name"]: row["output"][0] for row in table(name)}
    convs_and_pools = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [sizes[layer] for layer in convs_and_pools] == [55, 27, 27, 13, 13, 13, 13, 6]


@pytest.mark.parametrize("name", ["deck", "paper"])
def test_neurons_of_figure_2(name):
    """The figure's numbers, but for the first: it says 253,440 = 55 x 48 x 96, and 55 x 55 x 96 are
    290,400.
    """
    rows = [row for row in table(name) if row["name"].startswith(("conv", "fc"))]
    neurons = [math.prod(row["output"]) for row in rows]
    assert neurons == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert sum(neurons) == 659_272


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_layers(name):
    order = ORDERS[name].split()
    assert list(abstract(preset(name), 10).order) == order
    assert [row["name"] for row in table(name)] == [
        layer for layer in order if not layer.startswith("activation")
    ]


def test_without_normalization_nothing_else_changes():
    for name in ("deck", "paper", "code2012"):
        order = abstract(preset(name, "--lrn=none"), 10).order
        assert list(order) == [layer for layer in ORDERS[name].split() if "norm" not in layer]


@pytest.mark.parametrize("name", ["deck", "torchvision"])
def test_without_conv4_conv5_sees_the_maps_of_conv3(name):
    config = preset(name, "--noconv4")
    model = abstract(config, 1000)
    absent = ("conv4", "activation4")
    assert [*model.order] == [layer for layer in ORDERS[name].split() if layer not in absent]
    rows = layer_table(model, config.crop_size)
    layers = PARAMETERS[name][0] | {"conv5": 3 * 3 * 384 * 256 + 256}
    del layers["conv4"]
    assert {row["name"]: row["parameters"] for row in rows if row["parameters"]} == layers


def test_one_tower_of_half_the_kernels_has_as_many_in_the_last_convolution():
    """What section 3.2 compares two towers with."""
    outputs = [
        {row["name"]: row["output"] for row in layer_table(abstract(config, 10), config.crop_size)}
        for config in (preset("small"), preset("small", "--widths=half_small"))
    ]
    halved = [layer for layer in outputs[0] if outputs[1][layer] != outputs[0][layer]]
    assert halved == ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3", "conv4"]
    assert all(outputs[1][layer][2] == outputs[0][layer][2] // 2 for layer in halved)


@pytest.mark.parametrize(
    ("settings", "smallest"),
    [  # 8 -> 4 -> 2 -> 1 pixels, and conv1 makes 8 of (8 - 1) * stride + kernel
        (dict(), 39),
        (dict(conv1_padding="bottom_right"), 36),
        (dict(conv1_padding="symmetric", widths="small"), 8),
    ],
)
def test_too_small_images_are_refused(settings, smallest):
    with pytest.raises(UserError, match=f"--crop_size={smallest - 1} .* {smallest}"):
        AlexNet(input_size=smallest - 1, **settings, rngs=nnx.Rngs(0))
    settings = dict(input_size=smallest, num_classes=7, in_channels=1) | settings
    model = nnx.eval_shape(lambda: AlexNet(**settings, rngs=nnx.Rngs(0)))
    rows = {row["name"]: row["output"] for row in layer_table(model, smallest)}
    assert rows["pool5"][:2] == [1, 1] and rows["fc8"] == [7]


# ---- values and gradients against PyTorch's layers
# Each network is written down from its source: x is (B, channels, H, W), w {layer: (weights,
# biases)}; drop6 and drop7 are what dropout multiplies by.


def across(torch, x, k, alpha):
    """Section 3.3 as printed, n = 5: b = a / (k + alpha * sum of a^2)^0.75."""
    squares = torch.nn.functional.pad(x * x, (0, 0, 0, 0, 2, 2))
    maps = x.shape[1]
    return x / (k + alpha * sum(squares[:, i : i + maps] for i in range(5))) ** 0.75


def within_tower(torch, x, k, alpha):
    return torch.cat([across(torch, half, k, alpha) for half in x.chunk(2, dim=1)], dim=1)


def within_map(torch, x, alpha):
    """rnorm of layers-145.cfg: 5x5 pixels of one map, k = 1; beyond the border there are zeros."""
    sums = 25 * torch.nn.functional.avg_pool2d(x * x, 5, stride=1, padding=2)
    return x / (1 + alpha * sums) ** 0.75


def three_convs_and_pool5(torch, x, w, groups):
    f = torch.nn.functional
    x = f.relu(f.conv2d(x, *w["conv3"], padding=1))
    x = f.relu(f.conv2d(x, *w["conv4"], padding=1, groups=groups))
    return f.max_pool2d(f.relu(f.conv2d(x, *w["conv5"], padding=1, groups=groups)), 3, 2)


def dropout_before(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    x = f.relu(f.linear((x * drop6).flatten(1), *w["fc6"]))
    return f.linear(f.relu(f.linear(x * drop7, *w["fc7"])), *w["fc8"])


def dropout_after(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    x = f.relu(f.linear(x.flatten(1), *w["fc6"])) * drop6
    return f.linear(f.relu(f.linear(x, *w["fc7"])) * drop7, *w["fc8"])


def deck(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    x = f.max_pool2d(f.relu(f.conv2d(x, *w["conv1"], stride=4)), 3, 2)
    x = f.relu(f.conv2d(across(torch, x, 2, 1e-4), *w["conv2"], padding=2))
    x = across(torch, f.max_pool2d(x, 3, 2), 2, 1e-4)
    return dropout_before(torch, three_convs_and_pool5(torch, x, w, 1), w, drop6, drop7)


def paper(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    x = f.relu(f.conv2d(f.pad(x, (0, 3, 0, 3)), *w["conv1"], stride=4))
    x = f.max_pool2d(within_tower(torch, x, 2, 1e-4), 3, 2)
    x = f.relu(f.conv2d(x, *w["conv2"], padding=2, groups=2))
    x = f.max_pool2d(within_tower(torch, x, 2, 1e-4), 3, 2)
    return dropout_after(torch, three_convs_and_pool5(torch, x, w, 2), w, drop6, drop7)


def caffe(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    norm = torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)  # alpha / 5, as in Caffe
    x = f.max_pool2d(norm(f.relu(f.conv2d(x, *w["conv1"], stride=4))), 3, 2)
    x = f.max_pool2d(norm(f.relu(f.conv2d(x, *w["conv2"], padding=2, groups=2))), 3, 2)
    return dropout_after(torch, three_convs_and_pool5(torch, x, w, 2), w, drop6, drop7)


def code2012(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    x = within_tower(torch, f.conv2d(f.pad(x, (0, 3, 0, 3)), *w["conv1"], stride=4), 2, 1e-4 / 5)
    x = f.relu(f.max_pool2d(x, 3, 2))
    x = within_tower(torch, f.relu(f.conv2d(x, *w["conv2"], padding=2, groups=2)), 2, 1e-4 / 5)
    x = f.max_pool2d(within_map(torch, x, 1e-3 / 25), 3, 2)
    x = f.relu(f.conv2d(x, *w["conv3"], padding=1))
    x = f.relu(f.conv2d(x, *w["conv4"], padding=1, groups=2))
    x = f.relu(f.max_pool2d(f.conv2d(x, *w["conv5"], padding=1, groups=2), 3, 2))
    return dropout_after(torch, x, w, drop6, drop7)


def torchvision(torch, x, w, drop6, drop7):
    f = torch.nn.functional
    x = f.max_pool2d(f.relu(f.conv2d(x, *w["conv1"], stride=4, padding=2)), 3, 2)
    x = f.max_pool2d(f.relu(f.conv2d(x, *w["conv2"], padding=2)), 3, 2)
    return dropout_before(torch, three_convs_and_pool5(torch, x, w, 1), w, drop6, drop7)


def small_preset(torch, x, w, drop6, drop7, act="relu", size=3):
    f = torch.nn.functional
    act = getattr(torch, act)

    def pool(x):  # windows run on to the last pixel: 32 -> 16 -> 8 -> 4
        return f.max_pool2d(x, size, 2, ceil_mode=True)

    x = pool(across(torch, act(f.conv2d(x, *w["conv1"], padding=2)), 2, 1e-4))
    x = pool(across(torch, act(f.conv2d(x, *w["conv2"], padding=2)), 2, 1e-4))
    x = act(f.conv2d(x, *w["conv3"], padding=1))
    x = pool(act(f.conv2d(act(f.conv2d(x, *w["conv4"], padding=1)), *w["conv5"], padding=1)))
    x = act(f.linear(x.flatten(1), *w["fc6"])) * drop6
    return f.linear(act(f.linear(x, *w["fc7"])) * drop7, *w["fc8"])


def small_tanh(*arguments):
    return small_preset(*arguments, act="tanh", size=2)


def random_params(model: nnx.Module) -> dict:
    """The model's parameters with every entry drawn, weights so that activities keep their size."""
    draw = np.random.default_rng(0)

    def one(path, leaf):
        deviation = 0.1 if path[-1].key == "bias" else np.sqrt(2 / math.prod(leaf.shape[:-1]))
        return draw.standard_normal(leaf.shape, np.float32) * np.float32(deviation)

    return jax.tree.map_with_path(one, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def to_torch(name: str, kernel: np.ndarray, fc6_maps: int) -> np.ndarray:
    """Weights in PyTorch's order: (out, in, kh, kw), (out, in); fc6's inputs go from (H, W, maps)
    to (maps, H, W).
    """
    kernel = np.asarray(kernel)
    if name == "fc6":
        side = math.isqrt(len(kernel) // fc6_maps)
        kernel = (
            kernel.reshape(side, side, fc6_maps, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        )
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)


def relative_error(ours, theirs) -> float:
    """The largest difference, in units of the largest value."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


in_nightly = functools.partial(pytest.param, marks=pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "name", "changes"),
    [  # crops that leave 31 -> 15 -> 7 -> 3 pixels; torchvision's in full: 55 -> 27 -> 13 -> 6
        in_nightly(deck, "deck", ["--crop_size=131"]),
        (paper, "paper", ["--crop_size=128"]),
        in_nightly(caffe, "caffe", ["--crop_size=131"]),
        in_nightly(code2012, "code2012", ["--crop_size=128"]),
        in_nightly(torchvision, "torchvision", []),
        (small_preset, "small", []),
        in_nightly(small_tanh, "small", ["--activation=tanh", "--pooling=non_overlapping"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_logits_and_gradients_against_pytorch(network, name, changes, torch, request):
    """Without dropout, and with the same values dropped in both."""
    if name != "torchvision":
        request.getfixturevalue("narrow_fc")
    config = preset(name, *changes)
    model = abstract(config, 1000 if name == "torchvision" else 10)
    graphdef = nnx.graphdef(model)
    params = random_params(model)
    draw = np.random.default_rng(1)
    scale = 60 if config.scaling == "mean_image" else 1  # so that LRN shows; or standardized
    shape = (2, config.crop_size, config.crop_size, 3)
    images = np.float32(scale) * draw.standard_normal(shape, np.float32)
    labels = np.array([3, 7])
    keys = jax.random.split(jax.random.key(5), 2)

    @jax.jit
    def run(params, images):
        def loss(params):
            logits = nnx.merge(graphdef, params)(images, keys)
            return loss_function()(logits, labels).mean(), logits

        (_, training_logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return nnx.merge(graphdef, params)(images), training_logits, grads

    logits, training_logits, grads = run(params, images)

    maps = params["conv5"]["bias"].size
    shapes = {row["name"]: row["output"] for row in layer_table(model, config.crop_size)}
    masks = {}
    for layer in ("dropout6", "dropout7"):
        mask = np.asarray(
            nnx.merge(graphdef, params).layer(layer, jnp.ones((2, *shapes[layer])), keys)
        )
        masks[layer] = torch.tensor(mask.transpose(0, 3, 1, 2) if mask.ndim == 4 else mask)
    weights = {
        layer: [
            torch.tensor(array, requires_grad=True)
            for array in (to_torch(layer, p["kernel"], maps), p["bias"])
        ]
        for layer, p in params.items()
    }
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    # "multiply their outputs by 0.5" (section 4.2)
    in_tests = 1.0 if name in ("torchvision", "caffe", "small") else 0.5
    with torch.no_grad():
        assert relative_error(logits, network(torch, x, weights, in_tests, in_tests).numpy()) < 1e-4
    theirs = network(torch, x, weights, masks["dropout6"], masks["dropout7"])
    torch.nn.functional.cross_entropy(theirs, torch.tensor(labels)).backward()
    assert relative_error(training_logits, theirs.detach().numpy()) < 1e-4
    assert not np.allclose(training_logits, logits)
    for layer, (kernel, bias) in weights.items():
        ours = to_torch(layer, grads[layer]["kernel"], maps)
        assert relative_error(ours, kernel.grad.numpy()) < 1e-3, layer
        assert relative_error(grads[layer]["bias"], bias.grad.numpy()) < 1e-3, layer


@pytest.mark.slow
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_against_pytorch(label_smoothing, torch):
    draw = np.random.default_rng(0)
    logits, labels = 5 * draw.standard_normal((40, 10)).astype(np.float32), draw.integers(0, 10, 40)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction="none")
    expected = theirs(torch.tensor(logits), torch.tensor(labels)).numpy()
    np.testing.assert_allclose(
        loss_function(label_smoothing)(logits, labels), expected, rtol=1e-5, atol=1e-6
    )


# ---- what the layers pass on

# Layers whose activation function comes only after the next layer: they pass on weighted sums.
BEFORE_THE_ACTIVATION = {"code2012": {"conv1", "conv5"}}


@pytest.mark.commands
@pytest.mark.parametrize("name", ["paper", "code2012", in_nightly("deck")])
def test_activations_are_what_the_next_layer_receives(name):
    """Layer by layer, by hand: each entry is the input of the next row's layer."""
    config = preset(name)
    settings = dict(norm_order=config.norm_order, dropout_at=config.dropout_at, lrn=config.lrn)
    model = small(**settings)
    images = 60 * jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    # jit keeps the order
    found, logits = jax.jit(lambda images: (model.activations(images), model(images)))(images)
    rows = layer_table(model, 32)
    assert [(row["name"], [2, *row["output"]]) for row in rows] == [
        (layer, list(x.shape)) for layer, x in found.items()
    ]

    @jax.jit
    def inputs(x):
        """Those of the layers that are no activation functions, and the last output."""
        received = []
        for layer in model.order:
            if not layer.startswith("activation"):
                received.append(x)
            x = model.layer(layer, x)
        return [*received, x]

    following = inputs(images)[1:]
    for (layer, ours), expected in zip(found.items(), following, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        if layer.startswith("conv"):  # ReLU or not
            late = layer in BEFORE_THE_ACTIVATION.get(name, ())
            assert bool((ours < 0).any()) is late, layer
    np.testing.assert_array_equal(found["fc8"], logits)


# ---- dropout


def dropped(model: AlexNet, layer: str, keys, values: int = 9216) -> np.ndarray:
    """What becomes of ones."""
    return np.asarray(model.layer(layer, jnp.ones((len(keys), values)), keys))


@pytest.mark.commands
def test_the_share_that_dropout_keeps_and_what_makes_up_for_it():
    keys = jax.random.split(jax.random.key(0), 8)
    for dropout in (0.5, 0.2):
        for scaling, kept_value, in_tests in (
            ("test", 1.0, 1 - dropout),
            ("training", 1 / (1 - dropout), 1.0),
        ):
            model = small(dropout=dropout, dropout_scaling=scaling)
            ones = dropped(model, "dropout6", keys)
            np.testing.assert_allclose(np.unique(ones), [0, kept_value], rtol=1e-6)
            shares = (ones > 0).mean(axis=1)  # of 9,216: a deviation of 0.005
            np.testing.assert_allclose(shares, 1 - dropout, atol=0.025)
            for layer in ("dropout6", "dropout7"):
                unchanged = model.layer(layer, jnp.ones((2, 5)))
                np.testing.assert_allclose(unchanged, in_tests, rtol=1e-6)


@pytest.mark.commands
def test_what_is_dropped_is_a_function_of_the_images_key():
    model, keys = small(), jax.random.split(jax.random.key(1), 6)
    masks = dropped(model, "dropout6", keys)
    for images in ([5, 4, 3, 2, 1, 0], [4, 4, 0, 1, 2, 0], [2]):
        alike = dropped(model, "dropout6", keys[np.array(images)])
        np.testing.assert_array_equal(alike, masks[images])


@pytest.mark.commands
def test_logits_and_what_is_random_in_them():
    """Logits are a function of the image and its key; nothing is random without a key or without
    dropout.
    """
    images = jax.random.normal(jax.random.key(2), (6, 32, 32, 3))
    keys = jax.random.split(jax.random.key(1), 6)
    run, run_without = (
        jax.jit(lambda images, keys, model=model: model(images, keys))
        for model in (small(), small(dropout=0.0))
    )
    dropped_out, predicted = run(images, keys), run(images, None)
    np.testing.assert_allclose(dropped_out[2:4], run(images[2:4], keys[2:4]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(predicted, run(images, None))
    assert not np.allclose(dropped_out, predicted, rtol=0.01)
    np.testing.assert_allclose(
        run_without(images, keys), run_without(images, None), rtol=1e-5, atol=1e-6
    )


def test_masks_of_images_and_of_the_two_layers_are_independent():
    model, keys = small(), jax.random.split(jax.random.key(3), 4)
    masks = np.concatenate(
        [dropped(model, layer, keys) for layer in ("dropout6", "dropout7")]
    )  # (8, 9216)
    correlations = np.corrcoef(masks)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 0.05  # 28 pairs, a deviation of 0.01 each


# ---- towers


def test_the_halves_of_conv2_conv4_and_conv5_do_not_see_each_other():
    model = small()
    for name, inputs in (("conv2", 16), ("conv3", 48), ("conv4", 64), ("conv5", 64)):
        x = np.random.default_rng(0).standard_normal((2, 7, 7, inputs), np.float32)
        run = jax.jit(lambda x, name=name: model.layer(name, x))
        before = np.asarray(run(x))
        half = before.shape[-1] // 2
        for first, own, other in (
            (0, np.s_[..., :half], np.s_[..., half:]),
            (1, np.s_[..., half:], np.s_[..., :half]),
        ):
            changed = x.copy()
            changed[..., first * inputs // 2 : (first + 1) * inputs // 2] += 1
            after = np.asarray(run(changed))
            assert (after[own] != before[own]).mean() > 0.99
            if name == "conv3":  # "connected to all kernel maps in the second layer" (3.5)
                assert (after[other] != before[other]).mean() > 0.99
            else:
                np.testing.assert_array_equal(after[other], before[other])


@pytest.mark.commands
@pytest.mark.parametrize(("lrn", "apart"), [("within_tower", True), ("across", False)])
def test_towers_stay_apart_up_to_conv3(lrn, apart):
    """With normalization within a tower; across the towers, they meet at norm1."""
    model = small(lrn=lrn, norm_order="norm_pool")
    layers = ("activation1", "norm1", "pool1", "conv2", "activation2", "norm2", "pool2", "conv3")

    @jax.jit
    def after_each(x):
        return [x := model.layer(layer, x) for layer in layers]

    x = 60 * np.random.default_rng(0).standard_normal((2, 32, 32, 16), np.float32)  # of conv1
    changed = x * np.repeat(np.float32([2, 1]), 8)
    *before, conv3 = zip(after_each(x), after_each(changed), strict=True)
    for ours, others in before[1:]:
        half = ours.shape[-1] // 2
        assert bool((ours[..., half:] == others[..., half:]).all()) is apart
    assert (conv3[0] != conv3[1]).mean() > 0.99


# ---- initial values


def statistics_of(initialization: str, **settings) -> dict:
    """{layer: (weights, biases)} of a network for crops of 67 pixels: fc6 sees a single pixel of
    256 maps.
    """
    settings = dict(input_size=67, initialization=initialization, num_classes=200) | settings
    params = nnx.to_pure_dict(nnx.state(AlexNet(**settings, rngs=nnx.Rngs(0)), nnx.Param))
    return {name: (np.asarray(p["kernel"]), np.asarray(p["bias"])) for name, p in params.items()}


@pytest.mark.commands
@pytest.mark.parametrize(
    ("initialization", "others"),  # deviations that are not 0.01, those of section 5
    [
        ("paper", {}),
        ("caffe", {"fc6": 0.005, "fc7": 0.005}),
        ("code2012", {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}),
    ],
)
def test_initial_weights_are_normal(initialization, others, narrow_fc):
    for name, (weights, _) in statistics_of(initialization, towers=2).items():
        deviation = others.get(name, 0.01)
        # conv1, the smallest, has 34,848: a deviation of 0.004
        assert abs(weights.std() / deviation - 1) < 0.02, name
        assert abs(weights.mean()) < 5 * deviation / math.sqrt(weights.size), name
        # normal, neither uniform nor truncated at two deviations
        assert np.abs(weights).max() > 3.5 * deviation, name


@pytest.mark.parametrize(
    ("name", "bias"), [("paper", 1.0), ("code2012", 1.0), ("caffe", 0.1), ("deck", 0.1)]
)
def test_initial_biases(name, bias, narrow_fc):
    """Of conv2, conv4, conv5 and the hidden layers fc6 and fc7; 0 elsewhere (section 5)."""
    config = preset(name, "--crop_size=67")

    @jax.jit  # so that the weights, which nobody asks for, are not drawn
    def biases():
        params = nnx.to_pure_dict(nnx.state(build_model(config, 200), nnx.Param))
        return {layer: parameters["bias"] for layer, parameters in params.items()}

    ones = ("conv2", "conv4", "conv5", "fc6", "fc7")
    for layer, values in biases().items():
        assert (values == np.float32(bias if layer in ones else 0)).all(), layer


FAN_IN = {  # inputs of a unit at 67 pixels, by towers
    1: dict(conv1=363, conv2=2400, conv3=2304, conv4=3456, conv5=3456, fc6=256, fc7=512, fc8=512),
    2: dict(conv1=363, conv2=1200, conv3=2304, conv4=1728, conv5=1728, fc6=256, fc7=512, fc8=512),
}


@pytest.mark.commands
@pytest.mark.parametrize("towers", [2, in_nightly(1)])
def test_initial_weights_by_fan_in(towers, narrow_fc):
    for name, (weights, biases) in statistics_of("he", towers=towers, hidden_bias=0.0).items():
        assert abs(weights.std() / math.sqrt(2 / FAN_IN[towers][name]) - 1) < 0.02, name
        assert (biases == 0).all()
    for name, (weights, biases) in statistics_of("torch", towers=towers, hidden_bias=0.0).items():
        bound = 1 / math.sqrt(FAN_IN[towers][name])
        assert 0.999 * bound < np.abs(weights).max() <= bound * (1 + 1e-6), name
        assert abs(weights.std() / (bound / math.sqrt(3)) - 1) < 0.02, name
        assert 0.9 * bound < np.abs(biases).max() <= bound * (1 + 1e-6), name
        assert abs(biases.mean()) < 5 * bound / math.sqrt(3 * biases.size), name


@pytest.mark.slow
def test_initial_weights_are_those_of_pytorchs_layers(torch, narrow_fc):
    """Bounds and deviations, of weights and biases."""
    ours = statistics_of("torch", widths="one_weird_trick", hidden_bias=0.0)
    theirs = {
        "conv1": torch.nn.Conv2d(3, 64, 11),
        "conv2": torch.nn.Conv2d(64, 192, 5),
        "conv3": torch.nn.Conv2d(192, 384, 3),
        "conv4": torch.nn.Conv2d(384, 256, 3),
        "conv5": torch.nn.Conv2d(256, 256, 3),
        "fc6": torch.nn.Linear(256, 512),
        "fc7": torch.nn.Linear(512, 512),
        "fc8": torch.nn.Linear(512, 200),
    }
    for name, layer in theirs.items():
        for our_values, their_values in zip(ours[name], (layer.weight, layer.bias), strict=True):
            their_values = their_values.detach().numpy()
            assert our_values.size == their_values.size
            of_bound, of_std = (0.1, 0.25) if their_values.size < 10_000 else (0.002, 0.02)
            bound = np.abs(their_values).max()
            assert np.abs(our_values).max() == pytest.approx(bound, rel=of_bound)
            assert our_values.std() == pytest.approx(their_values.std(), rel=of_std)


@pytest.mark.commands
@pytest.mark.parametrize("name, lrn", [("small", "none"), ("cifar18", "within_map")])
def test_the_parts_of_a_batch_have_the_logits_of_the_whole(name, lrn, monkeypatch):
    """In parts of 4 or fewer images: 1 and 3 at once, 8 and 12 in a loop, 7 (a prime) at once.
    Normalization is a loop in any case.
    """
    model = build_model(from_preset(Config, name, "--dataset=fake", f"--lrn={lrn}"), 10)
    images = np.random.default_rng(0).normal(0, 50, (12, *[model_side(model)] * 2, 3))
    images = images.astype(np.float32)
    first = jax.eval_shape(lambda x: model.layer("conv1", x), images[:1])
    monkeypatch.setattr(sequence, "CACHED_VALUES", 4 * math.prod(first.shape))
    for count in (1, 3, 7, 8, 12):
        x = images[:count]
        for layer in model.order:
            x = model.layer(layer, x)
        assert has_loop(model, images[:count]) == (count in (8, 12) or lrn != "none")
        np.testing.assert_allclose(model(images[:count]), x, rtol=1e-3, atol=1e-4)


def test_with_a_model_axis_nothing_is_cut_in_parts(monkeypatch):
    """The compiler would gather the batch on each device to loop over it."""
    monkeypatch.setattr(sequence, "CACHED_VALUES", 1)
    for mesh, cut in (("", True), ("data:1,model:2", False)):
        model = build_model(from_preset(Config, "small", "--dataset=fake", f"--mesh={mesh}"), 10)
        assert has_loop(model, np.zeros((2, 32, 32, 3), np.float32)) == cut


def has_loop(model, images) -> bool:
    return "scan" in str(jax.make_jaxpr(lambda images: model(images))(images))


def model_side(model) -> int:
    """Pixels of the images that a network for CIFAR-10 takes."""
    return 32 if "conv5" in model.order else 24
