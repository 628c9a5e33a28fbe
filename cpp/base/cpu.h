// What this CPU can do, and how many of its cores this process may use.
#pragma once

#include <string_view>

namespace lfm {

// Each level includes the ones before it.
enum class Isa {
  reference,    // plain scalar C++
  avx2,         // AVX2, FMA, F16C
  avx512,       // AVX-512 F/BW/DQ/VL and VNNI
  avx512_bf16,  // and AVX-512 BF16
  amx,          // and AMX tiles for bf16 and int8 (through oneDNN)
};

std::string_view isa_name(Isa isa);

// The best level of this CPU.
Isa detected_isa();

// The level in use: detected_isa(), or the lower one that the environment variable LFM_ENGINE_ISA names.
// Read once. Throws std::invalid_argument for an unknown name or a level that this CPU lacks.
Isa active_isa();

// Physical cores this process may use: affinity mask, hyper-threads counted once, cgroup CPU quota
// (v1 and v2) rounded up. At least 1.
int usable_cores();

}  // namespace lfm
