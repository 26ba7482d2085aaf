"""Write a trained network into a folder as MLflow logs it, and as it is registered and served; neither is a pickle."""

import base64
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow.pyfunc

# MLflow would import it when the first model is saved, after training
import mlflow.tensorflow
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Map

import pipeline.data.decode

PYFUNC_FILE = Path(__file__).parent / "pyfunc_model.py"
# What loading a model needs
REQUIRED_PACKAGES = ("mlflow", "tensorflow", "keras", "numpy")
SERVED_SIGNATURE = ModelSignature(
    # An array or a file, for which MLflow has no common type. Not required, because the message of pyfunc_model.py for
    # a missing column is clearer than MLflow's.
    Schema([ColSpec(AnyType(), "image", required=False)]),  # type: ignore[no-untyped-call]
    Schema(
        [
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)


def save_keras(
    folder: Path, model: keras.Model, *, example: npt.NDArray[np.float32], classes: Sequence[str], resize: str
) -> None:
    """Write a Keras model of stock layers in MLflow's TensorFlow flavour.

    Args:
        folder: An empty folder.
        model: Raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        example: Images (n, h, w, c).
        classes: Names in the order of the probabilities.
        resize: How images of another size are to be resized, see `resize_to`.
    """
    mlflow.tensorflow.save_model(
        model,
        folder,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
        ),
        input_example=example,
        pip_requirements=requirements(),
        metadata=_metadata(model, classes, resize),
    )
    _add_keras_flavor(folder, data="data")


def save_pyfunc(
    folder: Path, model: keras.Model, *, example: npt.NDArray[np.uint8], classes: Sequence[str], resize: str
) -> None:
    """Write a Keras model of stock layers together with the code that serves it: a Python file and a Keras archive.

    Args:
        folder: An empty folder.
        model: Raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        example: An image (h, w, c).
        classes: Names in the order of the probabilities.
        resize: How images of another size are to be resized, see `resize_to`.
    """
    with TemporaryDirectory() as temporary:
        archive = Path(temporary) / "model.keras"
        model.save(archive)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(PYFUNC_FILE),
            code_paths=[str(pipeline.data.decode.__file__)],
            artifacts={"model": str(archive)},
            model_config={"classes": list(classes), "resize": resize},
            signature=SERVED_SIGNATURE,
            input_example={"image": [base64.b64encode(tf.io.encode_png(example).numpy()).decode()]},
            pip_requirements=requirements("pandas", "pillow"),
            metadata=_metadata(model, classes, resize),
        )
    _add_keras_flavor(folder, data="artifacts")


def _metadata(model: keras.Model, classes: Sequence[str], resize: str) -> dict[str, object]:
    """Return what is to be known of a model before it is loaded."""
    return {"classes": list(classes), "resize": resize, "image_size": list(model.input_shape[1:3])}


def _add_keras_flavor(folder: Path, *, data: str) -> None:
    """Let `mlflow.keras.load_model` and `mlflow.tensorflow.load_model` load a model that MLflow has saved otherwise.

    `mlflow.tensorflow` reads the entry of `mlflow.keras` where there is one, and its own settings in it.

    Args:
        folder: Of the model.
        data: The folder in it that holds the Keras archive, model.keras.
    """
    about = Model.load(str(folder / MLMODEL_FILE_NAME))
    about.add_flavor(
        "keras",
        data=data,
        keras_version=keras.__version__,
        keras_backend=keras.backend.backend(),
        save_exported_model=False,
        model_type="keras",
        keras_module="keras",
        save_format="keras",
    )
    about.save(str(folder / MLMODEL_FILE_NAME))


def requirements(*more: str) -> list[str]:
    """Return the packages that a server installs, with the installed versions.

    They are named here, as MLflow needs half a minute to infer them by running the model.
    """
    return [f"{package}=={version(package)}" for package in (*REQUIRED_PACKAGES, *more)]
