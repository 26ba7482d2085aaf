"""Searches: how file and flags combine, what is refused before any trial, and which study they name."""

import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pipeline.config.recipe import read_recipe
from pipeline.config.search import PARTS, SEARCHES, SearchConfig
from pipeline.config.training import TrainingConfig
from pipeline.config.yaml_file import names
from pipeline.search import space
from pipeline.search.distributions import bounds, values
from pipeline.search.space import BUDGETS_AND_PLACES, infeasibility, parse_search, slow_batch_norm_in_space
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.teacher import Teacher
from tests.support.errors import usage_error
from tests.support.paths import ROOT
from tests.support.scripted import SMALL, make_search


def resolve(*arguments):
    return parse_search(arguments)


# what ships


@pytest.mark.parametrize("name", names(SEARCHES))
def test_bounds_of_every_search_that_ships_are_feasible_on_its_images(name):
    shape, images = ((8, 8, 1), 180) if resolve(name).base.dataset == "digits" else ((32, 32, 3), 45_000)
    found = resolve(name)
    space.check_against_data(found, image_shape=shape, training_images=images)
    for corner in product(*map(bounds, found.space.values())):
        params = dict(zip(found.space, corner, strict=True))
        assert infeasibility(found, params, image_shape=shape, training_images=images) is None


@pytest.mark.parametrize("name", names(SEARCHES))
def test_every_search_that_ships_shows_its_command_and_repeats_no_default(name):
    path = ROOT / "experiments" / "searches" / f"{name}.yaml"
    assert f"#   mlflow run . -e search --env-manager local -P search={name}" in path.read_text()
    found = resolve(name)
    held = TrainingConfig.build(read_recipe(found.recipe))
    plain = {**dict(SearchConfig()), **dict(held)}
    own = {line.split(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()} - set(PARTS)
    resolved = {**dict(found.settings), **dict(found.base)}
    assert [setting for setting in own if resolved[setting] == plain[setting]] == []


def test_kernel_patch_depth_tries_the_papers_shape_first():
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


def test_smoke_has_a_continuous_space():
    assert resolve("smoke").n_configurations() is None


# what a file says


def test_config_of_a_trial_is_recipe_then_file_then_flags_then_drawn_settings(search):
    found = search("recipe: smoke\nfilters: 4\nepochs: 3\nspace: {depth: [1, 2]}", "--epochs", "5", "--flip", "true")
    config = found.config({"depth": 2})
    assert config == TrainingConfig.build(read_recipe("smoke") | {"filters": 4, "epochs": 5, "flip": True, "depth": 2})
    assert found.base.depth == TrainingConfig.build(read_recipe("smoke")).depth


def test_flags_and_file_may_set_the_searchs_own_settings(search):
    found = search(SMALL + "trials: 7\nhours: 1e1\nmetric: [val_loss, parameters]", "--trials", "9")
    assert (found.name, found.recipe) == ("mine", "smoke")
    assert (found.settings.trials, found.settings.hours) == (9, 10.0)
    assert found.directions == ["minimize", "minimize"]
    assert search().directions == ["maximize"]


@pytest.mark.parametrize(
    ("flags", "metric", "monitor", "directions"),
    [
        ([], ("val_accuracy",), "val_accuracy", ["maximize"]),
        (["--monitor", "val_loss"], ("val_loss",), "val_loss", ["minimize"]),
        (["--metric", "val_macro_f1"], ("val_macro_f1",), "val_macro_f1", ["maximize"]),
        (
            ["--metric", "parameters,val_balanced_accuracy", "--monitor", "val_balanced_accuracy"],
            ("parameters", "val_balanced_accuracy"),
            "val_balanced_accuracy",
            ["minimize", "maximize"],
        ),
    ],
)
def test_trials_monitor_what_the_search_optimizes(search, flags, metric, monitor, directions):
    found = search(SMALL, *flags)
    assert (found.settings.metric, found.monitor, found.directions) == (metric, monitor, directions)
    assert found.config({"depth": 2}).monitor == monitor


# what is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--depth", "3"], "depth must not be given, as it is searched: space in "),
        (["--detph", "3"], "unknown setting 'detph'; did you mean depth?"),
        (["--epochs", "none"], "epochs must be a whole number from 1 to 100000, got 'none'"),
        (["more"], "settings are given as --name value, got 'more'"),
        (
            ["--metric", "parameters"],
            "metric must have one of val_accuracy, val_loss, val_balanced_accuracy, val_macro_f1 among them, got param",
        ),
        (
            ["--metric", "parameters,val_loss", "--monitor", "val_accuracy"],
            "monitor must be what the search optimizes, val_loss of metric=parameters,val_loss, got val_accuracy",
        ),
        (
            ["--metric", "val_accuracy,parameters", "--pruner", "median"],
            "pruner must be none with two metrics",
        ),
        (["--register_as", "best", "--final_top", "0"], "final_top must be at least 1 with register_as"),
        (["--folds", "5", "--ensemble", "beside"], "ensemble must be none with folds, whose winner is the mean"),
        (
            ["--ensemble", "beside", "--final_top", "1"],
            "final_top must be at least 2 with ensemble=beside, for as many networks: got 1",
        ),
        (["--folds", "5", "--pruner", "patience"], "pruner must be median, percentile or none with folds, as"),
        (["--filter_steps", "8"], "filter_steps must be 0 in a search, whose trials draw no figures: got 8; train"),
    ],
)
def test_bad_flag_is_refused_in_one_line(search, flags, message):
    assert usage_error(search, SMALL, *flags).startswith(message)


def test_misspelt_search_is_refused_with_the_list_and_the_nearest_name():
    assert usage_error(resolve, "smokee").endswith("or the path of a .yaml file, got 'smokee'; did you mean smoke?")
    assert usage_error(resolve).startswith("name the search first: conditional, conditional-grid, kernel-patch-depth, ")
    assert usage_error(resolve, "--trials", "3").startswith(
        "name the search first: conditional, conditional-grid, kernel-patch-depth, "
    )


def test_two_metrics_and_folds_set_another_pruner_unless_one_is_given(search):
    assert search().settings.pruner == "asha"
    assert search(SMALL, "--folds", "5").settings.pruner == "median"
    assert search(SMALL, "--folds", "5", "--pruner", "none").settings.pruner == "none"
    assert search(SMALL, "--metric", "val_accuracy,epoch_seconds").settings.pruner == "none"


def test_grid_of_a_continuous_space_is_refused():
    assert "got a continuous learning_rate" in usage_error(resolve, "smoke", "--sampler", "grid")
    assert resolve("kernel-patch-depth", "--sampler", "grid").settings.sampler == "grid"


def test_grid_of_ten_thousand_configurations_is_accepted(search):
    text = "recipe: smoke\nspace: {depth: {low: 1, high: 200}, filters: {low: 1, high: 50}}"
    assert search(text, "--sampler", "grid").n_configurations() == 10_000


def test_grid_of_more_than_ten_thousand_configurations_is_refused(search):
    text = "recipe: smoke\nspace: {depth: {low: 1, high: 200}, filters: {low: 1, high: 51}}"
    assert "must have at most 10,000 configurations, got 10,200" in usage_error(search, text, "--sampler", "grid")


def test_parse_search_imports_neither_tensorflow_nor_mlflow_nor_figures():
    program = "import sys, pipeline.search.space as s; s.parse_search(['smoke'])"
    program += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    slow = {"keras", "matplotlib", "mlflow", "pandas", "scipy", "sklearn", "sqlalchemy", "tensorflow"}
    assert slow & set(done.stdout.split()) == set()


# names


def test_names_of_search_settings_run_settings_and_file_parts_are_distinct():
    names = [*SearchConfig.model_fields, *TrainingConfig.model_fields, *PARTS, "search"]
    assert len(set(names)) == len(names)


def test_help_shows_the_settings_of_search_and_run_with_the_files_values(capsys):
    with pytest.raises(SystemExit) as ended:
        resolve("smoke", "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ended.value.code == 0
    for field in [*SearchConfig.model_fields.values(), *TrainingConfig.model_fields.values()]:
        assert field.description in shown
    assert "(smoke: 4)" in shown  # trials
    assert "(smoke: val_accuracy)" in shown


def test_settings_that_do_not_suit_each_other_are_refused_before_images_are_read_unless_one_is_drawn(search):
    text = "recipe: smoke\nclean_epochs: 3\nspace: {{{}}}".format
    refused = "clean_epochs must be at most epochs: epochs=2, got clean_epochs=3"
    assert usage_error(search, text("kernel_size: [3, 5]"), "--epochs", "2") == refused
    search(text("kernel_size: [3, 5]"), "--epochs", "3")
    search(text("epochs: [2, 4]"))
    search("recipe: smoke\nspace: {clean_epochs: [1, 2]}", "--epochs", "1")


def test_blocks_to_freeze_are_not_judged_before_the_model_that_has_them_is_known(search):
    text = "recipe: smoke\nfreeze_blocks: 20\nspace: {kernel_size: [3, 5]}"
    assert usage_error(search, text).startswith("freeze_blocks must be at most depth: depth=1")
    search(text, "--weights_from", "models:/cifar@champion")


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
        ("cutout: [4, 32]", "cutout must be "),
        ("translation: {low: 4, high: 32}", "translation must be "),
        ("depth: [1, 2]}\npatch_size: 5\nenqueue: []\n#{", "patch_size must divide the image side"),
    ],
)
def test_value_that_is_infeasible_in_every_configuration_is_refused(search, line, message):
    found = search(f"recipe: smoke\nspace: {{{line}}}")
    assert usage_error(fits, found).startswith(f"search mine: {message}")


def test_single_infeasible_configuration_is_no_reason_to_refuse_the_search(search):
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
def test_study_name_stays_with_another_budget_or_place(search, flags):
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
def test_study_name_changes_with_any_other_setting(search, text, flags, data):
    assert search(text, *flags).study_name(data) != search().study_name("abc")


def test_study_name_is_the_files_name_and_the_fingerprint(search):
    found = search(SMALL + "# a comment\n")
    assert found.study_name("abc") == f"mine-{found.fingerprint('abc')}" == search().study_name("abc")
    assert search(name="renamed").fingerprint("abc") == found.fingerprint("abc")
    assert search(SMALL, "--study", "ours").study_name("abc") == "ours"


def test_fingerprint_is_the_same_in_another_process_and_for_another_order_in_the_file(search, tmp_path):
    found = search("recipe: smoke\nspace: {depth: [1, 2], filters: [4, 8]}")
    path = tmp_path / "mine.yaml"
    path.write_text("space: {filters: [4, 8], depth: [1, 2]}\nrecipe: smoke")
    program = f"import pipeline.search.space as s; f = s.parse_search([{str(path)!r}])"
    program += "; print(f.fingerprint('abc'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found.fingerprint("abc")


def test_every_setting_of_a_search_is_a_budget_or_place_or_changes_the_fingerprint():
    question = {"metric", "sampler", "pruner", "pruner_trials", "pruner_epochs"}
    question |= {"pruner_percentile", "pruner_factor", "pruner_patience"}
    question |= {"max_parameters", "max_latency_ms", "max_memory_mb"}
    assert set(SearchConfig.model_fields) == BUDGETS_AND_PLACES | question


def test_study_name_is_printable_on_one_line(search):
    assert search(name='it\'s; \n"x"').study_name("abc").startswith(r"""it's; \n"x"-""")
    assert search(SMALL, "--study", "a\nb").study_name("abc") == r"a\nb"
    assert len(search(name="é" * 120).name) == 100


def test_long_lists_are_checked_one_setting_at_a_time(search):
    """Their product, 10^5 combinations, times 200, would take minutes."""
    lists = {
        name: list(range(1, most)) for name, most in (("kernel_size", 32), ("batch_size", 99), ("translation", 31))
    }
    found = search(f"recipe: smoke\nspace: {lists | {'patch_size': [1, 2]}}")
    fits(found)
    found = search(f"recipe: smoke\nspace: {lists | {'patch_size': [1, 2], 'translation': [1, 32]}}")
    assert "got translation=32" in usage_error(fits, found)


def slow(search, text, *flags, images=200):
    return slow_batch_norm_in_space(search(f"recipe: smoke\n{text}", *flags), training_images=images)


def test_slow_batch_norm_of_the_settings_of_all_trials_is_that_of_a_run(search):
    warning = slow(search, "space: {depth: [1, 2]}\nbatch_size: 50\nbatch_norm_momentum: 0.99\n")
    assert warning.startswith("validation will lag behind in the first epochs: with batch_norm_momentum=0.99 and 4 ")
    assert slow(search, "space: {depth: [1, 2]}\nbatch_size: 50\nbatch_norm_momentum: 0.3\n") is None


@pytest.mark.parametrize(
    ("space", "begins"),
    [
        ("{batch_size: [20, 50]}", "in all of the space (batch_size=50, for example) validation will lag behind"),
        ("{batch_size: {low: 1, high: 200}}", "in a part of the space (batch_size=200, for example) validation will"),
        ("{batch_norm_momentum: [0.3, 0.99]}", "in a part of the space (batch_norm_momentum=0.99, for example) "),
        (
            "{batch_norm_momentum: [0.3, 0.99], batch_size: [50, 100]}",
            "in a part of the space (batch_size=100, batch_norm_momentum=0.99, for example) ",
        ),
        ("{ema_momentum: [none, 0.99]}", "in a part of the space (ema_momentum=none, for example) "),
    ],
)
def test_slow_batch_norm_in_a_space_says_where(search, space, begins):
    fixed = "" if "batch_norm_momentum" in space else "batch_norm_momentum: 0.9\n"
    assert slow(search, f"space: {space}\n{fixed}").startswith(begins)


def test_slow_batch_norm_is_none_where_the_base_is_slow_and_the_space_is_not(search):
    text = "space: {batch_norm_momentum: [0.1, 0.3], batch_size: [20, 50]}\n"
    assert slow(search, text) is None


OWN_URIS = {"small@a": "models:/m-1", "large@b": "models:/m-2"}


def source(origin, **architecture):
    """Return a model that trials start from, for gray images, without its weights."""
    layers = {"patch_embedding": [np.zeros((2, 2, 1, architecture["filters"]))]}
    return InitialWeights(origin, layers, {"depth": 1, "patch_size": 2, "kernel_size": 3} | architecture)


def test_trial_takes_over_what_is_unset_from_the_model_that_it_starts_from(tmp_path):
    text = "recipe: quick\nweights_from: given\nkernel_size: 5\nspace: {depth: [1, 2]}\n"
    search = make_search(tmp_path, text)
    model = source("models:/m-1", filters=16)
    search = replace(search, base=model.complete(search.base), sources={"models:/m-1": model})
    assert search.origins() == ["models:/m-1"]
    config = search.config({"depth": 2})
    assert (config.filters, config.patch_size, config.kernel_size, config.depth) == (16, 2, 5, 2)
    assert config.weights_from == "models:/m-1"


def test_trials_that_start_from_different_models_have_the_architecture_of_each(tmp_path):
    text = "recipe: quick\nspace: {weights_from: [small, large, none]}\n"
    search = make_search(tmp_path, text)
    models = {"small": source("models:/m-1", filters=4), "large": source("models:/m-2", filters=64)}
    search = replace(search, sources=models)
    assert search.origins() == ["small", "large"]
    filters = {choice: search.config({"weights_from": choice}).filters for choice in ("small", "large", None)}
    assert filters == {"small": 4, "large": 64, None: 256}


def test_trials_have_the_models_own_uri_of_the_teacher_that_is_drawn(tmp_path):
    search = make_search(tmp_path, "recipe: quick\nspace: {teacher: [models:/small@a, models:/large@b, none]}\n")
    teachers = {f"models:/{name}": Teacher(source(uri, filters=4)) for name, uri in OWN_URIS.items()}
    search = replace(search, teachers=teachers)
    assert search.origins("teacher") == list(teachers) and search.origins() == []
    drawn = [search.config({"teacher": choice}).teacher for choice in (*teachers, None)]
    assert drawn == [*OWN_URIS.values(), None]


def test_model_of_the_recipe_is_one_of_the_searchs_where_the_space_may_leave_it(tmp_path):
    (tmp_path / "taught.yaml").write_text("recipe: quick\nteacher: models:/own@a\n")
    text = f"recipe: {tmp_path}/taught.yaml\nspace: {{{{optimizer: [adamw, muon], teacher: {{}}}}}}\n".format
    assert make_search(tmp_path, text("[models:/drawn@b, none]")).origins("teacher") == ["models:/drawn@b"]
    conditional = make_search(tmp_path, text("{values: [models:/drawn@b], when: {optimizer: muon}}"))
    assert conditional.origins("teacher") == ["models:/drawn@b", "models:/own@a"]


def test_study_of_a_space_with_an_alias_is_another_once_the_alias_names_another_model(tmp_path):
    search = make_search(tmp_path, "recipe: quick\nspace: {teacher: [models:/cifar@champion, none]}\n")
    of = [
        replace(search, teachers={"models:/cifar@champion": Teacher(source(uri, filters=4))}).study_name("digits-1")
        for uri in ("models:/m-1", "models:/m-2", "models:/m-1")
    ]
    assert of[0] == of[2] != of[1]


def test_configuration_that_does_not_fit_its_model_is_infeasible(tmp_path):
    search = make_search(tmp_path, "recipe: quick\nweights_from: given\nspace: {filters: [4, 8]}\n")
    model = source("models:/m-1", filters=4)
    search = replace(search, base=model.complete(search.base), sources={"models:/m-1": model})
    reason = infeasibility(search, {"filters": 8}, image_shape=(8, 8, 1), training_images=1000)
    assert "patch_embedding is 2x2x1x4 in models:/m-1, and 2x2x1x8 with these settings" in reason


def test_conditional_setting_is_drawn_only_where_its_condition_holds(search):
    condition = "translation: {low: 1, high: 4, when: {flip: true}}"
    mine = search("recipe: smoke\nspace: {flip: [true, false], " + condition + "}\n")
    assert [mine.is_drawn("translation", {"flip": flip}) for flip in (True, False)] == [True, False]
    drawn = [mine.sample(np.random.default_rng(seed)) for seed in range(20)]
    assert {(params["flip"], "translation" in params) for params in drawn} == {(True, True), (False, False)}
