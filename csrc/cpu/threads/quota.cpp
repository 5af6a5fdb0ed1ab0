// Control groups limit CPU time by a quota of microseconds in each period. A container with a quota sees all cores of its
// machine; threads beyond the quota would use it up early in the period, and all of them then wait for the next one.
//
// /proc/self/cgroup has a line `id:controllers:path` per hierarchy; a group's limit counts for the groups below it.
#include "cpu/threads/quota.h"

#include <fstream>
#include <sstream>

namespace higgs_native::cpu {

namespace {

// Takes the quota of a group into `lowest`, rounded up to whole CPUs.
void take(double quota, double period, int& lowest) {
  if (!(quota > 0) || !(period > 0) || quota / period > 1 << 20) return;
  const double cpus = quota / period;
  const int whole = static_cast<int>(cpus) + (cpus > static_cast<int>(cpus));
  if (lowest == 0 || whole < lowest) lowest = whole;
}

// "max" or a missing file is no number, so the quota stays 0.
double read_number(const std::string& path) {
  double number = 0;
  std::ifstream(path) >> number;
  return number;
}

// Version 2: one file with the quota and the period.
void take_unified(const std::string& folder, int& lowest) {
  double quota = 0, period = 0;
  std::ifstream(folder + "/cpu.max") >> quota >> period;
  take(quota, period, lowest);
}

// Version 1: a file each; a quota of -1 is none.
void take_cpu_controller(const std::string& folder, int& lowest) {
  take(read_number(folder + "/cpu.cfs_quota_us"), read_number(folder + "/cpu.cfs_period_us"), lowest);
}

}  // namespace

int cpu_quota(const std::string& root) {
  int lowest = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    std::istringstream fields(line);
    std::string id, controllers, path;
    if (!std::getline(fields, id, ':') || !std::getline(fields, controllers, ':') || !std::getline(fields, path)) {
      continue;
    }
    const bool unified = id == "0" && controllers.empty();
    if (!unified && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    // Inside a container the groups above its own are not mounted, and its own may be mounted at the root.
    for (;;) {
      if (unified) {
        take_unified(root + "/sys/fs/cgroup" + path, lowest);
      } else {
        take_cpu_controller(root + "/sys/fs/cgroup/cpu" + path, lowest);
      }
      const size_t slash = path.find_last_of('/');
      if (path == "/" || slash == std::string::npos) break;
      path.erase(slash);
    }
  }
  return lowest;
}

}  // namespace higgs_native::cpu
