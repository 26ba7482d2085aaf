"""What the nodes of a Ray cluster offer to trials: how many run at a time, and the CPUs of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.search.executors.slots import CORES_PER_TRIAL


@dataclass(frozen=True)
class ClusterResources:
    """What the nodes of a cluster offer to trials, as Ray listed them at one moment.

    Attributes:
        trials_per_gpu: how many trials share a GPU.
        gpu_only: whether trials run on GPUs only: several per GPU were requested, or there have been GPUs. When all
            are taken away, what is left is often a head node whose CPUs would need weeks.
        nodes: the resources of each node that trains.
        cpus_per_trial: as many as the node with the fewest CPUs per trial has for each.
        waits_for_gpus: whether there is no GPU although trials run on GPUs only.
    """

    trials_per_gpu: int
    gpu_only: bool
    nodes: tuple[Mapping[str, float], ...] = ()
    cpus_per_trial: int = 1
    waits_for_gpus: bool = False

    def with_nodes(self, nodes: Sequence[Mapping[str, float]]) -> "ClusterResources":
        """Return the resources of a later moment, with these nodes."""
        gpu_nodes = [node for node in nodes if node.get("GPU")]
        gpu_only = self.gpu_only or bool(gpu_nodes)
        if gpu_only:
            shares = [node["CPU"] // (node["GPU"] * self.trials_per_gpu) for node in gpu_nodes]
            # without a GPU now, what the next trials need is what the last ones needed
            cpus = max(1, min(shares, default=self.cpus_per_trial))
        else:
            cpus = min([CORES_PER_TRIAL, *(node["CPU"] for node in nodes)])
        return replace(
            self,
            gpu_only=gpu_only,
            nodes=tuple(nodes),
            cpus_per_trial=int(cpus),
            waits_for_gpus=gpu_only and not gpu_nodes,
        )

    @property
    def has_gpus(self) -> bool:
        """Return whether a node has GPUs."""
        return any(node.get("GPU") for node in self.nodes)

    @property
    def slots(self) -> int:
        """Return how many trials the nodes can run at a time."""
        return sum(self._slots_of(node) for node in self.nodes)

    def _slots_of(self, node: Mapping[str, float]) -> int:
        by_cpu = int(node["CPU"] // self.cpus_per_trial)
        if not self.gpu_only:
            return by_cpu
        return min(by_cpu, int(node.get("GPU", 0) * self.trials_per_gpu))
