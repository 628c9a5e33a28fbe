// All kernel benchmarks of this folder: google-benchmark's command line, e.g.
//   kernel_bench --benchmark_filter='linear/int4.*rows:1/'
// "Library was built as DEBUG" is Debian's packaging of google-benchmark; what is measured is not touched by it.
#include <benchmark/benchmark.h>

#include <string>

#include "base/cpu.h"

int main(int argc, char** argv) {
  benchmark::AddCustomContext("isa", std::string(lfm::isa_name(lfm::active_isa())));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
