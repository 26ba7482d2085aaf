"""MLflow: runs, models, the registry and what waits to be sent."""
