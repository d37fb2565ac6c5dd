"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998)."""


def load(workdir, step=None):
    """A trained network: `load("runs/first").predict(images)`.

    Args:
      workdir: the folder of a LeNet-5 run, a str or Path.
      step: a checkpoint's step; None or "newest" for the newest intact one; "best" for the
        one with the least validation error.

    Returns:
      A `common.network.Trained`: predict, classify, activations, params, config, class_names.

    Raises:
      UserError: the folder holds no LeNet-5 run, or no such checkpoint.
      StorageError: no checkpoint is intact.
    """
    from lenet import network  # not at the top: importing JAX takes seconds

    return network.load(workdir, step)
