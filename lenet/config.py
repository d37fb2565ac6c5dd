"""The settings of a LeNet-5 run, one flag each. The defaults are the preset `deck`."""

import dataclasses

from common.errors import UserError
from common.flags import setting
from common.refusals import conflict, require_tracked_fits, require_warmup_fits


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's settings. Raises UserError where settings exclude each other."""

    dataset: str = setting(
        "mnist",
        "Prepared set of 28x28 or 32x32 images: mnist10k (included), mnist, fashion_mnist, kmnist, "
        "emnist/balanced ...",
        section="Data",
    )
    data_dir: str = setting(
        "", "Folder of the prepared sets; $TFDS_DATA_DIR if empty.", changes_result=False
    )
    classes: str = setting(
        "", "Names of the classes to use, in this order: cat,dog; all if empty. For sets in memory."
    )
    train_size: int = setting(
        0, "Train on the first N examples only; 0: all that are not held out.", lower_bound=0
    )
    train_per_class: int = setting(
        0, "Of these the first N of each class only; 0: all. For sets in memory.", lower_bound=0
    )
    validation_size: int = setting(
        5000, "Hold out the last N training examples for validation.", lower_bound=0
    )
    track: str = setting(
        "validation",
        "The split scored after each epoch; test for curves like the paper's.",
        choices=("validation", "test"),
    )
    scaling: str = setting(
        "unit",
        "Pixels to 0..1 (unit), -0.1 for background to 1.175 for ink (paper, II.B), or 0..2.55 "
        "(hundredths, Lush).",
        choices=("unit", "paper", "hundredths"),
    )
    distortions: str = setting(
        "none",
        "affine: the paper's translation, scaling, squeezing and shear (III.B); elastic: rotation "
        "and a smooth random warp as well.",
        choices=("none", "affine", "elastic"),
    )
    distortion_strength: float = setting(
        1.0, "Factor on the ranges of the distortions (lenet/data.py).", lower_bound=0.0
    )
    distorted_copies: int = setting(
        0,
        "0: a new distortion at every use; N: N fixed distorted copies of each image (paper: 9).",
        lower_bound=0,
        upper_bound=1000,
    )
    shuffle: bool = setting(True, "Random order; otherwise that of the prepared set.")
    reshuffle: bool = setting(True, "A new order each epoch; the paper keeps one random order.")

    c3: str = setting(
        "table",
        "Connections from S2 to C3: Table I, all, or random.",
        section="Network",
        choices=("table", "dense", "random"),
    )
    activation: str = setting(
        "tanh",
        "Nonlinearity; scaled_tanh is eq. 6.",
        choices=("tanh", "scaled_tanh", "relu", "silu", "sigmoid"),
    )
    pooling: str = setting(
        "average",
        "S2 and S4: average, trainable (the paper's coefficient and bias), or max.",
        choices=("average", "trainable", "max"),
    )
    subsampling: str = setting(
        "average",
        "What trainable pooling scales: the average (II.A) or the sum (II.B; Lush) of the four.",
        choices=("average", "sum"),
    )
    output: str = setting(
        "softmax",
        "A linear layer and softmax; distances to fixed bitmaps of digits (rbf, eq. 7); or, on C5 "
        "without F6, units squashed like all others (squashed, Lush).",
        choices=("softmax", "rbf", "squashed"),
    )
    codes: str = setting(
        "distance13",
        "The bitmaps of rbf outputs, by the pixels in which the closest two differ.",
        choices=("distance13", "distance25"),
    )
    initialization: str = setting(
        "sqrt_fan_in",
        "Weights uniform within 2.4 / sqrt(F), 2.4 / F (the paper's text) or 1 / sqrt(F) (Lush), "
        "F the fan-in.",
        choices=("sqrt_fan_in", "fan_in", "one_over_sqrt_fan_in"),
    )
    init_from: str = setting(
        "",
        "Run folder of the same network: start from the weights it is evaluated with; RUN@best or "
        "RUN@600: from those of that checkpoint. Outputs for classes it does not know are new.",
    )
    freeze: str = setting(
        "none", "Layers that do not learn: none, conv, all_but_head, or their names: c1,c3."
    )

    loss: str = setting(
        "cross_entropy",
        "cross_entropy of the softmax, mse (of rbf: eq. 8), map (eq. 9); formulas: lenet/model.py.",
        section="Optimization",
        choices=("cross_entropy", "mse", "map"),
    )
    map_constant: float = setting(
        3.0, "j of eq. 9, penalty of the rubbish class; not in the paper.", lower_bound=0.0
    )
    label_smoothing: float = setting(
        0.0, "Share of the target spread over all classes.", lower_bound=0.0, upper_bound=1.0
    )
    optimizer: str = setting(
        "sgd",
        "sgd with momentum, adamw, or sdlm, the paper's second-order rule (appendix C).",
        choices=("sgd", "adamw", "sdlm"),
    )
    learning_rate: float = setting(
        0.1, "Peak learning rate; a factor with --schedule=paper.", lower_bound=0.0
    )
    head_rate: float = setting(
        1.0, "Factor on the learning rate of the last layer.", lower_bound=0.0
    )
    schedule: str = setting(
        "cosine",
        "Learning rate: constant, cosine to zero, the paper's for each pass, or divided by ten "
        "after each third of the passes (thirds, Lush).",
        choices=("constant", "cosine", "paper", "thirds"),
    )
    warmup_epochs: float = setting(0.0, "Linear warm-up (cosine only).", lower_bound=0.0)
    momentum: float = setting(0.9, "Momentum of sgd.", lower_bound=0.0, upper_bound=1.0)
    weight_decay: float = setting(
        0.0, "Weight decay of sgd (added to the gradient) and adamw (decoupled).", lower_bound=0.0
    )
    average_decay: float = setting(
        0.0,
        "Evaluate an exponential moving average of the weights, with this decay per step; 0: none.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    curvature_examples: int = setting(
        500, "Undistorted examples for sdlm's curvature (III.B).", lower_bound=1
    )
    curvature_every_epochs: int = setting(
        1, "sdlm's curvature is estimated before every N passes.", lower_bound=1
    )
    curvature_loss: str = setting(
        "mse",
        "The loss whose curvature sdlm uses: eq. 8, or the same as --loss (lenet/README.md).",
        choices=("mse", "same"),
    )

    batch_size: int = setting(
        128, "Examples per update, over all devices.", section="Run", lower_bound=1
    )
    num_epochs: int = setting(
        20, "Passes over the training set, copies not counted.", lower_bound=1, upper_bound=10**6
    )
    stop_at_train_error_pct: float = setting(
        0.0,
        "End after the first epoch whose mean training error is at or below this; 0: never.",
        lower_bound=0.0,
        upper_bound=100.0,
    )
    stop_at_validation_error_pct: float = setting(
        0.0, "The same for the validation error.", lower_bound=0.0, upper_bound=100.0
    )
    seed: int = setting(
        0, "Seed of weights, order and distortions.", lower_bound=0, upper_bound=2**32 - 1
    )
    compute_dtype: str = setting(
        "float32",
        "Type that layers compute in; weights, losses, sums and updates are float32.",
        choices=("float32", "bfloat16"),
    )
    parallel: str = setting(
        "jit",
        "jit over a mesh of all devices, or pmap; equal within float tolerance.",
        choices=("jit", "pmap"),
        changes_result=False,
    )
    reduction: str = setting(
        "fast",
        "fast: all-reduce, order unspecified; fixed: the same order everywhere, bit-identical on "
        "1, 2, 4 and 8 devices and in every run on a GPU, slower.",
        choices=("fast", "fixed"),
    )
    save_every_epochs: int = setting(
        1, "A checkpoint every N epochs.", lower_bound=1, changes_result=False
    )
    keep: int = setting(
        3, "Keep the newest N checkpoints; the best too.", lower_bound=1, changes_result=False
    )

    @property
    def rate_needs_length(self) -> bool:
        """Whether the learning rates depend on --num_epochs."""
        return self.schedule in ("cosine", "thirds")

    def __post_init__(self):
        if self.optimizer == "sdlm" and self.pooling != "trainable":
            ways = ("--pooling=trainable", "--optimizer=sgd")
            raise conflict("--optimizer=sdlm needs trainable pooling", *ways)
        if self.optimizer == "sdlm" and self.output == "softmax":
            ways = ("--output=rbf", "--output=squashed", "--optimizer=sgd")
            raise conflict("--optimizer=sdlm has no rule for --output=softmax", *ways)
        if self.subsampling != "average" and self.pooling != "trainable":
            ways = ("--pooling=trainable", "--subsampling=average")
            raise conflict(f"--subsampling={self.subsampling} needs trainable pooling", *ways)
        if self.codes != "distance13" and self.output != "rbf":
            ways = ("--output=rbf", "--codes=distance13")
            raise conflict(f"--codes={self.codes} needs --output=rbf", *ways)
        if self.output == "rbf" and self.head_rate != 1:
            ways = ("--head_rate=1", "--output=softmax")
            raise conflict("--head_rate is not for --output=rbf, whose codes do not learn", *ways)
        if self.output == "squashed" and self.loss != "mse":
            ways = ("--loss=mse", "--output=softmax")
            raise conflict(f"--output=squashed has no --loss={self.loss}", *ways)
        if self.reshuffle and not self.shuffle:
            raise conflict("--noshuffle leaves nothing to reshuffle", "--noreshuffle", "--shuffle")
        if self.optimizer != "sgd" and self.momentum:
            ways = ("--momentum=0", "--optimizer=sgd")
            raise conflict(f"--momentum is not for --optimizer={self.optimizer}", *ways)
        if self.optimizer == "sdlm" and self.weight_decay:
            ways = ("--weight_decay=0", "--optimizer=sgd")
            raise conflict("--optimizer=sdlm has no weight decay", *ways)
        if self.label_smoothing and self.loss != "cross_entropy":
            ways = ("--loss=cross_entropy", "--label_smoothing=0")
            raise conflict(f"--label_smoothing is not for --loss={self.loss}", *ways)
        require_warmup_fits(self)
        shares = dict(average_decay=self.average_decay, momentum=self.momentum)
        for name, value in (shares | dict(label_smoothing=self.label_smoothing)).items():
            if value == 1.0:
                raise UserError(f"--{name}=1 learns nothing: it must be less than 1")
        if self.distorted_copies and self.distortions == "none":
            ways = ("--distortions=affine", "--distortions=elastic", "--distorted_copies=0")
            raise conflict("--distorted_copies needs --distortions", *ways)
        require_tracked_fits(self)
