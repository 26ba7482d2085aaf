"""A module that takes a minute to import, as TensorFlow may on a busy node."""

import time

time.sleep(60)
