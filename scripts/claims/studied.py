"""Claims that a study decides, with its arms as scripts/studies/catalog.py names them."""

from scripts.claims.claim import REENCODED, direction, paired, says, studied, within

LOWER, SAME = says("lower"), says("no difference")
NOT_STATED = None
NOTE = f", {REENCODED}"


def _error(run: dict) -> float:
    return run["test_error_pct"]


def _gap(run: dict) -> float:
    """What overfitting is."""
    return run["test_error_pct"] - run["train_error_pct"]


# id, source, claim, stated, study, (arm, base), what the verdict on arm against base must be, or
# NOT_STATED where the source says nothing on it, and the study asks what one would ask
# fmt: off
ON_DIGITS = (
    ("deck-lenet-sparse-error", "deck, LeNet-5, third layer", "Table I against dense, test error",
     "breaks the symmetry; nothing on the error", "c3_table", ("table", "dense"), NOT_STATED),
    ("deck-lenet-random-table", "deck, LeNet-5, Table I", "the table against as many at random",
     "nothing on other tables", "c3_table", ("table", "random"), NOT_STATED),
    ("deck-max-pooling", "deck, AlexNet, architecture",
     "max against average pooling, LeNet-5, test error",
     "retains important features; nothing on the error", "lenet_pooling", ("max", "average"),
     NOT_STATED),
    ("deck-relu-tanh-error", "deck, AlexNet, architecture",
     "ReLU against tanh, LeNet-5, test error",
     "superior performance", "lenet_activation", ("relu", "tanh"), LOWER),
    ("lenet-scaled-tanh", "LeCun 1998, appendix A",
     "1.7159 tanh(2/3 a) instead of tanh, test error",
     "a convenience that does not affect the result", "lenet_activation", ("scaled_tanh", "tanh"),
     SAME),
    ("lenet-initial-weights-matter", "LeCun 1998, appendix A", "initial weights, test error",
     "2.4 / F; nothing on the error", "lenet_init", ("2.4_over_fan_in", "2.4_over_sqrt"),
     NOT_STATED),
    ("lenet-training-set-half", "LeCun 1998, Fig. 6", "60,000 instead of 30,000 digits",
     "lower test error", "training_set_size", ("60000", "30000"), LOWER),
    ("lenet-training-set-quarter", "LeCun 1998, Fig. 6", "60,000 instead of 15,000 digits",
     "lower test error", "training_set_size", ("60000", "15000"), LOWER),
    ("lenet-map-loss", "LeCun 1998, II.C", "eq. 9 instead of eq. 8, test error",
     "more discriminative; nothing on the error", "lenet_loss", ("eq9_j3", "eq8"), NOT_STATED),
    ("lenet-sum-or-average", "LeCun 1998, II.A and II.B",
     "the sum instead of the average, test error",
     "both, as if the same; nothing on the error", "subsampling", ("sum", "average"), NOT_STATED),
    ("lenet-bitmaps", "LeCun 1998, Fig. 3", "bitmaps of 0 and 6 that are further apart",
     "chosen by hand; nothing on others", "codes", ("distance25", "distance13"), NOT_STATED),
    ("deck-transfer-digits", "deck, AlexNet, architecture",
     "LeNet-5, 50 digits each of 5 to 9: from weights that know 0 to 4, test error",
     "transfer helps (ImageNet's weights)",
     "transfer_lenet", ("transfer", "scratch"), LOWER),
    ("lenet-sdlm", "LeCun 1998, appendix C", "second-order rates against plain SGD, error",
     "no tremendous increase in speed, but reliable without adjusting",
     "lenet_optimizer", ("sdlm", "sgd"), NOT_STATED),
)
ON_CIFAR = (
    ("deck-relu-factor", "deck, AlexNet, ReLU",
     "ReLU's iterations to 25% training error on CIFAR-10, of tanh's",
     "almost six times faster: x0.17", "relu_vs_tanh", ("relu", "tanh"), within(1 / 6.5, 1 / 5.5)),
    ("deck-relu-sigmoid", "deck, AlexNet, ReLU", "ReLU's iterations to that error, of sigmoid's",
     "several times faster", "relu_vs_tanh", ("relu", "sigmoid"), within(0, 1 / 2)),
    ("deck-transfer-cifar", "deck, AlexNet, architecture",
     "`small`, 100 photos each of five classes: from weights that know five others, test error",
     "transfer helps (ImageNet's weights)",
     "transfer_alexnet", ("transfer", "scratch"), LOWER),
    ("deck-alexnet-accuracy", "deck, AlexNet, why", "AlexNet against LeNet-5 on CIFAR-10",
     "higher accuracy than previous CNNs", "lenet_vs_alexnet", ("alexnet", "lenet"), LOWER),
    ("alexnet-relu-factor", "Krizhevsky 2012, 3.1, Fig. 1",
     "ReLU's epochs to 25% training error on CIFAR-10, of tanh's",
     "six times faster: x0.17", "relu_vs_tanh", ("relu", "tanh"), within(1 / 6.5, 1 / 5.5)),
    ("alexnet-lrn", "Krizhevsky 2012, 3.3", "on CIFAR-10 here; normalization against none, `small`",
     "lower; -1.4 points top-1 on ImageNet", "lrn_small", ("across", "none"), direction(-1.4)),
    ("alexnet-lrn-cifar18", "Krizhevsky 2012, 3.3",
     "CIFAR-10, `cifar18`: normalization within maps against none",
     "nothing on this kind", "lrn_cifar18", ("within_map", "none"), NOT_STATED),
    ("alexnet-lrn-cifar13", "Krizhevsky 2012, 3.3",
     "CIFAR-10, `cifar13`: with normalization against without",
     "11% against 13%, of a four-layer network", "cifar13", ("across", "none"), LOWER),
    ("alexnet-overlapping-gain", "Krizhevsky 2012, 3.4",
     "on CIFAR-10 here; overlapping pools against not overlapping",
     "lower; -0.4 points top-1 on ImageNet", "pooling", ("overlapping", "separate"),
     direction(-0.4)),
    ("alexnet-towers-gain", "Krizhevsky 2012, 3.2",
     "on CIFAR-10 here; two towers against one of half the kernels",
     "lower; -1.7 points top-1 on ImageNet", "towers", ("two", "one"), direction(-1.7)),
    ("alexnet-color-gain", "Krizhevsky 2012, 4.1", "on CIFAR-10 here; color noise against none",
     "lower; by over 1 point, top-1, on ImageNet", "color", ("color", "none"), direction(-1)),
    ("alexnet-depth", "Krizhevsky 2012, 1 and 7", "on CIFAR-10 here; a middle convolution removed",
     "higher; about 2 points, top-1, on ImageNet", "depth", ("without_conv4", "all"),
     direction(2)),
    ("alexnet-augmentation-error", "Krizhevsky 2012, 4.1",
     "`small`, 20 epochs: crops and reflections against none, test error",
     "lower", "augmentation", ("crop_flip", "none"), LOWER),
    ("alexnet-dropout-error", "Krizhevsky 2012, 4.2",
     "`small`, 20 epochs, dropout of 0.25 against none, test error",
     "nothing on the error after as many epochs", "dropout", ("dropout", "none"), NOT_STATED),
)
# Of test minus training errors: what overfitting is.
GAPS = (
    ("deck-dropout-overfitting", "deck, AlexNet, dropout",
     "`small`, 20 epochs, dropout of 0.25 against none: test minus training error",
     "prevents overfitting", "dropout", ("dropout", "none"), LOWER),
    ("alexnet-dropout-overfitting", "Krizhevsky 2012, 4.2",
     "`small`, 20 epochs, dropout of 0.25 against none: test minus training error",
     "substantial overfitting without", "dropout", ("dropout", "none"), LOWER),
    ("alexnet-augmentation-overfitting", "Krizhevsky 2012, 4.1",
     "`small`, 20 epochs, crops and reflections against none: test minus training error",
     "substantial overfitting without", "augmentation", ("crop_flip", "none"), LOWER),
)
# id, source, claim, stated, study, (arm, base), what of a run, what the verdict must be
OTHERWISE = (
    ("deck-relu-sigmoid-error", "deck, AlexNet, architecture",
     "ReLU against sigmoid, LeNet-5, test error", "superior performance",
     "lenet_activation", ("relu", "sigmoid"), _error, LOWER),
    ("lenet-symmetric", "LeCun 1998, appendix A",
     "a symmetric squashing function, tanh, against sigmoid: training error at the end",
     "faster convergence", "lenet_activation", ("tanh", "sigmoid"),
     lambda run: run["train_error_pct"], LOWER),
    ("lenet-distortions-gain", "LeCun 1998, III.B", "test error with distortions minus without",
     "-0.15 points (0.95 to 0.8%)", "distortions", ("strength_0.35", "none"), _error,
     direction(-0.15)),
    ("alexnet-overlapping-overfitting", "Krizhevsky 2012, 3.4",
     "overlapping pools against not overlapping: test minus training error",
     "slightly more difficult to overfit", "pooling", ("overlapping", "separate"),
     _gap, LOWER, NOTE),
)
# fmt: on

CLAIMS = [
    *(studied(*row) for row in ON_DIGITS),
    *(studied(*row, NOTE) for row in ON_CIFAR),
    *(studied(*row, NOTE, gap=True) for row in GAPS),
    *(paired(*row) for row in OTHERWISE),
]
