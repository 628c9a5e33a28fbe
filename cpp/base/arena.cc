#include "base/arena.h"

#include <algorithm>

namespace lfm {

std::shared_ptr<std::byte[]> Arena::allocate(size_t bytes) {
  const size_t padded = (bytes + 63) / 64 * 64;
  if (chunks_.empty() || padded > chunks_.back()->memory.size() - chunks_.back()->used) {
    chunks_.push_back(std::make_shared<Chunk>(std::max(padded, chunk_bytes_)));
  }
  const std::shared_ptr<Chunk>& chunk = chunks_.back();
  std::byte* piece = chunk->memory.data() + chunk->used;
  chunk->used += padded;
  return {piece, [chunk, padded](std::byte* p) { chunk->memory.let_go(p - chunk->memory.data(), padded); }};
}

void Arena::use_huge_pages() {
  for (const auto& chunk : chunks_) chunk->memory.use_huge_pages(chunk->used);
}

}  // namespace lfm
