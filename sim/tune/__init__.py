"""``vla-prune tune``: the budget that a deadline leaves, found in closed loop."""
