// oneDNN's C functions, which dnnl.hpp calls, each looked up at its first call. Linking the library costs every process
// 13 MB and 8 ms for its initializers; int8 and int4 models do without it. What dnnl.hpp calls and is not listed here
// is an undefined symbol.
#include <dlfcn.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <tuple>

#include "base/error.h"

namespace {

template <class F>
struct Function;

template <class R, class... Arguments>
struct Function<R(Arguments...)> {
  using Result = R;
  template <size_t i>
  using Argument = std::tuple_element_t<i, std::tuple<Arguments...>>;
};

template <class F>
F* find(const char* name) {
  static void* const library = [] {
    void* opened = dlopen("libdnnl.so.3", RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) throw std::runtime_error(lfm::concat("oneDNN cannot be loaded: ", dlerror()));
    return opened;
  }();
  void* found = dlsym(library, name);
  if (found == nullptr) throw std::runtime_error(lfm::concat("oneDNN has no ", name));
  return reinterpret_cast<F*>(found);
}

}  // namespace

// Defines f, of so many parameters, as what the library has by that name.
#define LFM_FORWARD(f, parameters, ...)                  \
  Function<decltype(f)>::Result f parameters {           \
    static auto* const function = find<decltype(f)>(#f); \
    return function(__VA_ARGS__);                        \
  }
#define LFM_ARGUMENT(f, i) Function<decltype(f)>::Argument<i>
#define LFM_FORWARD_1(f) LFM_FORWARD(f, (LFM_ARGUMENT(f, 0) a), a)
#define LFM_FORWARD_2(f) LFM_FORWARD(f, (LFM_ARGUMENT(f, 0) a, LFM_ARGUMENT(f, 1) b), a, b)
#define LFM_FORWARD_3(f) LFM_FORWARD(f, (LFM_ARGUMENT(f, 0) a, LFM_ARGUMENT(f, 1) b, LFM_ARGUMENT(f, 2) c), a, b, c)
#define LFM_FORWARD_4(f) \
  LFM_FORWARD(f, (LFM_ARGUMENT(f, 0) a, LFM_ARGUMENT(f, 1) b, LFM_ARGUMENT(f, 2) c, LFM_ARGUMENT(f, 3) d), a, b, c, d)
#define LFM_FORWARD_5(f)                                                                                              \
  LFM_FORWARD(                                                                                                        \
      f,                                                                                                              \
      (LFM_ARGUMENT(f, 0) a, LFM_ARGUMENT(f, 1) b, LFM_ARGUMENT(f, 2) c, LFM_ARGUMENT(f, 3) d, LFM_ARGUMENT(f, 4) e), \
      a, b, c, d, e)
#define LFM_FORWARD_6(f)                                                                               \
  LFM_FORWARD(f,                                                                                       \
              (LFM_ARGUMENT(f, 0) a, LFM_ARGUMENT(f, 1) b, LFM_ARGUMENT(f, 2) c, LFM_ARGUMENT(f, 3) d, \
               LFM_ARGUMENT(f, 4) e, LFM_ARGUMENT(f, 5) g),                                            \
              a, b, c, d, e, g)
#define LFM_FORWARD_7(f)                                                                               \
  LFM_FORWARD(f,                                                                                       \
              (LFM_ARGUMENT(f, 0) a, LFM_ARGUMENT(f, 1) b, LFM_ARGUMENT(f, 2) c, LFM_ARGUMENT(f, 3) d, \
               LFM_ARGUMENT(f, 4) e, LFM_ARGUMENT(f, 5) g, LFM_ARGUMENT(f, 6) h),                      \
              a, b, c, d, e, g, h)

LFM_FORWARD_1(dnnl_engine_destroy)
LFM_FORWARD_1(dnnl_memory_desc_destroy)
LFM_FORWARD_1(dnnl_memory_destroy)
LFM_FORWARD_1(dnnl_post_ops_create)
LFM_FORWARD_1(dnnl_post_ops_destroy)
LFM_FORWARD_1(dnnl_primitive_attr_create)
LFM_FORWARD_1(dnnl_primitive_attr_destroy)
LFM_FORWARD_1(dnnl_primitive_desc_destroy)
LFM_FORWARD_1(dnnl_primitive_destroy)
LFM_FORWARD_1(dnnl_set_max_cpu_isa)
LFM_FORWARD_1(dnnl_stream_destroy)
LFM_FORWARD_1(dnnl_stream_wait)
LFM_FORWARD_2(dnnl_memory_desc_clone)
LFM_FORWARD_2(dnnl_memory_desc_get_size_v2)
LFM_FORWARD_2(dnnl_memory_get_engine)
LFM_FORWARD_2(dnnl_memory_get_memory_desc)
LFM_FORWARD_2(dnnl_primitive_attr_set_post_ops)
LFM_FORWARD_2(dnnl_primitive_attr_set_scratchpad_mode)
LFM_FORWARD_2(dnnl_primitive_create)
LFM_FORWARD_3(dnnl_engine_create)
LFM_FORWARD_3(dnnl_memory_desc_query)
LFM_FORWARD_3(dnnl_primitive_desc_query_md)
LFM_FORWARD_3(dnnl_stream_create)
LFM_FORWARD_4(dnnl_memory_desc_create_submemory)
LFM_FORWARD_4(dnnl_post_ops_append_sum)
LFM_FORWARD_4(dnnl_primitive_desc_query)
LFM_FORWARD_4(dnnl_primitive_execute)
LFM_FORWARD_5(dnnl_memory_create_v2)
LFM_FORWARD_5(dnnl_memory_desc_create_with_tag)
LFM_FORWARD_6(dnnl_reorder_primitive_desc_create)
LFM_FORWARD_7(dnnl_matmul_primitive_desc_create)
