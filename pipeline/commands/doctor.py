"""Whether all is well: `mlflow run . -e doctor`, or `python -m pipeline doctor`; a line each, with what would cure it.

It looks at Python and its packages, the tracking store, the cache and the disks, and what TensorFlow computes on, and
sends what runs could not tell while the tracking server was away, and closes the runs that have lost their process on
this host. The exit code is 1 where something is broken.
"""

from collections.abc import Callable, Iterator

from pipeline.commands.doctor_checks import CheckResult
from pipeline.config.commands import DoctorConfig


def run(config: DoctorConfig) -> int:
    """Print a line for each check; return 1 where something is broken."""
    code = 0
    for finding in _findings(config):
        print(finding, flush=True)
        if finding.state == "broken":
            code = 1
    return code


def _findings(config: DoctorConfig) -> Iterator[CheckResult]:
    """From what is quickly told to what takes long; MLflow takes seconds to import."""
    from pipeline.commands import doctor_checks

    if config.close:
        yield from doctor_checks.close_runs(config.close)
    checks: list[Callable[[], Iterator[CheckResult]]] = [
        doctor_checks.check_python,
        doctor_checks.check_packages,
        doctor_checks.check_cache,
        doctor_checks.check_store,
        doctor_checks.check_outbox,
        doctor_checks.check_open_runs,
        doctor_checks.check_tensorflow,
    ]
    for check in checks:
        yield from check()
