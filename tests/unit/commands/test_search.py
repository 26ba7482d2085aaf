"""The search command: what it logs of a winner, and how it ends without a result; trials are scripted."""

import sys
from dataclasses import replace

import mlflow
import optuna
import pytest

from pipeline.commands import main
from pipeline.commands.search import _leaks, _load_initial_weights, _load_teachers, dashboard_command, run_search
from pipeline.config.training import DataConfig
from pipeline.data.dataset import load_dataset
from pipeline.notifications.notifier import Notifier
from pipeline.notifications.receivers import Webhook
from pipeline.runtime.errors import ClusterLost, UsageError
from pipeline.tracking.tags import Role, Tag, TrialOutcome
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.teacher import Teacher
from tests.support.scripted import (
    CONTINUOUS,
    ScriptedExecutor,
    epoch_report,
    make_search,
    mlflow_store,
    study_url,
    successful_trial,
    trial_result,
)
from tests.support.webhooks import Hook, webhook


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


@pytest.fixture
def taught_on_digits():
    """Return a teacher that was trained on the training images of digits with seed 0."""
    digits = load_dataset(DataConfig(dataset="digits"), seed=0)
    known = {"validation": digits.validation.digest, "test": digits.test.digest}
    model = InitialWeights("models:/m-1", {}, {}, setting="teacher", splits=known)
    return Teacher(replace(model, data_fingerprint=digits.fingerprint))


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        ((), ["in finals with another seed validation and test accuracy may flatter: teacher models:/m-1 "]),
        (("--seed", "1"), ["validation and test accuracy may flatter: teacher models:/m-1 "]),
        (("--final_seeds", "1"), []),
        (("--final_top", "0"), []),
    ],
)
def test_search_warns_of_a_teacher_that_knows_images_by_which_a_trial_or_a_final_is_judged(
    taught_on_digits, tmp_path, flags, warned
):
    text = "recipe: digits\nteacher: models:/m-1\nspace: {kernel_size: [3, 5]}\n"
    search = replace(make_search(tmp_path, text, *flags), teachers={"models:/m-1": taught_on_digits})
    leaks = list(_leaks(search, load_dataset(search.base.data, seed=search.base.seed)))
    assert [leak[: len(start)] for leak, start in zip(leaks, warned, strict=True)] == warned
    assert all(leak.endswith("try final_seeds=1") == leak.startswith("in finals") for leak in leaks)


@pytest.mark.parametrize("leave_gpus", [True, False])
def test_gpus_are_left_to_the_trials_before_a_model_is_loaded(taught_on_digits, tmp_path, monkeypatch, leave_gpus):
    calls = []
    monkeypatch.setattr("pipeline.commands.search.hide_gpus", lambda: calls.append("hidden"))
    monkeypatch.setattr(Teacher, "load", lambda origin: calls.append(origin) or taught_on_digits)
    monkeypatch.setattr(Teacher, "check", lambda self, config, dataset: None)
    initial_weights = InitialWeights("models:/m-2", {}, {})
    monkeypatch.setattr(InitialWeights, "load", lambda origin: calls.append(origin) or initial_weights)
    text = "recipe: digits\nteacher: models:/m-1@a\nweights_from: models:/m-2@b\nspace: {kernel_size: [3, 5]}\n"
    search = make_search(tmp_path, text)
    _load_teachers(search, load_dataset(search.base.data, seed=0), leave_gpus=leave_gpus)
    _load_initial_weights(search, leave_gpus=leave_gpus)
    hidden = ["hidden"] if leave_gpus else []
    assert calls == [*hidden, "models:/m-1@a", *hidden, "models:/m-2@b"]


FREEZES = (
    "recipe: fine-tune\ndataset: digits\nweights_from: models:/m-1\nfreeze_blocks: 12\nspace: {layer_decay: [0.5, 1]}\n"
)


def test_settings_are_checked_against_the_data_once_the_model_that_decides_on_them_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(FREEZES)
    reached = []

    def stop(search, data, **options):
        reached.append(search)
        raise UsageError("enough")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.commands.search.run_search", stop)
        assert main.run(["search", str(tmp_path / "mine.yaml")]) == 2
    (search,) = reached
    data = load_dataset(search.base.data, seed=0)
    source = InitialWeights("models:/m-1", {}, {"depth": 8})
    monkeypatch.setattr(InitialWeights, "load", lambda origin: source)
    with pytest.raises(UsageError, match="freeze_blocks must be at most depth: depth=8, got freeze_blocks=12"):
        run_search(search, data)


def test_teacher_of_the_recipe_is_not_loaded_where_the_space_always_draws_one(taught_on_digits, tmp_path, monkeypatch):
    (tmp_path / "taught.yaml").write_text("recipe: digits\nteacher: models:/own@a\n")
    search = make_search(tmp_path, f"recipe: {tmp_path}/taught.yaml\nspace: {{teacher: [models:/drawn@b, none]}}\n")
    monkeypatch.setattr(Teacher, "load", lambda origin: taught_on_digits)
    monkeypatch.setattr(Teacher, "check", lambda *_: None)
    found = _load_teachers(search, load_dataset(search.base.data, seed=0), leave_gpus=True)
    assert set(found.teachers) == {"models:/drawn@b", "models:/m-1"}
    assert found.config({"teacher": "models:/drawn@b"}).teacher == "models:/m-1"
    assert found.config({"teacher": None}).teacher is None


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


class WithGpus(LosingExecutor):
    """The same with GPUs; it records whether it was told of earlier ones."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def restore(self, *, used_gpus, on_first_gpu):
        self.known.append(used_gpus)
        on_first_gpu()


def check_notification(hook, result, event, text):
    last = hook.events[-1]
    assert (last["event"], last["role"], last["run_id"]) == (event, "search", result.run_id)
    assert last["text"].startswith(f"search mine: {text}") and last["experiment"] == "mine"


def test_search_that_loses_its_cluster_fails_in_one_line_and_leaves_no_run_open(tmp_path, monkeypatch, capsys):
    """And it notifies; resumed, it tells its executor that there were GPUs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    used_gpus, hook = [], Hook()
    monkeypatch.setattr("pipeline.commands.search.build_executor", lambda search, data: WithGpus(used_gpus))
    url = study_url(tmp_path, "study.db")
    search = make_search(tmp_path, CONTINUOUS, "--trials", "5", "--storage", url, "--pruner", "none")
    data = load_dataset(search.base.data, seed=search.base.seed)
    with mlflow_store(tmp_path):
        with webhook(hook) as receiver, Notifier([Webhook(receiver)]) as notifier:
            result = run_search(search, data, notifier=notifier)
            notifier.flush(5)
        assert result.exit_code == 1
        check_notification(hook, result, "failed", "failed: cluster must keep its head node")
        runs = mlflow.search_runs(experiment_names=["mine"], output_format="list")
        assert capsys.readouterr().err.splitlines()[-1] == "error: cluster must keep its head node"
        statuses = sorted((run.info.status, run.data.tags.get(Tag.REASON, "")) for run in runs)
        assert statuses == [("FAILED", ""), ("FAILED", "node lost"), ("FINISHED", "")]
        parent = next(run for run in runs if run.data.tags[Tag.ROLE] == "search")
        assert parent.data.tags[Tag.OUTCOME_REASON] == "cluster must keep its head node"
        study = optuna.load_study(study_name=search.study_name(data.fingerprint), storage=url)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "WAITING"]
        assert run_search(search, data).exit_code == 1
    assert used_gpus == [False, True]


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
    search = make_search(tmp_path, text, "--storage", study_url(tmp_path, "study.db"))
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


def train_and_leave_weights(job):
    if job.role == "step":
        return [trial_result(job, step_seconds=0.01, tracing_seconds=0.1)]
    if job.role == "latency":
        return [trial_result(job, latency_ms=1.0)]
    if job.role == "winner":
        return [trial_result(job, test_accuracy=0.6)]
    if job.role == "final":
        job.weights.write_text("weights")
    return successful_trial(job, round(10 * job.config.learning_rate, 3))


@pytest.fixture
def executors(tmp_path, monkeypatch):
    """The scripted executors of the searches that a test runs, in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    executors = []
    monkeypatch.setattr(
        "pipeline.commands.search.build_executor",
        lambda search, data: executors.append(ScriptedExecutor(train_and_leave_weights)) or executors[-1],
    )
    return executors


def test_extended_search_shows_the_other_winner_everywhere(tmp_path, executors, capsys):
    text = CONTINUOUS + "final_top: 1\nfinal_seeds: 2\nenqueue: [{learning_rate: 0.05}, {learning_rate: 0.09}]\n"
    url = study_url(tmp_path, "study.db")

    def run(trials):
        search = make_search(tmp_path, text, "--trials", str(trials), "--storage", url)
        assert run_search(search, load_dataset(search.base.data, seed=search.base.seed)).exit_code == 0
        found = mlflow.search_runs(experiment_names=["mine"], output_format="list")
        return {run.info.run_name: run for run in found}, capsys.readouterr().out

    with mlflow_store(tmp_path):
        first, _ = run(1)
        search = first["search mine"]
        winner = first["winner t000 lr0.05 seed 0"]
        assert search.data.tags[Tag.WINNER] == winner.info.run_id == winner.data.tags[Tag.WINNER]
        assert search.data.tags[f"{Tag.WINNER}.learning_rate"] == "0.05"
        assert search.data.tags[Tag.TEST_SET_ACCESSES] == "1"
        expected = {"best_val_accuracy": 0.5, "val_accuracy_mean": 0.5, "val_accuracy_sd": 0.0, "test_accuracy": 0.6}
        assert expected.items() <= search.data.metrics.items()
        assert not {"trial", "seed", "seeds"} & search.data.metrics.keys()
        finalist = first["final t000 lr0.05"]
        assert (finalist.data.params["learning_rate"], finalist.data.params["epochs"]) == ("0.05", "2")
        assert "seed" not in finalist.data.params
        assert "`val_accuracy` 50.00 %" in first["t000 lr0.05"].data.tags[Tag.DESCRIPTION]

        second, out = run(2)
        assert [job.role for job in executors[-1].started] == ["trial", "final", "final", "winner", "latency"]
        search, winner = second["search mine"], second["winner t001 lr0.09 seed 0"]
        assert "winner t000 lr0.05 seed 0" not in second
        former = second["final t000 lr0.05 seed 0"]
        assert former.data.tags[Tag.WINNER] == search.data.tags[Tag.WINNER] == winner.info.run_id
        assert "| **former winner** | of the search among 1 trial: " in former.data.tags[Tag.DESCRIPTION]
        assert search.data.tags[f"{Tag.WINNER}.learning_rate"] == "0.09"
        assert search.data.tags[Tag.TEST_SET_ACCESSES] == "2"
        assert search.data.metrics["val_accuracy_mean"] == 0.9
        assert "the test set is evaluated again" in out
        assert "| **winner** | [t001 lr0.09]" in search.data.tags[Tag.DESCRIPTION]

        _, out = run(2)
        assert executors[-1].started == []
        assert "winner    t001 lr0.09: val_accuracy 90.00 ± 0.00 % (mean of 2 seeds); test accuracy 60.00 %" in out


def test_final_only_makes_the_final_of_a_stopped_search(tmp_path, executors, capsys):
    text = CONTINUOUS + "final_seeds: 1\nfinal_top: 1\nenqueue: [{learning_rate: 0.05}, {learning_rate: 0.03}]\n"

    def run(*flags):
        search = make_search(tmp_path, text, "--storage", study_url(tmp_path, "study.db"), *flags)
        return run_search(search, load_dataset(search.base.data, seed=search.base.seed))

    with mlflow_store(tmp_path):
        assert run("--final_only", "true").exit_code == 1
        assert capsys.readouterr().err.splitlines()[-1] == "error: no trial has finished: each one's run says why"
        run("--trials", "3", "--final_top", "0")
        result = run("--trials", "50", "--final_only", "true")
    assert result.exit_code == 0 and result.winner()["trials"] == 3
    assert [job.role for job in executors[-1].started] == ["final", "winner"]
    assert "no further trial, only the final of 3 finished trials" in capsys.readouterr().out


class FailingExecutor(ScriptedExecutor):
    """An executor all of whose trials fail."""

    def __init__(self):
        super().__init__(lambda job: [trial_result(job, TrialOutcome.RAISED, "no luck")])


class WorkingExecutor(ScriptedExecutor):
    """An executor whose trials succeed, but not what is measured before and after them."""

    def __init__(self):
        not_timed = lambda job: [trial_result(job, TrialOutcome.RAISED, "no time")]  # noqa: E731
        super().__init__(lambda job: successful_trial(job, 0.9) if job.role == "trial" else not_timed(job))


@pytest.mark.parametrize(
    ("executor", "event", "text"),
    [
        (FailingExecutor, "failed", "failed: 3 trials in a row failed with the same cause: no luck"),
        (WorkingExecutor, "finished", "finished: t000 "),
    ],
)
def test_search_notifies_of_its_end(tmp_path, monkeypatch, executor, event, text):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.commands.search.build_executor", lambda search, data: executor())
    flags = ("--trials", "5", "--final_top", "0", "--storage", study_url(tmp_path, "study.db"))
    search = make_search(tmp_path, CONTINUOUS, *flags)
    hook = Hook()
    with mlflow_store(tmp_path), webhook(hook) as url, Notifier([Webhook(url)]) as notifier:
        data = load_dataset(search.base.data, seed=search.base.seed)
        result = run_search(search, data, notifier=notifier)
        notifier.flush(5)
    check_notification(hook, result, event, text)
