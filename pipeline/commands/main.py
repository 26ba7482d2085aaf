"""`convmixer COMMAND ...`: parse the command line, run the command, report in one line what went wrong.

The modules of the commands import MLflow and TensorFlow, which takes seconds, so each is imported after its command
line, and what can be checked quickly, has been accepted.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn

from pipeline.runtime.console import Console, configure_logging
from pipeline.runtime.cpu import prefer_onednn
from pipeline.runtime.errors import NothingToDo, PipelineError, Stopped, UsageError
from pipeline.runtime.files import check_cache_writable, temporary_files
from pipeline.runtime.parent_watch import stop_with_parent
from pipeline.runtime.signals import handle_signals
from pipeline.runtime.stderr import capture_stderr
from pipeline.runtime.text import nearest, one_line, shown
from pipeline.runtime.urls import hide_credentials, set_http_timeouts
from pipeline.tracking.project_run import fail_project_run

USAGE = """usage: convmixer COMMAND ...

commands:
  train     train one model and log it to MLflow
  search    search hyperparameters with Optuna
  report    compare finished runs on one HTML page
  evaluate  measure calibration and robustness of a logged model
  predict   classify image files with a logged model
  doctor    check the installation, the tracking store and the device

`convmixer COMMAND --help` lists the settings of a command."""
STOPPED = 128  # exit codes above it: stopped by a signal


def run_command(work: Callable[[], int | None]) -> int:
    """Do the work of a command.

    Returns:
        What the work returns, or 0; 1 for training that diverged or a full disk, 2 for input that cannot be used, and
        128 and the signal where one stopped it.
    """
    console = Console()
    configure_logging(console)
    try:
        hide_credentials(os.environ)
        set_http_timeouts(os.environ)
        return work() or 0
    except NothingToDo as done:
        console.print(str(done))
        return done.exit_code
    except UsageError as error:
        console.error(str(error))
        fail_project_run(str(error))
        return error.exit_code
    except PipelineError as error:
        console.error(str(error))
        return error.exit_code
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        console.error(f"the disk is full: {one_line(error)}")
        return PipelineError.exit_code
    except Stopped as stopped:
        console.note(f"stopped by {stopped}")
        return stopped.exit_code


def exit_process(code: int) -> NoReturn:
    """End the process with this code; after a signal at once: Python's own way out waits for TensorFlow's threads.

    That took 2 s on busy cores, of the ten in which a stopped process has to be gone.
    """
    if code <= STOPPED:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a terminal that was closed
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Run the command that the process was started with, and end the process with its exit code."""
    exit_process(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command's name, then its own arguments.
    """
    name, *rest = arguments or ["--help"]
    if name in {"-h", "--help"}:
        Console().print(USAGE)
        return 0
    _set_environment_defaults()
    return run_command(partial(_run, name, rest))


def _run(name: str, arguments: Sequence[str]) -> int | None:
    if name not in COMMANDS:
        raise UsageError(
            f"the command must be one of {', '.join(COMMANDS)}, got {shown(name)}{nearest(name, COMMANDS)}"
        )
    return COMMANDS[name](arguments)


def _set_environment_defaults() -> None:
    """Set what MLflow and TensorFlow read when they are imported, unless the user has set it."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up lines; its errors come as exceptions
    prefer_onednn()


def _train(arguments: Sequence[str]) -> None:
    with handle_signals(), stop_with_parent():
        from pipeline.commands import train
        from pipeline.config.training import parse_training

        train.run(parse_training(arguments, program="convmixer train", description=str(train.__doc__)))


def _search(arguments: Sequence[str]) -> int:
    from pipeline.data.dataset import load_dataset
    from pipeline.search.space import check_against_data, parse_search
    from pipeline.search.storage_url import validate_environment

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is a thread, and forks come after it
    validate_environment(os.environ)
    search = parse_search(
        arguments, program="convmixer search", description="Search hyperparameters with Optuna; runs go to MLflow."
    )
    check_cache_writable()
    data = load_dataset(search.base.data, seed=search.base.seed)
    check_against_data(search, image_shape=data.image_shape, training_images=len(data.train))
    from pipeline.commands.search import run_search

    return run_search(search, data)


def _report(arguments: Sequence[str]) -> None:
    from pipeline.config.commands import parse_report

    command = parse_report(arguments, program="convmixer report", description="Compare finished runs on one HTML page.")
    with handle_signals(), stop_with_parent():
        from pipeline.commands.report import build_report

        for line in build_report(command):
            print(line)


def _evaluate(arguments: Sequence[str]) -> None:
    from pipeline.config.commands import parse_evaluate
    from pipeline.data.dataset import check_dataset_exists

    command = parse_evaluate(
        arguments,
        program="convmixer evaluate",
        description="Measure calibration and robustness of a logged model on the test images of its data or of others.",
    )
    if command.settings.dataset is not None:
        check_dataset_exists(command.settings.dataset)
    check_cache_writable()
    with handle_signals(), stop_with_parent(), temporary_files("evaluations"):
        with capture_stderr():
            from pipeline.commands.evaluate import resolve_inputs, run_evaluation
        with resolve_inputs(command) as inputs:
            for line in run_evaluation(inputs, report=partial(print, flush=True)):
                print(line, flush=True)


def _predict(arguments: Sequence[str]) -> None:
    from pipeline.config.commands import parse_predict
    from pipeline.data.image_files import find_images

    command = parse_predict(
        arguments, program="convmixer predict", description="Classify image files with a logged model."
    )
    with handle_signals(), stop_with_parent():
        files = find_images(command.images)
        with capture_stderr():
            from pipeline.commands.predict import run_prediction
            from pipeline.tracking.client import TrackingClient
            from pipeline.tracking.models import find_model
        find_model(TrackingClient(), command.model)
        for line in run_prediction(command, files):
            print(line)


def _doctor(arguments: Sequence[str]) -> int:
    from pipeline.commands import doctor

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return doctor.run(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": _train,
    "search": _search,
    "report": _report,
    "evaluate": _evaluate,
    "predict": _predict,
    "doctor": _doctor,
}
