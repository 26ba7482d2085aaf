"""One search: open or go on with its study, drive it, leave tables and figures in MLflow, crown a winner."""

import os
import shlex
import sys
from pathlib import Path

from pipeline.cluster import Cluster, ClusterLost
from pipeline.code_version import code_version
from pipeline.config import to_yaml
from pipeline.data import Data
from pipeline.lifetime.ancestors import watched
from pipeline.lifetime.interrupt import counted
from pipeline.machine.cores import cores
from pipeline.outbox.delivery import address
from pipeline.space import Search
from pipeline.store_urls import masked
from pipeline.study import pace, study_report
from pipeline.study.driver import Driver, Failing
from pipeline.study.final import NOTE, Final
from pipeline.study.hold import Alone, Hold, Together
from pipeline.study.latencies import measure_latencies
from pipeline.study.session import Session
from pipeline.study.study import Study
from pipeline.study.terminal import Terminal
from pipeline.study.track_study import StudyRun
from pipeline.study_storage import storage_url
from pipeline.trials import Local
from pipeline.workers.slots import CORES_A_TRIAL, find_gpus, slots

GPUS = "gpus"  # the study's note that its cluster has had some


def carry_out(search: Search, data: Data) -> int:
    """Run a search to its end, or until it is asked to stop; returns the exit code.

    Raises:
        UsageError: another driver holds the study, or the slots that were asked for do not exist.
    """
    executor = _executor(search, data)
    url = storage_url(search.settings.storage, os.environ)
    study = Study(
        search,
        url=url,
        name=search.study(data.fingerprint),
        image_shape=data.image_shape,
        training_images=len(data.train),
    )
    if isinstance(executor, Cluster):
        executor.keep_to_gpus(bool(study.noted(GPUS)), note=lambda: study.note(GPUS, True))
    hold: Hold = Together(study) if search.settings.drivers == "shared" else Alone(study)
    try:
        with counted() as interrupts, watched(), Terminal() as terminal:
            runs = hold.open_run()
            try:
                with executor:
                    session = Session(
                        study, runs, executor, interrupts, hold.beat, say=terminal.say, progress=terminal.progress
                    )
                    _introduce(session, hold, data, f"{executor}", url)
                    return _search(session, hold, data)
            except BaseException as error:  # else MLflow would close the run as FINISHED when this process ends
                hold.close("FAILED", "failed", f"{type(error).__name__}: {error}")
                raise
    finally:
        hold.release()


def _search(session: Session, hold: Hold, data: Data) -> int:
    """Trials, the final and what is left of them in MLflow; returns the exit code."""
    code, ending = 0, ("FINISHED", "finished", "")
    finishes = False
    try:
        if line := pace.expected(session, data):
            session.say(f"time     {line}")
        _drive(session)
        finishes = not session.interrupts() and hold.finishes()
        if finishes:
            _finish(session)
            session.executor.free()  # which says so if the cluster was lost under its last job
            if not session.interrupts():
                _refuse_to_end_without_result(session.study)
        if session.interrupts():
            code, ending = 130, ("KILLED", "stopped", "by a signal; the same command goes on")
    except (Failing, ClusterLost) as failing:
        code, ending = 1, ("FAILED", "failed", str(failing))
        sys.stderr.write(f"error: {failing}\n")
    if finishes or not session.study.shared:
        _report(session)
    for line in [*study_report.summary(session.study), *_where(session.study, session.runs)]:
        session.say(line)
    if session.interrupts():
        session.say("stopped: the same command goes on where it was")
    if kept := hold.close(*ending):
        session.say(kept)
    return code


def _refuse_to_end_without_result(study: Study) -> None:
    if not study.ranked():
        raise Failing("no trial has finished: each one's run says why")
    if study.search.settings.final_top and study.noted(study_report.WINNER) is None:
        raise Failing("the final has no winner: its runs say why, and the same command tries again what is missing")


def _drive(session: Session) -> None:
    """Run trials. A winner among fewer of them is none any more, also for whoever goes on from here."""
    before = session.study.spent()
    try:
        session.say(f"\nthe search ends: {Driver(session).search()}")
    finally:
        if session.study.spent() > before and not session.study.shared:
            session.study.note(NOTE, None)
            session.study.note(study_report.WINNER, None)


def _finish(session: Session) -> None:
    """Crown a winner, where there is none yet; then, while nothing else runs, measure latencies."""
    study = session.study
    if study.noted(study_report.WINNER) is None and study.search.settings.final_top and study.ranked():
        _report(session)  # before the final, which may take as long
        Final(session).run()
    if not session.interrupts():
        measure_latencies(session)


def _executor(search: Search, data: Data) -> Local | Cluster:
    """Where trials run: on this machine, or on Ray's."""
    settings = search.settings
    if settings.cluster is not None:
        return Cluster(
            settings.cluster,
            fingerprint=data.fingerprint,
            trials_per_gpu=settings.trials_per_gpu,
            trials=settings.workers,
            tracking_uri=address(),
        )
    gpus = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    workers = settings.workers or max(1, cores() // CORES_A_TRIAL)
    return Local(slots(gpus, trials_per_gpu=settings.trials_per_gpu, workers=workers, cores=cores()))


def _introduce(session: Session, hold: Hold, data: Data, places: str, url: str) -> None:
    """Close what a lost driver left, log what the study is, and say what is about to happen."""
    study, runs = session.study, session.runs
    search = study.search
    lost = hold.take_over()
    for line in runs.own():
        session.say(line)
    runs.name(f"search {search.name}")
    runs.tags(
        code_version()
        | {
            "role": "search",
            "study": study.name,
            "storage": masked(url),
            "data": data.name,
            "data.fingerprint": data.fingerprint,
        }
    )
    settings = {name: search.settings.text(name) for name in type(search.settings).model_fields if name != "storage"}
    runs.params({"search": search.name, **settings, **search.differences()})
    runs.text("config.yaml", to_yaml(search.base))
    many, done = search.configurations(), study.spent()
    session.say(
        f"study    {study.name} in {masked(url)}\n"
        f"data     {data.name}: {len(data.train):,} training and {len(data.validation):,} validation images\n"
        f"space    {', '.join(search.space)}: {'any number of' if many is None else f'{many:,}'} configurations\n"
        f"budget   {search.settings.trials} trials, {places}"
        + (f"; {done} are done" if done else "")
        + (f", {lost} were lost with their driver and are queued again" if lost else "")
    )
    if len(search.settings.metric) > 1:
        session.say("pruner   none: two metrics give an unfinished trial no rank")


def _report(session: Session) -> None:
    """Log the state of the study."""
    study, runs = session.study, session.runs
    runs.table("leaderboard.csv", study_report.leaderboard(study))
    for path, figure in study_report.figures(study):
        runs.figure(path, figure)
    figures: dict[str, float] = {"trials": study.spent(), "searched_seconds": study.noted("searched_seconds") or 0.0}
    if best := study.best():
        figures |= {
            f"best_{metric}": value for metric, value in zip(study.search.settings.metric, best.values, strict=True)
        }
    winner = study.noted(study_report.WINNER) or {}
    runs.metrics(figures | {name: value for name, value in winner.items() if isinstance(value, int | float)})


def _where(study: Study, runs: StudyRun) -> list[str]:
    command = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    return [
        f"run       {runs.id}, study {study.name}",
        f"figures   {runs.artifacts}/plots",
        f"compare   {command} ui --backend-store-uri {shlex.quote(masked(runs.tracking_uri))}",
        f"report    mlflow run . -e report --env-manager local -P runs={shlex.quote(study.name)}",
        f"dashboard {dashboard(storage_url(study.search.settings.storage, os.environ))}",
    ]


def dashboard(url: str) -> str:
    """The command that shows a study in Optuna's own pages, which are no dependency: uv fetches them."""
    beside = Path(sys.executable).parent / "uv"  # where make has put it
    uvx = f"{shlex.quote(str(beside))} tool run" if beside.exists() else "uvx"
    driver = "--with 'psycopg[binary]' " if url.startswith("postgresql") else ""
    return f"{uvx} {driver}optuna-dashboard {shlex.quote(masked(url))}"
