"""The latencies of a search's trials, measured while nothing else runs."""

from pipeline.runtime.text import trial_name
from pipeline.search.attributes import IMPORTED_FROM, LATENCIES, RUN_ID
from pipeline.search.executors.base import TrialJob
from pipeline.search.results import pareto_trials, trials_dataframe
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import RunRef, TrialOutcome


def measure_latencies(context: SearchContext) -> None:
    """Measure the latency of the trials on the Pareto front that have none, one after the other while no other runs.

    The study keeps the latencies, and the trials' runs show them.
    """
    study = context.study
    latencies: dict[str, float] = study.get_attr(LATENCIES) or {}
    run_ids = trials_dataframe(study).set_index("number")[RUN_ID]
    for number in pareto_trials(study):
        if str(number) in latencies or context.interrupts():
            continue
        trial = next(trial for trial in study.trials() if trial.number == number)
        run_id = str(run_ids[number])
        run = RunRef(context.runs.tracking_uri, run_id)
        result = context.run_job(TrialJob(-1, study.search.config(trial.params), run, "latency"))
        if result.outcome is TrialOutcome.FINISHED:
            latencies[str(number)] = result.metrics["latency_ms"]
            study.set_attr(LATENCIES, latencies)
            # the run of an imported one may be on another tracking server
            if IMPORTED_FROM not in trial.user_attrs:
                context.runs.log_child_metrics(run_id, {"latency_ms": latencies[str(number)]})
        elif not context.interrupts():
            context.console.print(f"{trial_name(number, {})}  latency not measured: {result.outcome}: {result.reason}")
