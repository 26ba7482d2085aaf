"""The settings of a training run, in sections: the name, meaning, bounds and only default of each."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Config
from pipeline.config.monitor import Monitor

SEEDS = 2**32  # seeds of NumPy and TensorFlow lie below it
# settings that may be changed when a run is resumed, and that make no two runs different
CHANGE_NO_RESULT = frozenset({"checkpoint_minutes", "filter_steps", "register_as"})
# how steps are made, which on a GPU may change how a value is rounded
CHANGE_ROUNDING = frozenset({"steps_per_execution", "data_on"})
TEACHER_RULE = "a run's id, runs:/RUN_ID/model, models:/NAME@ALIAS, models:/m-ID"
BUILTIN_DATASETS = ("digits", "cifar10", "cifar100", "mnist", "fashion_mnist")


class DataConfig(Config, title="data"):
    """The images, and their split into training, validation and test images."""

    dataset: str = Field(
        "cifar10",
        min_length=1,
        max_length=4096,
        description=f"{', '.join(BUILTIN_DATASETS)}; or a path: a folder of class folders, an .npz",
    )
    image_size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None, description="resize every image to height,width pixels; needed where sizes differ"
    )
    resize: Literal["stretch", "crop", "pad"] = Field(
        "stretch",
        description="how an image of another shape gets its size, in training and in use: stretched; its shorter side "
        "fitted and the other cropped at both ends; or its longer side fitted and the rest padded with black",
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of each class held out for the test, and of the rest for validation, where the data has no "
        "such split",
    )
    train_examples: int | None = Field(
        None,
        ge=2,
        le=10**9,
        description="use at most this many training images, each class in proportion; with refit, the validation "
        "images come in addition; with folds, for each network",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=20,
        description="cross-validation: train this many networks, each on all training and validation images but those "
        "of its fold, by which it is validated; the model is their mean",
    )
    refit: bool = Field(
        False,
        description="train on the training and validation images together, for all epochs, and keep the weights of the "
        "last one; of a search: its winner, once more",
    )


class AugmentationConfig(Config, title="augmentation"):
    """Random changes of the training images, drawn anew for each image and epoch."""

    crop_scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="random resized crop: enlarge a part of each training image, of this share of its area to all of "
        "it; 1: off",
    )
    crop_ratio: float = Field(
        1.3333,
        ge=1,
        le=100,
        description="random resized crop: the part's width to height is from 1/crop_ratio to crop_ratio",
    )
    flip: bool | Literal["alternating"] = Field(
        False,
        description="mirror training images left to right: half of them, at random; alternating: half of them in the "
        "first epoch, then each image in every other epoch",
    )
    vertical_flip: bool = Field(False, description="mirror half of the training images top to bottom")
    translation: int = Field(
        0, ge=0, le=1024, description="shift training images by up to this many pixels each way, edges reflected"
    )
    randaugment_layers: int = Field(
        0, ge=0, le=14, description="RandAugment: geometric or colour operations on each training image"
    )
    randaugment_magnitude: int = Field(9, ge=0, le=30, description="RandAugment: strength of each operation")
    color_jitter: float = Field(
        0.0, ge=0, le=1, description="change brightness, contrast and saturation by up to this share, up or down"
    )
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="share of training images with a rectangle of random size painted over"
    )
    cutout: int = Field(
        0, ge=0, le=4096, description="paint over a square of this side, in pixels, in each training image"
    )
    mixup_alpha: float = Field(
        0.0, ge=0, le=100, description="mixup: blend images and labels in shares of Beta(alpha, alpha); 0: off"
    )
    cutmix_alpha: float = Field(
        0.0, ge=0, le=100, description="cutmix: paste part of one image into another, Beta(alpha, alpha) stays; 0: off"
    )
    mix_probability: float = Field(
        1.0, gt=0, le=1, description="share of training images that mixup or cutmix changes, where one is on"
    )
    clean_epochs: int = Field(
        0,
        ge=0,
        le=100_000,
        description="train this many last epochs on crops, flips and translations alone, without the other "
        "augmentations",
    )


class ModelConfig(Config, title="model"):
    """The network: ConvMixer (Trockman and Kolter 2022, https://arxiv.org/abs/2201.09792)."""

    filters: int = Field(256, ge=1, le=8192, description="channels of every block (the paper's h)")
    depth: int = Field(8, ge=1, le=256, description="number of blocks (the paper's d)")
    kernel_size: int = Field(5, ge=1, le=63, description="side of the depthwise kernels, in patches (the paper's k)")
    patch_size: int = Field(2, ge=1, le=256, description="side of a patch, in pixels (the paper's p)")
    activation: Literal["gelu", "relu"] = Field(
        "gelu", description="activation after each convolution; relu is that of the authors' ConvMixer-768/32"
    )
    batch_norm_epsilon: float = Field(
        1e-3, gt=0, le=1, description="batch norm's term against division by zero: Keras' default; PyTorch's is 1e-5"
    )
    batch_norm_momentum: float = Field(
        0.9, ge=0, lt=1, description="share of the old moving average that batch norm keeps at each step"
    )
    depthwise_init: Literal["glorot_uniform", "fan_in_uniform", "covariance"] = Field(
        "glorot_uniform",
        description="initial depthwise kernels: Keras' default, PyTorch's, or correlated as in trained networks",
    )


class TransferConfig(Config, title="transfer"):
    """Which trained model the weights start from, and how far they may move from it."""

    weights_from: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="start from a trained model's weights: a run's id, runs:/ID/model, models:/NAME@ALIAS, a .keras "
        "file of this program, or a .safetensors file with timm's names; filters, depth, kernel_size, patch_size, "
        "activation and batch_norm_epsilon are then the model's unless they are given",
    )
    freeze_blocks: int = Field(
        0, ge=0, le=256, description="keep the patch embedding and this many first blocks as they are; 0: train all"
    )
    head_epochs: int = Field(
        0, ge=0, le=100_000, description="train the last layer alone in this many first epochs, the others after them"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="each block's learning rate is this share of the next one's"
    )


class OptimizationConfig(Config, title="optimization"):
    """The optimizer, its learning rate over the steps, and its regularization.

    It is no OptimizerConfig, as `optimizer` is one of its settings.
    """

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="AdamW; or Muon for the convolutions over channels, and AdamW for the rest"
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="peak step size")
    schedule: Literal["constant", "one_cycle", "cosine"] = Field(
        "constant", description="course of the learning rate: at its peak throughout, up and down, or down a cosine"
    )
    warmup_fraction: float = Field(
        0.05, ge=0, le=0.5, description="share of all steps on the way up to the peak (one_cycle and cosine)"
    )
    adam_epsilon: float = Field(1e-7, gt=0, le=1, description="AdamW's term against division by zero")
    muon_momentum: float = Field(
        0.95, ge=0, lt=1, description="share of the sum of the earlier gradients that Muon keeps at each step"
    )
    weight_decay: float = Field(1e-4, ge=0, le=10, description="decoupled weight decay")
    decay_norm_and_bias: bool = Field(
        False, description="decay batch norm's scales and shifts and all biases as well as the kernels"
    )
    clip_norm: float | None = Field(None, gt=0, le=1000, description="scale gradients down to this global L2 norm")


class FitConfig(Config, title="training"):
    """The course of the training: its length, its loss, and which weights are kept and measured."""

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(128, ge=1, le=1_000_000, description="training images a step")
    gradient_accumulation: int = Field(
        1,
        ge=1,
        le=10_000,
        description="change the weights once in this many steps, by the mean of their gradients: like a batch of so "
        "many times the images, in the memory of one; batch norm still sees the single batches",
    )
    progressive_resize: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,3}:0?\.\d{1,6}(,[1-9]\d{0,3}:0?\.\d{1,6}){0,7}$",
        title="side:share with commas between, such as 16:0.3,24:0.3",
        description="train on smaller images first: the shorter side in pixels, and for which share of the epochs; "
        "the remaining epochs train on images of full size",
    )
    class_weights: Literal["none", "balanced", "effective"] = Field(
        "none",
        description="weigh the loss of each image by its class: none; balanced, by the reciprocal of the class's "
        "images; effective, by that of their effective number, which weighs rare classes less",
    )
    sampling: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="take each training image once an epoch, or as many of each class, those of rare ones repeatedly",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each training label spread over all classes")
    teacher: str | None = Field(
        None,
        max_length=4096,
        pattern=r"^([0-9a-f]{32}$|runs:/|models:/)",
        title=TEACHER_RULE,
        description="learn a trained model's predictions beside the labels: a run's id, runs:/ID/model or "
        "models:/NAME@ALIAS; it sees the same augmented images",
    )
    teacher_weight: float = Field(
        0.5, ge=0, le=1, description="the teacher's share of each target; the label has the rest"
    )
    teacher_temperature: float = Field(
        1.0, ge=0.1, le=100, description="divide the teacher's logits by this; above 1 its probabilities are more alike"
    )
    ema_momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="validate and keep a moving average of the weights, of which each step keeps this share",
    )
    monitor: Monitor = Field(
        "val_accuracy",
        description="metric of the validation images that the best epoch, early stopping and all comparisons of "
        "models go by; val_balanced_accuracy and val_macro_f1 count each class alike",
    )
    early_stopping_epochs: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="stop after this many epochs in which the monitor's metric got no better; head_epochs do not count",
    )
    test_time_views: Literal["one", "mirrored", "shifted"] = Field(
        "one",
        description="evaluate the test images also by the mean over views of each, as test_accuracy_views: mirrored, "
        "itself and its mirror image; shifted, these two and both moved by a pixel up left and down right",
    )
    seed: int = Field(
        0, ge=0, le=SEEDS - 1, description="of the split, the initial weights, the order and the augmentation"
    )


class RuntimeConfig(Config, title="runtime"):
    """The device and its arithmetic, and what is recorded beside the metrics."""

    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "auto", description="number format of the arithmetic; auto: what suits the device"
    )
    devices: Literal["one", "all"] = Field(
        "one", description="train on one GPU, or on all GPUs of this machine, each on its share of every batch"
    )
    jit_compile: bool | Literal["auto"] = Field(
        "auto", description="compile with XLA, in batches of one size; auto: on one GPU, not on several or a CPU"
    )
    fast_layers: bool | Literal["auto"] = Field(
        "auto", description="train with layers that are faster than Keras' own; auto: on a CPU, not on a GPU"
    )
    steps_per_execution: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        "auto",
        description="make so many training steps at a time before Python looks at the loss, the time limit and what "
        "stops a run; fewer at the end of an epoch, if it has no multiple of them; auto: 16 on a GPU, 1 on a CPU",
    )
    data_on: Literal["auto", "host", "device"] = Field(
        "auto",
        description="where training batches are made: by the host's processor, or in the compiled step, from a copy of "
        "all training images in the device's memory; auto: on one GPU with jit_compile and without progressive_resize, "
        "if the images take less than a quarter of its free memory, else by the host",
    )
    checkpoint_minutes: float | None = Field(
        10,
        ge=0,
        le=100_000,
        description="minutes between copies of the last checkpoint to the run's artifacts, so that another machine can "
        "resume it; none: no copies",
    )
    filter_steps: int = Field(
        0,
        ge=0,
        le=24,
        description="draw the middle block's kernels before training and after this many epochs, more densely at the "
        "start; 0: off",
    )
    register_as: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        title="a name (up to 100 letters, digits, _, . and -, the first a letter or digit)",
        description="register the model of a finished run as a new version of this name in MLflow's registry",
    )


# pydantic takes the fields of the last base first
class TrainingConfig(
    RuntimeConfig, FitConfig, OptimizationConfig, TransferConfig, ModelConfig, AugmentationConfig, DataConfig
):
    """All settings of one run, flat as on the command line: `config.depth`; or a section: `config.model`.

    A field's name is also its YAML key, its flag, its `-P` name and its MLflow parameter.
    """

    @property
    def total_epochs(self) -> int:
        """Return the number of epochs of all networks together, of which there is one for each fold."""
        return self.epochs * (self.folds or 1)

    @property
    def data(self) -> DataConfig:
        """Return the settings of the images and their split."""
        return self.section(DataConfig)

    @property
    def augmentation(self) -> AugmentationConfig:
        """Return the settings of the augmentation."""
        return self.section(AugmentationConfig)

    @property
    def model(self) -> ModelConfig:
        """Return the settings of the network."""
        return self.section(ModelConfig)

    @property
    def transfer(self) -> TransferConfig:
        """Return the settings of the trained model that the weights start from."""
        return self.section(TransferConfig)

    @property
    def optimization(self) -> OptimizationConfig:
        """Return the settings of the optimizer and the learning rate."""
        return self.section(OptimizationConfig)

    @property
    def training(self) -> FitConfig:
        """Return the settings of the course of the training."""
        return self.section(FitConfig)

    @property
    def runtime(self) -> RuntimeConfig:
        """Return the settings of the device, and of what is recorded."""
        return self.section(RuntimeConfig)
