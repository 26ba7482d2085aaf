"""The settings reference."""

from pipeline.config.reference import COMMANDS, settings_reference
from tests.support.paths import ROOT


def test_settings_reference_in_docs_is_up_to_date():
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_reference(), "run `make docs`"


def test_settings_reference_lists_every_setting_with_its_default():
    lines = settings_reference().splitlines()
    for _, _, config in COMMANDS:
        defaults = config.build({})
        for name in config.model_fields:
            assert any(line.startswith(f"| `{name}` | `{defaults.text(name)}` |") for line in lines), name
