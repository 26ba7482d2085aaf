"""One run, from a recipe's name to a result in MLflow: `python -m pipeline train digits --depth 6`.

TensorFlow and MLflow take seconds to import, so they come after settings and data have been accepted; but where a run
is to go on, or `mlflow run` has opened one, MLflow is asked before the data are read.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.config import training
from pipeline.data.dataset import load_dataset
from pipeline.runtime.device import check_single_host
from pipeline.runtime.files import check_cache_writable, temporary_files
from pipeline.runtime.stderr import capture_stderr
from pipeline.tracking.project_run import ProjectRun

if TYPE_CHECKING:
    from pipeline.training.resume import ResumePoint


def run(typed: training.TrainCommand) -> None:
    """Train one model, or resume a run."""
    with _opened(typed) as resumption:
        _begin(typed, resumption)


def _begin(typed: training.TrainCommand, resumption: "ResumePoint | None") -> None:
    config = resumption.config if resumption else typed.config
    check_cache_writable()
    check_single_host(os.environ)
    data = load_dataset(config.data, seed=config.seed)
    training.validate_against_data(config, image_shape=data.image_shape, training_images=len(data.train))
    if resumption:
        resumption.check_data(data.fingerprint)
    with temporary_files("runs"):
        with capture_stderr():
            from pipeline.training.run import run_training
        run_training(typed.recipe, config, data, resumption)


@contextmanager
def _opened(typed: training.TrainCommand) -> "Iterator[ResumePoint | None]":
    """The run that is to go on, if one is; the run that `mlflow run` opened does not stay open if nothing begins."""
    if typed.resume is None and ProjectRun.find() is None:
        yield None
        return
    from pipeline.training import resume

    with resume.open_resume_point(typed.resume, typed.overrides) as resumption:
        yield resumption
