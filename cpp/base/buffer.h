// Owned, zero-filled, 64-byte aligned memory.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

namespace lfm {

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(size_t count) : size_(count) {
    if (count == 0) return;
    if (count > (std::numeric_limits<size_t>::max() - kHuge) / sizeof(T)) throw std::bad_alloc();
    const size_t bytes = count * sizeof(T);
    // Weights are streamed once per token: huge pages keep the TLB out of the way.
    const bool huge = bytes >= kHuge;
    const size_t alignment = huge ? kHuge : 64;
    const size_t rounded = (bytes + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(alignment, huge ? (bytes + kHuge - 1) / kHuge * kHuge : rounded));
    if (data_ == nullptr) throw std::bad_alloc();
    if (huge) madvise(data_, bytes, MADV_HUGEPAGE);
    std::memset(static_cast<void*>(data_), 0, rounded);
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
  ~Buffer() { std::free(data_); }

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

 private:
  static constexpr size_t kHuge = size_t{2} << 20;
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lfm
