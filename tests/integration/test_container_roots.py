"""The images of deploy/docker, their steps run in new Debians, and what they run as containers would run it.

No image is built here, as that needs Docker. CUDA's wheels are gigabytes: they are resolved, not installed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import yaml

from tests.conftest import CALLERS_CACHE
from tests.support.debian import SUITES, isolated, make_debian, needs_debootstrap, remove
from tests.support.image_roots import build
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.postgres import PASSWORD, USER, running_postgres
from tests.support.sleepers import with_programs

pytestmark = [pytest.mark.slow, *needs_debootstrap]

DOCKER = ROOT / "deploy" / "docker"
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "mlruns", "mlflow.db*", "build", "reports", "predictions")
# What a container may do, by the words of its own system
PROBE = """
id -u; id -g
grep -E '^(NoNewPrivs|CapEff|CapBnd):' /proc/self/status
for folder in / /etc /opt /usr/local/bin; do touch "$folder/new" 2>/dev/null && echo "$folder"; done
touch /tmp/new && echo end
"""
CONFINED = "10001\n10001\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nend\n"
TRAINER, SERVER, ADMIN = "trainer-s3cret", "server-s3cret", "admin-s3cret"
STORE_KEYS = {"AWS_ACCESS_KEY_ID": "store-user", "AWS_SECRET_ACCESS_KEY": "store-s3cret"}


@pytest.fixture(scope="module", params=SUITES)
def debian(request, tmp_path_factory):
    """Return the root of a new Debian: what `FROM debian:...-slim` stands for."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    make_debian(request.param, root)
    yield root
    remove(root)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """Return a copy of the project, to which a model can be added."""
    folder = tmp_path_factory.mktemp("context") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copy(ROOT / ".dockerignore", folder)
    return folder


@contextmanager
def built(name, context, debian, tmp_path_factory, **arguments):
    """Yield an image of deploy/docker, which is removed afterwards."""
    folder = tmp_path_factory.mktemp(name)
    CALLERS_CACHE.mkdir(exist_ok=True)
    try:
        yield build(DOCKER / f"{name}.Dockerfile", context, debian, folder, CALLERS_CACHE, **arguments)
    finally:
        remove(folder)


@pytest.fixture(scope="module")
def training(context, debian, tmp_path_factory):
    with built("training", context, debian, tmp_path_factory) as image:
        yield image


@pytest.fixture(scope="module")
def tracking(context, debian, tmp_path_factory):
    with built("tracking", context, debian, tmp_path_factory) as image:
        yield image


def wait_until(is_true, process, log, seconds=600):
    until = time.monotonic() + seconds
    while not is_true():
        assert process.poll() is None and time.monotonic() < until, Path(log).read_text()[-3000:]
        time.sleep(1)


def test_training_image_trains_as_its_user_on_a_read_only_file_system(training):
    assert sorted(training.run("sh", "-c", PROBE).stdout) == sorted(CONFINED)
    done = training.run("python", "-m", "pipeline", "train", "digits", "--epochs", "1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "\ntest accuracy " in done.stdout
    assert "ermission" not in done.stderr and "ead-only" not in done.stderr, done.stderr
    work, _ = (training.root.with_name(f"{training.root.name}-volumes") / name for name in ("work", "home"))
    assert (work / "mlflow.db").stat().st_uid == 10001


def test_project_with_docker_env_trains_in_the_training_image(training, context):
    """MLflow copies the project to /mlflow/projects/code of a new image, and starts an entry point's command there."""
    code = training.root / "mlflow/projects/code"
    shutil.copytree(context, code)
    # Without a server artifacts would be in the folder, which is read-only
    command = """cd /mlflow/projects/code
        mlflow experiments create --experiment-name project --artifact-location /work/artifacts
        python -m pipeline train digits --epochs 1"""
    variables = {"MLFLOW_TRACKING_URI": "sqlite:////work/project.db", "MLFLOW_EXPERIMENT_NAME": "project"}
    done = training.run("sh", "-euc", command, **variables)
    remove(training.root / "mlflow")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "\ntest accuracy " in done.stdout


@contextmanager
def object_store(folder):
    """Run moto's S3 server and yield its address; it is in the package index, which MinIO is not."""
    port = free_port()
    command = [sys.executable, "-m", "uv", "--system-certs", "tool", "run", "--from", "moto[server]==5.2.5"]
    with open(folder / "moto.txt", "wb") as log:
        process = subprocess.Popen([*command, "moto_server", "--port", str(port)], stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), process, folder / "moto.txt")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answers(url):
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def databases(folder):
    """Run PostgreSQL with what create-databases.sh makes, and yield the addresses without their users."""
    with running_postgres() as server:
        secrets = {"SERVER_PASSWORD_FILE": SERVER, "TRAINER_PASSWORD_FILE": TRAINER}
        for name, secret in secrets.items():
            (folder / name).write_text(secret)
        client = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGPASSWORD": PASSWORD, "POSTGRES_USER": USER}
        files = {name: str(folder / name) for name in secrets}
        subprocess.run(
            [DOCKER / "create-databases.sh"], env=client | files | {"PATH": with_programs(server)}, check=True
        )
        yield f"127.0.0.1:{server.port}"


def test_tracking_server_and_trainer_work_together_as_compose_starts_them(tracking, training, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(ADMIN)
    secret.chmod(0o444)
    with databases(tmp_path) as address, object_store(tmp_path) as store:
        port = free_port()
        at_store = {"ARTIFACTS": "s3://mlflow/artifacts", "MLFLOW_S3_ENDPOINT_URL": store, **STORE_KEYS}
        at_store["AWS_DEFAULT_REGION"] = "us-east-1"
        for _ in range(2):
            done = tracking.run("python", "/opt/deploy/prepare.py", "bucket", **at_store)
            assert done.returncode == 0, done.stderr
        variables = at_store | {
            "TRACKING_DATABASE": f"postgresql://mlflow@{address}/tracking",
            "AUTH_DATABASE": f"postgresql://mlflow@{address}/auth",
            "PGPASSWORD": SERVER,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "ALLOWED_HOSTS": "127.0.0.1:*",
            "WORKERS": "1",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "server-key",
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": "/run/secret",
        }
        (tracking.root / "run/secret").touch()
        mounts = {"/run/secret": secret}
        with tracking.running(tmp_path / "server.txt", mounts=mounts, **variables) as server:
            assert not tracking.is_healthy(PORT=str(port))
            wait_until(lambda: tracking.is_healthy(PORT=str(port)), server, tmp_path / "server.txt")
            url = f"http://127.0.0.1:{port}"
            admin = {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_USERNAME": "admin", "TRAINER_PASSWORD": TRAINER}
            for _ in range(2):
                prepare = ["python", "/opt/deploy/prepare.py", "trainer"]
                done = tracking.run(*prepare, **admin, MLFLOW_TRACKING_PASSWORD=ADMIN)
                assert done.returncode == 0, done.stderr
            check_training(training, url, f"postgresql://trainer@{address}/studies")
            listed = requests.get(f"{store}/mlflow?list-type=2", timeout=30).text
            assert "artifacts/" in listed and "model.keras" in listed
        assert server.returncode != -signal.SIGKILL, "tini passes SIGTERM on, and the server ends"


def check_training(training, url, studies):
    """Train as the service of compose.yaml does, and look at what the server holds of it."""
    done = training.run(
        *("python", "-m", "pipeline", "train", "digits", "--epochs", "1"),
        MLFLOW_TRACKING_URI=url,
        MLFLOW_TRACKING_USERNAME="trainer",
        MLFLOW_TRACKING_PASSWORD=TRAINER,
        MLFLOW_EXPERIMENT_NAME="training",
        OPTUNA_STORAGE=studies,
        PGPASSWORD=TRAINER,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    api = f"{url}/api/2.0/mlflow"
    assert requests.get(f"{api}/experiments/get-by-name?experiment_name=training", timeout=30).status_code == 401
    found = requests.get(
        f"{api}/experiments/get-by-name?experiment_name=training", auth=("trainer", TRAINER), timeout=30
    ).json()
    body = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs = requests.post(f"{api}/runs/search", json=body, auth=("trainer", TRAINER), timeout=30).json()["runs"]
    assert [run["info"]["status"] for run in runs] == ["FINISHED"]


def test_served_model_answers_requests(registered_model, context, debian, tmp_path_factory, tmp_path):
    variables = os.environ | {"MLFLOW_TRACKING_URI": registered_model.uri}
    download = ["artifacts", "download", "--artifact-uri", "models:/colours@champion", "--dst-path", "build/model"]
    subprocess.run([sys.executable, "-m", "mlflow", *download], cwd=context, env=variables, check=True)
    with built("serving", context, debian, tmp_path_factory) as image:
        assert sorted(image.run("sh", "-c", PROBE).stdout) == sorted(CONFINED)
        port = str(free_port())
        with image.running(tmp_path / "log.txt", MLFLOW_PORT=port, MLFLOW_HOST="127.0.0.1") as server:
            wait_until(lambda: image.is_healthy(MLFLOW_PORT=port), server, tmp_path / "log.txt")
            image_of_green = [[[0, 255, 0]] * 6] * 8
            url = f"http://127.0.0.1:{port}/invocations"
            answer = requests.post(url, json={"inputs": {"image": [image_of_green]}}, timeout=60)
            assert answer.status_code == 200, answer.text
            assert [each["class"] for each in answer.json()["predictions"]] == ["green"]
            assert requests.post(url, json={"inputs": {"image": ["?"]}}, timeout=60).status_code == 400


# What a trial on a node needs, in a task of a driver that came through Ray's client
DRIVER = """
import ray
ray.init("ray://127.0.0.1:10001")
@ray.remote
def versions():
    import keras, mlflow, numpy, optuna, pydantic, sklearn, tensorflow
    return tensorflow.__version__, keras.__version__, tensorflow.reduce_sum(tensorflow.ones(3)).numpy().item()
print(*ray.get(versions.remote()))
"""
# KubeRay's readiness probe of a head
READY = """
wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success &&
wget --tries 1 -T 10 -q -O- http://localhost:8265/api/gcs_healthz | grep success
"""


def test_ray_image_is_a_head_as_kuberay_starts_it(context, debian, tmp_path_factory, tmp_path):
    with built("ray", context, debian, tmp_path_factory) as image, network() as within:
        image.prefix = within
        assert sorted(image.run("sh", "-c", PROBE).stdout) == sorted(CONFINED)
        # before KubeRay 1.4 with -l
        start = "ulimit -n 65536; ray start --head --block --dashboard-host=0.0.0.0 --num-cpus=2 --memory=2000000000"
        command = ["/bin/bash", "-lc", "--", start]
        token = {"RAY_AUTH_TOKEN": "t0ken-of-the-tests-0123456789abcdef"}
        # by default 15, so that what else this machine does would hold up the imports of a task for minutes
        niceness = {"RAY_worker_niceness": "0"}
        with image.running(tmp_path / "log.txt", *command, **token, **niceness) as head:
            wait_until(lambda: image.is_healthy(**token), head, tmp_path / "log.txt")
            wait_until(lambda: image.run("bash", "-c", READY, **token).returncode == 0, head, tmp_path / "log.txt")
            done = image.run("python", "-c", DRIVER, **token)
            assert done.returncode == 0, done.stderr[-3000:] + (tmp_path / "log.txt").read_text()[-2000:]
            assert done.stdout.split()[-1] == "3.0"
            stranger = image.run("python", "-c", DRIVER, **{name: value[::-1] for name, value in token.items()})
            assert stranger.returncode != 0


@contextmanager
def network():
    """Yield what runs a command in a network of its own, because the ports of Ray's image are fixed."""
    name = f"convmixer-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("name", ["training", "ray"])
def test_cuda_wheels_of_an_image_resolve_to_the_lock(name):
    extra = {"training": "postgres", "ray": "kuberay"}[name]
    options = ["--quiet", "--no-header", "--no-annotate", "--python-version", "3.11", "--only-binary", ":all:"]
    options += ["--python-platform", "x86_64-manylinux_2_28", "-c", "requirements.lock", "--extra", extra]
    uv = [sys.executable, "-m", "uv", "--system-certs", "pip", "compile", *options, "--extra", "gpu", "pyproject.toml"]
    done = subprocess.run(uv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resolved = set(done.stdout.split())
    locked = {line.split(" ;")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert any(each.startswith("nvidia-cudnn-cu12==") for each in resolved)
    assert resolved <= locked


def test_compose_file_is_accepted_by_docker_compose(debian, context, tmp_path):
    """Compose needs no daemon to check a file; Debian has its second version since trixie."""
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", debian, root], check=True)
    install = "apt-get update && apt-get install --yes --no-install-recommends docker-compose && docker-compose version"
    done = isolated("chroot", root, "sh", "-c", install)
    assert done.returncode == 0, done.stderr
    if "version 1." in done.stdout:
        pytest.skip("this Debian has Compose 1")
    shutil.copytree(context / "deploy", root / "srv/deploy")
    config = "cd /srv/deploy/docker && ./make-secrets.sh && docker-compose --profile training config"
    done = isolated("chroot", root, "sh", "-c", config)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert set(yaml.safe_load(done.stdout)["services"]) >= {"postgres", "store", "tracking", "training"}
