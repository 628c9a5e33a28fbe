// Memory of what lives as long as a model: zeroed pieces, one behind the other in chunks of huge pages. With a mapping
// of its own a matrix of few MB would lie mostly in small pages, and reading it would wait for the TLB.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/buffer.h"

namespace lfm {

class Arena {
 public:
  // Bytes of a chunk, which is larger where a piece is; 0: a chunk for each piece.
  explicit Arena(size_t chunk_bytes = 0) : chunk_bytes_(chunk_bytes) {}

  // On a 64-byte border. A piece that is dropped gives its pages back, a chunk without pieces its addresses, once the
  // arena is gone.
  std::shared_ptr<std::byte[]> allocate(size_t bytes);

  // See Buffer::use_huge_pages.
  void use_huge_pages();

 private:
  struct Chunk {
    explicit Chunk(size_t bytes) : memory(bytes) {}
    Buffer<std::byte> memory;
    size_t used = 0;
  };

  size_t chunk_bytes_;
  std::vector<std::shared_ptr<Chunk>> chunks_;
};

}  // namespace lfm
