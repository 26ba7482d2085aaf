"""Fixtures of the tests of searches."""

import pytest

from pipeline.search.finalists import FinalistTraining
from pipeline.search.study import Study
from pipeline.search.trial_states import enqueue
from tests.support.scripted import (
    CONTINUOUS,
    SMALL,
    RecordingConsole,
    RecordingRuns,
    ScriptedExecutor,
    make_search,
    mlflow_store,
    open_study,
    search_context,
)


@pytest.fixture
def search(tmp_path):
    """Return a function that builds a search from a file's text and flags."""
    return lambda text=SMALL, *flags, name="mine": make_search(tmp_path, text, *flags, name=name)


@pytest.fixture
def study(tmp_path):
    """Return a function that opens the study of the test, again and again as drivers would."""

    def open_it(text=CONTINUOUS, *flags, **images):
        return open_study(tmp_path, make_search(tmp_path, text, *flags), **images)

    return open_it


@pytest.fixture
def postgres_url(postgres, request):
    """Return the URL of a database of the test's own on a PostgreSQL server."""
    return postgres.database(request.node.name[:60])


@pytest.fixture
def shared_study(postgres_url, tmp_path, close_databases):
    """Return a function that opens the study of the test on the PostgreSQL server."""

    def open_it(text=CONTINUOUS, *flags):
        search = make_search(tmp_path, text, *flags)
        images = {"image_shape": (8, 8, 1), "training_images": 180, "classes": 10}
        return Study(search, url=postgres_url, name="mine", **images)

    return open_it


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Use a tracking store with an experiment `mine` for all tests of a file."""
    with mlflow_store(tmp_path_factory.mktemp("store")) as uri:
        yield uri


@pytest.fixture
def final(tmp_path, monkeypatch, request):
    """Return a function that runs the final of a study, and resumes it where a test calls it again.

    The module of the test holds `train`, which answers a job, `TWO`, the search's file, and `ACCURACY` by depth.
    """
    module = request.module
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(
        answer=module.train,
        text=module.TWO,
        *flags,
        name="mine",
        slots=1,
        interrupts=lambda: 0,
        runs=None,
        guessing=None,
        data_fingerprint="",
        depths=(),
    ):
        run.study = open_study(tmp_path, make_search(tmp_path, text, *flags), name=name)
        waiting = list(depths)[len(run.study.trials()) :]
        for depth in waiting:
            enqueue(run.study.optuna_study, {"depth": depth})
        while (waiting or not depths) and (proposal := run.study.ask()) is not None:
            del waiting[:1]
            accuracy = max(module.ACCURACY.get(proposal.params["depth"], [0.1]))
            run.study.complete(proposal.number, [accuracy, 100.0][: len(run.study.search.directions)])
        run.runs = runs or getattr(run, "runs", None) or RecordingRuns()
        run.executor = ScriptedExecutor(answer, slots)
        console = RecordingConsole()
        run.lines = console.lines
        context = search_context(
            run.study,
            run.executor,
            runs=run.runs,
            interrupts=interrupts,
            console=console,
            guessing=guessing,
            data_fingerprint=data_fingerprint,
        )
        return FinalistTraining(context).run()

    return run
