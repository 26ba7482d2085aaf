"""Takes a minute to import, as TensorFlow may on a node that is busy."""

import time

time.sleep(60)
