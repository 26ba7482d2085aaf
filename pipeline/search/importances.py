"""How much each searched setting matters for the first metric, by two methods of Optuna's."""

import warnings

import optuna
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import TrialState

from pipeline.search.conditions import with_ancestors
from pipeline.search.study import Study

# Different values that importances are estimated from at least
IMPORTANCE_TRIALS = 4


def fanova_importances(study: Study) -> dict[str, float]:
    """Return the share of the first metric's variance that each setting explains (fANOVA).

    The share of a setting that is not drawn in every trial is one of the variance among those in which it is. A setting
    without `IMPORTANCE_TRIALS` different values of its trials is left out, and so is a single setting.
    """
    return _importances(study, FanovaImportanceEvaluator(seed=0), sign=1)


def ped_anova_importances(study: Study) -> dict[str, float]:
    """Return how much each setting matters for the best tenth of the first metric's values (PED-ANOVA).

    It is what optuna-dashboard shows, and has the settings of fANOVA's. Of fewer than 50 trials it is a rough hint.
    """
    # it takes the lowest values for the best
    sign = -1 if study.search.directions[0] == "maximize" else 1
    with warnings.catch_warnings():
        # It warns of what `sign` does
        warnings.filterwarnings("ignore", message=".*to achieve low `target` values")
        return _importances(study, PedAnovaImportanceEvaluator(), sign=sign)


def trials_with_conditional_settings(study: Study) -> dict[str, int]:
    """Return in how many complete trials, duplicates included, each setting was drawn that has a condition."""
    complete = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    return {setting: sum(setting in trial.params for trial in complete) for setting in study.search.conditions}


def _importances(study: Study, evaluator: BaseImportanceEvaluator, *, sign: int) -> dict[str, float]:
    """Return the importance of each setting by one method, the greatest first."""
    search, ranked = study.search, study.ranked()
    always = [setting for setting in search.space if setting not in search.conditions]
    shares: dict[str, float] = {}
    for last in [None, *search.conditions]:
        # With those on which it depends, which are drawn in all of its trials
        names = with_ancestors(always if last is None else [*always, last], search.conditions)
        drawn = [trial for trial in ranked if names <= trial.params.keys()]
        if len({trial.values[0] for trial in drawn}) < IMPORTANCE_TRIALS or len(search.space) < 2:
            continue
        known = optuna.importance.get_param_importances(
            study.optuna_study,
            evaluator=evaluator,
            params=[name for name in search.space if name in names],
            target=lambda trial: sign * trial.values[0],
        )
        shares |= known if last is None else {last: known[last]}
    return dict(sorted(shares.items(), key=lambda share: -share[1]))
