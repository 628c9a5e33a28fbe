#include "base/cpu.h"

#include <sched.h>
#include <unistd.h>

#include <sys/syscall.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace lfm {
namespace {

constexpr std::pair<Isa, std::string_view> kNames[] = {{Isa::reference, "reference"},     {Isa::avx2, "avx2"},
                                                       {Isa::avx2_vnni, "avx2_vnni"},     {Isa::avx512, "avx512"},
                                                       {Isa::avx512_bf16, "avx512_bf16"}, {Isa::amx, "amx"}};

// Linux hands out AMX tile state per process on request (arch_prctl); oneDNN asks again, harmlessly.
bool amx_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has(Isa isa) {
  switch (isa) {
    case Isa::reference: return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx2_vnni: return has(Isa::avx2) && __builtin_cpu_supports("avxvnni");
    case Isa::avx512:
      return has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16: return has(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return has(Isa::avx512_bf16) && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
             amx_permitted();
  }
  return false;
}

std::string names(std::span<const Isa> isas) {
  std::string all;
  for (const Isa isa : isas) all += (all.empty() ? "" : ", ") + std::string(isa_name(isa));
  return all;
}

Isa choose() {
  const char* forced = std::getenv("LFM_ENGINE_ISA");
  if (forced == nullptr || *forced == '\0') return detected_isa();
  for (const auto& [isa, name] : kNames) {
    if (name != forced) continue;
    const auto has = supported_isas();
    check(std::find(has.begin(), has.end(), isa) != has.end(), "LFM_ENGINE_ISA=", forced,
          " is not available: this CPU has ", names(has));
    return isa;
  }
  throw std::invalid_argument(
      concat("LFM_ENGINE_ISA=", forced, " is unknown; use reference, avx2, avx2_vnni, avx512, avx512_bf16 or amx"));
}

int physical_cores_in_affinity() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) {
    return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  }
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string base = concat("/sys/devices/system/cpu/cpu", cpu, "/topology/");
    std::string siblings;
    std::ifstream(base + "thread_siblings_list") >> siblings;
    cores.insert(siblings.empty() ? concat("cpu", cpu) : siblings);
  }
  return std::max<int>(1, static_cast<int>(cores.size()));
}

// CPUs granted by the cgroup quota of this process, or 0 when there is none.
double cgroup_cpus() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  double limit = 0;
  const auto apply = [&limit](double quota, double period) {
    if (quota > 0 && period > 0) limit = limit == 0 ? quota / period : std::min(limit, quota / period);
  };
  while (std::getline(groups, line)) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers.find("cpu") == std::string::npos) continue;
    // A quota of any ancestor binds too.
    for (;; path = path.substr(0, path.rfind('/'))) {
      if (v2) {
        std::ifstream file("/sys/fs/cgroup" + path + "/cpu.max");
        std::string quota;
        double period = 0;
        if (file >> quota >> period && quota != "max") apply(std::atof(quota.c_str()), period);
      } else {
        double quota = 0, period = 0;
        std::ifstream("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us") >> quota;
        std::ifstream("/sys/fs/cgroup/cpu" + path + "/cpu.cfs_period_us") >> period;
        apply(quota, period);
      }
      if (path.empty() || path.find('/') == std::string::npos) break;
    }
  }
  return limit;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  for (const auto& [value, name] : kNames) {
    if (value == isa) return name;
  }
  return "?";
}

std::span<const Isa> supported_isas() {
  static const std::vector<Isa> isas = [] {
    __builtin_cpu_init();
    std::vector<Isa> found;
    for (const auto& [isa, name] : kNames) {
      if (has(isa)) found.push_back(isa);
    }
    return found;
  }();
  return isas;
}

Isa detected_isa() { return supported_isas().back(); }

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

int usable_cores() {
  const int cores = physical_cores_in_affinity();
  const double quota = cgroup_cpus();
  return quota > 0 ? std::max(1, std::min(cores, static_cast<int>(std::ceil(quota)))) : cores;
}

}  // namespace lfm
