#include "model/state.h"

#include <algorithm>
#include <atomic>
#include <cstring>
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
      k_bytes(static_cast<size_t>(kv_bytes(kv, k_elements(config.head_dim)))),
      v_bytes(static_cast<size_t>(kv_bytes(kv, v_elements(config.head_dim)))),
      page_bytes(static_cast<size_t>(attention_layers * kv_heads) * (k_bytes + v_bytes)) {}

SequenceState::SequenceState(std::shared_ptr<const StateLayout> layout)
    : layout_(std::move(layout)),
      conv_(static_cast<size_t>(layout_->conv_layers * layout_->conv_past * layout_->hidden)) {}

void SequenceState::add_page(std::shared_ptr<KvPage> page) {
  page_data_.resize(pages_.size() + 1);
  pages_.push_back(std::move(page));
  page_data_.back() = pages_.back()->kv.data();
}

void SequenceState::reserve(int64_t tokens) {
  if (tokens <= 0) return;
  const auto needed = static_cast<size_t>((length_ + tokens + kPage - 1) / kPage);
  const auto first_written = static_cast<size_t>(length_ / kPage);
  for (size_t i = first_written; i < pages_.size() && i < needed; ++i) {
    if (pages_[i].use_count() > 1) pages_[i] = std::make_shared<KvPage>(*pages_[i]);
    page_data_[i] = pages_[i]->kv.data();
  }
  // Another thread may have been the last to let go of a page, after reading it.
  std::atomic_thread_fence(std::memory_order_acquire);
  while (pages_.size() < needed) add_page(std::make_shared<KvPage>(layout_->page_bytes));
}

void SequenceState::advance(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    pages_[static_cast<size_t>(length_ / kPage)]->tokens[length_ % kPage] = token;
    ++length_;
  }
  replay_ = 0;
}

int64_t SequenceState::common_prefix(std::span<const int32_t> tokens) const {
  const int64_t most = std::min(length_, static_cast<int64_t>(tokens.size()));
  int64_t i = 0;
  while (i < most && token(i) == tokens[static_cast<size_t>(i)]) ++i;
  return i;
}

void SequenceState::replay_from_pages() {
  replay_ = std::min(length_, layout_->conv_reach);
  std::fill_n(conv_.data(), conv_.size(), 0.0f);  // what it is before the first token
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
  drop_tokens(length);
  replay_from_pages();
}

void SequenceState::truncate(int64_t length, const ConvHistory& recent) {
  check(recent.begin + recent.count == length_ && length > recent.begin && length <= length_,
        "the history does not have the conv state after ", length, " tokens");
  if (length == length_) return;
  drop_tokens(length);
  std::copy_n(recent.conv.data() + static_cast<size_t>(length - recent.begin - 1) * conv_.size(), conv_.size(),
              conv_.data());
}

void SequenceState::append_page(std::span<const int32_t> tokens, std::span<const std::byte> kv) {
  check(length_ % kPage == 0, "the last page of the state is not full");
  check(!tokens.empty() && tokens.size() <= kPage, "a page holds 1 to ", kPage, " tokens, not ", tokens.size());
  check(kv.size() == layout_->page_bytes, "a page has ", layout_->page_bytes, " bytes of K and V, not ", kv.size());
  for (const int32_t token : tokens) {
    check(token >= 0 && token < layout_->vocab_size, "tokens holds ", token, ", outside the vocabulary of ",
          layout_->vocab_size);
  }
  auto page = std::make_shared<KvPage>(layout_->page_bytes);
  std::copy(tokens.begin(), tokens.end(), page->tokens.begin());
  if (!kv.empty()) std::memcpy(page->kv.data(), kv.data(), kv.size());
  append_page(std::move(page), static_cast<int64_t>(tokens.size()));
}

void SequenceState::append_page(std::shared_ptr<KvPage> page, int64_t count) {
  check(length_ % kPage == 0, "the last page of the state is not full");
  // Room that was reserved beyond the last token.
  pages_.resize(static_cast<size_t>(length_ / kPage));
  page_data_.resize(pages_.size());
  add_page(std::move(page));
  length_ += count;
  replay_from_pages();
}

size_t SequenceState::nbytes() const { return pages_.size() * layout_->page_bytes + conv_.bytes(); }

size_t SequenceState::shared_nbytes() const {
  const auto shared =
      std::count_if(pages_.begin(), pages_.end(), [](const auto& page) { return page.use_count() > 1; });
  return static_cast<size_t>(shared) * layout_->page_bytes;
}

}  // namespace lfm
