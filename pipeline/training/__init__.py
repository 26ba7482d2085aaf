"""One training run: Keras, checkpoints, callbacks."""
