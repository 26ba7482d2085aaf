"""What `weights_from` may name, as far as that is known without reading it."""

import pytest

from pipeline.config.weights_from import weights_file
from pipeline.runtime.errors import UsageError


@pytest.mark.parametrize("origin", ["a" * 32, "runs:/x/model", "models:/cifar@champion"])
def test_weights_file_of_a_model_in_mlflow_is_none(origin):
    assert weights_file(origin) is None


def test_weights_file_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.keras").touch()
    assert weights_file("model.keras") == tmp_path / "model.keras"


@pytest.mark.parametrize(
    ("origin", "end"), [("gone.safetensors", "there is no file .*gone.safetensors"), ("x.pth.tar", "got x.pth.tar")]
)
def test_weights_file_of_anything_else_is_refused(origin, end):
    with pytest.raises(UsageError, match=f"^weights_from must be a run's id, .*{end}$"):
        weights_file(origin)
