"""The command lines of evaluate, predict, export, report and doctor, and the names of models."""

from importlib.util import find_spec

import pytest

from pipeline.config import commands
from pipeline.config.commands import (
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    ReportConfig,
    parse_doctor,
    parse_evaluate,
    parse_export,
    parse_model_uri,
    parse_predict,
    parse_report,
)
from pipeline.runtime.errors import UsageError

ID = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("models:/digits@champion", {"name": "digits", "alias": "champion"}),
        ("models:/digits/12", {"name": "digits", "version": "12"}),
        ("models:/digits/latest", {"name": "digits", "version": "latest"}),
        (f"models:/m-{ID}", {"id": f"m-{ID}"}),
        (f"runs:/{ID}/model", {"run": ID, "of": "model"}),
    ],
)
def test_parse_model_uri_returns_the_parts_of_each_form(uri, named):
    assert parse_model_uri(uri) == named


@pytest.mark.parametrize("uri", ["", "digits", "models:/digits", "models:/a/b", "runs:/1/model", "file:///m", "a\nb"])
def test_parse_model_uri_refuses_anything_else_with_the_forms(uri):
    with pytest.raises(UsageError, match=r"^model must be models:/NAME@champion, .* got "):
        parse_model_uri(uri)


@pytest.mark.parametrize("model", ["latest", ID, f"models:/m-{ID}", "models:/digits@champion"])
def test_parse_evaluate_takes_a_uri_a_run_id_or_latest(model):
    assert parse_evaluate([model]) == (model, EvaluateConfig.build({}))
    assert parse_evaluate([model, "--split", "all"]).settings.split == "all"


@pytest.mark.parametrize("model", ["latest", ID, f"models:/m-{ID}", "models:/digits@champion"])
def test_parse_predict_takes_what_evaluate_takes(model, tmp_path):
    assert parse_predict([model, "--images", str(tmp_path)]).model == model
    with pytest.raises(UsageError, match="^model must be .* got newest$"):
        parse_predict(["newest", "--images", str(tmp_path)])


def test_parse_export_takes_formats_with_commas():
    assert parse_export(["latest"]) == ("latest", ExportConfig.build({}))
    assert parse_export([ID, "--formats", "saved_model,onnx"]).settings.formats == ("saved_model", "onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["newest"], "^model must be .* got newest$"),
        (["latest", "--formats", "onnxx"], "^formats must be .*; did you mean onnx"),
        (["latest", "--formats", ""], "^formats must be "),
        (["latest", "--tolerance", "-1"], "^tolerance must be a number from 0 to 1 or none"),
        (["latest", "--images", "0"], "^images must be a whole number from 1 "),
    ],
)
def test_parse_export_refuses_what_breaks_a_rule(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse_export(arguments)


@pytest.mark.parametrize(
    ("formats", "absent", "message"),
    [
        ("onnx", {"onnx", "onnxruntime"}, "^formats=onnx needs onnx and onnxruntime, which are not installed; try: "),
        ("saved_model,litert", {"ai_edge_litert"}, "^formats=.* needs ai-edge-litert, which is not installed; try: "),
    ],
)
def test_parse_export_without_the_extra_says_what_to_install(monkeypatch, formats, absent, message):
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(UsageError, match=message + r".* -c requirements\.lock -e '\.\[export\]'$"):
        parse_export(["latest", "--formats", formats])
    assert parse_export(["latest", "--formats", "saved_model"]).settings.formats == ("saved_model",)


def test_parse_evaluate_refuses_another_model_and_a_missing_one():
    with pytest.raises(UsageError, match="^model must be .* got newest$"):
        parse_evaluate(["newest"])
    with pytest.raises(UsageError, match="^name the model first: "):
        parse_evaluate(["--split", "all"])


def test_parse_predict_returns_absolute_images_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    command = parse_predict(["models:/digits/1", "--images", "scans"])
    assert (command.model, command.images, str(command.folder)) == (
        "models:/digits/1",
        tmp_path / "scans",
        "predictions",
    )


def test_folder_of_a_user_that_does_not_exist_is_a_folder_of_that_name(tmp_path):
    command = parse_predict(["models:/digits/1", "--images", str(tmp_path), "--folder", "~no-such-user"])
    assert str(command.folder) == "~no-such-user"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "^images must name an image or a folder of images, got none; give --images$"),
        (["--images", "/nowhere"], "^images must be an existing file or folder, got /nowhere$"),
        (["--images", "a\0b"], "^images must be an existing file or folder, got "),
    ],
)
def test_parse_predict_refuses_missing_images(flags, message):
    with pytest.raises(UsageError, match=message):
        parse_predict(["models:/digits/1", *flags])


def test_parse_report_takes_any_text_as_its_runs():
    assert parse_report([" metrics.test_accuracy > 0.9 "]) == ("metrics.test_accuracy > 0.9", ReportConfig.build({}))
    assert parse_report(["Default", "--rows", "3"]).settings.rows == 3


def test_parse_doctor_takes_several_run_ids():
    assert parse_doctor([]) == DoctorConfig.build({})
    assert parse_doctor(["--close", "a,b"]).close == ("a", "b")
