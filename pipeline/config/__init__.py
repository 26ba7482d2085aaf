"""Every setting: its bounds, its help and its only default."""
