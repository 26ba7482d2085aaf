"""The rules that deploy/docker keeps: what hadolint asks of a Dockerfile, and a hardened compose.yaml."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.dockerfile import Ignored, assignments, expand, read_dockerfile, read_ignored, read_instructions
from tests.support.paths import ROOT

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
# Those that answer requests
SERVERS = {"ray", "serving", "tracking"}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|_KEY", re.IGNORECASE)


def all_instructions(dockerfile):
    return [each for stage in dockerfile.stages for each in stage.instructions]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name.removesuffix(".Dockerfile"))
def path(request):
    return request.param


@pytest.fixture
def dockerfile(path):
    return read_dockerfile(path)


def test_there_is_a_dockerfile_for_each_purpose():
    assert [path.name.removesuffix(".Dockerfile") for path in DOCKERFILES] == ["ray", "serving", "tracking", "training"]


def test_bases_are_pinned_to_a_day_and_the_same_everywhere(dockerfile):
    bases = {stage.base for stage in dockerfile.stages}
    assert bases == {stage.base for stage in read_dockerfile(DOCKERFILES[0]).stages}
    assert [base for base in bases if not re.fullmatch(r"debian:[a-z]+-\d{8}-slim", base)] == []


def test_the_image_runs_as_a_numbered_user_other_than_root(dockerfile):
    user = dockerfile.stages[-1].last("USER").text
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    created = [
        each for each in dockerfile.stages[-1].instructions if f"useradd --uid {user.split(':')[0]}" in each.text
    ]
    assert created, "a user without a name has no home, and MLflow records the name"


def test_nothing_is_run_or_copied_after_the_user_is_changed(dockerfile):
    names = [each.name for each in dockerfile.stages[-1].instructions]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])


def test_apt_installs_no_recommended_packages_and_leaves_no_lists(dockerfile):
    steps = [each.text for each in all_instructions(dockerfile) if "apt-get" in each.text]
    assert len(steps) == len(dockerfile.stages)
    for step in steps:
        assert step.startswith("apt-get update && apt-get install --yes --no-install-recommends ")
        assert "&& rm -rf /var/lib/apt/lists/*" in step
        assert not re.search(r"\bapt (install|get)|upgrade|sudo|curl .*\|", step)


def test_python_packages_are_those_of_the_lock(dockerfile):
    steps = [each.text for each in all_instructions(dockerfile) if re.search(r"\bpip install\b", each.text)]
    assert len(steps) == 1
    installs = re.findall(r"pip install .*?(?=&&|$)", steps[0])
    assert len(installs) == 2 and all("-c requirements.lock" in each for each in installs)


def test_the_installers_stay_in_the_stage_that_builds(dockerfile):
    copied = [each.words[0] for each in dockerfile.stages[-1].instructions if each.flag("from")]
    assert "/opt/venv" in copied and not [each for each in copied if "uv" in each or "cache" in each]


def test_files_are_copied_not_added_and_commands_need_no_shell(dockerfile):
    assert "ADD" not in {each.name for each in all_instructions(dockerfile)}
    image = dockerfile.stages[-1]
    for name in ("ENTRYPOINT", "CMD"):
        assert image.last(name).is_exec_form
        json.loads(image.last(name).text)
    assert image.last("ENTRYPOINT").words[:2] == ["/usr/bin/tini", "--"]
    # A `\"` of a health check is JSON's
    assert image.last("HEALTHCHECK") is None or image.last("HEALTHCHECK").is_exec_form


def test_no_variable_or_argument_holds_a_secret(dockerfile):
    for each in all_instructions(dockerfile):
        if each.name in {"ENV", "ARG"}:
            named = [name for name in re.findall(r"(\w+)=", each.text) if SECRET.search(name)]
            assert named == [], f"line {each.line}"
        assert "secret" not in (each.flag("mount") or "")


def test_images_whose_server_listens_have_a_health_check_and_name_their_port(path, dockerfile):
    image = dockerfile.stages[-1]
    listens = path.name.removesuffix(".Dockerfile") in SERVERS
    assert (image.last("HEALTHCHECK") is not None, image.last("EXPOSE") is not None) == (listens, listens)


def test_working_folders_are_absolute_and_stages_that_are_copied_from_exist(dockerfile):
    names = {stage.name for stage in dockerfile.stages}
    for each in all_instructions(dockerfile):
        assert each.name != "WORKDIR" or each.text.startswith("/")
        assert each.flag("from") is None or each.flag("from") in names


def test_files_that_are_copied_exist_and_get_past_dockerignore(dockerfile):
    ignored = read_ignored(ROOT)
    for each in all_instructions(dockerfile):
        if each.name == "COPY" and not each.flag("from"):
            for source in each.words[:-1]:
                # made by hand, as the file's first lines say
                is_model = source.startswith("build/model")
                assert is_model or (ROOT / source).exists()
                below = [source] if is_model or (ROOT / source).is_file() else [
                    str(file.relative_to(ROOT)) for file in (ROOT / source).rglob("*.*") if file.is_file()
                ]  # fmt: skip
                assert not all(ignored(one) for one in below), source


def test_no_secret_run_or_cache_can_get_into_an_image():
    ignored = read_ignored(ROOT)
    private = """.git/config .venv/bin/python .env mlflow.db mlruns/0/meta.yaml deploy/team.env deploy/docker/secrets/a
        deploy/docker/compose.yaml pipeline/__pycache__/a.pyc pipeline/data/a.pyc experiments/README.md
        tests/conftest.py"""
    assert [path for path in private.split() if not ignored(path)] == []
    assert [path for path in ("pipeline/data/a.py", "experiments/recipes/a.yaml", "MLproject") if ignored(path)] == []


def test_tracking_image_installs_the_extra_of_a_server():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {each.split("==")[0] for each in extras["server"]}
    (step,) = [
        each.text for each in all_instructions(read_dockerfile(DOCKER / "tracking.Dockerfile")) if "uv pip" in each.text
    ]
    assert {name.strip("'") for name in step.split("requirements.lock")[-1].split()} == wanted


@pytest.mark.parametrize(("name", "extra"), [("training", "postgres"), ("ray", "kuberay")])
def test_cuda_images_install_the_wheels_that_conda_yaml_names(name, extra):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (gpu,) = map(Requirement, extras["gpu"])
    *_, pip = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    conda = [Requirement(line) for line in pip["pip"] if line.startswith("tensorflow[")]
    assert [(str(each.specifier), each.extras) for each in conda] == [(str(gpu.specifier), gpu.extras)]
    texts = [each.text for each in all_instructions(read_dockerfile(DOCKER / f"{name}.Dockerfile"))]
    assert "CUDA=" in texts
    (step,) = [text for text in texts if "uv pip" in text]
    assert step.endswith(f"-r pyproject.toml --extra {extra} ${{CUDA:+--extra gpu}}")


def test_servers_that_a_head_of_ray_forks_for_its_clients_do_not_crash():
    env = read_dockerfile(DOCKER / "ray.Dockerfile").stages[-1].last("ENV").text
    grpc = {name: value for name, value in assignments(env).items() if name.startswith("GRPC_")}
    command = [sys.executable, ROOT / "tests/support/grpc_forks.py", "60"]
    done = subprocess.run(command, env=os.environ | grpc, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0"] * 60


# compose.yaml

COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
# They end by themselves, or are started by hand
WITHOUT_HEALTH = {"store-volume", "bucket", "trainer-account", "training"}


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_read_only_and_without_privileges(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices"} & service.keys()
    assert service.get("network_mode") in {None, "none"}
    assert "/var/run/docker.sock" not in str(service)
    # Our images name their user; what others publish would start as root
    assert service["image"].startswith("convmixer-") or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_pinned_or_built_here(name):
    service = SERVICES[name]
    if "build" in service:
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert re.search(r":(\d+\.\d+|RELEASE\.\d{4})", service["image"])
    assert "latest" not in service["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_service_waits_for_the_health_or_the_end_of_what_it_needs(name):
    for needed, rule in SERVICES[name].get("depends_on", {}).items():
        ends = needed in WITHOUT_HEALTH
        assert rule["condition"] == ("service_completed_successfully" if ends else "service_healthy")


@pytest.mark.parametrize("name", SERVICES)
def test_service_that_stays_has_a_health_check(name):
    health = SERVICES[name].get("healthcheck")
    if name in WITHOUT_HEALTH:
        assert health == {"disable": True} and "restart" not in SERVICES[name]
    elif health is None:
        image = read_dockerfile(ROOT / SERVICES[name]["build"]["dockerfile"]).stages[-1]
        assert image.last("HEALTHCHECK") is not None
    else:
        assert health["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_come_from_files_that_the_service_is_given(name):
    service = SERVICES[name]
    files = set()
    for variable, value in service.get("environment", {}).items():
        if str(value).startswith("/run/secrets/"):
            assert variable.endswith("_FILE")
            files.add(value.removeprefix("/run/secrets/"))
        else:
            assert not SECRET.search(variable), variable
        assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), "a password in a URL"
    assert files == set(service.get("secrets", []))
    assert all(COMPOSE["secrets"][each] == {"file": f"secrets/{each}"} for each in files)


def test_ports_are_published_on_this_machine_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_store_and_databases_have_no_way_out_of_the_machine():
    assert COMPOSE["networks"]["store"] == COMPOSE["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"] and SERVICES["store"]["networks"] == ["store"]
    assert "store" not in SERVICES["training"]["networks"]


def test_secrets_that_are_read_from_files_are_those_that_with_secrets_knows():
    script = (DOCKER / "with-secrets.sh").read_text()
    known = set(re.findall(r"[A-Z_]{4,}", script.partition("for name in")[2].partition("; do")[0]))
    ours = [service for service in SERVICES.values() if "build" in service]
    used = {name for service in ours for name in service.get("environment", {}) if name.endswith("_FILE")}
    assert {name.removesuffix("_FILE") for name in used} <= known


def test_mlflow_reads_the_documented_docker_environment(tmp_path):
    from mlflow.projects import _project_spec

    (block,) = re.findall(r"```yaml\n(docker_env:.*?)```", (ROOT / "docs" / "containers.md").read_text(), re.DOTALL)
    lines = (ROOT / "MLproject").read_text()
    assert "\nconda_env: conda.yaml\n" in lines
    (tmp_path / "MLproject").write_text(lines.replace("conda_env: conda.yaml\n", block))
    project = _project_spec.load_project(str(tmp_path))
    assert project.docker_env["image"] == SERVICES["training"]["image"].replace("${TAG:-local}", "local")
    assert project.env_config_path is None
    command = project.get_entry_point("main").compute_command({"recipe": "digits"}, None)
    assert command == "python -m pipeline train digits"


def compose_program():
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            if subprocess.run([*command, "version"], capture_output=True).returncode == 0:
                return command
        except OSError:
            continue
    return None


@pytest.mark.skipif(compose_program() is None, reason="Docker Compose is not installed")
def test_compose_accepts_the_file(tmp_path):
    command = [*compose_program(), "--file", DOCKER / "compose.yaml", "--profile", "training", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Scripts


def test_secrets_are_made_once_and_are_their_users_alone(tmp_path):
    shutil.copy(DOCKER / "make-secrets.sh", tmp_path)
    subprocess.run([tmp_path / "make-secrets.sh"], check=True, umask=0)
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert len(set(made.values())) == len(made) and all(re.fullmatch("[0-9a-f]{48}", each) for each in made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o444 for file in (tmp_path / "secrets").iterdir())
    subprocess.run([tmp_path / "make-secrets.sh"], check=True)
    assert made == {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}


def with_secrets(**variables):
    show = ["sh", "-c", 'printf "%s|%s" "$PGPASSWORD" "${PGPASSWORD_FILE-none}"']
    variables = {"PATH": os.environ["PATH"]} | variables
    return subprocess.run([DOCKER / "with-secrets.sh", *show], env=variables, capture_output=True, text=True)


def test_secret_of_a_file_becomes_a_variable(tmp_path):
    (tmp_path / "secret").write_text("pa$$'\"`word\n")
    assert with_secrets(PGPASSWORD_FILE=str(tmp_path / "secret")).stdout == "pa$$'\"`word|none"
    assert with_secrets(PGPASSWORD="given").stdout == "given|none"


def test_secret_whose_file_cannot_be_read_is_refused(tmp_path):
    done = with_secrets(PGPASSWORD_FILE=str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"PGPASSWORD_FILE must be a file that can be read, got {tmp_path / 'missing'}\n"


# The parser


def test_parser_joins_lines_and_reads_flags_and_arrays():
    text = """# a comment
RUN --mount=type=cache,target=/c one \\
# between
 && two
HEALTHCHECK --interval=1s --retries=3 \\
  CMD ["a", "b c"]
"""
    run, health = read_instructions(text)
    assert (run.name, run.text, run.flag("mount"), run.line) == ("RUN", "one && two", "type=cache,target=/c", 2)
    assert (health.words, health.flag("retries"), health.is_exec_form) == (["a", "b c"], "3", True)


@pytest.mark.parametrize("text", ["FETCH a b\n", "RUN one \\\n", "HEALTHCHECK NONE\n"])
def test_parser_refuses_what_it_does_not_understand(text):
    with pytest.raises(ValueError, match="line 1: "):
        read_instructions(text)


def test_parser_expands_known_variables_only():
    assert expand("debian:${TAG}/$TAG", {"TAG": "x"}) == "debian:x/x"
    with pytest.raises(ValueError, match="OTHER is not set"):
        expand("$OTHER", {"TAG": "x"})


@pytest.mark.parametrize(
    ("path", "ignored"),
    [("a", True), ("kept", False), ("kept/b/c", False), ("kept/b/c.pyc", True), ("d/kept", True), ("d/e/f", False)],
)
def test_dockerignore_leaves_out_what_its_last_fitting_pattern_says(path, ignored):
    assert Ignored(["*", "!kept", "!d/e", "**/*.pyc"])(path) is ignored
