// All that changes while a sequence is processed: its KV pages and its conv state.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "model/config.h"
#include "model/kv_pages.h"

namespace lfm {

// Where things lie in the KV pages, which hold kPage tokens of every attention layer: chunks [attention layer][kv head]
// [K then V], each laid out as in kv_page.h. All chunks have the size of V, the larger one.
struct StateLayout {
  StateLayout(const ModelConfig& config, KvType kv_type);

  KvType kv_type;
  int64_t vocab_size, head_dim, kv_heads, attention_layers;
  int64_t conv_layers, conv_past, hidden;  // conv state: [conv layer][conv_past = taps - 1][hidden] fp32
  int64_t conv_reach;                      // how many tokens back all convolutions together look: layers * past
  size_t chunk_bytes, page_bytes;
  std::vector<LayerType> layer_types;

  // Which of its kind the model's layer `layer` is. Throws std::invalid_argument when it is of the other kind.
  int64_t conv_layer(int64_t layer) const { return index_of(layer, LayerType::conv); }
  int64_t attention_layer(int64_t layer) const { return index_of(layer, LayerType::full_attention); }
  int64_t index_of(int64_t layer, LayerType type) const;

  size_t num_chunks() const { return static_cast<size_t>(2 * attention_layers * kv_heads); }
  size_t chunk_stride() const { return kSlabPages * chunk_bytes; }  // between the chunks of one page

  // From a page's first chunk.
  size_t k_offset(int64_t attention_layer, int64_t head) const {
    return static_cast<size_t>(attention_layer * kv_heads + head) * 2 * chunk_stride();
  }
  size_t v_offset(int64_t attention_layer, int64_t head) const {
    return k_offset(attention_layer, head) + chunk_stride();
  }
};

// The conv states after each of the latest tokens of a sequence, so that these tokens can be taken back for the price
// of a copy. Filled by a forward pass.
struct ConvHistory {
  int64_t begin = 0, count = 0;  // [i] is the state after the first begin + i + 1 tokens
  Buffer<float> conv;            // [count][conv layer][conv_past][hidden]
};

// Copying is a snapshot: pages and the conv state are shared. A page is copied when one of the owners writes to it; a
// shared conv state is never written to, since a pass makes a new one. Assigning a snapshot back restores it. A copy
// costs one pointer per 64 tokens.
//
// A state can go back to any of its tokens. K and V of those before are there; the conv state is not, since only the
// last one is kept. It is rebuilt by the next forward pass, which runs the last conv_reach tokens once more without
// writing their K and V: the first conv layer of that replay is right after conv_past tokens, the second after twice as
// many, and so on, and attention reads K and V of all tokens as they were. So a rewind costs no memory, and
// conv_reach (20 in LFM2-350M) more tokens in a pass that has to be made anyway.
class SequenceState {
 public:
  explicit SequenceState(std::shared_ptr<const StateLayout> layout);

  const StateLayout& layout() const { return *layout_; }
  int64_t length() const { return length_; }  // tokens processed
  int64_t replay() const { return replay_; }  // the last ones, which the next forward pass runs once more
  int32_t token(int64_t i) const { return pages_[static_cast<size_t>(i / kPage)]->tokens[i % kPage]; }
  int64_t common_prefix(std::span<const int32_t> tokens) const;  // how many of `tokens` this state begins with

  // Goes back to the first `length` tokens. Throws std::invalid_argument when it has fewer.
  void truncate(int64_t length);

  // The same without a replay, to a length that is in `recent`, which the last forward pass filled.
  void truncate(int64_t length, const ConvHistory& recent);

  // Makes this the state after all tokens of its pages and these, at most kPage, whose K and V are `kv`
  // [page_bytes]. Throws std::invalid_argument when the last page is not full, for wrong sizes, and for tokens outside
  // the vocabulary.
  void append_page(std::span<const int32_t> tokens, std::span<const std::byte> kv);

  // The same with the first `count` tokens of a page that others hold too.
  void append_page(std::shared_ptr<KvPage> page, int64_t count);

  // Makes room for `tokens` more and un-shares the pages that they write to. Throws std::bad_alloc and changes nothing
  // visible then.
  void reserve(int64_t tokens);
  // After the forward pass wrote their K and V, and the conv state after them to `conv`, which gets the one from before
  // in exchange. Ends a replay.
  void advance(std::span<const int32_t> tokens, std::shared_ptr<Buffer<float>>& conv);

  std::byte* page(int64_t i) { return pages_[static_cast<size_t>(i)]->kv(); }
  const std::byte* page(int64_t i) const { return std::as_const(*pages_[static_cast<size_t>(i)]).kv(); }
  // For others to hold: a page that is held twice is not written to.
  const std::shared_ptr<KvPage>& shared_page(int64_t i) const { return pages_[static_cast<size_t>(i)]; }
  const std::byte* const* pages() const { return page_data_.data(); }  // [num_pages()], until the next reserve()
  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }

  const float* conv(int64_t conv_layer) const {
    return conv_->data() + conv_layer * layout_->conv_past * layout_->hidden;
  }
  // For others to hold, like a page; all layers.
  std::shared_ptr<const Buffer<float>> shared_conv() const { return conv_; }

  size_t nbytes() const;         // pages (shared ones too) and conv state
  size_t shared_nbytes() const;  // pages that others hold too

 private:
  void add_page(std::shared_ptr<KvPage> page);
  // Beside pages_[index - 1], of a sequence that is going to have so many tokens.
  std::shared_ptr<KvPage> new_page(size_t index, int64_t length) const;
  void drop_tokens(int64_t length);
  std::shared_ptr<Buffer<float>> first_conv() const;  // zeros: what it is before the first token
  void replay_from_pages(std::shared_ptr<Buffer<float>> conv);

  std::shared_ptr<const StateLayout> layout_;
  int64_t length_ = 0, replay_ = 0;
  std::vector<std::shared_ptr<KvPage>> pages_;
  std::vector<const std::byte*> page_data_;  // of pages_
  std::shared_ptr<Buffer<float>> conv_;
};

}  // namespace lfm
