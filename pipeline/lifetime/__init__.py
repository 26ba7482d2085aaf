"""How a process begins, beats and ends: what stops it, whom it belongs to, and whether another one still lives."""
