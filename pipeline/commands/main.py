"""The entry point: `convmixer COMMAND ...` runs a command, reports in one line what went wrong, and sets the exit code.

Importing MLflow or TensorFlow takes seconds, so the modules of the commands are imported inside the functions here,
after the command line, and whatever else can be checked quickly, has been accepted. What `--help` does not need is
imported there as well.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from pipeline.runtime.console import Console, configure_logging, print_exception
from pipeline.runtime.environment import read_keras_config, set_environment
from pipeline.runtime.errors import NothingToDo, PipelineError, Stopped, UsageError
from pipeline.runtime.files import DISK_FULL
from pipeline.runtime.home import prepare_home
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.out_of_memory import describe_oom, is_oom_error
from pipeline.runtime.parent_watch import stop_with_parent
from pipeline.runtime.signals import handle_signals
from pipeline.runtime.text import nearest, one_line, shown
from pipeline.runtime.urls import hide_credentials, set_http_timeouts
from pipeline.tracking.experiment import select_experiment
from pipeline.tracking.local_store import check_local_store

LESS_MEMORY = "try a smaller image_size or batch_size, or a larger patch_size"
FIRST_SIGNAL_CODE = 129  # exit codes from here on: 128 + the signal that stopped the command


class Command(NamedTuple):
    """A command: what it does, for the usage, and the function that runs it with the words after its name."""

    summary: str
    run: Callable[[Sequence[str], Console], int | None]


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the name of the command, then its own arguments.
    """
    sys.excepthook = print_exception
    name, *rest = arguments or ["--help"]
    if name in {"-h", "--help"}:
        Console().print(*usage().splitlines())
        return 0
    if "PYTHONWARNINGS" in os.environ:
        warnings.simplefilter("ignore")
    set_environment(os.environ)
    return run_command(lambda console: _run(_find(name), rest, console))


def _run(command: Command, arguments: Sequence[str], console: Console) -> int | None:
    """Run a command in the experiment that its arguments name."""
    from pipeline.config.arguments import take_experiment

    own, experiment = take_experiment(arguments)
    if experiment is not None and not {"-h", "--help"} & {*own}:
        select_experiment(experiment)
    return command.run(own, console)


def usage() -> str:
    """Return the help of the program: its commands."""
    commands = "\n".join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: convmixer COMMAND ...\n\ncommands:\n{commands}\n\n"
        "`convmixer COMMAND --help` shows the settings of a command and an example."
    )


def run_command(work: Callable[[Console], int | None]) -> int:
    """Do the work of a command, with one line for the user where it ends early.

    Returns:
        What the work returns, or 0; the exit code of a PipelineError or of Stopped; 1 for a full disk or memory.

    Raises:
        Exception: any other, as it is a fault of the program.
    """
    console = Console()
    configure_logging(console)
    try:
        prepare_home(os.environ)
        hide_credentials(os.environ)
        set_http_timeouts(os.environ)
        return work(console) or 0
    except NothingToDo as done:
        console.print(str(done))
        return done.exit_code
    except UsageError as error:
        console.error(str(error))
        from pipeline.tracking.project_run import fail_project_run

        fail_project_run(str(error))
        return error.exit_code
    except PipelineError as error:
        console.error(str(error))
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            console.error(f"the disk is full: {one_line(error)}")
        elif is_oom_error(error):
            console.error(f"{describe_oom(error)}; {LESS_MEMORY}")
        else:
            raise
        return PipelineError.exit_code
    except Stopped as stopped:
        console.note(f"stopped by {stopped}")
        return stopped.exit_code
    except KeyboardInterrupt:
        again = Stopped(signal.SIGINT, "again, before everything was cleaned up")
        console.note(f"stopped by {again}")
        return again.exit_code


def exit_process(code: int) -> NoReturn:
    """End the process with this exit code; at once if a signal stopped it.

    Python's own way out waits for TensorFlow's threads, which took 2 s on busy cores: too long a part of the ten
    seconds in which a stopped process has to be gone.
    """
    if code < FIRST_SIGNAL_CODE:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _find(name: str) -> Command:
    if name not in COMMANDS:
        raise UsageError(
            f"the command must be one of {', '.join(COMMANDS)}, got {shown(name)}{nearest(name, COMMANDS)}"
        )
    return COMMANDS[name]


def _train(arguments: Sequence[str], console: Console) -> None:
    from pipeline.config.recipe import parse_training

    command = parse_training(arguments)
    from pipeline.notifications.notifier import Notifier
    from pipeline.notifications.receivers import take_receivers

    receivers = take_receivers(os.environ, command.notify)
    read_keras_config(os.environ)
    check_local_store()
    with handle_signals(), stop_with_parent(), Notifier(receivers) as notifier:
        from pipeline.commands.train import train

        train(command, console, notifier)


def _search(arguments: Sequence[str], console: Console) -> int:
    from pipeline.config.search import parse_search_command

    command = parse_search_command(arguments)
    from pipeline.notifications.notifier import Notifier
    from pipeline.notifications.receivers import take_receivers

    receivers = take_receivers(os.environ, command.notify)
    read_keras_config(os.environ)
    check_local_store()
    from pipeline.data.dataset import load_dataset
    from pipeline.runtime.files import check_cache_writable
    from pipeline.search.executors.ray_cluster import check_token_private
    from pipeline.search.space import build_search, check_against_data
    from pipeline.search.storage_url import validate_environment

    validate_environment(os.environ)
    search = build_search(command)
    check_token_private(search.settings.cluster, os.environ)
    check_cache_writable()
    with handle_signals():
        data = load_dataset(search.base.data, seed=search.base.seed)
    # before anything slow is imported; a model that the search starts from decides on settings, and is loaded first
    if not search.origins():
        check_against_data(search, image_shape=data.image_shape, training_images=len(data.train))
    from pipeline.commands.search import run_search

    with Notifier(receivers) as notifier:
        return run_search(search, data, notifier=notifier, leave_gpus=True).exit_code


def _report(arguments: Sequence[str], console: Console) -> None:
    from pipeline.config.commands import parse_report

    command = parse_report(arguments)
    check_local_store()
    from pipeline.notifications.notifier import deliver_pending

    with handle_signals(), stop_with_parent(), deliver_pending(os.environ):
        with slow_imports():
            from pipeline.commands.report import build_report
        build_report(command, console)


def _evaluate(arguments: Sequence[str], console: Console) -> None:
    from pipeline.config.commands import parse_evaluate

    command = parse_evaluate(arguments)
    with _ready_to_measure(command.settings.dataset, temporary="evaluations"):
        with slow_imports():
            from pipeline.commands.evaluate import run_evaluation
        run_evaluation(command, console)


@contextmanager
def _ready_to_measure(dataset: str | None, *, temporary: str) -> Iterator[None]:
    """Context manager: check what measuring a logged model needs, and handle signals meanwhile.

    Args:
        dataset: Name or path of images other than the model's own.
        temporary: Name of the folder of the command's temporary files.
    """
    read_keras_config(os.environ)
    check_local_store()
    from pipeline.data.dataset import check_dataset_exists
    from pipeline.notifications.notifier import deliver_pending
    from pipeline.runtime.files import check_cache_writable, temporary_files

    if dataset is not None:
        check_dataset_exists(dataset)
    check_cache_writable()
    with handle_signals(), stop_with_parent(), deliver_pending(os.environ), temporary_files(temporary):
        yield


def _predict(arguments: Sequence[str], console: Console) -> None:
    from pipeline.config.commands import parse_predict

    command = parse_predict(arguments)
    read_keras_config(os.environ)
    check_local_store()
    from pipeline.data.image_files import find_images
    from pipeline.notifications.notifier import deliver_pending

    with handle_signals(), stop_with_parent(), deliver_pending(os.environ):
        files = find_images(command.images)
        with slow_imports():
            from pipeline.commands.predict import run_prediction
        run_prediction(command, files, console)


def _export(arguments: Sequence[str], console: Console) -> None:
    from pipeline.config.commands import parse_export

    command = parse_export(arguments)
    with _ready_to_measure(command.settings.dataset, temporary="exports"):
        with slow_imports():
            from pipeline.commands.export import run_export
        run_export(command, console)


def _doctor(arguments: Sequence[str], console: Console) -> int:
    from pipeline.config.commands import parse_doctor

    config = parse_doctor(arguments)
    from pipeline.commands import doctor

    return doctor.run(config, console)


COMMANDS = {
    "train": Command("train one model and log it to MLflow", _train),
    "search": Command("search hyperparameters with Optuna", _search),
    "report": Command("compare finished runs on one HTML page", _report),
    "evaluate": Command("measure calibration and robustness of a logged model", _evaluate),
    "predict": Command("classify image files with a logged model", _predict),
    "export": Command("write a logged model as ONNX, LiteRT or SavedModel", _export),
    "doctor": Command("check the installation, the tracking store and the device", _doctor),
}
