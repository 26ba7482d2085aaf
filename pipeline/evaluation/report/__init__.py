"""The report page: groups of runs, leaderboard, HTML."""
