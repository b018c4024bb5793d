"""Installs the nodes where ``ros2 run`` finds them."""

from setuptools import find_packages, setup

NAME = "vla_prune_ros"
NODES = ("pruner_node", "policy_node", "command_node", "overlay_node", "replay_node", "fused")

setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="VLA-Prune maintainers",
    maintainer_email="maintainers@example.com",
    description="Life-cycle nodes between camera topics and a pruned VLA policy.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            *(f"{node} = {NAME}.{node}:main" for node in NODES),
            f"bring_up = {NAME}.bring_up_node:main",
        ]
    },
)
