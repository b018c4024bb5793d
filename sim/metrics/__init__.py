"""Scores of what was driven, and of what was planned. Knows no simulator."""
