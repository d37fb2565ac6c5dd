"""Claims of Krizhevsky et al. 2012 on errors, and on what its parts bring."""

from scripts.claims.claim import REENCODED, measured, not_run, says, studied, within

RESULTS, TABLE_2 = "Krizhevsky 2012, 6", "Krizhevsky 2012, 6, table 2"
IMAGENET = "ImageNet is not at hand"
NOTE = f", {REENCODED}"
CIFAR = "on CIFAR-10 here; "

CLAIMS = [
    # ---- what the parts bring
    studied(
        *("alexnet-relu-factor", "Krizhevsky 2012, 3.1, Fig. 1"),
        "ReLU's epochs to 25% training error on CIFAR-10, of tanh's",
        "six times faster: x0.17",
        study="relu_vs_tanh",
        arms=("tanh", "relu"),
        agrees=within(1 / 6.5, 1 / 5.5),
        note=NOTE,
    ),
    studied(
        *("alexnet-lrn", "Krizhevsky 2012, 3.3"),
        f"{CIFAR}normalization against none, `small`",
        "-1.4 points top-1, -1.2 top-5 (ImageNet)",
        study="lrn_small",
        arms=("none", "across"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-lrn-cifar18", "Krizhevsky 2012, 3.3"),
        "CIFAR-10, `cifar18`: normalization within maps against none",
        "lower test error",
        study="lrn_cifar18",
        arms=("none", "within_map"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-lrn-cifar13", "Krizhevsky 2012, 3.3"),
        "CIFAR-10, a four-layer network: with normalization against without",
        "11% against 13%",
        study="cifar13",
        arms=("none", "across"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-overlapping-gain", "Krizhevsky 2012, 3.4"),
        f"{CIFAR}overlapping pools against not overlapping",
        "-0.4 points top-1, -0.3 top-5 (ImageNet)",
        study="pooling",
        arms=("separate", "overlapping"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-towers-gain", "Krizhevsky 2012, 3.2"),
        f"{CIFAR}two towers against one of half the kernels",
        "-1.7 points top-1, -1.2 top-5 (ImageNet)",
        study="towers",
        arms=("one", "two"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-color-gain", "Krizhevsky 2012, 4.1"),
        f"{CIFAR}color noise against none",
        "over 1 point less, top-1 (ImageNet)",
        study="color",
        arms=("none", "color"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-depth", "Krizhevsky 2012, 1 and 7"),
        f"{CIFAR}a middle convolution removed",
        "about 2 points more, top-1 (ImageNet)",
        study="depth",
        arms=("all", "without_conv4"),
        agrees=says("higher"),
        note=NOTE,
    ),
    studied(
        *("alexnet-augmentation", "Krizhevsky 2012, 4.1"),
        f"{CIFAR}crops and reflections against none",
        "substantial overfitting without",
        study="augmentation",
        arms=("none", "crop_flip"),
        agrees=says("lower"),
        note=NOTE,
    ),
    studied(
        *("alexnet-dropout", "Krizhevsky 2012, 4.2"),
        f"{CIFAR}dropout against none",
        "substantial overfitting without",
        study="dropout",
        arms=("none", "dropout"),
        agrees=says("lower"),
        note=NOTE,
    ),
    measured(
        *("alexnet-ten-crops-gain", "Krizhevsky 2012, 4.1 and 6.1"),
        "CIFAR-10, `cifar18`, 5 epochs: error by ten crops minus by one",
        "-1.5 points (ImageNet 2010: 39.0 to 37.5%)",
        arm=("alexnet", "cifar10", "cifar18"),
        values=lambda runs: [
            run["ten_crop_top1_error_pct"] - run["top1_error_pct"] for run in runs
        ],
        expected=-1.5,
        tolerance=0.5,
        unit=" points",
        note=NOTE,
    ),
    not_run(
        *("alexnet-dropout-iterations", "Krizhevsky 2012, 4.2", "dropout's iterations"),
        *("about twice as many", "no study of it; it would need training until convergence"),
    ),
    # ---- ImageNet
    not_run(
        *("alexnet-2010-ten-crops", RESULTS, "ILSVRC-2010 test, top-1 and top-5"),
        *("37.5% and 17.0%", IMAGENET),
    ),
    not_run(
        *("alexnet-2010-one-crop", "Krizhevsky 2012, 4.1", "the same with one crop"),
        *("39.0% and 18.3%", IMAGENET),
    ),
    not_run(
        *("alexnet-2012-one", TABLE_2, "ILSVRC-2012 validation, one network"),
        *("40.7% and 18.2%", f"{IMAGENET}; `--preset=paper` is the command"),
    ),
    not_run(*("alexnet-2012-five", TABLE_2, "five networks averaged", "38.1% and 16.4%"), IMAGENET),
    not_run(
        *("alexnet-2012-pretrained", TABLE_2, "one network of six convolutions, pre-trained"),
        *("39.0% and 16.6%", f"{IMAGENET}, and a sixth convolution is not built"),
    ),
    not_run(
        *("alexnet-2012-seven", TABLE_2, "seven networks averaged", "36.7% and 15.4%"), IMAGENET
    ),
    not_run(
        *("alexnet-2012-test", TABLE_2, "ILSVRC-2012 test, top-5, the winner", "15.3%"), IMAGENET
    ),
    not_run(
        *("alexnet-2009", RESULTS, "Fall 2009 release, 10,184 classes"),
        *("67.4% and 40.9%", IMAGENET),
    ),
    not_run(
        *("alexnet-days", "Krizhevsky 2012, 1", "training on two GTX 580"),
        *("5 to 6 days", f"no such GPU, and {IMAGENET}"),
    ),
    not_run(
        *("alexnet-kernels-of-towers", "Krizhevsky 2012, 6.1", "conv1's kernels of the two GPUs"),
        *("one color-agnostic, one color-specific", IMAGENET),
    ),
]
