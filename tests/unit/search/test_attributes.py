"""Names of the attributes of a study and its trials."""

import re

from pipeline.search import attributes
from pipeline.search.attributes import DRIVER_PREFIX, FIGURES
from pipeline.search.finalists import FinalistTraining
from pipeline.search.latencies import measure_latencies
from pipeline.search.loop import SearchLoop
from pipeline.search.session import ExclusiveCoordinator
from tests.support.scripted import (
    CONTINUOUS,
    ScriptedExecutor,
    make_search,
    open_study,
    search_context,
    successful_trial,
    trial_result,
)

NAMES = [value for name, value in vars(attributes).items() if name.isupper() and name != "FIGURES"]


def test_attribute_names_are_lower_case():
    assert [name for name in [*NAMES, *FIGURES] if not re.fullmatch("[a-z]+(_[a-z]+)*", name.removesuffix(" "))] == []


def test_attribute_names_are_distinct_except_run_id_that_study_and_trial_share():
    names = [name for name in NAMES if name != DRIVER_PREFIX] + [name for name in FIGURES if name not in NAMES]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith(DRIVER_PREFIX)], "it would be taken for a driver"


def test_search_sets_no_attribute_that_has_no_name_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def answer(job):
        if job.role == "latency":
            return [trial_result(job, latency_ms=1.0)]
        if job.role == "winner":
            return [trial_result(job, test_accuracy=0.5)]
        if job.weights:
            job.weights.write_text("weights")
        return successful_trial(job, 0.5, latency_ms=2.0)

    study = open_study(tmp_path, make_search(tmp_path, CONTINUOUS, "--trials", "2", "--final_top", "1"))
    coordinator = ExclusiveCoordinator(study)
    context = search_context(study, ScriptedExecutor(answer))
    SearchLoop(context).run()
    FinalistTraining(context).run()
    measure_latencies(context)
    study.set_note("text")
    coordinator.close()
    keys = {DRIVER_PREFIX if key.startswith(DRIVER_PREFIX) else key for key in study.attrs()}
    final = {attributes.FINAL, attributes.WINNER, attributes.TESTED}
    assert keys == {DRIVER_PREFIX, attributes.SEARCHED_SECONDS, attributes.LATENCIES, attributes.NOTE} | final
    for trial in study.trials():
        assert trial.user_attrs.keys() == {attributes.RUN_ID, attributes.OUTCOME, *FIGURES} - {attributes.RESUMED_AFTER}
