#include "replay/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>

#include "io/file.h"

namespace vmshadow::replay {
namespace {

constexpr std::size_t kGatherBytes = std::size_t{1} << 20;
/// Of the final name in the temporary one: a name has 255 bytes.
constexpr std::size_t kNameInTemporaryMax = 200;

/// What stands at a path: nullopt if nothing does.
Result<std::optional<mode_t>> kind_at(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) {
    return std::optional<mode_t>(static_cast<mode_t>(status.st_mode & S_IFMT));
  }
  if (errno == ENOENT) return std::optional<mode_t>();
  return fail_errno(errno, fmt::format("looking at '{}'", path));
}

tl::unexpected<Error> exists(const std::string& path) {
  return fail(Errc::already_exists,
              fmt::format("'{}' exists: choose another name, or replace it with --force", path));
}

Status may_be_replaced(const std::string& path, mode_t found, OutputPlace::Kind kind,
                       const std::vector<std::string>& marks) {
  if (kind == OutputPlace::Kind::file) {
    if (found == S_IFREG) return {};
    return fail(
        Errc::already_exists,
        fmt::format("'{}' is no regular file and is not replaced: choose another name", path));
  }
  const bool is_ours = found == S_IFDIR && std::all_of(marks.begin(), marks.end(), [&](auto& mark) {
                         return ::access((path + "/" + mark).c_str(), F_OK) == 0;
                       });
  if (is_ours) return {};
  return fail(Errc::already_exists,
              fmt::format("'{}' is not the folder of an earlier export and is not replaced: choose "
                          "another name",
                          path));
}

int rename_with(const std::string& from, const std::string& to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
}

}  // namespace

SparseWriter::SparseWriter(UniqueFd fd, std::string name)
    : fd_(std::move(fd)), name_(std::move(name)) {
  gathered_.reserve(kGatherBytes);
}

Status SparseWriter::set_bytes(std::uint64_t bytes) {
  if (::ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0) return {};
  return fail_errno(errno, fmt::format("making '{}' {} bytes long", name_, bytes));
}

Status SparseWriter::write(std::uint64_t offset, ByteSpan bytes) {
  if (gathered_at_ + gathered_.size() != offset || gathered_.size() + bytes.size() > kGatherBytes) {
    VMSHADOW_TRY(flush());
    gathered_at_ = offset;
  }
  gathered_.insert(gathered_.end(), bytes.begin(), bytes.end());
  return {};
}

Status SparseWriter::flush() {
  std::size_t done = 0;
  while (done < gathered_.size()) {
    const ssize_t n = ::pwrite(fd_.get(), gathered_.data() + done, gathered_.size() - done,
                               static_cast<off_t>(gathered_at_ + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, fmt::format("writing '{}'", name_));
    done += static_cast<std::size_t>(n);
  }
  gathered_.clear();
  return {};
}

Status SparseWriter::finish() {
  VMSHADOW_TRY(flush());
  if (::fsync(fd_.get()) != 0) return fail_errno(errno, fmt::format("syncing '{}'", name_));
  if (::close(fd_.release()) != 0) return fail_errno(errno, fmt::format("closing '{}'", name_));
  return {};
}

Result<OutputPlace> OutputPlace::prepare(const std::string& wanted, Kind kind, bool replace,
                                         const std::vector<std::string>& marks) {
  std::string path = wanted;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::filesystem::path parts(path);
  const std::string name = parts.filename().string();
  if (name.empty() || name == "." || name == "..") {
    return fail(Errc::invalid_argument, fmt::format("'{}' is no name for a new file", wanted));
  }
  const std::string folder = parts.has_parent_path() ? parts.parent_path().string() : "./";
  VMSHADOW_ASSIGN(const auto found, kind_at(path));
  if (found && !replace) return exists(path);
  if (found) VMSHADOW_TRY(may_be_replaced(path, *found, kind, marks));

  OutputPlace place(path, folder, kind, replace);
  std::string pattern =
      fmt::format("{}/.{}.partial-XXXXXX", folder, name.substr(0, kNameInTemporaryMax));
  if (kind == Kind::folder) {
    if (::mkdtemp(pattern.data()) == nullptr) {
      return fail_errno(errno, fmt::format("making a folder in '{}'", folder));
    }
  } else {
    const UniqueFd fd(::mkostemp(pattern.data(), O_CLOEXEC));
    if (!fd) return fail_errno(errno, fmt::format("making a file in '{}'", folder));
  }
  place.temporary_ = std::move(pattern);
  return place;
}

OutputPlace::OutputPlace(OutputPlace&& other) noexcept
    : path_(std::move(other.path_)),
      folder_(std::move(other.folder_)),
      temporary_(std::exchange(other.temporary_, {})),
      kind_(other.kind_),
      replace_(other.replace_) {}

OutputPlace::~OutputPlace() {
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

Result<SparseWriter> OutputPlace::open() const {
  UniqueFd fd(::open(temporary_.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, fmt::format("opening '{}'", temporary_));
  return SparseWriter(std::move(fd), path_);
}

Result<SparseWriter> OutputPlace::create(const std::string& name) const {
  UniqueFd fd(
      ::open((temporary_ + "/" + name).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return fail_errno(errno, fmt::format("making '{}/{}'", path_, name));
  return SparseWriter(std::move(fd), path_ + "/" + name);
}

Status OutputPlace::publish() {
  if (kind_ == Kind::folder) VMSHADOW_TRY(io::sync_directory(temporary_));
  int renamed = rename_with(temporary_, path_, RENAME_NOREPLACE);
  if (renamed != 0 && errno == EEXIST) {
    if (!replace_) return exists(path_);
    // A folder that holds something cannot be renamed over: they change places, and the old one
    // goes with this object.
    if (kind_ == Kind::folder) {
      if (rename_with(temporary_, path_, RENAME_EXCHANGE) != 0) {
        return fail_errno(errno, fmt::format("replacing '{}'", path_));
      }
      return io::sync_directory(folder_);
    }
    renamed = ::rename(temporary_.c_str(), path_.c_str());
  } else if (renamed != 0 && errno == EINVAL) {
    // A file system without RENAME_NOREPLACE (NFS): a moment between question and answer.
    VMSHADOW_ASSIGN(const auto found, kind_at(path_));
    if (found && (!replace_ || kind_ == Kind::folder)) return exists(path_);
    renamed = ::rename(temporary_.c_str(), path_.c_str());
  }
  if (renamed != 0) return fail_errno(errno, fmt::format("naming '{}'", path_));
  temporary_.clear();
  return io::sync_directory(folder_);
}

}  // namespace vmshadow::replay
