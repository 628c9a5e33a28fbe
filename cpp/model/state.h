// All that changes while a sequence is processed: its KV pages and its conv state.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "kernels/kv_page.h"
#include "model/config.h"

namespace lfm {

// Where things lie inside one KV page, which holds kPage tokens of every attention layer:
// [attention layer][kv head][K then V], each laid out as in kv_page.h.
struct StateLayout {
  StateLayout(const ModelConfig& config, KvType kv_type);

  KvType kv_type;
  int64_t head_dim, kv_heads, attention_layers;
  int64_t conv_layers, conv_past, hidden;  // conv state: [conv layer][conv_past = taps - 1][hidden] fp32
  size_t k_bytes, v_bytes, page_bytes;

  size_t k_offset(int64_t attention_layer, int64_t head) const {
    return static_cast<size_t>(attention_layer * kv_heads + head) * (k_bytes + v_bytes);
  }
  size_t v_offset(int64_t attention_layer, int64_t head) const { return k_offset(attention_layer, head) + k_bytes; }
};

// Copying is a snapshot: pages are shared and copied only when one of the owners writes to them. Assigning a snapshot
// back restores it. A copy costs the conv state (40 KiB in bf16 terms) plus one pointer per 64 tokens.
class SequenceState {
 public:
  explicit SequenceState(std::shared_ptr<const StateLayout> layout);

  const StateLayout& layout() const { return *layout_; }
  int64_t length() const { return length_; }  // tokens processed

  // Makes room for `tokens` more and un-shares the pages that they write to. Throws std::bad_alloc and changes nothing
  // visible then.
  void reserve(int64_t tokens);
  void advance(int64_t tokens) { length_ += tokens; }  // after the forward pass wrote them

  std::byte* page(int64_t i) { return pages_[static_cast<size_t>(i)]->data(); }
  const std::byte* page(int64_t i) const { return pages_[static_cast<size_t>(i)]->data(); }
  const std::byte* const* pages() const { return page_data_.data(); }  // [num_pages()], until the next reserve()
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }

  float* conv(int64_t conv_layer) { return conv_.data() + conv_layer * layout_->conv_past * layout_->hidden; }
  const float* conv(int64_t conv_layer) const {
    return conv_.data() + conv_layer * layout_->conv_past * layout_->hidden;
  }

  size_t nbytes() const;  // pages (shared ones too) and conv state

 private:
  using Page = Buffer<std::byte>;
  std::shared_ptr<const StateLayout> layout_;
  int64_t length_ = 0;
  std::vector<std::shared_ptr<Page>> pages_;
  std::vector<const std::byte*> page_data_;  // of pages_
  Buffer<float> conv_;
};

}  // namespace lfm
