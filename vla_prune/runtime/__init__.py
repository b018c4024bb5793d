"""Plain code between a policy and a robot: numpy only, no torch."""
