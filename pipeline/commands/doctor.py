"""Whether all is well: `mlflow run . -e doctor`, or `python -m pipeline doctor`; a line each, with what would cure it.

It looks at Python and its packages, the tracking store, the cache and the disks, and what TensorFlow computes on, and
sends what runs could not tell while the tracking server was away, and closes the runs that have lost their process on
this host. The exit code is 1 where something is broken.
"""

from collections.abc import Callable, Iterator, Sequence

from pipeline.commands.doctor_checks import CheckResult
from pipeline.config import arguments as command_line
from pipeline.config.commands import DoctorConfig


def run(arguments: Sequence[str]) -> int:
    """Print a line for each check; return 1 where something is broken."""
    visit = DoctorConfig.build(
        command_line.parse(
            arguments,
            program="convmixer doctor",
            description=str(__doc__),
            settings=DoctorConfig.build({}),
            of="by default",
        )
    )
    broken = False
    for finding in _findings(visit):
        print(finding, flush=True)
        broken |= finding.state == "broken"
    return int(broken)


def _findings(visit: DoctorConfig) -> Iterator[CheckResult]:
    """From what is quickly told to what takes long; MLflow takes seconds to import."""
    from pipeline.commands import doctor_checks

    if visit.close:
        yield from doctor_checks.close_runs(visit.close)
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
