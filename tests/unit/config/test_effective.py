"""Settings without effect: which they are, and that a training does not depend on them."""

import pytest

from pipeline.config.effective import IDLE, effective
from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig


@pytest.mark.parametrize(
    ("setting", "value", "idle", "used"),
    [
        ("crop_ratio", 2.0, {"crop_scale": 1}, {"crop_scale": 0.9}),
        ("randaugment_magnitude", 3, {"randaugment_layers": 0}, {"randaugment_layers": 1}),
        ("mix_probability", 0.5, {}, {"mixup_alpha": 0.2}),
        ("mix_probability", 0.5, {"mixup_alpha": 0}, {"cutmix_alpha": 1}),
        ("warmup_fraction", 0.2, {"schedule": "constant"}, {"schedule": "cosine"}),
        ("muon_momentum", 0.8, {"optimizer": "adamw"}, {"optimizer": "muon"}),
        ("early_stopping_epochs", 10, {"epochs": 10}, {"epochs": 11}),
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


def test_effective_keeps_all_other_settings():
    config = TrainingConfig.build({"depth": 3, "flip": True, "seed": 5, "randaugment_layers": 2})
    left = set(IDLE) | CHANGE_NO_RESULT
    assert effective(config).model_dump(exclude=left) == config.model_dump(exclude=left)
    assert effective(effective(config)) == effective(config)
