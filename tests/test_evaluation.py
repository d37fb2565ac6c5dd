"""Scores are exact: every example counts once, whatever the batch size."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import alexnet.config
import alexnet.train
import lenet.config
import lenet.train
from alexnet.augment import VIEWS
from common.errors import DataError, Interrupted
from common.evaluation import evaluate
from common.examples import Examples
from common.losses import cross_entropy
from common.network import Network

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Table(nnx.Module):
    """Logits that are known: of an image whose first pixel is i, row i of a table."""

    def __init__(self, logits):
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def __call__(self, images, keys=None):
        assert keys is None
        return self.logits[...][images[:, 0, 0, 0].astype(jnp.int32)]


def known(count, classes, views=1, config=None):
    """(network, params, examples, logits): logits (views, count, classes) that the examples get in
    each view.
    """
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (views, count, classes)).astype(np.float32)
    graphdef, params = nnx.split(Table(logits.reshape(-1, classes)), nnx.Param)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    labels = draw.integers(0, classes, count).astype(np.int32)

    def prepare(images, draw=None, view=None):
        return images.astype(jnp.float32) + count * (view or 0)

    network = Network(
        config=config,
        num_classes=classes,
        num_parameters=0,
        image_shapes=((2, 2, 3),),
        init=lambda: params,
        bind=lambda params: nnx.merge(graphdef, params),
        prepare=prepare,
        loss=cross_entropy,
    )
    return network, params, Examples(images, labels, classes, "known"), logits


def counted(probabilities, labels, top):
    """How many labels are not among the `top` most probable classes."""
    ranks = np.argsort(-probabilities, axis=-1)[:, :top]
    return sum(label not in rank for rank, label in zip(ranks, labels, strict=True))


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("batch_size", "classes", "views"),
    [
        (1, 10, 1),
        (7, 10, 1),
        pytest.param(97, 10, 1, marks=pytest.mark.commands),
        pytest.param(1000, 10, 1, marks=pytest.mark.commands),
        (16, 10, VIEWS),
        (7, 3, 1),
        pytest.param(16, 101, 1, marks=pytest.mark.commands),
    ],
)
def test_every_example_counts_once_whatever_the_batch_size(batch_size, classes, views):
    network, params, examples, logits = known(97, classes, views)
    probabilities = softmax(logits).mean(axis=0)  # the paper's mean, not that of logits (4.1)
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (examples.labels, probabilities.argmax(-1)), 1)
    loss = -np.log(probabilities[np.arange(97), examples.labels]).sum()
    eval_steps = [alexnet.train.make_eval_step(network, views)]
    if views == 1:
        eval_steps.append(lenet.train.make_eval_step(network))
    for eval_step in eval_steps:
        sums = evaluate(eval_step, params, examples, batch_size=batch_size)
        assert sums["count"] == 97
        assert sums["errors"] == counted(probabilities, examples.labels, 1)
        np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
        if "top5_errors" in sums:
            assert sums["top5_errors"] == counted(probabilities, examples.labels, 5)
        if classes > 100:
            assert "confusion" not in sums
        else:
            assert (sums["confusion"] == confusion).all()


def test_the_mean_of_probabilities_is_not_that_of_logits():
    """The sets above tell them apart."""
    _, _, examples, logits = known(97, 10, VIEWS)
    of_probabilities = counted(softmax(logits).mean(0), examples.labels, 1)
    assert of_probabilities != counted(softmax(logits.mean(0)), examples.labels, 1)


def test_a_signal_ends_an_evaluation():
    _, _, examples, _ = known(10, 3)
    batches, questions = [], iter([None, None, 15])

    def eval_step(params, batch):
        batches.append(batch["mask"].sum())
        return {"count": np.int32(batches[-1])}

    with pytest.raises(Interrupted) as caught:
        evaluate(eval_step, {}, examples, batch_size=4, stop_requested=lambda: next(questions))
    assert caught.value.args == (15,) and batches == [4, 4]
    batches.clear()
    assert evaluate(eval_step, {}, examples, batch_size=4)["count"] == 10 and batches == [4, 4, 2]


def test_where_no_record_is_intact_there_is_no_score():
    _, _, examples, _ = known(3, 3)
    with pytest.raises(DataError, match="known"):
        evaluate(lambda *_: {"count": np.int32(0)}, {}, examples, batch_size=2)


@pytest.mark.parametrize(
    ("crop_size", "views", "size"), [(227, 1, 64), (227, VIEWS, 6), (24, 1, 1000), (2000, VIEWS, 1)]
)
def test_as_many_examples_are_scored_at_once_as_fit(crop_size, views, size):
    """Ten million values: 64 crops of 227x227x3."""
    config = alexnet.config.Config(crop_size=crop_size)
    assert alexnet.train.eval_batch_size(config, views) == size


def test_chunks_are_at_least_a_step_and_about_4096_images():
    steps_per_chunk = lenet.data.steps_per_chunk
    assert [steps_per_chunk(b) for b in (1, 32, 128, 4096, 20000)] == [2048, 128, 32, 1, 1]
