// What this CPU can do, and how many of its cores this process may use.
#pragma once

#include <span>
#include <string_view>

namespace lfm {

// Each level includes the ones before it, but for avx2_vnni, which a CPU with the later ones may lack.
enum class Isa {
  reference,    // plain scalar C++
  avx2,         // AVX2, FMA, F16C
  avx2_vnni,    // and AVX-VNNI: dot products of bytes on CPUs without AVX-512
  avx512,       // AVX-512 F/BW/DQ/VL and VNNI
  avx512_bf16,  // and AVX-512 BF16
  amx,          // and AMX tiles for bf16 and int8
};

std::string_view isa_name(Isa isa);

// The levels that this CPU has, the best one last.
std::span<const Isa> supported_isas();

// The best level of this CPU.
Isa detected_isa();

// The level in use: detected_isa(), or the one that the environment variable LFM_ENGINE_ISA names.
// Read once. Throws std::invalid_argument for an unknown name or a level that this CPU lacks.
Isa active_isa();

// Physical cores this process may use: affinity mask, hyper-threads counted once, cgroup CPU quota
// (v1 and v2) rounded up. At least 1.
int usable_cores();

}  // namespace lfm
