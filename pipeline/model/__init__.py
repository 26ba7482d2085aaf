"""ConvMixer in stock Keras layers, and layers that are faster on a CPU."""
