"""Finished runs, compared: from what somebody names to one page that can be read alone."""
