"""From a deadline to a budget: stage profile, latency model, run-time controller."""
