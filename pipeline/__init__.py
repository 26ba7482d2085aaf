"""Train, search and compare ConvMixer image classifiers, tracked in MLflow."""
