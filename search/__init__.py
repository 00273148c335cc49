"""Run the search: data, training of one fold, Ray Tune around it, leaderboard."""
