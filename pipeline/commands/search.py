"""`convmixer search`: run the trials of a study, train its finalists, and leave tables and figures in MLflow."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config.recipe import to_yaml
from pipeline.config.weights_from import weights_file
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.evaluation.metrics import guessing
from pipeline.notifications.notifier import Notifier
from pipeline.runtime.console import Console
from pipeline.runtime.cpu import available_cores
from pipeline.runtime.device import hide_gpus
from pipeline.runtime.errors import ClusterLost, SearchFailed, UsageError
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.parent_watch import stop_with_parent
from pipeline.runtime.shell import project_command
from pipeline.runtime.signals import count_interrupts
from pipeline.runtime.text import count, format_value
from pipeline.runtime.urls import mask_password
from pipeline.search.attributes import DEFINITION, ENSEMBLE, GPUS, TESTED, WINNER
from pipeline.search.conditions import describe_condition
from pipeline.search.description import describe_for_dashboard, describe_images, describe_search
from pipeline.search.events import SearchEvents
from pipeline.search.executors.base import Executor
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.executors.slots import CORES_PER_TRIAL, find_gpus, make_slots
from pipeline.search.finalists import FinalistTraining
from pipeline.search.latencies import measure_latencies
from pipeline.search.loop import SearchLoop
from pipeline.search.promotion import checkpoints_folder
from pipeline.search.results import figures, leaderboard, settings_as_text, summarize
from pipeline.search.session import Coordinator, ExclusiveCoordinator, SearchContext, SharedCoordinator
from pipeline.search.space import SearchSpec, check_against_data, slow_batch_norm_in_space
from pipeline.search.start_from import definition, read_older_studies
from pipeline.search.storage_url import storage_url
from pipeline.search.study import Study
from pipeline.search.time_estimate import estimate_duration
from pipeline.tracking.experiment_page import page_links
from pipeline.tracking.outbox.delivery import tracking_address
from pipeline.tracking.run_events import RunEvents
from pipeline.tracking.tags import Role, RunOutcome, Tag, code_version_tags
from pipeline.training.checkpoint_manager import remove_finished

FIGURES_SECONDS = 5.0  # for the figures of a search that was asked to stop


@dataclass(frozen=True)
class SearchResult:
    """How a search ended, and its study."""

    exit_code: int  # 0, 1 if the search failed, or 128 plus the signal that stopped it
    run_id: str  # of the study's run in MLflow
    study: Study

    def leaderboard(self) -> pd.DataFrame:
        """Return the table of trials, best value first."""
        return leaderboard(self.study)

    def winner(self) -> dict[str, Any] | None:
        """Return the winner of the final with its settings and results, or None if there is none."""
        winner = self.study.get_attr(WINNER)
        return winner and {name: value for name, value in winner.items() if name not in ("digest", "question")}


def run_search(
    search: SearchSpec, data: Dataset, *, notifier: Notifier | None = None, leave_gpus: bool = False
) -> SearchResult:
    """Run a search to its end, or until it is asked to stop.

    Args:
        search: What to search.
        data: The data set of its trials.
        notifier: Sends what happens to those who are to be notified; None sends nothing.
        leave_gpus: Let this process have no GPU any more, so that those of the trials have all memory.

    Raises:
        UsageError: another driver holds the study, or the slots that were asked for do not exist.
    """
    search = _load_initial_weights(search, leave_gpus=leave_gpus)
    check_against_data(search, image_shape=data.image_shape, training_images=len(data.train))
    search = _load_teachers(search, data, leave_gpus=leave_gpus)
    executor = build_executor(search, data)
    url = storage_url(search.settings.storage, os.environ)
    older = read_older_studies(search, url=url, data_fingerprint=data.fingerprint)
    study = Study(
        search,
        url=url,
        name=search.study_name(data.fingerprint),
        image_shape=data.image_shape,
        training_images=len(data.train),
        classes=len(data.classes),
    )
    study.set_attr(DEFINITION, definition(search, data.fingerprint))
    executor.restore(used_gpus=bool(study.get_attr(GPUS)), on_first_gpu=lambda: study.set_attr(GPUS, True))
    coordinator: Coordinator = (
        SharedCoordinator(study) if search.settings.drivers == "shared" else ExclusiveCoordinator(study)
    )
    validated = data.out_of_fold if data.folds else data.validation
    with closing(coordinator), count_interrupts() as interrupts, stop_with_parent(), Console() as console:
        runs = coordinator.open_run()
        notifier = notifier or Notifier()
        events = RunEvents(notifier, runs.run, Role.SEARCH)
        interrupts.on_deadline = runs.give_up
        try:
            with executor, events.watch_epochs(usual=max):
                context = SearchContext(
                    study,
                    runs,
                    executor,
                    interrupts,
                    coordinator.heartbeat,
                    console,
                    guessing=guessing(search.monitor, validated.labels[validated.rows]),
                    data_fingerprint=data.fingerprint,
                    notify=SearchEvents(study, events) if notifier.has_receivers else None,
                )
                _announce(context, coordinator, data, url)
                for line in study.import_trials(older):
                    console.print(f"start    {line}")
                return SearchResult(_run_to_end(context, coordinator, data, url), runs.id, study)
        except BaseException as error:
            # Otherwise MLflow would close the run as FINISHED when this process ends
            coordinator.end_run(RunOutcome.FAILED, f"{type(error).__name__}: {error}")
            events.send_failure(error)
            raise


def _load_initial_weights(search: SearchSpec, *, leave_gpus: bool) -> SearchSpec:
    """Return the search with the models that its trials start from, and what of their architecture it leaves unset."""
    origins = search.origins()
    if not origins:
        return search
    for origin in origins:
        weights_file(origin)
    with slow_imports():
        from pipeline.training.initial_weights import InitialWeights
    if leave_gpus:
        hide_gpus()
    sources = {origin: InitialWeights.load(origin) for origin in origins}
    own = sources.get(search.base.weights_from or "")
    base = own.complete(search.base) if own else search.base
    return replace(search, base=base, sources=sources | {source.origin: source for source in sources.values()})


def _load_teachers(search: SearchSpec, data: Dataset, *, leave_gpus: bool) -> SearchSpec:
    """Return the search with the models that teach its trials, named by their own URIs."""
    origins = search.origins("teacher")
    if not origins:
        return search
    with slow_imports():
        from pipeline.training.teacher import Teacher
    if leave_gpus:
        hide_gpus()
    teachers = {origin: Teacher.load(origin) for origin in origins}
    for teacher in teachers.values():
        teacher.check(search.base, data)
    own = teachers.get(search.base.teacher or "")
    base = own.complete(search.base) if own else search.base
    return replace(search, base=base, teachers=teachers | {teacher.origin: teacher for teacher in teachers.values()})


def _run_to_end(context: SearchContext, coordinator: Coordinator, data: Dataset, url: str) -> int:
    """Run the trials and the final, log the results, and return the exit code."""
    study, console = context.study, context.console
    code, ending = 0, (RunOutcome.FINISHED, "")
    runs_final = False
    try:
        if estimate := estimate_duration(context, data):
            console.print(f"time     {estimate}")
        if not study.search.settings.final_only:
            _run_trials(context, data)
        runs_final = not context.interrupts() and coordinator.claim_final()
        if runs_final:
            winner = _run_final(context, data)
            # Raises ClusterLost if the cluster was lost under the last job
            context.executor.free()
            if not context.interrupts():
                _check_result(study, winner)
        if context.interrupts():
            code, ending = context.interrupts.exit_code, (RunOutcome.STOPPED, "by a signal; the same command goes on")
    except (SearchFailed, ClusterLost) as error:
        code, ending = 1, (RunOutcome.FAILED, str(error))
        console.error(str(error))
    if code == 0 and not study.shared:
        shutil.rmtree(checkpoints_folder(study.name), ignore_errors=True)
    if runs_final or not study.shared:
        _log_results(context, data)
    console.print(*summarize(study), *_links(context, url))
    if context.interrupts():
        console.print("stopped: the same command goes on where it was")
    # of several drivers the one that has trained the finalists says that the search has finished
    if context.notify and (runs_final or code or not study.shared):
        context.notify.ended(*ending)
    if unsent := coordinator.end_run(*ending):
        console.print(unsent)
    return code


def _announce(context: SearchContext, coordinator: Coordinator, data: Dataset, url: str) -> None:
    """Recover what dead drivers left, log what the study is about, and print what is going to happen."""
    study, runs, console = context.study, context.runs, context.console
    search = study.search
    stale = coordinator.recover_stale_trials()
    for line in runs.claim():
        console.print(line)
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
    own = {"search": search.name, "refit": format_value(search.refit), **settings}
    runs.run.log_params(own | search.differing_settings())
    if not study.trials():
        runs.run.set_description(describe_search(study, data, experiment_id=runs.run.experiment_id))
    runs.run.log_text("config.yaml", to_yaml(search.base))
    runs.run.check_artifacts_writable()
    finished = study.n_finished()
    budget = f"{search.settings.trials} trials, {context.executor.describe()}"
    if search.settings.final_only:
        budget = f"no further trial, only the final of {count(finished, 'finished trial')}"
    elif finished:
        budget += f"; {finished} are done"
    if stale:
        budget += f", {stale} were lost with their driver and are queued again"
    console.print(
        f"study    {study.name} in {mask_password(url)}",
        f"data     {data.name}: {describe_images(data)}",
        f"space    {', '.join(search.space)}: {_describe_size(study)}",
        *(f"         {name} {describe_condition(name, search.conditions)}" for name in search.conditions),
        f"budget   {budget}",
    )
    if warning := slow_batch_norm_in_space(search, training_images=len(data.train)):
        console.warn(warning)
    for leak in _leaks(search, data):
        console.warn(leak)
    if len(search.settings.metric) > 1:
        console.print("pruner   none: an unfinished trial cannot be ranked by two metrics")


def _leaks(search: SearchSpec, data: Dataset) -> Iterator[str]:
    """Yield a warning of each model that was trained on images by which a trial, or else a final, is judged."""
    sources = (*search.sources.values(), *(teacher.network for teacher in search.teachers.values()))
    has_other_seeds = search.settings.final_top and search.settings.final_seeds > 1
    for source in {one.origin: one for one in sources}.values():
        if leak := source.leak(data):
            yield leak
        elif has_other_seeds and source.data_fingerprint == data.fingerprint:
            # if the data leave the split to the seed, the next one splits them otherwise
            other = load_dataset(search.base.data, seed=search.base.seed + 1)
            if leak := source.leak(other, remedy="try final_seeds=1"):
                yield f"in finals with another seed {leak}"


def _describe_size(study: Study) -> str:
    """Return how many configurations the space has, and how many of them fit the images as far as that is known."""
    number, feasible = study.search.n_configurations(), study.n_feasible()
    if number is None:
        return "any number of configurations"
    fitting = "" if feasible in (None, number) else f", {feasible:,} of which fit the images"
    return f"{count(number, 'configuration')}{fitting}"


def _run_trials(context: SearchContext, data: Dataset) -> None:
    """Run trials until the budget is spent; the study's run in MLflow says meanwhile what is known so far."""
    loop = SearchLoop(context, on_status=lambda: _log_standing(context, data))
    context.console.print("", f"the trials end: {loop.run()}")


def _run_final(context: SearchContext, data: Dataset) -> dict[str, Any] | None:
    """Train the finalists as far as that is missing; then, while no trial runs, measure latencies.

    Returns:
        The winner, or None if there is none.
    """
    study, winner = context.study, None
    if study.search.settings.final_top and study.ranked():
        final = FinalistTraining(context)
        if final.known_winner() is None:
            # Before the final, which may take as long as the trials
            _log_results(context, data)
        winner = final.run()
    if not context.interrupts():
        measure_latencies(context)
    return winner


def _check_result(study: Study, winner: dict[str, Any] | None) -> None:
    """Raise SearchFailed if the search has ended without a result."""
    if not study.ranked():
        raise SearchFailed("no trial has finished: each one's run says why")
    if study.search.settings.final_top and winner is None:
        raise SearchFailed(
            "the final has no winner: its runs say why, and the same command tries again what is missing"
        )


def _log_results(context: SearchContext, data: Dataset) -> None:
    """Log the table, the figures, the metrics and the description of the study as it is now."""
    study, runs = context.study, context.runs
    _log_standing(context, data)
    began = time.monotonic()
    for path, figure in figures(study):
        runs.run.log_figure(path, figure)
        # a process that was asked to stop has better things to do with its last seconds
        if context.interrupts() and time.monotonic() - began > FIGURES_SECONDS:
            break
    values: dict[str, float] = {"trials": study.n_finished(), "searched_seconds": study.searched_seconds()}
    if best := study.best():
        for metric, value in zip(study.search.settings.metric, best.values, strict=True):
            values[f"best_{metric}"] = value
    if tested := study.get_attr(TESTED):
        runs.run.set_tags({Tag.TEST_SET_ACCESSES: str(len(tested))})
    ensemble = study.get_attr(ENSEMBLE)
    if ensemble and ensemble["metrics"]:
        values[f"ensemble_{study.search.monitor}"] = ensemble["metrics"][study.search.monitor]
        runs.run.set_tags({Tag.ENSEMBLE: ensemble["run_id"]})
    if winner := study.get_attr(WINNER):
        values |= {name: value for name, value in winner.items() if isinstance(value, float)}
        settings = settings_as_text(winner["params"], study.search)
        # Tags, as a parameter could not change with the winner
        runs.run.set_tags(
            {Tag.WINNER: winner["run_id"]} | {f"{Tag.WINNER}.{name}": value for name, value in settings.items()}
        )
    runs.run.log_metrics(values)


def _log_standing(context: SearchContext, data: Dataset) -> None:
    """Log the table of trials, and describe the study as it is now."""
    study, run = context.study, context.runs.run
    run.log_table("leaderboard.csv", leaderboard(study))
    study.set_note(describe_for_dashboard(study))
    run.set_description(describe_search(study, data, experiment_id=run.experiment_id))


def build_executor(search: SearchSpec, data: Dataset) -> Executor:
    """Return the executor of a search's trials, on this machine or on a Ray cluster.

    Raises:
        UsageError: the slots that were asked for do not exist.
    """
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
    if settings.max_memory_mb is not None and not gpus:
        raise UsageError(
            "max_memory_mb must be left out where there is no GPU, as TensorFlow does not limit other memory: "
            f"got {settings.max_memory_mb}"
        )
    workers = settings.workers or max(1, available_cores() // CORES_PER_TRIAL)
    return LocalExecutor(
        make_slots(gpus, trials_per_gpu=settings.trials_per_gpu, workers=workers, cores=available_cores())
    )


def _links(context: SearchContext, url: str) -> list[str]:
    """Return the lines that say where the results are and how to look at them."""
    study, runs = context.study, context.runs
    return [
        f"run       {runs.id}, study {study.name}",
        f"figures   {runs.run.artifact_uri}/plots",
        *page_links(runs.run.experiment_id, runs.id),
        f"report    {project_command('report', study.name)}",
        f"dashboard {dashboard_command(url)}",
    ]


def dashboard_command(url: str) -> str:
    """Return the command that shows a study in optuna-dashboard, which is no dependency: uv installs it."""
    # `make` has put uv beside Python
    uv = Path(sys.executable).parent / "uv"
    uvx = f"{shlex.quote(str(uv))} tool run" if uv.exists() else "uvx"
    driver = "--with 'psycopg[binary]' " if url.startswith("postgresql") else ""
    return f"{uvx} {driver}optuna-dashboard {shlex.quote(mask_password(url))}"
