"""Settings that do not suit the images: what is refused, and what is warned of."""

import pytest

from pipeline.config.data_checks import slow_batch_norm, unequal_classes, validate_against_data
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError


def fits(image_shape=(32, 32, 3), training_images=1000, **values):
    validate_against_data(TrainingConfig.build(values), image_shape=image_shape, training_images=training_images)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"patch_size": 5},
            "patch_size must divide the image side: 32x32 pixels, got patch_size=5; try one of 1, 2, 4, 8, 16, 32",
        ),
        (
            {"patch_size": 8, "kernel_size": 8},
            "kernel_size must be at most 2 x grid - 1: 32x32 pixels in patches of 8 make a grid of 4",
        ),
        (
            {"batch_size": 100, "gradient_accumulation": 11},
            "gradient_accumulation must leave an epoch at least one update: 1000 training images in batches of 100, "
            "got gradient_accumulation=11; try 10 or less",
        ),
        (
            {"batch_size": 1001},
            "batch_size must not exceed the training images: 1000 here, got batch_size=1001; try 128",
        ),
        ({"folds": 5, "filter_steps": 3}, "filter_steps must be 0 with folds, whose networks draw no kernels: got 3"),
        (
            {"refit": True, "early_stopping_epochs": 3},
            "early_stopping_epochs must be none with refit, which leaves no validation images to stop by, got 3; set "
            "epochs instead",
        ),
        (
            {"refit": True, "folds": 3},
            "folds must be none with refit, which leaves no images to validate a fold by, got 3",
        ),
        ({"cutout": 32}, "cutout must be less than the image side: 32x32 pixels, got cutout=32; try 16"),
        ({"translation": 32}, "translation must be less than the image side: 32x32 pixels, got translation=32; try 4"),
    ],
)
def test_validate_against_data_refuses_settings_that_do_not_fit_the_images(values, message):
    with pytest.raises(UsageError) as refused:
        fits(**values)
    assert str(refused.value).startswith(message)


def test_validate_against_data_accepts_the_largest_values_that_fit():
    fits(patch_size=8, kernel_size=7)
    fits(batch_size=1000)
    fits(translation=31)
    fits(image_shape=(24, 32, 1), patch_size=8, kernel_size=5)


def test_rare_classes_are_made_up_for_once():
    fits(class_weights="balanced")
    fits(sampling="balanced")
    with pytest.raises(UsageError, match="class_weights must be none with sampling=balanced, .*: got effective"):
        fits(class_weights="effective", sampling="balanced")


def test_more_clean_epochs_than_epochs_are_refused():
    fits(clean_epochs=10, epochs=10)
    with pytest.raises(UsageError, match="clean_epochs must be at most epochs: epochs=10, got clean_epochs=11"):
        fits(clean_epochs=11, epochs=10)


def test_validate_against_data_checks_both_sides_of_images_that_are_not_square():
    with pytest.raises(UsageError, match="try one of 1, 2, 4, 8$"):
        fits(image_shape=(24, 32, 1), patch_size=3)
    with pytest.raises(UsageError, match="make a grid of 3, got kernel_size=6; try 5 or less"):
        fits(image_shape=(24, 32, 1), patch_size=8, kernel_size=6)


def test_unequal_classes_warns_below_a_tenth_unless_a_setting_makes_up_for_it():
    images = {"cat": 1000, "dog": 400, "lynx": 99}
    assert unequal_classes(TrainingConfig(), images) == (
        "rare classes may be passed over: lynx has 99 training images and cat 1,000; try class_weights=balanced or "
        "sampling=balanced, and monitor=val_balanced_accuracy"
    )
    assert unequal_classes(TrainingConfig(), images | {"lynx": 100}) is None
    assert unequal_classes(TrainingConfig(class_weights="effective"), images) is None
    assert unequal_classes(TrainingConfig(sampling="balanced"), images) is None


def test_slow_batch_norm_warns_with_a_momentum_that_suits_the_steps():
    warning = slow_batch_norm(TrainingConfig(batch_norm_momentum=0.99), steps_per_epoch=100)
    assert warning is not None and "37%" in warning and "try 0.97 or less" in warning
    assert 0.97**100 <= 0.05
    assert slow_batch_norm(TrainingConfig(batch_norm_momentum=0.99), steps_per_epoch=352) is None
    assert slow_batch_norm(TrainingConfig(batch_norm_momentum=0.9), steps_per_epoch=29) is None
    assert slow_batch_norm(TrainingConfig(batch_norm_momentum=0.99, ema_momentum=0.9), steps_per_epoch=100) is None
