"""One search: open or go on with its study, drive it, leave tables and figures in MLflow, crown a winner."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline import study_report
from pipeline.ancestors import watched
from pipeline.code_version import code_version
from pipeline.config import to_yaml
from pipeline.cores import cores
from pipeline.data import Data
from pipeline.driver import Driver, Failing, duration, to_stdout
from pipeline.final import NOTE, Final
from pipeline.interrupt import counted
from pipeline.lease import Lease
from pipeline.slots import Slot, find_gpus, slots
from pipeline.space import Search
from pipeline.study import Study
from pipeline.study_storage import masked, storage_url
from pipeline.track_study import StudyRun
from pipeline.trials import Local

CORES_A_WORKER = 4  # a trial's small operations do not feed more


def carry_out(search: Search, data: Data) -> int:
    """Run a search to its end, or until it is asked to stop; returns the exit code.

    Raises:
        UsageError: another driver holds the study, or the slots that were asked for do not exist.
    """
    places = _slots(search)
    url = storage_url(search.settings.storage, os.environ)
    study = Study(
        search,
        url=url,
        name=search.study(data.fingerprint),
        image_shape=data.image_shape,
        training_images=len(data.train),
    )
    lease = Lease(lambda: study.noted("lease"), lambda value: study.note("lease", value))
    try:
        with counted() as interrupts, watched():
            runs = StudyRun(study.name, known=study.noted("run_id"), trials=study.spent())
            study.note("run_id", runs.id)
            try:
                _introduce(search, data, study, runs, places, url)
                return _drive(search, study, runs, places, interrupts=interrupts, beat=lease.beat)
            except BaseException as error:  # else MLflow would close the run as FINISHED when this process ends
                runs.close("FAILED", "failed", f"{type(error).__name__}: {error}")
                raise
    finally:
        lease.release()


def _drive(
    search: Search,
    study: Study,
    runs: StudyRun,
    places: list[Slot],
    *,
    interrupts: Callable[[], int],
    beat: Callable[[], None],
) -> int:
    code, ending = 0, ("FINISHED", "finished", "")
    winner = study.noted("winner")
    try:
        with Local(places) as executor:
            before = study.spent()
            why = Driver(search, study, runs, executor, interrupts=interrupts, beat=beat, say=to_stdout).search()
            to_stdout(f"\nthe search ends: {why}")
            if study.spent() > before:  # a winner among fewer trials is none, also for whoever goes on from here
                study.note(NOTE, None)
                study.note("winner", None)
                winner = None
            if not interrupts() and winner is None and search.settings.final_top and study.ranked():
                _report(study, runs)  # before the final, which may take as long
                winner = Final(study, runs, executor, interrupts=interrupts, beat=beat, say=to_stdout).run()
        if interrupts():
            code, ending = 130, ("KILLED", "stopped", "by a signal; the same command goes on")
    except Failing as failing:
        code, ending = 1, ("FAILED", "failed", str(failing))
        sys.stderr.write(f"error: {failing}\n")
    _report(study, runs)
    if winner:
        runs.metrics({name: value for name, value in winner.items() if isinstance(value, int | float)})
    for line in [*study_report.summary(study), *_where(study, runs)]:
        to_stdout(line)
    if interrupts():
        to_stdout("stopped: the same command goes on where it was")
    runs.close(*ending)
    return code


def _slots(search: Search) -> list[Slot]:
    settings = search.settings
    gpus = find_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    workers = settings.workers or max(1, cores() // CORES_A_WORKER)
    return slots(gpus, trials_per_gpu=settings.trials_per_gpu, workers=workers, cores=cores())


def _introduce(search: Search, data: Data, study: Study, runs: StudyRun, places: list[Slot], url: str) -> None:
    """Close what a lost driver left, log what the study is, and say what is about to happen."""
    lost = study.requeue_lost()
    runs.close_lost()
    for line in runs.own():
        to_stdout(line)
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
    to_stdout(
        f"study    {study.name} in {masked(url)}\n"
        f"data     {data.name}: {len(data.train):,} training and {len(data.validation):,} validation images\n"
        f"space    {', '.join(search.space)}: {'any number of' if many is None else f'{many:,}'} configurations\n"
        f"budget   {search.settings.trials} trials, {len(places)} at a time: {', '.join(slot.name for slot in places)}"
        + (f"; {done} are done" if done else "")
        + (f", {len(lost)} were lost with their driver and are queued again" if lost else "")
    )
    if len(search.settings.metric) > 1:
        to_stdout("pruner   none: two metrics give an unfinished trial no rank")
    if seconds := study.noted("searched_seconds"):
        left = max(0, search.settings.trials - done) * seconds / max(1, done)
        to_stdout(f"time     about {duration(left)} left, as the trials so far go")


def _report(study: Study, runs: StudyRun) -> None:
    """Log the state of the study."""
    runs.table("leaderboard.csv", study_report.leaderboard(study))
    for path, figure in study_report.figures(study):
        runs.figure(path, figure)
    figures: dict[str, float] = {"trials": study.spent(), "searched_seconds": study.noted("searched_seconds") or 0.0}
    if best := study.best():
        figures |= {
            f"best_{metric}": value for metric, value in zip(study.search.settings.metric, best.values, strict=True)
        }
    runs.metrics(figures)


def _where(study: Study, runs: StudyRun) -> list[str]:
    command = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    return [
        f"run       {runs.id}, study {study.name}",
        f"figures   {runs.artifacts}/plots",
        f"compare   {command} ui --backend-store-uri {shlex.quote(masked(runs.tracking_uri))}",
    ]
