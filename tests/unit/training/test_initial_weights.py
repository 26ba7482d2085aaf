"""Weights of a trained model as the start of a training: what is taken over, and what is refused."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import safetensors.numpy

from pipeline.config.training import DataConfig, ModelConfig, TrainingConfig
from pipeline.config.weights_from import RULE
from pipeline.data.dataset import load_dataset
from pipeline.model.conv_mixer import HEAD, build_model, build_stock_model
from pipeline.model.ensemble import build_ensemble
from pipeline.runtime.errors import UsageError
from pipeline.tracking.models import LoggedModel
from pipeline.training import initial_weights
from pipeline.training.initial_weights import InitialWeights
from tests.unit.model.test_timm_weights import arrays_of

SOURCE = {"filters": 4, "depth": 2, "kernel_size": 3, "patch_size": 2}
CLASSES = ("zero", "one", "two")


def config_of(**settings):
    return TrainingConfig.build({"fast_layers": False, "batch_size": 8, **settings})


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=50), seed=0)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The file of a model with random weights and statistics, for gray images of 8x8 pixels."""
    path = tmp_path_factory.mktemp("models") / "model.keras"
    random_model((8, 8, 1)).save(path)
    return path


def random_model(image_shape, **changes):
    model = build_stock_model(ModelConfig.build(SOURCE | changes), image_shape, len(CLASSES))
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    return model


def taken_apart(model, tmp_path, classes=CLASSES):
    """Return the weights of a model as those of a logged one, which has classes."""
    model.save(tmp_path / "source.keras")
    loaded = InitialWeights.load(str(tmp_path / "source.keras"))
    return replace(loaded, origin="models:/m-1", classes=classes, resize="stretch", model_id="m-1", digest="")


def test_file_tells_the_architecture_and_has_a_digest(file):
    loaded = InitialWeights.load(str(file))
    assert dict(loaded.architecture) == SOURCE | {"activation": "gelu", "batch_norm_epsilon": 1e-3}
    assert loaded.origin == str(file) and len(loaded.digest) == 64 and loaded.classes == ()


def test_complete_takes_over_what_neither_recipe_nor_flag_sets(file):
    loaded = InitialWeights.load(str(file))
    # 256 is the default, but set
    completed = loaded.complete(config_of(filters=256, weights_from="model.keras"))
    assert (completed.filters, completed.depth, completed.kernel_size, completed.patch_size) == (256, 2, 3, 2)
    assert completed.weights_from == str(file)


def test_copy_to_a_network_for_other_classes_leaves_its_last_layer(file):
    loaded = InitialWeights.load(str(file))
    model = build_model(loaded.complete(config_of()), (8, 8, 1), 7)
    head = model.get_layer(HEAD).get_weights()
    loaded.copy_to(model, [str(number) for number in range(7)])
    for layer in model.layers:
        expected = head if layer.name == HEAD else loaded.layers.get(layer.name, [])
        for weight, same in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("fast_layers", [False, True])
def test_copy_to_a_network_for_the_same_classes_in_another_order_answers_alike(tmp_path, fast_layers):
    source = random_model((8, 8, 1))
    loaded = taken_apart(source, tmp_path)
    model = build_model(loaded.complete(config_of(fast_layers=fast_layers)), (8, 8, 1), 3)
    loaded.copy_to(model, ("two", "zero", "one"))
    images = np.random.default_rng(1).uniform(0, 255, (4, 8, 8, 1)).astype(np.float32)
    expected = source(images, training=False).numpy()[:, [2, 0, 1]]
    np.testing.assert_allclose(model(images, training=False), expected, rtol=1e-4)


@pytest.mark.parametrize(("channels", "others"), [(3, 1), (1, 3)], ids=["gray from RGB", "RGB from gray"])
def test_copy_to_a_network_for_other_channels_answers_gray_images_alike(tmp_path, channels, others):
    source = random_model((8, 8, channels))
    loaded = taken_apart(source, tmp_path)
    model = build_model(loaded.complete(config_of()), (8, 8, others), 3)
    loaded.copy_to(model, CLASSES)
    gray = np.random.default_rng(1).uniform(0, 255, (4, 8, 8, 1)).astype(np.float32)
    expected = source(np.repeat(gray, channels, axis=-1), training=False)
    np.testing.assert_allclose(model(np.repeat(gray, others, axis=-1), training=False), expected, rtol=1e-4)


def test_copy_to_a_network_for_larger_images_is_taken_over_as_it_is(tmp_path):
    loaded = taken_apart(random_model((8, 8, 1)), tmp_path)
    model = build_model(loaded.complete(config_of()), (16, 24, 1), 3)
    loaded.copy_to(model, CLASSES)
    for name, weights in loaded.layers.items():
        for weight, same in zip(model.get_layer(name).get_weights(), weights, strict=True):
            np.testing.assert_array_equal(weight, same)


def test_safetensors_file_is_read_with_timms_epsilon(tmp_path):
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays_of().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "timm.safetensors")
    loaded = InitialWeights.load(str(tmp_path / "timm.safetensors"))
    assert loaded.architecture["batch_norm_epsilon"] == 1e-5
    np.testing.assert_allclose(loaded.layers[HEAD][0], arrays["head.weight"].T)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"filters": 8},
            "patch_embedding is 2x2x1x4 in {file}, and 2x2x1x8 with these settings; leave out patch_size and filters",
        ),
        (
            {"kernel_size": 5},
            "weights_from must fit the network: block1_depthwise is 3x3x4x1 in {file}, and 5x5x4x1 with these "
            "settings; leave out kernel_size, filters and depth to take over the model's",
        ),
        (
            {"kernel_size": 5, "patch_size": 1},
            "patch_embedding is 2x2x1x4 in {file}, and 1x1x1x4 with these settings; leave out patch_size and filters",
        ),
        ({"depth": 3}, "block3_depthwise is missing in {file}, and 3x3x4x1 with these settings"),
        (
            {"depth": 1},
            "weights_from must fit the network: block2_depthwise is in {file}, and not in a network of depth=1; "
            "leave out depth to take over the model's",
        ),
    ],
)
def test_check_of_another_architecture_names_the_layer_and_both_shapes(file, digits, settings, message):
    loaded = InitialWeights.load(str(file))
    with pytest.raises(UsageError) as raised:
        loaded.check(loaded.complete(config_of(**settings)), digits.image_shape)
    assert message.format(file=file) in str(raised.value)


def test_check_of_other_pointwise_kernels_names_their_settings(file, digits):
    loaded = InitialWeights.load(str(file))
    layers = {**loaded.layers, "block2_pointwise": [np.zeros((1, 1, 4, 5)), np.zeros(5)]}
    with pytest.raises(UsageError) as raised:
        replace(loaded, layers=layers).check(loaded.complete(config_of()), digits.image_shape)
    assert str(raised.value) == (
        f"weights_from must fit the network: block2_pointwise is 1x1x4x5 in {file}, and 1x1x4x4 with these settings; "
        "leave out filters and depth to take over the model's"
    )


@pytest.mark.parametrize(("own", "others", "fits"), [(1, 3, True), (3, 1, True), (2, 2, True), (1, 2, False)])
def test_check_accepts_the_same_channels_and_gray_for_rgb_and_the_other_way_round(tmp_path, own, others, fits):
    loaded = taken_apart(random_model((8, 8, own)), tmp_path)
    config = loaded.complete(config_of())
    if fits:
        loaded.check(config, (8, 8, others))
    else:
        with pytest.raises(UsageError, match=f"^weights_from must be for images of {others} channels, or for gray"):
            loaded.check(config, (8, 8, others))


def test_check_of_two_channels_is_refused(tmp_path, digits):
    loaded = taken_apart(random_model((8, 8, 2)), tmp_path)
    with pytest.raises(UsageError, match="must be for images of 1 channels.* models:/m-1 is for 2$"):
        loaded.check(loaded.complete(config_of()), digits.image_shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.keras", "there is no file .*missing.keras"),
        ("broken.keras", "broken.keras cannot be read as one: .*accessible"),
        ("broken.safetensors", "broken.safetensors cannot be read as one: .*header"),
        ("other.keras", r"other.keras is no ConvMixer of this program \('?patch_embedding'?\)"),
        ("ensemble.keras", "ensemble.keras is an ensemble of 2; name a run that trained one network"),
        ("model.pth.tar", r"got .*model.pth.tar"),
        ("somewhere", "got somewhere"),
    ],
)
def test_what_is_no_model_of_a_known_kind_is_refused_in_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for broken in ("broken.keras", "broken.safetensors"):
        (tmp_path / broken).write_bytes(b"no model")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    build_ensemble([random_model((8, 8, 1))] * 2).save(tmp_path / "ensemble.keras")
    with pytest.raises(UsageError, match=message) as raised:
        InitialWeights.load(name)
    assert str(raised.value).startswith("weights_from must be a run's id, ") and "\n" not in str(raised.value)


def test_describe_says_what_is_taken_over(tmp_path, digits):
    loaded = taken_apart(random_model((8, 8, 3)), tmp_path)
    config = loaded.complete(config_of(activation="relu", resize="crop"))
    assert loaded.describe(config, digits) == (
        "models:/m-1: all layers but the last, as the classes differ; its kernels for RGB summed for gray images; "
        "activation relu instead of gelu; resize crop instead of stretch"
    )
    same = taken_apart(random_model((8, 8, 1)), tmp_path, classes=digits.classes)
    assert same.describe(same.complete(config_of()), digits) == "models:/m-1: all layers"
    assert replace(same, resize="").describe(same.complete(config_of(resize="crop")), digits).endswith("all layers")
    of_a_file = replace(same, classes=())
    config = of_a_file.complete(config_of(batch_norm_epsilon=1e-5))
    rgb = replace(digits, image_shape=(8, 8, 3))
    assert of_a_file.describe(config, rgb) == (
        "models:/m-1: all layers but the last, as it names no classes; its kernels for gray images shared out among "
        "RGB; batch_norm_epsilon 1e-05 instead of 0.001"
    )


def test_model_of_mlflow_comes_with_all_that_its_run_has_logged(monkeypatch):
    """Finding, loading and reading have tests of their own."""
    client, network = object(), random_model((8, 8, 3), activation="relu", batch_norm_epsilon=1e-5)
    logged = LoggedModel(network, CLASSES, (8, 8, 3), resize="pad", run_id="a" * 32, model_id="m-0")
    answers = {
        "resolve_model_uri": {(client, "b" * 32): "runs:/it/model"},
        "load_model": {(client, "runs:/it/model"): logged},
        "logged_splits": {(client, "a" * 32): ("f00d", {"validation": "1234"})},
    }
    monkeypatch.setattr(initial_weights, "TrackingClient", lambda: client)
    for name, known in answers.items():
        monkeypatch.setattr(initial_weights, name, lambda *given, known=known: known[given])
    for loaded, setting in (
        (InitialWeights.load("b" * 32), "weights_from"),
        (InitialWeights.load_logged("b" * 32, setting="teacher", rule="any"), "teacher"),
    ):
        assert loaded.origin == "models:/m-0" and loaded.setting == setting and loaded.digest == ""
        assert (loaded.model_id, loaded.run_id) == ("m-0", "a" * 32)
        assert (loaded.classes, loaded.resize, loaded.image_shape) == (CLASSES, "pad", (8, 8, 3))
        assert (loaded.data_fingerprint, loaded.splits) == ("f00d", {"validation": "1234"})
        assert loaded.architecture == SOURCE | {"activation": "relu", "batch_norm_epsilon": 1e-5}
        for layer in network.layers:
            for weight, same in zip(loaded.layers.get(layer.name, []), layer.get_weights(), strict=True):
                np.testing.assert_array_equal(weight, same)


def test_model_of_mlflow_that_is_no_convmixer_is_refused_by_the_rule_of_its_setting(monkeypatch):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    logged = LoggedModel(other, CLASSES, (8, 8, 1), resize="pad", run_id="a" * 32, model_id="m-0")
    monkeypatch.setattr(initial_weights, "TrackingClient", object)
    monkeypatch.setattr(initial_weights, "resolve_model_uri", lambda *given: "runs:/it/model")
    monkeypatch.setattr(initial_weights, "load_model", lambda *given: logged)
    for load, rule in (
        (lambda: InitialWeights.load("models:/m-0"), f"weights_from must be {RULE}"),
        (
            lambda: InitialWeights.load_logged("models:/m-0", setting="teacher", rule="a model"),
            "teacher must be a model",
        ),
    ):
        with pytest.raises(UsageError) as raised:
            load()
        assert str(raised.value).startswith(f"{rule}: models:/m-0 is no ConvMixer of this program (")


def test_network_whose_kernels_do_not_fit_each_other_is_refused(tmp_path):
    images = output = keras.Input((8, 8, 1))
    for layer in random_model((8, 8, 1)).layers[1:]:
        if layer.name == "block2_depthwise":
            layer = keras.layers.DepthwiseConv2D(5, padding="same", name="block2_depthwise")
        # without what joins two ways
        output = output if isinstance(layer, keras.layers.Add) else layer(output)
    keras.Model(images, output).save(tmp_path / "odd.keras")
    with pytest.raises(UsageError, match=r"odd.keras is no ConvMixer of this program \(block2_depthwise\)$"):
        InitialWeights.load(str(tmp_path / "odd.keras"))


@pytest.mark.parametrize(
    ("splits", "known"),
    [
        ({}, ""),
        ({"validation": "other"}, "validation"),
        ({"validation": "other", "test": "other"}, "validation and test"),
        # trained with refit
        ({"validation": None}, "validation"),
    ],
    ids=["the same split", "another seed", "another seed, without test images of the data's own", "refit"],
)
def test_leak_warns_of_a_model_that_was_trained_on_images_which_judge_this_one(file, digits, splits, known):
    own = {"validation": digits.validation.digest, "test": digits.test.digest} | splits
    loaded = replace(InitialWeights.load(str(file)), data_fingerprint=digits.fingerprint, splits=own)
    leak = loaded.leak(digits)
    if known:
        assert leak.startswith(f"{known} accuracy may flatter: weights_from {file} was trained on some of these images")
    else:
        assert leak is None
    assert replace(loaded, data_fingerprint="other").leak(digits) is None


def test_leak_says_what_would_do(file, digits):
    loaded = replace(InitialWeights.load(str(file)), data_fingerprint=digits.fingerprint)
    assert loaded.leak(digits).endswith("; try one of the same seed, validation_fraction and refit")
    assert loaded.leak(digits, remedy="try final_seeds=1").endswith("otherwise; try final_seeds=1")
    # no model of folds is one network, so there is none of the same split
    folds = load_dataset(DataConfig(dataset="digits", train_examples=50, folds=2), seed=0)
    assert loaded.leak(folds).endswith("; leave folds out, or take one that was trained on other images")


def test_leak_of_a_training_without_validation_images_is_none(file):
    refit = load_dataset(DataConfig(dataset="digits", train_examples=50, refit=True), seed=0)
    splits = {"validation": "other", "test": refit.test.digest}
    loaded = replace(InitialWeights.load(str(file)), data_fingerprint=refit.fingerprint, splits=splits)
    assert loaded.leak(refit) is None
