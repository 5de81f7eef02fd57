#include "nbd/byte_stream.h"

#include <algorithm>
#include <cstring>

namespace vmshadow::nbd {

Status SocketStream::read(MutableByteSpan into) {
  for (;;) {
    const std::size_t bytes = std::min(into.size(), filled_ - taken_);
    if (bytes > 0) std::memcpy(into.data(), ahead_.data() + taken_, bytes);
    taken_ += bytes;
    into = into.subspan(bytes);
    if (into.empty()) return {};
    if (into.size() >= ahead_.size()) return io::read_exact(fd_, into, read_by_);
    VMSHADOW_ASSIGN(filled_, io::read_some(fd_, ahead_, read_by_));
    taken_ = 0;
    if (filled_ == 0) return fail(Errc::closed, "the client closed the connection");
  }
}

}  // namespace vmshadow::nbd
