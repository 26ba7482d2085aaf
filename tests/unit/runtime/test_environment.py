"""What decides a result is this program's, and what a user may set for speed is the user's."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.runtime import environment
from pipeline.runtime.environment import describe_overridden, environment_changes, read_keras_config, set_environment
from pipeline.runtime.errors import UsageError
from tests.support.paths import ROOT

USERS = {
    "KERAS_BACKEND": "torch",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "many",
    "KERAS_NNX_ENABLED": "1",
    "MATPLOTLIBRC": "/home/me/matplotlibrc",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PANDAS_FUTURE": "upcoming",
    "PANDAS_FUTURE_INFER_STRING": "2",
    "PYTHONWARNINGS": "error",
    "SCIPY_ARRAY_API": "1",
    "SKLEARN_WORKING_MEMORY": "much",
    "TF2_BEHAVIOR": "0",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "TQDM_NCOLS": "wide",
    "XLA_FLAGS": "--xla_of_jax_only",
}
KEPT = {
    "CUDA_VISIBLE_DEVICES": "1",
    "OMP_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "0",
    "TF_DETERMINISTIC_OPS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TQDM_DISABLE": "1",
}
LIBRARIES = """
import json, os, sys
from pipeline.runtime.environment import set_environment
set_environment(os.environ)
import logging
import matplotlib, mlflow, pandas, tqdm, keras
logging.getLogger("mlflow.store.db.utils").error("said in our own words")
from pipeline.runtime.device import configure_keras
configure_keras()
config = keras.config
answer = [config.backend(), config.floatx(), config.epsilon(), config.image_data_format(), config.max_epochs()]
print(json.dumps(answer + [matplotlib.get_backend(), matplotlib.rcParams["font.size"]]))
"""


def test_set_environment_overrides_what_decides_a_result_and_nothing_else():
    environ = USERS | KEPT
    set_environment(environ)
    assert {name: environ.get(name) for name in USERS if name in environ} == {
        "KERAS_BACKEND": "tensorflow",
        "KERAS_NNX_ENABLED": "false",
        "MATPLOTLIBRC": os.devnull,
        "MPLBACKEND": "agg",
    }
    assert KEPT.items() <= environ.items()


def test_environment_changes_are_what_set_environment_does():
    changed = dict(USERS)
    set_environment(changed)
    changes = environment_changes(USERS)
    assert {name: value for name, value in (USERS | changes).items() if value is not None} == changed


@pytest.mark.parametrize(
    ("machine", "value", "expected"),
    [("x86_64", None, "1"), ("AMD64", None, "1"), ("x86_64", "0", "0"), ("aarch64", None, None)],
)
def test_set_environment_prefers_onednn_on_x86_unless_it_is_set(machine, value, expected, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    environ = {} if value is None else {"TF_ENABLE_ONEDNN_OPTS": value}
    set_environment(environ)
    assert environ.get("TF_ENABLE_ONEDNN_OPTS") == expected


def test_libraries_are_imported_with_their_defaults_whatever_the_user_has_configured(tmp_path):
    keras = {"backend": "jax", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(keras))
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: 30\n# caf\xe9\n")
    environ = {**os.environ, **USERS, "KERAS_HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}
    del environ["PYTHONWARNINGS"]
    done = subprocess.run([sys.executable, "-c", LIBRARIES], cwd=ROOT, env=environ, capture_output=True, check=True)
    assert b"in our own words" not in done.stderr
    assert json.loads(done.stdout) == ["tensorflow", "float32", 1e-7, "channels_last", None, "agg", 10.0]


def test_xla_flags_keep_where_cuda_is_and_nothing_else():
    environ = {"XLA_FLAGS": "--xla_of_jax_only --xla_gpu_cuda_data_dir=/opt/cuda --xla_other=1"}
    set_environment(environ)
    assert environ["XLA_FLAGS"] == "--xla_gpu_cuda_data_dir=/opt/cuda"
    assert not [line for line in describe_overridden(environ) if "XLA_FLAGS" in line]


def test_memory_of_a_gpu_is_taken_as_needed_unless_the_user_says_otherwise():
    environ = {}
    set_environment(environ)
    assert environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    environ = {"TF_FORCE_GPU_ALLOW_GROWTH": "false"}
    set_environment(environ)
    assert environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"


def test_describe_overridden_names_variables_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "epsilon": 1e-07}')
    (tmp_path / "matplotlibrc").touch()
    environ = {"KERAS_HOME": str(tmp_path), "MPLBACKEND": "agg", "KERAS_BACKEND": "torch", "XLA_FLAGS": "--a"} | KEPT
    assert list(describe_overridden(environ | {"MPLCONFIGDIR": "/no/such/folder"})) == [
        "KERAS_BACKEND='torch' is overridden with tensorflow",
        "XLA_FLAGS='--a' is ignored",
        f"floatx='float16' in {tmp_path}/keras.json is overridden with float32",
        f"{tmp_path}/matplotlibrc is not used for figures",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object, got []"),
        ('{"floatx": "bfloat16"}', "must have a floatx of float16, float32 or float64, got 'bfloat16'"),
        ('{"epsilon": 0}', "must have a number with a decimal point as epsilon, got 0"),
        ('{"image_data_format": "th"}', "must have an image_data_format of channels_last or channels_first, got 'th'"),
    ],
)
def test_keras_json_with_which_keras_cannot_be_imported_is_refused(tmp_path, content, message):
    (tmp_path / "keras.json").write_text(content)
    with pytest.raises(UsageError, match=f"^Keras' {tmp_path}/keras.json ") as error:
        read_keras_config({"KERAS_HOME": str(tmp_path)})
    assert f"{message}; mend or delete it" in str(error.value)


@pytest.mark.parametrize("content", [None, "", "no JSON"])
def test_keras_json_that_keras_passes_over_is_empty(tmp_path, content):
    if content is not None:
        (tmp_path / "keras.json").write_text(content)
    assert read_keras_config({"KERAS_HOME": str(tmp_path)}) == {}
    assert environment.keras_config_path({}).name == "keras.json"
