"""The variables and files that configure libraries: what decides a result is this program's, all else the user's.

A variable is overridden that contradicts a setting (precision, jit_compile, epochs) or a choice of this program (Keras
on TensorFlow, the style of figures). One that trades speed, memory and repeatability for each other stays as the user
has set it: OMP_NUM_THREADS, TF_NUM_INTRAOP_THREADS, TF_ENABLE_ONEDNN_OPTS, TF_DETERMINISTIC_OPS, CUDA_VISIBLE_DEVICES.
"""

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import shown

# None removes a variable.
OVERRIDES: Mapping[str, str | None] = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_MAX_EPOCHS": None,
    "KERAS_MAX_STEPS_PER_EPOCH": None,
    "KERAS_NNX_ENABLED": "false",
    # a matplotlibrc of the user's; one in the working directory is read all the same, see evaluation.figures.style
    "MATPLOTLIBRC": os.devnull,
    # a notebook's kernel exports its own, which only works there
    "MPLBACKEND": "agg",
    "PANDAS_FUTURE": None,
    # it may turn the warnings of libraries into errors
    "PYTHONWARNINGS": None,
    "SCIPY_ARRAY_API": None,
    "TF2_BEHAVIOR": None,
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": None,
    "TF_JIT_COMPILE_REWRITE": None,
    "TF_SET_ONEDNN_FPMATH_MODE": None,
    # mlflow.tensorflow would save models with another Keras than they are trained with
    "TF_USE_LEGACY_KERAS": None,
    # compilation is the setting jit_compile's
    "TF_XLA_FLAGS": None,
    # often meant for JAX, on some of whose flags TensorFlow aborts; but see `_overrides`
    "XLA_FLAGS": None,
}
# options of pandas and scikit-learn, and of progress bars: a faulty one ends the command that draws the first bar
REMOVED_PREFIXES = ("PANDAS_FUTURE_", "SKLEARN_", "TQDM_")
# What the user may set otherwise.
DEFAULTS: Mapping[str, str] = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # telemetry is a thread, and a search forks processes afterwards
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # this program says what MLflow's logger would: what failed, in one line
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    # none of its plug-ins is used, and looking for them means reading the metadata of every installed package
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
    # without TensorFlow's start-up lines; its errors come as exceptions
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # else whatever loads a model takes most of a GPU's memory, also from a training that runs beside it
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
FLOATX, EPSILON, IMAGE_DATA_FORMAT = "float32", 1e-7, "channels_last"  # Keras' own defaults
KERAS_CONFIG = {"floatx": FLOATX, "epsilon": EPSILON, "image_data_format": IMAGE_DATA_FORMAT, "backend": "tensorflow"}


def set_environment(environ: MutableMapping[str, str]) -> None:
    """Set what the libraries read when they are imported; to be called before the first of them is."""
    for name, value in environment_changes(environ).items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def environment_changes(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return what `set_environment` sets where these variables are set already; None removes a variable."""
    defaults = dict(DEFAULTS)
    if os.uname().machine.lower() in {"x86_64", "amd64"}:
        # TensorFlow's own default is to use oneDNN's kernels only on processors with AVX-512 VNNI or newer. With AVX2
        # alone, too, a depthwise convolution takes half the time with them, and no operation takes longer.
        defaults["TF_ENABLE_ONEDNN_OPTS"] = "1"
    return {name: value for name, value in defaults.items() if name not in environ} | _overrides(environ)


def _overrides(environ: Mapping[str, str]) -> dict[str, str | None]:
    by_prefix = [name for name in environ if name.startswith(REMOVED_PREFIXES) and name != "TQDM_DISABLE"]
    # where CUDA is, on a machine that has it at an unusual place: without this flag XLA does not find it
    flags = [flag for flag in environ.get("XLA_FLAGS", "").split() if flag.startswith("--xla_gpu_cuda_data_dir=")]
    return {**OVERRIDES, **dict.fromkeys(by_prefix), "XLA_FLAGS": " ".join(flags) or None}


def describe_overridden(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable or file of the user's that has no effect.

    Args:
        environ: The variables that this process was started with.
    """
    for name, value in _overrides(environ).items():
        if name in environ and environ[name] != value:
            becomes = "is ignored" if value is None else f"is overridden with {value}"
            yield f"{name}={shown(environ[name])} {becomes}"
    path = keras_config_path(environ)
    config = read_keras_config(environ)
    for name, expected in KERAS_CONFIG.items():
        if config.get(name, expected) != expected:
            yield f"{name}={shown(config[name])} in {path} is overridden with {expected}"
    for file in _matplotlib_files(environ):
        yield f"{file} is not used for figures"


def keras_config_path(environ: Mapping[str, str]) -> Path:
    """Return the path of keras.json, which need not exist."""
    home = os.path.expanduser("~")
    # as Keras does
    default = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")  # noqa: S108
    return Path(os.path.expanduser(environ.get("KERAS_HOME", default)), "keras.json")


def read_keras_config(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the content of keras.json, empty if there is none.

    Raises:
        UsageError: Keras could not be imported with it.
    """
    path = keras_config_path(environ)
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"Keras' {path} must be readable: {error.strerror}; delete it, or set KERAS_HOME") from None
    except ValueError:
        # Keras passes over a file that is no JSON
        return {}
    rule = None
    if not isinstance(config, dict):
        rule, value = "hold a JSON object", config
    elif (value := config.get("floatx", FLOATX)) not in ("float16", "float32", "float64"):
        rule = "have a floatx of float16, float32 or float64"
    elif not isinstance(value := config.get("epsilon", EPSILON), float):
        rule = "have a number with a decimal point as epsilon"
    elif (value := config.get("image_data_format", IMAGE_DATA_FORMAT)) not in ("channels_last", "channels_first"):
        rule = "have an image_data_format of channels_last or channels_first"
    if rule:
        raise UsageError(f"Keras' {path} must {rule}, got {shown(value)}; mend or delete it")
    return config


def _matplotlib_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files named matplotlibrc that Matplotlib would use otherwise."""
    config = environ.get("MPLCONFIGDIR") or os.path.join(environ.get("XDG_CONFIG_HOME") or "~/.config", "matplotlib")
    for folder in (Path.cwd(), Path(os.path.expanduser(config))):
        if (file := folder / "matplotlibrc").is_file():
            yield file
