#include "runtime/prefix_cache.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lfm {
namespace {

size_t common(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

}  // namespace

bool PrefixCache::Less::operator()(Key a, Key b) const {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

PrefixCache::PrefixCache(std::shared_ptr<const Model> model, size_t max_bytes)
    : model_(std::move(model)),
      empty_(model_->new_state()),
      node_bytes_(empty_.layout().page_bytes + sizeof(KvPage) + sizeof(Node)),
      max_bytes_(max_bytes) {}

// Visits the pages along the longest path that `tokens` has, with how many of each page's tokens it has.
int64_t PrefixCache::walk(Key tokens, const std::function<void(Node&, int64_t)>& visit) {
  Node* node = &root_;
  int64_t length = 0;
  while (true) {
    // In lexicographic order the longest common prefix is with a neighbour.
    const Key rest = tokens.subspan(static_cast<size_t>(length));
    const Key query = rest.first(std::min<size_t>(kPage, rest.size()));
    const auto after = node->children.lower_bound(query);
    Node* best = nullptr;
    size_t count = 0;
    const auto consider = [&](Node* child) {
      const size_t found = common(child->tokens, query);
      if (found > count) best = child, count = found;
    };
    if (after != node->children.end()) consider(after->second.get());
    if (after != node->children.begin()) consider(std::prev(after)->second.get());
    if (best != nullptr) visit(*best, static_cast<int64_t>(count));
    length += static_cast<int64_t>(count);
    if (count < kPage) return length;
    node = best;
  }
}

void PrefixCache::touch(Node* node) {
  for (; node != &root_; node = node->parent) recent_.splice(recent_.begin(), recent_, node->recent);
}

void PrefixCache::remove(Node& node) {
  recent_.erase(node.recent);
  node.parent->children.erase(node.tokens);
}

void PrefixCache::shrink(size_t max_bytes) {
  while (recent_.size() * node_bytes_ > max_bytes) remove(*recent_.back());
}

int64_t PrefixCache::match(std::span<const int32_t> tokens) {
  const std::lock_guard lock(mutex_);
  return walk(tokens, [](Node&, int64_t) {});
}

SequenceState PrefixCache::find(std::span<const int32_t> tokens) {
  SequenceState state = empty_;
  const std::lock_guard lock(mutex_);
  Node* last = &root_;
  reused_tokens_ += walk(tokens, [&](Node& node, int64_t count) {
    state.append_page(node.page, count);
    last = &node;
  });
  touch(last);
  return state;
}

void PrefixCache::insert(const SequenceState& state) {
  check(&state.layout() == &layout(), "the state belongs to another model");
  const std::lock_guard lock(mutex_);
  if (max_bytes_ == 0) return;
  Node* node = &root_;
  for (int64_t i = 0; i * kPage < state.length(); ++i) {
    const std::shared_ptr<KvPage>& page = state.shared_page(i);
    const auto count = static_cast<size_t>(std::min(kPage, state.length() - i * kPage));
    const Key tokens(page->tokens.data(), count);
    const auto after = node->children.lower_bound(tokens);
    if (after != node->children.end() && common(after->first, tokens) == count) {
      node = after->second.get();  // the same tokens, or more: nothing new
      continue;
    }
    if (after != node->children.begin()) {
      Node& before = *std::prev(after)->second;
      if (common(before.tokens, tokens) == before.tokens.size()) remove(before);  // a leaf with fewer tokens
    }
    auto added = std::make_unique<Node>();
    added->parent = node;
    added->page = page;
    added->tokens = tokens;
    std::list<Node*> entry = {added.get()};  // what can throw comes first
    added->recent = entry.begin();
    node = node->children.emplace(tokens, std::move(added)).first->second.get();
    recent_.splice(recent_.begin(), entry);
  }
  touch(node);
  shrink(max_bytes_);
}

void PrefixCache::clear() {
  const std::lock_guard lock(mutex_);
  shrink(0);
}

void PrefixCache::set_max_bytes(size_t max_bytes) {
  const std::lock_guard lock(mutex_);
  max_bytes_ = max_bytes;
  shrink(max_bytes);
}

}  // namespace lfm
