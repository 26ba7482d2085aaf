"""The search command: when it forgets a winner, and how it ends without a result; trials are scripted."""

import sys

import mlflow
import optuna
import pytest

from pipeline.commands.search import _run_trials, dashboard_command, run_search
from pipeline.data.dataset import load_dataset
from pipeline.runtime.errors import ClusterLost, SearchFailed
from pipeline.search.attributes import FINAL, WINNER
from pipeline.tracking.tags import Role, Tag, TrialOutcome
from tests.support.scripted import (
    CONTINUOUS,
    ScriptedExecutor,
    epoch_report,
    make_search,
    mlflow_store,
    open_study,
    search_context,
    successful_trial,
    trial_result,
)


@pytest.fixture
def resume(tmp_path):
    """Return a function that resumes a study with a winner among two trials, and returns the study."""

    def run(trials, answer):
        study = open_study(tmp_path, make_search(tmp_path, CONTINUOUS, "--trials", str(trials)))
        for _ in range(2):
            study.complete(study.ask().number, [0.5])
        study.set_attr(WINNER, {"test_accuracy": 0.7})
        study.set_attr(FINAL, ["finalist"])
        _run_trials(search_context(study, ScriptedExecutor(answer)))
        return study

    return run


def test_winner_is_kept_if_no_trial_is_added(resume):
    study = resume(2, lambda job: successful_trial(job, 0.9))
    assert (study.get_attr(WINNER), study.get_attr(FINAL)) == ({"test_accuracy": 0.7}, ["finalist"])


def test_winner_is_removed_if_trials_are_added(resume):
    study = resume(3, lambda job: successful_trial(job, 0.9))
    assert (study.get_attr(WINNER), study.get_attr(FINAL)) == (None, None)


def test_winner_is_removed_if_trials_are_added_and_the_search_fails(resume, tmp_path):
    answers = iter([True, False, False, False])
    with pytest.raises(SearchFailed):
        resume(
            9,
            lambda job: (
                successful_trial(job, 0.9)
                if next(answers)
                else [trial_result(job, TrialOutcome.RAISED, "no such thing")]
            ),
        )
    study = open_study(tmp_path, make_search(tmp_path, CONTINUOUS, "--trials", "9"))
    assert (study.get_attr(WINNER), study.get_attr(FINAL)) == (None, None)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("sqlite:////my runs/optuna.db", "uvx optuna-dashboard 'sqlite:////my runs/optuna.db'"),
        (
            "postgresql://me:secret@host/studies",
            "uvx --with 'psycopg[binary]' optuna-dashboard 'postgresql://me:***@host/studies'",
        ),
    ],
)
def test_dashboard_command_holds_no_password(url, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert dashboard_command(url) == command


def test_dashboard_command_uses_the_uv_beside_python_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "uv").touch()
    assert dashboard_command("sqlite:///optuna.db") == f"{tmp_path}/uv tool run optuna-dashboard sqlite:///optuna.db"


class LosingExecutor(ScriptedExecutor):
    """An executor that loses its cluster during the second trial."""

    def __init__(self):
        super().__init__(self._answer)

    def _answer(self, job):
        lost = [
            epoch_report(job, 1, 0.4),
            trial_result(job, TrialOutcome.LOST, "the head node was lost", retryable=True),
        ]
        not_timed = [trial_result(job, TrialOutcome.RAISED, "no time")]
        return lost if job.number == 1 else not_timed if job.role == "step" else successful_trial(job, 0.9)

    def free(self):
        if len(self.started) == 3 and not self._running:  # a training step and two trials
            raise ClusterLost("cluster must keep its head node")
        return super().free()


def test_search_that_loses_its_cluster_fails_in_one_line_and_leaves_no_run_open(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.commands.search.build_executor", lambda search, data: LosingExecutor())
    url = f"sqlite:///{tmp_path}/study.db"
    search = make_search(tmp_path, CONTINUOUS, "--trials", "5", "--storage", url)
    with mlflow_store(tmp_path):
        assert run_search(search, load_dataset(search.base.data, seed=search.base.seed)).exit_code == 1
        runs = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    assert capsys.readouterr().err.splitlines()[-1] == "error: cluster must keep its head node"
    statuses = sorted((run.info.status, run.data.tags.get(Tag.REASON, "")) for run in runs)
    assert statuses == [("FAILED", ""), ("FAILED", "node lost"), ("FINISHED", "")]
    parent = next(run for run in runs if run.data.tags[Tag.ROLE] == "search")
    assert parent.data.tags[Tag.OUTCOME_REASON] == "cluster must keep its head node"
    fingerprint = load_dataset(search.base.data, seed=search.base.seed).fingerprint
    study = optuna.load_study(study_name=search.study_name(fingerprint), storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "WAITING"]


class ShortOfMemory(ScriptedExecutor):
    """An executor without memory for jobs of the broken roles."""

    def __init__(self, broken):
        super().__init__(self._answer)
        self.broken = broken

    def _answer(self, job):
        if job.role == "winner":
            return [trial_result(job, test_accuracy=0.7)]
        if job.role in ("step", "latency"):
            return [trial_result(job, TrialOutcome.RAISED, "no time")]
        return (
            [trial_result(job, TrialOutcome.OOM, "no memory")]
            if job.role in self.broken
            else successful_trial(job, 0.9)
        )


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("trial", "no trial has finished: each one's run says why"),
        ("final", "the final has no winner: its runs say why, and the same command tries again what is missing"),
    ],
)
def test_search_without_a_result_fails_and_the_same_command_resumes_it(tmp_path, monkeypatch, capsys, role, reason):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = CONTINUOUS + "trials: 2\nfinal_top: 1\nfinal_seeds: 1\n"
    search = make_search(tmp_path, text, "--storage", f"sqlite:///{tmp_path}/study.db")
    broken = {role}
    monkeypatch.setattr("pipeline.commands.search.build_executor", lambda search, data: ShortOfMemory(broken))
    with mlflow_store(tmp_path):
        assert run_search(search, load_dataset(search.base.data, seed=search.base.seed)).exit_code == 1
        (run,) = mlflow.search_runs(filter_string=f"tags.{Tag.ROLE} = '{Role.SEARCH}'", output_format="list")
        assert (run.info.status, run.data.tags[Tag.OUTCOME_REASON]) == ("FAILED", reason)
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {reason}"
        if role == "final":
            broken.clear()
            assert run_search(search, load_dataset(search.base.data, seed=search.base.seed)).exit_code == 0
            assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


class WithGpus(LosingExecutor):
    """An executor with GPUs, which records whether it was told of earlier ones."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def restore(self, *, used_gpus, on_first_gpu):
        self.known.append(used_gpus)
        on_first_gpu()


def test_resumed_search_tells_its_executor_that_there_were_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    used_gpus = []
    monkeypatch.setattr("pipeline.commands.search.build_executor", lambda search, data: WithGpus(used_gpus))
    search = make_search(tmp_path, CONTINUOUS, "--trials", "9", "--storage", f"sqlite:///{tmp_path}/study.db")
    with mlflow_store(tmp_path):
        for _ in range(2):
            assert run_search(search, load_dataset(search.base.data, seed=search.base.seed)).exit_code == 1
    assert used_gpus == [False, True]
