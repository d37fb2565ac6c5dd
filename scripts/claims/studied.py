"""Claims that a study decides, with its arms as scripts/studies/catalog.py names them."""

from scripts.claims.claim import REENCODED, says, studied, within

LOWER, HIGHER, SAME = says("lower"), says("higher"), says("no difference")
NO_HIGHER = says("lower", "no difference")
NOTE = f", {REENCODED}"

# id, source, claim, stated, study, (arm, base), what the verdict on arm against base must be
# fmt: off
ON_DIGITS = (
    ("deck-lenet-sparse-error", "deck, LeNet-5, third layer", "Table I against dense, test error",
     "breaks the symmetry: no worse", "c3_table", ("table", "dense"), NO_HIGHER),
    ("deck-lenet-random-table", "deck, LeNet-5, Table I", "the table against as many at random",
     "designed subsets: no worse", "c3_table", ("table", "random"), NO_HIGHER),
    ("deck-max-pooling", "deck, AlexNet, architecture", "max against average pooling, LeNet-5",
     "retains important features", "lenet_pooling", ("max", "average"), LOWER),
    ("deck-relu-tanh-error", "deck, AlexNet, architecture", "ReLU against tanh, LeNet-5",
     "superior performance", "lenet_activation", ("relu", "tanh"), LOWER),
    ("lenet-initial-weights-matter", "LeCun 1998, III.B", "initial weights, test error",
     "2.4 / F, no worse than 2.4 / √F",
     "lenet_init", ("2.4_over_fan_in", "2.4_over_sqrt"), NO_HIGHER),
    ("lenet-training-set-half", "LeCun 1998, Fig. 6", "60,000 instead of 30,000 digits",
     "lower test error", "training_set_size", ("60000", "30000"), LOWER),
    ("lenet-training-set-quarter", "LeCun 1998, Fig. 6", "60,000 instead of 15,000 digits",
     "lower test error", "training_set_size", ("60000", "15000"), LOWER),
    ("lenet-map-loss", "LeCun 1998, II.C", "eq. 9 instead of eq. 8, test error",
     "discriminative: better", "lenet_loss", ("eq9_j3", "eq8"), LOWER),
    ("lenet-sum-or-average", "LeCun 1998, II.A and II.B", "the sum instead of the average",
     "the same unit", "subsampling", ("sum", "average"), SAME),
    ("lenet-bitmaps", "LeCun 1998, Fig. 3", "bitmaps of 0 and 6 that are further apart",
     "stylized images, chosen by hand", "codes", ("distance25", "distance13"), SAME),
    ("lenet-scaled-tanh", "LeCun 1998, appendix A", "1.7159 tanh(2/3 a) instead of tanh",
     "better convergence", "lenet_activation", ("scaled_tanh", "tanh"), LOWER),
    ("lenet-sdlm", "LeCun 1998, appendix C", "second-order rates instead of plain SGD, test error",
     "faster learning", "lenet_optimizer", ("sdlm", "sgd"), LOWER),
)
ON_CIFAR = (
    ("deck-relu-factor", "deck, AlexNet, ReLU",
     "ReLU's iterations to 25% training error on CIFAR-10, of tanh's",
     "almost six times faster: x0.17", "relu_vs_tanh", ("relu", "tanh"), within(1 / 6.5, 1 / 5)),
    ("deck-dropout-overfitting", "deck, AlexNet, dropout", "dropout against none, test error",
     "prevents overfitting", "dropout", ("dropout", "none"), LOWER),
    ("deck-alexnet-accuracy", "deck, AlexNet, why", "AlexNet against LeNet-5 on CIFAR-10",
     "higher accuracy than previous CNNs", "lenet_vs_alexnet", ("alexnet", "lenet"), LOWER),
    ("alexnet-relu-factor", "Krizhevsky 2012, 3.1, Fig. 1",
     "ReLU's epochs to 25% training error on CIFAR-10, of tanh's",
     "six times faster: x0.17", "relu_vs_tanh", ("relu", "tanh"), within(1 / 6.5, 1 / 5.5)),
    ("alexnet-lrn", "Krizhevsky 2012, 3.3", "on CIFAR-10 here; normalization against none, `small`",
     "-1.4 points top-1, -1.2 top-5 (ImageNet)", "lrn_small", ("across", "none"), LOWER),
    ("alexnet-lrn-cifar18", "Krizhevsky 2012, 3.3",
     "CIFAR-10, `cifar18`: normalization within maps against none",
     "lower test error", "lrn_cifar18", ("within_map", "none"), LOWER),
    ("alexnet-lrn-cifar13", "Krizhevsky 2012, 3.3",
     "CIFAR-10, a four-layer network: with normalization against without",
     "11% against 13%", "cifar13", ("across", "none"), LOWER),
    ("alexnet-overlapping-gain", "Krizhevsky 2012, 3.4",
     "on CIFAR-10 here; overlapping pools against not overlapping",
     "-0.4 points top-1, -0.3 top-5 (ImageNet)", "pooling", ("overlapping", "separate"), LOWER),
    ("alexnet-towers-gain", "Krizhevsky 2012, 3.2",
     "on CIFAR-10 here; two towers against one of half the kernels",
     "-1.7 points top-1, -1.2 top-5 (ImageNet)", "towers", ("two", "one"), LOWER),
    ("alexnet-color-gain", "Krizhevsky 2012, 4.1", "on CIFAR-10 here; color noise against none",
     "over 1 point less, top-1 (ImageNet)", "color", ("color", "none"), LOWER),
    ("alexnet-depth", "Krizhevsky 2012, 1 and 7", "on CIFAR-10 here; a middle convolution removed",
     "about 2 points more, top-1 (ImageNet)", "depth", ("without_conv4", "all"), HIGHER),
    ("alexnet-augmentation", "Krizhevsky 2012, 4.1",
     "on CIFAR-10 here; crops and reflections against none",
     "substantial overfitting without", "augmentation", ("crop_flip", "none"), LOWER),
    ("alexnet-dropout", "Krizhevsky 2012, 4.2", "on CIFAR-10 here; dropout against none",
     "substantial overfitting without", "dropout", ("dropout", "none"), LOWER),
)
# The same with three arms, the lowest first, and the note on CIFAR-10's images where it applies.
IN_ORDER = (
    ("deck-relu-sigmoid-error", "deck, AlexNet, architecture", "ReLU, tanh, sigmoid in LeNet-5",
     "ReLU superior to both", "lenet_activation", ("relu", "tanh", "sigmoid"), LOWER),
    ("deck-relu-sigmoid", "deck, AlexNet, ReLU", "iterations of ReLU, tanh, sigmoid to that error",
     "faster than both", "relu_vs_tanh", ("relu", "tanh", "sigmoid"), LOWER, NOTE),
)
# fmt: on

CLAIMS = [
    *(studied(*row) for row in ON_DIGITS),
    *(studied(*row, NOTE) for row in ON_CIFAR),
    *(studied(*row) for row in IN_ORDER),
]
