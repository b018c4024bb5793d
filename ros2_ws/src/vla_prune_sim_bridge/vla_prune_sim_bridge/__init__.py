"""A simulated robot or vehicle over topics; the only package that knows the simulators and ROS."""
