"""Everything that an AlexNet run can be told, one flag each. The defaults are the `deck` preset."""

import dataclasses
import re

from common.errors import UserError
from common.flags import setting
from common.parallel import mesh_shape

# What the CIFAR-10 networks do not read.
ALEXNET_ONLY = (
    "widths",
    "conv1_padding",
    "norm_order",
    "dropout_at",
    "dropout_scaling",
    "initialization",
    "hidden_bias",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's settings. Raises UserError where settings exclude each other."""

    # data
    dataset: str = setting(
        "imagenet_256",
        "Prepared set of RGB images: imagenet_256, cifar10 ...; fake: noise, no splits.",
    )
    data_dir: str = setting(
        "", "Folder of the prepared sets; $TFDS_DATA_DIR if empty.", changes_result=False
    )
    train_split: str = setting(
        "train", "Where training and validation examples come from; a split or a slice of one."
    )
    test_split: str = setting(
        "", "What is scored at the end; empty: `test`, or `validation` where the set has no `test`."
    )
    train_size: int = setting(
        0, "Train on the first N examples only; 0: on all that are not held out.", lower_bound=0
    )
    validation_size: int = setting(
        10_000, "Hold out the last N training examples for validation.", lower_bound=0
    )
    track: str = setting(
        "validation",
        "What is scored after each epoch; `test` for curves like the paper's.",
        choices=("validation", "test"),
    )
    num_classes: int = setting(
        0, "Outputs of the network; 0: as many as the set has classes.", lower_bound=0
    )
    scaling: str = setting(
        "mean_image",
        "Pixels 0..255 minus the mean image (section 2), or each channel with mean 0 and deviation 1 (standardized).",
        choices=("mean_image", "standardized"),
    )
    crop_size: int = setting(
        227, "Height and width of the crop that the network sees, in pixels.", lower_bound=1
    )
    pad: int = setting(
        0, "Pixels of background (the mean) on each side before a random crop.", lower_bound=0
    )
    augmentation: str = setting(
        "crop_flip",
        "none: the centre crop; crop_flip: random crop and mirror image (4.1); resized_crop_flip: random size and shape too. "
        "--color_pca is a flag of its own.",
        choices=("none", "crop_flip", "resized_crop_flip"),
    )
    color_pca: bool = setting(True, "Noise along the principal components of the RGB values (4.1).")

    # network
    net: str = setting(
        "alexnet",
        "AlexNet, or one of cuda-convnet's CIFAR-10 networks.",
        choices=("alexnet", "cifar18", "cifar13"),
    )
    widths: str = setting(
        "2012",
        "Kernels of conv1 to fc7: of 2012, of the `one weird trick` network, or small, for 32x32 images.",
        choices=("2012", "one_weird_trick", "small"),
    )
    conv1_padding: str = setting(
        "none",
        "Zeros around conv1's input: none, 3 at the bottom and the right (2012), or 2 on each side (symmetric).",
        choices=("none", "bottom_right", "symmetric"),
    )
    towers: int = setting(
        1,
        "2: conv2, conv4, conv5 see only their half of the maps (3.2).",
        lower_bound=1,
        upper_bound=2,
    )
    lrn: str = setting(
        "across",
        "Local response normalization (3.3) over neighbouring maps, across all or within_tower; within_map: over pixels.",
        choices=("none", "within_tower", "across", "within_map"),
    )
    lrn_size: int = setting(
        5, "n of 3.3: maps (within_map: pixels a side) in the sum; odd.", lower_bound=1
    )
    lrn_alpha: float = setting(1e-4, "alpha of 3.3.", lower_bound=0.0)
    lrn_alpha_over_n: bool = setting(
        False, "Divide alpha by the number of terms, as the 2012 code, Caffe and PyTorch do."
    )
    lrn_k: float = setting(2.0, "k of 3.3; Caffe has 1.", lower_bound=1e-6)
    norm_order: str = setting(
        "pool_norm",
        "Normalization before pooling (the paper), after it (the deck), or as in the 2012 code (alexnet/model.py has them).",
        choices=("norm_pool", "pool_norm", "code2012"),
    )
    activation: str = setting(
        "relu", "Nonlinearity of all hidden layers (3.1).", choices=("relu", "tanh", "sigmoid")
    )
    pooling: str = setting(
        "overlapping",
        "3x3 windows 2 apart (3.4), or 2x2 windows 2 apart; the sizes are the same.",
        choices=("overlapping", "non_overlapping"),
    )
    dropout: float = setting(
        0.5, "Share of values that dropout sets to zero (4.2).", lower_bound=0.0, upper_bound=1.0
    )
    dropout_at: str = setting(
        "before",
        "Dropout on the inputs (the deck) or the outputs (the paper) of fc6 and fc7.",
        choices=("before", "after"),
    )
    dropout_scaling: str = setting(
        "test",
        "What makes up for dropout: values times 1 - dropout in the test (the paper), or divided by it in training.",
        choices=("test", "training"),
    )
    initialization: str = setting(
        "paper",
        "Initial weights: normal with the deviations of the paper, Caffe or the 2012 code; he; torch (PyTorch's default).",
        choices=("paper", "caffe", "code2012", "he", "torch"),
    )
    hidden_bias: float = setting(
        0.1, "Initial biases of conv2, conv4, conv5, fc6 and fc7; the paper: 1, Caffe: 0.1."
    )

    init_from: str = setting(
        "",
        "The folder of a run of the same network: start from the weights that its evaluation uses; empty: from new ones.",
    )

    # loss and optimizer
    label_smoothing: float = setting(
        0.0, "Share of the target spread over all classes.", lower_bound=0.0, upper_bound=1.0
    )
    optimizer: str = setting(
        "paper",
        "The paper's rule (section 5: the rate is in the velocity), sgd with the rate outside it, or adamw.",
        choices=("paper", "sgd", "adamw"),
    )
    learning_rate: float = setting(0.01, "Initial (cosine: peak) learning rate.", lower_bound=0.0)
    schedule: str = setting(
        "plateau",
        "Rate divided by 10 when the validation error stops improving, at --drop_epochs, to zero along a cosine, or constant.",
        choices=("plateau", "epochs", "cosine", "constant"),
    )
    patience: int = setting(
        5,
        "plateau: epochs without a new best validation error before the rate drops.",
        lower_bound=1,
    )
    num_drops: int = setting(
        3, "plateau: how often the rate drops; the paper: three times.", lower_bound=0
    )
    drop_epochs: str = setting("", "epochs: after which epochs the rate drops, for example 30,60.")
    warmup_epochs: float = setting(
        0.0, "cosine: linear rise of the rate at the start.", lower_bound=0.0
    )
    momentum: float = setting(
        0.9, "Momentum of `paper` and `sgd`.", lower_bound=0.0, upper_bound=1.0
    )
    weight_decay: float = setting(
        0.0005,
        "Weight decay, times the rate; of cifar18 and cifar13 times each layer's factor too.",
        lower_bound=0.0,
    )
    decay_biases: bool = setting(
        True, "Weight decay of biases too: the text of the paper makes no difference."
    )
    bias_rate_factor: float = setting(
        1.0, "Rate of biases over that of weights; 2012 code, Caffe: 2.", lower_bound=0.0
    )
    drop_bias_rate: bool = setting(
        True, "The biases' rate follows the schedule; in the 2012 code it stayed as it was."
    )
    average_decay: float = setting(
        0.0,
        "Evaluate an exponential average of the weights with this decay per step; 0: the weights.",
        lower_bound=0.0,
        upper_bound=1.0,
    )

    # run
    batch_size: int = setting(128, "Examples per update, over all devices together.", lower_bound=1)
    num_epochs: int = setting(90, "Passes over the training set.", lower_bound=1)
    seed: int = setting(
        0,
        "Decides initial weights, order, augmentation and dropout.",
        lower_bound=0,
        upper_bound=2**32 - 1,
    )
    ten_crop: bool = setting(
        True, "At the end, score the test split by ten crops too (4.1).", changes_result=False
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
    mesh: str = setting(
        "",
        "Devices per axis, such as data:4,model:2: `model` splits fc6 to fc8 of --net=alexnet; all devices on `data` if empty.",
        changes_result=False,
    )
    num_workers: int = setting(
        2,
        "Threads that read and decode streamed images; 0: read when asked.",
        lower_bound=0,
        changes_result=False,
    )
    # A damaged record ends a run, or is replaced by a rule that does not know this number: it
    # decides whether there is a result, not which, and a run that ended so may go on with a larger
    # one.
    max_bad_records: int = setting(
        0,
        "Damaged records to go on with, of sets read record by record: in training the next intact one stands for one, no "
        "score counts it; more than N end the run.",
        lower_bound=0,
        changes_result=False,
    )
    log_every_steps: int = setting(
        20, "A line of metrics after every N steps.", lower_bound=1, changes_result=False
    )
    save_every_epochs: int = setting(
        1, "A checkpoint after every N epochs.", lower_bound=1, changes_result=False
    )
    save_every_steps: int = setting(
        2000,
        "A checkpoint after every N steps as well: epochs of ImageNet are long.",
        lower_bound=1,
        changes_result=False,
    )

    def __post_init__(self):
        if self.optimizer == "adamw" and self.momentum:
            raise UserError(
                f"--momentum={self.momentum} is not for --optimizer=adamw; add --momentum=0"
            )
        if self.warmup_epochs and self.schedule != "cosine":
            raise UserError(
                f"--warmup_epochs needs --schedule=cosine, not --schedule={self.schedule}"
            )
        if self.warmup_epochs >= self.num_epochs:
            raise UserError(
                f"--warmup_epochs={self.warmup_epochs} leaves nothing of --num_epochs={self.num_epochs}"
            )
        if bool(self.drop_epochs) != (self.schedule == "epochs"):
            raise UserError(
                "--drop_epochs and --schedule=epochs need each other: --schedule=epochs --drop_epochs=30,60"
            )
        if self.drop_epochs and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.drop_epochs):
            raise UserError(
                f"--drop_epochs={self.drop_epochs} must be whole numbers with commas between them, such as 30,60"
            )
        if len(set(self.drop_epoch_numbers)) < len(self.drop_epoch_numbers):
            raise UserError(
                f"--drop_epochs={self.drop_epochs} names an epoch twice; the rate drops once after each"
            )
        if not self.drop_bias_rate and self.schedule not in ("plateau", "epochs"):
            raise UserError(
                f"--nodrop_bias_rate needs --schedule=plateau or epochs, not --schedule={self.schedule}"
            )
        for name in ("average_decay", "momentum", "label_smoothing", "dropout"):
            if getattr(self, name) == 1.0:
                raise UserError(f"--{name}=1 would learn nothing; allowed: 0 to below 1")
        if self.track == "validation" and not self.validation_size:
            raise UserError(
                "--validation_size=0 leaves nothing to validate on; add --track=test to score the test split instead"
            )
        if self.schedule == "plateau" and self.track == "test":
            raise UserError(
                "--schedule=plateau looks at the validation error: it needs --track=validation"
            )
        if self.lrn_size % 2 == 0:
            raise UserError(
                f"--lrn_size={self.lrn_size} must be odd: as many neighbours on either side"
            )
        if self.initialization == "torch" and self.hidden_bias:
            raise UserError("--initialization=torch draws the biases too; add --hidden_bias=0")
        if self.pad and self.augmentation != "crop_flip":
            raise UserError(f"--pad={self.pad} needs --augmentation=crop_flip")
        if self.net != "alexnet":
            for field in dataclasses.fields(self):
                if field.name in ALEXNET_ONLY and getattr(self, field.name) != field.default:
                    raise UserError(
                        f"--{field.name} is for --net=alexnet: the layers of {self.net} are its own"
                    )
        if self.net != "alexnet" and self.scaling != "mean_image":
            raise UserError(
                f"--net={self.net} starts from weights for pixels of 0 to 255: it needs --scaling=mean_image"
            )
        if self.lrn == "within_tower" and self.towers == 1:
            raise UserError(
                "--lrn=within_tower needs --towers=2; with one tower it is --lrn=across"
            )
        if self.net != "alexnet" and self.dropout:
            raise UserError(f"--net={self.net} has no dropout; add --dropout=0")
        if mesh_shape(self.mesh).get("model", 1) > 1 and self.net != "alexnet":
            raise UserError(
                f"--mesh with a model axis splits fc6 to fc8 of --net=alexnet; --net={self.net} has none of them"
            )
        if self.net != "alexnet" and self.towers == 2:
            raise UserError(f"--net={self.net} has no towers; add --towers=1")

    @property
    def drop_epoch_numbers(self) -> tuple[int, ...]:
        """--drop_epochs as numbers, in order."""
        return tuple(sorted(int(number) for number in self.drop_epochs.split(",") if number))
