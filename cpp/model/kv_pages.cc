#include "model/kv_pages.h"

#include <cstring>
#include <utility>

namespace lfm {
namespace {

// Copies `chunks` chunks of so many bytes, `to_stride` and `from_stride` apart.
void copy_chunks(size_t chunks, size_t bytes, std::byte* to, size_t to_stride, const std::byte* from,
                 size_t from_stride) {
  for (size_t i = 0; i < chunks; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, bytes);
}

}  // namespace

bool KvSlab::claim(int64_t slot) {
  const uint32_t bit = 1u << slot;
  if ((claimed_.fetch_or(bit, std::memory_order_acquire) & bit) != 0) return false;
  // Only who has the slot looks at its bit in used_.
  if ((used_.fetch_or(bit, std::memory_order_relaxed) & bit) != 0) {
    for (size_t i = 0; i < chunks_; ++i) std::memset(page(slot) + i * chunk_stride(), 0, chunk_bytes_);
  }
  return true;
}

void KvSlab::release(int64_t slot) { claimed_.fetch_and(~(1u << slot), std::memory_order_release); }

std::shared_ptr<KvPage> KvPage::create(int64_t index, const KvPage* before, size_t chunks, size_t chunk_bytes,
                                       HugePages huge) {
  const int64_t slot = index % kSlabPages;
  auto page = std::make_shared<KvPage>();
  if (slot > 0 && before != nullptr && before->slab_->claim(slot)) {
    page->slab_ = before->slab_;
  } else {
    auto slab = std::make_shared<KvSlab>(chunks, chunk_bytes, huge);
    slab->claim(slot);
    page->slab_ = std::move(slab);
  }
  page->slot_ = slot;
  return page;
}

void KvPage::read(std::byte* out) const {
  copy_chunks(slab_->chunks(), slab_->chunk_bytes(), out, slab_->chunk_bytes(), kv(), slab_->chunk_stride());
}

void KvPage::write(const std::byte* from) {
  copy_chunks(slab_->chunks(), slab_->chunk_bytes(), kv(), slab_->chunk_stride(), from, slab_->chunk_bytes());
}

void KvPage::copy_from(const KvPage& other) {
  tokens = other.tokens;
  copy_chunks(slab_->chunks(), slab_->chunk_bytes(), kv(), slab_->chunk_stride(), other.kv(), slab_->chunk_stride());
}

}  // namespace lfm
