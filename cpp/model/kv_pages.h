// Memory of K and V: pages of kPage tokens, which sequences share, in slabs of neighbouring pages.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/buffer.h"
#include "kernels/kv_page.h"

namespace lfm {

// The pages of a slab: those of one attention block.
inline constexpr int64_t kSlabPages = kAttentionBlock / kPage;

// Room for kSlabPages pages that follow each other in a sequence. A page has `chunks` chunks: the K and the V of each
// layer and head. In a slab they lie chunk by chunk, [chunks][kSlabPages][chunk_bytes], so that attention reads the
// keys of a head over a whole block, then its values, then the next head's, front to back: a core reads such long runs
// up to twice as fast as 8 KB here and there. Memory comes from the system when a page is first written to.
class KvSlab {
 public:
  KvSlab(size_t chunks, size_t chunk_bytes, HugePages huge)
      : chunks_(chunks), chunk_bytes_(chunk_bytes), huge_(huge), memory_(chunks * kSlabPages * chunk_bytes, huge) {}

  size_t chunks() const { return chunks_; }
  size_t chunk_bytes() const { return chunk_bytes_; }
  size_t chunk_stride() const { return kSlabPages * chunk_bytes_; }  // between the chunks of one page
  HugePages huge() const { return huge_; }

  // The first chunk of the page at `slot`.
  std::byte* page(int64_t slot) { return memory_.data() + static_cast<size_t>(slot) * chunk_bytes_; }

  // Takes the slot, filled with zeros, if nobody has it. Any thread may ask.
  bool claim(int64_t slot);
  void release(int64_t slot);

 private:
  size_t chunks_, chunk_bytes_;
  HugePages huge_;
  Buffer<std::byte> memory_;
  std::atomic<uint32_t> claimed_{0}, used_{0};  // bits: slots that somebody has, or had
};

// kPage tokens with their K and V.
class KvPage {
 public:
  // The page `index` of a sequence, next to the one before (null: none), if its slab has room there; `huge` is for a
  // new slab.
  static std::shared_ptr<KvPage> create(int64_t index, const KvPage* before, size_t chunks, size_t chunk_bytes,
                                        HugePages huge);
  ~KvPage() {
    if (slab_ != nullptr) slab_->release(slot_);
  }
  KvPage() = default;  // for create
  KvPage(const KvPage&) = delete;
  KvPage& operator=(const KvPage&) = delete;

  std::array<int32_t, kPage> tokens{};

  std::byte* kv() { return slab_->page(slot_); }  // chunks are chunk_stride() apart
  const std::byte* kv() const { return slab_->page(slot_); }
  KvSlab& slab() const { return *slab_; }
  int64_t slot() const { return slot_; }

  // All chunks one after the other, [chunks * chunk_bytes].
  void read(std::byte* out) const;
  void write(const std::byte* from);
  void copy_from(const KvPage& other);  // tokens too; of the same layout

 private:
  std::shared_ptr<KvSlab> slab_;
  int64_t slot_ = 0;
};

}  // namespace lfm
