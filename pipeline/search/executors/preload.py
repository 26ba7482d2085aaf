"""Import what trials need, once for all of them: the fork server imports this module."""

import importlib

from pipeline.runtime.imports import slow_imports

# Optuna is among them as the module of the search command imports it, which every process imports.
MODULES = ("pipeline.training.run", "mlflow.store.tracking.sqlalchemy_store", "optuna")

with slow_imports():
    for name in MODULES:
        importlib.import_module(name)
