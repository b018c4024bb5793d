"""Foreground masks of pictures, and how well scores find what they show."""
