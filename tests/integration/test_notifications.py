"""Notifications end to end: commands of their own, and a webhook that is down for a while."""

import os
import subprocess
import sys
import time

import pytest

from pipeline.notifications.receivers import FOLDER
from pipeline.runtime.files import cache_folder
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.stores import environment, tracking_store
from tests.support.webhooks import Hook, webhook

DOWN_SECONDS = 60


def start(folder, uri, port, *words):
    variables = environment(uri, "mine") | {"CONVMIXER_NOTIFY_URL": f"http://127.0.0.1:{port}/services/T0/Pl4nted-path"}
    variables |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    command = [sys.executable, "-m", "pipeline", *words]
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def waiting():
    return list(cache_folder(FOLDER).rglob("*.json"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_run_whose_webhook_is_down_is_told_of_by_the_next_command(tmp_path):
    hook, port = Hook(), free_port()
    with tracking_store(tmp_path, "mine") as uri:
        output, _ = start(tmp_path, uri, port, "train", "smoke", "--epochs", "1").communicate(timeout=300)
        assert output.count("does not take notifications now ([Errno 111] Connection refused)") == 1, output
        assert len(waiting()) == 1 and "Pl4nted" not in output
        with webhook(hook, port):
            start(tmp_path, uri, port, "report", "mine").communicate(timeout=300)
    (event,) = hook.events
    assert event["event"] == "finished" and event["text"].startswith("smoke epochs=1: finished: test accuracy ")
    assert event["metrics"]["test_accuracy"] > 0 and not waiting()


@pytest.mark.slow
def test_search_whose_webhook_is_down_for_a_minute_tells_all(tmp_path):
    hook, port = Hook(), free_port()
    flags = ["--trials", "14", "--sampler", "random", "--pruner", "none", "--final_top", "1", "--final_seeds", "1"]
    with tracking_store(tmp_path, "mine") as uri:
        search = start(tmp_path, uri, port, "search", "smoke", *flags)
        while not waiting():
            assert search.poll() is None
            time.sleep(0.1)
        time.sleep(DOWN_SECONDS)
        with webhook(hook, port):
            output, _ = search.communicate(timeout=600)
    assert search.returncode == 0, output
    assert hook.kinds()[0] == "new_best" and hook.kinds()[-2:] == ["budget", "finished"] and not waiting()
    assert len({event["id"] for event in hook.events}) == len(hook.events)
