// A file mapped read-only in place of being read: processes that map the same file share its pages.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace lfm {

class FileMap : public std::enable_shared_from_this<FileMap> {
 public:
  // Maps the whole file open at `fd`, which may be closed afterwards. Throws std::system_error, and
  // std::invalid_argument for an empty file.
  explicit FileMap(int fd);
  ~FileMap();
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Starts to map all pages from `offset` on ahead of their use, and to read those that are not in memory yet, in a
  // thread that ends with the map. Needs a shared_ptr to this object. Does nothing where the system cannot.
  void populate(size_t offset) const noexcept;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lfm
