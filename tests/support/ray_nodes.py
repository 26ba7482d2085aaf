"""A search on a cluster that loses its two nodes in the middle of trials while a third joins; writes a report.

`python ray_nodes.py FOLDER ADDRESS`, in a network namespace of its own, as such a cluster listens on all addresses. The
report is FOLDER/report.json.
"""

import json
import os
import sys
from pathlib import Path

import mlflow
from ray.cluster_utils import Cluster

from pipeline.search.executors.base import EpochReport
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.loop import SearchLoop
from pipeline.tracking.study_run import open_study_run
from pipeline.tracking.tags import RunOutcome, Tag
from tests.support import misbehaving
from tests.support.scripted import CONTINUOUS, RecordingConsole, make_search, mlflow_store, open_study, search_context

FAST_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
}


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
                self.cluster.add_node(num_cpus=1)
        return events


def main(folder, address):
    # Ray's proxy for ray:// starts a server per client with fork(). With gRPC's fork handlers, which it inherits this
    # setting for, that server crashes now and then on a busy machine, and connecting fails.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    head = {"num_cpus": 0, "ray_client_server_port": 10001, "_system_config": FAST_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    first_nodes = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
    cluster.wait_for_nodes()
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
