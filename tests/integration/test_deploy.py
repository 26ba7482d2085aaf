"""The team's server of deploy/: passwords, a search while PostgreSQL restarts, backup and restore."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import optuna
import psycopg
import pytest
import requests
from optuna.trial import TrialState

from pipeline.tracking.tags import Tag
from tests.support.deploy_scripts import run_script, team_settings
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.postgres import PASSWORD
from tests.support.scripted import DISCRETE
from tests.support.sleepers import finish, read_log, start_sleeper, wait_for, with_programs
from tests.support.stores import environment

pytestmark = pytest.mark.slow
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "adm1n-of-the-tests"}


class Server:
    """deploy/serve.sh with three databases and a folder of artifacts."""

    def __init__(self, postgres, folder):
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.databases = {name: postgres.database(f"team_{name}") for name in ("tracking", "auth", "studies")}
        self.artifacts = folder / "artifacts"
        self.variables = team_settings(self.databases, self.artifacts) | {"PATH": with_programs(postgres)}
        server_variables = (
            environment("", "")
            | self.variables
            | {
                "PORT": str(self.port),
                "WORKERS": "1",
                "ALLOWED_HOSTS": "127.0.0.1:*",
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "s3cret-of-the-tests",
                "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN["MLFLOW_TRACKING_USERNAME"],
                "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN["MLFLOW_TRACKING_PASSWORD"],
            }
        )
        del server_variables["MLFLOW_TRACKING_URI"]
        server_variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), server_variables["PATH"]])
        with open(folder / "server.txt", "wb") as log:
            self.process = subprocess.Popen(
                [str(ROOT / "deploy" / "serve.sh")], env=server_variables, cwd=folder, stdout=log, stderr=log
            )
        wait_for(self.is_healthy, 240)

    def is_healthy(self):
        assert self.process.poll() is None
        try:
            return requests.get(f"{self.uri}/health", timeout=5).text == "OK"
        except requests.ConnectionError:
            return False


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    """Start the server; this process is its administrator."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(postgres, folder)
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADMIN.items():
            patch.setenv(name, value)
        mlflow.set_tracking_uri(server.uri)
        mlflow.create_experiment("mine")
        yield server
    mlflow.set_tracking_uri(before)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) is not None


@pytest.fixture(scope="module")
def searched(server, postgres, tmp_path_factory):
    """Restart PostgreSQL under the trials of two drivers on one study; return the folder of the drivers' logs."""
    folder = tmp_path_factory.mktemp("searched")
    options = {"text": DISCRETE, "uri": server.uri, "storage": server.databases["studies"]}
    variables = ADMIN | {"PGPASSWORD": PASSWORD}
    flags = ["--trials", "6", "--final_top", "1", "--final_seeds", "1"]
    drivers = [start_sleeper(folder, 0.3, *flags, **options, variables=variables) for _ in range(2)]
    wait_for(lambda: len({line[0] for line in read_log(folder, "trial")}) == 2)
    postgres.restart()
    for process in drivers:
        finish(process)
    return folder


def test_server_requires_password_and_host_name_except_for_health(server):
    search = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    assert requests.get(search, timeout=30).status_code == 401
    assert requests.get(search, auth=tuple(ADMIN.values()), timeout=30).status_code == 200
    assert (
        requests.get(search, auth=tuple(ADMIN.values()), headers={"Host": "evil.example"}, timeout=30).status_code
        == 403
    )
    assert requests.get(f"{server.uri}/health", timeout=30).status_code == 200


def test_postgresql_restart_under_two_drivers_loses_and_duplicates_nothing(server, searched, close_databases):
    trials = optuna.load_study(study_name="mine", storage=server.databases["studies"]).trials
    complete = [
        trial for trial in trials if trial.state == TrialState.COMPLETE and "duplicate_of" not in trial.user_attrs
    ]
    assert len(complete) == 6
    assert not [trial for trial in trials if trial.state in {TrialState.RUNNING, TrialState.WAITING}]
    ended = Counter(line[4] for line in read_log(searched, "trial") if line[1] == "ended")
    assert len(ended) == 6 and set(ended.values()) == {1}
    runs = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    assert Counter((run.data.tags[Tag.ROLE], run.info.status) for run in runs) == {
        ("search", "FINISHED"): 1,
        ("driver", "FINISHED"): 2,
        ("trial", "FINISHED"): 6,
        ("final", "FINISHED"): 2,
    }
    assert {trial.user_attrs["run_id"] for trial in complete} <= {run.info.run_id for run in runs}


def contents(databases, artifacts):
    """Return what the stores hold: users, runs, trials and files."""
    with psycopg.connect(databases["auth"].replace("+psycopg", ""), password=PASSWORD) as connection:
        users = connection.execute("SELECT username, password_hash FROM users ORDER BY username").fetchall()
    with psycopg.connect(databases["tracking"].replace("+psycopg", ""), password=PASSWORD) as connection:
        runs = connection.execute("SELECT run_uuid, name, status FROM runs ORDER BY run_uuid").fetchall()
    trials = optuna.load_study(study_name="mine", storage=databases["studies"]).trials
    files = {str(file.relative_to(artifacts)): file.read_bytes() for file in artifacts.rglob("*") if file.is_file()}
    return users, runs, [(trial.number, trial.state, trial.values, trial.params) for trial in trials], files


def test_backup_restored_elsewhere_has_the_same_contents(server, searched, postgres, tmp_path, close_databases):
    assert run_script("backup.sh", tmp_path / "backup", server.variables).returncode == 0
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0, "it holds users' passwords, hashed"
    copies = {name: postgres.database(f"again_{name}") for name in server.databases}
    variables = team_settings(copies, tmp_path / "artifacts") | {"PATH": server.variables["PATH"]}
    assert run_script("restore.sh", tmp_path / "backup", variables).returncode == 0
    before, after = contents(server.databases, server.artifacts), contents(copies, tmp_path / "artifacts")
    assert after == before
    assert all(before) and any(name.endswith("leaderboard.csv") for name in before[3])
