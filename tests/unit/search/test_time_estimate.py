"""Estimating the duration of a search; the training step is scripted."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from pipeline.config.training import TrainingConfig
from pipeline.search.attributes import WINNER
from pipeline.search.time_estimate import estimate_duration, final_record, final_seconds, relative_cost, trial_seconds
from pipeline.tracking.tags import TrialOutcome
from tests.support.scripted import (
    CONTINUOUS,
    DISCRETE,
    ScriptedExecutor,
    make_search,
    open_study,
    search_context,
    trial_result,
)


def test_relative_cost_grows_with_patches_depth_and_kernel_size():
    base = TrainingConfig.build({"patch_size": 2, "depth": 4, "kernel_size": 3, "filters": 64})
    shape = (32, 32, 3)
    assert relative_cost(base.model_copy(update={"depth": 8}), shape) == 2 * relative_cost(base, shape)
    assert relative_cost(base.model_copy(update={"patch_size": 1}), shape) == 4 * relative_cost(base, shape)
    assert relative_cost(base.model_copy(update={"kernel_size": 9}), shape) > relative_cost(base, shape)


def test_relative_cost_counts_the_patches_of_an_image_that_is_not_square():
    config = TrainingConfig.build({"patch_size": 2})
    assert relative_cost(config, (32, 8, 3)) == relative_cost(config, (8, 32, 3)) == relative_cost(config, (16, 16, 3))


def test_trial_seconds_are_its_steps_and_a_third_of_a_step_for_validation_images():
    config = TrainingConfig.build({"epochs": 3, "batch_size": 10})
    seconds = trial_seconds(
        [config], measured=config, step_seconds=2.0, image_shape=(32, 32, 3), training_images=100, validation_images=30
    )
    assert seconds == pytest.approx(3 * (10 + 1) * 2.0)


def test_trial_seconds_of_folds_are_those_of_as_many_trainings():
    config = TrainingConfig.build({"epochs": 3, "batch_size": 10})
    images = {"image_shape": (32, 32, 3), "training_images": 100, "validation_images": 30}
    one, five = (
        trial_seconds([each], measured=config, step_seconds=2.0, **images)
        for each in (config, config.model_copy(update={"folds": 5}))
    )
    assert five == pytest.approx(5 * one)


def data(images):
    return SimpleNamespace(image_shape=(8, 8, 1), train=range(images), validation=range(0))


@pytest.fixture
def context(tmp_path):
    def open_it(answer, *flags, slots=1, text=CONTINUOUS):
        executor = ScriptedExecutor(answer, slots)
        study = open_study(tmp_path, make_search(tmp_path, text, *flags))
        return search_context(study, executor)

    return open_it


def test_estimate_before_the_first_trial_comes_from_one_training_step(context):
    mine = context(
        lambda job: [trial_result(job, step_seconds=60.0, tracing_seconds=60.0)],
        "--trials",
        "30",
        "--hours",
        "9",
        slots=2,
    )
    said = estimate_duration(mine, data(200))  # 4 steps of 50 images, 2 epochs: 8 min a trial, and 1 min of tracing
    # 15 rounds of trials, and 5 of finals
    assert said == (
        "very roughly 3 h 00 min, the trials at most 9 h: 30 trials and 9 finals of 9 min each, 2 at a time, less what "
        "pruning saves"
    )
    assert [job.role for job in mine.executor.started] == ["step"] * 2
    assert mine.executor.most == 2, "a step beside others is slower than one alone"


def test_estimate_takes_the_mean_of_the_steps_that_were_timed_at_once(context):
    seconds = iter([30.0, 90.0])
    mine = context(
        lambda job: [trial_result(job, step_seconds=next(seconds), tracing_seconds=60.0)],
        *("--trials", "2", "--final_top", "0"),
        slots=2,
    )
    assert ": 2 trials of 9 min each" in estimate_duration(mine, data(200))


def test_estimate_comes_from_the_steps_that_could_be_timed(context):
    outcomes = iter([TrialOutcome.OOM, TrialOutcome.FINISHED])
    mine = context(lambda job: [trial_result(job, next(outcomes), step_seconds=60.0, tracing_seconds=60.0)], slots=2)
    assert " 9 min each" in estimate_duration(mine, data(200))


def test_estimate_counts_no_more_trials_than_there_are_configurations(context):
    answer = lambda job: [trial_result(job, step_seconds=60.0, tracing_seconds=60.0)]  # noqa: E731
    said = estimate_duration(context(answer, "--trials", "30", text=DISCRETE), data(200))
    assert ": 6 trials and 9 finals of " in said


def test_estimate_counts_the_configurations_that_fit_the_images(context):
    answer = lambda job: [trial_result(job, step_seconds=60.0, tracing_seconds=60.0)]  # noqa: E731
    text = "recipe: smoke\nspace: {kernel_size: [3, 9], patch_size: [1, 4]}\nfinal_top: 0\n"
    assert ": 3 trials of " in estimate_duration(context(answer, text=text), data(200))


def test_estimate_from_a_failed_step_is_none(context):
    mine = context(lambda job: [trial_result(job, TrialOutcome.OOM, "no memory")])
    assert estimate_duration(mine, data(200)) is None


def test_estimate_of_a_resumed_search_comes_from_its_trials(context):
    mine = context(lambda job: [], "--trials", "4")
    proposal = mine.study.ask()
    mine.study.complete(proposal.number, [0.5])
    mine.study.record_searched_seconds(100.0)
    assert estimate_duration(mine, data(200)) == ("about 5 min left, as the trials so far went: 3 trials and 9 finals")
    assert mine.executor.started == []


def test_final_takes_rounds_of_the_mean_duration_of_the_finished_trials(context, monkeypatch):
    mine = context(lambda job: [])
    assert final_seconds(mine.study, final_record(mine), slots=2) == 0.0, "nothing is known yet"
    for minutes in (1, 3):
        mine.study.complete(mine.study.ask().number, [0.5])
        mine.study.trials()[-1].datetime_complete += timedelta(minutes=minutes)
    assert final_seconds(mine.study, final_record(mine), slots=2) == pytest.approx(5 * 120, abs=2)


def test_estimate_counts_a_refit_until_it_is_done(context):
    answer = lambda job: [trial_result(job, step_seconds=60.0, tracing_seconds=60.0)]  # noqa: E731
    mine = context(answer, "--trials", "30", "--refit", "true", slots=2)
    # 15 rounds of trials, 5 of finals, and one training more
    assert estimate_duration(mine, data(200)) == (
        "very roughly 3 h 09 min: 30 trials, 9 finals and 1 refit of 9 min each, 2 at a time, less what pruning saves"
    )
    mine.study.complete(mine.study.ask().number, [0.5])
    mine.study.trials()[-1].datetime_complete += timedelta(minutes=2)
    seconds = final_seconds(mine.study, final_record(mine), slots=2)
    assert seconds == pytest.approx(6 * 120, abs=2)
    mine.study.set_attr(WINNER, {"model": "refit"})
    assert final_seconds(mine.study, final_record(mine), slots=2) == pytest.approx(5 * 120, abs=2)


def test_refit_after_folds_is_estimated_as_one_network(context):
    mine = context(
        lambda job: [], "--refit", "true", "--folds", "4", "--pruner", "none", "--validation_fraction", "0.1"
    )
    mine.study.complete(mine.study.ask().number, [0.5])
    mine.study.trials()[-1].datetime_complete += timedelta(minutes=2)
    assert final_seconds(mine.study, final_record(mine), slots=9) == pytest.approx(1.25 * 120, abs=2)
