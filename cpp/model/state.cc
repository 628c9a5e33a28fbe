#include "model/state.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/error.h"

namespace lfm {

StateLayout::StateLayout(const ModelConfig& config, KvType kv)
    : kv_type(kv),
      vocab_size(config.vocab_size),
      head_dim(config.head_dim),
      kv_heads(config.num_key_value_heads),
      attention_layers(config.num_layers_of(LayerType::full_attention)),
      conv_layers(config.num_layers_of(LayerType::conv)),
      conv_past(config.conv_L_cache - 1),
      hidden(config.hidden_size),
      conv_reach(conv_layers * conv_past),
      chunk_bytes(static_cast<size_t>(kv_bytes(kv, v_elements(config.head_dim)))),
      page_bytes(num_chunks() * chunk_bytes),
      layer_types(config.layer_types) {}

int64_t StateLayout::index_of(int64_t layer, LayerType type) const {
  const auto layers = static_cast<int64_t>(layer_types.size());
  check(layer >= 0 && layer < layers, "layer must be between 0 and ", layers - 1, ", not ", layer);
  const auto at = layer_types.begin() + layer;
  check(*at == type, "layer ", layer,
        *at == LayerType::conv ? " is a convolution: it has no K and V" : " is attention: it has no conv state");
  return std::count(layer_types.begin(), at, type);
}

SequenceState::SequenceState(std::shared_ptr<const StateLayout> layout)
    : layout_(std::move(layout)), conv_(first_conv()) {}

void SequenceState::add_page(std::shared_ptr<KvPage> page) {
  page_data_.resize(pages_.size() + 1);
  pages_.push_back(std::move(page));
  page_data_.back() = pages_.back()->kv();
}

std::shared_ptr<KvPage> SequenceState::new_page(size_t index, int64_t length) const {
  const KvPage* before = index > 0 ? pages_[index - 1].get() : nullptr;
  // A slab in huge pages takes all its memory at once: worth it where half of it is filled now, or where a sequence
  // that filled slabs before goes on, so that memory at most doubles. Forks and what follows a shared prefix begin in
  // the middle of a slab. (To move to huge pages later takes as long as dozens of steps gain.)
  const auto at = static_cast<int64_t>(index), slot = at % kSlabPages;
  const bool fills = std::min(length, (at - slot) * kPage + kAttentionBlock) - at * kPage >= kAttentionBlock / 2;
  const HugePages huge = fills || (at > 0 && slot == 0) ? HugePages::yes : HugePages::no;
  return KvPage::create(at, before, layout_->num_chunks(), layout_->chunk_bytes, huge);
}

void SequenceState::reserve(int64_t tokens) {
  if (tokens <= 0) return;
  const int64_t length = length_ + tokens;
  const auto needed = static_cast<size_t>((length + kPage - 1) / kPage);
  const auto first_written = static_cast<size_t>(length_ / kPage);
  for (size_t i = first_written; i < pages_.size() && i < needed; ++i) {
    if (pages_[i].use_count() > 1) {
      auto copy = new_page(i, length);
      copy->copy_from(*pages_[i]);
      pages_[i] = std::move(copy);
    }
    page_data_[i] = pages_[i]->kv();
  }
  // Another thread may have been the last to let go of them, after reading it.
  std::atomic_thread_fence(std::memory_order_acquire);
  while (pages_.size() < needed) add_page(new_page(pages_.size(), length));
}

void SequenceState::advance(std::span<const int32_t> tokens, std::shared_ptr<Buffer<float>>& conv) {
  for (const int32_t token : tokens) {
    KvPage& page = *pages_[static_cast<size_t>(length_ / kPage)];
    page.tokens[length_++ % kPage] = token;
  }
  conv_.swap(conv);
  replay_ = 0;
}

int64_t SequenceState::common_prefix(std::span<const int32_t> tokens) const {
  const int64_t most = std::min(length_, static_cast<int64_t>(tokens.size()));
  int64_t i = 0;
  while (i < most && token(i) == tokens[static_cast<size_t>(i)]) ++i;
  return i;
}

std::shared_ptr<Buffer<float>> SequenceState::first_conv() const {
  return std::make_shared<Buffer<float>>(
      static_cast<size_t>(layout_->conv_layers * layout_->conv_past * layout_->hidden));
}

void SequenceState::replay_from_pages(std::shared_ptr<Buffer<float>> conv) {
  replay_ = std::min(length_, layout_->conv_reach);
  conv_ = std::move(conv);
}

void SequenceState::drop_tokens(int64_t length) {
  length_ = length;
  const auto needed = static_cast<size_t>((length + kPage - 1) / kPage);
  pages_.resize(needed);
  page_data_.resize(needed);
}

void SequenceState::truncate(int64_t length) {
  check(length >= 0 && length <= length_, "length must be between 0 and ", length_, ", not ", length);
  if (length == length_) return;
  auto conv = first_conv();
  drop_tokens(length);
  replay_from_pages(std::move(conv));
}

void SequenceState::truncate(int64_t length, const ConvHistory& recent) {
  check(recent.begin + recent.count == length_ && length > recent.begin && length <= length_,
        "the history does not have the conv state after ", length, " tokens");
  if (length == length_) return;
  auto conv = conv_.use_count() > 1 ? first_conv() : conv_;
  const float* after = recent.conv.data() + static_cast<size_t>(length - recent.begin - 1) * conv->size();
  std::copy_n(after, conv->size(), conv->data());
  drop_tokens(length);
  conv_ = std::move(conv);
}

void SequenceState::append_page(std::span<const int32_t> tokens, std::span<const std::byte> kv) {
  check(length_ % kPage == 0, "the last page of the state is not full");
  check(!tokens.empty() && tokens.size() <= kPage, "a page holds 1 to ", kPage, " tokens, not ", tokens.size());
  check(kv.size() == layout_->page_bytes, "a page has ", layout_->page_bytes, " bytes of K and V, not ", kv.size());
  for (const int32_t token : tokens) {
    check(token >= 0 && token < layout_->vocab_size, "tokens holds ", token, ", outside the vocabulary of ",
          layout_->vocab_size);
  }
  auto page = new_page(static_cast<size_t>(length_ / kPage), length_ + kPage);
  std::copy(tokens.begin(), tokens.end(), page->tokens.begin());
  page->write(kv.data());
  append_page(std::move(page), static_cast<int64_t>(tokens.size()));
}

void SequenceState::append_page(std::shared_ptr<KvPage> page, int64_t count) {
  check(length_ % kPage == 0, "the last page of the state is not full");
  check(page->slot() == length_ / kPage % kSlabPages, "the page is of another place in a sequence");
  auto conv = first_conv();
  // Room that was reserved beyond the last token.
  pages_.resize(static_cast<size_t>(length_ / kPage));
  page_data_.resize(pages_.size());
  add_page(std::move(page));
  length_ += count;
  replay_from_pages(std::move(conv));
}

size_t SequenceState::nbytes() const { return pages_.size() * layout_->page_bytes + conv_->bytes(); }

size_t SequenceState::shared_nbytes() const {
  const auto shared =
      std::count_if(pages_.begin(), pages_.end(), [](const auto& page) { return page.use_count() > 1; });
  return static_cast<size_t>(shared) * layout_->page_bytes;
}

}  // namespace lfm
