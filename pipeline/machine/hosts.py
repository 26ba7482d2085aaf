"""Several hosts that were told to train one model together."""

import json
from collections.abc import Mapping

from pipeline.errors import UsageError


def refuse_several(environ: Mapping[str, str]) -> None:
    """Refuse a cluster of several workers, as TensorFlow's TF_CONFIG describes it: each would train a model of its own.

    Keras 3 cannot train with MultiWorkerMirroredStrategy: `fit` hands a layer what belongs to all workers (Keras 3.15,
    TensorFlow 2.21, two processes on one machine).

    Raises:
        UsageError: it names several.
    """
    try:
        cluster = json.loads(environ.get("TF_CONFIG") or "{}").get("cluster", {})
        workers = [worker for job in ("chief", "worker") for worker in cluster.get(job, ())]
    except (ValueError, AttributeError, TypeError):
        return
    if len(workers) > 1:
        raise UsageError(
            "one run trains on one host, as Keras 3 cannot share a model among several: TF_CONFIG names "
            f"{len(workers)} workers; unset it, take devices=all on one host, or search with cluster= or drivers=shared"
        )
