"""A study of many trials, from a search's name to a winner: `python -m pipeline search kernel-patch-depth --trials 50`.

MLflow takes seconds to import, so it comes after search and data have been accepted.
"""

import os
import shlex
import sys
from pathlib import Path

from pipeline.config.training import to_yaml
from pipeline.data.dataset import Dataset
from pipeline.runtime.console import Console
from pipeline.runtime.cpu import available_cores
from pipeline.runtime.errors import ClusterLost, SearchFailed
from pipeline.runtime.parent_watch import stop_with_parent
from pipeline.runtime.signals import count_interrupts
from pipeline.runtime.urls import mask_password
from pipeline.search import results, time_estimate
from pipeline.search.attributes import FINAL, GPUS, SEARCHED_SECONDS, WINNER
from pipeline.search.executors.base import Executor
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.executors.slots import CORES_PER_TRIAL, find_gpus, make_slots
from pipeline.search.finalists import FinalistTraining, measure_latencies
from pipeline.search.loop import SearchLoop
from pipeline.search.session import Coordinator, ExclusiveCoordinator, SearchContext, SharedCoordinator
from pipeline.search.space import SearchSpec
from pipeline.search.storage import storage_url
from pipeline.search.study import Study
from pipeline.tracking.outbox.delivery import tracking_address
from pipeline.tracking.study_run import StudyRun
from pipeline.tracking.tags import Role, RunOutcome, Tag, code_version_tags
from pipeline.training.checkpoint_manager import remove_finished


def run_search(search: SearchSpec, data: Dataset) -> int:
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
    executor.restore(used_gpus=bool(study.get_attr(GPUS)), on_first_gpu=lambda: study.set_attr(GPUS, True))
    hold: Coordinator = SharedCoordinator(study) if search.settings.drivers == "shared" else ExclusiveCoordinator(study)
    try:
        with count_interrupts() as interrupts, stop_with_parent(), Console() as terminal:
            runs = hold.open_run()
            try:
                with executor:
                    session = SearchContext(
                        study, runs, executor, interrupts, hold.beat, say=terminal.print, progress=terminal.progress
                    )
                    _introduce(session, hold, data, executor.describe(), url)
                    return _run_in_session(session, hold, data)
            except BaseException as error:  # else MLflow would close the run as FINISHED when this process ends
                hold.close(RunOutcome.FAILED, f"{type(error).__name__}: {error}")
                raise
    finally:
        hold.release()


def _run_in_session(session: SearchContext, hold: Coordinator, data: Dataset) -> int:
    """Trials, the final and what is left of them in MLflow; returns the exit code."""
    code, ending = 0, (RunOutcome.FINISHED, "")
    finishes = False
    try:
        if line := time_estimate.estimate_duration(session, data):
            session.say(f"time     {line}")
        _drive(session)
        finishes = not session.interrupts() and hold.finishes()
        if finishes:
            _finish(session)
            session.executor.free()  # which says so if the cluster was lost under its last job
            if not session.interrupts():
                _refuse_to_end_without_result(session.study)
        if session.interrupts():
            code, ending = 130, (RunOutcome.STOPPED, "by a signal; the same command goes on")
    except (SearchFailed, ClusterLost) as failing:
        code, ending = 1, (RunOutcome.FAILED, str(failing))
        Console().error(str(failing))
    if finishes or not session.study.shared:
        _report(session)
    for line in [*results.summary(session.study), *_where(session.study, session.runs)]:
        session.say(line)
    if session.interrupts():
        session.say("stopped: the same command goes on where it was")
    if kept := hold.close(*ending):
        session.say(kept)
    return code


def _refuse_to_end_without_result(study: Study) -> None:
    if not study.ranked():
        raise SearchFailed("no trial has finished: each one's run says why")
    if study.search.settings.final_top and study.get_attr(WINNER) is None:
        raise SearchFailed(
            "the final has no winner: its runs say why, and the same command tries again what is missing"
        )


def _drive(session: SearchContext) -> None:
    """Run trials. A winner among fewer of them is none any more, also for whoever goes on from here."""
    before = session.study.n_finished()
    try:
        session.say(f"\nthe search ends: {SearchLoop(session).search()}")
    finally:
        if session.study.n_finished() > before and not session.study.shared:
            session.study.set_attr(FINAL, None)
            session.study.set_attr(WINNER, None)


def _finish(session: SearchContext) -> None:
    """Crown a winner, where there is none yet; then, while nothing else runs, measure latencies."""
    study = session.study
    if study.get_attr(WINNER) is None and study.search.settings.final_top and study.ranked():
        _report(session)  # before the final, which may take as long
        FinalistTraining(session).run()
    if not session.interrupts():
        measure_latencies(session)


def _executor(search: SearchSpec, data: Dataset) -> Executor:
    """Where trials run: on this machine, or on Ray's."""
    settings = search.settings
    if settings.cluster is not None:
        return RayExecutor(
            settings.cluster,
            fingerprint=data.fingerprint,
            trials_per_gpu=settings.trials_per_gpu,
            trials=settings.workers,
            tracking_uri=tracking_address(),
        )
    gpus = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    workers = settings.workers or max(1, available_cores() // CORES_PER_TRIAL)
    return LocalExecutor(
        make_slots(gpus, trials_per_gpu=settings.trials_per_gpu, workers=workers, cores=available_cores())
    )


def _introduce(session: SearchContext, hold: Coordinator, data: Dataset, places: str, url: str) -> None:
    """Close what a lost driver left, log what the study is, and say what is about to happen."""
    study, runs = session.study, session.runs
    search = study.search
    lost = hold.take_over()
    for line in runs.claim():
        session.say(line)
    remove_finished()
    runs.run.set_name(f"search {search.name}")
    runs.run.set_tags(
        code_version_tags()
        | {
            Tag.ROLE: Role.SEARCH,
            Tag.STUDY: study.name,
            Tag.STORAGE: mask_password(url),
            Tag.DATA: data.name,
            Tag.DATA_FINGERPRINT: data.fingerprint,
        }
    )
    settings = {name: search.settings.text(name) for name in type(search.settings).model_fields if name != "storage"}
    runs.run.log_params({"search": search.name, **settings, **search.differences()})
    runs.run.log_text("config.yaml", to_yaml(search.base))
    many, done = search.configurations(), study.n_finished()
    session.say(
        f"study    {study.name} in {mask_password(url)}\n"
        f"data     {data.name}: {len(data.train):,} training and {len(data.validation):,} validation images\n"
        f"space    {', '.join(search.space)}: {'any number of' if many is None else f'{many:,}'} configurations\n"
        f"budget   {search.settings.trials} trials, {places}"
        + (f"; {done} are done" if done else "")
        + (f", {lost} were lost with their driver and are queued again" if lost else "")
    )
    if len(search.settings.metric) > 1:
        session.say("pruner   none: two metrics give an unfinished trial no rank")


def _report(session: SearchContext) -> None:
    """Log the state of the study."""
    study, runs = session.study, session.runs
    runs.run.log_table("leaderboard.csv", results.leaderboard(study))
    for path, figure in results.figures(study):
        runs.run.log_figure(path, figure)
    figures: dict[str, float] = {
        "trials": study.n_finished(),
        "searched_seconds": study.get_attr(SEARCHED_SECONDS) or 0.0,
    }
    if best := study.best():
        figures |= {
            f"best_{metric}": value for metric, value in zip(study.search.settings.metric, best.values, strict=True)
        }
    winner = study.get_attr(WINNER) or {}
    runs.run.log_metrics(figures | {name: value for name, value in winner.items() if isinstance(value, int | float)})


def _where(study: Study, runs: StudyRun) -> list[str]:
    command = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    return [
        f"run       {runs.id}, study {study.name}",
        f"figures   {runs.run.artifact_uri}/plots",
        f"compare   {command} ui --backend-store-uri {shlex.quote(mask_password(runs.tracking_uri))}",
        f"report    mlflow run . -e report --env-manager local -P runs={shlex.quote(study.name)}",
        f"dashboard {dashboard(storage_url(study.search.settings.storage, os.environ))}",
    ]


def dashboard(url: str) -> str:
    """The command that shows a study in Optuna's own pages, which are no dependency: uv fetches them."""
    beside = Path(sys.executable).parent / "uv"  # where make has put it
    uvx = f"{shlex.quote(str(beside))} tool run" if beside.exists() else "uvx"
    driver = "--with 'psycopg[binary]' " if url.startswith("postgresql") else ""
    return f"{uvx} {driver}optuna-dashboard {shlex.quote(mask_password(url))}"
