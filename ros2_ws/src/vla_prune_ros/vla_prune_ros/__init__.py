"""ROS 2 nodes around vla_prune. README.md says which files import rclpy; the others need none."""
