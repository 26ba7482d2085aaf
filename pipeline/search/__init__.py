"""Hyperparameter search with Optuna: what to try, the loop, the finalists."""
