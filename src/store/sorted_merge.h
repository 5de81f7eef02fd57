// Merges sorted lists of data pages, (key, group) each, into one in which the newest of each page
// stays. Pure; no allocation a page.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace vmshadow::store {

struct PageList {
  std::span<const std::uint64_t> keys;  ///< `key >> key_shift` is the page; strictly rising in it
  std::span<const std::uint32_t> groups;
  std::uint32_t first_group{};  ///< is added to the groups
};

/// Appends to `keys` and `groups`. n log k, and less where long stretches come from one list.
void merge_newest(std::span<const PageList> oldest_to_newest, unsigned key_shift,
                  std::vector<std::uint64_t>& keys, std::vector<std::uint32_t>& groups);

}  // namespace vmshadow::store
