// One object in memory that a process shares with those it forks.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <new>
#include <type_traits>

#include <vmshadow/result.h>

namespace vmshadow {

/// A `T` as constructed by default, for the life of the program.
template <class T>
[[nodiscard]] Result<T*> make_shared_with_children() {
  static_assert(std::is_trivially_destructible_v<T>, "nobody would destroy it");
  void* memory =
      ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail_errno(errno, "mapping memory to share");
  return new (memory) T;
}

}  // namespace vmshadow
