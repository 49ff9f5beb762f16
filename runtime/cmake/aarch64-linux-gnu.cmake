# Cross-builds for 64-bit Arm Linux, with the compiler that Debian and Ubuntu call
# g++-aarch64-linux-gnu: cmake -S runtime -B build/aarch64 --toolchain <this file>
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
