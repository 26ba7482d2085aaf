"""Searches: what a file may say, what is refused before any trial, what Optuna gets of it, and where it is kept."""

import subprocess
import sys
from itertools import product

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.config.search import PARTS, SEARCHES, SearchConfig
from pipeline.config.training import TrainingConfig, read_recipe
from pipeline.config.yaml_file import names
from pipeline.runtime.errors import UsageError
from pipeline.search import space
from pipeline.search.distributions import bounds, contains, distribution, phrase, values
from pipeline.search.space import BUDGETS_AND_PLACES, infeasibility, parse_search
from pipeline.search.storage_url import storage_url, validate_environment
from tests.support.paths import ROOT

SMALL = "recipe: smoke\nspace: {depth: [1, 2]}\n"


def resolve(*arguments):
    return parse_search(arguments)


@pytest.fixture
def search(tmp_path):
    """Builds a search from a file's text and flags."""

    def build(text=SMALL, *flags, name="mine"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return resolve(str(path), *flags)

    return build


def refusal(call, *arguments, **named):
    with pytest.raises(UsageError) as refused:
        call(*arguments, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# what ships


@pytest.mark.parametrize("name", names(SEARCHES))
def test_every_corner_of_every_search_that_ships_is_a_run_on_its_own_images(name):
    shape, images = ((8, 8, 1), 180) if resolve(name).base.dataset == "digits" else ((32, 32, 3), 45_000)
    found = resolve(name)
    space.check_against_data(found, image_shape=shape, training_images=images)
    for corner in product(*map(bounds, found.space.values())):
        params = dict(zip(found.space, corner, strict=True))
        assert infeasibility(found, params, image_shape=shape, training_images=images) is None


@pytest.mark.parametrize("name", names(SEARCHES))
def test_every_search_that_ships_says_how_it_is_run_and_not_what_holds_anyway(name):
    path = ROOT / "experiments" / "searches" / f"{name}.yaml"
    assert f"#   mlflow run . -e search -P search={name}" in path.read_text()
    found = resolve(name)
    held = TrainingConfig.build(read_recipe(found.recipe))
    plain = {**dict(SearchConfig()), **dict(held)}
    own = {line.split(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()} - set(PARTS)
    resolved = {**dict(found.settings), **dict(found.base)}
    assert [setting for setting in own if resolved[setting] == plain[setting]] == []


def test_kernel_patch_depth_tries_the_papers_shape_first_and_holds_the_rest():
    found = resolve("kernel-patch-depth")
    assert {name: list(values(of)) for name, of in found.space.items()} == {
        "kernel_size": [3, 5, 7, 9],
        "patch_size": [1, 2, 4],
        "depth": list(range(4, 13)),
    }
    first = found.config(found.enqueue[0])
    assert (first.filters, first.depth, first.kernel_size, first.patch_size) == (256, 8, 5, 2)
    assert first.batch_norm_momentum == 0.9  # Keras' 0.99 needs more steps than a short trial has
    assert found.n_configurations() == 108


def test_smoke_has_no_end_of_configurations():
    assert resolve("smoke").n_configurations() is None


# what a file says


def test_a_trial_is_a_run_of_the_recipe_under_the_file_under_the_flags_under_what_is_drawn(search):
    found = search("recipe: smoke\nfilters: 4\nepochs: 3\nspace: {depth: [1, 2]}", "--epochs", "5", "--flip", "true")
    config = found.config({"depth": 2})
    assert config == TrainingConfig.build(read_recipe("smoke") | {"filters": 4, "epochs": 5, "flip": True, "depth": 2})
    assert found.base.depth == TrainingConfig.build(read_recipe("smoke")).depth


def test_flags_and_file_may_say_the_searchs_own_settings_too(search):
    found = search(SMALL + "trials: 7\nhours: 1e1\nmetric: [val_loss, parameters]", "--trials", "9")
    assert (found.name, found.recipe) == ("mine", "smoke")
    assert (found.settings.trials, found.settings.hours) == (9, 10.0)
    assert found.directions == ["minimize", "minimize"]
    assert search().directions == ["maximize"]


@pytest.mark.parametrize(
    ("setting", "said", "expected"),
    [
        ("depth", [2, "3"], CategoricalDistribution([2, 3])),
        ("learning_rate", ["1e-3", 1], CategoricalDistribution([0.001, 1.0])),  # PyYAML reads 1e-3 as text
        ("flip", [False, "true"], CategoricalDistribution([False, True])),
        ("clip_norm", ["none", 1], CategoricalDistribution([None, 1.0])),
        ("jit_compile", ["auto", False], CategoricalDistribution(["auto", False])),
        ("schedule", ["cosine", "one_cycle"], CategoricalDistribution(["cosine", "one_cycle"])),
        ("depth", {"low": 4, "high": 12}, IntDistribution(4, 12)),
        ("depth", {"low": 4, "high": 12, "step": 2}, IntDistribution(4, 12, step=2)),
        ("filters", {"low": 4, "high": 512, "log": True}, IntDistribution(4, 512, log=True)),
        ("clip_norm", {"low": 1, "high": 2}, FloatDistribution(1, 2)),
        ("learning_rate", {"low": "1e-4", "high": "1e-1", "log": True}, FloatDistribution(1e-4, 1e-1, log=True)),
        ("label_smoothing", {"low": 0, "high": 0.3, "step": 0.1}, FloatDistribution(0, 0.3, step=0.1)),
        ("depth", {"low": 3, "high": 3}, IntDistribution(3, 3)),
    ],
)
def test_lists_are_categorical_and_ranges_have_the_settings_own_type(setting, said, expected):
    made = distribution(setting, said)
    assert made == expected
    assert repr(made) == repr(expected)  # 1 == 1.0 == True
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        drawn = study.ask({setting: made}).params[setting]
        assert contains(made, drawn)
        assert getattr(TrainingConfig.build({setting: drawn}), setting) == drawn


@pytest.mark.parametrize(
    ("of", "known", "words"),
    [
        (CategoricalDistribution([True, None, 3]), [True, None, 3], "one of true, none, 3"),
        (IntDistribution(4, 8, step=2), [4, 6, 8], "4 to 8 by 2"),
        (FloatDistribution(0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3], "0 to 0.3 by 0.1"),  # not 0.30000000000000004
        (FloatDistribution(0.5, 0.5), [0.5], "0.5 to 0.5"),
        (FloatDistribution(1e-4, 0.1, log=True), None, "0.0001 to 0.1, log"),
    ],
)
def test_values_of_a_distribution(of, known, words):
    found = values(of)
    assert (found if found is None else list(found)) == known
    assert phrase(of) == words


def test_a_step_that_optuna_cannot_add_up_is_the_value_that_was_meant(search):
    found = search("recipe: smoke\nspace: {label_smoothing: {low: 0, high: 0.2, step: 0.05}}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {study.ask(dict(found.space)).params["label_smoothing"] for _ in range(60)}
    assert 0.15000000000000002 in drawn
    assert {found.config({"label_smoothing": each}).label_smoothing for each in drawn} == {0, 0.05, 0.1, 0.15, 0.2}


def test_enqueued_values_are_read_as_the_runs_would_and_may_leave_some_to_be_drawn(search):
    found = search(
        "recipe: smoke\nspace: {learning_rate: {low: 1e-4, high: 1e-1, log: true}, depth: [1, 2]}\n"
        "enqueue: [{learning_rate: 1e-3}, {learning_rate: 1e-1, depth: 2}]"
    )
    assert found.enqueue == ({"learning_rate": 0.001}, {"learning_rate": 0.1, "depth": 2})


# what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "space must have a line for each setting that is searched, got None"),
        ("- depth", "a search must be 'setting: value' lines, got list"),
        ("space: {depth: [1]", "is not YAML"),
        ("space: {depth: [1], depth: [2]}", "is not YAML for settings: depth is given twice"),
        ("space: {}", "space must have a line for each setting that is searched, got {}"),
        ("space: {depth: [1, 2]}", "recipe must name the recipe that the search starts from, got None"),
        (SMALL.replace("smoke", "smok"), "recipe must be one of baseline, "),
        (SMALL.replace("space", "spcae"), "unknown setting 'spcae'; did you mean space?"),
        (SMALL + "trails: 1", "unknown setting 'trails'; did you mean trials?"),
        (SMALL + "epochs: 0", "epochs must be a whole number from 1 to 100000, got 0"),
        (SMALL + "trials: 0", "trials must be a whole number from 1 to 100000, got 0"),
        (SMALL + "pruner: medain", "pruner must be median or none, got 'medain'"),
        (SMALL + "sampler: cma", "sampler must be tpe, random or grid, got 'cma'"),
        (SMALL + "metric: test_accuracy", "metric must be up to 2 of val_accuracy, val_loss, parameters, "),
        (SMALL + "depth: 3", "depth must stand in the space or beside it, got both"),
        (SMALL + "storage: postgresql://me:secret@host/db", "storage must hold no password"),
        (SMALL + "storage: study.db", "storage must be a URL such as sqlite:///"),
        (SMALL + "enqueue: {depth: 1}", "enqueue must be a list of {setting: value}, got {'depth': 1}"),
        (SMALL + "enqueue: [{}]", "enqueue must be a list of {setting: value}, got [{}]"),
        (SMALL + "enqueue: [{detph: 1}]", "enqueue must name settings of the space, got 'detph'; did you mean depth?"),
        (SMALL + "enqueue: [{filters: 8}]", "enqueue must name settings of the space, got 'filters'"),
        (SMALL + "enqueue: [{depth: 3}]", "enqueue must lie in the space, where depth is one of 1, 2, got 3"),
        (SMALL + "enqueue: [{depth: x}]", "enqueue: depth must be a whole number from 1 to 256, got 'x'"),
        (
            SMALL + "enqueue: [{depth: 1}, {depth: '1'}]",
            "enqueue must have each configuration once, got {'depth': '1'}",
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(search, tmp_path, text, message):
    said = refusal(search, text)
    assert message in said
    assert str(tmp_path / "mine.yaml") in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("detph: [1]", "space must name settings of a run, got 'detph'; did you mean depth?"),
        ("trials: [1]", "space must name settings of a run, got 'trials'"),
        ("1: [1]", "space must name settings of a run, got 1"),
        ("seed: [1, 2]", "space must leave the images and their split alone"),
        (
            "register_as: [a, b]",
            "space must name settings that change a result, got register_as: say it beside the space",
        ),
        ("image_size: [16, 32]", "space must leave the images and their split alone"),
        ("depth: 3", "depth must have a [list, of, values] or a range {low: , high: }, got 3"),
        ("depth: []", "depth must have one value or more, got an empty list"),
        ("depth: [1, 0]", "depth must be a whole number from 1 to 256, got 0"),
        ("depth: [1, [2]]", "depth must be a whole number from 1 to 256, got [2]"),
        ("depth: [1, 2, '1']", "depth must have each value once, got '1' twice"),
        ("flip: [maybe]", "flip must be true or false, got 'maybe'"),
        ("schedule: [cosine, cosin]", "schedule must be constant, one_cycle or cosine, got 'cosin'"),
        ("depth: {low: 4}", "depth: a range must have a low and a high, got {'low': 4}"),
        ("depth: {low: 4, hihg: 5}", "depth: a range has low, high, step and log, got 'hihg'; did you mean high?"),
        ("depth: {low: 0, high: 5}", "depth must be a whole number from 1 to 256, got 0"),
        ("depth: {low: 1, high: 500}", "depth must be a whole number from 1 to 256, got 500"),
        ("depth: {low: 5, high: 4}", "depth: low must be at most high, got 5 and 4"),
        ("depth: {low: 4, high: 7, step: 2}", "depth: whole steps must lead from low to high, got 4 to 7 by 2"),
        ("depth: {low: 4, high: 8, step: 0.5}", "depth: step must be a whole number, got 0.5"),
        ("depth: {low: 4, high: 8, step: 0}", "depth: step must be a number above 0 or none, got 0"),
        ("depth: {low: 4, high: 8, step: 2, log: true}", "depth: a log range has no step, got 2"),
        ("depth: {low: 4, high: 8, log: 2}", "depth: log must be true or false, got 2"),
        ("weight_decay: {low: 0, high: 1, log: true}", "weight_decay: low must be above 0 in a log range, got 0.0"),
        ("weight_decay: {low: 0, high: 1, step: 1e-9}", "a range has at most 10,000 steps, got 1,000,000,000"),
        ("flip: {low: false, high: true}", "flip: a range must go from number to number"),
        ("clip_norm: {low: none, high: 1}", "clip_norm: a range must go from number to number"),
        ("schedule: {low: constant, high: cosine}", "schedule: a range must go from number to number"),
    ],
)
def test_what_no_run_could_hold_is_refused_before_any_trial(search, line, message):
    assert message in refusal(search, f"recipe: smoke\nspace: {{{line}}}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--depth", "3"], "depth must not be given, as it is searched: space in "),
        (["--detph", "3"], "unknown setting 'detph'; did you mean depth?"),
        (["--epochs", "none"], "epochs must be a whole number from 1 to 100000, got 'none'"),
        (["more"], "settings are given as --name value, got 'more'"),
        (["--metric", "parameters"], "metric must have val_accuracy or val_loss among them, got parameters"),
        (
            ["--metric", "val_accuracy,parameters", "--pruner", "median"],
            "pruner must be none where there are two metrics",
        ),
        (["--register_as", "best", "--final_top", "0"], "final_top must be at least 1 with register_as"),
        (["--filter_steps", "8"], "filter_steps must be 0 in a search, whose trials draw nothing: got 8; train"),
    ],
)
def test_a_bad_flag_is_refused_in_one_line(search, flags, message):
    assert refusal(search, SMALL, *flags).startswith(message)


def test_a_misspelt_search_gets_the_list_and_its_nearest():
    assert refusal(resolve, "smokee").endswith("or the path of a .yaml file, got 'smokee'; did you mean smoke?")
    assert refusal(resolve).startswith("name the search first: kernel-patch-depth, ")
    assert refusal(resolve, "--trials", "3").startswith("name the search first: kernel-patch-depth, ")


def test_two_metrics_leave_pruning_out_unless_somebody_asks_for_it(search):
    assert search().settings.pruner == "median"
    assert search(SMALL, "--metric", "val_accuracy,epoch_seconds").settings.pruner == "none"


def test_a_grid_must_be_finite_and_fit_in_memory():
    assert "got a continuous learning_rate" in refusal(resolve, "smoke", "--sampler", "grid")
    assert resolve("kernel-patch-depth", "--sampler", "grid").settings.sampler == "grid"


def test_a_huge_grid_is_refused(search):
    text = "recipe: smoke\nspace: {depth: {low: 1, high: 200}, filters: {low: 1, high: 51}}"
    assert "must have at most 10,000 configurations, got 10,200" in refusal(search, text, "--sampler", "grid")


def test_refusing_a_search_imports_neither_tensorflow_nor_mlflow_nor_figures():
    program = "import sys, pipeline.search.space as s; s.parse_search(['smoke'])"
    program += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    slow = {"keras", "matplotlib", "mlflow", "pandas", "scipy", "sklearn", "sqlalchemy", "tensorflow"}
    assert slow & set(done.stdout.split()) == set()


# names


def test_no_setting_of_a_search_is_called_like_one_of_a_run_or_like_a_part_of_the_file():
    names = [*SearchConfig.model_fields, *TrainingConfig.model_fields, *PARTS, "search"]
    assert len(set(names)) == len(names)


def test_help_shows_the_settings_of_search_and_run_with_the_searchs_values(capsys):
    with pytest.raises(SystemExit) as ended:
        resolve("smoke", "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 0
    for field in [*SearchConfig.model_fields.values(), *TrainingConfig.model_fields.values()]:
        assert field.description in shown
    assert "(smoke: 4)" in shown  # trials
    assert "(smoke: val_accuracy)" in shown


# what the images allow


def fits(search, image_shape=(32, 32, 3), training_images=1000):
    space.check_against_data(search, image_shape=image_shape, training_images=training_images)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("patch_size: [1, 2, 5]", "patch_size must divide the image side: 32x32 pixels, got patch_size=5"),
        ("patch_size: {low: 1, high: 4}", "patch_size must divide the image side: 32x32 pixels, got patch_size=3"),
        ("patch_size: [16, 8], kernel_size: [9, 3]", "kernel_size must be at most 2 x grid - 1"),
        ("batch_size: {low: 10, high: 2000}", "batch_size must not exceed the training images: 1000 here"),
        ("depth: [1, 2]}\npatch_size: 5\nenqueue: []\n#{", "patch_size must divide the image side"),
    ],
)
def test_a_value_that_never_fits_the_images_is_refused(search, line, message):
    found = search(f"recipe: smoke\nspace: {{{line}}}")
    assert refusal(fits, found).startswith(f"search mine: {message}")


def test_a_combination_that_does_not_fit_is_left_to_be_told_apart(search):
    found = search("recipe: smoke\nspace: {patch_size: [2, 8], kernel_size: [3, 9]}")
    fits(found)
    images = {"image_shape": (32, 32, 3), "training_images": 1000}
    assert infeasibility(found, {"patch_size": 2, "kernel_size": 9}, **images) is None
    reason = infeasibility(found, {"patch_size": 8, "kernel_size": 9}, **images)
    assert reason is not None and reason.startswith("kernel_size must be at most 2 x grid - 1")


# the study


@pytest.mark.parametrize(
    "flags",
    [
        ["--trials", "7", "--hours", "3", "--trial_minutes", "9"],
        ["--final_top", "9", "--final_seeds", "9", "--workers", "2", "--trials_per_gpu", "2"],
        ["--storage", "sqlite:////elsewhere.db"],
        ["--dataset", "another/path/to/the/same/images"],
        ["--checkpoint_minutes", "none"],
        ["--register_as", "digits"],
    ],
)
def test_a_study_goes_on_under_another_budget_or_in_another_place(search, flags):
    assert search(SMALL, *flags).study_name("abc") == search().study_name("abc")


@pytest.mark.parametrize(
    ("text", "flags", "data"),
    [
        (SMALL, [], "abd"),
        (SMALL, ["--epochs", "3"], "abc"),
        (SMALL, ["--seed", "1"], "abc"),
        (SMALL, ["--learning_rate", "0.00100000001"], "abc"),
        (SMALL, ["--metric", "val_loss"], "abc"),
        (SMALL, ["--sampler", "random"], "abc"),
        (SMALL, ["--pruner_epochs", "3"], "abc"),
        (SMALL + "enqueue: [{depth: 2}]", [], "abc"),
        (SMALL.replace("[1, 2]", "[1, 3]"), [], "abc"),
        (SMALL.replace("[1, 2]", "{low: 1, high: 2}"), [], "abc"),
        (SMALL.replace("smoke", "digits"), [], "abc"),
    ],
)
def test_anything_else_makes_another_study(search, text, flags, data):
    assert search(text, *flags).study_name(data) != search().study_name("abc")


def test_a_studys_name_is_the_searchs_and_what_it_depends_on(search):
    found = search(SMALL + "# a comment\n")
    assert found.study_name("abc") == f"mine-{found.fingerprint('abc')}" == search().study_name("abc")
    assert search(name="renamed").fingerprint("abc") == found.fingerprint("abc")
    assert search(SMALL, "--study", "ours").study_name("abc") == "ours"


def test_a_fingerprint_is_the_same_in_another_process_whatever_the_order_in_the_file(search, tmp_path):
    found = search("recipe: smoke\nspace: {depth: [1, 2], filters: [4, 8]}")
    path = tmp_path / "mine.yaml"
    path.write_text("space: {filters: [4, 8], depth: [1, 2]}\nrecipe: smoke")
    program = f"import pipeline.search.space as s; f = s.parse_search([{str(path)!r}])"
    program += "; print(f.fingerprint('abc'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found.fingerprint("abc")


def test_every_setting_of_a_search_is_told_to_be_a_budget_or_else_part_of_the_question():
    question = {"metric", "sampler", "pruner", "pruner_trials", "pruner_epochs"}
    assert set(SearchConfig.model_fields) == BUDGETS_AND_PLACES | question


# where it is kept


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:secret@host:5432/db",
        "postgresql://me:sec/ret@host/db",
        "redis://:secret@host",
        "mysql://me@host/db?charset=utf8&Passwd=secret",
    ],
)
def test_a_password_by_flag_is_refused_with_how_to_have_mlflow_forget_it(search, monkeypatch, url):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123abc")
    said = refusal(search, SMALL, "--storage", url)
    assert "secret" not in said
    assert "`mlflow runs delete --run-id 0123abc` and `mlflow gc --run-ids 0123abc`" in said


@pytest.mark.parametrize("url", ["postgresql://me@host/db", "sqlite:////home/a:b@c/optuna.db"])
def test_a_storage_without_a_password_is_taken(search, url):
    assert search(SMALL, "--storage", url).settings.storage == url


def test_a_password_that_mlflow_run_has_not_seen_is_not_said_to_be_recorded(search):
    said = refusal(search, SMALL, "--storage", "postgresql://me:secret@host/db")
    assert said.endswith("with the whole URL in OPTUNA_STORAGE")


def test_storage_is_what_was_told_or_the_environments_or_a_file_beside_mlflows_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"OPTUNA_STORAGE": "postgresql://me:secret@host/db"}
    assert storage_url(resolve("smoke", "--storage", "none").settings.storage, environ) == environ["OPTUNA_STORAGE"]
    assert storage_url("sqlite:///mine.db", environ) == "sqlite:///mine.db"
    assert storage_url(None, {}) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url(None, {"MLFLOW_TRACKING_URI": "sqlite:////data/mlflow.db"}) == "sqlite:////data/optuna.db"
    assert storage_url(None, {"MLFLOW_TRACKING_URI": "http://host:5000"}) == f"sqlite:///{tmp_path}/optuna.db"


@pytest.mark.parametrize("told", ["secret", "postgresql://me:sec@ret@host/db"])
def test_a_storage_of_the_environment_that_is_no_url_is_refused_unseen(told):
    said = refusal(validate_environment, {"OPTUNA_STORAGE": told})
    assert said.startswith("OPTUNA_STORAGE must ") and "sec" not in said
    validate_environment({"OPTUNA_STORAGE": "postgresql://me:secret@host/db"})
    validate_environment({})


def test_names_with_anything_in_them_name_studies_on_one_line(search):
    assert search(name='it\'s; \n"x"').study_name("abc").startswith(r"""it's; \n"x"-""")
    assert search(SMALL, "--study", "a\nb").study_name("abc") == r"a\nb"
    assert len(search(name="é" * 120).name) == 100


def test_long_lists_are_judged_one_setting_at_a_time(search):
    """Their product, 10^5 combinations, times 200, would take minutes."""
    lists = {
        name: list(range(1, most)) for name, most in (("kernel_size", 32), ("batch_size", 99), ("translation", 31))
    }
    found = search(f"recipe: smoke\nspace: {lists | {'patch_size': [1, 2]}}")
    fits(found)
    found = search(f"recipe: smoke\nspace: {lists | {'patch_size': [1, 2], 'translation': [1, 32]}}")
    assert "got translation=32" in refusal(fits, found)
