// Files that appear under their name whole, or not at all.
//
//   prepare ─► write to .NAME.partial-XXXXXX beside it ─► sync ─► rename ─► sync the directory
//      └──────────── any error, or the object's end ─────► what was written is removed
//
// Modes are 0600 and 0700: what is written is a guest's memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <vmshadow/result.h>
#include <vmshadow/types.h>

#include "base/unique_fd.h"

namespace vmshadow::replay {

/// Writes a file in pieces, at any offsets. What is not written is a hole, and reads as zeros.
class SparseWriter {
 public:
  /// `name` is for messages.
  SparseWriter(UniqueFd fd, std::string name);
  /// The file's length.
  [[nodiscard]] Status set_bytes(std::uint64_t bytes);
  /// Adjoining pieces are gathered into one write.
  [[nodiscard]] Status write(std::uint64_t offset, ByteSpan bytes);
  /// Writes what was gathered, makes the file durable and closes it.
  [[nodiscard]] Status finish();

 private:
  Status flush();

  UniqueFd fd_;
  std::string name_;
  std::vector<std::byte> gathered_;
  std::uint64_t gathered_at_ = 0;
};

/// A name that is to be taken by a new file or folder.
class OutputPlace {
 public:
  enum class Kind { file, folder };
  /// Makes the temporary file or folder. Errc::already_exists if `path` exists and `replace` is not
  /// set. What is replaced must be of the same kind, and a folder must hold all of `marks`: that
  /// the operator named the wrong one should cost nothing.
  [[nodiscard]] static Result<OutputPlace> prepare(const std::string& path, Kind kind, bool replace,
                                                   const std::vector<std::string>& marks = {});
  OutputPlace(OutputPlace&& other) noexcept;
  OutputPlace& operator=(OutputPlace&&) = delete;
  ~OutputPlace();

  [[nodiscard]] const std::string& path() const { return path_; }
  /// Where to write meanwhile.
  [[nodiscard]] const std::string& temporary() const { return temporary_; }
  /// The temporary file (Kind::file), open for writing.
  [[nodiscard]] Result<SparseWriter> open() const;
  /// A file of the temporary folder.
  [[nodiscard]] Result<SparseWriter> create(const std::string& name) const;
  /// Gives it its name. What is in it must be durable by itself.
  [[nodiscard]] Status publish();

 private:
  OutputPlace(std::string path, std::string folder, Kind kind, bool replace)
      : path_(std::move(path)), folder_(std::move(folder)), kind_(kind), replace_(replace) {}

  std::string path_;
  std::string folder_;  ///< that holds both
  std::string temporary_;
  Kind kind_;
  bool replace_;
};

}  // namespace vmshadow::replay
