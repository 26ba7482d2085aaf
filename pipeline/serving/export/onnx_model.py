"""A trained network as an ONNX model: written layer by layer, without a trace, and run by onnxruntime.

The network has so few kinds of layers that each is one or two operators here, and writing all takes milliseconds. A
kind that is not known is refused. Images are raw pixels in the order of Keras, (n, height, width, channels), and inside
the graph (n, channels, height, width), which ONNX's convolutions take.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline.serving.export.comparison import Predict

INPUT, OUTPUT = "images", "probabilities"
# The first with an operator for GELU
OPSET = 20
# The oldest file format that has this opset, for older runtimes
IR_VERSION = 9
ACTIVATIONS = {"gelu": "Gelu", "relu": "Relu", "softmax": "Softmax"}
# onnxruntime's level of messages: errors
ERRORS = 3


class NotExportable(Exception):
    """A network has a layer, or a setting of one, that is not known here."""


def write_onnx(model: keras.Model, file: Path, *, metadata: dict[str, Any]) -> None:
    """Write a network, or an ensemble of several, as an ONNX model.

    Args:
        model: Raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes).
        file: What to write.
        metadata: What else is to be known of the model, such as the names of its classes; numbers and lists as JSON.

    Raises:
        NotExportable: The network has a layer that is not known here.
    """
    graph = _Graph()
    images = graph.add("Transpose", INPUT, perm=[0, 3, 1, 2])
    graph.add("Identity", _add_network(graph, model, images), to=OUTPUT)
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            model.name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", *model.input_shape[1:]])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", *model.output_shape[1:]])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="convmixer-pipeline",
    )
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto, full_check=True)
    file.write_bytes(proto.SerializeToString())


def load_onnx(file: Path) -> Predict:
    """Return a function from images (n, h, w, c) to probabilities (n, classes), run by onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def predict(images: npt.NDArray) -> npt.NDArray[np.float32]:
        [probabilities] = session.run([OUTPUT], {INPUT: images.astype(np.float32)})
        return np.asarray(probabilities)

    return predict


class _Graph:
    """The operators and weights written so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its result."""
        result = to or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        return result

    def weight(self, values: npt.ArrayLike) -> str:
        """Add an array of float32 and return its name."""
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name


def _add_network(graph: _Graph, model: keras.Model, images: str) -> str:
    """Add all layers of a network to a graph, and return the name of its result.

    Args:
        graph: Gets the operators.
        model: The network.
        images: Name of its input (n, c, h, w).
    """
    results: dict[str, str] = {}
    result = images
    for layer, sources in _calls(model):
        if isinstance(layer, keras.layers.InputLayer):
            result = images
        elif isinstance(layer, keras.Model):
            result = _add_network(graph, layer, results[sources[0]])
        else:
            result = _converter(layer)(graph, layer, *(results[source] for source in sources))
        results[layer.name] = result
    return result


def _calls(model: keras.Model) -> Iterator[tuple[keras.Operation, list[str]]]:
    """Yield each layer of a network after those whose results it takes, whose names are given with it.

    What `keras.ops` adds to a network, such as a logarithm, is no layer for Keras and stands here among them.
    """
    if isinstance(model, keras.Sequential):
        yield keras.layers.InputLayer(model.input_shape[1:], name=INPUT), []
        previous = INPUT
        for layer in model.layers:
            yield layer, [previous]
            previous = layer.name
        return
    # not get_layer, which finds layers only
    operations = {operation.name: operation for operation in model.operations}
    for entry in model.get_config()["layers"]:
        calls = entry["inbound_nodes"]
        if len(calls) > 1:
            raise NotExportable(f"the layer {entry['name']} is used {len(calls)} times")
        sources = [name for call in calls for name in _sources(call["args"])]
        yield operations[entry["name"]], sources


def _sources(arguments: Any) -> Iterator[str]:
    """Yield the names of the layers whose results stand among a layer's arguments, as Keras serializes them."""
    for argument in arguments:
        if isinstance(argument, list | tuple):
            yield from _sources(argument)
        elif isinstance(argument, dict) and argument.get("class_name") == "__keras_tensor__":
            yield argument["config"]["keras_history"][0]


def _converter(layer: keras.Operation) -> Callable[..., str]:
    """Return the function that adds a layer to a graph."""
    try:
        return CONVERTERS[type(layer).__name__]
    except KeyError:
        raise NotExportable(f"the layer {layer.name} is a {type(layer).__name__}") from None


def _require(layer: keras.Layer, **values: object) -> None:
    """Raise NotExportable unless a layer has these settings."""
    for name, value in values.items():
        if (got := getattr(layer, name)) != value:
            raise NotExportable(f"the layer {layer.name} has {name}={got}")


def _require_flat(layer: keras.Layer) -> None:
    """Raise NotExportable unless a layer's results are (n, values), which have one order in Keras and in the graph."""
    if len(layer.output.shape) != 2:
        raise NotExportable(f"the layer {layer.name} has an output of the shape {layer.output.shape}")


def _add_rescaling(graph: _Graph, layer: keras.Layer, x: str) -> str:
    scaled = graph.add("Mul", x, graph.weight(_per_channel(layer.scale)))
    return graph.add("Add", scaled, graph.weight(_per_channel(layer.offset))) if np.any(layer.offset) else scaled


def _per_channel(values: npt.ArrayLike) -> npt.NDArray:
    """Return one number, or one for each channel, in a shape that meets (n, c, h, w)."""
    return np.reshape(values, (-1, 1, 1)) if np.ndim(values) else np.asarray(values)


def _add_convolution(graph: _Graph, layer: keras.Layer, x: str) -> str:
    _require(layer, data_format="channels_last", groups=1)
    kernel = np.transpose(layer.get_weights()[0], (3, 2, 0, 1))  # (kh, kw, c, filters) -> (filters, c, kh, kw)
    return _add_any_convolution(graph, layer, x, kernel, groups=1)


def _add_depthwise_convolution(graph: _Graph, layer: keras.Layer, x: str) -> str:
    _require(layer, data_format="channels_last", depth_multiplier=1)
    kernel = np.transpose(layer.get_weights()[0], (2, 3, 0, 1))  # (kh, kw, c, 1) -> (c, 1, kh, kw)
    return _add_any_convolution(graph, layer, x, kernel, groups=len(kernel))


def _add_any_convolution(graph: _Graph, layer: keras.Layer, x: str, kernel: npt.NDArray, *, groups: int) -> str:
    _require(layer, dilation_rate=(1, 1))
    pads = [0, 0, 0, 0]
    if layer.padding == "same":
        # with strides it would depend on the size of the images
        _require(layer, strides=(1, 1))
        # TensorFlow pads more at the end
        height, width = kernel.shape[2:]
        pads = [(height - 1) // 2, (width - 1) // 2, height // 2, width // 2]
    weights = [graph.weight(kernel), *(graph.weight(bias) for bias in layer.get_weights()[1:])]
    result = graph.add("Conv", x, *weights, group=groups, strides=list(layer.strides), pads=pads)
    return _add_activation(graph, layer, result)


def _add_activation(graph: _Graph, layer: keras.Layer, x: str) -> str:
    name = layer.activation.__name__
    if name == "linear":
        return x
    if name not in ACTIVATIONS or (name == "softmax" and len(layer.output.shape) != 2):
        raise NotExportable(f"the layer {layer.name} has the activation {name}")
    return graph.add(ACTIVATIONS[name], x)


def _add_batch_norm(graph: _Graph, layer: keras.Layer, x: str) -> str:
    _require(layer, scale=True, center=True)
    if layer.axis not in (-1, len(layer.output.shape) - 1):
        raise NotExportable(f"the layer {layer.name} has axis={layer.axis}")
    # in Keras and ONNX alike: gamma, beta, mean, variance
    weights = [graph.weight(values) for values in layer.get_weights()]
    return graph.add("BatchNormalization", x, *weights, epsilon=layer.epsilon)


def _add_pooling(graph: _Graph, layer: keras.Layer, x: str) -> str:
    _require(layer, data_format="channels_last", keepdims=False)
    return graph.add("Flatten", graph.add("GlobalAveragePool", x))


def _add_dense(graph: _Graph, layer: keras.Layer, x: str) -> str:
    _require_flat(layer)
    return _add_activation(graph, layer, graph.add("Gemm", x, *map(graph.weight, layer.get_weights())))


def _add_softmax(graph: _Graph, layer: keras.Layer, x: str) -> str:
    _require(layer, axis=-1)
    _require_flat(layer)
    return graph.add("Softmax", x)


CONVERTERS: dict[str, Callable[..., str]] = {
    "Activation": _add_activation,
    "Add": lambda graph, layer, *terms: graph.add("Add" if len(terms) == 2 else "Sum", *terms),
    "Average": lambda graph, layer, *terms: graph.add("Mean", *terms),
    "BatchNormalization": _add_batch_norm,
    "Conv2D": _add_convolution,
    "Dense": _add_dense,
    "DepthwiseConv2D": _add_depthwise_convolution,
    "GlobalAveragePooling2D": _add_pooling,
    # of keras.ops; a temperature is folded into an ensemble with it
    "Log": lambda graph, operation, x: graph.add("Log", x),
    "Rescaling": _add_rescaling,
    "Softmax": _add_softmax,
}
