#include "base/file_map.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <thread>

#include "base/error.h"

#ifndef MADV_POPULATE_READ  // Linux 5.14
#define MADV_POPULATE_READ 22
#endif

namespace lfm {
namespace {

constexpr size_t kHuge = size_t{2} << 20, kPage = 4096;

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

}  // namespace

FileMap::FileMap(int fd) {
  struct stat status;
  if (fstat(fd, &status) != 0) fail("fstat");
  size_ = static_cast<size_t>(status.st_size);
  check(size_ > 0, "the file is empty");
  // On a 2 MiB border: where the page cache holds huge pages, the processor then translates by huge pages too.
  const size_t reserved = size_ + kHuge;
  void* map = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) fail("mmap");
  const auto start = reinterpret_cast<uintptr_t>(map), begin = (start + kHuge - 1) / kHuge * kHuge;
  void* data = reinterpret_cast<void*>(begin);
  if (mmap(data, size_, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const int error = errno;
    munmap(map, reserved);
    errno = error;
    fail("mmap");
  }
  data_ = static_cast<const std::byte*>(data);
  // Whole pages of the reservation before and behind the file. (munmap rounds lengths up to pages.)
  if (begin > start) munmap(map, begin - start);
  const uintptr_t end = (begin + size_ + kPage - 1) / kPage * kPage;
  if (start + reserved > end) munmap(reinterpret_cast<void*>(end), start + reserved - end);
}

FileMap::~FileMap() { munmap(const_cast<std::byte*>(data_), size_); }

void FileMap::populate(size_t offset) const noexcept {
  // What is not in memory yet is then read in huge pages, where the file system has them.
  madvise(const_cast<std::byte*>(data_), size_, MADV_HUGEPAGE);
  try {
    std::thread([weak = weak_from_this(), offset = offset / kPage * kPage]() mutable {
      constexpr size_t kStep = 8 * kHuge;  // the map is held, and other changes of the address space wait, so long
      for (;; offset += kStep) {
        const std::shared_ptr<const FileMap> map = weak.lock();
        if (map == nullptr || offset >= map->size_) return;
        auto* from = const_cast<std::byte*>(map->data_) + offset;
        if (madvise(from, std::min(kStep, map->size_ - offset), MADV_POPULATE_READ) != 0) return;
      }
    }).detach();
  } catch (const std::exception&) {
    // No thread to be had: pages are mapped when they are touched.
  }
}

}  // namespace lfm
