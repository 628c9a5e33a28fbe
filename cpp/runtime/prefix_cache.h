// What requests computed, for later ones that begin with the same tokens: a trie of KV pages, shared by reference.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "model/model.h"

namespace lfm {

// A node is a page, its path the tokens before. Reuse begins at any token: where a prompt leaves a page in its middle,
// its state shares the page up to there (it is copied when the request writes on), and the conv state is rebuilt as
// after SequenceState::truncate. Pages that were not used for longest go first, those at the ends of paths before those
// that others follow. Safe to use from several threads.
class PrefixCache {
  template <class Body>
  auto locked(const Body& body) const {
    const std::lock_guard lock(mutex_);
    return body();
  }

 public:
  // max_bytes: of pages held, whether others hold them too or not; 0: nothing is kept.
  PrefixCache(std::shared_ptr<const Model> model, size_t max_bytes);

  // How many of `tokens` are cached.
  int64_t match(std::span<const int32_t> tokens);

  // The state after as many of `tokens` as are cached, maybe none.
  SequenceState find(std::span<const int32_t> tokens);

  // Keeps the pages of `state`, of the same model, by reference.
  void insert(const SequenceState& state);

  void clear();
  void set_max_bytes(size_t max_bytes);
  size_t max_bytes() const {
    return locked([&] { return max_bytes_; });
  }
  size_t nbytes() const {
    return locked([&] { return recent_.size() * node_bytes_; });
  }
  int64_t reused_tokens() const {
    return locked([&] { return reused_tokens_; });
  }  // what find() gave, in all
  const StateLayout& layout() const { return empty_.layout(); }

 private:
  using Key = std::span<const int32_t>;
  struct Less {
    bool operator()(Key a, Key b) const;
  };
  struct Node {
    Node* parent = nullptr;
    std::shared_ptr<KvPage> page;
    Key tokens;  // of the page: kPage, or fewer in a leaf
    std::map<Key, std::unique_ptr<Node>, Less> children;
    std::list<Node*>::iterator recent;
  };

  int64_t walk(Key tokens, const std::function<void(Node&, int64_t)>& visit);
  void touch(Node* node);
  void remove(Node& node);
  void shrink(size_t max_bytes);

  std::shared_ptr<const Model> model_;
  const SequenceState empty_;
  const size_t node_bytes_;
  size_t max_bytes_;
  int64_t reused_tokens_ = 0;
  Node root_;
  std::list<Node*> recent_;  // used last at the front; a node is before those that follow it in the trie
  mutable std::mutex mutex_;
};

}  // namespace lfm
