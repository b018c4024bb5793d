"""Installs the bridge where ``ros2 run`` finds it."""

from setuptools import find_packages, setup

NAME = "vla_prune_sim_bridge"

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
    description="The simulators of vla_prune as robots over topics.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"sim_bridge = {NAME}.sim_bridge:main"]},
)
