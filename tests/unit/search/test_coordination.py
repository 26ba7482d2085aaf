"""Registering the drivers of a study: which of them are alive, who is refused, and the lock that they share."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from sqlalchemy import create_engine

from pipeline.runtime.errors import UsageError
from pipeline.runtime.process import HOST, PROCESS, process_of, this_process
from pipeline.search import coordination
from pipeline.search.coordination import SILENCE_SECONDS, DriverRegistry, lock_file
from pipeline.search.study import Study
from tests.support.paths import ROOT
from tests.support.scripted import make_search, open_study

HOLDER = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from tests.support.scripted import make_search, open_study
from pipeline.search.coordination import DriverRegistry
study = open_study(Path(sys.argv[3]), make_search(Path(sys.argv[3])))
registry = DriverRegistry(study.attrs, study.set_attr, exclusive=True)
print("registered", flush=True)
sys.stdin.read()
"""


class Attributes(dict):
    """A study's attributes, in memory; counts how often each was written."""

    def __init__(self):
        super().__init__()
        self.writes = 0

    def read(self):
        return dict(self)

    def write(self, key, value):
        self[key] = value
        self.writes += 1

    def entries(self):
        return [entry for entry in self.values() if entry]


@pytest.fixture
def attributes():
    return Attributes()


def exclusive(attributes):
    return DriverRegistry(attributes.read, attributes.write, exclusive=True)


def shared(attributes):
    return DriverRegistry(attributes.read, attributes.write, exclusive=False)


def entry_of(process, *, heartbeat=1, exclusive=True, starting=False, **changes):
    """Return the entry of a driver that is a process of this host, or what `changes` make of it."""
    identity = replace(process_of(process.pid), **changes)
    return identity.tags() | {"exclusive": exclusive, "starting": starting, "heartbeat": heartbeat}


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


# exclusive drivers


def test_second_exclusive_driver_is_refused_in_one_line_while_first_lives_and_not_after_a_kill(tmp_path):
    study = open_study(tmp_path, make_search(tmp_path))
    paths = [str(coordination.__file__).rsplit("/pipeline/", 1)[0], str(ROOT), str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "registered\n"
        with pytest.raises(UsageError) as refused:
            DriverRegistry(study.attrs, study.set_attr, exclusive=True)
        host = this_process().host
        assert f"a study has one driver at a time: process {process.pid} on {host} holds this one" in str(refused.value)
        assert "\n" not in str(refused.value)
        process.kill()
        process.wait()
    registry = DriverRegistry(study.attrs, study.set_attr, exclusive=True)
    (entry,) = [value for key, value in study.attrs().items() if key.startswith("driver ") and value]
    assert entry[PROCESS] == str(os.getpid()) and study.get_attr(f"driver {registry.id}") == entry


def test_killed_driver_that_was_not_waited_for_is_dead(attributes, sleeper):
    attributes["driver a"] = entry_of(sleeper)
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    exclusive(attributes)


def test_driver_whose_process_id_was_reused_is_dead(attributes, sleeper):
    attributes["driver a"] = entry_of(sleeper, started=process_of(sleeper.pid).started - 1)
    exclusive(attributes)


def test_driver_of_this_host_is_alive_however_long_it_is_silent(attributes, sleeper, short_watch):
    attributes["driver a"] = entry_of(sleeper)
    with pytest.raises(UsageError, match="one driver at a time"):
        exclusive(attributes)


@pytest.fixture
def short_watch(monkeypatch):
    monkeypatch.setattr(coordination, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(coordination, "WATCH_PAUSE_SECONDS", 0.05)


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_driver_of_another_host_or_container_is_alive_if_its_heartbeat_changes_and_else_dead(
    attributes, sleeper, elsewhere, short_watch, caplog
):
    attributes["driver a"] = entry_of(sleeper, **elsewhere)
    changing = threading.Timer(0.1, attributes.write, ["driver a", entry_of(sleeper, heartbeat=2, **elsewhere)])
    changing.start()
    host = elsewhere.get("host", this_process().host)
    with caplog.at_level("INFO", logger="pipeline"), pytest.raises(UsageError, match=f"on {host} holds this one"):
        exclusive(attributes)
    changing.join()
    (record,) = caplog.records
    assert f"cannot see process {sleeper.pid} on {host}, which holds this study: watching" in record.getMessage()
    assert [entry["heartbeat"] for entry in attributes.entries()] == [2], "it never registered"
    registry = exclusive(attributes)
    assert [key for key, entry in attributes.items() if entry] == [f"driver {registry.id}"]


def test_shared_driver_unregisters_a_silent_exclusive_one(attributes, sleeper, short_watch):
    attributes["driver a"] = entry_of(sleeper, host="elsewhere")
    assert shared(attributes).refresh() == ["a"]


def test_exclusive_driver_without_the_lock_file_is_refused(attributes, sleeper, short_watch):
    with pytest.raises(UsageError, match="another one began at this moment"):
        DriverRegistry(attributes.read, attributes.write, exclusive=True, has_lock=False)
    attributes["driver a"] = entry_of(sleeper, namespace="pid:[1]")
    with pytest.raises(UsageError, match=f"process {sleeper.pid} on .* holds this one"):
        DriverRegistry(attributes.read, attributes.write, exclusive=True, has_lock=False)


def test_lock_file_lies_beside_a_study_on_sqlite_one_for_each_study(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/optuna.db")
    with lock_file(engine, "a/b") as has_lock, lock_file(engine, "a/c") as other:
        assert has_lock and other
        assert len(list(tmp_path.glob("optuna.db.*.lock"))) == 2
        with lock_file(engine, "a/b") as again:
            assert not again
    assert not list(tmp_path.iterdir())
    with lock_file(engine, "a/b") as has_lock:
        assert has_lock
    with lock_file(None, "a/b") as one, lock_file(None, "a/b") as other:
        assert one and other, "a study in memory is this process's own"


def test_lock_file_in_a_folder_that_takes_none_is_done_without(tmp_path):
    with lock_file(create_engine(f"sqlite:///{tmp_path}/none/optuna.db"), "study") as has_lock:
        assert has_lock


def test_entry_that_an_earlier_search_of_this_process_left_is_no_other_driver(attributes):
    exclusive(attributes)
    exclusive(attributes)
    assert len(attributes.entries()) == 1


def test_exclusive_driver_removes_the_entries_of_dead_ones(attributes, sleeper, short_watch):
    attributes["driver a"] = entry_of(sleeper, host="elsewhere")
    attributes["driver b"] = entry_of(sleeper, host="elsewhere", exclusive=False)
    registry = exclusive(attributes)
    assert [key for key, entry in attributes.items() if entry] == [f"driver {registry.id}"]
    assert registry.live_drivers() == {registry.id}


@pytest.mark.parametrize("delays", [(0.0, 0.0), (0.05, 0.5), (0.5, 0.05), (0.4, 0.4)])
def test_of_exclusive_drivers_that_start_at_once_one_stays_however_slow_their_storage(attributes, monkeypatch, delays):
    """Two processes in one: each has an id of its own."""
    here, local = this_process(), threading.local()
    for name in ("this_process", "announce_process"):
        monkeypatch.setattr(coordination, name, lambda: replace(here, id=local.number))
    monkeypatch.setattr(coordination, "liveness", lambda process: "alive")
    outcomes = {}

    def start(number, delay):
        def write(key, value):
            time.sleep(delay)
            attributes.write(key, value)

        local.number = number
        try:
            outcomes[number] = DriverRegistry(attributes.read, write, exclusive=True).id
        except UsageError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=start, args=(number, delay)) for number, delay in enumerate(delays, start=1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    (loser,) = [outcome for outcome in outcomes.values() if isinstance(outcome, UsageError)]
    assert "a study has one driver at a time: " in str(loser)
    assert [key for key, entry in attributes.items() if entry] == [f"driver {winner}"]


def test_exclusive_driver_waits_for_one_that_has_not_decided_and_yields_when_it_stays(attributes, sleeper, monkeypatch):
    monkeypatch.setattr(coordination, "SETTLE_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(coordination.secrets, "token_hex", lambda number: "5")
    rival = entry_of(sleeper, starting=True)
    rivals = {"a": iter([rival, rival, rival | {"starting": False}])}  # the larger id, which could not see this one

    class Racing(Attributes):
        def read(self):
            started = {"driver 9": next(rivals["a"])} if "driver 5" in self else {}
            return dict(self) | started

    racing = Racing()
    with pytest.raises(UsageError, match="began at this moment"):
        exclusive(racing)
    assert racing.entries() == []


def test_heartbeat_is_renewed_when_due_and_the_entry_removed_at_close(attributes, monkeypatch):
    registry = exclusive(attributes)
    (first,) = attributes.entries()
    writes = attributes.writes
    assert not registry.heartbeat()
    assert attributes.writes == writes
    now = coordination.seconds_since_boot()
    monkeypatch.setattr(coordination, "seconds_since_boot", lambda: now + 60)
    assert registry.heartbeat()
    (second,) = attributes.entries()
    assert second["heartbeat"] > first["heartbeat"] and attributes.writes == writes + 1
    registry.close()
    assert attributes.entries() == []


def test_driver_that_was_taken_for_dead_stops_at_its_next_heartbeat(attributes, sleeper, monkeypatch):
    registry = exclusive(attributes)
    attributes[f"driver {registry.id}"] = None
    attributes["driver other"] = other = entry_of(sleeper, host="elsewhere")
    assert not registry.heartbeat(), "it is too soon after the last one to read the entries"
    now = coordination.seconds_since_boot()
    monkeypatch.setattr(coordination, "seconds_since_boot", lambda: now + 10 * SILENCE_SECONDS)
    with pytest.raises(UsageError, match="another one took over"):
        registry.heartbeat()
    registry.close()
    assert attributes.entries() == [other]


# shared drivers


def test_shared_driver_of_another_host_is_dead_when_its_heartbeat_stands_still_while_it_is_watched(monkeypatch):
    clock, attributes = [1000.0], Attributes()
    monkeypatch.setattr(coordination.time, "monotonic", lambda: clock[0])
    registry = shared(attributes)
    other = {**attributes[f"driver {registry.id}"], HOST: "elsewhere", "heartbeat": 1}
    attributes["driver other"] = other
    registry.refresh()
    clock[0] += 3600  # the database was unavailable, or this driver slept
    assert registry.refresh() == []
    refreshes = 0
    while not registry.refresh():
        clock[0] += 15
        refreshes += 1
    assert 5 <= refreshes <= 8
    attributes["driver other"] = other | {"heartbeat": 2}
    assert registry.refresh() == [] and registry.live_drivers() == {registry.id, "other"}


def test_shared_and_exclusive_drivers_refuse_each_other(attributes, sleeper):
    attributes["driver a"] = entry_of(sleeper, exclusive=False)
    with pytest.raises(UsageError, match="^drivers must be shared, as other drivers share this study"):
        exclusive(attributes)
    shared(attributes).close()
    attributes["driver a"] = entry_of(sleeper)
    with pytest.raises(UsageError, match=f"^drivers must all be shared: process {sleeper.pid} on .* holds this study"):
        shared(attributes)
    assert attributes.entries() == [attributes["driver a"]], "a driver that was refused is not registered"


def test_entry_names_the_process_as_the_tags_of_its_runs_do(attributes):
    registry = shared(attributes)
    assert this_process().tags().items() <= attributes[f"driver {registry.id}"].items()


# the lock


def test_lock_is_free_when_its_holder_is_gone_and_says_whether_it_was_lost(
    postgres, request, tmp_path, close_databases
):
    url = postgres.database(request.node.name[:60])
    one, other = (
        Study(make_search(tmp_path), url=url, name="mine", image_shape=(8, 8, 1), training_images=180, classes=10)
        for _ in range(2)
    )
    one.share()
    other.share()
    with one.locked() as lease:
        postgres.restart()
        with other.locked() as others_lease:
            pass
    assert (lease.lost, others_lease.lost) == (True, False)
