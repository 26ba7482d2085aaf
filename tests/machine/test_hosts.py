"""Several hosts are refused, and nothing else that TF_CONFIG may hold."""

import json

import pytest

from pipeline.errors import UsageError
from pipeline.machine.hosts import refuse_several


@pytest.mark.parametrize("cluster", [{"worker": ["a:1", "b:1"]}, {"chief": ["a:1"], "worker": ["b:1"]}])
def test_a_cluster_of_several_workers_is_refused(cluster):
    with pytest.raises(UsageError, match="one run trains on one host, .* TF_CONFIG names 2 workers; unset it"):
        refuse_several({"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}})})


@pytest.mark.parametrize(
    "text", [None, "", "{}", "no JSON", "[]", '{"cluster": {"worker": ["a:1"]}}', '{"cluster": 1}']
)
def test_anything_else_is_none_of_our_business(text):
    refuse_several({} if text is None else {"TF_CONFIG": text})
