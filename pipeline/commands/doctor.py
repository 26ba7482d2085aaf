"""The command `doctor`: check the installation, the cache, the tracking store and the device.

It prints a line for each result, with a remedy where one is needed. It also sends the records and notifications that
are pending on this machine, closes stale runs, and closes the runs that the user says are dead.
"""

from collections.abc import Iterator

from pipeline.commands import doctor_checks
from pipeline.commands.doctor_checks import CheckResult
from pipeline.commands.doctor_notifications import check_notifications
from pipeline.config.commands import DoctorConfig
from pipeline.runtime.console import Console


def run(config: DoctorConfig, console: Console) -> int:
    """Run all checks; return the exit code: 1 if a result is an error, else 0.

    Raises:
        UsageError: A run to be closed does not exist, has ended, or its process is alive.
    """
    exit_code = 0
    for result in _results(config):
        console.print(str(result))
        if result.state == "error":
            exit_code = 1
    return exit_code


def _results(config: DoctorConfig) -> Iterator[CheckResult]:
    """Yield the result of each check as it comes, the quick ones first."""
    if config.close:
        yield from doctor_checks.close_runs(config.close)
    yield from doctor_checks.check_python()
    yield from doctor_checks.check_packages()
    yield from doctor_checks.check_environment()
    yield from doctor_checks.check_cache()
    yield from doctor_checks.check_store()
    yield from doctor_checks.check_outbox(resend=config.resend)
    yield from check_notifications(resend=config.resend)
    yield from doctor_checks.check_open_runs()
    yield from doctor_checks.check_tensorflow()
