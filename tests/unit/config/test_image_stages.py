"""Which size the images of each epoch have, and which epochs are clean."""

import pytest

from pipeline.config.image_stages import check_image_stages, image_stages, is_clean
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError


def config(sizes, **settings):
    return TrainingConfig.build({"progressive_resize": sizes, "epochs": 10, "patch_size": 2, **settings})


def test_image_stages_without_the_setting_are_one_of_the_images_own_size():
    assert image_stages(config(None), (32, 32, 3)) == [(10, (32, 32), False)]


def test_image_stages_end_where_the_shares_of_the_epochs_do():
    stages = image_stages(config("16:0.3,24:0.4"), (32, 32, 3))
    assert stages == [(3, (16, 16), False), (7, (24, 24), False), (10, (32, 32), False)]


def test_image_stages_keep_the_ratio_of_the_sides():
    assert image_stages(config("16:.5"), (32, 48, 1)) == [(5, (16, 24), False), (10, (32, 48), False)]


@pytest.mark.parametrize(
    ("clean_epochs", "expected"),
    [
        (2, [(5, (16, 16), False), (8, (32, 32), False), (10, (32, 32), True)]),
        (5, [(5, (16, 16), False), (10, (32, 32), True)]),
        (7, [(3, (16, 16), False), (5, (16, 16), True), (10, (32, 32), True)]),
        (10, [(5, (16, 16), True), (10, (32, 32), True)]),
    ],
)
def test_image_stages_with_clean_epochs_are_clean_at_the_end(clean_epochs, expected):
    settings = config("16:0.5", clean_epochs=clean_epochs)
    assert image_stages(settings, (32, 32, 3)) == expected
    assert sum(is_clean(settings, epoch) for epoch in range(10)) == clean_epochs


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("33:0.3", "sides below the image's that patch_size=2 divides"),
        ("15:0.3", "try a side of 2, 4, 6"),
        ("16:0.5,24:0.5", "at least one epoch of epochs=10"),
        ("16:0.01", "at least one epoch of epochs=10"),
    ],
)
def test_check_image_stages_names_what_does_not_suit(sizes, message):
    with pytest.raises(UsageError, match="progressive_resize must") as caught:
        check_image_stages(config(sizes), (32, 32, 3))
    assert message in str(caught.value)


def test_check_image_stages_of_a_longer_side_that_patches_do_not_divide_is_refused():
    # 16 of 32 makes 23 of 46
    with pytest.raises(UsageError, match="images of 32x46 pixels"):
        check_image_stages(config("16:0.5"), (32, 46, 3))


@pytest.mark.parametrize("text", ["16", "16:1.0", "16:0", "0:0.5", "16:0.5;24:0.2", "a:0.5", "16:0.5,"])
def test_text_of_another_form_is_refused_with_the_form(text):
    with pytest.raises(
        UsageError, match=r"progressive_resize must be side:share with commas between, such as 16:0.3,24:0.3 or none"
    ):
        config(text)
