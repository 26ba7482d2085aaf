"""Records that wait on disk until the tracking server has them."""
