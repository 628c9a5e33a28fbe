// Loops over whole vectors and a tail, for any `Vec`. Included like simd_kernels.h.

// Calls body(i, n): whole vectors with n = kWidth, then the tail.
template <class Body>
inline void for_lanes(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + Vec::kWidth <= end; i += Vec::kWidth) body(i, Vec::kWidth);
  if (i < end) body(i, end - i);
}
inline Vec load_n(const float* p, int64_t n) { return n == Vec::kWidth ? Vec::load(p) : Vec::load(p, n); }
inline void store_n(Vec v, float* p, int64_t n) {
  if (n == Vec::kWidth) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

// body(integral_constant i) for i < N, inlined: arrays stay in registers where each index is a constant.
template <int64_t N, class Body>
[[gnu::always_inline]] inline void for_constants(const Body& body) {
  [&]<int64_t... I>(std::integer_sequence<int64_t, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int64_t, I>{}), ...);
  }(std::make_integer_sequence<int64_t, N>{});
}

inline constexpr int64_t kLine = 64;  // bytes of a cache line

inline void prefetch_write(const void* p) { __builtin_prefetch(p, 1); }

// Lines to ask for while others are computed with: `step` bytes at each turn. kLocality as of __builtin_prefetch: 2 is
// into the L2 cache.
struct Ahead {
  const char* next;
  int64_t step;

  template <int kLocality>
  void turn() {
    for (const char* end = next + step; next < end; next += kLine) __builtin_prefetch(next, 0, kLocality);
  }
};
