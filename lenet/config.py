"""Everything that a LeNet-5 run can be told, one flag each. The defaults are the `deck` preset."""

import dataclasses

from common.errors import UserError
from common.flags import setting


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's settings. Raises UserError where settings exclude each other."""

    # data
    dataset: str = setting(
        "mnist",
        "Prepared set of 28x28 or 32x32 images: mnist, fashion_mnist, emnist/balanced, mnist10k (embedded) ...",
    )
    data_dir: str = setting(
        "", "Folder of the prepared sets; $TFDS_DATA_DIR if empty.", changes_result=False
    )
    train_size: int = setting(
        0, "Train on the first N examples only; 0: on all that are not held out.", lower_bound=0
    )
    validation_size: int = setting(
        5000, "Hold out the last N training examples for validation.", lower_bound=0
    )
    track: str = setting(
        "validation",
        "What is scored after each epoch; `test` for the paper's curves.",
        choices=("validation", "test"),
    )
    scaling: str = setting(
        "unit",
        "Pixels to 0..1 (unit) or -0.1..1.175 (paper, section II.B: background and ink).",
        choices=("unit", "paper"),
    )
    distortions: str = setting(
        "none",
        "affine: the paper's translation, scaling, squeezing, shear (III.B); elastic: rotation and a smooth random warp too.",
        choices=("none", "affine", "elastic"),
    )
    distortion_strength: float = setting(
        1.0, "Factor on the distortions' ranges (lenet/data.py has them).", lower_bound=0.0
    )
    distorted_copies: int = setting(
        0,
        "0: a fresh distortion at every use. N: a fixed set of N distorted copies beside each original (the paper: 9).",
        lower_bound=0,
    )
    reshuffle: bool = setting(
        True, "A new order in every epoch; the paper has one constant random order."
    )

    # network
    c3: str = setting(
        "table",
        "Connections from S2 to C3: Table I, all of them, or drawn at random.",
        choices=("table", "dense", "random"),
    )
    activation: str = setting(
        "tanh",
        "Squashing function; scaled_tanh is eq. 6.",
        choices=("tanh", "scaled_tanh", "relu", "silu", "sigmoid"),
    )
    pooling: str = setting(
        "average",
        "S2 and S4: average (no parameters), trainable (the paper's coefficient and bias) or max.",
        choices=("average", "trainable", "max"),
    )
    output: str = setting(
        "softmax",
        "Linear layer and softmax, or distances to fixed digit bitmaps (eq. 7).",
        choices=("softmax", "rbf"),
    )
    initialization: str = setting(
        "sqrt_fan_in",
        "Weights uniform within 2.4 / sqrt F (sqrt_fan_in) or 2.4 / F (fan_in, the paper's text), F = inputs of the unit.",
        choices=("sqrt_fan_in", "fan_in"),
    )

    init_from: str = setting(
        "",
        "The folder of a run of the same network: start from the weights that its evaluation uses; empty: from new ones.",
    )

    # loss and optimizer
    loss: str = setting(
        "cross_entropy",
        "cross_entropy of the softmax; mse: eq. 8; map: eq. 9 (lenet/model.py has the formulas).",
        choices=("cross_entropy", "mse", "map"),
    )
    map_constant: float = setting(
        3.0,
        "j of eq. 9, the penalty of the rubbish class; the paper gives no value.",
        lower_bound=0.0,
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
        0.1,
        "Peak learning rate; with --schedule=paper a factor on the paper's rates.",
        lower_bound=0.0,
    )
    schedule: str = setting(
        "cosine",
        "Over the run: constant, cosine to zero, or the paper's rate for each pass.",
        choices=("constant", "cosine", "paper"),
    )
    warmup_epochs: float = setting(
        0.0, "Linear rise of the learning rate at the start (cosine only).", lower_bound=0.0
    )
    momentum: float = setting(0.9, "Momentum of sgd.", lower_bound=0.0, upper_bound=1.0)
    weight_decay: float = setting(
        0.0, "Weight decay of sgd (added to the gradient) and adamw (decoupled).", lower_bound=0.0
    )
    average_decay: float = setting(
        0.0,
        "Evaluate an exponential average of the weights with this decay per step; 0: the weights.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    curvature_examples: int = setting(
        500, "Examples, undistorted, for sdlm's curvature before each pass (III.B).", lower_bound=1
    )
    curvature_loss: str = setting(
        "mse",
        "Loss whose curvature sdlm uses: that of eq. 8 or that of --loss (lenet/README.md says why).",
        choices=("mse", "same"),
    )

    # run
    batch_size: int = setting(128, "Examples per update, over all devices together.", lower_bound=1)
    num_epochs: int = setting(
        20,
        "Passes over the training set; distorted copies do not make a pass longer.",
        lower_bound=1,
    )
    seed: int = setting(
        0, "Decides initial weights, order and distortions.", lower_bound=0, upper_bound=2**32 - 1
    )
    compute_dtype: str = setting(
        "float32",
        "What layers compute in; weights, losses, sums and updates are float32 either way.",
        choices=("float32", "bfloat16"),
    )
    parallel: str = setting(
        "jit",
        "jit over a mesh of all devices, or pmap; same numbers within float tolerance.",
        choices=("jit", "pmap"),
        changes_result=False,
    )
    reduction: str = setting(
        "fast",
        "fast: a batch is summed up as the devices like; fixed: in one order, with the same bits on 1, 2, 4 and 8 devices, and "
        "in every run on a GPU.",
        choices=("fast", "fixed"),
    )
    save_every_epochs: int = setting(
        1, "A checkpoint after every N epochs.", lower_bound=1, changes_result=False
    )

    def __post_init__(self):
        if self.optimizer == "sdlm" and (self.pooling, self.output) != ("trainable", "rbf"):
            raise UserError(
                "--optimizer=sdlm is written for the paper's layers: it needs --pooling=trainable and --output=rbf"
            )
        if self.optimizer != "sgd" and self.momentum:
            raise UserError(
                f"--momentum={self.momentum} is for --optimizer=sgd; add --momentum=0 to --optimizer={self.optimizer}"
            )
        if self.optimizer == "sdlm" and self.weight_decay:
            raise UserError("--optimizer=sdlm has no weight decay; add --weight_decay=0")
        if self.label_smoothing and self.loss != "cross_entropy":
            raise UserError(f"--label_smoothing needs --loss=cross_entropy, not --loss={self.loss}")
        if self.warmup_epochs and self.schedule != "cosine":
            raise UserError(
                f"--warmup_epochs needs --schedule=cosine, not --schedule={self.schedule}"
            )
        if self.warmup_epochs >= self.num_epochs:
            raise UserError(
                f"--warmup_epochs={self.warmup_epochs} leaves nothing of --num_epochs={self.num_epochs}"
            )
        for name in ("average_decay", "momentum", "label_smoothing"):
            if getattr(self, name) == 1.0:
                raise UserError(f"--{name}=1 would learn nothing; allowed: 0 to below 1")
        if self.distorted_copies and self.distortions == "none":
            raise UserError(
                f"--distorted_copies={self.distorted_copies} needs --distortions=affine or elastic"
            )
        if self.track == "validation" and not self.validation_size:
            raise UserError(
                "--validation_size=0 leaves nothing to validate on; add --track=test to score the test split instead"
            )
