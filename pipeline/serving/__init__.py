"""A model as it is registered and served: with the code that turns images into class names and probabilities."""
