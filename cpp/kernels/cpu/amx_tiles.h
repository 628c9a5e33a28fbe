// The tile registers of AMX. Included by amx.cc inside its namespace; hence no include guard and no namespace here.
// Instructions by asm: GCC 12's intrinsics do not tell the compiler that a tile load reads memory, and that ldtilecfg
// reads more than 8 bytes.

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The shape of tiles: register t has rows(t) rows of row_bytes(t) bytes, until the end of the scope.
class TileScope {
 public:
  template <class Rows, class RowBytes>
  TileScope(const Rows& rows, const RowBytes& row_bytes) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
      config.rows[t] = static_cast<uint8_t>(rows(t));
      config.row_bytes[t] = static_cast<uint16_t>(row_bytes(t));
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
  ~TileScope() { asm volatile("tilerelease"); }
};

using TileMemory = std::byte[16 * 64];

// Sixteen rows (or fewer, see TileScope), `stride` bytes apart.
template <int T>
inline void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
// To rows of 64 bytes, one after the other.
template <int T>
inline void tile_store(void* p) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
               : "=m"(*static_cast<TileMemory*>(p))
               : "r"(p), "r"(int64_t{64}), "i"(T));
}
// To rows `stride` bytes apart.
template <int T>
inline void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
// C += A B, pairs of bf16: for each 32 inputs, even and odd ones are summed from zero on, in order, with fp32 fma, and
// C = C + (even + odd). Subnormals are zeros.
template <int C, int A, int B>
inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// The same with bytes, four inputs each: int32 sums of signed products.
template <int C, int A, int B>
inline void tile_multiply_bytes() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

inline constexpr int64_t kTileLine = 64;                      // bytes of a row of a tile
inline constexpr int64_t kTileBytes = kTileRows * kTileLine;  // of a tile of 16 rows
inline constexpr int64_t kTileLanes = kTileRows * kPanel;     // sums of a tile
