#include "runtime/prompt_lookup.h"

#include <algorithm>
#include <cmath>

namespace lfm {
namespace {

constexpr int64_t kLongest = 16;     // a longer repetition is not better than this
constexpr double kWorthwhile = 0.3;  // the chance that a drafted token must have: verifying it is not free
constexpr double kFade = 0.85;

}  // namespace

// The last token of a draft comes if those before it do.
int64_t PromptLookup::length() const {
  const double chance = came_ / drafted_;
  const double length = chance >= 1 ? static_cast<double>(most_) : std::log(kWorthwhile) / std::log(chance);
  return std::clamp<int64_t>(static_cast<int64_t>(length), std::min<int64_t>(1, most_), most_);
}

std::vector<int32_t> PromptLookup::draft(std::span<const int32_t> text, int64_t limit) const {
  limit = std::min(limit, length());
  std::vector<int32_t> tokens;
  if (limit <= 0 || text.empty()) return tokens;
  const auto size = static_cast<int64_t>(text.size());
  const auto at = [&](int64_t i) { return text[static_cast<size_t>(i)]; };
  int64_t longest = needed_ - 1, found = -1;
  for (int64_t end = size - 1; end > longest && longest < kLongest; --end) {
    int64_t same = 0;
    while (same < std::min(end, kLongest) && at(end - 1 - same) == at(size - 1 - same)) ++same;
    if (same > longest) longest = same, found = end;
  }
  if (found < 0) return tokens;
  for (int64_t i = found; i < found + limit; ++i) {
    // A repetition that reaches the end of the text goes on with itself.
    tokens.push_back(i < size ? at(i) : tokens[static_cast<size_t>(i - size)]);
  }
  return tokens;
}

void PromptLookup::verified(int64_t drafted, int64_t accepted) {
  came_ = kFade * came_ + static_cast<double>(accepted);
  drafted_ = kFade * drafted_ + static_cast<double>(std::min(accepted + 1, drafted));
  needed_ = accepted > 0 ? std::max<int64_t>(2, needed_ / 2) : std::min(needed_ + 1, kLongest);
}

}  // namespace lfm
