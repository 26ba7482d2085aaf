"""The formats that a model is exported to."""

from typing import get_args

import numpy as np
import pytest

from pipeline.config.commands import EXPORT_MODULES, TOLERANCES, ExportFormat
from pipeline.serving.export.comparison import compare, predict_on_cpu
from pipeline.serving.export.formats import FORMATS, Source
from tests.support.registered_model import CLASSES, SHAPE, build_model


@pytest.mark.parametrize("name", get_args(ExportFormat))
def test_each_format_is_written_and_loaded_within_its_tolerance(name, tmp_path):
    model = build_model()
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)
    source = Source(model, {"classes": list(CLASSES)}, images)
    file = tmp_path / FORMATS[name].path
    for write in FORMATS[name].writers.values():
        write(source, file)
        found = compare(predict_on_cpu(model, images), FORMATS[name].load(file)(images))
        assert found.is_within(TOLERANCES[name])


def test_every_format_has_a_tolerance_and_modules():
    assert FORMATS.keys() == TOLERANCES.keys() == EXPORT_MODULES.keys() == set(get_args(ExportFormat))
    assert len({known.path for known in FORMATS.values()}) == len(FORMATS)
