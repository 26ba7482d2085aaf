"""Secrets: passwords and tokens of the environment are in nothing that a run or a search writes, logs or prints."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mlflow
import psutil
import pytest

from pipeline.commands import main
from tests.support.image_files import image_folder
from tests.support.mlflow_project import environment_of, process_tree
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.stores import empty_database, environment

# Each secret begins with it, so that one search finds any
SECRET = "Pl4nted"  # noqa: S105
SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-older",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-token",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-key",
    "PGPASSWORD": f"{SECRET}-database",
    # nobody listens there, so that the event of the end stays on the disk
    "CONVMIXER_NOTIFY_URL": f"http://127.0.0.1:1/services/{SECRET}-path",
}
CLASSES = ["$x_{", "日本", "<b>&amp;", "a\nb", b"caf\xe9", "x" * 200, "\x1b]0;title\x07\u202e"]


@contextmanager
def server(folder):
    """Start a tracking server that asks nobody for a password, and yield its address."""
    address = f"127.0.0.1:{free_port()}"
    shutil.copy(empty_database(), f"{folder}/mlflow.db")
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
    """Return the network addresses that a process and those it started listen on."""
    sockets = [socket for one in process_tree(process) for socket in one.net_connections("inet")]
    return [socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN]


def run(folder, *words, **variables):
    """Run a command with all secrets; return its output, and the addresses it listened on after the first line."""
    all_variables = environment("", "secrets") | SECRETS | {"XDG_CACHE_HOME": str(folder / "cache")} | variables
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=folder,
        env=all_variables | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        first = process.stdout.readline()
        addresses = listening(process) if first else []
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return first + out + err, addresses


def places_of_secrets(folder, printed):
    """Return where a secret is: files below the folder, by content or name, and the terminal."""
    places = ["the terminal"] if SECRET in printed else []
    for where, _, names in os.walk(folder):
        for name in names:
            file = Path(where, name)
            if SECRET in str(file) or (file.is_file() and SECRET.encode() in file.read_bytes()):
                places.append(str(file))
    return places


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train on images with odd names, with a server whose URI holds a password; return all that is known of the run."""
    folder = tmp_path_factory.mktemp("trained")
    images = image_folder(folder / 'it\'s "my";\n rm -rf $HOME 日本', CLASSES, each=6, size=(8, 8))
    with server(folder) as address:
        words = ["smoke", "--dataset", str(images), "--batch_size", "8", "--seed", str(2**32 - 1), "--epochs", "1"]
        # as a person may type it, and a parser reads it
        uri = f" HTTP://me:{SECRET}%40server@{address}"
        printed, addresses = run(folder, "train", *words, MLFLOW_TRACKING_URI=uri)
        client = mlflow.MlflowClient(f"http://{address}")
        (experiment,) = client.search_experiments(filter_string="name = 'secrets'")
        (logged,) = client.search_runs([experiment.experiment_id])
    return folder, printed, addresses, logged, address


def test_run_leaves_no_secret_in_files_or_output(trained):
    folder, printed, *_ = trained
    assert places_of_secrets(folder, printed) == []
    assert len(list((folder / "artifacts").rglob("plots/**/*.png"))) == 6, "the search covered all that a run leaves"


def test_run_keeps_what_it_could_not_notify_of_without_the_address(trained):
    folder, printed, *_ = trained
    (event,) = (folder / "cache" / "convmixer" / "notifications").rglob("*.json")
    assert '"event": "finished"' in event.read_text() and SECRET not in event.read_text()
    assert printed.count("http://127.0.0.1:1 does not take notifications now ([Errno 111] Connection refused)") == 1


def test_run_prints_the_address_of_the_server_without_password(trained):
    _, printed, _, _, address = trained
    assert f"compare   http://{address}/#/experiments/" in printed


def test_run_listens_on_no_network_address(trained):
    assert trained[2] == []


def test_class_and_folder_names_of_any_kind_work_in_a_whole_run(trained):
    """Folders with quotes, newlines and bytes that are not UTF-8; the highest seed."""
    folder, printed, _, logged, _ = trained
    assert logged.info.status == "FINISHED" and logged.data.params["seed"] == str(2**32 - 1)
    (table,) = (folder / "artifacts").rglob("per_class.csv")
    assert {r"a\nb", r"caf\udce9", "$x_{", "日本"} <= {line.split(",")[0] for line in table.read_text().splitlines()}
    assert "Traceback" not in printed and "Glyph" not in printed
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert printed.startswith(r"""data     it's "my";\n rm -rf $HOME 日本: """)


@pytest.mark.parametrize("uri", ["http://{}@127.0.0.1:1", "https://me@127.0.0.1:1/?token={}", "me:{}@127.0.0.1:1"])
def test_refusal_of_a_store_that_does_not_answer_holds_no_secret_of_its_uri(tmp_path, monkeypatch, capfd, uri):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with environment_of(uri.format(SECRET), "secrets"):
        assert main.run(["report", "Default"]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    assert places_of_secrets(tmp_path, out + err) == []


def test_cache_folders_are_accessible_to_their_user_only(trained):
    folder = trained[0] / "cache" / "convmixer"
    assert (folder / "data").is_dir()
    assert {
        path.stat().st_mode & 0o077 for path in (folder, *(each for each in folder.rglob("*") if each.is_dir()))
    } == {0}


@pytest.mark.slow
def test_search_leaves_no_secret_and_listens_on_no_network_address(tmp_path):
    storage = f"sqlite:///file:{tmp_path}/optuna.db?uri=true&password={SECRET}-storage"
    words = ["smoke", "--trials", "2", "--epochs", "1", "--final_top", "1", "--final_seeds", "1"]
    words += ["--register_as", "winner"]
    with server(tmp_path) as address:
        uri = f"http://me:{SECRET}@{address}"
        printed, addresses = run(tmp_path, "search", *words, MLFLOW_TRACKING_URI=uri, OPTUNA_STORAGE=storage)
    assert (tmp_path / "optuna.db").stat().st_size > 0
    assert re.search(r"^study .*optuna\.db\?uri=true&password=\*\*\*$", printed, re.MULTILINE)
    assert "winner " in printed and addresses == []
    assert "registry  models:/winner/1 is the champion: there was no champion" in printed
    assert [file.name for file in (tmp_path / "artifacts").rglob("pyfunc_model.py")] == ["pyfunc_model.py"]
    assert places_of_secrets(tmp_path, printed) == []
