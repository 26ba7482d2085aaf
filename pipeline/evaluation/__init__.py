"""A logged model measured again: calibration, corruptions, any data set of its classes."""
