"""Secrets of the environment: planted in every place there is, and looked for in all that a run or a search leaves."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.integration.test_bad_input import image_folder
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.stores import environment

SECRET = "Pl4nted"  # noqa: S105 - in front of each, so that one search finds any
PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-older",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-token",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-key",
    "PGPASSWORD": f"{SECRET}-database",
}
CLASSES = ["$x_{", "日本", "<b>&amp;", "a\nb", b"caf\xe9", "x" * 200]


@contextmanager
def server(folder):
    """A tracking server that asks nobody for a password; yields its address."""
    address = f"127.0.0.1:{free_port()}"
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        address.split(":")[1],
        *stores,
    ]
    variables = environment("", "") | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    del variables["MLFLOW_TRACKING_URI"]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = []
    try:
        for line in process.stdout:
            log.append(line)
            if "startup complete" in line:
                break
        else:
            raise AssertionError("".join(log))
        yield address
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.terminate()
        process.communicate(timeout=30)


def listening(process):
    """Network addresses that a process and those it started listen on."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return [line.laddr for one in family for line in one.net_connections("inet") if line.status == psutil.CONN_LISTEN]


def run(folder, *words, **variables):
    """Run a command with everything planted; returns what it printed, and what it listened on after its first line."""
    given = environment("", "secrets") | PLANTED | {"XDG_CACHE_HOME": str(folder / "cache")} | variables
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=folder,
        env=given | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = process.stdout.readline()
        heard = listening(process) if first else []
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return first + out + err, heard


def places_of_secrets(folder, printed):
    """Where a secret was found: files below the folder, by content or name, and the terminal."""
    places = ["the terminal"] if SECRET in printed else []
    for where, _, names in os.walk(folder):
        for name in names:
            file = Path(where, name)
            if SECRET in str(file) or (file.is_file() and SECRET.encode() in file.read_bytes()):
                places.append(str(file))
    return places


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on images of odd names, tracked by a server whose URI holds a password."""
    folder = tmp_path_factory.mktemp("trained")
    images = image_folder(folder / 'it\'s "my";\n rm -rf $HOME 日本', CLASSES, each=6, size=(8, 8))
    with server(folder) as address:
        words = ["smoke", "--dataset", str(images), "--batch_size", "8", "--seed", str(2**32 - 1), "--epochs", "1"]
        uri = f"http://me:{SECRET}%40server@{address}"
        printed, heard = run(folder, "train", *words, MLFLOW_TRACKING_URI=uri)
        client = mlflow.MlflowClient(f"http://{address}")
        (experiment,) = client.search_experiments(filter_string="name = 'secrets'")
        (found,) = client.search_runs([experiment.experiment_id])
    return folder, printed, heard, found, address


def test_a_run_leaves_no_secret_anywhere(trained):
    folder, printed, *_ = trained
    assert places_of_secrets(folder, printed) == []
    assert len(list((folder / "artifacts").rglob("*.png"))) == 6  # what was searched is what a run leaves


def test_a_run_tells_the_servers_address_without_its_password(trained):
    _, printed, _, _, address = trained
    assert f"compare  http://{address}/#/experiments/" in printed


def test_a_run_listens_on_no_network(trained):
    assert trained[2] == []


def test_names_of_any_kind_go_through_a_whole_run(trained):
    """Folders with quotes, newlines and bytes that are no UTF-8; the highest seed."""
    folder, printed, _, found, _ = trained
    assert found.info.status == "FINISHED" and found.data.params["seed"] == str(2**32 - 1)
    (table,) = (folder / "artifacts").rglob("per_class.csv")
    assert {r"a\nb", r"caf\udce9", "$x_{", "日本"} <= {line.split(",")[0] for line in table.read_text().splitlines()}
    assert "Traceback" not in printed and "Glyph" not in printed
    assert printed.startswith(r"""data     it's "my";\n rm -rf $HOME 日本: """)


def test_what_a_run_keeps_for_itself_is_for_its_user_alone(trained):
    folder = trained[0] / "cache" / "convmixer"
    assert (folder / "data").is_dir()
    assert {
        path.stat().st_mode & 0o077 for path in (folder, *(each for each in folder.rglob("*") if each.is_dir()))
    } == {0}


@pytest.mark.slow
def test_a_search_leaves_no_secret_anywhere_and_listens_on_no_network(tmp_path):
    storage = f"sqlite:///file:{tmp_path}/optuna.db?uri=true&password={SECRET}-storage"
    words = ["smoke", "--trials", "2", "--epochs", "1", "--final_top", "1", "--final_seeds", "1"]
    words += ["--register_as", "winner"]
    with server(tmp_path) as address:
        uri = f"http://me:{SECRET}@{address}"
        printed, heard = run(tmp_path, "search", *words, MLFLOW_TRACKING_URI=uri, OPTUNA_STORAGE=storage)
    assert (tmp_path / "optuna.db").stat().st_size > 0
    assert re.search(r"^study .*optuna\.db\?uri=true&password=\*\*\*$", printed, re.MULTILINE)
    assert "winner " in printed and heard == []
    assert "registry  models:/winner/1 is the champion: there was no champion" in printed
    assert [file.name for file in (tmp_path / "artifacts").rglob("pyfunc_model.py")] == ["pyfunc_model.py"]
    assert places_of_secrets(tmp_path, printed) == []
