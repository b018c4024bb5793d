"""The shipped configs; a package only so that they travel inside the wheel."""
