// The CPU quota of the process's control groups.
#pragma once

#include <string>

namespace higgs_native::cpu {

// The CPUs that the process may keep busy, rounded up; 0 if no group limits them. `root` stands before /proc and /sys.
int cpu_quota(const std::string& root = "");

}  // namespace higgs_native::cpu
