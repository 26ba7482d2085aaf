"""The settings of a training run: their sections."""

from pipeline.config.training import TrainingConfig

SECTIONS = ("data", "augmentation", "model", "transfer", "optimization", "training", "runtime")


def test_sections_hold_every_setting_once_in_the_order_of_the_flat_names():
    config = TrainingConfig()
    names = [name for section in SECTIONS for name in type(getattr(config, section)).model_fields]
    assert names == list(TrainingConfig.model_fields) and len(set(names)) == len(names)
    assert list(TrainingConfig.sections()) == list(SECTIONS)


def test_sections_have_the_values_of_the_flat_names():
    config = TrainingConfig.build({"depth": "3", "optimizer": "muon", "flip": "true", "image_size": "24,32"})
    assert config.depth == config.model.depth == 3
    assert config.optimizer == config.optimization.optimizer == "muon"
    assert config.augmentation.flip and config.data.image_size == (24, 32)
    for section in SECTIONS:
        part = getattr(config, section)
        assert part.model_dump() == config.model_dump(include=set(type(part).model_fields))
