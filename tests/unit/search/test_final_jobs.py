"""The jobs of a final: their settings, numbers and attempts."""

import pytest

from pipeline.search.executors.base import MAX_ATTEMPTS
from pipeline.search.final_jobs import FinalJobs
from pipeline.search.final_record import Finalist
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support.scripted import (
    RecordingConsole,
    ScriptedExecutor,
    epoch_report,
    make_search,
    open_study,
    search_context,
    successful_trial,
    trial_result,
)

FINALIST = Finalist(0, {"depth": 2}, "digest", "run")
RUN = RunRef("sqlite:///nowhere.db", "trained")


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Return a function that makes the jobs of a final whose executor gives these answers, one after the other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(*answers):
        left = list(answers)
        study = open_study(tmp_path, make_search(tmp_path, "recipe: smoke\nspace: {depth: [1, 2]}\n"))
        make.executor, make.console = ScriptedExecutor(lambda job: left.pop(0)(job), 1), RecordingConsole()
        return FinalJobs(search_context(study, make.executor, console=make.console))

    return make


def run(final, jobs):
    config, weights = jobs.config(FINALIST, 3), jobs.weights_file(FINALIST, 3)
    return jobs.run("winner", lambda: jobs.job(config, RUN, "winner", weights), again="again", failed="failed")


def test_weights_lie_in_the_folder_of_finals_in_the_cache(jobs, tmp_path):
    final = jobs()
    assert final.weights_folder.parent == tmp_path / "cache" / "convmixer" / "finals"
    assert final.weights_file(FINALIST, 3).parent == final.weights_folder


def test_config_and_weights_of_a_refit_are_apart_from_those_of_the_training(jobs):
    final = jobs()
    training, refit = (final.config(FINALIST, 3, refit=refit) for refit in (False, True))
    assert (training.depth, training.seed, training.refit) == (2, 3, False)
    assert refit == training.model_copy(update={"refit": True})
    names = [final.weights_file(FINALIST, 3, refit=refit).name for refit in (False, True)]
    assert names == ["digest-3.weights.npz", "digest-3-refit.weights.npz"]


def test_job_that_runs_alone_shows_its_epochs_and_is_tried_again_after_a_crash(jobs):
    final = jobs(
        lambda job: [trial_result(job, TrialOutcome.CRASHED, "gone")],
        lambda job: [epoch_report(job, 1, 0.5), *successful_trial(job, 0.5)[-1:]],
    )
    result = run(jobs, final)
    assert result.outcome is TrialOutcome.FINISHED
    assert jobs.console.lines == ["again: crashed: gone"]
    assert [text for _, _, text in jobs.console.positions][:1] == ["winner: epoch 1 of 2"]
    assert len({job.number for job in jobs.executor.started}) == 2 and jobs.executor.started[0].number < 0


def test_job_that_crashes_each_time_is_tried_three_times(jobs):
    assert run(jobs, jobs(*[lambda job: [trial_result(job, TrialOutcome.CRASHED, "gone")]] * MAX_ATTEMPTS)) is None
    assert jobs.console.lines == ["again: crashed: gone"] * (MAX_ATTEMPTS - 1) + ["failed: crashed: gone"]


def test_job_that_fails_for_good_returns_nothing(jobs):
    assert run(jobs, jobs(lambda job: [trial_result(job, TrialOutcome.DIVERGED, "gone")])) is None
    assert jobs.console.lines == ["failed: diverged: gone"]
