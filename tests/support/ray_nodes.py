"""A search on a cluster of a head and two nodes, which are killed in mid-trial, while a third joins: says what came.

`python ray_nodes.py FOLDER ADDRESS`, in a network namespace of its own, since such a cluster listens on all addresses.
"""

import json
import os
import sys
from pathlib import Path

import mlflow
from ray.cluster_utils import Cluster as Nodes

from pipeline.search.executors.base import EpochReport
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.loop import SearchLoop
from pipeline.tracking.study_run import open_study_run
from pipeline.tracking.tags import RunOutcome, Tag
from tests.support import misbehaving
from tests.support.scripted import CONTINUOUS, RecordingConsole, make_search, mlflow_store, open_study, search_context

SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 3000}


class Watched(RayExecutor):
    """Loses the first node with its first report, and the second with the first report after a third has joined."""

    nodes: Nodes
    first: list

    def events(self, timeout):
        happened = super().events(timeout)
        self.places.append(self.free() + len(self._tasks))
        if (
            any(isinstance(event, EpochReport) for event in happened)
            and self.first
            and len(self._tasks) == self.places[-1]
        ):
            self.nodes.remove_node(self.first.pop(0), allow_graceful=False)
            if len(self.first) == 1:
                self.nodes.add_node(num_cpus=1)
        return happened


def main(folder, address):
    head = {"num_cpus": 0, "ray_client_server_port": 10001, "_system_config": SOON}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = nodes.address
    cluster = Watched(
        address, fingerprint=None, trials_per_gpu=1, trials=None, trial_function=misbehaving.slow_epochs, preloaded=()
    )
    cluster.nodes, cluster.places = nodes, []
    cluster.first = [nodes.add_node(num_cpus=1), nodes.add_node(num_cpus=1)]
    nodes.wait_for_nodes()
    search = make_search(folder, CONTINUOUS, "--trials", "6", "--pruner", "none")
    study, console = open_study(folder, search), RecordingConsole()
    with mlflow_store(folder), cluster as executor:
        runs = open_study_run("mine", known=None, trials=0)
        before = executor.describe()
        ending = SearchLoop(search_context(study, executor, runs=runs, console=console)).run()
        runs.close(RunOutcome.FINISHED, "")
        found = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    children = [run for run in found if run.info.run_id != runs.id]
    told = {
        "ending": ending,
        "before": before,
        "said": console.lines,
        "states": [trial.state.name for trial in study.trials()],
        "params": [trial.params["learning_rate"] for trial in study.trials()],
        "curves": [list(trial.intermediate_values) for trial in study.trials()],
        "runs": sorted([run.info.status, run.data.tags.get(Tag.REASON, "")] for run in children),
        "left": len(cluster.first),
    }
    (Path(folder) / "told.json").write_text(json.dumps(told))
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
