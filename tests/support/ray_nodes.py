"""A search on a cluster that loses its two nodes in the middle of trials while a third joins; writes a report.

`python ray_nodes.py FOLDER ADDRESS`, in a network namespace of its own, as such a cluster listens on all addresses. The
report is FOLDER/report.json.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
from ray.cluster_utils import Cluster

from pipeline.search.executors.base import EpochReport
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.loop import SearchLoop
from pipeline.tracking.study_run import open_study_run
from pipeline.tracking.tags import RunOutcome, Tag
from tests.support import misbehaving
from tests.support.scripted import CONTINUOUS, RecordingConsole, make_search, mlflow_store, open_study, search_context

# A killed node refuses the connection at once and is known to be lost after five checks; one on a busy machine answers
# late and is not
FAST_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 60_000,
}
# What Ray says when a node was not up within 30 s, which it does not let one set
# (https://github.com/ray-project/ray/issues/62883), and how often such a start is repeated
NOT_UP_IN_TIME = "The current node timed out during startup"
MAX_STARTS = 10


def start_in_time(start):
    """Return what `start` returns; kill what it started, and call it again, where Ray gave up waiting for a node."""
    driver = psutil.Process()
    for attempt in range(1, MAX_STARTS + 1):
        before = set(driver.children(recursive=True))
        try:
            return start()
        except Exception as error:
            if NOT_UP_IN_TIME not in str(error) or attempt == MAX_STARTS:
                raise
            for process in set(driver.children(recursive=True)) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    raise AssertionError


class NodeRemovingExecutor(RayExecutor):
    """Removes the first node at the first report, and the second at the first report after a third has joined.

    Each is removed while all slots are in use, so that a trial is lost with it.
    """

    def __init__(self, cluster, first_nodes, *args, **options):
        super().__init__(*args, **options)
        self.cluster, self.first_nodes = cluster, first_nodes

    def events(self, timeout):
        events = super().events(timeout)
        all_in_use = self.free() == 0
        if self.first_nodes and all_in_use and any(isinstance(event, EpochReport) for event in events):
            self.cluster.remove_node(self.first_nodes.pop(0), allow_graceful=False)
            if len(self.first_nodes) == 1:
                add_node(self.cluster)
        return events


def add_node(cluster):
    """Return a node with one slot that was added to a cluster."""
    return start_in_time(lambda: cluster.add_node(num_cpus=1))


def main(folder, address):
    # Ray's proxy for ray:// starts a server per client with fork(). With gRPC's fork handlers, which it inherits this
    # setting for, that server crashes now and then on a busy machine, and connecting fails.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    head = {"num_cpus": 0, "ray_client_server_port": 10001, "_system_config": FAST_HEALTH_CHECKS}
    cluster = start_in_time(lambda: Cluster(initialize_head=True, head_node_args=head))
    os.environ["RAY_ADDRESS"] = cluster.address
    first_nodes = [add_node(cluster), add_node(cluster)]
    cluster.wait_for_nodes(timeout=120)
    options = {"fingerprint": None, "trials_per_gpu": 1, "trials": None}
    options |= {"trial_function": misbehaving.slow_epochs, "preloaded": ()}
    search = make_search(folder, CONTINUOUS, "--trials", "6", "--pruner", "none")
    study, console = open_study(folder, search), RecordingConsole()
    with mlflow_store(folder), NodeRemovingExecutor(cluster, first_nodes, address, **options) as executor:
        runs = open_study_run("mine", known=None, trials=0)
        before = executor.describe()
        ending = SearchLoop(search_context(study, executor, runs=runs, console=console)).run()
        runs.close(RunOutcome.FINISHED, "")
        found = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    children = [run for run in found if run.info.run_id != runs.id]
    report = {
        "ending": ending,
        "before": before,
        "lines": console.lines,
        "states": [trial.state.name for trial in study.trials()],
        "params": [trial.params["learning_rate"] for trial in study.trials()],
        "curves": [list(trial.intermediate_values) for trial in study.trials()],
        "runs": sorted([run.info.status, run.data.tags.get(Tag.REASON, "")] for run in children),
        "left": len(first_nodes),
    }
    (Path(folder) / "report.json").write_text(json.dumps(report))
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
