"""How many trials the nodes of a cluster run at a time, and with how many CPUs."""

import pytest

from pipeline.search.executors.ray_resources import ClusterResources


@pytest.mark.parametrize(
    ("trials_per_gpu", "nodes", "cpus", "slots"),
    [
        (1, [{"CPU": 64.0}], 4, 16),
        (1, [{"CPU": 64.0}, {"CPU": 2.0}], 2, 33),
        (1, [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], 8, 2),
        (1, [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 12.0, "GPU": 4.0}], 3, 6),
        (2, [{"CPU": 16.0, "GPU": 2.0}], 4, 4),
        (4, [{"CPU": 2.0, "GPU": 1.0}], 1, 2),
    ],
)
def test_slots_and_cpus_per_trial_are_those_of_the_scarcest_node(trials_per_gpu, nodes, cpus, slots):
    resources = ClusterResources(trials_per_gpu, gpu_only=trials_per_gpu > 1).with_nodes(nodes)
    assert (resources.cpus_per_trial, resources.slots) == (cpus, slots)


def test_resources_without_the_gpus_that_were_there_wait_and_keep_the_cpus_per_trial():
    before = ClusterResources(1, gpu_only=False).with_nodes([{"CPU": 16.0, "GPU": 2.0}])
    after = before.with_nodes([{"CPU": 64.0}])
    assert before.has_gpus and not before.waits_for_gpus
    assert after.waits_for_gpus and not after.has_gpus
    assert (after.slots, after.cpus_per_trial) == (0, 8)
