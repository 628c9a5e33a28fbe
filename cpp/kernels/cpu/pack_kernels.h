// Float weights to int8, int4 and 6-bit panels, written once over `Vec` and `IntVec`; lanes are rows. Included like
// panel_kernels.h. All operations are exact or rounded once, in the order of reference.cc: the bits are the same on
// every ISA.

// Group g of 16 rows as columns: value i of row r at out[i * kPanel + r].
inline void transpose_group(const float* x, int64_t ldx, int64_t g, float* out) {
  for (int64_t r = 0; r < kPanel; ++r) {
    const float* row = x + r * ldx + g * kGroup;
    for (int64_t i = 0; i < kGroup; ++i) out[i * kPanel + r] = row[i];
  }
}

inline Vec column(const float* columns, int64_t i) { return Vec::load(columns + i * kPanel); }

inline Vec largest_magnitude(const float* columns, int64_t n) {
  Vec top = Vec::zero();
  for (int64_t i = 0; i < n; ++i) {
    const Vec v = column(columns, i);
    top = Vec::max(top, Vec::max(v, Vec::zero() - v));
  }
  return top;
}

inline Vec clamped_round(Vec v, float low, float high) {
  return Vec::min(Vec::max(Vec::round(v), Vec::set(low)), Vec::set(high));
}

// 1 / v, or 0 where that might be infinite.
inline Vec inverse_or_zero(Vec v) {
  const Vec zero = Vec::zero(), inverse = Vec::set(1.0f) / v;
  return Vec::select_gt(Vec::max(v, zero - v), Vec::set(kSmallestQ8Max), inverse, zero);
}

// Rounds `scale` to fp16, writes it, and returns what was written.
inline Vec write_scale(Vec scale, uint16_t* out) {
  scale.store_f16(out);
  return Vec::load_f16(out);
}

// Four integers as the bytes of a lane, kShift bits higher.
template <int kShift>
inline IntVec bytes_of(const Vec* q) {
  return (IntVec::of(q[0]) | IntVec::of(q[1]).shifted<8>() | IntVec::of(q[2]).shifted<16>() |
          IntVec::of(q[3]).shifted<24>())
      .shifted<kShift>();
}

void pack_q8(const float* x, int64_t ldx, int64_t groups, uint8_t* values, uint16_t* scales) noexcept {
  alignas(64) float columns[kGroup * kPanel];
  for (int64_t g = 0; g < groups; ++g) {
    transpose_group(x, ldx, g, columns);
    for (int64_t lane = 0; lane < kPanel; lane += Vec::kWidth) {
      const float* c = columns + lane;
      const Vec top = largest_magnitude(c, kGroup), inverse_top = inverse_or_zero(top);
      Vec least = Vec::set(std::numeric_limits<float>::max()), scale = Vec::zero();
      for (int step = 0; step < kQ8Candidates; ++step) {
        const Vec k = Vec::set(q8_candidate(step)), own = Vec::set(1.0f / q8_candidate(step));
        Vec error = Vec::zero();
        for (int64_t i = 0; i < kGroup; ++i) {
          const Vec y = column(c, i) * inverse_top, off = y - Vec::round(y * k) * own;
          error = Vec::fma(off, off, error);
        }
        scale = Vec::select_gt(least, error, own, scale);
        least = Vec::min(least, error);
      }
      const Vec inverse = inverse_or_zero(write_scale(scale * top, scales + g * kPanel + lane));
      for (int64_t j = 0; j < kGroup / 4; ++j) {
        Vec q[4];
        for (int64_t i = 0; i < 4; ++i) {
          q[i] = clamped_round(column(c, 4 * j + i) * inverse, -127.0f, 127.0f) + Vec::set(128.0f);
        }
        bytes_of<0>(q).store(values + ((g * kGroup / 4 + j) * kPanel + lane) * 4);
      }
    }
  }
}

// The scale of least squared error of N values to integers from -limit to limit - 1, weighted, in units of `top`.
template <int64_t N>
inline Vec best_scale(const float* c, Vec top, const float* weight, float limit, int candidates,
                      float (*candidate)(int)) {
  const Vec inverse_top = inverse_or_zero(top);
  Vec y[N], weighted[N];
  for (int64_t i = 0; i < N; ++i) {
    y[i] = column(c, i) * inverse_top;
    weighted[i] = Vec::set(weight[i]) * y[i];
  }
  // The integers of a candidate have their own best scale, yq / qq; it lowers the squared error by yq^2 / qq.
  Vec best = Vec::zero(), scale = Vec::zero();
  const auto consider = [&](Vec inverse) {
    Vec yq = Vec::zero(), qq = Vec::zero();
    for (int64_t i = 0; i < N; ++i) {
      const Vec q = clamped_round(y[i] * inverse, -limit, limit - 1.0f);
      yq = Vec::fma(weighted[i], q, yq);
      qq = Vec::fma(Vec::set(weight[i]) * q, q, qq);
    }
    const Vec own = yq / qq, gain = yq * own;
    scale = Vec::select_gt(gain, best, own, scale);
    best = Vec::select_gt(gain, best, gain, best);
  };
  for (int step = 0; step < candidates; ++step) {
    consider(Vec::set(candidate(step)));
    consider(Vec::set(-candidate(step)));
  }
  consider(inverse_or_zero(scale));
  return scale;
}

void pack_q4(const float* x, int64_t ldx, int64_t groups, const float* importance, uint8_t* values,
             uint16_t* scales) noexcept {
  alignas(64) float columns[kGroup * kPanel];
  for (int64_t g = 0; g < groups; ++g) {
    transpose_group(x, ldx, g, columns);
    for (int64_t lane = 0; lane < kPanel; lane += Vec::kWidth) {
      const float* c = columns + lane;
      const Vec top = largest_magnitude(c, kGroup);
      const Vec scale = best_scale<kGroup>(c, top, importance + g * kGroup, 8.0f, kQ4Candidates, q4_candidate);
      const Vec inverse = inverse_or_zero(write_scale(scale * top, scales + g * kPanel + lane));
      for (int64_t j = 0; j < kGroup / 8; ++j) {
        Vec q[8];
        for (int64_t i = 0; i < 8; ++i) {
          q[i] = clamped_round(column(c, 8 * j + i) * inverse, -8.0f, 7.0f) + Vec::set(8.0f);
        }
        (bytes_of<0>(q) | bytes_of<4>(q + 4)).store(values + ((g * kGroup / 8 + j) * kPanel + lane) * 4);
      }
    }
  }
}

// Half a group as integers; columns as of transpose_group.
inline void store_q6(const float* columns, Vec inverse, uint8_t* values) {
  Vec q[16];
  for (int64_t i = 0; i < 16; ++i) {
    q[i] = clamped_round(column(columns, i) * inverse, -32.0f, 31.0f) + Vec::set(32.0f);
  }
  const IntVec last = bytes_of<0>(q + 12);
  // The bits that go to the top: from 5, 3 and 1 of the last four inputs.
  const IntVec high[] = {last.shifted<2>(), last.shifted<4>(), last.shifted<6>()};
  for (int64_t j = 0; j < 3; ++j) {
    (bytes_of<0>(q + 4 * j) | (high[j] & IntVec::set(static_cast<int32_t>(0xc0c0c0c0u))))
        .store(values + j * kPanel * 4);
  }
}

void pack_q6(const float* x, int64_t ldx, int64_t groups, const float* importance, uint8_t* values, int8_t* steps,
             uint16_t* scales) noexcept {
  constexpr int64_t kHalf = kGroup / 2, kHalves = kSuperGroups * 2;
  alignas(64) float columns[kSuperGroups * kGroup * kPanel];
  for (int64_t first = 0; first < groups * 2; first += kHalves) {
    const int64_t count = std::min(kHalves, groups * 2 - first);
    for (int64_t g = 0; g < count / 2; ++g) transpose_group(x, ldx, first / 2 + g, columns + g * kGroup * kPanel);
    for (int64_t lane = 0; lane < kPanel; lane += Vec::kWidth) {
      Vec own[kHalves], most = Vec::zero();
      for (int64_t h = 0; h < count; ++h) {
        const float* c = columns + h * kHalf * kPanel + lane;
        const Vec top = largest_magnitude(c, kHalf);
        own[h] = best_scale<kHalf>(c, top, importance + (first + h) * kHalf, 32.0f, kQ6Candidates, q6_candidate) * top;
        most = Vec::max(most, Vec::max(own[h], Vec::zero() - own[h]));
      }
      const Vec scale = write_scale(most / Vec::set(127.0f), scales + first / kHalves * kPanel + lane);
      const Vec inverse = inverse_or_zero(scale);
      for (int64_t h = 0; h < count; ++h) {
        const int64_t half = first + h;
        const Vec step = clamped_round(own[h] * inverse, -127.0f, 127.0f);
        IntVec::of(step).store_i8(steps + half * kPanel + lane);
        store_q6(columns + h * kHalf * kPanel + lane, inverse_or_zero(scale * step),
                 values + (half * 3 * kPanel + lane) * 4);
      }
    }
  }
}
