#include "model/state.h"

#include <algorithm>
#include <utility>

namespace lfm {

StateLayout::StateLayout(const ModelConfig& config, KvType kv)
    : kv_type(kv),
      head_dim(config.head_dim),
      kv_heads(config.num_key_value_heads),
      attention_layers(config.num_layers_of(LayerType::full_attention)),
      conv_layers(config.num_layers_of(LayerType::conv)),
      conv_past(config.conv_L_cache - 1),
      hidden(config.hidden_size),
      k_bytes(static_cast<size_t>(kv_bytes(kv, k_elements(config.head_dim)))),
      v_bytes(static_cast<size_t>(kv_bytes(kv, v_elements(config.head_dim)))),
      page_bytes(static_cast<size_t>(attention_layers * kv_heads) * (k_bytes + v_bytes)) {}

SequenceState::SequenceState(std::shared_ptr<const StateLayout> layout)
    : layout_(std::move(layout)),
      conv_(static_cast<size_t>(layout_->conv_layers * layout_->conv_past * layout_->hidden)) {}

void SequenceState::reserve(int64_t tokens) {
  if (layout_->attention_layers == 0 || tokens <= 0) return;
  const auto needed = static_cast<size_t>((length_ + tokens + kPage - 1) / kPage);
  const auto first_written = static_cast<size_t>(length_ / kPage);
  page_data_.resize(std::max(needed, pages_.size()));
  for (size_t i = first_written; i < pages_.size() && i < needed; ++i) {
    if (pages_[i].use_count() > 1) pages_[i] = std::make_shared<Page>(*pages_[i]);
    page_data_[i] = pages_[i]->data();
  }
  while (pages_.size() < needed) {
    pages_.push_back(std::make_shared<Page>(layout_->page_bytes));
    page_data_[pages_.size() - 1] = pages_.back()->data();
  }
}

size_t SequenceState::nbytes() const { return pages_.size() * layout_->page_bytes + conv_.bytes(); }

}  // namespace lfm
