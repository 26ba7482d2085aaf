"""Train, search, compare and serve ConvMixer image classifiers, tracked in MLflow."""
