"""The number of parameters, computed without building the model."""

import pytest

from pipeline.config.training import ModelConfig
from pipeline.model.conv_mixer import conv_mixer
from pipeline.model.size import count_parameters


@pytest.mark.parametrize(
    ("size", "image_shape", "classes"),
    [
        ({"filters": 256, "depth": 8, "kernel_size": 5, "patch_size": 2}, (32, 32, 3), 10),
        ({"filters": 4, "depth": 2, "kernel_size": 3, "patch_size": 4}, (8, 12, 1), 3),
    ],
)
def test_count_parameters_equals_the_count_of_the_built_model(size, image_shape, classes):
    built = conv_mixer(image_shape, classes, **size)
    assert built.count_params() == count_parameters(ModelConfig.build(size), image_shape, classes)


def test_conv_mixer_256_8_has_602_890_parameters():
    assert count_parameters(ModelConfig.build({}), (32, 32, 3), 10) == 602_890
