"""Recipes -> a table of the settings in which they differ."""

from collections.abc import Sequence

import pandas as pd

from pipeline.reporting.recipes import Recipe


def changed_settings(recipes: Sequence[Recipe]) -> pd.DataFrame:
    """A row a recipe in the order given, a column a setting that is not the same in all; empty where it is absent."""
    names = dict.fromkeys(name for recipe in recipes for name in recipe.settings)
    table = pd.DataFrame([{name: recipe.settings.get(name, "") for name in names} for recipe in recipes])
    same_data = len({recipe.data for recipe in recipes}) == 1
    return table.loc[:, [name for name in names if table[name].nunique() > 1 and not (same_data and name == "dataset")]]
