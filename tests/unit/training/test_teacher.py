"""A training with a teacher: the targets of a batch, what is learned from them, and which teachers are refused."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.training import TEACHER_RULE, DataConfig, ModelConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.model.conv_mixer import HEAD, build_model, build_stock_model
from pipeline.runtime.errors import UsageError
from pipeline.training.callbacks import CheckpointSaver
from pipeline.training.fit import fit
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.teacher import TargetCrossentropy, Teacher

ARCHITECTURE = {"filters": 6, "depth": 1, "kernel_size": 3, "patch_size": 2}
CONFIG = TrainingConfig.build(
    {"dataset": "digits", "filters": 8, "depth": 1, "kernel_size": 3, "batch_size": 50, "learning_rate": 0.05}
    | {"epochs": 2, "batch_norm_momentum": 0.5, "precision": "float32", "jit_compile": False, "translation": 1}
    | {"teacher": "models:/m-1", "teacher_weight": 1.0}
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)


@pytest.fixture(scope="module")
def model(digits):
    """A network whose predictions for digits are of several classes, for images of 8x8 gray pixels."""
    keras.utils.set_random_seed(3)
    model = build_stock_model(ModelConfig.build(ARCHITECTURE), (8, 8, 1), 10)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name.endswith("_norm"):
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    kernel, bias = model.get_layer(HEAD).get_weights()
    images = digits.train.take(slice(None))[0]
    pooled = keras.Model(model.input, model.get_layer("pooling").output)(images, training=False).numpy()
    kernel = 2 * kernel / pooled.std(axis=0)[:, None]
    model.get_layer(HEAD).set_weights([kernel, bias - pooled.mean(axis=0) @ kernel])
    return model


@pytest.fixture(scope="module")
def teacher(model, digits):
    layers = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    architecture = ARCHITECTURE | {"activation": "gelu", "batch_norm_epsilon": 1e-3}
    network = InitialWeights("models:/m-1", layers, architecture, classes=digits.classes, image_shape=(8, 8, 1))
    return Teacher(replace(network, setting="teacher", resize="stretch", model_id="m-1", run_id="a" * 32))


@pytest.fixture(scope="module")
def labels_at_random(digits):
    """Return digits whose training images have labels that say nothing of them."""
    labels = digits.train.labels.copy()
    labels[digits.train.rows] = np.random.default_rng(1).permutation(labels[digits.train.rows])
    return replace(digits, train=replace(digits.train, labels=labels))


@pytest.fixture(scope="module")
def taught(digits, teacher):
    """Return the result of a training by the teacher alone, the teacher's network after it, and the states."""
    networks, states = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.training.teacher.build_model",
            lambda *arguments: networks.append(build_model(*arguments)) or networks[-1],
        )
        result = fit(CONFIG, digits, [CheckpointSaver(states.append)], teacher=teacher)
    return result, networks[0], states


def assert_equal_weights(one, other):
    for weight, same in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("fast_layers", [False, True])
def test_teach_mixes_labels_and_the_teachers_probabilities_at_a_temperature(digits, model, teacher, fast_layers):
    changes = {"teacher_weight": 0.25, "teacher_temperature": 2.0, "fast_layers": fast_layers}
    # the teacher knows the classes in another order
    order = np.random.default_rng(2).permutation(10)
    classes = tuple(digits.classes[index] for index in order)
    teach = teacher.build(CONFIG.model_copy(update=changes), replace(digits, classes=classes))
    images, _ = digits.train.take(slice(20))
    labels = np.random.default_rng(0).dirichlet(np.ones(10), 20).astype(np.float32)
    seen, targets, weights = teach((tf.constant(images), tf.constant(labels), tf.ones(20)))
    probabilities = np.sqrt(model(images, training=False).numpy())
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True))[:, order]
    np.testing.assert_array_equal(seen, images)
    np.testing.assert_array_equal(targets[:, :10], labels)
    np.testing.assert_allclose(targets[:, 10:], 0.75 * labels + 0.25 * probabilities, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(weights, np.ones(20))


@pytest.mark.parametrize(
    ("fast_layers", "activation", "is_fast"), [(True, "gelu", True), (False, "gelu", False), (True, "relu", False)]
)
def test_teacher_is_built_in_its_own_architecture_with_the_students_fast_layers_where_they_suit(
    digits, model, teacher, monkeypatch, fast_layers, activation, is_fast
):
    built = []

    def build(config, image_shape, classes):
        built.append((config, image_shape, classes))
        return build_model(config, image_shape, classes)

    monkeypatch.setattr("pipeline.training.teacher.build_model", build)
    architecture = {**teacher.network.architecture, "activation": activation}
    own = Teacher(replace(teacher.network, architecture=architecture))
    changes = {"fast_layers": fast_layers, "depthwise_init": "covariance", "filters": 16}
    own.build(CONFIG.model_copy(update=changes), replace(digits, image_shape=(16, 24, 1)))
    ((config, image_shape, classes),) = built
    assert (image_shape, classes) == ((8, 8, 1), 10)
    assert (config.filters, config.activation, config.depthwise_init) == (6, activation, "glorot_uniform")
    assert config.fast_layers is is_fast


def test_complete_names_the_model_that_a_uri_of_the_latest_stands_for(teacher):
    config = CONFIG.model_copy(update={"teacher": "models:/mine@champion"})
    assert teacher.complete(config) == CONFIG.model_copy(update={"teacher": "models:/m-1"})


def test_load_takes_the_logged_model_that_the_setting_names(monkeypatch):
    given = []
    monkeypatch.setattr(InitialWeights, "load_logged", lambda *origin, **named: given.append((origin, named)))
    Teacher.load("models:/m-1")
    assert given == [(("models:/m-1",), {"setting": "teacher", "rule": TEACHER_RULE})]


def test_teach_resizes_images_to_the_teachers_size(digits, model, teacher):
    images = tf.constant(digits.train.take(slice(4))[0][:, ::2, ::2])
    _, targets = teacher.build(CONFIG, digits)((images, tf.zeros((4, 10))))
    expected = model(tf.image.resize(images, (8, 8)), training=False)
    np.testing.assert_allclose(targets[:, 10:], expected, rtol=1e-3, atol=1e-6)


def test_target_crossentropy_takes_the_last_columns_and_labels_alone_as_they_are():
    random = np.random.default_rng(0)
    labels, targets, predictions = (random.dirichlet(np.ones(4), 6).astype(np.float32) for _ in range(3))
    expected = keras.losses.CategoricalCrossentropy()(targets, predictions)
    assert TargetCrossentropy()(np.hstack([labels, targets]), predictions) == expected
    assert TargetCrossentropy()(targets, predictions) == expected


def test_student_learns_to_answer_as_its_teacher(digits, model, teacher, labels_at_random):
    """Without validation images, by which an earlier epoch could be chosen."""
    changes = {"epochs": 15, "batch_size": 25, "learning_rate": 0.02, "teacher_weight": 0.9, "translation": 0}
    config = CONFIG.model_copy(update=changes)
    data = replace(labels_at_random, validation=replace(digits.validation, rows=digits.validation.rows[:0]))
    student = fit(config, data, teacher=teacher).model
    images, labels = data.train.take(slice(None))
    answers, own = (np.argmax(network(images, training=False), axis=1) for network in (model, student))
    commonest = np.bincount(answers).max() / len(answers)
    assert np.mean(answers == own) > commonest + 0.15 > 0.45 > np.mean(own == labels)


def test_labels_have_no_part_in_the_weights_where_the_teacher_has_all_but_in_the_accuracy(
    taught, teacher, labels_at_random
):
    """The batches of one of the two are made in the compiled step, two steps at a time."""
    result, _, _ = taught
    other = fit(
        CONFIG.model_copy(update={"data_on": "device", "steps_per_execution": 2}), labels_at_random, teacher=teacher
    )
    assert_equal_weights(result.model, other.model)
    assert result.history["loss"] == other.history["loss"]
    assert result.history["val_loss"] == other.history["val_loss"]
    assert result.history["accuracy"] != other.history["accuracy"]


def test_fit_leaves_the_teacher_as_it_is(taught, model):
    _, network, _ = taught
    assert_equal_weights(network, model)


def test_fit_with_a_teacher_of_no_weight_equals_one_without_a_teacher(digits, teacher):
    one = fit(CONFIG.model_copy(update={"epochs": 1, "teacher": None}), digits)
    other = fit(CONFIG.model_copy(update={"epochs": 1, "teacher_weight": 0.0}), digits, teacher=teacher)
    assert_equal_weights(one.model, other.model)
    assert one.history["val_loss"] == other.history["val_loss"]


def test_resumed_training_with_a_teacher_equals_an_uninterrupted_one(taught, digits, teacher):
    whole, _, states = taught
    resumed = fit(CONFIG, digits, start=states[0], teacher=teacher)
    assert_equal_weights(whole.model, resumed.model)
    assert whole.history["loss"] == resumed.history["loss"]


def test_teacher_with_relu_has_layers_that_know_it(digits, teacher):
    relu = replace(teacher.network, architecture=teacher.network.architecture | {"activation": "relu"})
    teach = Teacher(relu).build(CONFIG.model_copy(update={"fast_layers": True}), digits)
    images, labels = digits.train.take(slice(4))
    assert np.isfinite(teach((tf.constant(images), tf.one_hot(labels, 10)))[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ("cat", "dog")},
            "teacher must tell the data's classes apart, 0, 1, 2, 3, 4 and 5 more: models:/m-1 has cat, dog",
        ),
        (
            {"layers": {"patch_embedding": [np.zeros((2, 2, 2, 6)), np.zeros(6)]}},
            "teacher must be for images of 1 channels, or for gray where these are RGB or the other way round: "
            "models:/m-1 is for 2",
        ),
    ],
    ids=["classes", "channels"],
)
def test_check_refuses_a_teacher_of_other_data_in_one_line(digits, teacher, changes, message):
    with pytest.raises(UsageError) as raised:
        Teacher(replace(teacher.network, **changes)).check(CONFIG, digits)
    assert str(raised.value) == message


def test_load_of_a_model_that_does_not_exist_names_it(store):
    with pytest.raises(UsageError, match="models:/absent@champion"):
        Teacher.load("models:/absent@champion")


def test_describe_says_who_teaches_and_how_much(digits, teacher):
    teacher.check(CONFIG, digits)
    assert teacher.describe(CONFIG, digits) == "models:/m-1: ConvMixer-6/1, 1 of each target"
    config = CONFIG.model_copy(
        update={"teacher_weight": 0.3, "teacher_temperature": 4.0, "progressive_resize": "4:0.5"}
    )
    assert teacher.describe(config, digits) == (
        "models:/m-1: ConvMixer-6/1, 0.3 of each target, at temperature 4, "
        "images of another size than 8x8 resized for it"
    )
