"""The settings of an AlexNet run, one flag each. The defaults are the preset `deck`."""

import dataclasses
import re

from common.errors import UserError
from common.flags import changes, setting, text_of
from common.parallel import has_model_axis
from common.refusals import conflict, require_tracked_fits, require_warmup_fits

# Settings that the CIFAR-10 networks do not have.
ALEXNET_ONLY = (
    "widths", "conv1_padding", "conv4", "norm_order", "dropout_at", "dropout_scaling",
    "initialization", "hidden_bias",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's settings. Raises UserError where settings exclude each other."""

    dataset: str = setting(
        "imagenet_256", "Prepared set: imagenet_256, cifar10 ...; fake: noise.", section="Data"
    )
    data_dir: str = setting(
        "", "Folder of the prepared sets; $TFDS_DATA_DIR if empty.", changes_result=False
    )
    train_split: str = setting("train", "Split, or slice of one, to train and validate on.")
    test_split: str = setting(
        "", "Split scored at the end; if empty `test`, or `validation` if the set has no `test`."
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
        10_000, "Hold out the last N training examples for validation.", lower_bound=0
    )
    track: str = setting(
        "validation",
        "The split scored after each epoch; test for curves like the paper's.",
        choices=("validation", "test"),
    )
    allow_overlap: bool = setting(
        False,
        "Start a run whose training, validation and test examples share records: their errors are "
        "not those of unseen images.",
        changes_result=False,
    )
    num_classes: int = setting(0, "Outputs of the network; 0: the set's classes.", lower_bound=0)
    scaling: str = setting(
        "mean_image",
        "Pixels (0 to 255) minus the mean image (2), or each channel to mean 0 and deviation 1.",
        choices=("mean_image", "standardized"),
    )
    crop_size: int = setting(
        227, "Height and width of the network's input.", lower_bound=1, upper_bound=4096
    )
    pad: int = setting(
        0, "Pixels of padding (the mean) before a random crop.", lower_bound=0, upper_bound=4096
    )
    augmentation: str = setting(
        "crop_flip",
        "none: the center crop; crop_flip: random crops and reflections (4.1); resized_crop_flip: "
        "of random size and shape too.",
        choices=("none", "crop_flip", "resized_crop_flip"),
    )
    mirror: str = setting(
        "color",
        "Where crops are mirrored at random, and in ten crops: in sets with color, as gray ones "
        "may be digits; always; never.",
        choices=("color", "always", "never"),
    )
    color_pca: bool = setting(True, "Noise along the principal components of RGB values (4.1).")

    net: str = setting(
        "alexnet",
        "AlexNet, or one of cuda-convnet's CIFAR-10 networks.",
        section="Network",
        choices=("alexnet", "cifar18", "cifar13"),
    )
    widths: str = setting(
        "2012",
        "Kernels of conv1 to fc7: 2012, one_weird_trick (torchvision's), narrow for few photos, "
        "small for 32x32 images, or half_small, with half of small's in conv1 to conv4.",
        choices=("2012", "one_weird_trick", "narrow", "small", "half_small"),
    )
    conv4: bool = setting(True, "Has conv4; without it the network is less deep (7).")
    conv1_padding: str = setting(
        "none",
        "Zeros around conv1's input: none, 3 at the bottom and right (2012 code), or 2 each side.",
        choices=("none", "bottom_right", "symmetric"),
    )
    towers: int = setting(
        1, "2: conv2, conv4, conv5 see half of the maps (3.2).", lower_bound=1, upper_bound=2
    )
    lrn: str = setting(
        "across",
        "Local response normalization (3.3) over neighboring maps, across or within towers, or "
        "over pixels (within_map).",
        choices=("none", "within_tower", "across", "within_map"),
    )
    lrn_size: int = setting(
        5, "n of 3.3: maps, or pixels a side, in the sum; odd.", lower_bound=1, upper_bound=1023
    )
    lrn_alpha: float = setting(1e-4, "alpha of 3.3.", lower_bound=0.0)
    lrn_alpha_over_n: bool = setting(
        False, "Divide alpha by the number of terms, like the 2012 code, Caffe and PyTorch."
    )
    lrn_k: float = setting(2.0, "k of 3.3; Caffe: 1.", lower_bound=1e-6)
    norm_order: str = setting(
        "pool_norm",
        "Normalization before pooling (paper), after (deck), or as in the 2012 code.",
        choices=("norm_pool", "pool_norm", "code2012"),
    )
    activation: str = setting(
        "relu", "Nonlinearity of all hidden layers (3.1).", choices=("relu", "tanh", "sigmoid")
    )
    pooling: str = setting(
        "overlapping",
        "3x3 windows with stride 2 (3.4), or 2x2 windows with stride 2 and the same output size.",
        choices=("overlapping", "non_overlapping"),
    )
    dropout: float = setting(0.5, "Dropout rate (4.2).", lower_bound=0.0, upper_bound=1.0)
    dropout_at: str = setting(
        "before",
        "Dropout on the inputs (deck) or outputs (paper) of fc6 and fc7.",
        choices=("before", "after"),
    )
    dropout_scaling: str = setting(
        "test",
        "Scale by 1 - dropout in the test (paper), or by its inverse in training.",
        choices=("test", "training"),
    )
    initialization: str = setting(
        "paper",
        "Initial weights: normal as in the paper, Caffe or the 2012 code; he; torch: its default.",
        choices=("paper", "caffe", "code2012", "he", "torch"),
    )
    hidden_bias: float = setting(
        0.1, "Initial biases of conv2, conv4, conv5, fc6 and fc7; paper: 1, Caffe: 0.1."
    )
    init_from: str = setting(
        "",
        "Run folder of the same network: start from the weights it is evaluated with; RUN@best or "
        "RUN@600: from those of that checkpoint. Outputs for classes it does not know are new.",
    )
    freeze: str = setting(
        "none", "Layers that do not learn: none, conv, all_but_head, or their names: conv1,fc6."
    )

    label_smoothing: float = setting(
        0.0, "Label smoothing.", section="Optimization", lower_bound=0.0, upper_bound=1.0
    )
    optimizer: str = setting(
        "paper",
        "paper: section 5, the rate inside the velocity; sgd: the rate outside it; adamw.",
        choices=("paper", "sgd", "adamw"),
    )
    learning_rate: float = setting(0.01, "Initial (cosine: peak) learning rate.", lower_bound=0.0)
    head_rate: float = setting(
        1.0, "Factor on the learning rate of the last layer.", lower_bound=0.0
    )
    schedule: str = setting(
        "plateau",
        "Rate divided by 10 when the validation error stops improving (plateau) or at "
        "--drop_epochs (epochs); cosine to zero; or constant.",
        choices=("plateau", "epochs", "cosine", "constant"),
    )
    patience: int = setting(
        5,
        "plateau: epochs without a new best validation error before a drop.",
        lower_bound=1,
        upper_bound=1_000_000,
    )
    num_drops: int = setting(
        3, "plateau: number of drops; paper: 3.", lower_bound=0, upper_bound=1_000_000
    )
    drop_epochs: str = setting("", "epochs: the epochs after which the rate drops: 30,60.")
    warmup_epochs: float = setting(0.0, "cosine: linear warm-up.", lower_bound=0.0)
    momentum: float = setting(
        0.9, "Momentum of `paper` and `sgd`.", lower_bound=0.0, upper_bound=1.0
    )
    weight_decay: float = setting(
        0.0005,
        "Weight decay, times the rate; in cifar18 and cifar13 times each layer's factor.",
        lower_bound=0.0,
    )
    decay_biases: bool = setting(True, "Weight decay of biases too; the paper does not say.")
    bias_rate_factor: float = setting(
        1.0, "Learning rate of biases over that of weights; 2012 code, Caffe: 2.", lower_bound=0.0
    )
    drop_bias_rate: bool = setting(True, "Drop the biases' rate too; the 2012 code does not.")
    average_decay: float = setting(
        0.0,
        "Evaluate an exponential moving average of the weights, with this decay per step; 0: none.",
        lower_bound=0.0,
        upper_bound=1.0,
    )

    batch_size: int = setting(
        128, "Examples per update, over all devices.", section="Run", lower_bound=1
    )
    num_epochs: int = setting(90, "Passes over the training set.", lower_bound=1, upper_bound=10**6)
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
        0, "Seed of weights, order, augmentation, dropout.", lower_bound=0, upper_bound=2**32 - 1
    )
    ten_crop: bool = setting(
        True, "Also score the test split by ten crops at the end (4.1).", changes_result=False
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
    mesh: str = setting(
        "", "Devices per axis: data:4,model:2; model splits fc6 to fc8.", changes_result=False
    )
    num_workers: int = setting(
        2, "Threads that read streamed sets; 0: no read-ahead.", lower_bound=0, changes_result=False
    )
    # Decides whether there is a result, not which: a run that ended by it may go on with more.
    max_bad_records: int = setting(
        0,
        "Corrupt records of a streamed set that are tolerated: training takes the next intact one "
        "instead, scores leave them out.",
        lower_bound=0,
        changes_result=False,
    )
    log_every_steps: int = setting(
        20, "A line of metrics every N steps.", lower_bound=1, changes_result=False
    )
    save_every_epochs: int = setting(
        1, "A checkpoint every N epochs.", lower_bound=1, changes_result=False
    )
    save_every_steps: int = setting(
        2000, "A checkpoint every N steps as well.", lower_bound=1, changes_result=False
    )
    keep: int = setting(
        3, "Keep the newest N checkpoints; the best too.", lower_bound=1, changes_result=False
    )

    @property
    def rate_needs_length(self) -> bool:
        """Whether the learning rates depend on --num_epochs."""
        return self.schedule == "cosine"

    def __post_init__(self):
        if self.optimizer == "adamw" and self.momentum:
            ways = ("--momentum=0", "--optimizer=sgd")
            raise conflict(f"--momentum={self.momentum} is not for --optimizer=adamw", *ways)
        require_warmup_fits(self)
        if self.drop_epochs and self.schedule != "epochs":
            ways = ("--drop_epochs=", "--schedule=epochs")
            schedule = f"--schedule={self.schedule}"
            raise conflict(f"{schedule} has no drops, --schedule=epochs has", *ways)
        if self.schedule == "epochs" and not self.drop_epochs:
            ways = ("--drop_epochs=30,60", "--schedule=constant")
            raise conflict("--schedule=epochs needs --drop_epochs", *ways)
        if self.drop_epochs and not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", self.drop_epochs):
            raise UserError(f"--drop_epochs={self.drop_epochs} must be numbers such as 30,60")
        if len(set(self.drop_epoch_numbers)) < len(self.drop_epoch_numbers):
            raise UserError(f"--drop_epochs={self.drop_epochs} names an epoch twice")
        if not self.drop_bias_rate and self.schedule not in ("plateau", "epochs"):
            ways = ("--drop_bias_rate", "--schedule=plateau")
            raise conflict("--nodrop_bias_rate needs --schedule=plateau or epochs", *ways)
        shares = dict(average_decay=self.average_decay, momentum=self.momentum)
        shares |= dict(label_smoothing=self.label_smoothing, dropout=self.dropout)
        for name, value in shares.items():
            if value == 1.0:
                raise UserError(f"--{name}=1 learns nothing: it must be less than 1")
        require_tracked_fits(self)
        if self.schedule == "plateau" and self.track == "test":
            ways = ("--track=validation", "--schedule=constant")
            raise conflict("--schedule=plateau needs the validation error", *ways)
        if self.lrn_size % 2 == 0:
            raise UserError(f"--lrn_size={self.lrn_size} must be odd")
        if self.initialization == "torch" and self.hidden_bias:
            ways = ("--hidden_bias=0", "--initialization=he")
            raise conflict("--initialization=torch draws the biases too", *ways)
        if self.pad and self.augmentation != "crop_flip":
            ways = ("--augmentation=crop_flip", "--pad=0")
            raise conflict(f"--pad={self.pad} is not for --augmentation={self.augmentation}", *ways)
        if self.lrn == "within_tower" and self.towers == 1:
            ways = ("--towers=2", "--lrn=across")
            raise conflict("--lrn=within_tower needs two towers", *ways)
        if self.net != "alexnet":
            self._require_cifar_settings()

    def _require_cifar_settings(self):
        net = f"--net={self.net}"
        absent = [(name, was) for name, was, _ in changes({}, self) if name in ALEXNET_ONLY]
        if absent:
            ways = " ".join(f"--{name}={text_of(was)}" for name, was in absent)
            names = ", ".join(f"--{name}" for name, _ in absent)
            raise conflict(f"{names} only with --net=alexnet, not {net}", ways, "--net=alexnet")
        if self.dropout:
            raise conflict(f"{net} has no dropout", "--dropout=0", "--net=alexnet")
        if self.scaling != "mean_image":
            ways = ("--scaling=mean_image", "--net=alexnet")
            raise conflict(f"{net} starts from weights for pixels of 0 to 255", *ways)
        if has_model_axis(self.mesh):
            ways = ("--mesh=", "--net=alexnet")
            raise conflict(f"{net} has no layers for a model axis of --mesh", *ways)
        if self.towers == 2:
            raise conflict(f"{net} has no towers", "--towers=1", "--net=alexnet")

    @property
    def drop_epoch_numbers(self) -> tuple[int, ...]:
        """--drop_epochs as numbers, in order."""
        return tuple(sorted(int(number) for number in self.drop_epochs.split(",") if number))
