"""Facts about the names of models."""

import pytest

from pipeline.config.commands import parse_model_uri
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
def test_each_form_is_taken_apart(uri, named):
    assert parse_model_uri(uri) == named


@pytest.mark.parametrize("uri", ["", "digits", "models:/digits", "models:/a/b", "runs:/1/model", "file:///m", "a\nb"])
def test_anything_else_is_refused_with_the_forms_that_there_are(uri):
    with pytest.raises(UsageError, match=r"^model must be models:/NAME@champion, .* got "):
        parse_model_uri(uri)
