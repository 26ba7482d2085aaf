"""Other formats of a trained model, and the proof that they answer as it does. What they need is an extra."""
