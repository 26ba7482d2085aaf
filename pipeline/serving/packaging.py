"""Writes a model in the form in which it is registered: no pickle, but a Python file beside a Keras archive."""

import base64
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Map

import pipeline.data.decode

HERE = Path(__file__).parent
PACKAGES = ("mlflow", "tensorflow", "keras", "numpy")  # that loading a model needs
SIGNATURE = ModelSignature(
    # an array or a file, for which MLflow has no one type; not required, as what we say of a missing one is clearer
    Schema([ColSpec(AnyType(), "image", required=False)]),  # type: ignore[no-untyped-call]
    Schema(
        [
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)


def requirements(*more: str) -> list[str]:
    """What a server installs: named, as finding it out by running the model takes MLflow half a minute."""
    return [f"{package}=={version(package)}" for package in (*PACKAGES, *more)]


def save_keras(folder: Path, model: keras.Model, *, example: npt.NDArray[np.float32], classes: Sequence[str]) -> None:
    """Write a Keras model of stock layers as MLflow's TensorFlow flavour has it, into an empty folder.

    Args:
        folder: where.
        model: raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        example: images (n, h, w, c).
        classes: names in the order of the probabilities.
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
        metadata={"classes": list(classes)},
    )


def save_pyfunc(folder: Path, model: keras.Model, *, example: npt.NDArray[np.uint8], classes: Sequence[str]) -> None:
    """Write a Keras model of stock layers, with the code that answers for it, into an empty folder.

    Args:
        folder: where.
        model: raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        example: an image (h, w, c).
        classes: names in the order of the probabilities.
    """
    with TemporaryDirectory() as temporary:
        archive = Path(temporary) / "model.keras"
        model.save(archive)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(HERE / "pyfunc_model.py"),
            code_paths=[str(pipeline.data.decode.__file__)],
            artifacts={"model": str(archive)},
            model_config={"classes": list(classes)},
            signature=SIGNATURE,
            input_example={"image": [base64.b64encode(tf.io.encode_png(example).numpy()).decode()]},
            pip_requirements=requirements("pandas", "pillow"),
            metadata={"classes": list(classes)},
        )
