"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998)."""


def load(workdir, step=None):
    """The network of a run, with its trained weights: `load("runs/first").predict(images)`.

    Args:
      workdir: the run's folder, a str or Path.
      step: the checkpoint's step, or None or "newest" for the newest intact one.

    Returns a `lenet.network.Trained` [@@]. Raises UserError if the folder holds no LeNet-5 run.
    """
    from lenet import network  # here, because JAX takes seconds to import

    return network.load(workdir, step)
