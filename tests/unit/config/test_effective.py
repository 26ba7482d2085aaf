"""Settings without effect: which they are, and that a training does not depend on them."""

import pytest

from pipeline.config.effective import IDLE, LEFT_OUT_OF_CLEAN_EPOCHS, effective
from pipeline.config.training import CHANGE_NO_RESULT, CHANGE_ROUNDING, TrainingConfig
from pipeline.data.augmentation.registry import IMAGE_AUGMENTATIONS


@pytest.mark.parametrize(
    ("setting", "value", "idle", "used"),
    [
        ("crop_ratio", 2.0, {"crop_scale": 1}, {"crop_scale": 0.9}),
        ("randaugment_magnitude", 3, {"randaugment_layers": 0}, {"randaugment_layers": 1}),
        ("clean_epochs", 1, {"flip": True, "translation": 2}, {"cutout": 8}),
        *(("clean_epochs", 1, {}, {name: 0.5}) for name in ("color_jitter", "random_erasing", "mixup_alpha")),
        ("clean_epochs", 1, {"randaugment_layers": 0}, {"randaugment_layers": 1}),
        ("clean_epochs", 1, {"cutmix_alpha": 0}, {"cutmix_alpha": 1}),
        ("steps_per_execution", 4, {}, None),
        ("mix_probability", 0.5, {}, {"mixup_alpha": 0.2}),
        ("mix_probability", 0.5, {"mixup_alpha": 0}, {"cutmix_alpha": 1}),
        ("warmup_fraction", 0.2, {"schedule": "constant"}, {"schedule": "cosine"}),
        ("muon_momentum", 0.8, {"optimizer": "adamw"}, {"optimizer": "muon"}),
        ("early_stopping_epochs", 10, {"epochs": 10}, {"epochs": 11}),
        ("early_stopping_epochs", 10, {"epochs": 15, "head_epochs": 5}, {"epochs": 16, "head_epochs": 5}),
        ("early_stopping_epochs", 10, {"epochs": 10, "head_epochs": 10}, {"epochs": 11, "head_epochs": 11}),
        ("depthwise_init", "covariance", {"weights_from": "models:/a@champion"}, {}),
        ("teacher", "models:/a@champion", {"teacher_weight": 0}, {"teacher_weight": 0.1}),
        ("teacher_weight", 0.2, {}, {"teacher": "models:/a@champion"}),
        ("teacher_weight", 0.0, {}, None),
        ("teacher_temperature", 2.0, {}, {"teacher": "models:/a@champion"}),
        ("teacher_temperature", 2.0, {"teacher": "models:/a@champion", "teacher_weight": 0}, None),
        ("monitor", "val_loss", {"refit": True}, {}),
        ("checkpoint_minutes", 3, {}, None),
    ],
)
def test_effective_leaves_out_a_setting_only_where_it_has_no_effect(setting, value, idle, used):
    def with_both(others):
        return [effective(TrainingConfig.build(others | given)) for given in ({}, {setting: value})]

    first, second = with_both(idle)
    assert first == second and getattr(first, setting) == getattr(TrainingConfig(), setting)
    if used is not None:
        first, second = with_both(used)
        assert first != second and getattr(second, setting) == value


def test_clean_epochs_have_an_effect_beside_each_augmentation_that_they_leave_out():
    left_out = [each for each in IMAGE_AUGMENTATIONS.values() if not each.is_clean]
    without = TrainingConfig.build(dict.fromkeys(LEFT_OUT_OF_CLEAN_EPOCHS, 0))
    assert not any(each.is_on(without) for each in left_out)
    # these and the two that mix images
    assert len(LEFT_OUT_OF_CLEAN_EPOCHS) == len(left_out) + 2


def test_effective_keeps_all_other_settings():
    config = TrainingConfig.build({"depth": 3, "flip": True, "seed": 5, "randaugment_layers": 2})
    left = set(IDLE) | CHANGE_NO_RESULT | CHANGE_ROUNDING
    assert effective(config).model_dump(exclude=left) == config.model_dump(exclude=left)
    assert effective(effective(config)) == effective(config)
