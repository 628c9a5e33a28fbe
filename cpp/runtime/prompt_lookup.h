// Drafts for speculation: text often repeats itself, so what followed earlier may follow again (prompt lookup).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lfm {

// Of one request. How long drafts are, and how long a repetition must be to believe in it, follows from what became of
// the drafts before: a text that does not repeat itself soon costs nothing.
class PromptLookup {
 public:
  // most: tokens of a draft; 0: there are never any.
  explicit PromptLookup(int64_t most) : most_(most) {}

  // What followed where `text` had its latest tokens before (the longest such place, the last one of several); at most
  // `limit` tokens, maybe none.
  std::vector<int32_t> draft(std::span<const int32_t> text, int64_t limit) const;

  // `accepted` of the `drafted` tokens came.
  void verified(int64_t drafted, int64_t accepted);

 private:
  int64_t length() const;  // of the next draft at most

  int64_t most_;
  int64_t needed_ = 2;               // tokens that must repeat
  double came_ = 3.2, drafted_ = 4;  // drafted tokens that came, and all up to the first that did not; old ones fade
};

}  // namespace lfm
