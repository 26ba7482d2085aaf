"""The latency of the best trials of a search, measured one after the other when nothing else runs."""

from pipeline.study.session import Session
from pipeline.study.study_report import LATENCIES, front, table
from pipeline.study.trial_name import trial_name
from pipeline.workers.jobs import Job, Outcome, RunRef


def measure_latencies(session: Session) -> None:
    """Time the members of the Pareto front that have not been; the study keeps it, their runs show it."""
    study = session.study
    found: dict[str, float] = study.noted(LATENCIES) or {}
    trials = table(study).set_index("number")
    for number in front(study):
        if str(number) in found or session.interrupts():
            continue
        trial = next(trial for trial in study.trials() if trial.number == number)
        run_id = str(trials.loc[number, "run_id"])
        job = Job(-1, study.search.config(trial.params), RunRef(session.runs.tracking_uri, run_id), "latency")
        ended = session.alone(job)
        if ended.outcome is Outcome.FINISHED:
            found[str(number)] = ended.metrics["latency_ms"]
            study.note(LATENCIES, found)
            session.runs.measure(run_id, {"latency_ms": found[str(number)]})
        elif not session.interrupts():
            session.say(f"{trial_name(number, {})}  latency not measured: {ended.outcome}: {ended.reason}")
