"""Claims of Krizhevsky et al. 2012 on errors, and on what its parts bring."""

from scripts.claims.claim import REENCODED, measured, not_run

RESULTS, TABLE_2 = "Krizhevsky 2012, 6", "Krizhevsky 2012, 6, table 2"
IMAGENET = "ImageNet is not at hand"

# id, source, claim, stated, why it is not run
# fmt: off
NOT_RUN = (
    ("alexnet-dropout-iterations", "Krizhevsky 2012, 4.2", "dropout's iterations",
     "about twice as many", "no study of it; it would need training until convergence"),
    ("alexnet-2010-ten-crops", RESULTS, "ILSVRC-2010 test, top-1 and top-5",
     "37.5% and 17.0%", IMAGENET),
    ("alexnet-2010-one-crop", "Krizhevsky 2012, 6, footnote 5", "the same with one crop",
     "39.0% and 18.3%", IMAGENET),
    ("alexnet-2012-one", TABLE_2, "ILSVRC-2012 validation, one network",
     "40.7% and 18.2%", f"{IMAGENET}; `--preset=paper` is the command"),
    ("alexnet-2012-five", TABLE_2, "five networks averaged", "38.1% and 16.4%", IMAGENET),
    ("alexnet-2012-pretrained", TABLE_2, "one network of six convolutions, pre-trained",
     "39.0% and 16.6%", f"{IMAGENET}, and a sixth convolution is not built"),
    ("alexnet-2012-seven", TABLE_2, "seven networks averaged", "36.7% and 15.4%", IMAGENET),
    ("alexnet-2010-sparse-coding", RESULTS, "ILSVRC-2010 test, averaged sparse coding",
     "47.1% and 28.2%", "only convolutional networks are built here"),
    ("alexnet-2010-fisher", RESULTS, "ILSVRC-2010 test, SIFT and Fisher vectors",
     "45.7% and 25.7%", "only convolutional networks are built here"),
    ("alexnet-2012-second", TABLE_2, "ILSVRC-2012 test, top-5, the second best", "26.2%",
     "only convolutional networks are built here"),
    ("alexnet-2012-five-test", TABLE_2, "ILSVRC-2012 test, top-5, five networks averaged",
     "16.4%", IMAGENET),
    ("alexnet-two-gpus-time", "Krizhevsky 2012, 3.2", "training on two GPUs, of one GPU's time",
     "slightly less", "no such GPUs"),
    ("alexnet-decay-training-error", "Krizhevsky 2012, 5", "weight decay and the training error",
     "lower with it", "no study of it"),
    ("alexnet-biases-accelerate", "Krizhevsky 2012, 5", "initial biases of 1, the first epochs",
     "faster with them", "no study of it"),
    ("alexnet-2012-test", TABLE_2, "ILSVRC-2012 test, top-5, the winner", "15.3%", IMAGENET),
    ("alexnet-2009", RESULTS, "Fall 2009 release, 10,184 classes", "67.4% and 40.9%", IMAGENET),
    ("alexnet-days", "Krizhevsky 2012, 1", "training on two GTX 580",
     "5 to 6 days", f"no such GPU, and {IMAGENET}"),
    ("alexnet-kernels-of-towers", "Krizhevsky 2012, 6.1", "conv1's kernels of the two GPUs",
     "one color-agnostic, one color-specific", IMAGENET),
)
# fmt: on

CLAIMS = [
    measured(
        "alexnet-ten-crops-gain",
        "Krizhevsky 2012, 6, footnote 5",
        "CIFAR-10, `cifar18`, 5 epochs: error by ten crops minus by one",
        "-1.5 points (ImageNet 2010: 39.0 to 37.5%)",
        arm=("alexnet", "cifar10", "cifar18"),
        value=lambda run: run["ten_crop_top1_error_pct"] - run["top1_error_pct"],
        expected=-1.5,
        tolerance=0.5,
        unit=" points",
        note=f", {REENCODED}",
    ),
    *(not_run(*row) for row in NOT_RUN),
]
