"""How much settings matter: the same as Optuna's, and of settings that not every trial has drawn."""

import optuna
import pytest

from pipeline.search.importances import fanova_importances, ped_anova_importances, trials_with_conditional_settings
from tests.support.scripted import DISCRETE, make_search, open_study

GRID = ["--sampler", "grid"]


@pytest.fixture
def study(tmp_path):
    """Opens a study of DISCRETE, or another."""
    return lambda text=DISCRETE, *flags: open_study(None, make_search(tmp_path, text, *flags))


def complete(study, value):
    """Ask for a trial and complete it with what `value` returns of its settings."""
    proposal = study.ask()
    study.complete(proposal.number, [value(proposal.params)])


def test_importances_order_settings_and_are_empty_below_four_values(study):
    mine = study(DISCRETE, "--sampler", "grid")
    for value in (0.1, 0.2, 0.3):
        complete(mine, lambda params, value=value: value)
    assert fanova_importances(mine) == {}
    for _ in range(3):
        complete(mine, lambda params: params["kernel_size"] + 0.01 * params["depth"])
    shares = fanova_importances(mine)
    assert list(shares) == ["kernel_size", "depth"] and sum(shares.values()) == pytest.approx(1)


def test_importances_are_those_of_optuna_and_of_its_dashboard(study):
    mine = study(DISCRETE, *GRID)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        complete(mine, lambda params, value=value: value)
    with pytest.warns(UserWarning, match="achieve low"):
        expected = optuna.importance.get_param_importances(mine.optuna_study, target=lambda trial: -trial.values[0])
    assert ped_anova_importances(mine) == expected != fanova_importances(mine)


def test_importance_of_a_conditional_setting_is_that_among_its_trials(study):
    condition = "translation: {low: 0, high: 4, when: {flip: true}}"
    mine = study("recipe: smoke\nspace: {flip: [true, false], depth: [1, 2], " + condition + "}\n", *GRID)
    for _ in range(12):
        complete(mine, lambda params: 0.1 * params.get("translation", 0) + 0.01 * params["depth"])
    shares = fanova_importances(mine)
    assert set(shares) == set(ped_anova_importances(mine)) == {"flip", "depth", "translation"}
    # nearly all of the variation among the ten trials that have it
    assert shares["translation"] > 0.9 and shares["flip"] + shares["depth"] == pytest.approx(1)
    assert trials_with_conditional_settings(mine) == {"translation": 10}
