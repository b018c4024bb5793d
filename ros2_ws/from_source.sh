#!/bin/bash
# Builds as much of ROS 2 Jazzy as the nodes need, and this workspace on it, where no packages of it are at hand.
#
#   ros2_ws/from_source.sh SOURCES OUT PYTHON
#
# SOURCES holds a git directory SOURCES/OWNER+NAME/repo for each line of the list below (mirror clones). OUT gets src/,
# venv/, build/, install/; `source OUT/install/setup.bash` then gives ros2 and rclpy to PYTHON (3.11 or 3.12), the
# interpreter that has vla_prune. Needs cmake, a C++ compiler, libyaml-dev. Tens of minutes on 2 cores; calling it
# again goes on. No logging to files, no tracing, Cyclone DDS alone.
set -euo pipefail
sources=$1 out=$2 python=$3 here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out/src"

while read -r repository revision; do
  into=$out/src/${repository#*/}
  [ -e "$into" ] && continue
  mkdir -p "$into.part"
  git --git-dir="$sources/${repository/\//+}/repo" archive "$revision" | tar -x -C "$into.part"
  mv "$into.part" "$into"
done <<LIST
ament/ament_cmake jazzy
ament/ament_index jazzy
ament/ament_package jazzy
autowarefoundation/autoware_msgs 1.9.0
eclipse-cyclonedds/cyclonedds releases/0.10.x
osrf/osrf_pycommon master
ros2/ament_cmake_ros jazzy
ros2/common_interfaces jazzy
ros2/geometry2 jazzy
ros2/launch jazzy
ros2/launch_ros jazzy
ros2/libyaml_vendor jazzy
ros2/pybind11_vendor jazzy
ros2/python_cmake_module jazzy
ros2/rcl 9.2.0
ros2/rcl_interfaces jazzy
ros2/rcl_logging jazzy
ros2/rclpy jazzy
ros2/rcpputils jazzy
ros2/rcutils jazzy
ros2/rmw jazzy
ros2/rmw_cyclonedds jazzy
ros2/rmw_dds_common jazzy
ros2/rmw_implementation jazzy
ros2/ros2_tracing jazzy
ros2/ros2cli jazzy
ros2/rosidl jazzy
ros2/rosidl_core 0.2.0
ros2/rosidl_defaults jazzy
ros2/rosidl_dynamic_typesupport 0.1.2
ros2/rosidl_python jazzy
ros2/rosidl_runtime_py jazzy
ros2/rosidl_typesupport jazzy
ros2/rpyutils 0.4.1
ros2/unique_identifier_msgs jazzy
LIST

if [ ! -x "$out/venv/bin/colcon" ]; then
  "$python" -m venv "$out/venv"
  "$out/venv/bin/pip" install -q colcon-core colcon-cmake colcon-defaults colcon-library-path colcon-metadata \
    colcon-output colcon-package-information colcon-package-selection colcon-parallel-executor \
    colcon-python-setup-py colcon-recursive-crawl colcon-ros colcon-bash \
    'setuptools<70' 'empy<4' lark 'numpy<2' pyyaml packaging psutil argcomplete catkin_pkg vcstool 'pybind11==2.11.1' \
    importlib-metadata importlib-resources typing-extensions pillow
fi
# What the build's Python runs (`ros2 run`, launch files) also needs the library of PYTHON.
library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$library')" \
  >"$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vla_prune.pth"
touch "$out/venv/COLCON_IGNORE" "$out/src/rcl_logging/rcl_logging_spdlog/COLCON_IGNORE" \
  "$out/src/rcl_interfaces/test_msgs/COLCON_IGNORE" "$out/src/ros2cli/ros2lifecycle_test_fixtures/COLCON_IGNORE"
ln -sfn "$here/src" "$out/src/vla_prune"
# The generators name a middleware's type support that is left out here.
sed -i '/fastrtps/d' "$out"/src/rosidl_core/*/package.xml "$out"/src/rosidl_defaults/*/package.xml

cd "$out"
export PATH=$out/venv/bin:$PATH RCL_LOGGING_IMPLEMENTATION=rcl_logging_noop RMW_IMPLEMENTATION=rmw_cyclonedds_cpp
colcon build --merge-install --packages-up-to rclpy rmw_cyclonedds_cpp rcl_logging_noop launch_ros tf2_msgs \
  ros2launch ros2lifecycle ros2node ros2param ros2run ros2service ros2topic ros2interface \
  autoware_planning_msgs vla_prune_msgs vla_prune_ros vla_prune_sim_bridge vla_prune_bringup \
  --cmake-args -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release -DTRACETOOLS_DISABLED=ON \
  -DENABLE_SECURITY=NO -DENABLE_SSL=NO -DENABLE_SHM=NO -DBUILD_EXAMPLES=OFF -DBUILD_IDLC=NO -DBUILD_DDSPERF=NO \
  "-DPython3_EXECUTABLE=$out/venv/bin/python" "-Dpybind11_DIR=$("$out/venv/bin/pybind11-config" --cmakedir)"
