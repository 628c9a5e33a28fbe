// A reference to something callable: no allocation, no ownership; lives no longer than what it refers to.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace lfm {

template <class Signature>
class FunctionRef;

template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>>>
  FunctionRef(const F& f)  // NOLINT: implicit, so that a lambda can be passed as it is
      : object_(std::addressof(f)), call_([](const void* object, Args... args) -> R {
          return (*static_cast<const F*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  const void* object_;
  R (*call_)(const void*, Args...);
};

}  // namespace lfm
