"""What `mlflow models serve` runs, and how it is packaged."""
