"""Write a trained network into a folder as MLflow logs it, and as it is registered and served; neither is a pickle."""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

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
from pipeline.runtime.text import one_line
from pipeline.serving.export.comparison import compare, in_batches, predict_on_cpu

PYFUNC_FILE = Path(__file__).parent / "pyfunc_model.py"
# What it imports; each is copied into a served model too.
CODE_FILES = [
    Path(pipeline.data.decode.__file__),
    *map(Path(__file__).with_name, ("served_network.py", "micro_batching.py", "scoring_app.py", "serving_metrics.py")),
]
# What loading a model needs
REQUIRED_PACKAGES = ("mlflow", "tensorflow", "keras", "numpy")
# Images that a served ONNX model is compared with Keras on, and by how much a probability may differ
COMPARED_IMAGES = 32
ONNX_TOLERANCE = 1e-4
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
    folder: Path, model: keras.Model, *, images: npt.NDArray[np.uint8], classes: Sequence[str], resize: str
) -> None:
    """Write a Keras model of stock layers together with the code that serves it: a Python file and a Keras archive.

    Where onnxruntime is installed, the same network is added as an ONNX model if it answers the same on the images.

    Args:
        folder: An empty folder.
        model: Raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        images: Images (n, h, w, c) that the two forms are compared on; the first is the model's example.
        classes: Names in the order of the probabilities.
        resize: How images of another size are to be resized, see `resize_to`.
    """
    metadata = _metadata(model, classes, resize)
    with TemporaryDirectory() as temporary:
        archive, onnx_file = (Path(temporary) / name for name in ("model.keras", "model.onnx"))
        model.save(archive)
        proof = _write_proven_onnx(onnx_file, model, images, metadata)
        files = {"model": archive} | ({"onnx": onnx_file} if proof["proven"] else {})
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(PYFUNC_FILE),
            code_paths=list(map(str, CODE_FILES)),
            artifacts={name: str(file) for name, file in files.items()},
            model_config={"classes": list(classes), "resize": resize},
            signature=SERVED_SIGNATURE,
            input_example={"image": [base64.b64encode(tf.io.encode_png(images[0]).numpy()).decode()]},
            pip_requirements=requirements("pandas", "pillow", *_optional_requirements(files)),
            metadata=metadata | {"onnx": proof},
        )
    _add_keras_flavor(folder, data="artifacts")


def _optional_requirements(files: Mapping[str, Path]) -> list[str]:
    """Return the packages that a server can do without: what runs its ONNX model, and what counts for Prometheus."""
    metrics = ["prometheus-client"] if find_spec("prometheus_client") else []
    return (["onnxruntime"] if "onnx" in files else []) + metrics


def import_onnx() -> ModuleType | None:
    """Return the module that writes ONNX models, or None where one of its libraries is not installed.

    It takes part of a second, so who will save a model calls this before the training, not first after it.
    """
    try:
        from pipeline.serving.export import onnx_model
    except ImportError:
        return None
    return onnx_model


def _write_proven_onnx(
    file: Path, model: keras.Model, images: npt.NDArray, metadata: dict[str, object]
) -> dict[str, object]:
    """Write a model as ONNX and compare it with Keras on some of the images; whatever fails, Keras serves the model.

    Returns:
        For the model's metadata: whether the two are `proven` to be equal, with their largest difference of a
        probability and on how many images; or why the ONNX model cannot be used.
    """
    onnx_model = import_onnx()
    if onnx_model is None:
        return {"proven": False, "reason": "onnx and onnxruntime are not installed"}
    try:
        onnx_model.write_onnx(model, file, metadata=metadata)
        some = images[:COMPARED_IMAGES]
        found = compare(predict_on_cpu(model, some), in_batches(onnx_model.load_onnx(file), some))
    except Exception as error:  # noqa: BLE001 - the end of a training must not depend on libraries that it can do without
        return {"proven": False, "reason": one_line(error, most=300)}
    return {
        "proven": found.is_within(ONNX_TOLERANCE),
        "max_difference": found.max_difference,
        "tolerance": ONNX_TOLERANCE,
        "images": found.images,
    }


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
