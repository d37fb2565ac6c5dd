"""AlexNet (Krizhevsky, Sutskever and Hinton 2012)."""


def load(workdir, step=None):
    """A trained network: `load("runs/first").predict(images)`.

    Args:
      workdir: the folder of an AlexNet run, a str or Path.
      step: a checkpoint's step; None or "newest" for the newest intact one; "best" for the
        one with the least validation error.

    Returns:
      A `common.network.Trained`: predict, classify, activations, params, config, class_names.

    Raises:
      UserError: the folder holds no AlexNet run, or no such checkpoint.
      StorageError: no checkpoint is intact.
    """
    from alexnet import network  # not at the top: importing JAX takes seconds

    return network.load(workdir, step)
