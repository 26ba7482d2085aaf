"""Recipes: default < recipe < flag, the shipped ones, and the command line of train."""

from pathlib import Path

import pytest
import yaml

from pipeline.config.arguments import parse_arguments
from pipeline.config.base import metavar
from pipeline.config.recipe import RECIPES, from_yaml, parse_training, read_recipe, to_yaml
from pipeline.config.training import TrainingConfig
from pipeline.config.yaml_file import names, read_file
from pipeline.runtime.errors import UsageError


def resolve(*arguments):
    return parse_training(arguments)[:2]


A_NAME = "a name (up to 100 letters, digits, _, . and -, the first a letter or digit)"


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe's text and returns its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_flag_overrides_recipe_and_recipe_overrides_default(recipe):
    path = recipe("depth: 3\nfilters: 16\n")
    name, config = resolve(path, "--depth", "5")
    assert (name, config.depth, config.filters, config.kernel_size) == (path, 5, 16, TrainingConfig().kernel_size)


def test_flags_take_true_none_and_commas_as_mlflow_passes_them():
    _, config = resolve("smoke", "--flip", "true", "--train_examples", "none", "--image_size", "24,32", "--seed=7")
    assert (config.flip, config.train_examples, config.image_size, config.seed) == (True, None, (24, 32), 7)


SPELLINGS = """
010 1:30 1_000 0x10 0o10 0b11 1e-3 1E2 .5 5. 5.0 +1 -1 1e0 1 0 3.25 inf .inf nan .nan 1,000
yes No on OFF y t true False none None null ~ NULL auto adamw = << 32,64 [32,64] [010,1_6] 2001-01-01
"""


@pytest.mark.parametrize("spelling", SPELLINGS.split())
def test_value_is_read_alike_in_a_flag_and_in_a_file(recipe, spelling):
    def outcome(setting, value):
        try:
            return getattr(TrainingConfig.build({setting: value}), setting)
        except UsageError:
            return "refused"

    # a file's text that begins with a bracket is quoted, or YAML reads a list
    is_text = {name for name, field in TrainingConfig.model_fields.items() if metavar(field) == "TEXT"}
    settings = [name for name in TrainingConfig.model_fields if name not in is_text or not spelling.startswith("[")]
    words = [f"--{setting}={spelling}" for setting in settings]
    flags = parse_arguments(words, command="train", description="", settings=TrainingConfig())
    lines = recipe("".join(f"{setting}: {spelling}\n" for setting in settings))
    content = read_file(Path(lines), kind="recipe")
    assert len(flags) == len(content) == len(settings) > 30
    assert {name: outcome(name, value) for name, value in content.items()} == {
        name: outcome(name, value) for name, value in flags.items()
    }


@pytest.mark.parametrize(
    ("setting", "spelling", "value"),
    [
        ("depth", "010", 10),
        ("train_examples", "1_000", 1000),
        ("clip_norm", "~", None),
        ("flip", "yes", True),
        ("learning_rate", "1e-3", 0.001),
        ("image_size", "[010, 16]", (10, 16)),
        ("register_as", "1.10", "1.10"),
        ("dataset", "2001-01-01", "2001-01-01"),
    ],
)
def test_value_in_a_file_has_the_type_of_its_setting(recipe, setting, spelling, value):
    assert getattr(resolve(recipe(f"{setting}: {spelling}\n"))[1], setting) == value


@pytest.mark.parametrize("line", ["depth: 1:30", "depth: 0x10", "learning_rate: .inf", "flip: maybe", "clip_norm:"])
def test_value_that_is_no_decimal_number_is_refused_in_a_file(recipe, line):
    with pytest.raises(UsageError, match=f"{line.split(':')[0]} must be "):
        resolve(recipe(line))


@pytest.mark.parametrize("name", names(RECIPES))
def test_shipped_recipe_is_valid_and_holds_only_what_differs_from_the_defaults(name):
    settings = read_recipe(name)
    # the data is what a recipe is about, unless it is for any
    settings.pop("dataset", None)
    config = TrainingConfig.build(settings)
    assert not {setting for setting in settings if getattr(config, setting) == getattr(TrainingConfig(), setting)}


def test_recipe_baseline_is_the_keras_example():
    config = TrainingConfig.build(read_recipe("baseline"))
    example = {
        "dataset": "cifar10",
        "validation_fraction": 0.1,
        "filters": 256,
        "depth": 8,
        "kernel_size": 5,
        "patch_size": 2,
        "batch_norm_momentum": 0.99,
        "epochs": 10,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "decay_norm_and_bias": True,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "flip": True,
        "translation": 0,
    }
    assert config.model_dump(include=set(example)) == example


def test_recipes_long_and_paper_are_the_authors_commands():
    """github.com/locuslab/convmixer-cifar10, README.md and train.py."""
    long, paper = (TrainingConfig.build(read_recipe(name)) for name in ("long", "paper"))
    command = {
        "epochs": 25,
        "batch_size": 512,
        "learning_rate": 0.05,
        "randaugment_layers": 2,
        "randaugment_magnitude": 12,
        "weight_decay": 0.005,
        "color_jitter": 0.0,
        "random_erasing": 0.0,
        "flip": True,
        "translation": 0,
        "schedule": "one_cycle",
        "warmup_fraction": 0.4,
        "batch_norm_momentum": 0.9,
        "adam_epsilon": 1e-8,
        "decay_norm_and_bias": True,
        "clip_norm": None,
        "label_smoothing": 0.0,
        "filters": 256,
        "depth": 8,
        "kernel_size": 5,
        "patch_size": 2,
    }
    assert long.model_dump(include=set(command)) == command
    assert paper == long.model_copy(update={"epochs": 100, "color_jitter": 0.2, "random_erasing": 0.2})


def test_recipes_that_are_compared_keep_the_network_of_the_keras_example_and_fast_its_epochs():
    names = ("fast", "speedrun", "accurate", "baseline")
    fast, speedrun, accurate, example = (TrainingConfig.build(read_recipe(name)) for name in names)
    kept = {"filters", "depth", "kernel_size", "patch_size", "batch_size", "dataset", "validation_fraction"}
    for recipe in (fast, speedrun, accurate):
        assert recipe.model_dump(include=kept) == example.model_dump(include=kept)
    assert speedrun.epochs < fast.epochs == example.epochs < accurate.epochs


def test_config_file_of_a_run_is_a_recipe_for_the_same_settings(recipe):
    _, config = resolve(
        "digits", "--image_size", "24,32", "--clip_norm", "1e-3", "--jit_compile", "false", "--dataset", "é 'x'"
    )
    assert resolve(recipe(to_yaml(config)))[1] == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown setting 'lerning_rate'; did you mean learning_rate?"),
        ("depth: 0", "depth must be a whole number from 1 to 256, got '0'"),
        ("- depth", "a recipe must be 'setting: value' lines, got list"),
        ("1: 2", "unknown setting '1'"),
        ("depth: [1", "is not YAML"),
        ("depth: 3\ndepth: 4", "is not YAML for settings: depth is given twice"),
        ("depth: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_invalid_recipe_is_refused_in_one_line_with_its_path(recipe, text, message):
    path = recipe(text)
    with pytest.raises(UsageError) as refused:
        resolve(path)
    assert message in str(refused.value)
    assert path in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_recipe_is_refused_with_the_list_and_the_nearest():
    expected = r"recipe must be one of accurate, baseline, .*got 'basline'; did you mean baseline\?"
    with pytest.raises(UsageError, match=expected):
        resolve("basline")


def test_recipe_named_like_a_data_set_is_refused_with_the_setting_that_takes_it():
    with pytest.raises(UsageError, match=r"got cifar10, which is a data set: name a recipe, and dataset=cifar10"):
        resolve("cifar10")


def test_recipe_that_extends_another_holds_what_differs(recipe):
    _, config = resolve(recipe("recipe: digits\ndepth: 6\n"))
    assert config == TrainingConfig.build({**read_recipe("digits"), "depth": 6})


def test_recipe_that_extends_another_own_one_has_the_settings_of_both(recipe, tmp_path):
    (tmp_path / "first.yaml").write_text("recipe: digits\ndepth: 6\nseed: 1\n")
    _, config = resolve(recipe(f"recipe: {tmp_path}/first.yaml\nseed: 2\n"))
    assert config == TrainingConfig.build({**read_recipe("digits"), "depth": 6, "seed": 2})


def test_recipe_that_extends_itself_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe: {path}\n")
    with pytest.raises(UsageError, match="must not extend itself: .*mine.yaml > .*mine.yaml"):
        resolve(str(path))


def test_recipe_that_extends_an_unknown_one_is_refused_with_both(recipe):
    path = recipe("recipe: digit\n")
    with pytest.raises(UsageError, match=r"recipe must be one of .*got 'digit'; did you mean digits\?") as refused:
        resolve(path)
    assert str(refused.value).startswith(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the recipe first: accurate, baseline"),
        (["smoke", "--lr", "3"], "unknown setting 'lr'; did you mean learning_rate?"),
        (["smoke", "--bs=3"], "unknown setting 'bs'; did you mean batch_size?"),
        (["smoke", "--augment"], "unknown setting 'augment'; did you mean randaugment_layers?"),
        (["--depth", "3"], "name the recipe first: accurate, baseline"),
        (["smoke", "--lerning_rate", "3"], "unknown setting 'lerning_rate'; did you mean learning_rate?"),
        (["smoke", "--learning-rat=3"], "unknown setting 'learning_rat'; did you mean learning_rate?"),
        (["smoke", "more"], "settings are given as --name value, got 'more'"),
        (["smoke", "--epochs"], "--epochs needs a value: a whole number from 1 to 100000"),
        (["smoke", "--depth", "2", "--depth=3"], "a setting is given once, got --depth 2 times"),
        (["smoke", "--resume"], "--resume needs a value"),
        *[
            (["smoke", "--register_as", name], f"register_as must be {A_NAME} or none, got {name[:70]!r}"[:-1])
            for name in ("a/b", "a:1", "a@b", "..", "_a", "a b", "a\nb", "a" * 101, "日本")
        ],
        (["smoke", "--epochs", "-1"], "epochs must be a whole number from 1 to 100000, got '-1'"),
    ],
)
def test_invalid_command_line_is_refused_in_one_line(arguments, message):
    with pytest.raises(UsageError) as refused:
        resolve(*arguments)
    assert str(refused.value).startswith(message)


def test_help_shows_every_setting_with_its_rule_and_the_value_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as ended:
        resolve("baseline", "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 0
    for name, field in TrainingConfig.model_fields.items():
        assert f"--{name} " in shown
        assert field.description in shown
        assert TrainingConfig.rule(name) in shown
    assert "(baseline: 0.99)" in shown


def test_to_yaml_of_the_defaults_holds_every_setting():
    assert list(yaml.safe_load(to_yaml(TrainingConfig()))) == list(TrainingConfig.model_fields)


def test_resume_flag_names_a_run_and_needs_no_recipe():
    command = parse_training(["baseline", "--resume", "abc", "--epochs", "5"])
    assert (command.resume, command.overrides) == ("abc", {"epochs": "5"})
    for arguments in (["--resume=latest"], ["no-such-recipe", "--resume", "latest"]):
        assert parse_training(arguments).resume == "latest"


def test_help_shows_the_resume_flag(capsys):
    with pytest.raises(SystemExit):
        resolve("baseline", "--help")
    assert "--resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image_size": "32,48", "learning_rate": 1e-7, "clip_norm": "none", "flip": True},
        {"dataset": "/data/[my] flowers"},
        {"dataset": "/" + "a long name " * 9},
    ],
)
def test_from_yaml_reads_what_to_yaml_has_written(tmp_path, values):
    config = TrainingConfig.build(values)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert from_yaml(path) == TrainingConfig.build(read_recipe(str(path))) == config


@pytest.mark.parametrize("text", ["depth: -3\n", "depth: 2020-99-99\n", "depth\n", "- 3\n", "depth: [&a [*a]]\n"])
def test_from_yaml_refuses_other_files(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        from_yaml(path)
