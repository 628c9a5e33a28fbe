// Owned, zero-filled, 64-byte aligned memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

namespace lfm {

// Whether large buffers get huge pages, where the system has them: the first touch takes 2 MiB at a time then.
enum class HugePages : uint8_t { no, yes };

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(size_t count, HugePages huge = HugePages::yes) : size_(count) {
    if (count == 0) return;
    if (count > (std::numeric_limits<size_t>::max() - 2 * kHuge) / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(is_large() ? map_large(bytes(), huge) : allocate_small(bytes()));
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Buffer(const Buffer& other) : Buffer(other.size_) {
    if (size_ != 0) std::memcpy(static_cast<void*>(data_), other.data_, size_ * sizeof(T));
  }
  Buffer& operator=(const Buffer& other) { return *this = Buffer(other); }
  ~Buffer() {
    if (is_large()) {
      munmap(data_, bytes());
    } else {
      std::free(data_);
    }
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

  // Grows to at least `count` elements; old contents are lost on growth.
  T* ensure(size_t count) {
    if (count > size_) *this = Buffer(count);
    return data_;
  }

  // Moves the first `count` elements to huge pages, where the system has them (Linux 6.1) and does not use them
  // already, for want of any at the first touch, say. Takes 0.2 to 3 ms per MB.
  void use_huge_pages(size_t count) {
    constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers do not have
    if (is_large()) madvise(data_, count * sizeof(T), kCollapse);
  }

  // Gives the memory of `count` elements from `first` on back to the system, as far as it is whole pages of a large
  // buffer: they are zeros then.
  void let_go(size_t first, size_t count) {
    if (!is_large()) return;
    const size_t page = page_bytes(), begin = (first * sizeof(T) + page - 1) / page * page;
    const size_t end = (first + count) * sizeof(T) / page * page;
    if (begin < end) madvise(reinterpret_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
  }

 private:
  static constexpr size_t kHuge = size_t{2} << 20, kLarge = kHuge / 2;
  static size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  bool is_large() const { return bytes() >= kLarge; }

  static void* allocate_small(size_t bytes) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    void* data = std::aligned_alloc(64, rounded);
    if (data == nullptr) throw std::bad_alloc();
    return std::memset(data, 0, rounded);
  }

  // Straight from the system, on a 2 MiB border: huge pages keep the TLB out of the way when weights are streamed, and
  // what is freed leaves the process at once, where malloc would keep it.
  static void* map_large(size_t bytes, HugePages huge) {
    const size_t reserved = bytes + kHuge;
    void* map = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    const auto start = reinterpret_cast<uintptr_t>(map), page = page_bytes();
    const uintptr_t begin = (start + kHuge - 1) / kHuge * kHuge, end = (begin + bytes + page - 1) / page * page;
    if (begin > start) munmap(map, begin - start);
    if (start + reserved > end) munmap(reinterpret_cast<void*>(end), start + reserved - end);
    void* data = reinterpret_cast<void*>(begin);
    if (huge == HugePages::yes) madvise(data, bytes, MADV_HUGEPAGE);
    return data;
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lfm
